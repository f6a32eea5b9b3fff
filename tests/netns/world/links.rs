//! The namespaces of a world, their links, addresses and routes.

use std::fmt::Write;
use std::net::IpAddr;

use super::{CLIENTS, Fabric, Family, Namespace, Node, Pod};

/// Namespaces that reach each other.
pub(super) struct Wired {
    pub(super) client: Namespace,
    pub(super) node: Namespace,
    pub(super) peer: Namespace,
    pub(super) pods: Vec<Pod>,
}

/// Makes and connects everything.
pub(super) fn wire(fabric: Fabric, pods_a: u8, pods_b: u8) -> Wired {
    let [client, node, peer] = ["client", "node-a", "node-b"].map(Namespace::create);
    let pod = |node: Node, n: u8| {
        let letter = if node == Node::A { 'a' } else { 'b' };
        let name = format!("{letter}{n}");
        Pod { netns: Namespace::create(&name), name, node, n }
    };
    let pods: Vec<Pod> = (0..pods_a).map(|n| pod(Node::A, n)).chain((0..pods_b).map(|n| pod(Node::B, n))).collect();

    // Before there are links: these take their settings when they are made.
    client.sysctl(HOST);
    pods.iter().for_each(|pod| pod.netns.sysctl(HOST));
    for router in [&node, &peer] {
        router.sysctl(HOST);
        router.sysctl(ROUTER);
        router.sysctl_if_there(LIMITS);
    }
    if fabric == Fabric::Bridge {
        // Otherwise answers between two pods of one bridge pass by, still with the pod's address.
        let _ = std::process::Command::new("modprobe").args(["-qa", "br_netfilter"]).status();
        node.sysctl(&[("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")]);
    }

    let mut links = Batch::default();
    links.line(format!("link add outer type veth peer name eth0 netns {}", client.path()));
    links.line(format!("link add inner type veth peer name inner netns {}", peer.path()));
    links.line("link set outer up");
    links.line("link set inner up");
    for family in Family::BOTH {
        links.address(family.node(), family.link_bits(), "outer");
        links.address(family.inner(Node::A), family.link_bits(), "inner");
    }
    links.pods(fabric, Node::A, &pods);
    for family in Family::BOTH {
        links.route(&family.pod_cidr(Node::B), &format!("via {}", family.inner(Node::B)));
        // Without a default route a Service address is unreachable before any rule sees it.
        links.route("default", &format!("via {}", family.client(0)));
    }
    links.run(&node);

    let mut links = Batch::default();
    links.line("link set inner up");
    for family in Family::BOTH {
        links.address(family.inner(Node::B), family.link_bits(), "inner");
    }
    links.pods(fabric, Node::B, &pods);
    for family in Family::BOTH {
        links.route("default", &format!("via {}", family.inner(Node::A)));
    }
    links.run(&peer);

    let mut links = Batch::default();
    links.line("link set eth0 up");
    for family in Family::BOTH {
        for n in 0..CLIENTS {
            // Only the first is for connections that do not ask for an address.
            let extra = if n == 0 { "eth0" } else { "eth0 preferred_lft 0" };
            links.address(family.client(n), family.link_bits(), extra);
        }
        links.route("default", &format!("via {}", family.node()));
    }
    links.run(&client);

    for pod in &pods {
        let mut links = Batch::default();
        links.line("link set eth0 up");
        for family in Family::BOTH {
            let gateway = family.gateway(fabric, pod.node, pod.n);
            match fabric {
                Fabric::Bridge => links.address(pod.ip(family), family.link_bits(), "eth0"),
                Fabric::Routed => {
                    links.address(pod.ip(family), family.host_bits(), "eth0");
                    links.route(&gateway.to_string(), "dev eth0");
                }
            }
            links.route("default", &format!("via {gateway}"));
        }
        links.run(&pod.netns);
    }
    Wired { client, node, peer, pods }
}

/// For everyone. Duplicate address detection would delay every IPv6 address by a second.
const HOST: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
];

/// For nodes. The limits on ICMP errors would turn some of many refusals into silence.
const ROUTER: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
];

/// For nodes, where a namespace has limits of its own. (Before Linux 6.13, they are the host's.)
const LIMITS: &[(&str, &str)] = &[("net/ipv4/icmp_msgs_per_sec", "100000"), ("net/ipv4/icmp_msgs_burst", "100000")];

/// Lines for one `ip -batch`.
#[derive(Default)]
struct Batch(String);

impl Batch {
    fn line(&mut self, line: impl AsRef<str>) {
        writeln!(self.0, "{}", line.as_ref()).unwrap();
    }

    fn address(&mut self, address: IpAddr, bits: u8, link: &str) {
        self.line(format!("addr add {address}/{bits} dev {link}"));
    }

    /// `ip` takes the family from the addresses.
    fn route(&mut self, to: &str, how: &str) {
        self.line(format!("route add {to} {how}"));
    }

    /// The node's side of its pods.
    fn pods(&mut self, fabric: Fabric, node: Node, pods: &[Pod]) {
        if fabric == Fabric::Bridge {
            // With snooping a bridge sends packets of its own, which the tests' would be taken for.
            self.line("link add cni0 type bridge mcast_snooping 0");
            self.line("link set cni0 up");
            for family in Family::BOTH {
                self.address(family.gateway(fabric, node, 0), family.link_bits(), "cni0");
            }
        }
        for pod in pods.iter().filter(|pod| pod.node == node) {
            let link = format!("veth-{}", pod.name);
            self.line(format!("link add {link} type veth peer name eth0 netns {}", pod.netns.path()));
            if fabric == Fabric::Bridge {
                self.line(format!("link set {link} master cni0"));
                // A pod that is load-balanced to itself gets its packet back on the same port.
                self.line(format!("link set {link} type bridge_slave hairpin on"));
            }
            self.line(format!("link set {link} up"));
            if fabric == Fabric::Routed {
                for family in Family::BOTH {
                    self.address(family.gateway(fabric, node, pod.n), family.host_bits(), &link);
                    self.route(&pod.ip(family).to_string(), &format!("dev {link}"));
                }
            }
        }
    }

    fn run(mut self, netns: &Namespace) {
        self.line("link set lo up");
        netns.exec("ip", &["-batch", "-"], &self.0);
    }
}
