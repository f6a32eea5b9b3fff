//! What there is in node A's kernel besides rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Once;

use crate::world::World;

/// Virtual servers by protocol and address (`TCP 10.96.0.1:80`).
pub type Table = BTreeMap<String, Server>;

/// A virtual server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Its scheduler.
    pub scheduler: String,
    /// What is said after it: persistence, flags.
    pub rest: String,
    /// Weights of its real servers.
    pub weights: BTreeMap<SocketAddr, u32>,
    /// Their connections, established and other ones.
    pub connections: BTreeMap<SocketAddr, (u32, u32)>,
}

/// Loads what the kernel has as modules. A path in a test's namespace does not load them.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let modules =
            ["ip_vs", "nf_conntrack", "bridge", "br_netfilter", "veth", "dummy", "ip6table_nat", "iptable_nat"];
        let loaded = Command::new("modprobe").arg("-a").args(modules).status().expect("modprobe");
        assert!(loaded.success(), "this kernel has no IPVS: these tests are for the one that tests/vm/boot starts");
        // That of so small a machine is soon full.
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_max", "262144").unwrap();
    });
}

/// What node A's table of virtual servers holds.
pub fn table(world: &World) -> Table {
    let text = world.node.proc_net("ip_vs");
    let mut table = Table::new();
    let mut last = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [protocol @ ("TCP" | "UDP" | "SCTP"), at, scheduler, rest @ ..] => {
                let server = Server { scheduler: (*scheduler).to_owned(), rest: rest.join(" "), ..Server::default() };
                last = Some(format!("{protocol} {}", address(at)));
                table.insert(last.clone().unwrap(), server);
            }
            ["->", "RemoteAddress:Port", ..] | ["IP" | "Prot", ..] => {}
            ["->", at, _, weight, active, inactive] => {
                let server = table.get_mut(last.as_ref().unwrap()).unwrap();
                let at = address(at);
                server.weights.insert(at, weight.parse().unwrap());
                server.connections.insert(at, (active.parse().unwrap(), inactive.parse().unwrap()));
            }
            other => panic!("what is this? {other:?}"),
        }
    }
    table
}

/// `0A600001:0050`, or groups of hexadecimal digits in brackets.
fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.rsplit_once(':').unwrap();
    let port = u16::from_str_radix(port, 16).unwrap();
    let ip: IpAddr = match ip.strip_prefix('[') {
        Some(ip) => ip.trim_end_matches(']').parse().unwrap(),
        None => Ipv4Addr::from(u32::from_str_radix(ip, 16).unwrap()).into(),
    };
    SocketAddr::new(ip, port)
}

/// Addresses of the link of virtual servers; none if there is no such link.
pub fn link(world: &World) -> BTreeSet<IpAddr> {
    let output = world.node.try_exec("ip", &["-o", "addr", "show", "dev", "kube-ipvs0"], "");
    let text = String::from_utf8(output.stdout).unwrap();
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("inet"));
        words.nth(1)?.split('/').next()?.parse::<IpAddr>().ok()
    });
    addresses.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())).collect()
}

/// Entries of each set (`KUBE-CLUSTER-IP 10.96.0.1,tcp:80`), and sets without any by their name alone.
pub fn sets(world: &World) -> BTreeSet<String> {
    let text = world.node.exec::<&str>("ipset", &["save"], "");
    let lines = text.lines().map(|line| {
        let mut words = line.split(' ');
        match words.next() {
            Some("create") => words.next().unwrap().to_owned(),
            _ => words.collect::<Vec<_>>().join(" "),
        }
    });
    lines.collect()
}

/// A virtual server's key in a table.
pub fn key(protocol: &str, ip: IpAddr, port: u16) -> String {
    format!("{protocol} {}", SocketAddr::new(ip, port))
}
