//! What balances besides rules: virtual servers, and the sets that rules ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ferrule::backend::ipvs::ruleset::Entry;
use ferrule::net::Protocol;
use ferrule::plan::Backend;

/// Virtual servers with their endpoints, each of which gets as many connections as the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct VirtualServers {
    pub(crate) servers: BTreeMap<(Protocol, IpAddr, u16), Vec<Backend>>,
    /// By name.
    pub(crate) sets: BTreeMap<String, BTreeSet<Entry>>,
}

// === impl VirtualServers ===

impl VirtualServers {
    /// Whether a set has these sides of a packet, of which these are source, destination and its port.
    pub(crate) fn has(
        &self,
        set: &str,
        sides: &str,
        protocol: Protocol,
        (source, destination, port): (IpAddr, IpAddr, u16),
    ) -> bool {
        let entries = self.sets.get(set).unwrap_or_else(|| panic!("there is no set {set}"));
        let sides: Vec<IpAddr> = (sides.split(','))
            .map(|side| match side {
                "src" => source,
                "dst" => destination,
                other => panic!("side {other}"),
            })
            .collect();
        // The side in the place of a port is the destination's with all rules here.
        entries.iter().any(|entry| match (entry, sides.as_slice()) {
            (Entry::Port(of), [_]) => *of == port,
            (Entry::Ip(ip), [side]) => ip == side,
            (Entry::IpPort(ip, of, at), [side, _]) => (ip, *of, *at) == (side, protocol, port),
            (Entry::IpPortIp(ip, of, at, other), [side, _, last]) => {
                (ip, *of, *at, other) == (side, protocol, port, last)
            }
            (Entry::IpPortNet(ip, of, at, net), [side, _, last]) => {
                (ip, *of, *at) == (side, protocol, port) && net.contains(last)
            }
            (entry, sides) => panic!("{entry:?} has no {sides:?}"),
        })
    }
}
