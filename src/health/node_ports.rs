//! Which health check node ports there are, and what they answer: read off the Plan after each sync
//! that succeeded, for the Services that it was about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::sync::mpsc;

use super::Health;
use super::listeners::Listeners;
use crate::backend::Scope;
use crate::events::Recorder;
use crate::model::{ServiceName, ServicePortName};
use crate::net::IpFamily;
use crate::plan::{NodePortAddresses, Plan};
use crate::sync::notice::{Notice, Observer};

/// What a load balancer is told about a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The port at which it asks.
    pub port: u16,
    /// Ready endpoints on this node: distinct addresses over all ports of the Service.
    pub local_endpoints: usize,
}

/// Keeps the listeners of both families in step with the Plans.
#[derive(Debug)]
pub struct NodePorts {
    lines: Vec<Line>,
}

/// One family.
#[derive(Debug)]
struct Line {
    family: IpFamily,
    known: Known,
    orders: mpsc::UnboundedSender<Vec<Order>>,
}

/// Something to do about listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Listen on these addresses and no others.
    Addresses(Vec<IpAddr>),
    /// Give this answer, or none any more.
    Service(ServiceName, Option<Answer>),
}

/// What was ordered so far.
#[derive(Debug, Default)]
struct Known {
    answers: BTreeMap<ServiceName, Answer>,
    addresses: Option<NodePortAddresses>,
    /// What syncs were about that have failed since the last one that did not.
    unsettled: Unsettled,
}

#[derive(Debug, Default)]
struct Unsettled {
    everything: bool,
    services: BTreeSet<ServiceName>,
}

/// The answers for every Service of a Plan that is asked for.
pub fn answers(plan: &Plan) -> BTreeMap<ServiceName, Answer> {
    let mut answers = BTreeMap::new();
    let asked = plan.services().iter().filter(|(_, service)| service.health_check.is_some());
    for (name, _) in asked {
        // Ports of a Service follow each other.
        if answers.last_key_value().is_none_or(|(last, _)| *last != name.service) {
            answers.extend(answer(plan, &name.service).map(|answer| (name.service.clone(), answer)));
        }
    }
    answers
}

fn answer(plan: &Plan, service: &ServiceName) -> Option<Answer> {
    let check = |port: &ServicePortName| plan.services().get(port)?.health_check.as_ref();
    let checks: Vec<_> = plan.ports_of(service).filter_map(check).collect();
    let port = checks.first()?.node_port;
    let here: BTreeSet<&IpAddr> = checks.iter().flat_map(|check| &check.ready_here).collect();
    Some(Answer { port, local_endpoints: here.len() })
}

// === impl NodePorts ===

impl NodePorts {
    /// Begins with no listeners. Must be called within the runtime: each family's are looked after by a
    /// task.
    pub fn new(families: impl IntoIterator<Item = IpFamily>, health: &Health, recorder: &Recorder) -> NodePorts {
        let line = |family| {
            let (orders, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Listeners::new(family, health.clone(), recorder.clone()).run(receiver));
            Line { family, known: Known::default(), orders }
        };
        NodePorts { lines: families.into_iter().map(line).collect() }
    }
}

impl Observer for NodePorts {
    fn notice(&mut self, notice: &Notice<'_>) {
        let Notice::Ended(sync) = notice else { return };
        let Some(line) = self.lines.iter_mut().find(|line| line.family == sync.family) else { return };
        line.known.unsettled.add(sync.scope);
        // Nobody is told of endpoints that rules do not lead to yet.
        if sync.result.is_ok() && !sync.unfinished {
            // Also if there is nothing to do: what failed is tried again after each sync.
            let _ = line.orders.send(line.known.settle(sync.plan));
        }
    }
}

// === impl Known ===

impl Known {
    fn settle(&mut self, plan: &Plan) -> Vec<Order> {
        let mut orders = Vec::new();
        let addresses = &plan.node.health_check_addresses;
        if self.addresses.as_ref() != Some(addresses) {
            self.addresses = Some(addresses.clone());
            orders.push(Order::Addresses(concrete(addresses, plan.node.family)));
        }
        let Unsettled { everything, services } = std::mem::take(&mut self.unsettled);
        let mut found: BTreeMap<ServiceName, Option<Answer>> = match everything {
            true => answers(plan).into_iter().map(|(name, answer)| (name, Some(answer))).collect(),
            false => services.into_iter().map(|name| (name.clone(), answer(plan, &name))).collect(),
        };
        if everything {
            self.answers.keys().for_each(|name| _ = found.entry(name.clone()).or_insert(None));
        }
        for (name, answer) in found {
            if self.answers.get(&name) != answer.as_ref() {
                match answer {
                    Some(answer) => self.answers.insert(name.clone(), answer),
                    None => self.answers.remove(&name),
                };
                orders.push(Order::Service(name, answer));
            }
        }
        orders
    }
}

// === impl Unsettled ===

impl Unsettled {
    fn add(&mut self, scope: &Scope) {
        match scope {
            Scope::Services(ports) => self.services.extend(ports.iter().map(|port| port.service.clone())),
            Scope::Everything | Scope::Audit => self.everything = true,
        }
    }
}

fn concrete(addresses: &NodePortAddresses, family: IpFamily) -> Vec<IpAddr> {
    match (addresses, family) {
        (NodePortAddresses::All, IpFamily::V4) => vec![Ipv4Addr::UNSPECIFIED.into()],
        (NodePortAddresses::All, IpFamily::V6) => vec![Ipv6Addr::UNSPECIFIED.into()],
        (NodePortAddresses::Only(addresses), _) => addresses.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::net::Protocol;
    use crate::plan::{HealthCheck, NodePlan, Pool, ServicePlan, Unmet};

    fn plan(addresses: NodePortAddresses, services: &[(&str, &str, u16, &[u8])]) -> Plan {
        let node = NodePlan {
            node_port_addresses: NodePortAddresses::All,
            health_check_addresses: addresses,
            ..NodePlan::unknown(IpFamily::V4)
        };
        let service = |(service, port, node_port, here): &(&str, &str, u16, &[u8])| {
            let ready_here = here.iter().map(|n| [10, 0, 0, *n].into()).collect();
            let plan = ServicePlan {
                frontends: Box::default(),
                cluster: Pool::default(),
                local: Pool::default(),
                affinity_seconds: None,
                health_check: (*node_port > 0).then_some(HealthCheck { node_port: *node_port, ready_here }),
                here: Pool::default(),
                serving: Pool::default(),
                unmet: Unmet::default(),
                endpoints: 0,
            };
            (name(service, port), Arc::new(plan))
        };
        Plan::new(Arc::new(node), services.iter().map(service).collect())
    }

    fn name(service: &str, port: &str) -> ServicePortName {
        ServicePortName { service: ServiceName::new("ns", service), port: port.into(), protocol: Protocol::Tcp }
    }

    fn about(services: &[&str]) -> Scope {
        Scope::Services(services.iter().map(|service| name(service, "http")).collect())
    }

    fn ordered(service: &str, answer: Option<(u16, usize)>) -> Order {
        let answer = answer.map(|(port, local_endpoints)| Answer { port, local_endpoints });
        Order::Service(ServiceName::new("ns", service), answer)
    }

    #[track_caller]
    fn check(known: &mut Known, scope: &Scope, plan: &Plan, orders: &[Order]) {
        known.unsettled.add(scope);
        assert_eq!(known.settle(plan), orders);
    }

    #[test]
    fn addresses_of_all_ports_count_once() {
        let plan = plan(
            NodePortAddresses::All,
            &[
                ("a", "http", 31000, &[1, 2]),
                ("a", "tls", 31000, &[2, 3]),
                ("b", "http", 0, &[]),
                ("c", "", 31001, &[]),
            ],
        );
        let expected = [
            (ServiceName::new("ns", "a"), Answer { port: 31000, local_endpoints: 3 }),
            (ServiceName::new("ns", "c"), Answer { port: 31001, local_endpoints: 0 }),
        ];
        assert_eq!(answers(&plan), expected.into());
    }

    #[test]
    fn what_a_sync_was_about_is_looked_at_and_nothing_else() {
        let mut known = Known::default();
        let all = || NodePortAddresses::All;
        let any = Order::Addresses(vec![Ipv4Addr::UNSPECIFIED.into()]);
        let first = plan(all(), &[("a", "http", 31000, &[1]), ("b", "http", 31001, &[])]);
        let both = [any, ordered("a", Some((31000, 1))), ordered("b", Some((31001, 0)))];
        check(&mut known, &Scope::Audit, &first, &both);
        check(&mut known, &Scope::Everything, &first, &[]);
        let second = plan(all(), &[("a", "http", 31000, &[1, 2]), ("b", "http", 31002, &[]), ("c", "http", 0, &[])]);
        check(&mut known, &about(&["a", "c"]), &second, &[ordered("a", Some((31000, 2)))]);
        check(&mut known, &about(&["b"]), &second, &[ordered("b", Some((31002, 0)))]);
        let third = plan(all(), &[("a", "http", 0, &[1, 2])]);
        check(&mut known, &about(&["a"]), &third, &[ordered("a", None)]);
        check(&mut known, &Scope::Everything, &third, &[ordered("b", None)]);
    }

    #[test]
    fn what_a_failed_sync_was_about_is_looked_at_after_the_next() {
        let mut known = Known::default();
        check(&mut known, &Scope::Audit, &plan(NodePortAddresses::Only(vec![]), &[]), &[Order::Addresses(vec![])]);
        known.unsettled.add(&about(&["a"]));
        let ip: IpAddr = [10, 0, 0, 1].into();
        let later = plan(NodePortAddresses::Only(vec![ip]), &[("a", "http", 31000, &[1]), ("b", "http", 31001, &[])]);
        let expected = [Order::Addresses(vec![ip]), ordered("a", Some((31000, 1))), ordered("b", Some((31001, 0)))];
        check(&mut known, &about(&["b"]), &later, &expected);
    }
}
