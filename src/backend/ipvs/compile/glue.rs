//! Rules that belong to no Service port: they ask sets.

use std::borrow::Cow;

use super::Style;
use crate::backend::iptables::compile::{forward_marked, masquerade_marked};
use crate::backend::iptables::diff::Jump;
use crate::backend::iptables::names::{ChainName, FORWARD, MARK_MASQ, POSTROUTING, PROXY_FIREWALL, SERVICES};
use crate::backend::iptables::ruleset::{ConnStates, Is, Marking, Match, Rule, Table, Target};
use crate::backend::ipvs::names::{FILTER, LOAD_BALANCER, NODE_PORT, SOURCE_RANGES_FIREWALL};
use crate::backend::ipvs::ruleset::{Set, Sets};
use crate::net::{IpFamily, Protocol};
use crate::plan::NodePlan;

/// kube-proxy's jumps, in the order in which it puts each at the head of its chain.
pub const JUMPS: [Jump; 9] = {
    use Table::{Filter, Nat};
    [
        Jump::new(Nat, "OUTPUT", "KUBE-SERVICES", false, "kubernetes service portals"),
        Jump::new(Nat, "PREROUTING", "KUBE-SERVICES", false, "kubernetes service portals"),
        Jump::new(Nat, "POSTROUTING", "KUBE-POSTROUTING", false, "kubernetes postrouting rules"),
        Jump::new(Filter, "FORWARD", "KUBE-FORWARD", false, "kubernetes forwarding rules"),
        Jump::new(Filter, "INPUT", "KUBE-NODE-PORT", false, "kubernetes health check rules"),
        Jump::new(Filter, "INPUT", "KUBE-PROXY-FIREWALL", false, "kube-proxy firewall rules"),
        Jump::new(Filter, "FORWARD", "KUBE-PROXY-FIREWALL", false, "kube-proxy firewall rules"),
        Jump::new(Filter, "INPUT", "KUBE-IPVS-FILTER", false, "kubernetes ipvs access filter"),
        Jump::new(Filter, "OUTPUT", "KUBE-IPVS-OUT-FILTER", false, "kubernetes ipvs access filter"),
    ]
};

/// Sets whose addresses are for who connects to Services, by address and port.
const SERVED: [Set; 4] = [Set::LoadBalancer, Set::ClusterIp, Set::ExternalIp, Set::ExternalIpLocal];

/// Sides of a packet that sets of addresses and ports are asked for.
const DST: &str = "dst";
const DST_DST: &str = "dst,dst";
const DST_DST_SRC: &str = "dst,dst,src";
const SRC_DST: &str = "src,dst";

/// Chains with all their rules, in the order in which kube-proxy declares them, but for
/// [`crate::backend::ipvs::names::OUT_FILTER`], whose rules are those of Service ports. Rules that would ask a set
/// without entries, one that is not among `used`, are left out.
pub fn glue(node: &NodePlan, style: &Style, used: Sets) -> Vec<(Table, ChainName, Vec<Rule>)> {
    let (family, mark) = (node.family, Marking::bit(style.mark));
    let glue = Writer { family, node, used };
    vec![
        (Table::Nat, SERVICES, glue.services()),
        (Table::Nat, POSTROUTING, glue.postrouting(mark, style.random_fully)),
        (Table::Nat, NODE_PORT, glue.node_port()),
        (Table::Nat, LOAD_BALANCER, glue.load_balancer()),
        (Table::Nat, MARK_MASQ, vec![Rule::to(Target::SetMark(mark))]),
        (Table::Filter, FORWARD, forward_marked(mark).to_vec()),
        (Table::Filter, NODE_PORT, vec![glue.commented(Rule::to(Target::Accept), Set::HealthCheckNodePort, DST)]),
        (Table::Filter, PROXY_FIREWALL, glue.proxy_firewall()),
        (Table::Filter, SOURCE_RANGES_FIREWALL, glue.source_ranges()),
        (Table::Filter, FILTER, glue.filter()),
    ]
}

struct Writer<'a> {
    family: IpFamily,
    node: &'a NodePlan,
    used: Sets,
}

// === impl Writer ===

impl Writer<'_> {
    /// The rule, for packets of which a set has these sides.
    fn asking(&self, rule: Rule, set: Set, sides: &'static str) -> Rule {
        rule.with(Match::InSet { set: set.name(self.family).into(), sides: sides.into() })
    }

    fn commented(&self, rule: Rule, set: Set, sides: &'static str) -> Rule {
        self.asking(rule.comment(Cow::Borrowed(set.comment())), set, sides)
    }

    /// So too, if the set has entries.
    fn if_used(&self, rule: Rule, set: Set, sides: &'static str) -> Option<Rule> {
        self.used.contains(set).then(|| self.commented(rule, set, sides))
    }

    fn services(&self) -> Vec<Rule> {
        let mut rules = vec![Rule::to(Target::Return).from(self.family.loopback())];
        rules.extend(self.if_used(Rule::jump(LOAD_BALANCER), Set::LoadBalancer, DST_DST));
        rules.extend(self.cluster_ips());
        rules.extend(self.if_used(Rule::jump(MARK_MASQ), Set::ExternalIp, DST_DST));
        for set in [Set::ExternalIp, Set::ExternalIpLocal] {
            // What comes from outside, not through a bridge of pods, and from none of the node's processes.
            let accept = || self.if_used(Rule::to(Target::Accept), set, DST_DST);
            rules.extend(accept().map(|rule| rule.with(Match::NotFromBridge).with(Match::SourceIsNotLocal)));
            rules.extend(accept().map(|rule| rule.with(Match::DestinationIsLocal)));
        }
        rules.push(Rule::jump(NODE_PORT).with(Match::DestinationIsLocal));
        let served = [Set::ClusterIp, Set::LoadBalancer].into_iter().filter(|set| self.used.contains(*set));
        rules.extend(served.map(|set| self.asking(Rule::to(Target::Accept), set, DST_DST)));
        rules
    }

    /// What is sent to cluster IPs is masqueraded if it does not come from a pod of this node: the answer would not come
    /// back through it. Where pods cannot be told, at least what a process of this node sends, whose source is the
    /// cluster IP itself.
    fn cluster_ips(&self) -> Option<Rule> {
        let mark = || Rule::jump(MARK_MASQ);
        if self.node.masquerade_all {
            return self.if_used(mark(), Set::ClusterIp, DST_DST);
        }
        match &self.node.pod_traffic {
            None => self.if_used(mark(), Set::ClusterIp, SRC_DST),
            Some(pods) => self.if_used(mark().from_pods(Is::not_so(pods)), Set::ClusterIp, DST_DST),
        }
    }

    fn postrouting(&self, mark: Marking, random_fully: bool) -> Vec<Rule> {
        let hairpin = Rule::to(Target::Masquerade { random_fully: false });
        let hairpin = self.if_used(hairpin, Set::LoopBack, DST_DST_SRC);
        hairpin.into_iter().chain(masquerade_marked(mark, random_fully)).collect()
    }

    fn node_port(&self) -> Vec<Rule> {
        let sets = [
            (Protocol::Tcp, Set::NodePortLocalTcp, Set::NodePortTcp, DST),
            (Protocol::Udp, Set::NodePortLocalUdp, Set::NodePortUdp, DST),
            (Protocol::Sctp, Set::NodePortLocalSctpHash, Set::NodePortSctpHash, DST_DST),
        ];
        let rules = |(protocol, local, all, sides)| {
            let keep = self.if_used(Rule::to(Target::Return).of(protocol), local, sides);
            keep.into_iter().chain(self.if_used(Rule::jump(MARK_MASQ).of(protocol), all, sides))
        };
        sets.into_iter().flat_map(rules).collect()
    }

    fn load_balancer(&self) -> Vec<Rule> {
        let keep = self.if_used(Rule::to(Target::Return), Set::LoadBalancerLocal, DST_DST);
        keep.into_iter().chain([Rule::jump(MARK_MASQ)]).collect()
    }

    fn proxy_firewall(&self) -> Vec<Rule> {
        self.if_used(Rule::jump(SOURCE_RANGES_FIREWALL), Set::LoadBalancerFw, DST_DST).into_iter().collect()
    }

    fn source_ranges(&self) -> Vec<Rule> {
        let sets = [Set::LoadBalancerSourceCidr, Set::LoadBalancerSourceIp];
        let allowed = sets.into_iter().filter_map(|set| self.if_used(Rule::to(Target::Return), set, DST_DST_SRC));
        allowed.chain([Rule::to(Target::Drop)]).collect()
    }

    /// Addresses of the link are the node's own: what else listens there must not be reached through them.
    fn filter(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> =
            SERVED.iter().map(|set| self.asking(Rule::to(Target::Return), *set, DST_DST)).collect();
        rules.push(self.asking(Rule::to(Target::Return), Set::HealthCheckNodePort, DST));
        let refuse = Rule::to(Target::Reject(self.family)).with(Match::ConnState(Is::so(ConnStates::NEW)));
        rules.push(self.asking(refuse, Set::IpvsIps, DST));
        rules
    }
}
