//! What IPVS mode has in the kernel besides virtual servers and rules: sets of addresses, with their text.

use std::fmt;
use std::net::IpAddr;
use std::ops::BitOr;

use ipnet::IpNet;

use crate::net::{IpFamily, Protocol, host_net};

/// A set, in the order in which kube-proxy has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Set {
    /// Endpoints of this node, as destination and source: what comes back to where it came from.
    LoopBack,
    /// Cluster IPs.
    ClusterIp,
    /// External IPs whose traffic is masqueraded.
    ExternalIp,
    /// Others.
    ExternalIpLocal,
    /// Addresses of load balancers.
    LoadBalancer,
    /// Of these, those that not everybody may use.
    LoadBalancerFw,
    /// And those whose traffic is not masqueraded.
    LoadBalancerLocal,
    /// Sources that may use them: the address itself.
    LoadBalancerSourceIp,
    /// And networks.
    LoadBalancerSourceCidr,
    /// Node ports.
    NodePortTcp,
    /// Of these, those whose traffic is not masqueraded.
    NodePortLocalTcp,
    /// Node ports.
    NodePortUdp,
    /// Of these, those whose traffic is not masqueraded.
    NodePortLocalUdp,
    /// Node ports, on each of the node's addresses.
    NodePortSctpHash,
    /// Of these, those whose traffic is not masqueraded.
    NodePortLocalSctpHash,
    /// Ports on which load balancers ask the node.
    HealthCheckNodePort,
    /// Addresses of the link.
    IpvsIps,
}

/// An element of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// `hash:ip`
    Ip(IpAddr),
    /// `bitmap:port`
    Port(u16),
    /// `hash:ip,port`
    IpPort(IpAddr, Protocol, u16),
    /// `hash:ip,port,ip`
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    /// `hash:ip,port,net`
    IpPortNet(IpAddr, Protocol, u16, IpNet),
}

/// Some of the sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets(u32);

/// The longest name of a set. (Kernel: `IPSET_MAXNAMELEN`, less the final zero.)
const NAME_MAX: usize = 31;

/// Name after `KUBE-`, type, and comment of rules that ask a set. The comments are kube-proxy's.
const PROPERTIES: [(Set, &str, &str, &str); 17] = {
    use Set::*;
    [
        (
            LoopBack,
            "LOOP-BACK",
            "hash:ip,port,ip",
            "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
        ),
        (ClusterIp, "CLUSTER-IP", "hash:ip,port", "Kubernetes service cluster ip + port for masquerade purpose"),
        (
            ExternalIp,
            "EXTERNAL-IP",
            "hash:ip,port",
            "Kubernetes service external ip + port for masquerade and filter purpose",
        ),
        (
            ExternalIpLocal,
            "EXTERNAL-IP-LOCAL",
            "hash:ip,port",
            "Kubernetes service external ip + port with externalTrafficPolicy=local",
        ),
        (LoadBalancer, "LOAD-BALANCER", "hash:ip,port", "Kubernetes service lb portal"),
        (
            LoadBalancerFw,
            "LOAD-BALANCER-FW",
            "hash:ip,port",
            "Kubernetes service load balancer ip + port for load balancer with sourceRange",
        ),
        (
            LoadBalancerLocal,
            "LOAD-BALANCER-LOCAL",
            "hash:ip,port",
            "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
        ),
        (
            LoadBalancerSourceIp,
            "LOAD-BALANCER-SOURCE-IP",
            "hash:ip,port,ip",
            "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
        ),
        (
            LoadBalancerSourceCidr,
            "LOAD-BALANCER-SOURCE-CIDR",
            "hash:ip,port,net",
            "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
        ),
        (NodePortTcp, "NODE-PORT-TCP", "bitmap:port", "Kubernetes nodeport TCP port for masquerade purpose"),
        (
            NodePortLocalTcp,
            "NODE-PORT-LOCAL-TCP",
            "bitmap:port",
            "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
        ),
        (NodePortUdp, "NODE-PORT-UDP", "bitmap:port", "Kubernetes nodeport UDP port for masquerade purpose"),
        (
            NodePortLocalUdp,
            "NODE-PORT-LOCAL-UDP",
            "bitmap:port",
            "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
        ),
        (
            NodePortSctpHash,
            "NODE-PORT-SCTP-HASH",
            "hash:ip,port",
            "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
        ),
        (
            NodePortLocalSctpHash,
            "NODE-PORT-LOCAL-SCTP-HASH",
            "hash:ip,port",
            "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
        ),
        (HealthCheckNodePort, "HEALTH-CHECK-NODE-PORT", "bitmap:port", "Kubernetes health check node port"),
        (IpvsIps, "IPVS-IPS", "hash:ip", "Addresses on the ipvs interface"),
    ]
};

// === impl Set ===

impl Set {
    /// All of them, in kube-proxy's order.
    pub fn all() -> impl Iterator<Item = Set> {
        PROPERTIES.iter().map(|(set, ..)| *set)
    }

    fn properties(self) -> (&'static str, &'static str, &'static str) {
        let found = PROPERTIES.iter().find(|(set, ..)| *set == self);
        found.map(|(_, name, kind, comment)| (*name, *kind, *comment)).unwrap_or_default()
    }

    /// Its name in a family. Those of IPv6 are cut where the kernel takes no more.
    pub fn name(self, family: IpFamily) -> String {
        let prefix = match family {
            IpFamily::V4 => "KUBE-",
            IpFamily::V6 => "KUBE-6-",
        };
        prefix.chars().chain(self.properties().0.chars()).take(NAME_MAX).collect()
    }

    /// What `ipset create` takes after the name.
    pub fn definition(self, family: IpFamily) -> String {
        match self.properties().1 {
            bitmap @ "bitmap:port" => format!("{bitmap} range 0-65535"),
            hash => {
                let family = match family {
                    IpFamily::V4 => "inet",
                    IpFamily::V6 => "inet6",
                };
                format!("{hash} family {family} hashsize 1024 maxelem 65536")
            }
        }
    }

    /// The set of node ports of a protocol.
    pub fn of_node_ports(protocol: Protocol) -> Set {
        match protocol {
            Protocol::Tcp => Set::NodePortTcp,
            Protocol::Udp => Set::NodePortUdp,
            Protocol::Sctp => Set::NodePortSctpHash,
        }
    }

    /// The comment of rules that ask it.
    pub fn comment(self) -> &'static str {
        self.properties().2
    }
}

// === impl Sets ===

impl Sets {
    /// Adds one.
    pub fn insert(&mut self, set: Set) {
        self.0 |= 1 << set as u32;
    }

    /// Whether it is one of them.
    pub fn contains(self, set: Set) -> bool {
        self.0 & 1 << set as u32 != 0
    }
}

/// Those of either.
impl BitOr for Sets {
    type Output = Sets;

    fn bitor(self, other: Sets) -> Sets {
        Sets(self.0 | other.0)
    }
}

impl FromIterator<Set> for Sets {
    fn from_iter<I: IntoIterator<Item = Set>>(all: I) -> Sets {
        let mut sets = Sets::default();
        all.into_iter().for_each(|set| sets.insert(set));
        sets
    }
}

// === impl Entry ===

/// As `ipset save` prints it: a network that is one address has no length.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lower = |protocol: &Protocol| protocol.lower();
        match self {
            Entry::Ip(ip) => write!(f, "{ip}"),
            Entry::Port(port) => write!(f, "{port}"),
            Entry::IpPort(ip, protocol, port) => write!(f, "{ip},{}:{port}", lower(protocol)),
            Entry::IpPortIp(ip, protocol, port, other) => write!(f, "{ip},{}:{port},{other}", lower(protocol)),
            Entry::IpPortNet(ip, protocol, port, net) if *net == host_net(net.addr()) => {
                write!(f, "{ip},{}:{port},{}", lower(protocol), net.addr())
            }
            Entry::IpPortNet(ip, protocol, port, net) => write!(f, "{ip},{}:{port},{net}", lower(protocol)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sets() {
        let names: Vec<String> =
            IpFamily::BOTH.into_iter().flat_map(|family| Set::all().map(move |set| set.name(family))).collect();
        assert_eq!(names.len(), 34);
        for name in
            ["KUBE-LOOP-BACK", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", "KUBE-IPVS-IPS"]
        {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn entries_are_written_as_the_tool_prints_them() {
        let (ip, udp): (IpAddr, _) = ("10.0.0.1".parse().unwrap(), Protocol::Udp);
        let net = |text: &str| Entry::IpPortNet(ip, udp, 53, text.parse().unwrap());
        assert_eq!(net("192.0.2.0/24").to_string(), "10.0.0.1,udp:53,192.0.2.0/24");
        assert_eq!(net("192.0.2.1/32").to_string(), "10.0.0.1,udp:53,192.0.2.1");
        assert_eq!(Entry::IpPortIp(ip, Protocol::Sctp, 1, ip).to_string(), "10.0.0.1,sctp:1,10.0.0.1");
        assert_eq!(Entry::Port(30_080).to_string(), "30080");
        assert_eq!(Entry::Ip("fd00::1".parse().unwrap()).to_string(), "fd00::1");
    }
}
