//! The composition root: builds every part from the configuration, joins them, and runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{mpsc, oneshot};

use crate::backend::iptables::apply::{self, Iptables};
use crate::backend::iptables::compile::{NFACCT_INVALID_DROPPED, NFACCT_LOCALHOST_ACCEPTED};
use crate::backend::iptables::netlink::{self, Counters};
use crate::backend::iptables::tools::Tools;
use crate::cluster::ClusterState;
use crate::command::System;
use crate::config::{self, Action, Api, Config, FileWatch, ProxyMode};
use crate::debug_server::DebugServer;
use crate::events::Recorder;
use crate::health::{Health, NodePorts};
use crate::instance::Instance;
use crate::metrics::{Metrics, Probe, Readers, Watch};
use crate::net::IpFamily;
use crate::plan::build::DetectLocal;
use crate::source::api::{Connection, Liveness, Rate};
use crate::sync::Pipeline;
use crate::sync::drive::drive;
use crate::sync::notice::Observer;
use crate::sync::pacer::Pace;
use crate::{health, source, sysctl};

/// Longest time without a full sync. (kube-proxy: `FullSyncPeriod`.)
const FULL_SYNC_PERIOD: Duration = Duration::from_secs(3_600);
/// Events that may wait while the loop is busy.
const EVENT_BACKLOG: usize = 1_024;

/// Runs the proxy until it is told to stop (SIGTERM or SIGINT). Rules stay when it ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    match &config.action {
        Action::Run => {}
        Action::WriteConfig(path) => return write_config(&config, path),
        Action::InitOnly | Action::Cleanup => {
            bail!("--init-only and --cleanup are not built yet; nothing was done");
        }
    }
    let (changed, mut change) = oneshot::channel();
    let stop = stop(config.config_file.as_deref().map(FileWatch::new).transpose()?, changed);
    match config.mode {
        ProxyMode::Iptables => run_iptables(config, stop).await?,
        mode => bail!("mode {mode} is not built yet: this ferrule has iptables mode only; set mode: iptables"),
    }
    change.try_recv().map_or(Ok(()), Err)
}

fn write_config(config: &Config, path: &Path) -> anyhow::Result<()> {
    config::write(config, path).map_err(anyhow::Error::msg)?;
    tracing::info!(file = %path.display(), "Wrote configuration");
    Ok(())
}

async fn run_iptables(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    // First of all, because it fails if the configuration is wrong.
    let connection = connect(&config).await?;
    let settings = Arc::new(config.planning.clone());
    let pace = Pace { min: config.min_sync_period, retry: config.sync_period, max: FULL_SYNC_PERIOD };
    let tools = iptables_tools().await?;
    let _instance = Instance::acquire().await.context("cannot see to it that only one ferrule runs here")?;

    if settings.routes_localnet() && tools.iter().any(|(family, _)| *family == IpFamily::V4) {
        sysctl::allow_localhost_node_ports()?;
    }
    let iptables = apply::Settings { mark: config.masquerade_mark, drop_invalid: !sysctl::conntrack_is_liberal() };
    let pipelines: Vec<_> = tools
        .into_iter()
        .map(|(family, tools)| {
            tracing::info!(%family, tools = ?tools.features.variant, "iptables mode");
            let backend = Iptables::new(tools, iptables.clone(), Counters::ensure);
            Pipeline::new(family, settings.clone(), pace, backend)
        })
        .collect();

    let (events, receiver) = mpsc::channel(EVENT_BACKLOG);
    tokio::spawn(source::addresses::run(events.clone()));
    let health = Health::new(2 * config.sync_period);
    let metrics = metrics(&config, &health, connection.as_ref())?;
    if let Some(connection) = &connection {
        let metrics = metrics.clone();
        connection.observe(move |exchange| metrics.count_request(exchange));
    }
    start_source(&config, connection, events);
    let waits_for_pod_cidr = settings.detect_local == DetectLocal::NodeCidr;
    let ready = move |state: &ClusterState| {
        let has_pod_cidr = || state.node().is_some_and(|node| !node.pod_cidrs.is_empty());
        state.is_synced() && (!waits_for_pod_cidr || has_pod_cidr())
    };
    let recorder = Recorder::default();
    let node_ports = NodePorts::new(pipelines.iter().map(Pipeline::family), &health, &recorder);
    let observers: Vec<Box<dyn Observer>> =
        vec![Box::new(health.clone()), Box::new(node_ports), Box::new(metrics.recorder())];
    let debug = DebugServer::new(&config, &config.document.to_configz_json(), metrics);
    let debug = debug.run(config.servers.clone(), recorder.clone());
    let probes = async {
        let Some(address) = config.servers.healthz else { return std::future::pending().await };
        health::serve(health, address, config.servers.bind_address_hard_fail, recorder).await
    };
    tokio::select! {
        // First, so that an address that must be had is asked for before a rule is written.
        biased;
        failed = probes => return Err(failed.into()),
        failed = debug => return Err(failed),
        () = drive(pipelines, pace, receiver, ready, observers, stop) => {}
    }
    tracing::info!("stopped; rules stay in the kernel");
    Ok(())
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

/// The tools of each family the node has. (kube-proxy: dual-stack whenever both work.)
async fn iptables_tools() -> anyhow::Result<Vec<(IpFamily, Tools<System>)>> {
    let mut found = Vec::new();
    let mut reasons = Vec::new();
    for family in IpFamily::BOTH {
        if family == IpFamily::V6 && !sysctl::kernel_has_ipv6() {
            reasons.push("the kernel has IPv6 disabled".to_owned());
            continue;
        }
        match Tools::probe(System, family).await {
            Ok(tools) => found.push((family, tools)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if found.is_empty() {
        bail!("iptables is not available on this host: {}", reasons.join("; "));
    }
    for reason in reasons {
        tracing::warn!(%reason, "one IP family is not served");
    }
    Ok(found)
}

/// The API server, unless manifests take its place.
async fn connect(config: &Config) -> anyhow::Result<Option<Connection>> {
    if !config.manifests.is_empty() {
        return Ok(None);
    }
    let Api { kubeconfig, master, qps, burst, .. } = config.api.clone();
    let rate = qps.map(|per_second| Rate { per_second, burst });
    Ok(Some(Connection::new(&source::api::Settings { kubeconfig, master, rate }).await?))
}

fn start_source(config: &Config, connection: Option<Connection>, events: source::Events) {
    let node: Arc<str> = config.planning.node_name.clone();
    if let Some(connection) = connection {
        tracing::info!(server = connection.server(), %node, "watching the API server");
        tokio::spawn(async move { source::api::run(&connection, &node, events).await });
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
