//! `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, and its defaults. A field's name
//! is the file's in snake case; `fields.rs` pairs the two.

mod encode;
mod fields;

use std::collections::BTreeMap;

use super::decode::{NanosOrText, Quantity};
use super::duration::GoDuration;
use super::go::append_port;
use crate::net::{IpFamily, parse_ip};

/// Port of the health server where an address names none.
pub(crate) const HEALTHZ_PORT: i32 = 10256;
/// Port of the metrics server where an address names none.
pub(crate) const METRICS_PORT: i32 = 10249;

/// The whole document. What is written is kept as written (addresses, modes, CIDRs are text), so
/// that validation can judge it and the resolved configuration can be shown again. The command
/// line without `--config` fills in one of these too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubeProxyConfiguration {
    pub(crate) kind: String,
    pub(crate) api_version: String,
    pub(crate) feature_gates: BTreeMap<String, bool>,
    pub(crate) client_connection: ClientConnection,
    pub(crate) logging: Logging,
    pub(crate) hostname_override: String,
    pub(crate) bind_address: String,
    pub(crate) healthz_bind_address: String,
    pub(crate) metrics_bind_address: String,
    pub(crate) bind_address_hard_fail: bool,
    pub(crate) enable_profiling: bool,
    pub(crate) show_hidden_metrics_for_version: String,
    pub(crate) mode: String,
    pub(crate) iptables: IpTables,
    pub(crate) ipvs: Ipvs,
    pub(crate) nftables: NfTables,
    pub(crate) winkernel: Winkernel,
    pub(crate) detect_local_mode: String,
    pub(crate) detect_local: DetectLocal,
    /// `clusterCIDR`, split at its commas.
    pub(crate) cluster_cidrs: ClusterCidrs,
    pub(crate) node_port_addresses: Vec<String>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) conntrack: Conntrack,
    pub(crate) config_sync_period: GoDuration,
    pub(crate) port_range: String,
    pub(crate) windows_run_as_service: bool,
}

/// `clientConnection`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClientConnection {
    pub(crate) kubeconfig: String,
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    pub(crate) qps: f32,
    pub(crate) burst: i32,
}

/// `logging`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Logging {
    pub(crate) format: String,
    pub(crate) flush_frequency: NanosOrText,
    pub(crate) verbosity: u32,
    pub(crate) vmodule: Vec<VModule>,
    pub(crate) options: LogOptions,
}

/// `logging.options`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LogOptions {
    pub(crate) text: TextOptions,
    pub(crate) json: JsonOptions,
}

/// What both formats' options consist of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routing {
    pub(crate) split_stream: bool,
    pub(crate) info_buffer_size: Quantity,
}

/// `logging.options.text`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TextOptions(pub(crate) Routing);

/// `logging.options.json`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct JsonOptions(pub(crate) Routing);

/// `logging.vmodule[]`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct VModule {
    pub(crate) file_pattern: String,
    pub(crate) verbosity: u32,
}

/// `iptables`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct IpTables {
    pub(crate) masquerade_bit: Option<i32>,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_node_ports: Option<bool>,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
}

/// `ipvs`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ipvs {
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
    pub(crate) scheduler: String,
    pub(crate) exclude_cidrs: Vec<String>,
    pub(crate) strict_arp: bool,
    pub(crate) tcp_timeout: GoDuration,
    pub(crate) tcp_fin_timeout: GoDuration,
    pub(crate) udp_timeout: GoDuration,
}

/// `nftables`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NfTables {
    pub(crate) masquerade_bit: Option<i32>,
    pub(crate) masquerade_all: bool,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
}

/// `winkernel`: for Windows, accepted and ignored.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Winkernel {
    pub(crate) network_name: String,
    pub(crate) source_vip: String,
    pub(crate) enable_dsr: bool,
    pub(crate) root_hns_endpoint_name: String,
    pub(crate) forward_health_check_vip: bool,
}

/// `detectLocal`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DetectLocal {
    pub(crate) bridge_interface: String,
    pub(crate) interface_name_prefix: String,
}

/// `conntrack`
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Conntrack {
    pub(crate) max_per_core: Option<i32>,
    pub(crate) min: Option<i32>,
    pub(crate) tcp_established_timeout: Option<GoDuration>,
    pub(crate) tcp_close_wait_timeout: Option<GoDuration>,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: GoDuration,
    pub(crate) udp_stream_timeout: GoDuration,
}

/// `clusterCIDR`: one string in the file, a list everywhere else. Not trimmed: validation refuses
/// blanks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClusterCidrs(pub(crate) Vec<String>);

/// Default `masqueradeBit`.
pub(crate) const MASQUERADE_BIT: i32 = 14;
/// Default `oomScoreAdj`.
pub(crate) const OOM_SCORE_ADJ: i32 = -999;
/// Default `conntrack.maxPerCore`.
pub(crate) const CONNTRACK_MAX_PER_CORE: i32 = 32768;
/// Default `conntrack.min`.
pub(crate) const CONNTRACK_MIN: i32 = 131_072;
/// Default `conntrack.tcpEstablishedTimeout`.
pub(crate) const TCP_ESTABLISHED_TIMEOUT: GoDuration = GoDuration::seconds(24 * 3600);
/// Default `conntrack.tcpCloseWaitTimeout`.
pub(crate) const TCP_CLOSE_WAIT_TIMEOUT: GoDuration = GoDuration::seconds(3600);
/// Default `syncPeriod` of every mode.
pub(crate) const SYNC_PERIOD: GoDuration = GoDuration::seconds(30);
/// Default `minSyncPeriod` of every mode but ipvs, which has none in the file.
pub(crate) const MIN_SYNC_PERIOD: GoDuration = GoDuration::seconds(1);
/// Default `configSyncPeriod`.
pub(crate) const CONFIG_SYNC_PERIOD: GoDuration = GoDuration::seconds(15 * 60);
/// Default `clientConnection.contentType`.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

// === impl KubeProxyConfiguration ===

impl KubeProxyConfiguration {
    /// Fills in what is not set. Zero and empty mean "not set" wherever there is a default, because
    /// tools write every field of this document out with its zero value. `mode`, `detectLocalMode`
    /// and `nodePortAddresses` are not among them: see [`Self::set_platform_defaults`].
    pub(crate) fn set_defaults(&mut self) {
        default_text(&mut self.bind_address, "0.0.0.0");
        // Whatever is not an IPv4 address selects the IPv6 forms, junk included.
        let family = parse_ip(&self.bind_address).map_or(IpFamily::V6, IpFamily::of);
        let (any, loopback) = match family {
            IpFamily::V4 => ("0.0.0.0", "127.0.0.1"),
            IpFamily::V6 => ("::", "::1"),
        };
        default_text(&mut self.healthz_bind_address, any);
        default_text(&mut self.metrics_bind_address, loopback);
        self.healthz_bind_address = append_port(&self.healthz_bind_address, HEALTHZ_PORT);
        self.metrics_bind_address = append_port(&self.metrics_bind_address, METRICS_PORT);

        default_text(&mut self.client_connection.content_type, CONTENT_TYPE);
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        default_text(&mut self.logging.format, "text");
        if self.logging.flush_frequency.duration == GoDuration::ZERO {
            self.logging.flush_frequency = NanosOrText { duration: GoDuration::seconds(5), is_number: false };
        }
        for options in [&mut self.logging.options.text.0, &mut self.logging.options.json.0] {
            default_text(&mut options.info_buffer_size.0, "0");
        }

        self.iptables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        self.iptables.localhost_node_ports.get_or_insert(true);
        default_time(&mut self.iptables.sync_period, SYNC_PERIOD);
        default_time(&mut self.iptables.min_sync_period, MIN_SYNC_PERIOD);
        default_time(&mut self.ipvs.sync_period, SYNC_PERIOD);
        self.nftables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        default_time(&mut self.nftables.sync_period, SYNC_PERIOD);
        default_time(&mut self.nftables.min_sync_period, MIN_SYNC_PERIOD);

        self.oom_score_adj.get_or_insert(OOM_SCORE_ADJ);
        self.conntrack.max_per_core.get_or_insert(CONNTRACK_MAX_PER_CORE);
        self.conntrack.min.get_or_insert(CONNTRACK_MIN);
        self.conntrack.tcp_established_timeout.get_or_insert(TCP_ESTABLISHED_TIMEOUT);
        self.conntrack.tcp_close_wait_timeout.get_or_insert(TCP_CLOSE_WAIT_TIMEOUT);
        default_time(&mut self.config_sync_period, CONFIG_SYNC_PERIOD);
    }

    /// The defaults that depend on the platform, for a file as for flags. True if the mode is one
    /// of them.
    pub(crate) fn set_platform_defaults(&mut self) -> bool {
        let chosen = self.mode.is_empty();
        default_text(&mut self.mode, "iptables");
        if self.mode == "nftables" && self.node_port_addresses.is_empty() {
            self.node_port_addresses.push("primary".to_owned());
        }
        default_text(&mut self.detect_local_mode, "ClusterCIDR");
        chosen
    }

    /// `syncPeriod` and `minSyncPeriod` of the mode. A mode that is none reads iptables' block.
    pub(crate) fn periods(&self) -> (GoDuration, GoDuration) {
        match self.mode.as_str() {
            "ipvs" => (self.ipvs.sync_period, self.ipvs.min_sync_period),
            "nftables" => (self.nftables.sync_period, self.nftables.min_sync_period),
            _ => (self.iptables.sync_period, self.iptables.min_sync_period),
        }
    }

    /// `masqueradeAll` of the mode: ipvs has none of its own and reads iptables'.
    pub(crate) fn masquerade_all(&self) -> bool {
        match self.mode.as_str() {
            "nftables" => self.nftables.masquerade_all,
            _ => self.iptables.masquerade_all,
        }
    }

    /// `masqueradeBit` of the mode, likewise.
    pub(crate) fn masquerade_bit(&self) -> i32 {
        let bit = match self.mode.as_str() {
            "nftables" => self.nftables.masquerade_bit,
            _ => self.iptables.masquerade_bit,
        };
        bit.unwrap_or(MASQUERADE_BIT)
    }
}

fn default_text(field: &mut String, default: &str) {
    if field.is_empty() {
        field.push_str(default);
    }
}

fn default_time(field: &mut GoDuration, default: GoDuration) {
    if *field == GoDuration::ZERO {
        *field = default;
    }
}

// === impl ClusterCidrs ===

impl ClusterCidrs {
    /// The list in a comma-separated text; nothing in an empty one.
    pub(crate) fn split(text: &str) -> ClusterCidrs {
        match text.is_empty() {
            true => ClusterCidrs::default(),
            false => ClusterCidrs(text.split(',').map(str::to_owned).collect()),
        }
    }
}
