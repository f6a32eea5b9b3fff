//! kube-proxy's own metrics: names, help texts, labels and buckets are its.
//!
//! A family with labels is absent until it is used, and a family of another mode is absent for good.

use prometheus::{Gauge, GaugeVec, HistogramVec, IntCounter, IntCounterVec, Result};

use super::families::{Families, IP_FAMILY, doubling, network_programming};
use crate::config::ProxyMode;

/// The families; `None` where the mode has none.
pub(super) struct Proxy {
    pub(super) sync: HistogramVec,
    pub(super) full: Option<HistogramVec>,
    pub(super) partial: Option<HistogramVec>,
    pub(super) last: GaugeVec,
    pub(super) last_queued: GaugeVec,
    pub(super) network_programming: HistogramVec,
    pub(super) endpoint_changes_pending: Gauge,
    pub(super) endpoint_changes: IntCounter,
    pub(super) service_changes_pending: Gauge,
    pub(super) service_changes: IntCounter,
    pub(super) no_local_endpoints: GaugeVec,
    pub(super) rules: Option<GaugeVec>,
    pub(super) rules_last: Option<GaugeVec>,
    pub(super) restore_failures: Option<IntCounterVec>,
    pub(super) partial_restore_failures: Option<IntCounterVec>,
    pub(super) nft_failures: Option<IntCounterVec>,
    pub(super) nft_cleanup_failures: Option<IntCounterVec>,
    pub(super) reconcile: HistogramVec,
    pub(super) reconcile_deleted: IntCounterVec,
}

/// Counters that are read at each scrape: from the kernel, where it counts, and from the health server,
/// by the code of its answers. Names and help texts.
pub(super) const INVALID_DROPPED: (&str, &str) = (
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "[ALPHA] packets dropped by iptables to work around conntrack problems",
);
pub(super) const LOCALHOST_ACCEPTED: (&str, &str) = (
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
    "[ALPHA] Number of packets accepted on nodeports of loopback interface",
);
pub(super) const HEALTHZ: (&str, &str) =
    ("kubeproxy_proxy_healthz_total", "[ALPHA] Cumulative proxy healthz HTTP status");
pub(super) const LIVEZ: (&str, &str) = ("kubeproxy_proxy_livez_total", "[ALPHA] Cumulative proxy livez HTTP status");

// === impl Proxy ===

impl Proxy {
    pub(super) fn register(families: &mut Families, mode: ProxyMode) -> Result<Proxy> {
        let iptables = mode == ProxyMode::Iptables;
        let nftables = mode == ProxyMode::Nftables;
        let ipvs = mode == ProxyMode::Ipvs;
        let f = families;
        Ok(Proxy {
            sync: histograms(f, "sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", doubling())?,
            full: (!ipvs)
                .then(|| {
                    let help = "SyncProxyRules latency in seconds for full resyncs";
                    histograms(f, "sync_full_proxy_rules_duration_seconds", help, doubling())
                })
                .transpose()?,
            partial: (!ipvs)
                .then(|| {
                    let help = "SyncProxyRules latency in seconds for partial resyncs";
                    histograms(f, "sync_partial_proxy_rules_duration_seconds", help, doubling())
                })
                .transpose()?,
            last: gauges(
                f,
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                &[IP_FAMILY],
            )?,
            last_queued: gauges(
                f,
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                &[IP_FAMILY],
            )?,
            network_programming: histograms(
                f,
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                network_programming(),
            )?,
            endpoint_changes_pending: gauge(
                f,
                "sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
            )?,
            endpoint_changes: counter(
                f,
                "sync_proxy_rules_endpoint_changes_total",
                "Cumulative proxy rules Endpoint changes",
            )?,
            service_changes_pending: gauge(
                f,
                "sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
            )?,
            service_changes: counter(
                f,
                "sync_proxy_rules_service_changes_total",
                "Cumulative proxy rules Service changes",
            )?,
            no_local_endpoints: gauges(
                f,
                "sync_proxy_rules_no_local_endpoints_total",
                "Number of services with a Local traffic policy and no endpoints",
                &["traffic_policy", IP_FAMILY],
            )?,
            rules: iptables
                .then(|| {
                    let help = "Total number of iptables rules owned by kube-proxy";
                    gauges(f, "sync_proxy_rules_iptables_total", help, &["table", IP_FAMILY])
                })
                .transpose()?,
            rules_last: iptables
                .then(|| {
                    let help = "Number of iptables rules written by kube-proxy in last sync";
                    gauges(f, "sync_proxy_rules_iptables_last", help, &["table", IP_FAMILY])
                })
                .transpose()?,
            restore_failures: (iptables || ipvs)
                .then(|| {
                    let help = "Cumulative proxy iptables restore failures";
                    counters(f, "sync_proxy_rules_iptables_restore_failures_total", help, IP_FAMILY)
                })
                .transpose()?,
            partial_restore_failures: iptables
                .then(|| {
                    let help = "Cumulative proxy iptables partial restore failures";
                    counters(f, "sync_proxy_rules_iptables_partial_restore_failures_total", help, IP_FAMILY)
                })
                .transpose()?,
            nft_failures: nftables
                .then(|| {
                    let help = "Cumulative proxy nftables sync failures";
                    counters(f, "sync_proxy_rules_nftables_sync_failures_total", help, IP_FAMILY)
                })
                .transpose()?,
            nft_cleanup_failures: nftables
                .then(|| {
                    let help = "Cumulative proxy nftables cleanup failures";
                    counters(f, "sync_proxy_rules_nftables_cleanup_failures_total", help, IP_FAMILY)
                })
                .transpose()?,
            reconcile: histograms(
                f,
                "conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                doubling(),
            )?,
            reconcile_deleted: counters(
                f,
                "conntrack_reconciler_deleted_entries_total",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                IP_FAMILY,
            )?,
        })
    }
}

fn named(name: &str) -> String {
    format!("kubeproxy_{name}")
}

fn alpha(help: &str) -> String {
    format!("[ALPHA] {help}")
}

fn histograms(families: &mut Families, name: &str, help: &str, buckets: Vec<f64>) -> Result<HistogramVec> {
    families.histograms(&named(name), &alpha(help), &[IP_FAMILY], buckets)
}

fn gauges(families: &mut Families, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
    families.gauges(&named(name), &alpha(help), labels)
}

fn gauge(families: &mut Families, name: &str, help: &str) -> Result<Gauge> {
    families.gauge(&named(name), &alpha(help))
}

fn counters(families: &mut Families, name: &str, help: &str, label: &str) -> Result<IntCounterVec> {
    families.counters(&named(name), &alpha(help), &[label])
}

fn counter(families: &mut Families, name: &str, help: &str) -> Result<IntCounter> {
    families.counter(&named(name), &alpha(help))
}
