//! Metrics: what the proxy has done and how long it took, for Prometheus.
//!
//! | prefix | what | where |
//! |---|---|---|
//! | `kubeproxy_` | the metrics of kube-proxy, so that dashboards and alerts go on working | `proxy` |
//! | `ferrule_` | what these do not tell | `own` |
//! | `rest_client_` | requests to the API server | `requests` |
//! | `process_` | this process | `process` |
//! | `kubernetes_`, `…_metrics_total` | release, feature gates, families | `standard` |
//!
//! Numbers come from the loop ([`Recorder`]), from the other servers and from conntrack (methods of
//! [`Metrics`]), or are read when somebody asks ([`Readers`]).

pub mod encode;
mod families;
mod observe;
mod own;
mod process;
mod proxy;
mod requests;
pub(crate) mod sample;
mod standard;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::Registry;
use prometheus::proto::{MetricFamily, MetricType};

use self::families::Families;
use self::observe::Outstanding;
pub use self::observe::Recorder;
use crate::config::{Config, ProxyMode};
use crate::net::IpFamily;
use crate::source::Exchange;

/// All metrics. Clones are the same ones.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

/// What is read at each scrape. Must not wait for anything but system calls.
pub struct Readers {
    /// Packets dropped because conntrack takes them for invalid; `None` where the kernel does not count.
    pub invalid_dropped: Box<ReadCounter>,
    /// Packets to node ports on loopback addresses; likewise.
    pub localhost_accepted: Box<ReadCounter>,
    /// Answers of the health server so far, by path and code.
    pub probes: Box<ReadProbes>,
    /// The watches of the API server; empty without one.
    pub watches: Box<ReadWatches>,
}

/// Reads a counter of the kernel.
pub type ReadCounter = dyn Fn() -> Option<u64> + Send + Sync;
/// Reads how often probes were answered.
pub type ReadProbes = dyn Fn() -> Vec<Probe> + Send + Sync;
/// Reads the state of every watch.
pub type ReadWatches = dyn Fn() -> Vec<Watch> + Send + Sync;

/// How often a probe was answered in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `/healthz` or `/livez`.
    pub path: &'static str,
    /// Status code.
    pub code: u16,
    /// How often.
    pub answers: u64,
}

/// The state of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The kind of objects watched.
    pub kind: String,
    /// How long ago the server last said anything, if ever.
    pub silent: Option<Duration>,
    /// Whether the watch stands.
    pub connected: bool,
}

/// The families, and what they are made of.
pub(crate) struct Inner {
    mode: ProxyMode,
    start: SystemTime,
    registry: Registry,
    constant: Vec<MetricFamily>,
    proxy: proxy::Proxy,
    own: own::Own,
    requests: requests::Requests,
    readers: Readers,
    outstanding: Mutex<BTreeMap<IpFamily, Outstanding>>,
}

// === impl Metrics ===

impl Metrics {
    /// The families of a mode, unused. The process counts as started now.
    pub fn new(config: &Config, readers: Readers) -> prometheus::Result<Metrics> {
        let mut families = Families::default();
        let proxy = proxy::Proxy::register(&mut families, config.mode)?;
        let own = own::Own::register(&mut families)?;
        let requests = requests::Requests::register(&mut families)?;
        Ok(Metrics(Arc::new(Inner {
            mode: config.mode,
            start: SystemTime::now(),
            constant: standard::families(config, &families),
            registry: families.registry(),
            proxy,
            own,
            requests,
            readers,
            outstanding: Mutex::default(),
        })))
    }

    /// What is to be told of the loop.
    pub fn recorder(&self) -> Recorder {
        Recorder { inner: self.0.clone(), lines: BTreeMap::new() }
    }

    /// Counts a look at stale flows in conntrack: how long it took, and how many were deleted.
    pub fn record_reconcile(&self, family: IpFamily, took: Duration, deleted: usize) {
        let family = &[family.as_str()];
        self.0.proxy.reconcile.with_label_values(family).observe(took.as_secs_f64());
        self.0.proxy.reconcile_deleted.with_label_values(family).inc_by(deleted as u64);
    }

    /// Counts a request to the API server.
    pub fn count_request(&self, exchange: &Exchange) {
        self.0.requests.count(exchange);
    }

    /// When the process began.
    pub fn start(&self) -> SystemTime {
        self.0.start
    }

    /// Everything, as text.
    pub fn scrape(&self) -> String {
        let Inner { registry, constant, own, readers, outstanding, .. } = &*self.0;
        for (family, outstanding) in &*outstanding.lock().unwrap_or_else(PoisonError::into_inner) {
            own.oldest.with_label_values(&[family.as_str()]).set(outstanding.age().as_secs_f64());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for Watch { kind, silent, connected } in (readers.watches)() {
            own.connected.with_label_values(&[&kind]).set(f64::from(u8::from(connected)));
            if let Some(silent) = silent {
                let heard = now.saturating_sub(silent);
                own.heard.with_label_values(&[&kind]).set(heard.as_secs_f64());
            }
        }
        let mut families = registry.gather();
        families.extend(constant.iter().cloned());
        families.extend(process::families());
        let probes = (readers.probes)();
        for (path, (name, help)) in [("/healthz", proxy::HEALTHZ), ("/livez", proxy::LIVEZ)] {
            let given = probes.iter().filter(|probe| probe.path == path && probe.answers > 0);
            let series = given.map(|probe| (vec![("code", probe.code.to_string())], probe.answers as f64));
            families.push(sample::family(MetricType::COUNTER, name, help, series));
        }
        if self.0.mode == ProxyMode::Iptables {
            let counters = [
                (proxy::INVALID_DROPPED, &readers.invalid_dropped),
                (proxy::LOCALHOST_ACCEPTED, &readers.localhost_accepted),
            ];
            for ((name, help), read) in counters {
                let packets = read();
                families.extend(packets.map(|packets| sample::alone(MetricType::COUNTER, name, help, packets as f64)));
            }
        }
        encode::text(families)
    }
}

// === impl Inner ===

impl Inner {
    fn outstanding(&self, family: IpFamily, change: impl FnOnce(&mut Outstanding)) {
        let mut outstanding = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        change(outstanding.entry(family).or_default());
    }
}
