//! From what happens in the loop to numbers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::Inner;
use crate::backend::{Report, RuleCount, Scope};
use crate::cluster::{Changed, Event};
use crate::model::{Kind, ServiceName, ServicePortName};
use crate::net::IpFamily;
use crate::plan::{Plan, ServicePlan, Unmet};
use crate::sync::notice::{Notice, Observer, Sync};

/// Takes note of what happens in the loop. The cost of a notice is that of the change it tells of.
pub struct Recorder {
    pub(super) inner: Arc<Inner>,
    pub(super) lines: BTreeMap<IpFamily, Line>,
}

/// What is remembered of one family.
#[derive(Default)]
pub(super) struct Line {
    /// Changes of slices since its last sync began.
    endpoint_changes: u32,
    /// Services that changed since then.
    services: HashSet<ServiceName>,
    no_local: NoLocal,
    /// Looks that found rules missing, since the last sync that succeeded.
    drifts: u64,
}

/// Since when something is not in the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outstanding {
    /// For changes that no sync serves yet.
    waiting: Option<Instant>,
    /// For those that the present sync serves.
    in_sync: Option<Instant>,
}

/// Service ports that shall only use endpoints of this node, and all of theirs are on other ones.
#[derive(Default)]
struct NoLocal {
    internal: HashSet<ServicePortName>,
    external: HashSet<ServicePortName>,
}

// === impl Recorder ===

impl Observer for Recorder {
    fn notice(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Started(family) => {
                self.lines.entry(*family).or_default();
                self.queued(*family);
            }
            Notice::Event { event, changed } => self.count(event, changed),
            Notice::Requested(family) => {
                self.queued(*family);
                self.inner.outstanding(*family, Outstanding::request);
            }
            Notice::Begun(family) => {
                if let Some(line) = self.lines.get_mut(family) {
                    line.endpoint_changes = 0;
                    line.services.clear();
                }
                self.show_pending();
                self.inner.outstanding(*family, Outstanding::begin);
            }
            Notice::Planned { .. } => {}
            Notice::Ended(sync) => self.ended(sync),
            Notice::Drifted(family) => {
                self.inner.own.drift_found.with_label_values(&[family.as_str()]).inc();
                if let Some(line) = self.lines.get_mut(family) {
                    line.drifts += 1;
                }
            }
        }
    }
}

impl Recorder {
    fn queued(&self, family: IpFamily) {
        self.inner.proxy.last_queued.with_label_values(&[family.as_str()]).set(unix(SystemTime::now()));
    }

    /// kube-proxy counts each event of a Service once for each family, and each of a slice in the
    /// slice's own family if that is served; also those that change nothing.
    fn count(&mut self, event: &Event, changed: &Changed) {
        let families = self.lines.len() as u64;
        let (services, slices) = match (event, changed) {
            (Event::Service(_), _) => (families, 0),
            (Event::EndpointSlice(slice), _) => (0, u64::from(self.lines.contains_key(&slice.family))),
            (Event::Deleted(object), _) if object.kind == Kind::Service => (families, 0),
            (Event::Deleted(object), Changed::Service(_, affected)) if object.kind == Kind::EndpointSlice => {
                (0, u64::from(self.lines.keys().any(|family| affected.contains(*family))))
            }
            (Event::Synced(Kind::Service), Changed::Services(gone)) => (families * gone.len() as u64, 0),
            (Event::Synced(Kind::EndpointSlice), Changed::Services(gone)) => (0, gone.len() as u64),
            _ => return,
        };
        self.inner.proxy.service_changes.inc_by(services);
        self.inner.proxy.endpoint_changes.inc_by(slices);
        for (family, line) in &mut self.lines {
            match changed {
                Changed::Service(name, affected) if affected.contains(*family) => {
                    match slices {
                        0 => _ = line.services.insert(name.clone()),
                        _ => line.endpoint_changes += 1,
                    };
                }
                Changed::Services(names) if slices == 0 => line.services.extend(names.iter().cloned()),
                Changed::Services(names) => {
                    line.endpoint_changes += u32::try_from(names.len()).unwrap_or(u32::MAX);
                }
                Changed::Service(..) | Changed::Node | Changed::Nothing => {}
            }
        }
        self.show_pending();
    }

    /// The series have no family: a slice is pending in its own, a Service wherever it is longest.
    fn show_pending(&self) {
        let endpoints: u32 = self.lines.values().map(|line| line.endpoint_changes).sum();
        let services = self.lines.values().map(|line| line.services.len()).max().unwrap_or(0);
        self.inner.proxy.endpoint_changes_pending.set(f64::from(endpoints));
        self.inner.proxy.service_changes_pending.set(services as f64);
    }

    fn ended(&mut self, sync: &Sync<'_>) {
        let (proxy, own) = (&self.inner.proxy, &self.inner.own);
        let family = &[sync.family.as_str()];
        if sync.unfinished {
            if let Some(line) = self.lines.get_mut(&sync.family) {
                line.no_local.follow(sync.plan, sync.scope);
            }
            // Of everything else the last piece tells.
            return self.programmed(sync);
        }
        let seconds = (sync.planning + sync.applying).as_secs_f64();
        let is_partial = !sync.whole;
        proxy.sync.with_label_values(family).observe(seconds);
        let kind = if is_partial { &proxy.partial } else { &proxy.full };
        kind.iter().for_each(|kind| kind.with_label_values(family).observe(seconds));
        let stage = |name, time: Duration| {
            own.stages.with_label_values(&[sync.family.as_str(), name]).observe(time.as_secs_f64());
        };
        sync.waited.into_iter().for_each(|waited| stage("queue", waited));
        stage("plan", sync.planning);

        // A sync that failed counts once; one that went on after the kernel refused something, once for
        // each refusal.
        let failures = sync.result.map_or(1, |report| report.refusals as u64);
        if failures > 0 {
            let partial = proxy.partial_restore_failures.as_ref().filter(|_| is_partial);
            for counter in proxy.restore_failures.iter().chain(partial).chain(&proxy.nft_failures) {
                counter.with_label_values(family).inc_by(failures);
            }
        }
        let Some(line) = self.lines.get_mut(&sync.family) else { return };
        // Also of a sync that failed: the next one need not mention these Services again.
        line.no_local.follow(sync.plan, sync.scope);
        let Ok(report) = sync.result else {
            return self.inner.outstanding(sync.family, Outstanding::fail);
        };
        if report.cleanup_failures > 0 {
            let counter = proxy.nft_cleanup_failures.iter();
            counter.for_each(|counter| counter.with_label_values(family).inc_by(report.cleanup_failures as u64));
        }
        self.inner.outstanding(sync.family, Outstanding::succeed);
        stage("diff", report.diffing);
        stage("apply", sync.applying.saturating_sub(report.diffing));
        own.drift_repaired.with_label_values(family).inc_by(std::mem::take(&mut line.drifts));
        let no_local = [("internal", &line.no_local.internal), ("external", &line.no_local.external)];
        for (policy, ports) in no_local {
            // Where virtual servers balance, a Service counts once. (kube-proxy: the same.)
            let number = match sync.plan.node.virtual_servers {
                Some(_) => ports.iter().map(|port| &port.service).collect::<HashSet<_>>().len(),
                None => ports.len(),
            };
            proxy.no_local_endpoints.with_label_values(&[policy, sync.family.as_str()]).set(number as f64);
        }
        proxy.last.with_label_values(family).set(unix(SystemTime::now()));
        self.succeeded(sync, report);
    }

    /// The changes that a sync, or a piece of one, served are in the kernel.
    fn programmed(&self, sync: &Sync<'_>) {
        let Inner { proxy, start, .. } = &*self.inner;
        let family = sync.family.as_str();
        let now = unix(SystemTime::now());
        for caused in sync.triggers.iter().filter_map(|text| text.parse::<Timestamp>().ok()) {
            let caused = SystemTime::from(caused);
            // What happened before the process began says nothing about it. (kube-proxy: the same.)
            if caused > *start {
                let latency = (now - unix(caused)).max(0.0);
                proxy.network_programming.with_label_values(&[family]).observe(latency);
            }
        }
    }

    fn succeeded(&self, sync: &Sync<'_>, report: &Report) {
        let Inner { proxy, own, .. } = &*self.inner;
        let family = sync.family.as_str();
        self.programmed(sync);
        for (gauges, RuleCount { filter, nat }) in [(&proxy.rules, report.holds), (&proxy.rules_last, report.rules)] {
            for (table, rules) in [("filter", filter), ("nat", nat)] {
                gauges.iter().for_each(|gauges| gauges.with_label_values(&[table, family]).set(rules as f64));
            }
        }
        own.set_aside.with_label_values(&[family]).set(report.set_aside as f64);
        own.restores.with_label_values(&[family]).observe(report.restores as f64);
        own.bytes.with_label_values(&[family]).observe(report.bytes as f64);
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

// === impl Outstanding ===

impl Outstanding {
    fn request(&mut self) {
        self.waiting.get_or_insert_with(Instant::now);
    }

    fn begin(&mut self) {
        self.in_sync = self.in_sync.into_iter().chain(self.waiting.take()).min();
    }

    fn succeed(&mut self) {
        self.in_sync = None;
    }

    fn fail(&mut self) {
        self.waiting = self.in_sync.take().into_iter().chain(self.waiting).min();
    }

    /// How old the oldest change is that is not in the kernel.
    pub(super) fn age(&self) -> Duration {
        let oldest = self.in_sync.into_iter().chain(self.waiting).min();
        oldest.map(|oldest| oldest.elapsed()).unwrap_or_default()
    }
}

// === impl NoLocal ===

impl NoLocal {
    fn follow(&mut self, plan: &Plan, scope: &Scope) {
        match scope {
            Scope::Services(touched) => {
                for name in touched {
                    self.internal.remove(name);
                    self.external.remove(name);
                    plan.services().get(name).into_iter().for_each(|service| self.look(name, service));
                }
            }
            Scope::Everything | Scope::Audit => {
                *self = NoLocal::default();
                plan.services().iter().for_each(|(name, service)| self.look(name, service));
            }
        }
    }

    fn look(&mut self, name: &ServicePortName, service: &ServicePlan) {
        let Unmet { internal, external } = service.unmet;
        self.internal.extend(internal.then(|| name.clone()));
        self.external.extend(external.then(|| name.clone()));
    }
}
