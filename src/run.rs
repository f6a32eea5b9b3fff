//! The composition root: builds every part from the configuration, joins them, and runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{mpsc, oneshot};

use crate::backend::iptables::apply::{self, Iptables};
use crate::backend::iptables::netlink::Counters;
use crate::backend::iptables::tools::Tools;
use crate::cluster::{ClusterState, Event};
use crate::command::System;
use crate::config::{Action, Api, Config, ProxyMode};
use crate::events::sink::Reporter;
use crate::events::{Happening, Recorder};
use crate::health::{Health, NodePorts};
use crate::instance::Instance;
use crate::model::Node;
use crate::net::IpFamily;
use crate::plan::build::DetectLocal;
use crate::source::api::Connection;
use crate::startup::node::{self, Early, NodeLog};
use crate::sync::Pipeline;
use crate::sync::drive::drive;
use crate::sync::notice::Observer;
use crate::sync::pacer::Pace;
use crate::sysctl::Sysctls;
use crate::{cleanup, events, health, source, startup};

/// Longest time without a full sync. (kube-proxy: `FullSyncPeriod`.)
const FULL_SYNC_PERIOD: Duration = Duration::from_secs(3_600);
/// Events that may wait while the loop is busy.
const EVENT_BACKLOG: usize = 1_024;

/// Happenings that may wait to become Events.
const HAPPENING_BACKLOG: usize = 64;

/// What a start has found and set up.
struct Started {
    _instance: Instance,
    tools: Vec<(IpFamily, Tools<System>)>,
    sysctls: Sysctls,
    early: Early,
    events: mpsc::Receiver<Event>,
    /// The API server, if objects come from one.
    connection: Option<Arc<Connection>>,
    /// Lets the source go on to what is only of use to the loop.
    begin: oneshot::Sender<()>,
}

/// Does what the configuration asks for. The proxy runs until it is told to stop (SIGTERM or SIGINT);
/// its rules stay when it ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    match (&config.action, config.mode) {
        (Action::Cleanup, _) => cleanup::everything().await,
        (Action::WriteConfig(_), _) => bail!("--write-config-to is not built yet; nothing was done"),
        (Action::Run | Action::InitOnly, ProxyMode::Iptables) => run_iptables(config).await,
        (Action::Run | Action::InitOnly, mode) => {
            bail!("mode {mode} is not built yet: this ferrule has iptables mode only; set mode: iptables")
        }
    }
}

async fn run_iptables(config: Config) -> anyhow::Result<()> {
    let settings = Arc::new(config.planning.clone());
    let pace = Pace { min: config.min_sync_period, retry: config.sync_period, max: FULL_SYNC_PERIOD };
    let stop = stop_signal();
    let (recorder, happenings) = Recorder::new(HAPPENING_BACKLOG);
    let health = Health::new(2 * config.sync_period);
    // Before the API server is reached: a proxy that waits for it is alive.
    let probes = serve_probes(&config, health.clone(), recorder.clone());
    tokio::pin!(stop, probes);
    let started = tokio::select! {
        biased;
        failed = &mut probes => return Err(failed.into()),
        started = start(&config) => started?,
        () = &mut stop => {
            tracing::info!("stopped before any rule was written; those in the kernel stay");
            return Ok(());
        }
    };
    let Started { _instance, tools, sysctls, early, events, connection, begin } = started;
    if config.action == Action::InitOnly {
        for (family, _) in tools {
            tracing::info!(ipFamily = %family, "System initialized and --init-only specified");
        }
        return Ok(());
    }

    let iptables = apply::Settings { mark: config.masquerade_mark, drop_invalid: !sysctls.conntrack_is_liberal() };
    let pipelines: Vec<_> = tools
        .into_iter()
        .map(|(family, tools)| {
            let (variant, mark) = (tools.features.variant, format!("{:#010x}", config.masquerade_mark));
            let (min, period) = (pace.min, pace.retry);
            tracing::info!(%family, tools = ?variant, mark, minSyncPeriod = ?min, syncPeriod = ?period, "iptables mode");
            let backend = Iptables::new(tools, iptables.clone(), Counters::ensure);
            Pipeline::new(family, settings.clone(), pace, backend)
        })
        .collect();
    sysctls.set_oom_score(config.oom_score_adj).await;
    start_events(&config, connection, happenings);
    recorder.record(Happening::Starting);
    let _ = begin.send(());
    let node_ports = NodePorts::new(pipelines.iter().map(Pipeline::family), &health, &recorder);
    let node_log = NodeLog::new(early.node);
    let observers: Vec<Box<dyn Observer>> = vec![Box::new(health), Box::new(node_ports), Box::new(node_log)];
    tokio::select! {
        // First, so that an address that must be had is asked for before a rule is written.
        biased;
        failed = &mut probes => return Err(failed.into()),
        () = drive(pipelines, pace, early.events, events, ClusterState::is_synced, observers, stop) => {}
    }
    tracing::info!("stopped; rules stay in the kernel");
    Ok(())
}

/// All that comes before the first rule, in kube-proxy's order where an operator can tell.
async fn start(config: &Config) -> anyhow::Result<Started> {
    tracing::info!(version = config.version, ferrule = env!("CARGO_PKG_VERSION"), "Version info");
    let sysctls = Sysctls::of_the_kernel();
    let connection = connect(config).await?;
    let _instance = Instance::acquire().await.context("cannot see to it that only one ferrule runs here")?;
    cleanup::other_modes(config.mode).await;
    let tools = iptables_tools(&sysctls).await?;

    let (sender, mut events) = mpsc::channel(EVENT_BACKLOG);
    tokio::spawn(source::addresses::run(sender.clone()));
    let (begin, begun) = oneshot::channel();
    start_source(config, connection.clone(), sender, async move { _ = begun.await });
    let settings = &config.planning;
    let needs = node::Needs {
        // Manifest files are not filled in by somebody else.
        addresses: if config.manifests.is_empty() { node::ADDRESS_PATIENCE } else { Duration::ZERO },
        pod_cidrs: (settings.detect_local == DetectLocal::NodeCidr).then_some(node::POD_CIDR_PATIENCE),
    };
    let early = node::wait(&mut events, &settings.node_name, needs).await?;
    sysctls.set_conntrack(&config.conntrack)?;
    let families: Vec<IpFamily> = tools.iter().map(|(family, _)| *family).collect();
    startup::check(config, early.node.as_deref().unwrap_or(&Node::default()), &families)?;
    if settings.routes_localnet() && families.contains(&IpFamily::V4) {
        tracing::info!(
            "node ports answer on localhost, which takes route_localnet=1; with iptables.localhostNodePorts: false, or \
             nodePortAddresses without loopback addresses, they do not"
        );
        sysctls.allow_localhost_node_ports()?;
    }
    Ok(Started { _instance, tools, sysctls, early, events, connection, begin })
}

/// The tools of each family the node has. (kube-proxy: dual-stack whenever both work.)
async fn iptables_tools(sysctls: &Sysctls) -> anyhow::Result<Vec<(IpFamily, Tools<System>)>> {
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for family in IpFamily::BOTH {
        if family == IpFamily::V6 && !sysctls.kernel_has_ipv6() {
            reasons.push("the kernel has IPv6 disabled".to_owned());
            continue;
        }
        match Tools::probe_patiently(System, family).await {
            Ok(tools) => found.push((family, tools)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if found.is_empty() {
        bail!("iptables is not available on this host : {}", reasons.join("; "));
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
    let Api { kubeconfig, master, .. } = config.api.clone();
    Ok(Some(Arc::new(Connection::new(&source::api::Settings { kubeconfig, master }).await?)))
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
        tokio::spawn(async move { source::api::run(&connection, &node, events, begun).await });
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

/// Serves `/healthz` and `/livez`; ends only where that is fatal.
async fn serve_probes(config: &Config, health: Health, recorder: Recorder) -> health::ServeError {
    match config.servers.healthz.filter(|_| config.action == Action::Run) {
        Some(address) => health::serve(health, address, config.servers.bind_address_hard_fail, recorder).await,
        None => std::future::pending().await,
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
