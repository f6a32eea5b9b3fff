//! The composition root: builds every part from the configuration, joins them, and runs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use crate::backend::iptables::apply::{self, Iptables};
use crate::backend::iptables::netlink::Counters;
use crate::backend::iptables::tools::Tools;
use crate::cluster::ClusterState;
use crate::command::System;
use crate::config::{Action, Api, Config, ProxyMode};
use crate::events::Recorder;
use crate::health::{Health, NodePorts};
use crate::instance::Instance;
use crate::net::IpFamily;
use crate::plan::build::DetectLocal;
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
    if config.action != Action::Run {
        bail!("--init-only, --cleanup and --write-config-to are not built yet; nothing was done");
    }
    match config.mode {
        ProxyMode::Iptables => run_iptables(config).await,
        mode => bail!("mode {mode} is not built yet: this ferrule has iptables mode only; set mode: iptables"),
    }
}

async fn run_iptables(config: Config) -> anyhow::Result<()> {
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
    start_source(&config, events).await?;
    let waits_for_pod_cidr = settings.detect_local == DetectLocal::NodeCidr;
    let ready = move |state: &ClusterState| {
        let has_pod_cidr = || state.node().is_some_and(|node| !node.pod_cidrs.is_empty());
        state.is_synced() && (!waits_for_pod_cidr || has_pod_cidr())
    };
    let recorder = Recorder::default();
    let health = Health::new(2 * config.sync_period);
    let node_ports = NodePorts::new(pipelines.iter().map(Pipeline::family), &health, &recorder);
    let observers: Vec<Box<dyn Observer>> = vec![Box::new(health.clone()), Box::new(node_ports)];
    let probes = async {
        let Some(address) = config.servers.healthz else { return std::future::pending().await };
        health::serve(health, address, config.servers.bind_address_hard_fail, recorder).await
    };
    tokio::select! {
        // First, so that an address that must be had is asked for before a rule is written.
        biased;
        failed = probes => return Err(failed.into()),
        () = drive(pipelines, pace, receiver, ready, observers, stop_signal()) => {}
    }
    tracing::info!("stopped; rules stay in the kernel");
    Ok(())
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

async fn start_source(config: &Config, events: source::Events) -> anyhow::Result<()> {
    let node: Arc<str> = config.planning.node_name.clone();
    if config.manifests.is_empty() {
        let Api { kubeconfig, master, .. } = config.api.clone();
        let connection = source::api::Connection::new(&source::api::Settings { kubeconfig, master }).await?;
        tracing::info!(server = connection.server(), %node, "watching the API server");
        tokio::spawn(async move { source::api::run(&connection, &node, events).await });
        return Ok(());
    }
    let paths = config.manifests.clone();
    tracing::info!(?paths, %node, "following manifests");
    tokio::spawn(async move {
        if let Err(error) = source::manifests::run(paths, node, events).await {
            tracing::error!(%error, "manifests are no longer followed");
        }
    });
    Ok(())
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
