//! Rules as data, and their text.
//!
//! A [`Rule`] has the order `iptables-save` prints: addresses, interface, protocol, matches in the
//! order written, target. Its `Display` (in `render`) is byte for byte what `iptables-save` prints
//! for it, in both variants of the tools; `parse` is the inverse.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::names::ChainName;
use crate::net::{IpFamily, Protocol};
use crate::plan::{Backend, PodTraffic};

/// A table of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Packets altered in other ways; ferrule only has its canary here.
    Mangle,
    /// Decides which packets pass.
    Filter,
    /// Translates addresses of new connections.
    Nat,
}

/// A rule without its chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `-s`
    pub source: Option<Is<IpNet>>,
    /// `-d`
    pub destination: Option<Is<Addresses>>,
    /// `-i`; a name that ends in `+` stands for all that begin so.
    pub in_interface: Option<Is<String>>,
    /// `-p`
    pub protocol: Option<Protocol>,
    /// Matches, in the order in which they are tried.
    pub matches: Vec<Match>,
    /// What happens to packets that match everything; without one they go on.
    pub target: Option<Target>,
}

/// A condition that may be negated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Is<T> {
    /// Whether the condition is `!`.
    pub not: bool,
    /// What is compared with.
    pub value: T,
}

/// Addresses that have some bits in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// The first ones.
    Net(IpNet),
    /// Any others.
    Bits {
        /// What these bits are; the others are zero.
        value: IpAddr,
        /// The bits that count.
        mask: IpAddr,
    },
}

/// A match extension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// Holds always.
    Comment(Cow<'static, str>),
    /// State of the connection.
    ConnState(Is<ConnStates>),
    /// Counts packets in a named object of the kernel; holds always.
    Nfacct(Cow<'static, str>),
    /// The packet's mark, under a mask.
    Mark(Is<Marking>),
    /// The source is one of the node's own addresses.
    SourceIsLocal,
    /// The source is none of the node's own addresses.
    SourceIsNotLocal,
    /// The destination is one of the node's own addresses.
    DestinationIsLocal,
    /// It did not come in through a port of a bridge.
    NotFromBridge,
    /// A set of addresses has these sides of the packet (`dst,dst`: destination and its port; then perhaps `src`).
    InSet {
        /// Name of the set.
        set: Cow<'static, str>,
        /// Which sides, separated by commas.
        sides: Cow<'static, str>,
    },
    /// It belongs to a connection through a virtual server of IPVS.
    ThroughVirtualServer {
        /// Address of the virtual server.
        ip: IpAddr,
        /// Its protocol.
        protocol: Protocol,
        /// Its port.
        port: u16,
    },
    /// Source and destination are the same address. (A program for `-m bpf`: no module of the kernel
    /// compares them.)
    ToItself(IpFamily),
    /// The protocol's own match, with the destination port if it is compared.
    Transport(Protocol, Option<u16>),
    /// Holds for one in so many packets, at random.
    OneIn(u32),
    /// The source was put on the list at most so many seconds ago; older entries are dropped.
    RecentlySeen {
        /// Name of the list.
        list: ChainName,
        /// Age limit in seconds.
        seconds: u32,
        /// Family of the addresses on it.
        family: IpFamily,
    },
    /// Puts the source on the list; holds always.
    Remember {
        /// Name of the list.
        list: ChainName,
        /// Family of the addresses on it.
        family: IpFamily,
    },
}

/// A set of connection states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnStates(u8);

/// A mark and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marking {
    /// Bits set.
    pub value: u32,
    /// Bits that count.
    pub mask: u32,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Goes on in a chain, and returns if that does not decide.
    Jump(ChainName),
    /// Passes this table.
    Accept,
    /// Vanishes.
    Drop,
    /// Goes back to the calling chain.
    Return,
    /// Is refused with "port unreachable".
    Reject(IpFamily),
    /// Mark := (mark and not mask) xor value.
    SetMark(Marking),
    /// Gets the node's address as source.
    Masquerade {
        /// Whether source ports are drawn at random, which avoids races for the same one.
        random_fully: bool,
    },
    /// Gets another destination.
    Dnat(Backend),
}

// === impl Table ===

impl Table {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::Mangle => "mangle",
            Table::Filter => "filter",
            Table::Nat => "nat",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Is ===

impl<T> Is<T> {
    /// The condition as such.
    pub fn so(value: T) -> Is<T> {
        Is { not: false, value }
    }

    /// Its negation.
    pub fn not_so(value: T) -> Is<T> {
        Is { not: true, value }
    }
}

// === impl Addresses ===

impl Addresses {
    /// Those with these bits under a mask, as the tools keep them: a network where the mask is one's.
    pub fn under_mask(value: IpAddr, mask: IpAddr) -> Option<Addresses> {
        let value = match (value, mask) {
            (IpAddr::V4(value), IpAddr::V4(mask)) => IpAddr::from(value & mask),
            (IpAddr::V6(value), IpAddr::V6(mask)) => IpAddr::from(value & mask),
            _ => return None,
        };
        Some(match IpNet::with_netmask(value, mask) {
            Ok(net) => Addresses::Net(net),
            Err(_) => Addresses::Bits { value, mask },
        })
    }

    /// Whether an address is one of them.
    pub fn contains(&self, ip: &IpAddr) -> bool {
        match *self {
            Addresses::Net(net) => net.contains(ip),
            Addresses::Bits { value, mask } => match (*ip, mask) {
                (IpAddr::V4(ip), IpAddr::V4(mask)) => IpAddr::from(ip & mask) == value,
                (IpAddr::V6(ip), IpAddr::V6(mask)) => IpAddr::from(ip & mask) == value,
                _ => false,
            },
        }
    }
}

// === impl Marking ===

impl Marking {
    /// A bit that is set, whatever the others are.
    pub fn bit(bit: u32) -> Marking {
        Marking { value: bit, mask: bit }
    }
}

// === impl ConnStates ===

impl ConnStates {
    /// First packet of a connection.
    pub const NEW: ConnStates = ConnStates(1);
    /// Belongs to no connection and cannot begin one.
    pub const INVALID: ConnStates = ConnStates(2);
    /// Begins a connection that another one announced, or reports an error about one.
    pub const RELATED: ConnStates = ConnStates(4);
    /// Belongs to a connection that has been answered.
    pub const ESTABLISHED: ConnStates = ConnStates(8);
    /// Its destination was translated.
    pub const DNAT: ConnStates = ConnStates(16);

    const NAMES: [(ConnStates, &'static str); 5] = [
        (ConnStates::INVALID, "INVALID"),
        (ConnStates::NEW, "NEW"),
        (ConnStates::RELATED, "RELATED"),
        (ConnStates::ESTABLISHED, "ESTABLISHED"),
        (ConnStates::DNAT, "DNAT"),
    ];

    /// Both sets together.
    pub const fn or(self, other: ConnStates) -> ConnStates {
        ConnStates(self.0 | other.0)
    }

    /// Names of the states in the set, in the order in which the tools print them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        ConnStates::NAMES.iter().filter(move |(state, _)| self.intersects(*state)).map(|(_, name)| *name)
    }

    /// Whether the sets have a state in common.
    pub fn intersects(self, other: ConnStates) -> bool {
        self.0 & other.0 != 0
    }

    /// Reads `NEW,RELATED`.
    pub fn parse(text: &str) -> Option<ConnStates> {
        text.split(',').try_fold(ConnStates(0), |states, name| {
            let (state, _) = ConnStates::NAMES.iter().find(|(_, known)| *known == name)?;
            Some(states.or(*state))
        })
    }
}

// === impl Rule ===

impl Rule {
    /// A rule with a target and no conditions yet.
    pub fn to(target: Target) -> Rule {
        Rule { target: Some(target), ..Rule::default() }
    }

    /// A rule that jumps.
    pub fn jump(chain: ChainName) -> Rule {
        Rule::to(Target::Jump(chain))
    }

    /// With one more match.
    pub fn with(mut self, new: Match) -> Rule {
        self.matches.push(new);
        self
    }

    /// With a comment.
    pub fn comment(self, text: impl Into<Cow<'static, str>>) -> Rule {
        self.with(Match::Comment(text.into()))
    }

    /// From a network only.
    pub fn from(mut self, net: IpNet) -> Rule {
        self.source = Some(Is::so(net));
        self
    }

    /// From outside a network only.
    pub fn not_from(mut self, net: IpNet) -> Rule {
        self.source = Some(Is::not_so(net));
        self
    }

    /// From pods of this node only, or from anybody else.
    pub fn from_pods(mut self, Is { not, value }: Is<&PodTraffic>) -> Rule {
        match value {
            PodTraffic::Source(net) => self.source = Some(Is { not, value: *net }),
            PodTraffic::Interface(name) => self.in_interface = Some(Is { not, value: name.clone() }),
            PodTraffic::InterfacePrefix(prefix) => self.in_interface = Some(Is { not, value: format!("{prefix}+") }),
        }
        self
    }

    /// Sent to a network only.
    pub fn sent_to(mut self, net: IpNet) -> Rule {
        self.destination = Some(Is::so(Addresses::Net(net)));
        self
    }

    /// Not sent to a network.
    pub fn not_sent_to(mut self, net: IpNet) -> Rule {
        self.destination = Some(Is::not_so(Addresses::Net(net)));
        self
    }

    /// Sent to addresses with these bits under this mask only.
    pub fn sent_to_bits(mut self, value: IpAddr, mask: IpAddr) -> Rule {
        self.destination = Some(Is::so(Addresses::Bits { value, mask }));
        self
    }

    /// Of a protocol only, by the packet's header alone.
    pub fn of(mut self, protocol: Protocol) -> Rule {
        self.protocol = Some(protocol);
        self
    }

    /// Of a protocol only, with its match extension and perhaps a destination port.
    pub fn transport(mut self, protocol: Protocol, port: Option<u16>) -> Rule {
        self.protocol = Some(protocol);
        self.with(Match::Transport(protocol, port))
    }
}
