//! Who has which address in a [`World`](super::World). Every function has an IPv4 and an IPv6 answer.
//!
//! ```text
//!  client ---- outer ---- node-a ---- inner ---- node-b
//!  198.51.100.9       .1  | 192.168.9.1      .2  |
//!                         pods 10.244.1.5…       pods 10.244.2.5…
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Fabric;

/// An IP family: what a test is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// The node on which the proxy under test runs.
    A,
    /// The other node: only a router with pods behind it.
    B,
}

impl Node {
    /// Its name as a Kubernetes object.
    pub fn name(self) -> &'static str {
        match self {
            Node::A => "node-a",
            Node::B => "node-b",
        }
    }

    /// Its zone.
    pub fn zone(self) -> &'static str {
        match self {
            Node::A => "zone-a",
            Node::B => "zone-b",
        }
    }

    fn number(self) -> u8 {
        match self {
            Node::A => 1,
            Node::B => 2,
        }
    }
}

impl Family {
    /// Both.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// As in `ipFamilies` and `addressType`.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(v4)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(v6)),
        }
    }

    /// An address of the client outside: it has `CLIENTS` of them.
    pub fn client(self, n: u8) -> IpAddr {
        self.pick([198, 51, 100, 9 + n], [0xfd00, 0x51, 0, 0, 0, 0, 0, 9 + u16::from(n)])
    }

    /// Node A's main address, the one in its Node object, which the client can reach.
    pub fn node(self) -> IpAddr {
        self.pick([198, 51, 100, 1], [0xfd00, 0x51, 0, 0, 0, 0, 0, 1])
    }

    /// An end of the link between the nodes. Masqueraded packets to node B's pods have A's.
    pub fn inner(self, node: Node) -> IpAddr {
        let n = node.number();
        self.pick([192, 168, 9, n], [0xfd00, 0x9, 0, 0, 0, 0, 0, u16::from(n)])
    }

    /// A node's address towards its n-th pod: the bridge's, or that of the pod's own link.
    /// Masqueraded packets to node A's pods have A's.
    pub fn gateway(self, fabric: Fabric, node: Node, n: u8) -> IpAddr {
        match fabric {
            Fabric::Bridge => self.of_pod(node, 1),
            Fabric::Routed => self.of_pod(node, 129 + n),
        }
    }

    /// The address of a node's n-th pod.
    pub fn pod(self, node: Node, n: u8) -> IpAddr {
        self.of_pod(node, 5 + n)
    }

    fn of_pod(self, node: Node, host: u8) -> IpAddr {
        let k = node.number();
        self.pick([10, 244, k, host], [0xfd00, 0x10, 0x244, u16::from(k), 0, 0, 0, u16::from(host)])
    }

    /// Where all pods are.
    pub fn cluster_cidr(self) -> &'static str {
        match self {
            Family::V4 => "10.244.0.0/16",
            Family::V6 => "fd00:10:244::/48",
        }
    }

    /// Where the pods of a node are.
    pub fn pod_cidr(self, node: Node) -> String {
        match self {
            Family::V4 => format!("10.244.{}.0/24", node.number()),
            Family::V6 => format!("fd00:10:244:{}::/64", node.number()),
        }
    }

    /// The n-th cluster IP.
    pub fn cluster_ip(self, n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        self.pick([10, 96, high, low], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, n])
    }

    /// The network of all cluster IPs.
    pub fn service_cidr(self) -> &'static str {
        match self {
            Family::V4 => "10.96.0.0/16",
            Family::V6 => "fd00:10:96::/112",
        }
    }

    /// The n-th load balancer address.
    pub fn load_balancer(self, n: u8) -> IpAddr {
        self.pick([203, 0, 113, n], [0xfd00, 0x113, 0, 0, 0, 0, 0, u16::from(n)])
    }

    /// The n-th external IP.
    pub fn external(self, n: u8) -> IpAddr {
        self.pick([198, 18, 0, n], [0xfd00, 0x198, 0, 0, 0, 0, 0, u16::from(n)])
    }

    /// The loopback address.
    pub fn loopback(self) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// The prefix length of one address.
    pub fn host_bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// The prefix length of a link.
    pub fn link_bits(self) -> u8 {
        match self {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }
}
