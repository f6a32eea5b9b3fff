//! What there is in node A's kernel besides rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::OnceLock;

use crate::tools::Variant;
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

/// Loads what the kernel has as modules: a path in a test's namespace does not load them. Gives the iptables programs that
/// fit it.
pub fn prepare() -> Variant {
    static PREPARED: OnceLock<Variant> = OnceLock::new();
    let load =
        |modules: &[&str]| Command::new("modprobe").arg("-qa").args(modules).status().expect("modprobe").success();
    *PREPARED.get_or_init(|| {
        assert!(
            load(&["ip_vs", "nf_conntrack", "bridge", "br_netfilter", "veth", "dummy"]),
            "this kernel has no IPVS: these tests are for those that tests/vm/boot and tests/vm/boot-qemu start"
        );
        // That of so small a machine is soon full.
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_max", "262144").unwrap();
        if load(&["nf_tables", "nft_compat", "nft_chain_nat"]) {
            return Variant::Nft;
        }
        assert!(load(&["ip6table_nat", "iptable_nat"]), "this kernel has no tables for iptables");
        Variant::Legacy
    })
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
