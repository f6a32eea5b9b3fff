//! From the Plan to rules. Knows chains and rules, and nothing of why traffic goes where.

mod base;
mod shared;

use std::net::IpAddr;

use ipnet::IpNet;

use super::names::{self, ChainName, ServiceChains};
use super::ruleset::{Is, Match, Rule, Target};
use crate::model::ServicePortName;
use crate::net::{IpFamily, Protocol, host_net};
use crate::plan::{Action, Frontend, Listen, PodTraffic, PoolKind, ServicePlan, Source};

pub use self::base::{BaseRules, base, forward_marked, masquerade_marked};
pub use self::shared::Shared;

/// Counter of packets that [`names::FORWARD`] drops as invalid.
pub const NFACCT_INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";
/// Counter of packets accepted on node ports of loopback addresses.
pub const NFACCT_LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

/// What rules depend on besides the plan of their Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// IP family.
    pub family: IpFamily,
    /// How pods are recognised.
    pub pod_traffic: Option<PodTraffic>,
    /// Node ports answer on 127.0.0.0/8.
    pub localhost_node_ports: bool,
    /// Bit of the packet mark that asks for source translation.
    pub mark: u32,
    /// `MASQUERADE` knows `--random-fully` (iptables 1.6.2).
    pub random_fully: bool,
    /// Drop packets of no known connection; off where conntrack is configured to be liberal.
    pub drop_invalid: bool,
    /// The kernel has the counter [`NFACCT_INVALID_DROPPED`].
    pub count_invalid: bool,
    /// The kernel has the counter [`NFACCT_LOCALHOST_ACCEPTED`].
    pub count_localhost: bool,
    /// More than 1,000 endpoints: rules of endpoints carry no comments.
    pub large_cluster: bool,
    /// Where rules stand.
    pub layout: Layout,
}

/// Where rules stand, as far as that makes no difference to any packet. By default, where kube-proxy puts
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// nat KUBE-SERVICES is split by the last byte of the destination: a first packet is compared with
    /// one 256th of the Services' addresses.
    pub bucketed_services: bool,
    /// Endpoints of a Service without affinity have no chains: the Service's chain translates. That an
    /// endpoint was balanced to itself shows after translation, in KUBE-POSTROUTING.
    pub compact_endpoints: bool,
}

/// The rules of one Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// Its own chains, all in nat, in the order in which kube-proxy writes them.
    pub chains: Vec<(ChainName, Vec<Rule>)>,
    /// Its rules in chains that it shares with others.
    pub shared: Vec<(Shared, Rule)>,
}

// === impl Layout ===

impl Layout {
    /// What both need: rules of Services in either layout do their work with it.
    pub fn or(self, other: Layout) -> Layout {
        Layout {
            bucketed_services: self.bucketed_services || other.bucketed_services,
            compact_endpoints: self.compact_endpoints || other.compact_endpoints,
        }
    }
}

/// Compiles one Service port.
pub fn service(name: &ServicePortName, plan: &ServicePlan, style: &Style) -> ServiceRules {
    let compiler = Compiler::new(name, plan, style);
    ServiceRules { chains: compiler.chains(), shared: compiler.shared() }
}

/// Compiles what one Service port has in shared chains.
pub fn shared(name: &ServicePortName, plan: &ServicePlan, style: &Style) -> Vec<(Shared, Rule)> {
    Compiler::new(name, plan, style).shared()
}

/// The names of the chains of one Service port.
pub fn chain_names(name: &ServicePortName, plan: &ServicePlan, style: &Style) -> impl Iterator<Item = ChainName> {
    Compiler::new(name, plan, style).chains().into_iter().map(|(chain, _)| chain)
}

struct Compiler<'a> {
    spn: String,
    protocol: Protocol,
    chains: ServiceChains,
    plan: &'a ServicePlan,
    style: &'a Style,
}

impl<'a> Compiler<'a> {
    fn new(name: &ServicePortName, plan: &'a ServicePlan, style: &'a Style) -> Compiler<'a> {
        Compiler { spn: name.to_string(), protocol: name.protocol, chains: ServiceChains::new(name), plan, style }
    }

    fn shared(&self) -> Vec<(Shared, Rule)> {
        let mut shared = Vec::new();
        for frontend in &self.plan.frontends {
            self.capture(frontend, &mut shared);
        }
        if let Some(port) = self.plan.health_check.as_ref().map(|check| check.node_port) {
            let rule = Rule::to(Target::Accept)
                .comment(format!("{} health check node port", self.spn))
                .transport(Protocol::Tcp, Some(port));
            shared.push((Shared::FilterNodePorts, rule));
        }
        shared
    }

    fn chains(&self) -> Vec<(ChainName, Vec<Rule>)> {
        let mut chains = Vec::new();
        self.external(&mut chains);
        self.firewall(&mut chains);
        self.pool(PoolKind::Cluster, &mut chains);
        self.pool(PoolKind::Local, &mut chains);
        self.endpoints(&mut chains);
        chains
    }

    /// Rules in shared chains that catch the packets of one frontend.
    fn capture(&self, frontend: &Frontend, shared: &mut Vec<(Shared, Rule)>) {
        let captured = frontend.routes.iter().any(|(_, action)| matches!(action, Action::Balance { .. }));
        let refusal = frontend.default_action().and_then(|action| self.refusal(action));
        let to_chain = |what: &str, ip, port, chain| {
            let rule = Rule::jump(chain).comment(format!("{} {what}", self.spn));
            rule.transport(self.protocol, Some(port)).sent_to(host_net(ip))
        };
        match frontend.listen {
            Listen::ClusterIp(ip, port) => {
                if let (Some(Action::Balance { pool, .. }), true) = (frontend.default_action(), captured) {
                    shared.push((self.dispatch(ip), to_chain("cluster IP", ip, port, self.pool_chain(pool))));
                }
                if let Some(refusal) = refusal {
                    let rule = refusal.transport(self.protocol, Some(port)).sent_to(host_net(ip));
                    shared.push((Shared::FilterServices, rule));
                }
            }
            Listen::ExternalIp(ip, port) => {
                if captured {
                    shared.push((self.dispatch(ip), to_chain("external IP", ip, port, self.chains.external())));
                }
                if let Some(refusal) = refusal {
                    let rule = refusal.transport(self.protocol, Some(port)).sent_to(host_net(ip));
                    shared.push((Shared::FilterExternalServices, rule));
                }
            }
            Listen::LoadBalancerIp(ip, port) => {
                if captured {
                    let chain = match frontend.allow_from {
                        Some(_) => self.chains.firewall(),
                        None => self.chains.external(),
                    };
                    shared.push((self.dispatch(ip), to_chain("loadbalancer IP", ip, port, chain)));
                }
                if frontend.allow_from.is_some() {
                    let rule = Rule::to(Target::Drop)
                        .comment(format!("{} traffic not accepted by {}", self.spn, self.chains.firewall()))
                        .transport(self.protocol, Some(port))
                        .sent_to(host_net(ip));
                    shared.push((Shared::FilterProxyFirewall, rule));
                }
                if let Some(refusal) = refusal {
                    let rule = refusal.transport(self.protocol, Some(port)).sent_to(host_net(ip));
                    shared.push((Shared::FilterExternalServices, rule));
                }
            }
            Listen::NodePort(port) => {
                if captured {
                    let rule = || {
                        let rule = Rule::jump(self.chains.external()).comment(self.spn.clone());
                        rule.transport(self.protocol, Some(port))
                    };
                    if self.style.localhost_node_ports && self.style.count_localhost {
                        let counted = rule().sent_to(self.style.family.loopback());
                        shared.push((
                            Shared::NatNodePorts,
                            counted.with(Match::Nfacct(NFACCT_LOCALHOST_ACCEPTED.into())),
                        ));
                    }
                    shared.push((Shared::NatNodePorts, rule()));
                }
                if let Some(refusal) = refusal {
                    let rule = refusal.with(Match::DestinationIsLocal).transport(self.protocol, Some(port));
                    shared.push((Shared::FilterExternalServices, rule));
                }
            }
        }
    }

    /// The chain with the rule that leads from an address to the Service.
    fn dispatch(&self, ip: IpAddr) -> Shared {
        match self.style.layout.bucketed_services {
            true => Shared::of_address(ip),
            false => Shared::NatServices,
        }
    }

    /// Whether endpoints have chains of their own. Lists of clients need them: both have one name.
    fn has_endpoint_chains(&self) -> bool {
        !self.style.layout.compact_endpoints || self.plan.affinity_seconds.is_some()
    }

    /// The beginning of a filter rule for packets that no endpoint takes.
    fn refusal(&self, action: Action) -> Option<Rule> {
        match action {
            Action::Balance { .. } => None,
            Action::Reject => {
                Some(Rule::to(Target::Reject(self.style.family)).comment(format!("{} has no endpoints", self.spn)))
            }
            Action::Drop => Some(Rule::to(Target::Drop).comment(format!("{} has no local endpoints", self.spn))),
        }
    }

    /// KUBE-EXT: what happens to packets for external addresses, by their source.
    fn external(&self, chains: &mut Vec<(ChainName, Vec<Rule>)>) {
        let external = self.plan.frontends.iter().find(|frontend| !matches!(frontend.listen, Listen::ClusterIp(..)));
        let Some(frontend) = external else { return };
        if frontend.sole_action().is_some_and(|action| !matches!(action, Action::Balance { .. })) {
            return;
        }
        let to = format!("for {} external destinations", self.spn);
        let mut chain = Vec::new();
        for (source, action) in &frontend.routes {
            let Action::Balance { pool, masquerade } = *action else { continue };
            let target = self.pool_chain(pool);
            match source {
                Source::Pod => {
                    let rule = Rule::jump(target).comment(format!("pod traffic {to}"));
                    chain.extend(self.limit_to_pods(rule, false));
                }
                Source::Node => {
                    if masquerade {
                        let rule = Rule::jump(names::MARK_MASQ).comment(format!("masquerade LOCAL traffic {to}"));
                        chain.push(rule.with(Match::SourceIsLocal));
                    }
                    let rule = Rule::jump(target).comment(format!("route LOCAL traffic {to}"));
                    chain.push(rule.with(Match::SourceIsLocal));
                }
                Source::Any => {
                    if masquerade {
                        chain.push(Rule::jump(names::MARK_MASQ).comment(format!("masquerade traffic {to}")));
                    }
                    chain.push(Rule::jump(target));
                }
            }
        }
        chains.push((self.chains.external(), chain));
    }

    /// KUBE-FW: lets allowed sources through; the rest goes on untranslated, into the filter table.
    fn firewall(&self, chains: &mut Vec<(ChainName, Vec<Rule>)>) {
        let Some(allowed) = self.plan.frontends.iter().find_map(|frontend| frontend.allow_from.as_ref()) else {
            return;
        };
        let pass = |net: &IpNet| {
            Rule::jump(self.chains.external()).from(*net).comment(format!("{} loadbalancer IP", self.spn))
        };
        let mut chain: Vec<Rule> = allowed.iter().map(pass).collect();
        let rest = format!("other traffic to {} will be dropped by {}", self.spn, names::PROXY_FIREWALL);
        chain.push(Rule::default().comment(rest));
        chains.push((self.chains.firewall(), chain));
    }

    /// KUBE-SVC or KUBE-SVL: picks an endpoint of a pool.
    fn pool(&self, kind: PoolKind, chains: &mut Vec<(ChainName, Vec<Rule>)>) {
        let pool = self.plan.pool(kind);
        if pool.is_empty() {
            return;
        }
        let mut chain = Vec::with_capacity(pool.len() + 1);
        chain.extend(self.plan.frontends.iter().find_map(|frontend| self.masquerade_internal(kind, frontend)));
        let has_chains = self.has_endpoint_chains();
        let endpoints: Vec<(ChainName, Rule)> = pool
            .iter()
            .map(|backend| {
                let name = self.chains.endpoint(backend);
                let rule = match has_chains {
                    true => Rule::jump(name.clone()),
                    false => Rule::to(Target::Dnat(*backend)).of(self.protocol),
                };
                match self.style.large_cluster {
                    true => (name, rule),
                    false => (name, rule.comment(format!("{} -> {backend}", self.spn))),
                }
            })
            .collect();
        if let Some(seconds) = self.plan.affinity_seconds {
            for (list, rule) in &endpoints {
                let seen = Match::RecentlySeen { list: list.clone(), seconds, family: self.style.family };
                chain.push(rule.clone().with(seen));
            }
        }
        for (left, (_, rule)) in (1..=endpoints.len()).rev().zip(endpoints) {
            chain.push(match u32::try_from(left) {
                Ok(1) | Err(_) => rule,
                Ok(left) => rule.with(Match::OneIn(left)),
            });
        }
        chains.push((self.pool_chain(kind), chain));
    }

    /// First rule of the chain that takes cluster IP traffic: marks what must be masqueraded.
    fn masquerade_internal(&self, kind: PoolKind, frontend: &Frontend) -> Option<Rule> {
        let Listen::ClusterIp(ip, port) = frontend.listen else { return None };
        let Some(Action::Balance { pool, masquerade: true }) = frontend.default_action() else { return None };
        if pool != kind {
            return None;
        }
        let rule = Rule::jump(names::MARK_MASQ)
            .comment(format!("{} cluster IP", self.spn))
            .transport(self.protocol, Some(port))
            .sent_to(host_net(ip));
        match frontend.sole_action() {
            Some(_) => Some(rule),
            None => self.limit_to_pods(rule, true),
        }
    }

    /// KUBE-SEP: translates to one endpoint.
    fn endpoints(&self, chains: &mut Vec<(ChainName, Vec<Rule>)>) {
        if !self.has_endpoint_chains() {
            return;
        }
        for backend in self.plan.backends() {
            let name = self.chains.endpoint(&backend);
            let rule = |target| match self.style.large_cluster {
                true => Rule::to(target),
                false => Rule::to(target).comment(self.spn.clone()),
            };
            // An endpoint that is balanced to itself would answer itself directly.
            let hairpin = rule(Target::Jump(names::MARK_MASQ)).from(host_net(backend.ip));
            let mut translate = rule(Target::Dnat(backend));
            if self.plan.affinity_seconds.is_some() {
                translate = translate.with(Match::Remember { list: name.clone(), family: self.style.family });
            }
            chains.push((name, vec![hairpin, translate.transport(self.protocol, None)]));
        }
    }

    fn pool_chain(&self, kind: PoolKind) -> ChainName {
        match kind {
            PoolKind::Cluster => self.chains.cluster(),
            PoolKind::Local => self.chains.local(),
        }
    }

    /// Limits a rule to traffic of this node's pods, or to all other traffic.
    fn limit_to_pods(&self, rule: Rule, not: bool) -> Option<Rule> {
        let value = self.style.pod_traffic.as_ref()?;
        Some(rule.from_pods(Is { not, value }))
    }
}
