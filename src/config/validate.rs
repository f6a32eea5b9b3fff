//! Checks of the whole configuration, all failures at once, in kube-proxy's words and order.

use std::fmt;

use super::KUBERNETES_MINOR;
use super::duration::GoDuration;
use super::feature_gates::FeatureGates;
use super::go::{quote, split_host_port};
use super::schema::{Conntrack, Ipvs, KubeProxyConfiguration, Logging};
use crate::net::{IpFamily, parse_cidr, parse_ip};

const MODE: &str =
    "must be iptables, ipvs, nftables or blank (blank means the best-available proxy [currently iptables])";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const POSITIVE: &str = "must be greater than 0";
const CLUSTER_CIDR: &str = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
// One bracket is missing in the original too.
const CIDR_PAIR: &str =
    "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]";
/// The largest log level.
const MAX_LEVEL: u32 = i32::MAX.unsigned_abs();

/// The failures found below one field.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<String>);

/// Checks everything but logging. The message lists all failures.
pub(crate) fn configuration(configuration: &KubeProxyConfiguration) -> Result<(), String> {
    let mut failures = Failures::default();
    let root = |field: &str| format!("KubeProxyConfiguration.{field}");

    failures.masquerade_bit(&root("KubeProxyIPTablesConfiguration"), configuration.iptables.masquerade_bit);
    match configuration.mode.as_str() {
        "ipvs" => failures.ipvs(&root("KubeProxyIPVSConfiguration"), &configuration.ipvs),
        "nftables" => {
            failures.masquerade_bit(&root("KubeProxyNFTablesConfiguration"), configuration.nftables.masquerade_bit);
        }
        _ => {}
    }
    let linux = root("KubeProxyLinuxConfiguration");
    failures.conntrack(&format!("{linux}.KubeProxyConntrackConfiguration"), &configuration.conntrack);
    if let Some(adjustment) = configuration.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
        failures.invalid(&format!("{linux}.OOMScoreAdj"), adjustment, "must be within the range [-1000, 1000]");
    }
    if !matches!(configuration.mode.as_str(), "" | "iptables" | "ipvs" | "nftables") {
        failures.invalid(&root("Mode.ProxyMode"), quote(&configuration.mode), MODE);
    }
    if configuration.client_connection.burst < 0 {
        failures.invalid(&root("ClientConnection.Burst"), configuration.client_connection.burst, NOT_NEGATIVE);
    }
    failures.periods(configuration);
    if parse_ip(&configuration.bind_address).is_none() {
        let reason = "not a valid textual representation of an IP address";
        failures.invalid(&root("BindAddress"), quote(&configuration.bind_address), reason);
    }
    if !configuration.healthz_bind_address.is_empty() {
        failures.listen_address(&root("HealthzBindAddress"), &configuration.healthz_bind_address);
    }
    failures.listen_address(&root("MetricsBindAddress"), &configuration.metrics_bind_address);
    failures.node_port_addresses(&root("NodePortAddresses"), &configuration.node_port_addresses);
    failures.hidden_metrics(&configuration.show_hidden_metrics_for_version);
    failures.detect_local(configuration);
    failures.finish()
}

/// Checks `logging`, which is reported alone and before the rest.
pub(crate) fn logging(logging: &Logging, gates: &FeatureGates) -> Result<(), String> {
    let mut failures = Failures::default();
    if logging.flush_frequency.duration <= GoDuration::ZERO {
        let value = quote(&logging.flush_frequency.duration.to_string());
        failures.invalid("logging.flushFrequency", value, "Must be greater than zero");
    }
    match logging.format.as_str() {
        "text" => {}
        "json" if gates.enabled("LoggingBetaOptions") => {}
        "json" => failures.forbidden("logging.format", "Log format json is disabled, see LoggingBetaOptions feature"),
        other => failures.invalid("logging.format", quote(other), "Unsupported log format"),
    }
    let level = |failures: &mut Failures, path: &str, value: u32| {
        if value > MAX_LEVEL {
            failures.invalid(path, value, &format!("Must be <= {MAX_LEVEL}"));
        }
    };
    level(&mut failures, "logging.verbosity", logging.verbosity);
    if !logging.vmodule.is_empty() && logging.format != "text" {
        failures.forbidden("logging.vmodule", "Only supported for text log format");
    }
    for (index, item) in logging.vmodule.iter().enumerate() {
        let path = format!("logging.vmodule[{index}]");
        if item.file_pattern.is_empty() {
            failures.0.push(format!("{path}: Required value: File pattern must not be empty"));
        }
        if item.file_pattern.contains(['=', ',']) {
            let reason = "File pattern must not contain equal sign or comma";
            failures.invalid(&path, quote(&item.file_pattern), reason);
        }
        level(&mut failures, &path, item.verbosity);
    }
    for (format, options) in [("text", &logging.options.text.0), ("json", &logging.options.json.0)] {
        let alpha = "Feature LoggingAlphaOptions is disabled";
        if options.split_stream && !gates.enabled("LoggingAlphaOptions") {
            failures.forbidden(&format!("logging.options.{format}.splitStream"), alpha);
        }
        if !options.info_buffer_size.is_zero() && !gates.enabled("LoggingAlphaOptions") {
            failures.forbidden(&format!("logging.options.{format}.infoBufferSize"), alpha);
        }
    }
    failures.finish()
}

// === impl Failures ===

impl Failures {
    /// One failure stands alone, several in brackets.
    fn finish(self) -> Result<(), String> {
        match self.0.as_slice() {
            [] => Ok(()),
            [failure] => Err(failure.clone()),
            _ => Err(format!("[{}]", self.0.join(", "))),
        }
    }

    /// `value` as it is to be shown: texts and durations quoted.
    fn invalid(&mut self, path: &str, value: impl fmt::Display, reason: &str) {
        self.0.push(format!("{path}: Invalid value: {value}: {reason}"));
    }

    fn forbidden(&mut self, path: &str, reason: &str) {
        self.0.push(format!("{path}: Forbidden: {reason}"));
    }

    fn masquerade_bit(&mut self, path: &str, bit: Option<i32>) {
        if let Some(bit) = bit.filter(|bit| !(0..=31).contains(bit)) {
            self.invalid(&format!("{path}.MasqueradeBit"), bit, "must be within the range [0, 31]");
        }
    }

    fn ipvs(&mut self, path: &str, ipvs: &Ipvs) {
        let timeouts = [
            ("TCPTimeout", ipvs.tcp_timeout),
            ("TCPFinTimeout", ipvs.tcp_fin_timeout),
            ("UDPTimeout", ipvs.udp_timeout),
        ];
        for (name, timeout) in timeouts {
            self.not_negative_time(&format!("{path}.{name}"), Some(timeout));
        }
        for (index, cidr) in ipvs.exclude_cidrs.iter().enumerate() {
            if parse_cidr(cidr).is_none() {
                self.invalid(&format!("{path}.ExcludeCidrs[{index}]"), quote(cidr), "must be a valid CIDR");
            }
        }
    }

    fn conntrack(&mut self, path: &str, conntrack: &Conntrack) {
        for (name, value) in [("MaxPerCore", conntrack.max_per_core), ("Min", conntrack.min)] {
            if let Some(value) = value.filter(|value| *value < 0) {
                self.invalid(&format!("{path}.{name}"), value, NOT_NEGATIVE);
            }
        }
        let timeouts = [
            ("TCPEstablishedTimeout", conntrack.tcp_established_timeout),
            ("TCPCloseWaitTimeout", conntrack.tcp_close_wait_timeout),
            ("UDPTimeout", Some(conntrack.udp_timeout)),
            ("UDPStreamTimeout", Some(conntrack.udp_stream_timeout)),
        ];
        for (name, timeout) in timeouts {
            self.not_negative_time(&format!("{path}.{name}"), timeout);
        }
    }

    fn not_negative_time(&mut self, path: &str, time: Option<GoDuration>) {
        if let Some(time) = time.filter(|time| *time < GoDuration::ZERO) {
            self.invalid(path, quote(&time.to_string()), NOT_NEGATIVE);
        }
    }

    fn periods(&mut self, configuration: &KubeProxyConfiguration) {
        let (sync, min) = configuration.periods();
        for (name, period) in [("ConfigSyncPeriod", configuration.config_sync_period), ("SyncPeriod", sync)] {
            if period <= GoDuration::ZERO {
                self.invalid(&format!("KubeProxyConfiguration.{name}"), quote(&period.to_string()), POSITIVE);
            }
        }
        self.not_negative_time("KubeProxyConfiguration.MinSyncPeriod", Some(min));
        if min > sync {
            // The value shown is the minimum, as in the original.
            let reason = "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod";
            self.invalid("KubeProxyConfiguration.SyncPeriod", quote(&min.to_string()), reason);
        }
    }

    fn listen_address(&mut self, path: &str, address: &str) {
        let Ok((host, port)) = split_host_port(address) else {
            return self.invalid(path, quote(address), "must be IP:port");
        };
        if parse_ip(host).is_none() {
            self.invalid(path, quote(host), "must be a valid IP");
        }
        if !port.parse::<i64>().is_ok_and(|port| (1..=65535).contains(&port)) {
            self.invalid(path, quote(port), "must be a valid port");
        }
    }

    fn node_port_addresses(&mut self, path: &str, addresses: &[String]) {
        for (index, address) in addresses.iter().enumerate() {
            if address == "primary" {
                if addresses.len() > 1 {
                    let reason = "can't use both 'primary' and CIDRs";
                    self.invalid(&format!("{path}[{index}]"), quote(address), reason);
                }
                return;
            }
            if parse_cidr(address).is_none() {
                self.invalid(&format!("{path}[{index}]"), quote(address), "must be a valid CIDR");
            }
        }
    }

    fn hidden_metrics(&mut self, version: &str) {
        let previous = format!("1.{}", KUBERNETES_MINOR - 1);
        if !version.is_empty() && version != previous {
            let value = quote(version);
            let reason = format!(
                "invalid showHiddenMetricsForVersion: showHiddenMetricsForVersion: Invalid value: {value}: must be \
                 omitted or have the value '{previous}'; only the previous minor version is allowed"
            );
            self.invalid("KubeProxyConfiguration.ShowHiddenMetricsForVersion", value, &reason);
        }
    }

    fn detect_local(&mut self, configuration: &KubeProxyConfiguration) {
        const PATH: &str = "KubeProxyConfiguration.DetectLocalConfiguration";
        let mut not_empty = |name: &str, value: &str| {
            if value.is_empty() {
                self.invalid(&format!("{PATH}.{name}"), quote(value), "must not be empty");
            }
        };
        match configuration.detect_local_mode.as_str() {
            "BridgeInterface" => not_empty("InterfaceName", &configuration.detect_local.bridge_interface),
            "InterfaceNamePrefix" => not_empty("InterfacePrefix", &configuration.detect_local.interface_name_prefix),
            "ClusterCIDR" => self.cluster_cidrs(&format!("{PATH}.ClusterCIDRs"), &configuration.cluster_cidrs.0),
            "" | "NodeCIDR" => {}
            other => self.0.push(format!(
                "KubeProxyConfiguration.DetectLocalMode: Unsupported value: {}: supported values: \"ClusterCIDR\", \
                 \"NodeCIDR\", \"BridgeInterface\", \"InterfaceNamePrefix\", \"\"",
                quote(other)
            )),
        }
    }

    fn cluster_cidrs(&mut self, path: &str, cidrs: &[String]) {
        let list = || {
            let quoted: Vec<String> = cidrs.iter().map(|cidr| quote(cidr)).collect();
            format!("[{}]", quoted.join(","))
        };
        if cidrs.len() > 2 {
            return self.invalid(path, list(), CIDR_PAIR);
        }
        for (index, cidr) in cidrs.iter().enumerate() {
            if parse_cidr(cidr).is_none() {
                self.invalid(&format!("{path}[{index}]"), quote(cidr), CLUSTER_CIDR);
            }
        }
        let families: Vec<IpFamily> = cidrs.iter().filter_map(|cidr| parse_cidr(cidr)).map(IpFamily::of_net).collect();
        if let [first, second] = families.as_slice()
            && first == second
        {
            self.invalid(path, list(), CIDR_PAIR);
        }
    }
}
