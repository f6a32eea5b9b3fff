//! What the kernel holds beside what is asked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::diff::{Asked, Changes, Difference, ServerChange};
use super::netlink::{Address, RealServer, VirtualServer};
use super::ruleset::{Entry, Set};

/// What there is of one family, but for rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Virtual servers with their real ones, whoever made them.
    pub servers: BTreeMap<Address, (VirtualServer, Vec<RealServer>)>,
    /// Entries of our sets.
    pub entries: HashSet<(Set, Entry)>,
    /// Addresses of our link.
    pub addresses: BTreeSet<IpAddr>,
}

// === impl Found ===

impl Found {
    /// What the kernel holds once it has been told all that is asked for.
    pub fn told(asked: &Asked) -> Found {
        let servers = asked.servers().map(|server| (server.0.address, server)).collect();
        let entries: HashSet<_> = asked.entries().collect();
        let addresses = asked.links().collect();
        Found { servers, entries, addresses }
    }

    /// What leads from here to what is asked for. Virtual servers that nobody asks for go if they are a proxy's, and stay
    /// in networks that are `excluded`. (kube-proxy: they go whoever made them.)
    pub fn changes(&self, asked: &Asked, excluded: &[IpNet]) -> Changes {
        let mut servers: Vec<ServerChange> = Vec::new();
        for wanted in asked.servers() {
            servers.extend(change(self.servers.get(&wanted.0.address), wanted));
        }
        let is_excluded = |address: &Address| excluded.iter().any(|net| net.contains(&address.ip));
        let left = self.servers.keys().filter(|address| asked.owner(**address).is_none());
        let left = left.filter(|address| !is_excluded(address) && self.is_ours(address));
        servers.extend(left.copied().map(ServerChange::Remove));
        let entries: HashSet<_> = asked.entries().collect();
        let addresses: BTreeSet<IpAddr> = asked.links().collect();
        let mut changes = Changes {
            entries: Difference {
                add: entries.difference(&self.entries).copied().collect(),
                remove: self.entries.difference(&entries).copied().collect(),
            },
            addresses: Difference {
                add: addresses.difference(&self.addresses).copied().collect(),
                remove: self.addresses.difference(&addresses).copied().collect(),
            },
            servers,
            ..Changes::default()
        };
        changes.entries.add.sort_unstable();
        changes.entries.remove.sort_unstable();
        changes
    }

    /// Virtual servers that are neither asked for nor a proxy's.
    pub fn foreign<'a>(&'a self, asked: &'a Asked) -> impl Iterator<Item = Address> + 'a {
        let ours = |address: &&Address| asked.owner(**address).is_some() || self.is_ours(address);
        self.servers.keys().filter(move |address| !ours(address)).copied()
    }

    /// Virtual servers that a proxy made.
    pub fn ours(&self) -> impl Iterator<Item = Address> {
        self.servers.keys().copied().filter(|address| self.is_ours(address))
    }

    /// Whether a proxy made this virtual server: its address is one of the link's, or a set knows it. Both are there
    /// before a virtual server is made, and go after it.
    fn is_ours(&self, address: &Address) -> bool {
        let Address { protocol, ip, port } = *address;
        let knows = |set, entry| self.entries.contains(&(set, entry));
        let with_address =
            [Set::ClusterIp, Set::ExternalIp, Set::ExternalIpLocal, Set::LoadBalancer, Set::NodePortSctpHash];
        let by_port = Set::of_node_ports(protocol);
        self.addresses.contains(&ip)
            || knows(Set::IpvsIps, Entry::Ip(ip))
            || with_address.into_iter().any(|set| knows(set, Entry::IpPort(ip, protocol, port)))
            || knows(by_port, Entry::Port(port))
    }
}

/// What leads from one virtual server to another at the same address. A real server of another weight is added: it is
/// given its own again.
pub fn change(
    found: Option<&(VirtualServer, Vec<RealServer>)>,
    (wanted, reals): (VirtualServer, Vec<RealServer>),
) -> Option<ServerChange> {
    let Some((server, there)) = found else { return Some(ServerChange::Add(wanted, reals)) };
    let right: HashSet<_> = reals.iter().map(RealServer::at).collect();
    let reals = Difference {
        add: reals.iter().filter(|real| !there.contains(real)).copied().collect(),
        // One without weight is on its way out, which goes on.
        remove: there.iter().filter(|real| !right.contains(&real.at())).copied().collect(),
    };
    let set = (*server != wanted).then_some(wanted);
    let address = wanted.address;
    (set.is_some() || reals != Difference::default()).then_some(ServerChange::Change { address, set, reals })
}
