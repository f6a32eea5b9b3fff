//! Names of chains and of the link, beside those of iptables mode.

use crate::backend::iptables::names::ChainName;

/// The link that has the addresses of virtual servers.
pub const LINK: &str = "kube-ipvs0";

/// nat: marks what is sent to node ports. filter: accepts what load balancers ask the node.
pub const NODE_PORT: ChainName = ChainName::fixed("KUBE-NODE-PORT");
/// nat: marks what is sent to load balancers' addresses.
pub const LOAD_BALANCER: ChainName = ChainName::fixed("KUBE-LOAD-BALANCER");
/// filter: drops load balancer traffic but from ranges of sources.
pub const SOURCE_RANGES_FIREWALL: ChainName = ChainName::fixed("KUBE-SOURCE-RANGES-FIREWALL");
/// filter: keeps others from what else listens on the addresses of virtual servers.
pub const FILTER: ChainName = ChainName::fixed("KUBE-IPVS-FILTER");
/// filter: keeps this node from load balancers whose ranges of sources leave it out.
pub const OUT_FILTER: ChainName = ChainName::fixed("KUBE-IPVS-OUT-FILTER");
