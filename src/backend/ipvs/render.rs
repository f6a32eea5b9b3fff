//! The whole state as text, each part in the words of the tool that can load it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::compile::{JUMPS, MAGLEV, Style, glue, guard};
use super::diff::{Asked, ServerChange};
use super::names;
use super::netlink::{Address, Flags, RealServer, VirtualServer};
use super::ruleset::{Entry, Set};
use crate::backend::iptables::names::ChainName;
use crate::backend::iptables::ruleset::{Rule, Table};
use crate::net::{IpFamily, Protocol};
use crate::plan::Plan;

/// All that a Plan comes to in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    family: IpFamily,
    /// Virtual servers with their real ones.
    pub servers: BTreeMap<Address, (VirtualServer, Vec<RealServer>)>,
    /// Sets with their entries. Every set is there.
    pub sets: BTreeMap<Set, BTreeSet<Entry>>,
    /// Chains with their rules.
    pub chains: Vec<(Table, ChainName, Vec<Rule>)>,
}

// === impl Whole ===

impl Whole {
    /// Compiles a Plan.
    pub fn compile(plan: &Plan, style: &Style) -> Whole {
        let mut asked = Asked::new(plan.node.clone(), *style);
        let changes = asked.set(plan.services().iter().map(|(name, plan)| (name, Some(plan))));
        let servers = changes.servers.into_iter().filter_map(|change| match change {
            ServerChange::Add(server, reals) => Some((server.address, (server, reals))),
            ServerChange::Change { .. } | ServerChange::Remove(_) => None,
        });
        let mut sets: BTreeMap<Set, BTreeSet<Entry>> = Set::all().map(|set| (set, BTreeSet::new())).collect();
        for (set, entry) in changes.entries.add {
            sets.entry(set).or_default().insert(entry);
        }
        let mut chains = glue(&plan.node, style, asked.used());
        chains.push((Table::Filter, names::OUT_FILTER, changes.guards.add.into_iter().map(guard).collect()));
        Whole { family: plan.node.family, servers: servers.collect(), sets, chains }
    }

    /// Addresses of the link.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let entries = self.sets.get(&Set::IpvsIps).into_iter().flatten();
        entries.filter_map(|entry| match entry {
            Entry::Ip(ip) => Some(*ip),
            _ => None,
        })
    }

    /// Commands of `ip`, and input of `ipset restore`, `ipvsadm --restore` and `iptables-restore --noflush`
    /// (`ip6tables-restore` for IPv6), each after a comment that says so.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let (ip, tool) = match self.family {
            IpFamily::V4 => ("ip address", "iptables-restore"),
            IpFamily::V6 => ("ip -6 address", "ip6tables-restore"),
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "# addresses of the link\nip link add {} type dummy", names::LINK);
        for address in self.addresses() {
            let _ = writeln!(text, "{ip} add {address} dev {}", names::LINK);
        }
        text.push_str("# ipset restore\n");
        self.sets(&mut text);
        text.push_str("# ipvsadm --restore\n");
        self.virtual_servers(&mut text);
        let _ = writeln!(text, "# {tool} --noflush");
        self.rules(&mut text);
        text
    }

    fn sets(&self, text: &mut String) {
        for (set, entries) in &self.sets {
            let name = set.name(self.family);
            let _ = writeln!(text, "create {name} {}", set.definition(self.family));
            for entry in entries {
                let _ = writeln!(text, "add {name} {entry}");
            }
        }
    }

    fn virtual_servers(&self, text: &mut String) {
        for (address, (server, reals)) in &self.servers {
            let of = format!("{} {}", service_option(address.protocol), SocketAddr::new(address.ip, address.port));
            let _ = write!(text, "-A {of} -s {}", server.scheduler);
            if server.flags.contains(Flags::PERSISTENT) {
                let _ = write!(text, " -p {}", server.timeout);
            }
            if server.flags.contains(Flags::SCHEDULER_2) {
                // No other scheduler is given it.
                let _ = write!(text, " -b {MAGLEV}-port");
            }
            text.push('\n');
            for RealServer { ip, port, weight, .. } in reals {
                let _ = writeln!(text, "-a {of} -r {} -m -w {weight}", SocketAddr::new(*ip, *port));
            }
        }
    }

    fn rules(&self, text: &mut String) {
        for table in [Table::Nat, Table::Filter] {
            let chains = || self.chains.iter().filter(|(of, ..)| *of == table);
            let _ = writeln!(text, "*{table}");
            for (_, chain, _) in chains() {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            for (_, chain, rules) in chains() {
                for rule in rules {
                    let _ = writeln!(text, "-A {chain} {rule}");
                }
            }
            for jump in JUMPS.iter().filter(|jump| jump.table == table) {
                let _ = writeln!(text, "-I {} {}", jump.from, jump.rule());
            }
            text.push_str("COMMIT\n");
        }
    }
}

fn service_option(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    }
}
