//! Walking through the chains of one table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::ruleset::{ConnStates, Is, Match, Rule, Table, Target};
use ferrule::command::fake::{KernelRule, Tables};
use ipnet::IpNet;

use super::State;
use crate::world::World;

/// As deep as the kernel lets chains call each other, by default.
const DEPTH_MAX: usize = 16;

/// The rules and the node they work in.
pub(super) struct Walk<'a> {
    pub(super) tables: &'a Tables,
    pub(super) world: &'a World,
    /// Lists that hold the packet's source, with the age of its entry in seconds.
    pub(super) seen: BTreeMap<ChainName, u32>,
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

impl<'a> Walk<'a> {
    /// Goes through a built-in chain.
    pub(super) fn built_in(&self, table: Table, chain: &str, state: State<'a>) -> Ends<'a> {
        let found = self.tables.chain(table, chain).unwrap_or_else(|| panic!("{table} {chain} is not there"));
        let policy = match found.policy.as_deref() {
            Some("ACCEPT") => End::Accept,
            Some("DROP") => End::Drop,
            other => panic!("{table} {chain} has the policy {other:?}"),
        };
        let mut ends = Ends::new();
        self.rules(table, &found.rules, state, 1.0, DEPTH_MAX, &mut ends);
        for (end, ..) in &mut ends {
            if *end == End::Return {
                *end = policy;
            }
        }
        ends
    }

    fn rules(
        &self,
        table: Table,
        rules: &[KernelRule],
        mut state: State<'a>,
        mut chance: f64,
        depth: usize,
        ends: &mut Ends<'a>,
    ) {
        assert!(depth > 0, "chains call each other too deeply");
        for (i, rule) in rules.iter().enumerate() {
            let rule = match rule {
                KernelRule::Known(rule) => rule,
                KernelRule::Foreign(text) => panic!("cannot trace {text}"),
            };
            let untouched = state.clone();
            let matched = self.matches(rule, &mut state);
            if matched < 1.0 {
                if matched == 0.0 {
                    state = untouched;
                    continue;
                }
                self.rules(table, &rules[i + 1..], untouched, chance * (1.0 - matched), depth, ends);
                chance *= matched;
            }
            let end = match rule.target.as_ref() {
                None => continue,
                Some(Target::Jump(chain)) => {
                    let called = self.tables.chain(table, chain.as_str());
                    let called = called.unwrap_or_else(|| panic!("{table} {chain} is not there"));
                    let mut inner = Ends::new();
                    self.rules(table, &called.rules, state, chance, depth - 1, &mut inner);
                    for (end, state, chance) in inner {
                        match end {
                            End::Return => self.rules(table, &rules[i + 1..], state, chance, depth, ends),
                            end => ends.push((end, state, chance)),
                        }
                    }
                    return;
                }
                Some(Target::SetMark(marking)) => {
                    state.mark = (state.mark & !marking.mask) ^ marking.value;
                    continue;
                }
                Some(Target::Dnat(to)) => {
                    assert_eq!(table, Table::Nat);
                    (state.destination, state.port, state.translated) = (to.ip, to.port, Some(*to));
                    End::Accept
                }
                Some(Target::Masquerade { .. }) => {
                    assert_eq!(table, Table::Nat);
                    state.masqueraded = true;
                    End::Accept
                }
                Some(Target::Accept) => End::Accept,
                Some(Target::Drop) => End::Drop,
                Some(Target::Reject(_)) => End::Reject,
                Some(Target::Return) => End::Return,
            };
            ends.push((end, state, chance));
            return;
        }
        ends.push((End::Return, state, chance));
    }

    /// The chance that a rule matches; what its matches do on the way is done to the packet.
    fn matches(&self, rule: &Rule, state: &mut State<'a>) -> f64 {
        let within = |side: &Option<Is<IpNet>>, ip: IpAddr| holds(side, |net| net.contains(&ip));
        if !within(&rule.source, state.packet.source)
            || !within(&rule.destination, state.destination)
            || !holds(&rule.in_interface, |pattern| is_interface(pattern, state.interface.unwrap_or_default()))
            || rule.protocol.is_some_and(|protocol| protocol != state.packet.protocol)
        {
            return 0.0;
        }
        let mut chance = 1.0;
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
                Match::SourceIsLocal => self.world.is_local(state.packet.source),
                Match::DestinationIsLocal => self.world.is_local(state.destination),
                Match::Transport(protocol, port) => {
                    *protocol == state.packet.protocol && port.is_none_or(|port| port == state.port)
                }
                Match::OneIn(n) => {
                    chance /= f64::from(*n);
                    true
                }
                Match::RecentlySeen { list, seconds, .. } => self.seen.get(list).is_some_and(|age| age <= seconds),
                Match::Remember { list, .. } => {
                    state.remembered.push(list.clone());
                    true
                }
            };
            if !holds {
                return 0.0;
            }
        }
        chance
    }
}

fn holds<T>(condition: &Option<Is<T>>, test: impl Fn(&T) -> bool) -> bool {
    condition.as_ref().is_none_or(|condition| test(&condition.value) != condition.not)
}

fn is_interface(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}
