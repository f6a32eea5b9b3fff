//! The configuration: command line and file in, one checked [`Config`] out.
//!
//! Whatever the source, a `KubeProxyConfiguration` is filled in (`schema`), from a file (`file`) or
//! from flags (`flags`), checked as a whole (`validate`), and only then turned into the values the
//! proxy works with (`resolve`). Flag names, file format and messages are kube-proxy's. Logging is
//! not set up yet when this runs, so that everything worth saying is returned.

mod decode;
mod document;
mod duration;
pub mod feature_gates;
mod file;
pub mod flags;
pub(crate) mod go;
mod json;
mod resolve;
mod schema;
mod validate;
mod watch;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use self::feature_gates::FeatureGates;
use self::flags::Flags;
pub use self::schema::KubeProxyConfiguration;
pub use self::watch::FileWatch;
use crate::plan::build::Settings;

/// The release of Kubernetes whose kube-proxy this program stands in for.
pub const KUBERNETES_VERSION: &str = "v1.36.2";
/// The minor version therein.
const KUBERNETES_MINOR: u32 = 36;

/// Everything the operator decided. Comments name the flag and the file's field; a duration of
/// `None` means that ferrule leaves the kernel's value alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What to do: run, or one of the things that end at once.
    pub action: Action,
    /// Which kernel interface to program: `--proxy-mode`, `mode`.
    pub mode: ProxyMode,
    /// What decides about rules; also this node's name (`--hostname-override`, `hostnameOverride`,
    /// else the system's host name; trimmed, in lower case).
    pub planning: Settings,
    /// `--cluster-cidr`, `clusterCIDR`, whether or not it decides what a pod's traffic is.
    pub cluster_cidrs: Vec<IpNet>,
    /// Packet mark that asks for masquerading, one bit: `--iptables-masquerade-bit`,
    /// `iptables.masqueradeBit` or `nftables.masqueradeBit`.
    pub masquerade_mark: u32,
    /// Longest time between two looks at the kernel, and the delay of a retry:
    /// `--iptables-sync-period` or `--ipvs-sync-period`, `syncPeriod` of the mode.
    pub sync_period: Duration,
    /// Pause after every sync: `--iptables-min-sync-period` or `--ipvs-min-sync-period`,
    /// `minSyncPeriod` of the mode. Zero for none.
    pub min_sync_period: Duration,
    /// How often everything known is looked through again: `--config-sync-period`,
    /// `configSyncPeriod`.
    pub config_sync_period: Duration,
    /// How to reach the API server.
    pub api: Api,
    /// Where to take objects from instead of an API server, if not empty: `--manifests`.
    pub manifests: Vec<PathBuf>,
    /// Where iptables mode puts rules, if not where kube-proxy does.
    pub layout: Layout,
    /// Kernel settings of connection tracking.
    pub conntrack: Conntrack,
    /// Settings that only ipvs mode has.
    pub ipvs: Ipvs,
    /// Servers for probes, metrics and debugging.
    pub servers: Servers,
    /// Likeliness of being killed when memory runs out, -1000 (never) to 1000:
    /// `--oom-score-adj`, `oomScoreAdj`.
    pub oom_score_adj: i32,
    /// What is logged and how.
    pub logging: Logging,
    /// Feature gates: `--feature-gates`, `featureGates`.
    pub feature_gates: FeatureGates,
    /// The file this comes from, to be watched: `--config`.
    pub config_file: Option<PathBuf>,
    /// The version to report, [`KUBERNETES_VERSION`] possibly with a suffix: `--version=vX.Y.Z-…`.
    pub version: String,
    /// All of it in the form of the file, for `--write-config-to` and `/configz`.
    pub document: KubeProxyConfiguration,
    /// Every flag with its value, sorted by name, for `/flagz`.
    pub flags: Vec<(&'static str, String)>,
}

/// What a start of the program is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve.
    Run,
    /// Do what needs privilege, then exit: `--init-only`.
    InitOnly,
    /// Remove the rules of every mode, then exit: `--cleanup`.
    Cleanup,
    /// Write the resolved configuration to a file, then exit: `--write-config-to`.
    WriteConfig(PathBuf),
}

/// A kernel interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// Rules for `iptables` and `ip6tables`.
    Iptables,
    /// Virtual servers in the kernel's load balancer, with the help of iptables and ipset.
    Ipvs,
    /// Rules, sets and maps of nftables.
    Nftables,
}

/// Where iptables mode puts rules, as far as that makes no difference to any packet. ferrule's own; off by
/// default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Services are found by parts of their addresses: `--ferrule-service-dispatch=bucketed`.
    pub bucketed_services: bool,
    /// Endpoints have no chains of their own: `--ferrule-endpoint-layout=compact`.
    pub compact_endpoints: bool,
}

/// How to reach the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// File with server and credentials: `--kubeconfig`, `clientConnection.kubeconfig`. Without
    /// this and `master`, the Pod's service account is used.
    pub kubeconfig: Option<PathBuf>,
    /// Address of the server, over the one in the kubeconfig: `--master`.
    pub master: Option<String>,
    /// Requests per second in the long run, `None` for no limit: `--kube-api-qps`,
    /// `clientConnection.qps`.
    pub qps: Option<f32>,
    /// Requests at once: `--kube-api-burst`, `clientConnection.burst`. Zero with a `qps` is an error
    /// when the client is made.
    pub burst: u32,
    /// Format of what is sent: `--kube-api-content-type`, `clientConnection.contentType`.
    pub content_type: String,
    /// Formats of what is received, empty to derive them from `content_type`:
    /// `clientConnection.acceptContentTypes`.
    pub accept_content_types: String,
}

/// Kernel settings of connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections to track for every CPU core, `None` to leave the table's size alone:
    /// `--conntrack-max-per-core`, `conntrack.maxPerCore`.
    pub max_per_core: Option<u32>,
    /// Connections to track at least, whatever the number of cores: `--conntrack-min`,
    /// `conntrack.min`.
    pub min: u32,
    /// How long an idle TCP connection is remembered: `--conntrack-tcp-timeout-established`,
    /// `conntrack.tcpEstablishedTimeout`. Whole seconds count.
    pub tcp_established_timeout: Option<Duration>,
    /// How long a half-closed TCP connection is remembered: `--conntrack-tcp-timeout-close-wait`,
    /// `conntrack.tcpCloseWaitTimeout`.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Let TCP packets outside the window pass as valid: `--conntrack-tcp-be-liberal`,
    /// `conntrack.tcpBeLiberal`.
    pub tcp_be_liberal: bool,
    /// How long an unanswered UDP flow is remembered: `--conntrack-udp-timeout`,
    /// `conntrack.udpTimeout`.
    pub udp_timeout: Option<Duration>,
    /// How long an answered UDP flow is remembered: `--conntrack-udp-timeout-stream`,
    /// `conntrack.udpStreamTimeout`.
    pub udp_stream_timeout: Option<Duration>,
}

/// Settings that only ipvs mode has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipvs {
    /// How a real server is chosen: `--ipvs-scheduler`, `ipvs.scheduler`.
    pub scheduler: String,
    /// Virtual servers in these networks are not ours to touch: `--ipvs-exclude-cidrs`,
    /// `ipvs.excludeCIDRs`.
    pub exclude_cidrs: Vec<IpNet>,
    /// Answer ARP requests only for addresses of the interface they came in by:
    /// `--ipvs-strict-arp`, `ipvs.strictARP`.
    pub strict_arp: bool,
    /// How long an idle TCP connection is remembered: `--ipvs-tcp-timeout`, `ipvs.tcpTimeout`.
    pub tcp_timeout: Option<Duration>,
    /// The same after its FIN: `--ipvs-tcpfin-timeout`, `ipvs.tcpFinTimeout`.
    pub tcp_fin_timeout: Option<Duration>,
    /// How long a UDP flow is remembered: `--ipvs-udp-timeout`, `ipvs.udpTimeout`.
    pub udp_timeout: Option<Duration>,
}

/// Servers for probes, metrics and debugging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// Where `/healthz` and `/livez` are served, `None` for nowhere: `--healthz-bind-address`,
    /// `healthzBindAddress`.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is served: `--metrics-bind-address`, `metricsBindAddress`.
    pub metrics: SocketAddr,
    /// An address that cannot be had ends the proxy instead of being tried again:
    /// `--bind-address-hard-fail`, `bindAddressHardFail`.
    pub bind_address_hard_fail: bool,
    /// Serve debugging paths next to the metrics: `--profiling`, `enableProfiling`.
    pub profiling: bool,
    /// Show metrics hidden since the previous minor version:
    /// `--show-hidden-metrics-for-version`, `showHiddenMetricsForVersion`.
    pub show_hidden_metrics: bool,
}

/// What is logged and how. Logging flags override the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// `--logging-format`, `logging.format`.
    pub format: LogFormat,
    /// Detail, from 0; 2 shows each change of state, 4 and more is for debugging: `-v`,
    /// `logging.verbosity`.
    pub verbosity: u32,
    /// Detail by source file pattern, first match first: `--vmodule`, `logging.vmodule`.
    pub vmodule: Vec<(String, u32)>,
    /// How often buffered lines are written out: `--log-flush-frequency`, `logging.flushFrequency`.
    pub flush_frequency: Duration,
    /// Errors to standard error, the rest to standard output: `--log-text-split-stream` or
    /// `--log-json-split-stream`, `logging.options.text.splitStream` or `….json.splitStream`.
    pub split_stream: bool,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `I0501 10:00:00.123456   1 file.rs:1] "Message" key="value"`
    Text,
    /// One JSON object per line.
    Json,
}

/// What [`load`] gives, in the order in which it is to be told.
#[derive(Debug)]
pub struct Loaded {
    /// What there is to say about reading it, before logging is configured.
    pub completing: Vec<Remark>,
    /// How to log from then on; `None` if that could not be found out, and `config` says why.
    pub logging: Option<Logging>,
    /// Every flag with its value, sorted by name.
    pub listing: Vec<(&'static str, String)>,
    /// What there is to say about checking it.
    pub checking: Vec<Remark>,
    /// The configuration, or why there is none.
    pub config: Result<Config, ConfigError>,
    /// Where in the file the fault is, as `file:line:column`, if one can tell.
    pub places: Vec<String>,
}

/// Something to log, whatever comes of the configuration. kube-proxy logs the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The file has fields that are unknown or there twice, which are ignored.
    LenientDecoding {
        /// Which.
        complaint: String,
        /// Where the first of them are, as `file:line:column`.
        places: Vec<String>,
    },
    /// No mode is set, so that it is iptables.
    ModeChosen,
    /// A gate is set that will vanish, because everybody has the feature or nobody will.
    GateSet {
        /// The gate.
        name: String,
        /// What it is set to.
        value: bool,
        /// Whether the feature goes.
        deprecated: bool,
    },
    /// A gate is set that does not exist.
    UnknownGate(String),
    /// The gates that are set. A detail.
    GatesUpdated(BTreeMap<String, bool>),
}

/// Why a command line that parses is no configuration. Always fatal with exit code 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or decoded, a feature gate cannot be set.
    #[error("failed complete: {0}")]
    Complete(String),
    /// The logging part is wrong.
    #[error("initialize logging: {0}")]
    Logging(String),
    /// Any other part is wrong.
    #[error("failed validate: {0}")]
    Validate(String),
    /// The node has no name. (To kube-proxy this is an error of the running proxy, not of its
    /// configuration.)
    #[error("{0}")]
    Run(String),
}

/// Reads the file if one is given, checks everything and resolves it. Reads nothing but that file
/// and the system's host name.
pub fn load(flags: &Flags) -> Loaded {
    resolve::resolve(flags, file::read)
}

/// The same, with `bytes` in place of what stands in the file.
#[cfg(feature = "fixtures")]
pub fn load_text(flags: &Flags, bytes: &[u8]) -> Loaded {
    resolve::resolve(flags, |_| file::from_bytes(bytes))
}

/// Writes the resolved configuration to a file, for `--write-config-to`. The error is worded as
/// kube-proxy's.
pub fn write(config: &Config, path: &Path) -> Result<(), String> {
    std::fs::write(path, config.document.to_yaml()).map_err(|error| go_io_error("open", path, &error))
}

/// The system's answer as Go words it: operation, path, reason.
fn go_io_error(operation: &str, path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{operation} {path}: no such file or directory"),
        io::ErrorKind::PermissionDenied => format!("{operation} {path}: permission denied"),
        io::ErrorKind::IsADirectory => format!("{operation} {path}: is a directory"),
        _ => format!("{operation} {path}: {error}"),
    }
}

// === impl ProxyMode ===

impl ProxyMode {
    /// Every mode.
    pub const ALL: [ProxyMode; 3] = [ProxyMode::Iptables, ProxyMode::Ipvs, ProxyMode::Nftables];

    /// The name in flags, files and `/proxyMode`.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyMode::Iptables => "iptables",
            ProxyMode::Ipvs => "ipvs",
            ProxyMode::Nftables => "nftables",
        }
    }

    /// The mode of a name; exactly as written.
    pub fn parse(text: &str) -> Option<ProxyMode> {
        ProxyMode::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Remark ===

impl Remark {
    /// Whether it is of interest at level 1 and above only.
    pub fn is_detail(&self) -> bool {
        matches!(self, Remark::GatesUpdated(_))
    }
}

// === impl ConfigError ===

impl ConfigError {
    /// Whether kube-proxy would announce it as an error of running, too, with a line
    /// `Error running ProxyServer` before the one of the failed command.
    pub fn is_of_running(&self) -> bool {
        matches!(self, ConfigError::Run(_))
    }
}
