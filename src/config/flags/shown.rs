//! The flags as they were understood, for `/flagz`.

use super::{Flags, Version, values};
use crate::config::decode::Quantity;
use crate::config::duration::GoDuration;

/// Every flag with its value as kube-proxy prints it, sorted by name: hidden ones too, and those that a
/// configuration file overrides. (ferrule's own is among them if it is given.)
pub(crate) fn values(flags: &Flags) -> Vec<(&'static str, String)> {
    let Flags { general, ferrule, api, rules, ipvs, system, servers, log, ignored } = flags;
    let list = |lists: &[values::List]| {
        let all: Vec<&str> = lists.iter().flat_map(|list| list.0.iter().map(String::as_str)).collect();
        format!("[{}]", all.join(","))
    };
    let pairs = |pairs: Vec<String>| pairs.join(",");
    let mut gates: Vec<String> = general
        .feature_gates
        .iter()
        .flat_map(|gates| gates.0.iter().map(|(name, value)| format!("{name}={value}")))
        .collect();
    gates.sort();
    let levels = log.vmodule.iter().flat_map(|levels| levels.0.iter().map(|(file, level)| format!("{file}={level}")));
    let version = match &general.version {
        Version::Default => "false",
        Version::Print => "true",
        Version::Raw => "raw",
        Version::Override(version) => version,
    };
    let buffer = |size: &Option<Quantity>| size.as_ref().map_or_else(|| "0".to_owned(), |size| size.0.clone());
    let split = |split: Option<bool>| split.unwrap_or(false).to_string();
    let mut all = vec![
        ("bind-address", rules.bind_address.clone()),
        ("bind-address-hard-fail", servers.bind_address_hard_fail.to_string()),
        ("boot-id-file", ignored.boot_id_file.clone()),
        ("cleanup", general.cleanup.to_string()),
        ("cluster-cidr", rules.cluster_cidr.clone()),
        ("config", general.config.clone()),
        ("config-sync-period", api.config_sync_period.to_string()),
        ("conntrack-max-per-core", system.conntrack_max_per_core.to_string()),
        ("conntrack-min", system.conntrack_min.to_string()),
        ("conntrack-tcp-be-liberal", system.conntrack_tcp_be_liberal.to_string()),
        ("conntrack-tcp-timeout-close-wait", system.conntrack_tcp_timeout_close_wait.to_string()),
        ("conntrack-tcp-timeout-established", system.conntrack_tcp_timeout_established.to_string()),
        ("conntrack-udp-timeout", system.conntrack_udp_timeout.to_string()),
        ("conntrack-udp-timeout-stream", system.conntrack_udp_timeout_stream.to_string()),
        ("detect-local-mode", rules.detect_local_mode.clone()),
        ("feature-gates", pairs(gates)),
        ("healthz-bind-address", servers.healthz_bind_address.clone()),
        ("healthz-port", servers.healthz_port.to_string()),
        ("help", general.help.to_string()),
        ("hostname-override", general.hostname_override.clone()),
        ("init-only", general.init_only.to_string()),
        ("iptables-localhost-nodeports", rules.iptables_localhost_nodeports.to_string()),
        ("iptables-masquerade-bit", rules.iptables_masquerade_bit.to_string()),
        ("iptables-min-sync-period", rules.iptables_min_sync_period.to_string()),
        ("iptables-sync-period", rules.iptables_sync_period.to_string()),
        ("ipvs-exclude-cidrs", list(&ipvs.ipvs_exclude_cidrs)),
        ("ipvs-min-sync-period", ipvs.ipvs_min_sync_period.to_string()),
        ("ipvs-scheduler", ipvs.ipvs_scheduler.clone()),
        ("ipvs-strict-arp", ipvs.ipvs_strict_arp.to_string()),
        ("ipvs-sync-period", ipvs.ipvs_sync_period.to_string()),
        ("ipvs-tcp-timeout", ipvs.ipvs_tcp_timeout.to_string()),
        ("ipvs-tcpfin-timeout", ipvs.ipvs_tcpfin_timeout.to_string()),
        ("ipvs-udp-timeout", ipvs.ipvs_udp_timeout.to_string()),
        ("kube-api-burst", api.kube_api_burst.to_string()),
        ("kube-api-content-type", api.kube_api_content_type.clone()),
        ("kube-api-qps", api.kube_api_qps.to_string()),
        ("kubeconfig", api.kubeconfig.clone()),
        ("log-flush-frequency", log.log_flush_frequency.unwrap_or(GoDuration::seconds(5)).to_string()),
        ("log-json-info-buffer-size", buffer(&log.log_json_info_buffer_size)),
        ("log-json-split-stream", split(log.log_json_split_stream)),
        ("log-text-info-buffer-size", buffer(&log.log_text_info_buffer_size)),
        ("log-text-split-stream", split(log.log_text_split_stream)),
        ("logging-format", log.logging_format.clone().unwrap_or_else(|| "text".to_owned())),
        ("machine-id-file", ignored.machine_id_file.clone()),
        ("masquerade-all", rules.masquerade_all.to_string()),
        ("master", api.master.clone()),
        ("metrics-bind-address", servers.metrics_bind_address.clone()),
        ("metrics-port", servers.metrics_port.to_string()),
        ("nodeport-addresses", list(&rules.nodeport_addresses)),
        ("oom-score-adj", system.oom_score_adj.to_string()),
        ("pod-bridge-interface", rules.pod_bridge_interface.clone()),
        ("pod-interface-name-prefix", rules.pod_interface_name_prefix.clone()),
        ("profiling", servers.profiling.to_string()),
        ("proxy-mode", rules.proxy_mode.clone()),
        ("show-hidden-metrics-for-version", servers.show_hidden_metrics_for_version.clone()),
        ("v", log.verbosity.unwrap_or(0).to_string()),
        ("version", version.to_owned()),
        ("vmodule", pairs(levels.collect())),
        ("write-config-to", general.write_config_to.clone()),
    ];
    if !ferrule.manifests().is_empty() {
        let paths = ferrule.manifests().iter().map(|path| path.display().to_string()).collect();
        all.push(("manifests", pairs(paths)));
    }
    all.sort();
    all
}
