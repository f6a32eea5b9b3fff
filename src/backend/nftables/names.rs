//! Names of the table and its chains.
//!
//! The chains at hooks are called as kube-proxy calls its own, which it deletes and makes anew when it starts: so ours go
//! when it takes over. The others are those it flushes, or have names that mean nothing to it: none with a slash, and no
//! set that begins with `affinity-`, which it would delete.

use crate::net::IpFamily;

/// The table, as it is called in both families. (kube-proxy: the same.)
pub const TABLE: &str = "kube-proxy";

/// A table that never is: what the kernel is shown in it, it looks at and does not keep.
pub const TRIAL: &str = "kube-proxy-trial";

/// The word for a family's tables, and for addresses of its packets.
pub fn family(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// Before destinations are translated: sources that may not use an address.
pub const FILTER_PREROUTING: &str = "filter-prerouting-pre-dnat";
/// The same for what processes of the node send.
pub const FILTER_OUTPUT_PRE_DNAT: &str = "filter-output-pre-dnat";
/// Packets for the node itself.
pub const FILTER_INPUT: &str = "filter-input";
/// Packets that pass through.
pub const FILTER_FORWARD: &str = "filter-forward";
/// Packets of the node's processes.
pub const FILTER_OUTPUT: &str = "filter-output";
/// Where destinations are translated.
pub const NAT_PREROUTING: &str = "nat-prerouting";
/// The same for what processes of the node send.
pub const NAT_OUTPUT: &str = "nat-output";
/// Where sources are translated.
pub const NAT_POSTROUTING: &str = "nat-postrouting";

/// Connections that may be for a Service.
pub const SERVICES: &str = "services";
/// Connections to cluster IPs.
pub const CLUSTER_IPS: &str = "cluster-ip-traffic";
/// Connections to external IPs and load balancers' addresses.
pub const EXTERNAL_IPS: &str = "external-ip-traffic";
/// Connections to node ports.
pub const NODE_PORTS: &str = "nodeport-traffic";
/// Source addresses that were marked, and hairpins.
pub const MASQUERADING: &str = "masquerading";
/// Sources that may not use an address.
pub const FIREWALL: &str = "firewall-check";
/// Addresses that have no endpoint.
pub const NO_ENDPOINTS: &str = "service-endpoints-check";
/// Node ports that have no endpoint.
pub const NO_NODE_PORT_ENDPOINTS: &str = "nodeport-endpoints-check";
/// Ports of cluster IPs that no Service has.
pub const CLUSTER_IPS_CHECK: &str = "cluster-ips-check";
/// Remembers which endpoint a client got.
pub const REMEMBER: &str = "remember-client-ip";
