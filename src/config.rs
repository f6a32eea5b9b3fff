//! Interim: what run needs; replaced by the real configuration.
#![allow(missing_docs, reason = "interim")]
use std::path::PathBuf;
use std::time::Duration;
use crate::plan::build::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode { Iptables, Ipvs, Nftables }
impl std::fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
}
#[derive(Clone, Debug)]
pub struct Config {
    pub mode: ProxyMode, pub planning: Settings, pub masquerade_bit: u32,
    pub sync_period: Duration, pub min_sync_period: Duration, pub manifests: Vec<PathBuf>,
}

/// Interim command line.
pub fn interim(args: &[String]) -> anyhow::Result<Config> {
    use crate::plan::build::{DetectLocal, NodePortSetting};
    use anyhow::Context;
    let mut manifests = Vec::new();
    let mut file = serde_json::Value::Null;
    let mut node = String::new();
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (arg.as_str(), args.next().cloned().unwrap_or_default()),
        };
        match name {
            "--manifests" => manifests.push(value.into()),
            "--config" => file = serde_saphyr::from_str(&std::fs::read_to_string(&value).with_context(|| value.clone())?)?,
            "--hostname-override" => node = value,
            _ => anyhow::bail!("unknown flag: {name}"),
        }
    }
    let text = |path: &str| file.pointer(path).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let seconds = |path: &str, default: u64| {
        let written = text(path);
        match written.strip_suffix("ms").and_then(|n| n.parse().ok()) {
            Some(ms) => Duration::from_millis(ms),
            None => Duration::from_secs(written.strip_suffix('s').and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(default)),
        }
    };
    if node.is_empty() {
        node = text("/hostnameOverride");
    }
    let nets = |list: String| list.split(',').filter_map(crate::net::parse_cidr).collect::<Vec<_>>();
    let npa: Vec<String> = file.pointer("/nodePortAddresses").and_then(|v| v.as_array()).into_iter().flatten().filter_map(|v| v.as_str()).map(str::to_owned).collect();
    let planning = Settings {
        node_name: node.into(),
        bind_address: None,
        masquerade_all: file.pointer("/iptables/masqueradeAll").and_then(|v| v.as_bool()).unwrap_or(false),
        localhost_node_ports: file.pointer("/iptables/localhostNodePorts").and_then(|v| v.as_bool()).unwrap_or(true),
        node_port_addresses: match npa.first().map(String::as_str) {
            Some("primary") => NodePortSetting::Primary,
            _ => NodePortSetting::Cidrs(npa.iter().filter_map(|n| crate::net::parse_cidr(n)).collect()),
        },
        detect_local: match text("/detectLocalMode").as_str() {
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(text("/detectLocal/bridgeInterface")),
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(text("/detectLocal/interfaceNamePrefix")),
            _ => DetectLocal::ClusterCidr(nets(text("/clusterCIDR"))),
        },
        external_ips: true,
    };
    let masquerade_bit = file.pointer("/iptables/masqueradeBit").and_then(|v| v.as_u64()).unwrap_or(14);
    Ok(Config {
        mode: ProxyMode::Iptables,
        planning,
        masquerade_bit: u32::try_from(masquerade_bit)?,
        sync_period: seconds("/iptables/syncPeriod", 30),
        min_sync_period: seconds("/iptables/minSyncPeriod", 1),
        manifests,
    })
}
