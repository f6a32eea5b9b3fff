//! The flags themselves, grouped as the help shows them. Names, types and defaults are
//! kube-proxy's; the descriptions are ours.
//!
//! A flag with a default here has it also when nobody reads a file; an `Option` is one for which
//! "not given" matters. Empty text is "not set" throughout.

use std::path::PathBuf;

use clap::Args;

use super::Version;
use super::values::{
    Choice, Gates, Levels, List, duration, endpoint_layout, gates, ip, ip_port, levels, list, service_dispatch, version,
};
use crate::config::decode::Quantity;
use crate::config::duration::GoDuration;
use crate::config::go::{parse_bool, parse_float32, parse_int32, parse_level};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "General")]
pub(crate) struct General {
    /// Configuration file (KubeProxyConfiguration). Nearly all other flags are then ignored; those still honoured say [with file]
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub(crate) config: String,
    /// Name of this node's Node object, if it is not the host name [with file]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) hostname_override: String,
    /// Do only what needs privilege (kernel settings), then exit: for an init container [with file]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) init_only: bool,
    /// Remove the rules of every mode from this node and exit. Service traffic stops working [with file]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) cleanup: bool,
    /// Write the configuration with all defaults filled in to this file and exit [with file]
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub(crate) write_config_to: String,
    /// Feature gates to switch, as Name=true,Other=false
    #[arg(long, value_name = "GATES", value_parser = gates)]
    pub(crate) feature_gates: Vec<Gates>,
    /// Print the version of Kubernetes this stands in for and exit; 'raw' for details, 'v1.36.2-SUFFIX' to report that one instead and go on
    #[arg(long, value_name = "BOOL|raw|VERSION", num_args = 0..=1, require_equals = true, value_parser = version, default_value = "false", hide_default_value = true)]
    pub(crate) version: Version,
    /// Print this help and exit
    #[arg(short = 'h', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false", hide_default_value = true)]
    pub(crate) help: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "ferrule's own (not in kube-proxy)")]
pub(crate) struct Ferrule {
    /// Take Services, EndpointSlices and the Node from this file or directory of YAML or JSON, and follow its changes, instead of from an API server. Repeatable, or comma-separated [with file]
    #[arg(long, value_name = "PATH", value_delimiter = ',', env = "FERRULE_MANIFESTS", hide_env_values = true)]
    manifests: Vec<String>,
    /// How the first packet of a connection finds its Service: linear, as kube-proxy's rules do it (compared with each Service's address until one matches), or bucketed (with those alone that end in the same byte). Helps from some thousand Services on (iptables mode) [with file]
    #[arg(long, value_name = "linear|bucketed", value_parser = service_dispatch, default_value = "linear", env = "FERRULE_SERVICE_DISPATCH", hide_env_values = true)]
    pub(crate) ferrule_service_dispatch: Choice,
    /// Where packets are sent on to an endpoint: chains, as in kube-proxy's rules (one for each endpoint), or compact (in the Service's chain, unless it has session affinity): a third of the rules (iptables mode; takes the kernel's xt_bpf) [with file]
    #[arg(long, value_name = "chains|compact", value_parser = endpoint_layout, default_value = "chains", env = "FERRULE_ENDPOINT_LAYOUT", hide_env_values = true)]
    pub(crate) ferrule_endpoint_layout: Choice,
    /// Serve node ports on IPv4 loopback addresses in nftables mode too, as iptables mode does: for programs that ask localhost. Sets route_localnet=1 (nftables mode) [with file]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false", default_missing_value = "true", env = "FERRULE_LOCALHOST_NODEPORTS", hide_env_values = true)]
    pub(crate) ferrule_localhost_nodeports: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "API server")]
pub(crate) struct ApiServer {
    /// File with the server's address and credentials. Without it and --master, the Pod's service account is used
    #[arg(long, value_name = "FILE", default_value = "", hide_default_value = true)]
    pub(crate) kubeconfig: String,
    /// Address of the API server, over the one in the kubeconfig [with file]
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub(crate) master: String,
    /// Requests per second in the long run; negative for no limit
    #[arg(long, value_name = "NUMBER", value_parser = parse_float32, default_value = "5")]
    pub(crate) kube_api_qps: f32,
    /// Requests at once; 0 is refused, unless there is no limit
    #[arg(long, value_name = "NUMBER", value_parser = parse_int32, default_value = "10")]
    pub(crate) kube_api_burst: i32,
    /// Accepted, as acceptContentTypes of the file is: ferrule speaks JSON with the API server in any case
    #[arg(long, value_name = "TYPE", default_value = "application/vnd.kubernetes.protobuf")]
    pub(crate) kube_api_content_type: String,
    /// How often everything known is looked through again
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "15m0s")]
    pub(crate) config_sync_period: GoDuration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Rules")]
pub(crate) struct Rules {
    /// Kernel interface to program: iptables, ipvs or nftables; iptables if empty
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub(crate) proxy_mode: String,
    /// How to recognise traffic of this node's pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix; ClusterCIDR if empty
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub(crate) detect_local_mode: String,
    /// Addresses of pods, for ClusterCIDR: one network, or an IPv4 and an IPv6 one. Empty means that nothing is known about pods: traffic from outside to cluster IPs is not masqueraded
    #[arg(long, value_name = "CIDRS", default_value = "", hide_default_value = true)]
    pub(crate) cluster_cidr: String,
    /// Bridge that pods are attached to, for BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) pod_bridge_interface: String,
    /// What names of pods' interfaces begin with, for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) pod_interface_name_prefix: String,
    /// Networks in which node ports are served, or 'primary' for the Node's own addresses. Empty: all addresses (nftables mode: primary)
    #[arg(long, value_name = "CIDRS", value_parser = list)]
    pub(crate) nodeport_addresses: Vec<List>,
    /// Serve node ports on 127.0.0.1, too (iptables mode, IPv4; sets the sysctl route_localnet)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "true")]
    pub(crate) iptables_localhost_nodeports: bool,
    /// Masquerade everything sent to cluster IPs, also from pods
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) masquerade_all: bool,
    /// Bit of the packet mark that asks for masquerading, 0 to 31 (iptables and ipvs mode)
    #[arg(long, value_name = "BIT", value_parser = parse_int32, default_value = "14")]
    pub(crate) iptables_masquerade_bit: i32,
    /// Takes the place of the Node's own address of its family, unless it is 0.0.0.0 or ::. Nothing listens on it
    #[arg(long, value_name = "IP", value_parser = ip, default_value = "0.0.0.0")]
    pub(crate) bind_address: String,
    /// Longest time between two looks at the kernel, and delay of a retry (iptables and nftables mode)
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(crate) iptables_sync_period: GoDuration,
    /// Shortest pause between two syncs (iptables and nftables mode)
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    pub(crate) iptables_min_sync_period: GoDuration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Rules, ipvs mode only")]
pub(crate) struct IpvsMode {
    /// How an endpoint is chosen: rr, wrr, lc, wlc, sh, dh, mh, sed, nq, ...; rr if empty
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) ipvs_scheduler: String,
    /// Networks whose virtual servers belong to someone else and are left alone
    #[arg(long, value_name = "CIDRS", value_parser = list)]
    pub(crate) ipvs_exclude_cidrs: Vec<List>,
    /// Answer ARP only for addresses of the interface asked (needed by MetalLB and the like)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) ipvs_strict_arp: bool,
    /// Time between two syncs without a change
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(crate) ipvs_sync_period: GoDuration,
    /// Shortest pause between two syncs
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    pub(crate) ipvs_min_sync_period: GoDuration,
    /// How long an idle TCP connection is remembered; 0 for the kernel's value
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(crate) ipvs_tcp_timeout: GoDuration,
    /// The same after a FIN; 0 for the kernel's value
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(crate) ipvs_tcpfin_timeout: GoDuration,
    /// How long a UDP flow is remembered; 0 for the kernel's value
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(crate) ipvs_udp_timeout: GoDuration,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kernel and process")]
pub(crate) struct System {
    /// Connections to track for every CPU core; 0 to leave the table's size alone
    #[arg(long, value_name = "NUMBER", value_parser = parse_int32, default_value = "32768")]
    pub(crate) conntrack_max_per_core: i32,
    /// Connections to track at least, whatever the number of cores
    #[arg(long, value_name = "NUMBER", value_parser = parse_int32, default_value = "131072")]
    pub(crate) conntrack_min: i32,
    /// How long an idle TCP connection is remembered; 0 to leave it alone
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "24h0m0s")]
    pub(crate) conntrack_tcp_timeout_established: GoDuration,
    /// How long a half-closed TCP connection is remembered; 0 to leave it alone
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h0m0s")]
    pub(crate) conntrack_tcp_timeout_close_wait: GoDuration,
    /// Treat TCP packets outside the window as valid
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) conntrack_tcp_be_liberal: bool,
    /// How long an unanswered UDP flow is remembered; 0 to leave it alone
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(crate) conntrack_udp_timeout: GoDuration,
    /// How long an answered UDP flow is remembered; 0 to leave it alone
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(crate) conntrack_udp_timeout_stream: GoDuration,
    /// Likeliness of being killed when memory runs out, -1000 (never) to 1000
    #[arg(long, value_name = "NUMBER", value_parser = parse_int32, default_value = "-999")]
    pub(crate) oom_score_adj: i32,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health, metrics, debugging")]
pub(crate) struct HttpServers {
    /// Where /healthz and /livez are served
    #[arg(long, value_name = "IP[:PORT]", value_parser = ip_port, default_value = "0.0.0.0:10256")]
    pub(crate) healthz_bind_address: String,
    /// Where /metrics is served
    #[arg(long, value_name = "IP[:PORT]", value_parser = ip_port, default_value = "127.0.0.1:10249")]
    pub(crate) metrics_bind_address: String,
    /// Exit if one of these addresses cannot be had, instead of trying again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) bind_address_hard_fail: bool,
    /// Serve debugging paths next to the metrics
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool, default_value = "false")]
    pub(crate) profiling: bool,
    /// Show metrics that were hidden in this release; only '1.35' is allowed
    #[arg(long, value_name = "VERSION", default_value = "", hide_default_value = true)]
    pub(crate) show_hidden_metrics_for_version: String,
    /// Deprecated. Port of --healthz-bind-address if that has none; 0 to serve no health
    #[arg(long, hide = true, value_parser = parse_int32, default_value = "10256")]
    pub(crate) healthz_port: i32,
    /// Deprecated. Port of --metrics-bind-address if that has none
    #[arg(long, hide = true, value_parser = parse_int32, default_value = "10249")]
    pub(crate) metrics_port: i32,
}

/// All of these are honoured with a configuration file, and override it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging (each overrides the configuration file)")]
pub(crate) struct Log {
    /// Detail: 0 for what matters, 2 for changes of state, 4 and more for debugging
    #[arg(short = 'v', long = "v", value_name = "LEVEL", value_parser = parse_level)]
    pub(crate) verbosity: Option<u32>,
    /// Detail by source file of ferrule, as pattern=LEVEL,... (drive=5, src/source/*=2); text format only
    #[arg(long, value_name = "LEVELS", value_parser = levels)]
    pub(crate) vmodule: Vec<Levels>,
    /// Form of log lines: text (default) or json
    #[arg(long, value_name = "FORMAT")]
    pub(crate) logging_format: Option<String>,
    /// Accepted (5s if not set): log lines are written at once
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) log_flush_frequency: Option<GoDuration>,
    /// Text: errors to stderr, the rest to stdout (needs the gate LoggingAlphaOptions)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool)]
    pub(crate) log_text_split_stream: Option<bool>,
    /// Text: size of the buffer for stdout with split streams (likewise)
    #[arg(long, value_name = "BYTES", value_parser = Quantity::parse)]
    pub(crate) log_text_info_buffer_size: Option<Quantity>,
    /// JSON: errors to stderr, the rest to stdout (likewise)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, value_parser = parse_bool)]
    pub(crate) log_json_split_stream: Option<bool>,
    /// JSON: size of the buffer for stdout with split streams (likewise)
    #[arg(long, value_name = "BYTES", value_parser = Quantity::parse)]
    pub(crate) log_json_info_buffer_size: Option<Quantity>,
}

/// kube-proxy has these from a library it is linked with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Accepted without effect")]
pub(crate) struct Ignored {
    /// Of cadvisor
    #[arg(long, value_name = "FILES", default_value = "/proc/sys/kernel/random/boot_id")]
    pub(crate) boot_id_file: String,
    /// Of cadvisor
    #[arg(long, value_name = "FILES", default_value = "/etc/machine-id,/var/lib/dbus/machine-id")]
    pub(crate) machine_id_file: String,
}

// === impl Ferrule ===

impl Ferrule {
    /// The paths given; nothing for empty ones.
    pub(crate) fn manifests(&self) -> Vec<PathBuf> {
        self.manifests.iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect()
    }
}
