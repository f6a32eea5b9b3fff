//! What a table consists of: sets and maps, elements, chains, rules. (Kernel: nf_tables.)

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::Protocol;
use crate::plan::Backend;

/// A set or a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// Addresses of Services.
    ClusterIps,
    /// External IPs and load balancers' addresses.
    ExternalIps,
    /// Addresses of the node on which node ports are served.
    NodePortIps,
    /// Local endpoints, as source and destination of one packet.
    Hairpins,
    /// Frontends whose endpoints are more than half of so many and no more than these: the power of two.
    Sized(Site, Way, u8),
    /// Endpoints, under a frontend and a number.
    Endpoints(Site, Way),
    /// Frontends for which sources are always translated.
    Masquerade(Site),
    /// Frontends that treat what comes from this node apart ([`Way::Inside`]).
    Apart(Site),
    /// Frontends whose connections are refused.
    Reject(Site),
    /// Frontends whose connections are dropped.
    Drop(Site),
    /// Frontends that not everybody may use.
    Restricted,
    /// Who may use them.
    AllowedSources,
    /// Labels of pools that keep a client with its endpoint, under frontends.
    Labels(Site, Way),
    /// Labels of those that do for so many seconds.
    Kept(u32),
    /// Which endpoint a client got, under a label. The kernel adds to it by itself.
    Clients,
}

/// How a frontend is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// By address, protocol and port.
    Address,
    /// By protocol and port alone, on all addresses that serve node ports.
    NodePort,
}

/// Which of a frontend's ways to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The usual one.
    Usual,
    /// That of connections that come from this node itself, where it differs.
    Inside,
}

/// What an element is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// An address.
    Ip(IpAddr),
    /// A frontend.
    Frontend(Frontend),
    /// One of a frontend's endpoints.
    Slot(Frontend, u32),
    /// A packet from an endpoint to itself.
    Hairpin(IpAddr, Protocol, u16),
    /// A frontend and who may use it.
    Allowed(Frontend, IpNet),
    /// A pool of a Service port.
    Label(Label),
    /// A pool and one of its clients.
    Client(Label, IpAddr),
}

/// By this a connection is known as one to a pool of a Service port that keeps clients with their endpoints, whichever
/// frontend they use. (Kernel: `ct label`, 128 bits that belong to a connection.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(pub u128);

/// What is found in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Where a connection goes.
    Endpoint(Backend),
    /// To whom it belongs.
    Label(Label),
}

/// Where connections come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// At an address of its own.
    Address(IpAddr, Protocol, u16),
    /// At a port of the node.
    NodePort(Protocol, u16),
}

/// An element of a set, or of a map, which then has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Where it is.
    pub set: Set,
    /// What it is found by.
    pub key: Key,
    /// What is found.
    pub value: Option<Value>,
}

/// A field of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ipv4_addr` or `ipv6_addr`
    Address,
    /// `inet_proto`
    Protocol,
    /// `inet_service`
    Port,
    /// A number in the machine's own order, as `numgen` gives it.
    Number,
    /// A label of connections. That type has no name that `nft` knows: it is `ipv6_addr` to it, which is as long.
    Label,
}

/// What all elements of a set look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Of keys.
    pub key: &'static [Field],
    /// Of values, in a map.
    pub value: Option<&'static [Field]>,
    /// Keys are ranges in their last field.
    pub interval: bool,
    /// The kernel adds elements by itself, which end after a time.
    pub dynamic: bool,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where in the kernel packets come to it, if not from other chains.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Where packets come to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`
    pub kind: &'static str,
    /// `prerouting`, …
    pub hook: &'static str,
    /// Chains of lower ones come first.
    pub priority: i16,
}

/// A rule: if all of it matches, what it does is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What must hold.
    pub matches: Vec<Match>,
    /// What is done.
    pub action: Action,
    /// For people.
    pub comment: Option<&'static str>,
}

/// Something a packet may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// These of it are in a set, or are not.
    In {
        /// What is looked up.
        key: &'static [Of],
        /// Where.
        set: Set,
        /// Whether it must not be there.
        not: bool,
    },
    /// Its source is in a network.
    Source(IpNet),
    /// Its source is not.
    NotSource(IpNet),
    /// Its destination is in a network.
    Destination(IpNet),
    /// Its destination is not.
    NotDestination(IpNet),
    /// It came in by this interface, or by one whose name so begins; or did not.
    InInterface {
        /// Name, or beginning of it.
        name: String,
        /// Which of the two.
        prefix: bool,
        /// Whether it did not.
        not: bool,
    },
    /// Its source is an address of the node.
    FromNode,
    /// Its destination is an address of the node.
    ToNode,
    /// It begins a connection.
    New,
    /// It does not belong to a connection, nor to one that belongs to a connection.
    NotEstablished,
    /// Its connection's destination was translated.
    Translated,
    /// It was not.
    NotTranslated,
    /// It carries any of these bits as its mark.
    Marked(u32),
}

/// Something of a packet that can be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Source address.
    Source,
    /// Destination address.
    Destination,
    /// Transport protocol.
    Protocol,
    /// Destination port.
    Port,
    /// The connection's label.
    Label,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes through another chain and comes back.
    Jump(String),
    /// Goes on in another chain instead of this one.
    Goto(String),
    /// Sets bits of the mark.
    Mark(u32),
    /// Translates the source, and takes bits off the mark.
    Unmark(u32),
    /// Translates the source.
    Masquerade,
    /// Refuses.
    Reject,
    /// Drops.
    Drop,
    /// Translates the destination to what is found; if nothing is, goes on.
    Translate {
        /// What is looked up.
        key: &'static [Of],
        /// After it, a random number below this one, if any.
        below: Option<u32>,
        /// Where.
        map: Set,
    },
    /// Labels the connection with what is found under these.
    Label(&'static [Of], Set),
    /// Remembers for so many seconds that the client, under the connection's label, got this destination.
    Remember(u32),
}

/// Largest power of two of endpoints.
pub const MAX_SIZE: u8 = 16;
/// How many clients are remembered at most.
pub const CLIENTS_MAX: u32 = 1 << 20;

/// A frontend by address.
pub const BY_ADDRESS: &[Of] = &[Of::Destination, Of::Protocol, Of::Port];
/// A frontend by node port.
pub const BY_NODE_PORT: &[Of] = &[Of::Protocol, Of::Port];

// === impl Set ===

impl Set {
    /// Its name in the table.
    pub fn name(self) -> String {
        let inside = |way| if way == Way::Inside { "inside-" } else { "" };
        match self {
            Set::ClusterIps => "cluster-ips".to_owned(),
            Set::ExternalIps => "external-ips".to_owned(),
            Set::NodePortIps => "nodeport-ips".to_owned(),
            Set::Hairpins => "hairpin-connections".to_owned(),
            Set::Sized(site, way, size) => format!("{}{}-{}", inside(way), site.plural(), 1_u32 << size),
            Set::Endpoints(Site::Address, way) => format!("{}endpoints", inside(way)),
            Set::Endpoints(Site::NodePort, way) => format!("{}nodeport-endpoints", inside(way)),
            Set::Masquerade(site) => format!("masquerade-{}", site.plural()),
            Set::Apart(site) => format!("local-{}", site.plural()),
            Set::Reject(site) => format!("reject-{}", site.plural()),
            Set::Drop(site) => format!("drop-{}", site.plural()),
            Set::Restricted => "restricted-services".to_owned(),
            Set::AllowedSources => "allowed-sources".to_owned(),
            Set::Labels(site, way) => format!("{}client-ip-{}", inside(way), site.plural()),
            Set::Kept(seconds) => format!("client-ip-{seconds}s"),
            Set::Clients => "client-ip-endpoints".to_owned(),
        }
    }

    /// Whether several Service ports may want the same element of it.
    pub fn is_shared(self) -> bool {
        matches!(self, Set::ClusterIps | Set::ExternalIps | Set::NodePortIps | Set::Hairpins)
    }

    /// What it is for, to be read in listings.
    pub fn comment(self) -> String {
        match self {
            Set::ClusterIps => "Active ClusterIPs".to_owned(),
            Set::ExternalIps => "external IPs and load balancer IPs of Services".to_owned(),
            Set::NodePortIps => "IPs that accept NodePort traffic".to_owned(),
            Set::Hairpins => "service hairpin connections".to_owned(),
            Set::Sized(_, Way::Usual, 0) => "with one endpoint".to_owned(),
            Set::Sized(_, Way::Usual, size) => format!("with up to {} endpoints", 1_u32 << size),
            Set::Sized(_, Way::Inside, _) => "the same, for what comes from this node".to_owned(),
            Set::Endpoints(_, Way::Usual) => "endpoints by number".to_owned(),
            Set::Endpoints(_, Way::Inside) => "the same, for what comes from this node".to_owned(),
            Set::Masquerade(_) => "externalTrafficPolicy Cluster: sources are translated".to_owned(),
            Set::Apart(_) => "externalTrafficPolicy Local: what comes from this node may go anywhere".to_owned(),
            Set::Reject(_) => "without any endpoint".to_owned(),
            Set::Drop(_) => "without an endpoint on this node".to_owned(),
            Set::Restricted => "with loadBalancerSourceRanges".to_owned(),
            Set::AllowedSources => "loadBalancerSourceRanges".to_owned(),
            Set::Labels(..) => "sessionAffinity ClientIP: labels of connections".to_owned(),
            Set::Kept(seconds) => format!("sessionAffinity ClientIP for {seconds} s"),
            Set::Clients => "sessionAffinity ClientIP: who got which endpoint".to_owned(),
        }
    }

    /// What its elements look like.
    pub fn shape(self) -> Shape {
        use Field::{Address, Label, Number, Port, Protocol};
        const ENDPOINT: &[Field] = &[Address, Port];
        const BY_ADDRESS: &[Field] = &[Address, Protocol, Port];
        const BY_NODE_PORT: &[Field] = &[Protocol, Port];
        let plain = |key| Shape { key, value: None, interval: false, dynamic: false };
        match self {
            Set::ClusterIps | Set::ExternalIps | Set::NodePortIps => plain(&[Address]),
            Set::Hairpins => plain(&[Address, Address, Protocol, Port]),
            Set::Endpoints(site, _) => Shape {
                value: Some(ENDPOINT),
                ..plain(match site {
                    Site::Address => &[Address, Protocol, Port, Number],
                    Site::NodePort => &[Protocol, Port, Number],
                })
            },
            Set::Sized(site, ..) | Set::Masquerade(site) | Set::Apart(site) | Set::Reject(site) | Set::Drop(site) => {
                plain(match site {
                    Site::Address => BY_ADDRESS,
                    Site::NodePort => BY_NODE_PORT,
                })
            }
            Set::Labels(site, _) => Shape { value: Some(&[Label]), ..Set::Reject(site).shape() },
            Set::Kept(_) => plain(&[Label]),
            Set::Restricted => plain(BY_ADDRESS),
            Set::AllowedSources => Shape { interval: true, ..plain(&[Address, Protocol, Port, Address]) },
            Set::Clients => Shape { value: Some(ENDPOINT), dynamic: true, ..plain(&[Label, Address]) },
        }
    }

    /// All there are but those for affinity.
    pub fn constant() -> Vec<Set> {
        let mut sets = vec![Set::ClusterIps, Set::ExternalIps, Set::NodePortIps, Set::Hairpins];
        for site in Site::ALL {
            for way in Way::ALL {
                sets.extend([Set::Endpoints(site, way), Set::Labels(site, way)]);
                sets.extend((0..=MAX_SIZE).map(|size| Set::Sized(site, way, size)));
            }
            sets.extend([Set::Masquerade(site), Set::Apart(site), Set::Reject(site), Set::Drop(site)]);
        }
        sets.extend([Set::Restricted, Set::AllowedSources, Set::Clients]);
        sets
    }

    /// The set of that name, if ours can have it.
    pub fn named(name: &str) -> Option<Set> {
        let kept = || Some(Set::Kept(name.strip_prefix("client-ip-")?.strip_suffix('s')?.parse().ok()?));
        Set::constant().into_iter().find(|set| set.name() == name).or_else(kept)
    }
}

impl Site {
    /// Both.
    pub const ALL: [Site; 2] = [Site::Address, Site::NodePort];

    /// What of a packet is looked up.
    pub fn key(self) -> &'static [Of] {
        match self {
            Site::Address => BY_ADDRESS,
            Site::NodePort => BY_NODE_PORT,
        }
    }

    /// The word for such frontends in names.
    pub fn plural(self) -> &'static str {
        match self {
            Site::Address => "services",
            Site::NodePort => "nodeports",
        }
    }
}

impl Way {
    /// Both.
    pub const ALL: [Way; 2] = [Way::Usual, Way::Inside];
}

impl Frontend {
    /// How it is known.
    pub fn site(self) -> Site {
        match self {
            Frontend::Address(..) => Site::Address,
            Frontend::NodePort(..) => Site::NodePort,
        }
    }
}

// === impl Value ===

impl Value {
    /// The endpoint, if it is one.
    pub fn endpoint(self) -> Option<Backend> {
        match self {
            Value::Endpoint(endpoint) => Some(endpoint),
            Value::Label(_) => None,
        }
    }
}

// === impl Rule ===

impl Rule {
    /// A rule that does something with all packets.
    pub fn new(action: Action) -> Rule {
        Rule { matches: Vec::new(), action, comment: None }
    }

    /// The rule, if this holds, too.
    #[must_use]
    pub fn when(mut self, condition: Match) -> Rule {
        self.matches.push(condition);
        self
    }

    /// The rule, if these are in a set, too.
    #[must_use]
    pub fn when_in(self, key: &'static [Of], set: Set) -> Rule {
        self.when(Match::In { key, set, not: false })
    }

    /// The rule with words about it.
    #[must_use]
    pub fn about(mut self, comment: &'static str) -> Rule {
        self.comment = Some(comment);
        self
    }
}
