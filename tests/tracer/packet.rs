//! What a packet and its node are, and what can become of the packet: the words in which the tracer
//! answers, and whatever is compared with it.

use std::net::IpAddr;

use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::Backend;

/// The node, as far as rules ask about it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Addresses of its interfaces, besides loopback ones.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The first packet of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) protocol: Protocol,
    /// The interface it comes in through; `None` if a process of this node sends it.
    pub(crate) interface: Option<String>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

/// What can become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It reaches an endpoint.
    Delivered {
        backend: Backend,
        /// The endpoint sees an address of this node as its source.
        masqueraded: bool,
        /// The client will come back to this endpoint.
        remembers: bool,
    },
    /// The sender hears that nobody is there.
    Rejected,
    /// It vanishes.
    Dropped,
    /// No rule of ours concerns it: it goes where routing takes it.
    Untouched {
        /// Somebody marked it for source translation all the same: a fault.
        masqueraded: bool,
    },
}

// === impl World ===

impl World {
    /// Whether an address is one of the node's own, as `addrtype` and routing see it.
    pub(crate) fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }

    /// Whether something is so of a packet's source. Once it is masqueraded, that is one of the node's addresses; which one
    /// must make no difference.
    pub(crate) fn source_is(&self, packet: &Packet, masqueraded: bool, test: impl Fn(IpAddr) -> bool) -> bool {
        if !masqueraded {
            return test(packet.source);
        }
        let own = self.addresses.iter().filter(|ip| IpFamily::of(**ip) == packet.family());
        let mut answers = own.map(|ip| test(*ip));
        let first = answers.next().expect("the node has addresses");
        assert!(answers.all(|answer| answer == first), "it depends on the address that masquerading chose: {packet:?}");
        first
    }
}

// === impl Packet ===

impl Packet {
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(self.destination)
    }
}
