//! Whether the configuration fits the node. Pure; messages are kube-proxy's.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::model::Node;
use crate::net::{IpFamily, host_net};
use crate::plan::build::{DetectLocal, NodePortSetting, Settings};

/// Something about the configuration that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// What, as kube-proxy puts it.
    pub reason: String,
    /// Whether kube-proxy ends for it.
    pub fatal: bool,
}

/// The family that decides where there is a choice: that of `bindAddress` if it is an address, else
/// of the first address of the Node, else IPv4. (kube-proxy: `detectNodeIPs`.)
pub fn primary_family(settings: &Settings, node: &Node) -> IpFamily {
    let bound = settings.bind_address.filter(|ip| !ip.is_unspecified());
    bound.or_else(|| node.addresses.first().copied()).map_or(IpFamily::V4, IpFamily::of)
}

/// What may be wrong or missing, whatever the host can do. (kube-proxy: `checkBadConfig`.)
pub fn incomplete(config: &Config, node: &Node) -> Option<String> {
    let primary = primary_family(&config.planning, node);
    let other = primary.other();
    let node_ports = node_port_nets(&config.planning, node);
    let of_primary = node_ports.iter().filter(|net| IpFamily::of_net(**net) == primary).count();
    let lists = [&config.cluster_cidrs, &node_ports, &config.ipvs.exclude_cidrs, &node.pod_cidrs];
    let is_dual =
        |nets: &&Vec<IpNet>| IpFamily::BOTH.iter().all(|f| nets.iter().any(|net| IpFamily::of_net(*net) == *f));
    if node_ports.is_empty() {
        return Some(
            "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. \
             Consider using `--nodeport-addresses primary`"
                .to_owned(),
        );
    }
    if lists.iter().any(is_dual) && of_primary == node_ports.len() {
        return Some(format!(
            "cluster appears to be dual-stack but nodePortAddresses contains only {primary} addresses; \
             NodePort connections will be accepted on all local {other} IPs"
        ));
    }
    (of_primary == 0).then(|| {
        format!(
            "cluster appears to be {primary}-primary but nodePortAddresses contains only {other} addresses; \
             NodePort connections will be accepted on all local {primary} IPs"
        )
    })
}

/// Networks and addresses of the wrong family only. (kube-proxy: `checkBadIPConfig`.)
pub fn misfit(config: &Config, node: &Node, is_dual_stack: bool) -> Option<Misfit> {
    let primary = primary_family(&config.planning, node);
    let wrong = primary.other();
    let kind = if is_dual_stack { "primary" } else { "only" };
    let only_wrong = |nets: &[IpNet]| !nets.is_empty() && nets.iter().all(|net| IpFamily::of_net(*net) == wrong);
    let mut reasons = Vec::new();
    let mut fatal = false;
    let mut nets = |nets: &[IpNet], name: &str, is_fatal: bool| {
        if only_wrong(nets) {
            reasons.push(format!("cluster is {primary}-{kind} but {name} contains only {wrong} addresses"));
            fatal |= is_fatal;
        }
    };
    let detect = &config.planning.detect_local;
    let by_cluster_cidr = matches!(detect, DetectLocal::ClusterCidr(_));
    nets(&config.cluster_cidrs, "clusterCIDRs", by_cluster_cidr && !is_dual_stack);
    nets(&node.pod_cidrs, "node.spec.podCIDRs", *detect == DetectLocal::NodeCidr);
    if !is_dual_stack {
        nets(&config.ipvs.exclude_cidrs, "ipvs.excludeCIDRs", false);
        let servers =
            [(config.servers.healthz, "healthzBindAddress"), (Some(config.servers.metrics), "metricsBindAddress")];
        let is_wrong = |address: &SocketAddr| IpFamily::of(address.ip()) == wrong && !address.ip().is_unspecified();
        for (_, name) in servers.into_iter().filter(|(address, _)| address.as_ref().is_some_and(is_wrong)) {
            reasons.push(format!("cluster is {primary}-{kind} but {name} is {wrong}"));
        }
    }
    let reason = match reasons.as_slice() {
        [] => return None,
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Some(Misfit { reason, fatal })
}

/// `nodePortAddresses` with the node's own in the place of `primary`.
fn node_port_nets(settings: &Settings, node: &Node) -> Vec<IpNet> {
    match &settings.node_port_addresses {
        NodePortSetting::Cidrs(nets) => nets.clone(),
        NodePortSetting::Primary => {
            let own = IpFamily::BOTH.map(|family| settings.node_ip(family, node));
            own.into_iter().filter(|ip| !ip.is_loopback()).map(host_net).collect()
        }
    }
}

#[cfg(test)]
mod tests;
