//! What a packet and its node are, and what can become of the packet. The tracer and the oracle
//! answer in these words.

use std::collections::BTreeMap;
use std::fmt;
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
    /// Endpoints of the Service that this client was sent to before, and how many seconds ago.
    pub(crate) remembered: BTreeMap<Backend, u32>,
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

/// What may become of a packet, each with its chance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(BTreeMap<Verdict, f64>);

// === impl World ===

impl World {
    /// Whether an address is one of the node's own, as `addrtype` and routing see it.
    pub(crate) fn is_local(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.addresses.contains(&ip)
    }
}

// === impl Packet ===

impl Packet {
    pub(crate) fn family(&self) -> IpFamily {
        IpFamily::of(self.destination)
    }
}

// === impl Verdicts ===

impl Verdicts {
    pub(crate) fn add(&mut self, verdict: Verdict, chance: f64) {
        *self.0.entry(verdict).or_default() += chance;
    }

    /// A verdict that is certain.
    pub(crate) fn always(verdict: Verdict) -> Verdicts {
        Verdicts([(verdict, 1.0)].into())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Verdict, f64)> {
        self.0.iter().map(|(verdict, chance)| (*verdict, *chance))
    }

    /// Whether the packet reaches an endpoint, whichever.
    pub(crate) fn delivers(&self) -> bool {
        self.0.keys().all(|verdict| matches!(verdict, Verdict::Delivered { .. }))
    }

    /// The endpoints it can reach.
    pub(crate) fn backends(&self) -> impl Iterator<Item = Backend> {
        self.0.keys().filter_map(|verdict| match verdict {
            Verdict::Delivered { backend, .. } => Some(*backend),
            _ => None,
        })
    }

    /// Whether the packet goes nowhere.
    pub(crate) fn refuses(&self) -> bool {
        self.0.keys().all(|verdict| matches!(verdict, Verdict::Rejected | Verdict::Dropped))
    }

    /// The chances of all verdicts together: 1.
    pub(crate) fn total(&self) -> f64 {
        self.0.values().sum()
    }
}

/// Chances are equal if they differ by less than any weight a rule could have.
impl PartialEq for Verdicts {
    fn eq(&self, other: &Verdicts) -> bool {
        self.0.keys().eq(other.0.keys()) && self.0.values().zip(other.0.values()).all(|(a, b)| (a - b).abs() < 1e-9)
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(verdict, chance)| writeln!(f, "    {chance:.6} {verdict:?}"))
    }
}
