//! Rules, and the sets they ask: the same in every cluster, but for how pods are recognised, which addresses serve node
//! ports, and the times for which clients stay with their endpoints.
//!
//! ```text
//! prerouting, output   (-110)  firewall-check        who may not use a load balancer's address is dropped
//! prerouting, output   (-100)  services ─┬─> cluster-ip-traffic   mark ─┐
//!                                        ├─> external-ip-traffic  mark ─┼─> pick-services ──> pick-services-of-N ──> dnat
//!                                        └─> nodeport-traffic     mark ─┘   (inside-…: what comes from this node)
//! input, forward, output  (0)  …-endpoints-check     refused or dropped: nothing has translated it
//!                              cluster-ips-check     the same for ports, and addresses, that no Service has
//!                              remember-client-ip    which endpoint the client got
//! postrouting           (100)  masquerading          what was marked; what goes back where it came from
//! ```
//!
//! **Clients that stay with their endpoint.** A pool has several frontends, and one memory for its clients. So the first
//! thing that happens to a connection to one of them is that it gets the pool's label (`ct label`, as there is no other way to hand on what was found in one map to the next); under that and the client's address the endpoint is
//! looked up, and noted when it is known.
//!
//! **What `nft` cannot read.** It lists rules with labels and those that draw lots, but has no names for the types of labels
//! and numbers; and where it can be told what they are (`typeof`), it makes of the ports of any protocol those of TCP, as
//! soon as the set is there already (1.0.6). Such rules are in chains of their own, and written over netlink.
//!
//! **Drawing lots.** `numgen` draws below a constant, so a chain for each power of two draws below that, and looks for the
//! endpoint of that number. Where there is none the next rule draws again; more than half of the numbers have one.
//! After [`DRAWS`] draws without luck, which happens to one connection in 65,000 at worst, half of the endpoints are drawn
//! from. So chances are equal but for that, for any number of endpoints, and the chains are as many as powers of two.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Style;
use crate::backend::nftables::names as n;
use crate::backend::nftables::ruleset::{Action, BY_ADDRESS, Chain, Hook, MAX_SIZE, Match, Of, Rule, Set, Site, Way};
use crate::plan::{NodePlan, NodePortAddresses, PodTraffic};

/// How often a number is drawn before half of the endpoints will do.
const DRAWS: usize = 16;

/// What there is besides elements of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Sets, in order.
    pub sets: Vec<Set>,
    /// Chains. Each refers to such as come before it.
    pub chains: Vec<Chain>,
    /// Chains that `nft` cannot read and that are written over netlink. Others lead to them.
    pub netlink_chains: Vec<Chain>,
    /// Elements of [`Set::NodePortIps`].
    pub node_port_ips: Vec<IpAddr>,
}

/// Compiles it. `timeouts` are the seconds for which clients stay with their endpoints.
pub fn base(node: &NodePlan, style: &Style, timeouts: &BTreeSet<u32>) -> Base {
    let mut sets = Set::constant();
    sets.extend(timeouts.iter().map(|seconds| Set::Kept(*seconds)));
    let compiler = Compiler { node, style };
    let (mut chains, mut netlink_chains) = (Vec::new(), Vec::new());
    for site in Site::ALL {
        for way in Way::ALL {
            netlink_chains.extend((0..=MAX_SIZE).map(|size| draw(site, way, size)));
            netlink_chains.push(keep(site, way, timeouts));
            chains.push(pick(site, way));
        }
        chains.push(compiler.traffic_of_this_node(site));
    }
    chains.extend(compiler.services());
    chains.push(chain(
        n::MASQUERADING,
        vec![
            Rule::new(Action::Unmark(style.mark)).when(Match::Marked(style.mark)),
            Rule::new(Action::Masquerade)
                .when(Match::Translated)
                .when_in(&[Of::Source, Of::Destination, Of::Protocol, Of::Port], Set::Hairpins),
        ],
    ));
    chains.push(firewall());
    chains.extend(compiler.refusals());
    chains.extend(compiler.hooks());
    let node_port_ips = match &node.node_port_addresses {
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Only(addresses) => addresses.clone(),
    };
    netlink_chains.push(remember(timeouts));
    Base { sets, chains, netlink_chains, node_port_ips }
}

struct Compiler<'a> {
    node: &'a NodePlan,
    style: &'a Style,
}

fn chain(name: impl Into<String>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), hook: None, rules }
}

fn pick_name(site: Site, way: Way) -> String {
    match way {
        Way::Usual => format!("pick-{}", site.plural()),
        Way::Inside => format!("inside-pick-{}", site.plural()),
    }
}

fn draw_name(site: Site, way: Way, size: u8) -> String {
    format!("{}-of-{}", pick_name(site, way), 1_u32 << size)
}

/// Picks one of up to so many endpoints.
fn draw(site: Site, way: Way, size: u8) -> Chain {
    let map = Set::Endpoints(site, way);
    let below = |size: u8| Rule::new(Action::Translate { key: site.key(), below: Some(1 << size), map });
    let mut rules = Vec::new();
    if size < 2 {
        // One, or two: each number has an endpoint.
        rules.push(below(size));
    } else {
        rules.extend(std::iter::repeat_with(|| below(size)).take(DRAWS));
        rules.push(below(size - 1));
    }
    chain(draw_name(site, way, size), rules)
}

/// Picks an endpoint: the one that the client had, or any.
fn pick(site: Site, way: Way) -> Chain {
    let mut rules = vec![Rule::new(Action::Jump(keep_name(site, way)))];
    rules.extend((0..=MAX_SIZE).map(|size| {
        Rule::new(Action::Goto(draw_name(site, way, size))).when_in(site.key(), Set::Sized(site, way, size))
    }));
    chain(pick_name(site, way), rules)
}

/// Who may use an address is known before there is any translation.
fn firewall() -> Chain {
    const WITH_SOURCE: &[Of] = &[Of::Destination, Of::Protocol, Of::Port, Of::Source];
    let stranger = Match::In { key: WITH_SOURCE, set: Set::AllowedSources, not: true };
    chain(n::FIREWALL, vec![Rule::new(Action::Drop).when_in(BY_ADDRESS, Set::Restricted).when(stranger)])
}

fn keep_name(site: Site, way: Way) -> String {
    match way {
        Way::Usual => format!("keep-clients-of-{}", site.plural()),
        Way::Inside => format!("inside-keep-clients-of-{}", site.plural()),
    }
}

/// Labels connections of Service ports that keep their clients, and sends them where their client went before.
fn keep(site: Site, way: Way, timeouts: &BTreeSet<u32>) -> Chain {
    let mut rules = Vec::new();
    if !timeouts.is_empty() {
        rules.push(Rule::new(Action::Label(site.key(), Set::Labels(site, way))));
        let key = &[Of::Label, Of::Source];
        rules.push(Rule::new(Action::Translate { key, below: None, map: Set::Clients }));
    }
    chain(keep_name(site, way), rules)
}

/// Which endpoint a client got is remembered as soon as it is known.
fn remember(timeouts: &BTreeSet<u32>) -> Chain {
    let rule = |seconds: &u32| Rule::new(Action::Remember(*seconds)).when_in(&[Of::Label], Set::Kept(*seconds));
    chain(n::REMEMBER, timeouts.iter().map(rule).collect())
}

// === impl Compiler ===

impl Compiler<'_> {
    fn is_pod(&self) -> Option<Match> {
        Some(match self.node.pod_traffic.as_ref()? {
            PodTraffic::Source(net) => Match::Source(*net),
            PodTraffic::Interface(name) => Match::InInterface { name: name.clone(), prefix: false, not: false },
            PodTraffic::InterfacePrefix(name) => Match::InInterface { name: name.clone(), prefix: true, not: false },
        })
    }

    fn is_not_pod(&self) -> Option<Match> {
        Some(match self.is_pod()? {
            Match::Source(net) => Match::NotSource(net),
            Match::InInterface { name, prefix, .. } => Match::InInterface { name, prefix, not: true },
            other => other,
        })
    }

    fn mark(&self) -> Rule {
        Rule::new(Action::Mark(self.style.mark))
    }

    /// What comes to frontends that treat connections from this node apart.
    fn traffic_of_this_node(&self, site: Site) -> Chain {
        let inside = || Rule::new(Action::Goto(pick_name(site, Way::Inside)));
        let mut rules = Vec::new();
        rules.extend(self.is_pod().map(|is_pod| inside().when(is_pod).about("short-circuit pod traffic")));
        rules.push(self.mark().when(Match::FromNode).about("masquerade local traffic"));
        rules.push(inside().when(Match::FromNode).about("short-circuit local traffic"));
        rules.push(Rule::new(Action::Goto(pick_name(site, Way::Usual))));
        chain(format!("local-{}-traffic", site.plural()), rules)
    }

    fn external(&self, name: &str, site: Site) -> Chain {
        chain(
            name,
            vec![
                self.mark().when_in(site.key(), Set::Masquerade(site)).about("masquerade"),
                Rule::new(Action::Goto(format!("local-{}-traffic", site.plural())))
                    .when_in(site.key(), Set::Apart(site)),
                Rule::new(Action::Goto(pick_name(site, Way::Usual))),
            ],
        )
    }

    fn services(&self) -> Vec<Chain> {
        let mut cluster_ips = Vec::new();
        if self.node.masquerade_all {
            cluster_ips.push(self.mark().about("masquerade all clusterIP traffic"));
        } else if let Some(is_not_pod) = self.is_not_pod() {
            cluster_ips.push(self.mark().when(is_not_pod).about("masquerade clusterIP traffic from outside cluster"));
        }
        cluster_ips.push(Rule::new(Action::Goto(pick_name(Site::Address, Way::Usual))));
        let destination = &[Of::Destination];
        let mut services = vec![
            Rule::new(Action::Jump(n::CLUSTER_IPS.to_owned())).when_in(destination, Set::ClusterIps),
            Rule::new(Action::Jump(n::EXTERNAL_IPS.to_owned())).when_in(destination, Set::ExternalIps),
        ];
        services.extend(self.at_node_ports(Rule::new(Action::Jump(n::NODE_PORTS.to_owned()))));
        vec![
            chain(n::CLUSTER_IPS, cluster_ips),
            self.external(n::EXTERNAL_IPS, Site::Address),
            self.external(n::NODE_PORTS, Site::NodePort),
            chain(n::SERVICES, services),
        ]
    }

    /// A rule for packets to where node ports are served.
    fn at_node_ports(&self, rule: Rule) -> Vec<Rule> {
        let with = |mut first: Vec<Match>| {
            first.extend(rule.matches.iter().cloned());
            Rule { matches: first, ..rule.clone() }
        };
        let loopback = self.node.family.loopback();
        let mut rules = vec![match &self.node.node_port_addresses {
            NodePortAddresses::Only(_) => {
                with(vec![Match::In { key: &[Of::Destination], set: Set::NodePortIps, not: false }])
            }
            NodePortAddresses::All => with(vec![Match::ToNode, Match::NotDestination(loopback)]),
        }];
        if self.node.localhost_node_ports {
            rules.push(with(vec![Match::Destination(loopback)]));
        }
        rules
    }

    /// Packets that no translation has taken elsewhere. (kube-proxy: where `reject` works in every kernel.)
    fn refusals(&self) -> Vec<Chain> {
        let refuse = |site: Site| {
            [(Action::Reject, Set::Reject(site)), (Action::Drop, Set::Drop(site))]
                .map(|(action, set)| Rule::new(action).when_in(site.key(), set))
        };
        let at_node_ports = refuse(Site::NodePort).into_iter().flat_map(|rule| self.at_node_ports(rule)).collect();
        let unknown_port = Rule::new(Action::Reject)
            .when_in(&[Of::Destination], Set::ClusterIps)
            .about("Reject traffic to invalid ports of ClusterIPs");
        let unallocated = self.node.service_cidrs.iter().map(|net| {
            Rule::new(Action::Drop).when(Match::Destination(*net)).about("Drop traffic to unallocated ClusterIPs")
        });
        vec![
            chain(n::NO_ENDPOINTS, refuse(Site::Address).into()),
            chain(n::NO_NODE_PORT_ENDPOINTS, at_node_ports),
            chain(n::CLUSTER_IPS_CHECK, [unknown_port].into_iter().chain(unallocated).collect()),
        ]
    }

    /// Where packets come in.
    fn hooks(&self) -> Vec<Chain> {
        let hook = |name: &str, kind, hook, priority, rules| Chain {
            name: name.to_owned(),
            hook: Some(Hook { kind, hook, priority }),
            rules,
        };
        let jump = |to: &str| Rule::new(Action::Jump(to.to_owned()));
        let check = |to: &str| jump(to).when(Match::New);
        let remember = || jump(n::REMEMBER).when(Match::New).when(Match::Translated);
        let mut input = Vec::new();
        if self.node.localhost_node_ports {
            let loopback = self.node.family.loopback();
            input.push(
                Rule::new(Action::Drop)
                    .when(Match::NotSource(loopback))
                    .when(Match::Destination(loopback))
                    .when(Match::NotEstablished)
                    .when(Match::NotTranslated)
                    .about("block incoming localnet connections"),
            );
        }
        // What the node sends to itself was remembered on its way out: now it may have another source.
        let not_by_loopback = Match::InInterface { name: "lo".to_owned(), prefix: false, not: true };
        let checks = [check(n::NO_NODE_PORT_ENDPOINTS), check(n::NO_ENDPOINTS)];
        input.extend(checks.into_iter().chain([remember().when(not_by_loopback)]));
        let passing = || vec![check(n::NO_ENDPOINTS), check(n::CLUSTER_IPS_CHECK), remember()];
        vec![
            hook(n::FILTER_PREROUTING, "filter", "prerouting", -110, vec![check(n::FIREWALL)]),
            hook(n::FILTER_OUTPUT_PRE_DNAT, "filter", "output", -110, vec![check(n::FIREWALL)]),
            hook(n::FILTER_INPUT, "filter", "input", 0, input),
            hook(n::FILTER_FORWARD, "filter", "forward", 0, passing()),
            hook(n::FILTER_OUTPUT, "filter", "output", 0, passing()),
            hook(n::NAT_PREROUTING, "nat", "prerouting", -100, vec![jump(n::SERVICES)]),
            hook(n::NAT_OUTPUT, "nat", "output", -100, vec![jump(n::SERVICES)]),
            hook(n::NAT_POSTROUTING, "nat", "postrouting", 100, vec![jump(n::MASQUERADING)]),
        ]
    }
}
