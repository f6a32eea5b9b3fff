//! The composition root: builds every part from the configuration, joins them, and runs.

mod iptables;
mod ipvs;
mod nftables;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{mpsc, oneshot};

use crate::backend::iptables::compile::{NFACCT_INVALID_DROPPED, NFACCT_LOCALHOST_ACCEPTED};
use crate::backend::iptables::netlink;
use crate::backend::iptables::tools::{self, Tools};
use crate::backend::ipvs::names::LINK;
use crate::cluster::{ClusterState, Event};
use crate::command::System;
use crate::config::{self, Action, Api, Config, FileWatch, ProxyMode};
use crate::debug_server::DebugServer;
use crate::events::sink::Reporter;
use crate::events::{Happening, Recorder};
use crate::health::{Health, NodePorts};
use crate::instance::Instance;
use crate::metrics::{Metrics, Probe, Readers, Watch};
use crate::model::Node;
use crate::net::IpFamily;
use crate::plan::build::DetectLocal;
use crate::source::api::{Connection, Interest, Liveness, Rate};
use crate::startup::node::{self, Early, NodeLog};
use crate::sync::Pipeline;
use crate::sync::drive::drive;
use crate::sync::notice::Observer;
use crate::sync::pacer::Pace;
use crate::sysctl::Sysctls;
use crate::{cleanup, conntrack, events, health, source, startup};

/// Longest time without a full sync. (kube-proxy: `FullSyncPeriod`.)
const FULL_SYNC_PERIOD: Duration = Duration::from_secs(3_600);
/// Events that may wait while the loop is busy.
const EVENT_BACKLOG: usize = 1_024;

/// Happenings that may wait to become Events.
const HAPPENING_BACKLOG: usize = 64;

/// What a start has found and set up.
struct Started {
    _instance: Instance,
    kernel: Kernel,
    sysctls: Sysctls,
    early: Early,
    events: mpsc::Receiver<Event>,
    /// Lets the source go on to what is only of use to the loop.
    begin: oneshot::Sender<()>,
}

/// By what the kernel is programmed, in each family that is served.
enum Kernel {
    /// With the tools of iptables, in modes iptables and ipvs.
    Iptables(Vec<(IpFamily, Tools<System>)>),
    /// By tables of nftables; the watch hears of what others do to them.
    Nftables(Vec<IpFamily>, nftables::Watch),
}

// === impl Kernel ===

impl Kernel {
    fn families(&self) -> Vec<IpFamily> {
        match self {
            Kernel::Iptables(tools) => tools.iter().map(|(family, _)| *family).collect(),
            Kernel::Nftables(families, _) => families.clone(),
        }
    }
}

/// Does what the configuration asks for. The proxy runs until it is told to stop (SIGTERM or SIGINT);
/// its rules stay when it ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    match &config.action {
        Action::WriteConfig(path) => return write_config(&config, path),
        Action::Cleanup => return cleanup::everything().await,
        Action::Run | Action::InitOnly => {}
    }
    let (changed, mut change) = oneshot::channel();
    let stop = stop(config.config_file.as_deref().map(FileWatch::new).transpose()?, changed);
    run_proxy(config, stop).await?;
    change.try_recv().map_or(Ok(()), Err)
}

fn write_config(config: &Config, path: &Path) -> anyhow::Result<()> {
    config::write(config, path).map_err(anyhow::Error::msg)?;
    tracing::info!(file = %path.display(), "Wrote configuration");
    Ok(())
}

async fn run_proxy(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // First of all, because it fails if the configuration is wrong.
    let connection = connect(&config).await?;
    let settings = Arc::new(config.planning.clone());
    let pace = Pace { min: config.min_sync_period, retry: config.sync_period, max: FULL_SYNC_PERIOD };
    let (recorder, happenings) = Recorder::new(HAPPENING_BACKLOG);
    let health = Health::new(2 * config.sync_period);
    let metrics = metrics(&config, &health, connection.as_deref())?;
    if let Some(connection) = &connection {
        let metrics = metrics.clone();
        connection.observe(move |exchange| metrics.count_request(exchange));
    }
    // Before the API server is reached: a proxy that waits for it is alive.
    let servers = serve(&config, health.clone(), metrics.clone(), recorder.clone());
    tokio::pin!(stop, servers);
    let started = tokio::select! {
        biased;
        failed = &mut servers => return Err(failed),
        started = start(&config, connection.clone()) => started?,
        () = &mut stop => {
            tracing::info!("stopped before any rule was written; those in the kernel stay");
            return Ok(());
        }
    };
    let Started { _instance, kernel, sysctls, early, events, begin } = started;
    let families = kernel.families();
    if config.action == Action::InitOnly {
        for family in families {
            tracing::info!(ipFamily = %family, "System initialized and --init-only specified");
        }
        return Ok(());
    }
    // Beside the rest: it may take two tries, and nobody waits for it.
    let (settings_of_kernel, score) = (sysctls.clone(), config.oom_score_adj);
    tokio::spawn(async move { settings_of_kernel.set_oom_score(score).await });
    start_events(&config, connection, happenings);
    recorder.record(Happening::Starting);
    let _ = begin.send(());
    let node_ports = NodePorts::new(families.iter().copied(), &health, &recorder);
    let node_log = NodeLog::new(early.node);
    let former = cleanup::FormerMode::new(config.mode, families);
    let reconciled = metrics.clone();
    let flows = conntrack::reconciler::reconciler(move |outcome| {
        reconciled.record_reconcile(outcome.family, outcome.took, outcome.deleted);
    });
    let observers: Vec<Box<dyn Observer>> = vec![
        Box::new(health),
        Box::new(node_ports),
        Box::new(node_log),
        Box::new(flows),
        Box::new(metrics.recorder()),
        Box::new(former),
    ];
    let driven = async {
        let (early, ready) = (early.events, ClusterState::is_synced);
        match kernel {
            Kernel::Iptables(tools) if config.mode == ProxyMode::Ipvs => {
                let mut pipelines = Vec::new();
                for (family, tools) in tools {
                    let backend = ipvs::backend(&config, family, tools)?;
                    pipelines.push(Pipeline::new(family, settings.clone(), pace, backend));
                }
                drive(pipelines, pace, early, events, ready, observers, stop).await;
            }
            Kernel::Iptables(tools) => {
                let mut pipelines = Vec::new();
                for (family, tools) in tools {
                    let backend = iptables::backend(&config, &sysctls, family, tools).await;
                    pipelines.push(Pipeline::new(family, settings.clone(), pace, backend));
                }
                drive(pipelines, pace, early, events, ready, observers, stop).await;
            }
            Kernel::Nftables(families, watch) => {
                let backend = |family| nftables::backend(&config, family, watch.clone());
                let pipeline = |family| Pipeline::new(family, settings.clone(), pace, backend(family));
                let pipelines = families.into_iter().map(pipeline).collect();
                drive(pipelines, pace, early, events, ready, observers, stop).await;
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        // First, so that an address that must be had is asked for before a rule is written.
        biased;
        failed = &mut servers => return Err(failed),
        ended = driven => ended?,
    }
    tracing::info!("stopped; rules stay in the kernel");
    Ok(())
}

/// All that comes before the first rule, in kube-proxy's order where an operator can tell.
async fn start(config: &Config, connection: Option<Arc<Connection>>) -> anyhow::Result<Started> {
    tracing::info!(version = config.version, ferrule = env!("CARGO_PKG_VERSION"), "Version info");
    let sysctls = Sysctls::of_the_kernel();
    let _instance = Instance::acquire().await.context("cannot see to it that only one ferrule runs here")?;
    if config.action == Action::InitOnly {
        cleanup::other_modes(config.mode).await;
    }
    let (sender, mut events) = mpsc::channel(EVENT_BACKLOG);
    let kernel = match config.mode {
        ProxyMode::Iptables | ProxyMode::Ipvs => Kernel::Iptables(iptables_tools(&sysctls).await?),
        ProxyMode::Nftables => {
            let families = nftables::prepare(config, &sysctls).await?;
            Kernel::Nftables(families, nftables::watch(sender.clone()))
        }
    };
    let families = kernel.families();

    let addresses = sender.clone();
    tokio::spawn(async move { source::addresses::run(addresses, LINK).await });
    let (begin, begun) = oneshot::channel();
    start_source(config, connection, sender, async move { _ = begun.await });
    let settings = &config.planning;
    let needs = node::Needs {
        // Manifest files are not filled in by somebody else.
        addresses: if config.manifests.is_empty() { node::ADDRESS_PATIENCE } else { Duration::ZERO },
        pod_cidrs: (settings.detect_local == DetectLocal::NodeCidr).then_some(node::POD_CIDR_PATIENCE),
    };
    let early = node::wait(&mut events, &settings.node_name, needs).await?;
    sysctls.set_conntrack(&config.conntrack)?;
    startup::check(config, early.node.as_deref().unwrap_or(&Node::default()), &families)?;
    if config.mode != ProxyMode::Ipvs && settings.routes_localnet() && families.contains(&IpFamily::V4) {
        tracing::info!(
            "node ports answer on localhost, which takes route_localnet=1; with iptables.localhostNodePorts: false, or \
             nodePortAddresses without loopback addresses, they do not"
        );
        sysctls.allow_localhost_node_ports()?;
    }
    if config.mode == ProxyMode::Ipvs {
        ipvs::prepare(config, &sysctls).await?;
    }
    Ok(Started { _instance, kernel, sysctls, early, events, begin })
}

/// Metrics of iptables mode, with what is read at a scrape: the kernel's counters, probes, watches.
fn metrics(config: &Config, health: &Health, connection: Option<&Connection>) -> anyhow::Result<Metrics> {
    let packets = |name: &'static str| move || netlink::packets(name).ok().flatten();
    let (probes, liveness) = (health.probes().clone(), connection.map(|connection| connection.liveness().clone()));
    let readers = Readers {
        invalid_dropped: Box::new(packets(NFACCT_INVALID_DROPPED)),
        localhost_accepted: Box::new(packets(NFACCT_LOCALHOST_ACCEPTED)),
        probes: Box::new(move || {
            let all = [("/healthz", &probes.healthz), ("/livez", &probes.livez)];
            let by_code = |(path, answers): (_, &health::Answers)| {
                answers.by_code().map(|(code, answers)| Probe { path, code, answers })
            };
            all.into_iter().flat_map(by_code).collect()
        }),
        watches: Box::new(move || {
            let states = liveness.iter().flat_map(Liveness::read);
            states.map(|at| Watch { kind: at.kind.to_string(), silent: at.silent, connected: at.connected }).collect()
        }),
    };
    Metrics::new(config, readers).context("cannot set metrics up")
}

/// The tools of each family the node has.
async fn iptables_tools(sysctls: &Sysctls) -> anyhow::Result<Vec<(IpFamily, Tools<System>)>> {
    let probe = async |family| Tools::probe_patiently(System, family, tools::is_loaded).await;
    in_each_family(sysctls, "iptables is not available on this host ", probe).await
}

/// What is found in each family the node has, if it is found in one. (kube-proxy: dual-stack whenever both work.)
async fn in_each_family<T, E: std::fmt::Display>(
    sysctls: &Sysctls,
    complaint: &str,
    find: impl AsyncFn(IpFamily) -> Result<T, E>,
) -> anyhow::Result<Vec<(IpFamily, T)>> {
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for family in IpFamily::BOTH {
        if family == IpFamily::V6 && !sysctls.kernel_has_ipv6() {
            reasons.push("the kernel has IPv6 disabled".to_owned());
            continue;
        }
        match find(family).await {
            Ok(it) => found.push((family, it)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if found.is_empty() {
        bail!("{complaint}: {}", reasons.join("; "));
    }
    for reason in reasons {
        tracing::warn!(%reason, "one IP family is not served");
    }
    Ok(found)
}

/// The API server, if objects come from one.
async fn connect(config: &Config) -> anyhow::Result<Option<Arc<Connection>>> {
    if !config.manifests.is_empty() {
        return Ok(None);
    }
    let Api { kubeconfig, master, qps, burst, .. } = config.api.clone();
    let rate = qps.map(|per_second| Rate { per_second, burst });
    Ok(Some(Arc::new(Connection::new(&source::api::Settings { kubeconfig, master, rate }).await?)))
}

/// Starts what sends events. An API server is asked for Services and EndpointSlices when `begun` ends.
fn start_source(
    config: &Config,
    connection: Option<Arc<Connection>>,
    events: source::Events,
    begun: impl Future<Output = ()> + Send + 'static,
) {
    let node: Arc<str> = config.planning.node_name.clone();
    if let Some(connection) = connection {
        tracing::info!(server = connection.server(), %node, "watching the API server");
        let service_cidrs = config.planning.uses_service_cidrs();
        tokio::spawn(async move {
            let interest = Interest { node_name: &node, service_cidrs };
            source::api::run(&connection, interest, events, begun).await;
        });
        return;
    }
    let paths = config.manifests.clone();
    tracing::info!(?paths, %node, "following manifests");
    tokio::spawn(async move {
        if let Err(error) = source::manifests::run(paths, node, events).await {
            tracing::error!(%error, "manifests are no longer followed");
        }
    });
}

/// Serves probes, metrics and what is for debugging; ends only where that is fatal.
async fn serve(config: &Config, health: Health, metrics: Metrics, recorder: Recorder) -> anyhow::Error {
    if config.action != Action::Run {
        return std::future::pending().await;
    }
    let debug = DebugServer::new(config, &config.document.to_configz_json(), metrics);
    let debug = debug.run(config.servers.clone(), recorder.clone());
    let probes = async {
        let Some(address) = config.servers.healthz else { return std::future::pending().await };
        health::serve(health, address, config.servers.bind_address_hard_fail, recorder).await
    };
    tokio::select! {
        biased;
        failed = probes => failed.into(),
        failed = debug => failed,
    }
}

/// Sends what is worth an Event. Without an API server nobody is told.
fn start_events(config: &Config, connection: Option<Arc<Connection>>, happenings: mpsc::Receiver<Happening>) {
    let Some(connection) = connection else { return };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let reporter = Reporter { node: config.planning.node_name.to_string(), host };
    let client = move || {
        let connection = connection.clone();
        async move { connection.client().await }
    };
    tokio::spawn(events::sink::run(client, reporter, happenings));
}

/// Ends when the process shall: on a signal, or when the configuration file has changed, which
/// `changed` is told.
async fn stop(watch: Option<FileWatch>, changed: oneshot::Sender<anyhow::Error>) {
    let change = async {
        match watch {
            Some(watch) => watch.updated().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop_signal() => {}
        error = change => {
            let _ = changed.send(error);
        }
    }
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
