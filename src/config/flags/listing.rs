//! Every flag with its value, as the log and `/flagz` show them.

use super::{Flags, Version};
use crate::config::schema::KubeProxyConfiguration;

// === impl Flags ===

impl Flags {
    /// Names and values of all flags, hidden ones included, sorted by name. Most of kube-proxy's
    /// flags are fields of its configuration, so that without a file their values are those of
    /// `resolved`, platform defaults included; with one, what the command line alone says.
    pub(crate) fn listing(&self, resolved: &KubeProxyConfiguration) -> Vec<(&'static str, String)> {
        let mut own = self.configuration();
        self.override_logging(&mut own.logging);
        let shown = if self.config_file().is_some() { &own } else { resolved };
        let mut all = self.of_command_line();
        all.extend(of_configuration(shown));
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// Flags with values of their own.
    fn of_command_line(&self) -> Vec<(&'static str, String)> {
        let (general, api, rules) = (&self.general, &self.api, &self.rules);
        vec![
            ("boot-id-file", self.ignored.boot_id_file.clone()),
            ("cleanup", general.cleanup.to_string()),
            ("cluster-cidr", rules.cluster_cidr.clone()),
            ("config", general.config.clone()),
            ("ferrule-endpoint-layout", self.ferrule.ferrule_endpoint_layout.name.to_owned()),
            ("ferrule-localhost-nodeports", self.ferrule.ferrule_localhost_nodeports.to_string()),
            ("ferrule-service-dispatch", self.ferrule.ferrule_service_dispatch.name.to_owned()),
            ("healthz-port", self.servers.healthz_port.to_string()),
            ("help", general.help.to_string()),
            ("hostname-override", general.hostname_override.clone()),
            ("init-only", general.init_only.to_string()),
            ("iptables-min-sync-period", rules.iptables_min_sync_period.to_string()),
            ("iptables-sync-period", rules.iptables_sync_period.to_string()),
            ("ipvs-min-sync-period", self.ipvs.ipvs_min_sync_period.to_string()),
            ("ipvs-sync-period", self.ipvs.ipvs_sync_period.to_string()),
            ("machine-id-file", self.ignored.machine_id_file.clone()),
            ("manifests", list(self.ferrule.manifests().iter().map(|path| path.display().to_string()))),
            ("masquerade-all", rules.masquerade_all.to_string()),
            ("master", api.master.clone()),
            ("metrics-port", self.servers.metrics_port.to_string()),
            (
                "version",
                match &general.version {
                    Version::Default => "false".to_owned(),
                    Version::Print => "true".to_owned(),
                    Version::Raw => "raw".to_owned(),
                    Version::Override(version) => version.clone(),
                },
            ),
            ("write-config-to", general.write_config_to.clone()),
        ]
    }
}

fn of_configuration(shown: &KubeProxyConfiguration) -> Vec<(&'static str, String)> {
    let (client, logging, conntrack) = (&shown.client_connection, &shown.logging, &shown.conntrack);
    let (text, json) = (&logging.options.text.0, &logging.options.json.0);
    let number = |value: Option<i32>| value.unwrap_or_default().to_string();
    let time = |value: Option<super::GoDuration>| value.unwrap_or_default().to_string();
    let gates = shown.feature_gates.iter().map(|(name, on)| format!("{name}={on}"));
    let levels = logging.vmodule.iter().map(|item| format!("{}={}", item.file_pattern, item.verbosity));
    vec![
        ("bind-address", shown.bind_address.clone()),
        ("bind-address-hard-fail", shown.bind_address_hard_fail.to_string()),
        ("config-sync-period", shown.config_sync_period.to_string()),
        ("conntrack-max-per-core", number(conntrack.max_per_core)),
        ("conntrack-min", number(conntrack.min)),
        ("conntrack-tcp-be-liberal", conntrack.tcp_be_liberal.to_string()),
        ("conntrack-tcp-timeout-close-wait", time(conntrack.tcp_close_wait_timeout)),
        ("conntrack-tcp-timeout-established", time(conntrack.tcp_established_timeout)),
        ("conntrack-udp-timeout", conntrack.udp_timeout.to_string()),
        ("conntrack-udp-timeout-stream", conntrack.udp_stream_timeout.to_string()),
        ("detect-local-mode", shown.detect_local_mode.clone()),
        ("feature-gates", gates.collect::<Vec<_>>().join(",")),
        ("healthz-bind-address", shown.healthz_bind_address.clone()),
        ("iptables-localhost-nodeports", shown.iptables.localhost_node_ports.unwrap_or_default().to_string()),
        ("iptables-masquerade-bit", number(shown.iptables.masquerade_bit)),
        ("ipvs-exclude-cidrs", list(shown.ipvs.exclude_cidrs.iter().cloned())),
        ("ipvs-scheduler", shown.ipvs.scheduler.clone()),
        ("ipvs-strict-arp", shown.ipvs.strict_arp.to_string()),
        ("ipvs-tcp-timeout", shown.ipvs.tcp_timeout.to_string()),
        ("ipvs-tcpfin-timeout", shown.ipvs.tcp_fin_timeout.to_string()),
        ("ipvs-udp-timeout", shown.ipvs.udp_timeout.to_string()),
        ("kube-api-burst", client.burst.to_string()),
        ("kube-api-content-type", client.content_type.clone()),
        ("kube-api-qps", client.qps.to_string()),
        ("kubeconfig", client.kubeconfig.clone()),
        ("log-flush-frequency", logging.flush_frequency.duration.to_string()),
        ("log-json-info-buffer-size", json.info_buffer_size.0.clone()),
        ("log-json-split-stream", json.split_stream.to_string()),
        ("log-text-info-buffer-size", text.info_buffer_size.0.clone()),
        ("log-text-split-stream", text.split_stream.to_string()),
        ("logging-format", logging.format.clone()),
        ("metrics-bind-address", shown.metrics_bind_address.clone()),
        ("nodeport-addresses", list(shown.node_port_addresses.iter().cloned())),
        ("oom-score-adj", number(shown.oom_score_adj)),
        ("pod-bridge-interface", shown.detect_local.bridge_interface.clone()),
        ("pod-interface-name-prefix", shown.detect_local.interface_name_prefix.clone()),
        ("profiling", shown.enable_profiling.to_string()),
        ("proxy-mode", shown.mode.clone()),
        ("show-hidden-metrics-for-version", shown.show_hidden_metrics_for_version.clone()),
        ("v", logging.verbosity.to_string()),
        ("vmodule", levels.collect::<Vec<_>>().join(",")),
    ]
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}
