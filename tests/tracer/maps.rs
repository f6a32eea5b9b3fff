//! What a kernel with these nftables chains and sets does with a packet.
//!
//! Follows the first packet of a connection as the tracer of iptables rules does, through every chain at the hooks on its
//! way, in the order of their priorities. Where numbers are drawn, every outcome is followed, and ways that have become the
//! same go on as one. Knows chains, sets and elements only: nothing of Services, nor of how these come about.
//!
//! What the kernel or its tool would refuse is a fault of the table, and ends the test: elements that do not look as their
//! set says, statements in chains that cannot have them, chains that call each other too deeply.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ferrule::backend::nftables::compile::Base;
use ferrule::backend::nftables::ruleset::{
    Action, Chain, Element, Field, Frontend, Hook, Key, Label, Match, Of, Rule, Set, Value,
};
use ferrule::net::Protocol;
use ferrule::plan::Backend;
use ipnet::IpNet;

use self::Step::{At, Loopback, Route};
use crate::tracer::{Packet, Verdict, World};

/// As deep as the kernel lets chains call each other.
const DEPTH_MAX: usize = 16;

/// A table of a family.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    /// By hook, in the order in which packets come to them.
    hooks: BTreeMap<&'static str, Vec<(Hook, &'a Chain)>>,
    chains: BTreeMap<&'a str, &'a Chain>,
    sets: BTreeMap<Set, Elements>,
}

/// One way a packet can go.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// Where it ends.
    pub(crate) verdict: Verdict,
    /// How likely the packet is to go this way.
    pub(crate) chance: f64,
    /// For how many seconds the client will come back to this endpoint, and under which label that is remembered.
    pub(crate) remembered: Option<(Label, u32)>,
}

/// One field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Datum {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    Number(u32),
    Label(Label),
}

/// What is in a set or map.
#[derive(Debug, Default)]
struct Elements {
    exact: BTreeMap<Vec<Datum>, Option<Value>>,
    /// Those that are ranges in their last field.
    ranges: Vec<(Vec<Datum>, IpNet)>,
}

/// A stretch of a packet's way.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A hook.
    At(&'static str),
    /// It is decided where the packet goes.
    Route,
    /// The interface by which a node talks to itself.
    Loopback,
}

/// What connections have without a label.
const UNLABELLED: Label = Label(0);

/// What comes in.
const ENTERS: &[Step] = &[At("prerouting"), Route];
/// And is for the node.
const STAYS: &[Step] = &[At("input")];
/// And is for somebody else.
const PASSES: &[Step] = &[At("forward"), At("postrouting")];
/// What the node sends.
const LEAVES: &[Step] = &[At("output"), At("postrouting"), Route];
/// And is for itself.
const RETURNS: &[Step] = &[Loopback, At("prerouting"), At("input")];

/// What rules can see of a packet, and what they did to it so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    interface: Interface,
    destination: IpAddr,
    port: u16,
    mark: u32,
    /// Where its destination was translated to.
    translated: Option<Backend>,
    /// Its source is now an address of this node; the kernel chooses which.
    masqueraded: bool,
    /// Whose connection it is.
    label: Label,
    /// For how many seconds its client is remembered, and under which label.
    remembered: Option<(Label, u32)>,
}

/// By which interface a packet came to the hook it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Interface {
    /// The one it came to the node by, if it did.
    First,
    Loopback,
}

/// How a chain ends for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// It comes to the next chain of the hook.
    Accept,
    Drop,
    Reject,
    /// It goes on after the rule that led here.
    Return,
}

/// Every end a chain can have for a packet, what the packet is then, and the chance of it.
type Ends = BTreeMap<(End, State), f64>;

/// A table, its node, and the packet.
struct Walk<'a> {
    table: &'a Table<'a>,
    world: &'a World,
    packet: &'a Packet,
}

// === impl Table ===

impl<'a> Table<'a> {
    /// What there is, with these elements besides.
    pub(crate) fn new(base: &'a Base, elements: impl IntoIterator<Item = Element>) -> Table<'a> {
        let mut sets: BTreeMap<Set, Elements> = base.sets.iter().map(|set| (*set, Elements::default())).collect();
        assert_eq!(sets.len(), base.sets.len(), "a set twice");
        let ips = base.node_port_ips.iter();
        let ips = ips.map(|ip| Element { set: Set::NodePortIps, key: Key::Ip(*ip), value: None });
        for element in ips.chain(elements) {
            let set = sets.get_mut(&element.set).unwrap_or_else(|| panic!("there is no set for {element:?}"));
            set.add(&element);
        }
        let all = || base.netlink_chains.iter().chain(&base.chains);
        let chains: BTreeMap<&str, &Chain> = all().map(|chain| (chain.name.as_str(), chain)).collect();
        assert_eq!(chains.len(), all().count(), "a chain twice");
        let mut hooks: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for chain in all() {
            if let Some(hook) = chain.hook {
                hooks.entry(hook.hook).or_default().push((hook, chain));
            }
        }
        for chains in hooks.values_mut() {
            chains.sort_by_key(|(hook, _)| hook.priority);
        }
        Table { hooks, chains, sets }
    }

    /// Every way the packet can go.
    pub(crate) fn ways(&self, world: &World, packet: &Packet) -> Vec<Way> {
        let walk = Walk { table: self, world, packet };
        let state = State {
            interface: Interface::First,
            destination: packet.destination,
            port: packet.port,
            mark: 0,
            translated: None,
            masqueraded: false,
            label: UNLABELLED,
            remembered: None,
        };
        let mut ways = Vec::new();
        let first = if packet.interface.is_some() { ENTERS } else { LEAVES };
        walk.follow(first, state, 1.0, &mut ways);
        let total: f64 = ways.iter().map(|way| way.chance).sum();
        assert!((total - 1.0).abs() < 1e-9, "the chances of all ways add up to {total}");
        ways
    }

    fn chain(&self, name: &str) -> &'a Chain {
        self.chains.get(name).unwrap_or_else(|| panic!("there is no chain {name}"))
    }

    fn set(&self, set: Set) -> &Elements {
        self.sets.get(&set).unwrap_or_else(|| panic!("there is no set {set:?}"))
    }
}

// === impl Datum ===

impl Datum {
    fn field(self) -> Field {
        match self {
            Datum::Address(_) => Field::Address,
            Datum::Protocol(_) => Field::Protocol,
            Datum::Port(_) => Field::Port,
            Datum::Number(_) => Field::Number,
            Datum::Label(_) => Field::Label,
        }
    }
}

/// Fields as the kernel has them, one after the other; the last one may be a range.
fn fields(key: Key) -> (Vec<Datum>, Option<IpNet>) {
    use Datum::{Address, Number, Port};
    let frontend = |frontend| match frontend {
        Frontend::Address(ip, protocol, port) => vec![Address(ip), Datum::Protocol(protocol), Port(port)],
        Frontend::NodePort(protocol, port) => vec![Datum::Protocol(protocol), Port(port)],
    };
    let exact = match key {
        Key::Ip(ip) => vec![Address(ip)],
        Key::Frontend(at) => frontend(at),
        Key::Slot(at, number) => [frontend(at), vec![Number(number)]].concat(),
        Key::Hairpin(ip, protocol, port) => vec![Address(ip), Address(ip), Datum::Protocol(protocol), Port(port)],
        Key::Allowed(at, net) => return (frontend(at), Some(net)),
        Key::Label(label) => vec![Datum::Label(label)],
        Key::Client(label, ip) => vec![Datum::Label(label), Address(ip)],
    };
    (exact, None)
}

fn value_fields(value: Value) -> &'static [Field] {
    match value {
        Value::Endpoint(_) => &[Field::Address, Field::Port],
        Value::Label(_) => &[Field::Label],
    }
}

// === impl Elements ===

impl Elements {
    fn add(&mut self, element: &Element) {
        let Element { set, key, value } = element;
        let shape = set.shape();
        let (exact, range) = fields(*key);
        let last = range.is_some().then_some(Field::Address);
        let looks: Vec<Field> = exact.iter().map(|datum| datum.field()).chain(last).collect();
        let fits = looks == shape.key && range.is_some() == shape.interval && value.map(value_fields) == shape.value;
        assert!(fits, "{element:?} does not look as its set says");
        match range {
            None => assert!(self.exact.insert(exact, *value).is_none(), "{element:?} twice"),
            Some(net) => {
                let overlaps = |other: &IpNet| other.contains(&net) || net.contains(other);
                let free = !self.ranges.iter().any(|(fields, other)| *fields == exact && overlaps(other));
                assert!(free, "{element:?} overlaps another");
                self.ranges.push((exact, net));
            }
        }
    }

    /// What an element with this key has, if there is one.
    fn find(&self, key: &[Datum]) -> Option<Option<Value>> {
        let (last, before) = key.split_last()?;
        let in_range = |(fields, net): &(Vec<Datum>, IpNet)| match last {
            Datum::Address(ip) => fields == before && net.contains(ip),
            _ => false,
        };
        let exact = self.exact.get(key).copied();
        exact.or_else(|| self.ranges.iter().any(in_range).then_some(None))
    }

    /// What is found under this key and a number below that.
    fn below(&self, key: &[Datum], number: u32) -> impl Iterator<Item = Backend> {
        let bound = |number| [key, &[Datum::Number(number)]].concat();
        self.exact.range(bound(0)..bound(number)).filter_map(|(_, value)| value.and_then(Value::endpoint))
    }
}

// === impl Walk ===

impl<'a> Walk<'a> {
    fn follow(&self, steps: &[Step], mut state: State, chance: f64, ways: &mut Vec<Way>) {
        let Some((step, rest)) = steps.split_first() else {
            ways.push(arrives(state, chance));
            return;
        };
        match step {
            Route => {
                let next = match (self.packet.interface.is_some(), self.world.is_local(state.destination)) {
                    (true, true) => STAYS,
                    (true, false) => PASSES,
                    (false, true) => RETURNS,
                    (false, false) => &[],
                };
                self.follow(next, state, chance, ways);
            }
            Loopback => {
                state.interface = Interface::Loopback;
                self.follow(rest, state, chance, ways);
            }
            At(hook) => {
                for ((end, state), chance) in self.hook(hook, state, chance) {
                    let verdict = match end {
                        End::Accept => {
                            self.follow(rest, state, chance, ways);
                            continue;
                        }
                        End::Drop => Verdict::Dropped,
                        End::Reject => Verdict::Rejected,
                        End::Return => panic!("a chain at a hook does not return"),
                    };
                    ways.push(Way { verdict, chance, remembered: state.remembered });
                }
            }
        }
    }

    /// All chains at a hook.
    fn hook(&self, hook: &str, state: State, chance: f64) -> Ends {
        let chains = self.table.hooks.get(hook).map(Vec::as_slice).unwrap_or_default();
        let mut ends = Ends::from([((End::Accept, state), chance)]);
        for (hook, chain) in chains {
            let mut next = Ends::new();
            for ((end, state), chance) in ends {
                // Addresses are translated only once: a packet that comes back is not asked about it again.
                let asked = hook.kind != "nat" || state.interface != Interface::Loopback;
                if end == End::Accept && asked {
                    self.rules(*hook, &chain.rules, state, chance, DEPTH_MAX, &mut next);
                } else {
                    add(&mut next, end, state, chance);
                }
            }
            ends = Ends::new();
            for ((end, state), chance) in next {
                // Nothing is refused by policy.
                let end = if end == End::Return { End::Accept } else { end };
                add(&mut ends, end, state, chance);
            }
        }
        ends
    }

    /// Rules of a chain, from some on.
    fn rules(&self, hook: Hook, rules: &[Rule], mut state: State, mut chance: f64, depth: usize, ends: &mut Ends) {
        assert!(depth > 0, "chains call each other too deeply");
        for (number, rule) in rules.iter().enumerate() {
            if !rule.matches.iter().all(|condition| self.holds(condition, &state)) {
                continue;
            }
            match &rule.action {
                Action::Jump(to) => {
                    let mut inner = Ends::new();
                    self.rules(hook, &self.table.chain(to).rules, state, chance, depth - 1, &mut inner);
                    for ((how, state), chance) in inner {
                        match how {
                            End::Return => self.rules(hook, &rules[number + 1..], state, chance, depth, ends),
                            how => add(ends, how, state, chance),
                        }
                    }
                    return;
                }
                // Where that chain ends, so does this one.
                Action::Goto(to) => {
                    return self.rules(hook, &self.table.chain(to).rules, state, chance, depth - 1, ends);
                }
                Action::Mark(mark) => state.mark |= mark,
                Action::Unmark(_) | Action::Masquerade => {
                    assert_eq!((hook.kind, hook.hook), ("nat", "postrouting"), "{rule:?}");
                    if let Action::Unmark(mark) = rule.action {
                        state.mark ^= mark;
                    }
                    state.masqueraded = true;
                    return add(ends, End::Accept, state, chance);
                }
                Action::Reject => {
                    assert!(["input", "forward", "output"].contains(&hook.hook), "{rule:?} at {hook:?}");
                    return add(ends, End::Reject, state, chance);
                }
                Action::Drop => return add(ends, End::Drop, state, chance),
                Action::Translate { key, below, map } => {
                    assert!(hook.kind == "nat" && ["prerouting", "output"].contains(&hook.hook), "{rule:?}");
                    let elements = self.table.set(*map);
                    let key = self.key(key, *map, *below, &state, self.packet.source);
                    let found: Vec<Backend> = match below {
                        Some(below) => elements.below(&key, *below).collect(),
                        None => elements.find(&key).flatten().and_then(Value::endpoint).into_iter().collect(),
                    };
                    let each = 1.0 / f64::from(below.unwrap_or(1));
                    let missed = 1.0 - found.len() as f64 * each;
                    for to in found {
                        let state = State { destination: to.ip, port: to.port, translated: Some(to), ..state.clone() };
                        add(ends, End::Accept, state, chance * each);
                    }
                    if missed <= 0.0 {
                        return;
                    }
                    chance *= missed;
                }
                // What is not found is not set, and the label stays what it was.
                Action::Label(key, map) => {
                    let key = self.key(key, *map, None, &state, self.packet.source);
                    if let Some(Some(Value::Label(label))) = self.table.set(*map).find(&key) {
                        state.label = label;
                    }
                }
                Action::Remember(seconds) => {
                    assert!(!state.masqueraded, "{rule:?} would be for the address that masquerading chose: {state:?}");
                    let to = Some(Backend { ip: state.destination, port: state.port });
                    assert_eq!(to, state.translated, "what is remembered is no endpoint");
                    state.remembered = Some((state.label, *seconds));
                }
            }
        }
        add(ends, End::Return, state, chance);
    }

    fn holds(&self, condition: &Match, state: &State) -> bool {
        match condition {
            Match::In { key, set, not } => {
                let elements = self.table.set(*set);
                let is_in = |source| elements.find(&self.key(key, *set, None, state, source)).is_some();
                let found = match key.contains(&Of::Source) {
                    true => self.source_is(state, is_in),
                    false => is_in(self.packet.source),
                };
                found != *not
            }
            Match::Source(net) => self.source_is(state, |ip| net.contains(&ip)),
            Match::NotSource(net) => !self.source_is(state, |ip| net.contains(&ip)),
            Match::Destination(net) => net.contains(&state.destination),
            Match::NotDestination(net) => !net.contains(&state.destination),
            Match::InInterface { name, prefix, not } => {
                // The name of none is empty.
                let by = match state.interface {
                    Interface::First => self.packet.interface.as_deref().unwrap_or_default(),
                    Interface::Loopback => "lo",
                };
                (if *prefix { by.starts_with(name.as_str()) } else { by == name }) != *not
            }
            Match::FromNode => self.source_is(state, |ip| self.world.is_local(ip)),
            Match::ToNode => self.world.is_local(state.destination),
            Match::New | Match::NotEstablished => true,
            Match::Translated => self.is_translated(state),
            Match::NotTranslated => !self.is_translated(state),
            Match::Marked(mark) => state.mark & mark != 0,
        }
    }

    /// What the kernel takes for translation: a destination that is another one now.
    fn is_translated(&self, state: &State) -> bool {
        state.translated.is_some_and(|to| (to.ip, to.port) != (self.packet.destination, self.packet.port))
    }

    /// These of the packet, which are to be looked up in a set.
    fn key(&self, key: &[Of], set: Set, below: Option<u32>, state: &State, source: IpAddr) -> Vec<Datum> {
        let datum = |of: &Of| match of {
            Of::Source => Datum::Address(source),
            Of::Destination => Datum::Address(state.destination),
            Of::Protocol => Datum::Protocol(self.packet.protocol),
            Of::Port => Datum::Port(state.port),
            Of::Label => Datum::Label(state.label),
        };
        let values: Vec<Datum> = key.iter().map(datum).collect();
        let number = below.map(|_| Field::Number);
        let looks: Vec<Field> = values.iter().map(|datum| datum.field()).chain(number).collect();
        assert_eq!(looks, set.shape().key, "not what {set:?} is asked by");
        values
    }

    fn source_is(&self, state: &State, test: impl Fn(IpAddr) -> bool) -> bool {
        self.world.source_is(self.packet, state.masqueraded, test)
    }
}

fn add(ends: &mut Ends, end: End, state: State, chance: f64) {
    *ends.entry((end, state)).or_default() += chance;
}

/// No rule stops it.
fn arrives(state: State, chance: f64) -> Way {
    let State { masqueraded, remembered, .. } = state;
    let verdict = match state.translated {
        None => Verdict::Untouched { masqueraded },
        Some(backend) => Verdict::Delivered { backend, masqueraded, remembers: remembered.is_some() },
    };
    Way { verdict, chance, remembered }
}
