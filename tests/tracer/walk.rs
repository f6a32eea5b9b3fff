//! Walking through the chains of one table.

use std::net::IpAddr;

use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::parse::words;
use ferrule::backend::iptables::ruleset::{ConnStates, Is, Match, Rule, Table, Target};
use ferrule::command::fake::{Chain, KernelRule, Tables};
use ferrule::net::Protocol;
use ferrule::plan::Backend;
use ipnet::IpNet;

use super::{Packet, Place, Seen, Verdict, VirtualServers, Way, World};

/// As deep as the kernel lets chains call each other, by default.
const DEPTH_MAX: usize = 16;

/// The rules, the node they work in, and the packet.
pub(super) struct Walk<'a, 'p> {
    pub(super) tables: &'a Tables,
    /// What balances besides rules.
    pub(super) balancer: Option<&'p VirtualServers>,
    pub(super) world: &'p World,
    pub(super) packet: &'p Packet,
    pub(super) seen: &'p Seen,
}

/// What rules can see of a packet, and what they did to it so far.
#[derive(Clone, Debug)]
pub(super) struct State<'a> {
    pub(super) interface: Interface,
    pub(super) destination: IpAddr,
    port: u16,
    mark: u32,
    /// Where its destination was translated to.
    translated: Option<Backend>,
    /// The virtual server that did so, if it was one.
    through: Option<(Protocol, IpAddr, u16)>,
    /// Its source is now an address of this node; the kernel chooses which.
    masqueraded: bool,
    /// Lists its source was put on.
    remembered: Vec<ChainName>,
    /// The rules that applied to it, in that order.
    passed: Vec<Place<'a>>,
}

/// By which interface a packet came to the hook it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// The one it came to the node by, if it did.
    First,
    Loopback,
    /// None: it is on its way out.
    None,
}

/// How a chain ends for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Accept,
    Drop,
    Reject,
    /// Goes on after the rule that led here.
    Return,
}

/// Every end a chain can have for a packet, what the packet is then, and the chance of it.
pub(super) type Ends<'a> = Vec<(End, State<'a>, f64)>;

/// The rules of a chain, from a place on.
#[derive(Clone, Copy)]
struct Rest<'a> {
    place: Place<'a>,
    rules: &'a [KernelRule],
}

/// Whether a rule applies to a packet.
enum Applies<'a> {
    Always(State<'a>),
    Never(State<'a>),
    /// Applies with a chance; and what the packet is if it does, and if not.
    Perhaps(f64, State<'a>, State<'a>),
}

// === impl State ===

impl<'a> State<'a> {
    /// A packet that no rule has seen yet.
    pub(super) fn of(packet: &Packet) -> State<'a> {
        State {
            interface: Interface::First,
            destination: packet.destination,
            port: packet.port,
            mark: 0,
            translated: None,
            through: None,
            masqueraded: false,
            remembered: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// No rule stops it.
    pub(super) fn arrives(self, chance: f64) -> Way<'a> {
        let masqueraded = self.masqueraded;
        let verdict = match self.translated {
            None => Verdict::Untouched { masqueraded },
            Some(backend) => Verdict::Delivered { backend, masqueraded, remembers: !self.remembered.is_empty() },
        };
        self.ends(verdict, chance)
    }

    /// It has come to a virtual server, and goes to one of its endpoints.
    pub(super) fn balanced(&self, protocol: Protocol, to: Backend) -> State<'a> {
        let mut state = self.clone();
        state.through = Some((protocol, self.destination, self.port));
        (state.destination, state.port, state.translated) = (to.ip, to.port, Some(to));
        state
    }

    pub(super) fn destination_port(&self) -> u16 {
        self.port
    }

    pub(super) fn ends(self, verdict: Verdict, chance: f64) -> Way<'a> {
        let (rules, lists) = (self.passed.into_iter().collect(), self.remembered.into_iter().collect());
        Way { verdict, chance, rules, lists }
    }
}

// === impl Walk ===

impl<'a> Walk<'a, '_> {
    /// Goes through a built-in chain. Fails at a rule that cannot be read.
    pub(super) fn built_in(&self, table: Table, chain: &'a str, state: State<'a>) -> Result<Ends<'a>, String> {
        let policy = match self.chain(table, chain).policy.as_deref() {
            Some("ACCEPT") => End::Accept,
            Some("DROP") => End::Drop,
            other => panic!("{table} {chain} has the policy {other:?}"),
        };
        let mut ends = Ends::new();
        self.rules(self.whole(table, chain), state, 1.0, DEPTH_MAX, &mut ends)?;
        for (end, ..) in &mut ends {
            if *end == End::Return {
                *end = policy;
            }
        }
        Ok(ends)
    }

    fn chain(&self, table: Table, name: &str) -> &'a Chain {
        self.tables.chain(table, name).unwrap_or_else(|| panic!("{table} {name} is not there"))
    }

    /// All rules of a chain.
    fn whole(&self, table: Table, chain: &'a str) -> Rest<'a> {
        Rest { place: Place { table, chain, number: 0 }, rules: &self.chain(table, chain).rules }
    }

    fn rules(
        &self,
        mut rest: Rest<'a>,
        mut state: State<'a>,
        mut chance: f64,
        depth: usize,
        ends: &mut Ends<'a>,
    ) -> Result<(), String> {
        assert!(depth > 0, "chains call each other too deeply");
        while let Some((rule, after)) = rest.rules.split_first() {
            let place = rest.place;
            rest = Rest { place: Place { number: place.number + 1, ..place }, rules: after };
            let rule = match rule {
                KernelRule::Known(rule) => rule,
                KernelRule::Foreign(text) if is_for_another_protocol(text, self.packet.protocol) => continue,
                KernelRule::Foreign(text) => {
                    return Err(format!(
                        "cannot trace {:?} through {} {}: {text}",
                        self.packet, place.table, place.chain
                    ));
                }
            };
            state = match self.applies(rule, state) {
                Applies::Always(state) => state,
                Applies::Never(same) => {
                    state = same;
                    continue;
                }
                Applies::Perhaps(part, state, other) => {
                    self.rules(rest, other, chance * (1.0 - part), depth, ends)?;
                    chance *= part;
                    state
                }
            };
            state.passed.push(place);
            let end = match rule.target.as_ref() {
                None => continue,
                Some(Target::Jump(chain)) => {
                    let mut inner = Ends::new();
                    self.rules(self.whole(place.table, chain.as_str()), state, chance, depth - 1, &mut inner)?;
                    for (end, state, chance) in inner {
                        match end {
                            End::Return => self.rules(rest, state, chance, depth, ends)?,
                            end => ends.push((end, state, chance)),
                        }
                    }
                    return Ok(());
                }
                Some(Target::SetMark(marking)) => {
                    state.mark = (state.mark & !marking.mask) ^ marking.value;
                    continue;
                }
                Some(Target::Dnat(to)) => {
                    assert_eq!(place.table, Table::Nat);
                    (state.destination, state.port, state.translated) = (to.ip, to.port, Some(*to));
                    End::Accept
                }
                Some(Target::Masquerade { .. }) => {
                    assert_eq!(place.table, Table::Nat);
                    state.masqueraded = true;
                    End::Accept
                }
                Some(Target::Accept) => End::Accept,
                Some(Target::Drop) => End::Drop,
                Some(Target::Reject(_)) => End::Reject,
                Some(Target::Return) => End::Return,
            };
            ends.push((end, state, chance));
            return Ok(());
        }
        ends.push((End::Return, state, chance));
        Ok(())
    }

    /// Whether a rule applies. What its matches do on the way is done to the packet, also if a later
    /// one of them does not hold: the kernel asks one after the other.
    fn applies(&self, rule: &Rule, mut state: State<'a>) -> Applies<'a> {
        if !self.source_is(&state, |ip| holds(&rule.source, |net: &IpNet| net.contains(&ip)))
            || !holds(&rule.destination, |net| net.contains(&state.destination))
            || !holds(&rule.in_interface, |pattern| is_interface(pattern, self.interface(&state)))
            || rule.protocol.is_some_and(|protocol| protocol != self.packet.protocol)
        {
            return Applies::Never(state);
        }
        // What the packet is if chance decides against it, if chance is asked.
        let mut perhaps: Option<(f64, State<'a>)> = None;
        for condition in &rule.matches {
            let holds = match condition {
                Match::Comment(_) | Match::Nfacct(_) => true,
                Match::ConnState(states) => {
                    let mut now = ConnStates::NEW;
                    if state.translated.is_some() {
                        now = now.or(ConnStates::DNAT);
                    }
                    states.value.intersects(now) != states.not
                }
                Match::Mark(mark) => (state.mark & mark.value.mask == mark.value.value) != mark.not,
                Match::SourceIsLocal => self.source_is(&state, |ip| self.world.is_local(ip)),
                Match::SourceIsNotLocal => !self.source_is(&state, |ip| self.world.is_local(ip)),
                // Of bridges nothing is known here.
                Match::NotFromBridge => true,
                Match::InSet { set, sides } => {
                    let balancer = self.balancer.expect("sets go with virtual servers");
                    let (to, port) = (state.destination, state.port);
                    self.source_is(&state, |ip| balancer.has(set, sides, self.packet.protocol, (ip, to, port)))
                }
                Match::ThroughVirtualServer { ip, protocol, port } => state.through == Some((*protocol, *ip, *port)),
                Match::DestinationIsLocal => self.world.is_local(state.destination),
                Match::ToItself(_) => self.source_is(&state, |ip| ip == state.destination),
                Match::Transport(protocol, port) => {
                    *protocol == self.packet.protocol && port.is_none_or(|port| port == state.port)
                }
                Match::OneIn(n) => {
                    assert!(perhaps.is_none(), "a rule that asks for chance twice");
                    perhaps = Some((1.0 / f64::from(*n), state.clone()));
                    true
                }
                Match::RecentlySeen { list, seconds, .. } => {
                    assert!(!state.masqueraded, "lists are asked for the packet's own source");
                    state.remembered.contains(list) || self.seen.get(list).is_some_and(|age| age <= seconds)
                }
                Match::Remember { list, .. } => {
                    assert!(!state.masqueraded, "lists are for the packet's own source");
                    state.remembered.push(list.clone());
                    true
                }
            };
            if !holds {
                let same = perhaps.is_none_or(|(_, other)| other.remembered == state.remembered);
                assert!(same, "chance decided whether the source was put on a list, and then the rule did not apply");
                return Applies::Never(state);
            }
        }
        match perhaps {
            Some((part, other)) if part < 1.0 => Applies::Perhaps(part, state, other),
            _ => Applies::Always(state),
        }
    }

    fn interface(&self, state: &State<'_>) -> &str {
        match state.interface {
            Interface::First => self.packet.interface.as_deref().unwrap_or_default(),
            Interface::Loopback => "lo",
            Interface::None => "",
        }
    }

    fn source_is(&self, state: &State<'_>, test: impl Fn(IpAddr) -> bool) -> bool {
        self.world.source_is(self.packet, state.masqueraded, test)
    }
}

fn holds<T>(condition: &Option<Is<T>>, test: impl Fn(&T) -> bool) -> bool {
    condition.as_ref().is_none_or(|condition| test(&condition.value) != condition.not)
}

/// Whether a pattern is for an interface; the name of none is empty, as it is for the kernel.
fn is_interface(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// Whether a rule that cannot be read says that it is for a protocol, and not for this one.
fn is_for_another_protocol(text: &str, protocol: Protocol) -> bool {
    // The tools print it before any match.
    let words: Vec<String> = words(text).take_while(|word| !["-m", "-j", "-g"].contains(&word.as_str())).collect();
    let Some(at) = words.iter().position(|word| word == "-p") else { return false };
    let negated = at > 0 && words[at - 1] == "!";
    let named = words.get(at + 1).map(String::as_str).unwrap_or_default();
    // What stands for all protocols, or for one by its number, is not told apart here.
    let is_name = named != "all" && named.starts_with(|c: char| c.is_ascii_alphabetic());
    !negated && is_name && named != protocol.lower()
}
