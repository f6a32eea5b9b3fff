//! Putting it together: file or flags, overrides, defaults, checks, and the values to work with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::document::locate::Place;
use super::file::{Read, Refused};
use super::flags::{Flags, Version};
use super::go::{append_port, split_host_port};
use super::schema::{self, KubeProxyConfiguration};
use super::{
    Action, Api, Config, ConfigError, Conntrack, FeatureGates, Ipvs, KUBERNETES_VERSION, Layout, Loaded, LogFormat,
    Logging, ProxyMode, Remark, Servers, validate,
};
use crate::net::{parse_cidr, parse_ip};
use crate::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings};

/// The steps of kube-proxy in its order, which decides about the one error that is reported. `read`
/// reads the file if there is one.
pub(crate) fn resolve(flags: &Flags, read: impl FnOnce(&Path) -> Result<Read, Refused>) -> Loaded {
    let mut loaded = Loaded {
        completing: Vec::new(),
        logging: None,
        listing: Vec::new(),
        checking: Vec::new(),
        config: Err(ConfigError::Complete(String::new())),
        places: Vec::new(),
    };
    loaded.config = steps(flags, read, &mut loaded);
    loaded
}

fn steps(
    flags: &Flags,
    read: impl FnOnce(&Path) -> Result<Read, Refused>,
    loaded: &mut Loaded,
) -> Result<Config, ConfigError> {
    let written = complete(flags, read, loaded)?;
    let gates = FeatureGates::set(&written.feature_gates, &mut loaded.completing).map_err(ConfigError::Complete)?;
    validate::logging(&written.logging, &gates).map_err(ConfigError::Logging)?;
    loaded.logging = Some(logging(&written.logging));
    loaded.listing = flags.listing(&written);
    // The checks set the gates once more, on a copy, and say so again.
    let is_set = |remark: &&Remark| matches!(remark, Remark::GateSet { .. });
    loaded.checking.extend(loaded.completing.iter().filter(is_set).cloned());
    loaded.checking.push(Remark::GatesUpdated(gates.set_ones().clone()));
    validate::configuration(&written).map_err(ConfigError::Validate)?;
    config(flags, written, gates)
}

/// Everything that can be filled in before checks.
fn complete(
    flags: &Flags,
    read: impl FnOnce(&Path) -> Result<Read, Refused>,
    loaded: &mut Loaded,
) -> Result<KubeProxyConfiguration, ConfigError> {
    let remarks = &mut loaded.completing;
    let mut written = match flags.config_file() {
        Some(path) => {
            let shown = |places: Vec<Place>| {
                let shown = places.iter().map(|at| format!("{}:{}:{}", path.display(), at.line, at.column));
                shown.collect::<Vec<_>>()
            };
            let read = read(path).map_err(|refused| {
                loaded.places = shown(refused.places);
                ConfigError::Complete(refused.error)
            })?;
            if let Some(complaint) = read.complaint {
                remarks.push(Remark::LenientDecoding { complaint, places: shown(read.places) });
            }
            read.configuration
        }
        None => {
            let mut written = flags.configuration();
            if flags.write_config_to().is_none() {
                fill_ports(flags, &mut written);
            }
            written
        }
    };
    flags.override_logging(&mut written.logging);
    if written.set_platform_defaults() {
        remarks.push(Remark::ModeChosen);
    }
    let hostname = flags.general.hostname_override.as_str();
    if !hostname.is_empty() {
        written.hostname_override = hostname.trim().to_lowercase();
        if written.hostname_override.is_empty() {
            return Err(ConfigError::Complete("empty hostname-override is invalid".to_owned()));
        }
    }
    Ok(written)
}

/// What is left of the deprecated port flags: a port for addresses without one, and zero to serve
/// nothing (which validation refuses for metrics).
fn fill_ports(flags: &Flags, written: &mut KubeProxyConfiguration) {
    let fill = |address: &mut String, port: i32| match port {
        0 => address.clear(),
        port => *address = append_port(address, port),
    };
    fill(&mut written.healthz_bind_address, flags.servers.healthz_port);
    fill(&mut written.metrics_bind_address, flags.servers.metrics_port);
}

/// The values of a configuration that passed the checks.
fn config(flags: &Flags, written: KubeProxyConfiguration, gates: FeatureGates) -> Result<Config, ConfigError> {
    let mode = ProxyMode::parse(&written.mode).ok_or_else(|| unchecked("mode", &written.mode))?;
    let (sync_period, min_sync_period) = written.periods();
    let mark = u32::try_from(written.masquerade_bit()).ok().and_then(|bit| 1u32.checked_shl(bit));
    Ok(Config {
        mode,
        planning: settings(flags, &written, mode, &gates)?,
        action: action(flags),
        cluster_cidrs: cluster_cidrs(&written),
        masquerade_mark: mark.ok_or_else(|| unchecked("masqueradeBit", &written.masquerade_bit().to_string()))?,
        sync_period: sync_period.to_std(),
        min_sync_period: min_sync_period.to_std(),
        config_sync_period: written.config_sync_period.to_std(),
        api: api(flags, &written),
        manifests: flags.ferrule.manifests(),
        layout: Layout {
            bucketed_services: flags.ferrule.ferrule_service_dispatch.departs,
            compact_endpoints: flags.ferrule.ferrule_endpoint_layout.departs,
        },
        conntrack: conntrack(&written.conntrack),
        ipvs: ipvs(&written.ipvs),
        servers: Servers {
            healthz: match written.healthz_bind_address.as_str() {
                "" => None,
                address => Some(socket_address(address)?),
            },
            metrics: socket_address(&written.metrics_bind_address)?,
            bind_address_hard_fail: written.bind_address_hard_fail,
            profiling: written.enable_profiling,
            show_hidden_metrics: !written.show_hidden_metrics_for_version.is_empty(),
        },
        oom_score_adj: written.oom_score_adj.unwrap_or(schema::OOM_SCORE_ADJ),
        logging: logging(&written.logging),
        feature_gates: gates,
        config_file: flags.config_file().map(PathBuf::from),
        version: match &flags.general.version {
            Version::Override(version) => version.clone(),
            _ => KUBERNETES_VERSION.to_owned(),
        },
        flags: flags.listing(&written),
        document: written.settled(),
    })
}

/// Something validation should have refused. Better an error than a guess.
fn unchecked(field: &str, value: &str) -> ConfigError {
    ConfigError::Validate(format!("{field}: {value:?} cannot be used"))
}

fn action(flags: &Flags) -> Action {
    let general = &flags.general;
    match flags.write_config_to() {
        Some(path) => Action::WriteConfig(path.to_owned()),
        None if general.cleanup => Action::Cleanup,
        None if general.init_only => Action::InitOnly,
        None => Action::Run,
    }
}

/// The node's name. What ends before the proxy would run goes on without one.
fn node_name(written: &KubeProxyConfiguration, action: &Action) -> Result<String, ConfigError> {
    let name = match written.hostname_override.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    let name = name.trim().to_lowercase();
    match (name.is_empty(), action) {
        (true, Action::Run | Action::InitOnly) => Err(ConfigError::Run("empty hostname is invalid".to_owned())),
        _ => Ok(name),
    }
}

fn settings(
    flags: &Flags,
    written: &KubeProxyConfiguration,
    mode: ProxyMode,
    gates: &FeatureGates,
) -> Result<Settings, ConfigError> {
    let node_port_addresses = match written.node_port_addresses.as_slice() {
        [only] if only == "primary" => NodePortSetting::Primary,
        cidrs => NodePortSetting::Cidrs(
            cidrs
                .iter()
                .map(|cidr| parse_cidr(cidr).ok_or_else(|| unchecked("nodePortAddresses", cidr)))
                .collect::<Result<_, _>>()?,
        ),
    };
    let detect_local = match written.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => DetectLocal::BridgeInterface(written.detect_local.bridge_interface.clone()),
        "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(written.detect_local.interface_name_prefix.clone()),
        _ => DetectLocal::ClusterCidr(cluster_cidrs(written)),
    };
    Ok(Settings {
        node_name: node_name(written, &action(flags))?.into(),
        bind_address: parse_ip(&written.bind_address),
        masquerade_all: written.masquerade_all(),
        localhost_node_ports: match mode {
            ProxyMode::Iptables | ProxyMode::Ipvs => written.iptables.localhost_node_ports.unwrap_or(true),
            ProxyMode::Nftables => flags.ferrule.ferrule_localhost_nodeports,
        },
        node_port_addresses,
        detect_local,
        external_ips: gates.enabled("AllowServiceExternalIPs"),
        balancing: match mode {
            ProxyMode::Iptables => Balancing::Rules,
            ProxyMode::Ipvs => Balancing::VirtualServers,
            ProxyMode::Nftables => Balancing::Maps,
        },
    })
}

fn cluster_cidrs(written: &KubeProxyConfiguration) -> Vec<IpNet> {
    written.cluster_cidrs.0.iter().filter_map(|cidr| parse_cidr(cidr)).collect()
}

fn api(flags: &Flags, written: &KubeProxyConfiguration) -> Api {
    let client = &written.client_connection;
    Api {
        kubeconfig: Some(PathBuf::from(&client.kubeconfig)).filter(|path| !path.as_os_str().is_empty()),
        master: Some(flags.api.master.clone()).filter(|master| !master.is_empty()),
        // The client library's own defaults stand in for zero; a burst of zero alone is refused.
        qps: match client.qps {
            0.0 => Some(5.0),
            qps if qps < 0.0 => None,
            qps => Some(qps),
        },
        burst: match (client.qps, client.burst) {
            (0.0, 0) => 10,
            (_, burst) => u32::try_from(burst).unwrap_or(0),
        },
        content_type: client.content_type.clone(),
        accept_content_types: client.accept_content_types.clone(),
    }
}

fn conntrack(written: &schema::Conntrack) -> Conntrack {
    let count = |value: Option<i32>, default| u32::try_from(value.unwrap_or(default)).unwrap_or(0);
    Conntrack {
        max_per_core: Some(count(written.max_per_core, schema::CONNTRACK_MAX_PER_CORE)).filter(|max| *max > 0),
        min: count(written.min, schema::CONNTRACK_MIN),
        tcp_established_timeout: written.tcp_established_timeout.unwrap_or(schema::TCP_ESTABLISHED_TIMEOUT).positive(),
        tcp_close_wait_timeout: written.tcp_close_wait_timeout.unwrap_or(schema::TCP_CLOSE_WAIT_TIMEOUT).positive(),
        tcp_be_liberal: written.tcp_be_liberal,
        udp_timeout: written.udp_timeout.positive(),
        udp_stream_timeout: written.udp_stream_timeout.positive(),
    }
}

fn ipvs(written: &schema::Ipvs) -> Ipvs {
    Ipvs {
        scheduler: match written.scheduler.as_str() {
            "" => "rr".to_owned(),
            scheduler => scheduler.to_owned(),
        },
        // In other modes nobody checked these, and nobody reads them.
        exclude_cidrs: written.exclude_cidrs.iter().filter_map(|cidr| parse_cidr(cidr)).collect(),
        strict_arp: written.strict_arp,
        tcp_timeout: written.tcp_timeout.positive(),
        tcp_fin_timeout: written.tcp_fin_timeout.positive(),
        udp_timeout: written.udp_timeout.positive(),
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let parts = split_host_port(text).ok();
    let address = parts.and_then(|(host, port)| Some(SocketAddr::new(parse_ip(host)?, port.parse().ok()?)));
    address.ok_or_else(|| unchecked("bind address", text))
}

fn logging(written: &schema::Logging) -> Logging {
    let (format, options) = match written.format.as_str() {
        "json" => (LogFormat::Json, &written.options.json.0),
        _ => (LogFormat::Text, &written.options.text.0),
    };
    Logging {
        format,
        verbosity: written.verbosity,
        vmodule: written.vmodule.iter().map(|item| (item.file_pattern.clone(), item.verbosity)).collect(),
        flush_frequency: written.flush_frequency.duration.to_std(),
        split_stream: options.split_stream,
    }
}
