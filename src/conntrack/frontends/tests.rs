//! Every row of the table in the module's documentation, and the rest as a property: flows that rules made, Services
//! that change, syncs that fail.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::ServiceName;
use crate::net::IpFamily;
use crate::plan::{Frontend, Pool, Unmet};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn backend(text: &str) -> Backend {
    let at = address(text);
    Backend { ip: at.ip(), port: at.port() }
}

/// A flow to an address that leads to an endpoint, or nowhere.
fn flow(destination: &str, endpoint: Option<&str>) -> Flow {
    Flow { destination: address(destination), endpoint: backend(endpoint.unwrap_or(destination)) }
}

fn name(text: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName { service: ServiceName::new("ns", text), port: "".into(), protocol }
}

fn service(listen: &[Listen], serving: &[&str]) -> Arc<ServicePlan> {
    let frontend = |listen: &Listen| Frontend { listen: *listen, allow_from: None, routes: Default::default() };
    Arc::new(ServicePlan {
        frontends: listen.iter().map(frontend).collect(),
        cluster: Pool::default(),
        local: Pool::default(),
        affinity_seconds: None,
        health_check: None,
        here: Pool::default(),
        serving: serving.iter().map(|endpoint| backend(endpoint)).collect(),
        unmet: Unmet::default(),
        endpoints: 0,
    })
}

fn cluster_ip(text: &str) -> Listen {
    Listen::ClusterIp(address(text).ip(), address(text).port())
}

fn external_ip(text: &str) -> Listen {
    Listen::ExternalIp(address(text).ip(), address(text).port())
}

fn load_balancer(text: &str) -> Listen {
    Listen::LoadBalancerIp(address(text).ip(), address(text).port())
}

fn node_plan(addresses: NodePortAddresses) -> Arc<NodePlan> {
    Arc::new(NodePlan {
        node_port_addresses: addresses,
        health_check_addresses: NodePortAddresses::All,
        localhost_node_ports: true,
        ..NodePlan::unknown(IpFamily::V4)
    })
}

/// A plan and the frontends known from it.
struct Node {
    frontends: Frontends,
    plan: Plan,
}

impl Node {
    fn new() -> Node {
        let plan = Plan::new(node_plan(NodePortAddresses::All), BTreeMap::new());
        let mut frontends = Frontends::default();
        frontends.set_addresses(&["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
        Node { frontends, plan }
    }

    fn set(&mut self, service: &str, plan: Option<Arc<ServicePlan>>) -> Scope {
        self.plan.set(name(service, Protocol::Udp), plan);
        Scope::Services([name(service, Protocol::Udp)].into())
    }

    fn plans(&mut self, scope: &Scope) {
        self.frontends.planned(Change::of(&self.plan, scope));
    }

    /// A sync that succeeds; what is due after it.
    fn syncs(&mut self, scope: &Scope) -> Due {
        self.plans(scope);
        self.frontends.applied(&[]);
        self.frontends.take_due()
    }

    fn changes(&mut self, service: &str, plan: Option<Arc<ServicePlan>>) -> Due {
        let scope = self.set(service, plan);
        self.syncs(&scope)
    }

    #[track_caller]
    fn check(&self, due: &Due, destination: &str, endpoint: Option<&str>, is_stale: bool) {
        let flow = flow(destination, endpoint);
        assert_eq!(self.frontends.judge(due)(&flow), is_stale, "{flow:?}");
    }
}

const VIP: &str = "10.0.0.10:53";
const LB: &str = "203.0.113.1:53";
const EXTERNAL: &str = "198.18.0.1:53";
const AT_NODE: &str = "192.0.2.1:30053";
const ELSEWHERE: &str = "192.0.2.77:30053";

const A: &str = "10.1.0.1:5353";
const B: &str = "10.1.0.2:5353";

/// A Service with every kind of frontend.
fn dns(serving: &[&str]) -> Arc<ServicePlan> {
    let listen = [cluster_ip(VIP), external_ip(EXTERNAL), load_balancer(LB), Listen::NodePort(30053)];
    service(&listen, serving)
}

#[test]
fn endpoint_removed() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A, B])));
    let due = node.changes("dns", Some(dns(&[B])));
    for frontend in [VIP, LB, EXTERNAL, AT_NODE, "127.0.0.1:30053"] {
        node.check(&due, frontend, Some(A), true);
        node.check(&due, frontend, Some(B), false);
        node.check(&due, frontend, Some("10.1.0.2:53"), true);
        node.check(&due, frontend, None, true);
    }
    for other in ["10.0.0.10:54", "10.0.0.11:53", "203.0.113.1:54", "192.0.2.1:53", "192.0.2.1:30054"] {
        node.check(&due, other, Some(A), false);
        node.check(&due, other, None, false);
    }
}

#[test]
fn no_endpoint_left() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A])));
    let due = node.changes("dns", Some(dns(&[])));
    for frontend in [VIP, LB, EXTERNAL, AT_NODE] {
        node.check(&due, frontend, Some(A), true);
        node.check(&due, frontend, None, false);
    }
    // And one comes: whoever has knocked in vain must not go on doing so.
    let due = node.changes("dns", Some(dns(&[B])));
    for frontend in [VIP, LB, EXTERNAL, AT_NODE] {
        node.check(&due, frontend, None, true);
        node.check(&due, frontend, Some(B), false);
    }
}

#[test]
fn service_deleted() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A])));
    node.changes("other", Some(service(&[cluster_ip("10.0.0.11:53")], &[A])));
    let due = node.changes("dns", None);
    for frontend in [VIP, LB, EXTERNAL, AT_NODE] {
        node.check(&due, frontend, Some(A), true);
        node.check(&due, frontend, None, false);
    }
    node.check(&due, "10.0.0.11:53", Some(A), false);
    assert!(node.frontends.ports.len() == 1 && node.frontends.claims.len() == 1, "nothing is remembered for ever");
}

#[test]
fn frontend_withdrawn() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A])));
    let due = node.changes("dns", Some(service(&[cluster_ip(VIP)], &[A])));
    for frontend in [LB, EXTERNAL, AT_NODE] {
        node.check(&due, frontend, Some(A), true);
        node.check(&due, frontend, None, false);
    }
    node.check(&due, VIP, Some(A), false);
}

#[test]
fn a_port_number_is_not_yet_a_node_port() {
    let mut node = Node::new();
    node.changes("game", Some(service(&[cluster_ip("10.0.0.12:30053")], &[A])));
    node.changes("dns", Some(dns(&[A, B])));
    let due = node.changes("dns", Some(dns(&[B])));
    // Passing by, or to a process of another node.
    node.check(&due, ELSEWHERE, None, false);
    node.check(&due, "10.1.0.9:30053", None, false);
    // Another Service has this port at its own address.
    node.check(&due, "10.0.0.12:30053", Some(A), false);
    // The node may have had this address when the flow began.
    node.check(&due, ELSEWHERE, Some(A), true);
    node.check(&due, ELSEWHERE, Some(B), false);
}

#[test]
fn node_ports_on_some_addresses() {
    let mut node = Node::new();
    node.plan.node = node_plan(NodePortAddresses::Only(vec!["192.0.2.77".parse().unwrap()]));
    node.changes("dns", Some(dns(&[])));
    let due = node.changes("dns", Some(dns(&[A])));
    node.check(&due, ELSEWHERE, None, true);
    node.check(&due, AT_NODE, None, false);
    node.check(&due, "127.0.0.1:30053", None, false);
    // Now there too.
    let addresses = ["192.0.2.1", "192.0.2.77"].map(|ip| ip.parse().unwrap());
    node.plan.node = node_plan(NodePortAddresses::Only(addresses.into()));
    let due = node.syncs(&Scope::Everything);
    node.check(&due, AT_NODE, None, true);
    node.check(&due, AT_NODE, Some(A), false);
    node.check(&due, VIP, Some(B), false);
    assert_eq!(due.0.len(), 1, "only node ports are concerned: {due:?}");
}

/// The rules for addresses come first.
#[test]
fn an_external_ip_of_the_node_itself() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A])));
    let due = node.changes("web", Some(service(&[external_ip(AT_NODE)], &[B])));
    node.check(&due, AT_NODE, Some(A), true);
    node.check(&due, AT_NODE, Some(B), false);
    let due = node.changes("dns", Some(dns(&[])));
    node.check(&due, AT_NODE, Some(B), false);
    node.changes("dns", Some(dns(&[A])));
    let due = node.changes("web", None);
    node.check(&due, AT_NODE, Some(A), false);
    node.check(&due, AT_NODE, Some(B), true);
}

#[test]
fn two_services_with_one_address() {
    let mut node = Node::new();
    node.changes("one", Some(service(&[external_ip(EXTERNAL)], &[A])));
    node.changes("two", Some(service(&[external_ip(EXTERNAL)], &[B])));
    let due = node.changes("one", None);
    node.check(&due, EXTERNAL, Some(A), true);
    node.check(&due, EXTERNAL, Some(B), false);
}

#[test]
fn only_what_changed_is_due() {
    let mut node = Node::new();
    assert_eq!(node.syncs(&Scope::Audit), Due::default(), "nothing is there");
    node.changes("other", Some(service(&[cluster_ip("10.0.0.11:53")], &[A])));
    assert_eq!(node.changes("dns", Some(dns(&[A]))).0.len(), 4);
    for scope in [Scope::Everything, Scope::Audit, Scope::Services(BTreeSet::new())] {
        assert_eq!(node.syncs(&scope), Due::default(), "{scope:?}: nothing has changed");
    }
    node.plan.set(name("web", Protocol::Tcp), Some(dns(&[A])));
    assert_eq!(node.syncs(&Scope::Everything), Due::default(), "TCP is not looked at");
    assert_eq!(node.syncs(&Scope::Services([name("web", Protocol::Tcp)].into())), Due::default());

    node.frontends.drifted();
    assert_eq!(node.frontends.take_due(), Due::default(), "the rules are not there yet");
    assert_eq!(node.syncs(&Scope::Everything).0.len(), 5, "flows may have begun without rules");
}

#[test]
fn while_rules_are_written_both_plans_are_right() {
    let mut node = Node::new();
    let due = node.changes("dns", Some(dns(&[A])));
    let scope = node.set("dns", Some(dns(&[B])));
    node.plans(&scope);
    node.check(&due, VIP, Some(A), false);
    node.check(&due, VIP, Some(B), false);
    node.check(&due, VIP, Some("10.1.0.3:5353"), true);
    assert_eq!(node.frontends.take_due(), Due::default(), "nothing is due before they are there");
    node.frontends.applied(&[]);
    let due = node.frontends.take_due();
    node.check(&due, VIP, Some(A), true);
    node.check(&due, VIP, Some(B), false);
}

#[test]
fn what_a_failed_sync_was_about_is_due_after_the_next_one() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A])));
    let scope = node.set("dns", None);
    node.plans(&scope);
    // It fails. The next one is about something else, but looks after what failed as well.
    let due = node.changes("other", Some(service(&[cluster_ip("10.0.0.11:53")], &[A])));
    node.check(&due, VIP, Some(A), true);
    node.check(&due, AT_NODE, Some(A), true);
}

#[test]
fn what_the_kernel_refused_is_due_when_it_takes_it() {
    let mut node = Node::new();
    node.changes("dns", Some(dns(&[A])));
    let scope = node.set("dns", Some(dns(&[B])));
    node.plans(&scope);
    node.frontends.applied(&[name("dns", Protocol::Udp)]);
    assert_eq!(node.frontends.take_due(), Due::default());
    let due = node.changes("other", Some(service(&[cluster_ip("10.0.0.11:53")], &[A])));
    assert_eq!(due.0.len(), 1, "only the other one: {due:?}");
    // Its retry is refused again, then succeeds.
    node.plans(&Scope::Everything);
    node.frontends.applied(&[name("dns", Protocol::Udp)]);
    assert_eq!(node.frontends.take_due(), Due::default());
    let due = node.syncs(&Scope::Everything);
    node.check(&due, VIP, Some(A), true);
    node.check(&due, VIP, Some(B), false);
}

/// How a made-up sync ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Succeeds,
    FailsBefore,
    FailsAfter,
    Refuses(usize),
}

const SERVICES: [&str; 3] = ["one", "two", "three"];
const ADDRESSES: [&str; 3] = ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.2:30001"];
const NODE_PORTS: [u16; 2] = [30001, 30002];
const ENDPOINTS: [&str; 4] = ["10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53", "10.1.0.3:54"];

type Made = (usize, Option<(Vec<bool>, Vec<bool>)>);

fn made_up(flags: &[bool], endpoints: &[bool]) -> Arc<ServicePlan> {
    let listen = ADDRESSES.iter().map(|text| external_ip(text)).chain(NODE_PORTS.map(Listen::NodePort));
    let listen: Vec<Listen> = listen.zip(flags).filter(|(_, is)| **is).map(|(listen, _)| listen).collect();
    let serving: Vec<&str> = ENDPOINTS.into_iter().zip(endpoints).filter(|(_, is)| **is).map(|(at, _)| at).collect();
    service(&listen, &serving)
}

fn changes() -> impl Strategy<Value = Vec<(Made, bool, End)>> {
    let flags = (proptest::collection::vec(any::<bool>(), 5), proptest::collection::vec(any::<bool>(), 4));
    let end = prop_oneof![
        3 => Just(End::Succeeds),
        1 => Just(End::FailsBefore),
        1 => Just(End::FailsAfter),
        1 => (0..SERVICES.len()).prop_map(End::Refuses),
    ];
    let change = (0..SERVICES.len(), proptest::option::weighted(0.8, flags));
    proptest::collection::vec((change, any::<bool>(), end), 1..12)
}

/// Flows that rules of a plan may make.
fn flows_of(plans: &BTreeMap<ServicePortName, Arc<ServicePlan>>) -> HashSet<Flow> {
    let taken: HashSet<Key> = plans.values().flat_map(|plan| keys(plan)).collect();
    let mut flows = HashSet::new();
    for plan in plans.values() {
        for key in keys(plan) {
            let destination = match key {
                Key::Address(at) => at,
                Key::NodePort(port) => SocketAddr::new("192.0.2.1".parse().unwrap(), port),
            };
            let is_hidden = matches!(key, Key::NodePort(_)) && taken.contains(&Key::Address(destination));
            let endpoints = plan.serving.iter().filter(|_| !is_hidden);
            flows.extend(endpoints.map(|endpoint| Flow { destination, endpoint }));
        }
    }
    flows
}

/// The rules of a made-up kernel.
#[derive(Clone, Default)]
struct Kernel {
    rules: BTreeMap<ServicePortName, Arc<ServicePlan>>,
    /// What it has refused: that is not tried again before a sync is about it.
    set_aside: BTreeMap<ServicePortName, Option<Arc<ServicePlan>>>,
}

impl Kernel {
    fn write(&mut self, plan: &Plan, is_about: impl Fn(&ServicePortName) -> bool, refused: &[ServicePortName]) {
        let old = std::mem::replace(&mut self.rules, plan.services().clone());
        self.set_aside.retain(|name, plan| self.rules.get(name) == plan.as_ref() && !is_about(name));
        self.set_aside.extend(refused.iter().map(|name| (name.clone(), plan.services().get(name).cloned())));
        for name in self.set_aside.keys() {
            self.rules.remove(name);
            self.rules.extend(old.get_key_value(name).map(|(name, plan)| (name.clone(), plan.clone())));
        }
    }
}

proptest! {
    /// Whatever changes and fails: what is deleted is wrong by what the kernel holds and by what it is to hold,
    /// and once all rules are written, what remains is right.
    #[test]
    fn flows_follow_the_rules(changes in changes()) {
        let mut node = Node::new();
        let mut kernel = Kernel::default();
        // What it held when last that was certain.
        let mut certain = BTreeMap::new();
        let mut flows: HashSet<Flow> = HashSet::new();
        let mut owed = Due::default();
        let steps = changes.into_iter().map(|(change, everything, end)| (Some(change), everything, end));
        for (change, everything, end) in steps.chain([(None, true, End::Succeeds)]) {
            let scope = match change {
                None => Scope::Everything,
                Some((service, made)) => node.set(SERVICES[service], made.map(|(flags, at)| made_up(&flags, &at))),
            };
            let scope = if everything { Scope::Everything } else { scope };
            let is_about = |name: &ServicePortName| match &scope {
                Scope::Services(names) => names.contains(name),
                _ => true,
            };
            // A removal is never refused.
            let refused = match end {
                End::Refuses(i) => vec![name(SERVICES[i], Protocol::Udp)],
                _ => Vec::new(),
            };
            let is_refused = |name: &ServicePortName| is_about(name) && node.plan.services().contains_key(name);
            let refused: Vec<_> = refused.into_iter().filter(is_refused).collect();

            node.plans(&scope);
            match end {
                // The next sync tries again, whatever it is about.
                End::FailsBefore => kernel.set_aside.retain(|name, _| !is_about(name)),
                _ => kernel.write(&node.plan, is_about, &refused),
            }
            flows.extend(flows_of(&kernel.rules));
            // Rules that a failed sync wrote, and that were to be others since: flows by them may go, and come back.
            let mut known = kernel.rules.clone();
            known.retain(|name, plan| {
                certain.get(name) == Some(&*plan) || node.plan.services().get(name) == Some(&*plan)
            });
            let right = flows_of(&known);
            // Somebody looks at the flows before the sync has ended.
            for flow in flows.iter().filter(|flow| right.contains(flow)) {
                prop_assert!(!node.frontends.judge(&owed)(flow), "{:?} is deleted in a hurry", flow);
            }
            if matches!(end, End::FailsBefore | End::FailsAfter) {
                continue;
            }
            node.frontends.applied(&refused);
            owed.extend(node.frontends.take_due());
            let mut stale = Vec::new();
            for flow in &flows {
                if node.frontends.judge(&owed)(flow) {
                    prop_assert!(!right.contains(flow), "{:?} is deleted, but right", flow);
                    stale.push(*flow);
                }
            }
            stale.iter().for_each(|flow| _ = flows.remove(flow));
            owed = Due::default();
            for name in SERVICES.map(|service| name(service, Protocol::Udp)) {
                if !kernel.set_aside.contains_key(&name) {
                    certain.remove(&name);
                    certain.extend(kernel.rules.get_key_value(&name).map(|(name, plan)| (name.clone(), plan.clone())));
                }
            }
        }
        let right = flows_of(&kernel.rules);
        prop_assert_eq!(&kernel.rules, node.plan.services());
        for flow in &flows {
            prop_assert!(right.contains(flow), "{:?} is stale and remains", flow);
        }
    }
}
