//! The resolved configuration as a document again, as kube-proxy writes it: `--write-config-to` and
//! `/configz`.

use super::{
    ClientConnection, Conntrack, DetectLocal, IpTables, Ipvs, KubeProxyConfiguration, Logging, NfTables, Routing,
    Winkernel,
};
use crate::config::decode::NanosOrText;
use crate::config::document::Value;
use crate::config::duration::GoDuration;
use crate::config::file::{API_VERSION, KIND};
use crate::config::{json, yaml};

// === impl KubeProxyConfiguration ===

impl KubeProxyConfiguration {
    /// The configuration as kube-proxy holds it once it is resolved: one sync period and one
    /// `masqueradeAll`, which are those of the mode. The other modes' are zero, and whatever a
    /// file said about them is forgotten.
    pub(crate) fn settled(mut self) -> KubeProxyConfiguration {
        let (sync, min) = self.periods();
        let masquerade_all = self.masquerade_all();
        let zero = GoDuration::ZERO;
        (self.iptables.sync_period, self.iptables.min_sync_period) = (zero, zero);
        (self.ipvs.sync_period, self.ipvs.min_sync_period) = (zero, zero);
        (self.nftables.sync_period, self.nftables.min_sync_period) = (zero, zero);
        (self.iptables.masquerade_all, self.nftables.masquerade_all) = (false, false);
        match self.mode.as_str() {
            "ipvs" => {
                (self.ipvs.sync_period, self.ipvs.min_sync_period) = (sync, min);
                self.iptables.masquerade_all = masquerade_all;
            }
            "nftables" => {
                (self.nftables.sync_period, self.nftables.min_sync_period) = (sync, min);
                self.nftables.masquerade_all = masquerade_all;
            }
            _ => {
                (self.iptables.sync_period, self.iptables.min_sync_period) = (sync, min);
                self.iptables.masquerade_all = masquerade_all;
            }
        }
        KIND.clone_into(&mut self.kind);
        API_VERSION.clone_into(&mut self.api_version);
        self
    }

    /// The document `--write-config-to` writes: YAML, keys sorted.
    pub fn to_yaml(&self) -> String {
        yaml::write(&self.encode())
    }

    /// The document `/configz` shows: JSON on one line, keys in the order of their declaration.
    /// (kube-proxy wraps it in an object with the API group as key.)
    pub fn to_configz_json(&self) -> String {
        json::write(&self.encode())
    }

    /// Fields in the order in which kube-proxy declares them. What is empty and optional is left
    /// out, as there.
    fn encode(&self) -> Value {
        let gates = self.feature_gates.iter().map(|(name, on)| (name.clone(), Value::Bool(*on)));
        Value::Object(
            [
                text("kind", &self.kind),
                text("apiVersion", &self.api_version),
                ("featureGates", Value::Object(gates.collect())),
                ("clientConnection", self.client_connection.encode()),
                ("logging", self.logging.encode()),
                text("hostnameOverride", &self.hostname_override),
                text("bindAddress", &self.bind_address),
                text("healthzBindAddress", &self.healthz_bind_address),
                text("metricsBindAddress", &self.metrics_bind_address),
                flag("bindAddressHardFail", self.bind_address_hard_fail),
                flag("enableProfiling", self.enable_profiling),
                text("showHiddenMetricsForVersion", &self.show_hidden_metrics_for_version),
                text("mode", &self.mode),
                ("iptables", self.iptables.encode()),
                ("ipvs", self.ipvs.encode()),
                ("nftables", self.nftables.encode()),
                ("winkernel", self.winkernel.encode()),
                text("detectLocalMode", &self.detect_local_mode),
                ("detectLocal", self.detect_local.encode()),
                text("clusterCIDR", &self.cluster_cidrs.0.join(",")),
                texts("nodePortAddresses", &self.node_port_addresses),
                pointer("oomScoreAdj", self.oom_score_adj.map(number)),
                ("conntrack", self.conntrack.encode()),
                time("configSyncPeriod", self.config_sync_period),
                text("portRange", &self.port_range),
                flag("windowsRunAsService", self.windows_run_as_service),
            ]
            .into_iter()
            .filter(|(name, value)| match *name {
                "featureGates" => *value != Value::Object(Vec::new()),
                "windowsRunAsService" => *value != Value::Bool(false),
                _ => true,
            })
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        )
    }
}

impl ClientConnection {
    fn encode(&self) -> Value {
        object([
            text("kubeconfig", &self.kubeconfig),
            text("acceptContentTypes", &self.accept_content_types),
            text("contentType", &self.content_type),
            ("qps", number(self.qps)),
            ("burst", number(self.burst)),
        ])
    }
}

impl Logging {
    fn encode(&self) -> Value {
        let mut entries = vec![
            text("format", &self.format),
            ("flushFrequency", self.flush_frequency.encode()),
            ("verbosity", number(self.verbosity)),
        ];
        if !self.vmodule.is_empty() {
            let items = self
                .vmodule
                .iter()
                .map(|item| object([text("filePattern", &item.file_pattern), ("verbosity", number(item.verbosity))]));
            entries.push(("vmodule", Value::List(items.collect())));
        }
        let options = [("text", self.options.text.0.encode()), ("json", self.options.json.0.encode())];
        entries.push(("options", object(options)));
        object(entries)
    }
}

impl NanosOrText {
    fn encode(self) -> Value {
        match self.is_number {
            true => number(self.duration.0),
            false => Value::String(self.duration.to_string()),
        }
    }
}

impl Routing {
    fn encode(&self) -> Value {
        let split = self.split_stream.then(|| flag("splitStream", true));
        object(split.into_iter().chain([text("infoBufferSize", &self.info_buffer_size.0)]))
    }
}

impl IpTables {
    fn encode(&self) -> Value {
        object([
            pointer("masqueradeBit", self.masquerade_bit.map(number)),
            flag("masqueradeAll", self.masquerade_all),
            pointer("localhostNodePorts", self.localhost_node_ports.map(Value::Bool)),
            time("syncPeriod", self.sync_period),
            time("minSyncPeriod", self.min_sync_period),
        ])
    }
}

impl Ipvs {
    fn encode(&self) -> Value {
        object([
            time("syncPeriod", self.sync_period),
            time("minSyncPeriod", self.min_sync_period),
            text("scheduler", &self.scheduler),
            texts("excludeCIDRs", &self.exclude_cidrs),
            flag("strictARP", self.strict_arp),
            time("tcpTimeout", self.tcp_timeout),
            time("tcpFinTimeout", self.tcp_fin_timeout),
            time("udpTimeout", self.udp_timeout),
        ])
    }
}

impl NfTables {
    fn encode(&self) -> Value {
        object([
            pointer("masqueradeBit", self.masquerade_bit.map(number)),
            flag("masqueradeAll", self.masquerade_all),
            time("syncPeriod", self.sync_period),
            time("minSyncPeriod", self.min_sync_period),
        ])
    }
}

impl Winkernel {
    fn encode(&self) -> Value {
        object([
            text("networkName", &self.network_name),
            text("sourceVip", &self.source_vip),
            flag("enableDSR", self.enable_dsr),
            text("rootHnsEndpointName", &self.root_hns_endpoint_name),
            flag("forwardHealthCheckVip", self.forward_health_check_vip),
        ])
    }
}

impl DetectLocal {
    fn encode(&self) -> Value {
        object([
            text("bridgeInterface", &self.bridge_interface),
            text("interfaceNamePrefix", &self.interface_name_prefix),
        ])
    }
}

impl Conntrack {
    fn encode(&self) -> Value {
        let written = |duration: GoDuration| Value::String(duration.to_string());
        object([
            pointer("maxPerCore", self.max_per_core.map(number)),
            pointer("min", self.min.map(number)),
            pointer("tcpEstablishedTimeout", self.tcp_established_timeout.map(written)),
            pointer("tcpCloseWaitTimeout", self.tcp_close_wait_timeout.map(written)),
            flag("tcpBeLiberal", self.tcp_be_liberal),
            time("udpTimeout", self.udp_timeout),
            time("udpStreamTimeout", self.udp_stream_timeout),
        ])
    }
}

fn object(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Object(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn text(name: &'static str, text: &str) -> (&'static str, Value) {
    (name, Value::String(text.to_owned()))
}

fn flag(name: &'static str, value: bool) -> (&'static str, Value) {
    (name, Value::Bool(value))
}

fn number(value: impl ToString) -> Value {
    Value::Number(value.to_string())
}

fn time(name: &'static str, value: GoDuration) -> (&'static str, Value) {
    (name, Value::String(value.to_string()))
}

/// A pointer of Go: nothing is `null`.
fn pointer(name: &'static str, value: Option<Value>) -> (&'static str, Value) {
    (name, value.unwrap_or(Value::Null))
}

/// A list. In Go an empty one is one that was never made, which is `null`.
fn texts(name: &'static str, list: &[String]) -> (&'static str, Value) {
    let items = list.iter().map(|item| Value::String(item.clone())).collect();
    (name, if list.is_empty() { Value::Null } else { Value::List(items) })
}
