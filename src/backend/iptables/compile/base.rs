//! Rules that belong to no Service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Layout, NFACCT_INVALID_DROPPED, Style};
use crate::backend::iptables::names::{self, ChainName};
use crate::backend::iptables::ruleset::{ConnStates, Is, Marking, Match, Rule, Table, Target};
use crate::net::{IpFamily, host_net};
use crate::plan::{NodePlan, NodePortAddresses};

/// Comment of rules that let what Services forward pass.
const FORWARDING: &str = "kubernetes forwarding rules";

/// Hexadecimal digits.
const DIGITS: std::ops::Range<u8> = 0..16;

/// The rules that belong to no Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseRules {
    /// Their IP family.
    pub family: IpFamily,
    /// The layout they serve.
    pub layout: Layout,
    /// Chains whose whole content is fixed, but for those that follow from the layout:
    /// [`BaseRules::dispatch`].
    pub chains: Vec<(Table, ChainName, Vec<Rule>)>,
    /// Rules that lead from node addresses to node ports: the last ones of nat KUBE-SERVICES,
    /// because any Service address must be tried before.
    pub tail: Vec<Rule>,
}

// === impl BaseRules ===

impl BaseRules {
    /// Rules that lead from nat KUBE-SERVICES to [`BaseRules::dispatch`]. In any order, but before the tail.
    pub fn head(&self) -> Vec<Rule> {
        let lead = |digit| {
            let (value, mask) = (last_byte(self.family, digit), last_byte(self.family, 0x0f));
            Rule::jump(names::addresses_by_digit(digit)).sent_to_bits(value, mask)
        };
        DIGITS.filter(|_| self.layout.bucketed_services).map(lead).collect()
    }

    /// The chains that lead to the buckets of addresses. Each time made anew: they never change.
    pub fn dispatch(&self) -> Vec<(Table, ChainName, Vec<Rule>)> {
        let lead = |low: u8, high: u8| {
            let (value, mask) = (last_byte(self.family, high << 4), last_byte(self.family, 0xf0));
            Rule::jump(names::addresses_by_byte(high << 4 | low)).sent_to_bits(value, mask)
        };
        let chain = |low| (Table::Nat, names::addresses_by_digit(low), DIGITS.map(|high| lead(low, high)).collect());
        DIGITS.filter(|_| self.layout.bucketed_services).map(chain).collect()
    }

    /// How many rules [`BaseRules::head`] and [`BaseRules::dispatch`] have.
    pub fn dispatch_rules(&self) -> usize {
        if self.layout.bucketed_services { 16 + 16 * 16 } else { 0 }
    }
}

/// Compiles what belongs to no Service.
pub fn base(node: &NodePlan, style: &Style) -> BaseRules {
    let mark = Marking::bit(style.mark);
    let mut forward = Vec::new();
    if style.drop_invalid {
        let mut rule = Rule::to(Target::Drop).with(Match::ConnState(Is::so(ConnStates::INVALID)));
        if style.count_invalid {
            rule = rule.with(Match::Nfacct(NFACCT_INVALID_DROPPED.into()));
        }
        forward.push(rule);
    }
    forward.extend(forward_marked(mark));
    let mut postrouting = Vec::new();
    if style.layout.compact_endpoints {
        // What goes back to the endpoint it came from. It gets its mark only here, so that forwarding
        // cannot see it: that recognises such packets itself, and only first ones come so far.
        let back =
            |rule: Rule| rule.with(Match::ConnState(Is::so(ConnStates::DNAT))).with(Match::ToItself(style.family));
        postrouting.push(back(Rule::jump(names::MARK_MASQ)).comment("kubernetes service traffic to its own source"));
        forward.push(back(Rule::to(Target::Accept)).comment(FORWARDING));
    }
    postrouting.extend(masquerade_marked(mark, style.random_fully));
    let mut chains = vec![
        (Table::Filter, names::FORWARD, forward),
        (Table::Nat, names::POSTROUTING, postrouting),
        (Table::Nat, names::MARK_MASQ, vec![Rule::to(Target::SetMark(mark))]),
    ];
    if style.localhost_node_ports {
        let answered = ConnStates::RELATED.or(ConnStates::ESTABLISHED).or(ConnStates::DNAT);
        let loopback = style.family.loopback();
        let rule = Rule::to(Target::Drop)
            .not_from(loopback)
            .sent_to(loopback)
            .comment("block incoming localnet connections")
            .with(Match::ConnState(Is::not_so(answered)));
        chains.push((Table::Filter, names::FIREWALL, vec![rule]));
    }
    BaseRules { family: style.family, layout: style.layout, chains, tail: tail(node, style) }
}

/// Rules of filter KUBE-FORWARD: what Services forward passes, and what belongs to a connection.
pub fn forward_marked(mark: Marking) -> [Rule; 2] {
    let known = ConnStates::RELATED.or(ConnStates::ESTABLISHED);
    [
        Rule::to(Target::Accept).comment(FORWARDING).with(Match::Mark(Is::so(mark))),
        Rule::to(Target::Accept).comment("kubernetes forwarding conntrack rule").with(Match::ConnState(Is::so(known))),
    ]
}

/// The last rules of nat KUBE-POSTROUTING: what is marked gets the node's address as its source.
pub fn masquerade_marked(mark: Marking, random_fully: bool) -> [Rule; 3] {
    [
        Rule::to(Target::Return).with(Match::Mark(Is::not_so(mark))),
        // Cleared, so that the packet is not translated again should it pass a second time.
        Rule::to(Target::SetMark(Marking { mask: 0, ..mark })),
        Rule::to(Target::Masquerade { random_fully }).comment("kubernetes service traffic requiring SNAT"),
    ]
}

/// An address of which only the last byte is not zero.
fn last_byte(family: IpFamily, byte: u8) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::from(u32::from(byte)).into(),
        IpFamily::V6 => Ipv6Addr::from(u128::from(byte)).into(),
    }
}

fn tail(node: &NodePlan, style: &Style) -> Vec<Rule> {
    let rule = || {
        Rule::jump(names::NODE_PORTS)
            .comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
    };
    match &node.node_port_addresses {
        NodePortAddresses::All if style.localhost_node_ports => vec![rule().with(Match::DestinationIsLocal)],
        NodePortAddresses::All => vec![rule().with(Match::DestinationIsLocal).not_sent_to(style.family.loopback())],
        NodePortAddresses::Only(addresses) => addresses.iter().map(|ip| rule().sent_to(host_net(*ip))).collect(),
    }
}
