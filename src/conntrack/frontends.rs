//! Which frontend leads to which endpoints, and so which flows are stale.
//!
//! Before rules are written, while they are, and when they could not be written, the kernel may go
//! by the old plan of a Service port or by the new one: endpoints of both are right. Only when the
//! rules are known to be in the kernel, flows of the frontends concerned are due to be looked at.
//! The cost is that of the Service ports that changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::Flow;
use crate::backend::Scope;
use crate::model::ServicePortName;
use crate::net::Protocol;
use crate::plan::{Backend, Listen, NodePlan, NodePortAddresses, Plan, ServicePlan};

/// The frontends of all UDP Service ports of one family.
#[derive(Default)]
pub struct Frontends {
    ports: HashMap<ServicePortName, Port>,
    /// Who has a frontend; two Services may have the same external IP and port.
    claims: HashMap<Key, SmallVec<[ServicePortName; 1]>>,
    /// Ports of which the kernel may hold something else than `applied`.
    unsettled: BTreeSet<ServicePortName>,
    node: Option<Arc<NodePlan>>,
    addresses: HashSet<IpAddr>,
    /// Due once rules have been written.
    later: HashSet<Key>,
    due: Due,
}

/// Frontends whose flows are to be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due(HashSet<Key>);

/// What a sync is about, as far as UDP is concerned.
#[derive(Debug)]
pub struct Change {
    /// Whether `ports` are all there are.
    whole: bool,
    ports: BTreeMap<ServicePortName, Option<Arc<ServicePlan>>>,
    node: Arc<NodePlan>,
}

/// One frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An address of a Service.
    Address(SocketAddr),
    /// A port on the node's addresses.
    NodePort(u16),
}

/// What is known of one Service port.
#[derive(Default)]
struct Port {
    /// What the kernel held when last it was certain.
    applied: Option<Arc<ServicePlan>>,
    /// What it is to hold, while that is not certain.
    planned: Option<Arc<ServicePlan>>,
    state: State,
    /// Frontends that changed since it was last certain.
    touched: HashSet<Key>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The kernel holds `applied`.
    #[default]
    Settled,
    /// It may hold either. The next sync that succeeds has seen to it.
    Unknown,
    /// It refused `planned`. A sync about this port may change that.
    Refused,
}

// === impl Change ===

impl Change {
    /// What a sync of this scope is to bring the kernel to.
    pub fn of(plan: &Plan, scope: &Scope) -> Change {
        let is_udp = |name: &ServicePortName| name.protocol == Protocol::Udp;
        let ports = match scope {
            Scope::Services(names) => names
                .iter()
                .filter(|name| is_udp(name))
                .map(|name| (name.clone(), plan.services().get(name).cloned()))
                .collect(),
            Scope::Everything | Scope::Audit => {
                let ports = plan.services().iter().filter(|(name, _)| is_udp(name));
                ports.map(|(name, port)| (name.clone(), Some(port.clone()))).collect()
            }
        };
        Change { whole: !matches!(scope, Scope::Services(_)), ports, node: plan.node.clone() }
    }
}

// === impl Due ===

impl Due {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what else is to be looked at.
    pub fn extend(&mut self, other: Due) {
        self.0.extend(other.0);
    }
}

// === impl Frontends ===

impl Frontends {
    /// These are the addresses of the node's interfaces.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        self.addresses = addresses.iter().copied().collect();
    }

    /// A sync is about to begin: from now on the kernel may go by the new plans.
    pub fn planned(&mut self, change: Change) {
        let Change { whole, mut ports, node } = change;
        if whole {
            let gone = self.ports.keys().filter(|name| !ports.contains_key(*name)).cloned().collect::<Vec<_>>();
            ports.extend(gone.into_iter().map(|name| (name, None)));
        }
        for (name, plan) in ports {
            self.plan(name, plan);
        }
        if self.node.as_ref().is_none_or(|known| known.node_port_addresses != node.node_port_addresses) {
            self.later.extend(self.claims.keys().filter(|key| matches!(key, Key::NodePort(_))));
        }
        self.node = Some(node);
    }

    /// The sync has succeeded, but for these Service ports, whose previous rules stay.
    pub fn applied(&mut self, refused: &[ServicePortName]) {
        self.due.0.extend(self.later.drain());
        for name in std::mem::take(&mut self.unsettled) {
            let Some(port) = self.ports.get_mut(&name) else { continue };
            if refused.contains(&name) {
                port.state = State::Refused;
            }
            if port.state == State::Refused {
                self.unsettled.insert(name);
                continue;
            }
            self.served(name);
        }
    }

    /// The kernel has the new plan of this Service port, whatever it has of others.
    pub fn served(&mut self, name: ServicePortName) {
        self.unsettled.remove(&name);
        if let Some(port) = self.ports.get_mut(&name).filter(|port| port.state != State::Settled) {
            self.due.0.extend(port.touched.drain());
            self.put(name, |port| Port { applied: port.planned, ..Port::default() });
        }
    }

    /// Rules were found to be missing: flows may have begun that no rule has seen. Due when rules
    /// have been written again.
    pub fn drifted(&mut self) {
        self.later.extend(self.claims.keys());
    }

    /// Takes what is to be looked at.
    pub fn take_due(&mut self) -> Due {
        std::mem::take(&mut self.due)
    }

    /// Says of flows whether they are stale. Those of frontends that are not due are not.
    pub fn judge<'a>(&'a self, due: &'a Due) -> impl FnMut(&Flow) -> bool + 'a {
        let mut known: HashMap<Key, HashSet<Backend>> = HashMap::new();
        move |flow| {
            let Some(key) = self.frontend_of(flow, due) else { return false };
            let endpoints = known.entry(key).or_insert_with(|| self.endpoints(&key));
            // With no endpoint to go to, a new flow would fare no better than an untranslated one.
            !endpoints.contains(&flow.endpoint) && (flow.is_translated() || !endpoints.is_empty())
        }
    }

    fn plan(&mut self, name: ServicePortName, plan: Option<Arc<ServicePlan>>) {
        let known = self.ports.get(&name);
        let state = known.map_or(State::Settled, |port| port.state);
        let expected = known.and_then(|port| match port.state {
            State::Settled => port.applied.as_ref(),
            State::Unknown | State::Refused => port.planned.as_ref(),
        });
        let is_same = expected.map(Arc::as_ptr) == plan.as_ref().map(Arc::as_ptr);
        match state {
            State::Settled | State::Unknown if is_same => {}
            _ => {
                self.put(name.clone(), |mut port| {
                    port.touched.extend(port.keys());
                    port.touched.extend(plan.iter().flat_map(|plan| keys(plan)));
                    Port { planned: plan, state: State::Unknown, ..port }
                });
                self.unsettled.insert(name);
            }
        }
    }

    /// Changes what is known of a port, and who has which frontend.
    fn put(&mut self, name: ServicePortName, change: impl FnOnce(Port) -> Port) {
        let old = self.ports.remove(&name).unwrap_or_default();
        for key in old.keys() {
            if let Some(names) = self.claims.get_mut(&key) {
                names.retain(|known| *known != name);
                if names.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
        let new = change(old);
        for key in new.keys() {
            let names = self.claims.entry(key).or_default();
            if !names.contains(&name) {
                names.push(name.clone());
            }
        }
        if new.state != State::Settled || new.applied.is_some() {
            self.ports.insert(name, new);
        }
    }

    /// The frontend that a flow belongs to, if it is due. Rules for addresses come before those for
    /// node ports.
    fn frontend_of(&self, flow: &Flow, due: &Due) -> Option<Key> {
        let (address, port) = (Key::Address(flow.destination), Key::NodePort(flow.destination.port()));
        let is_due = due.0.contains(&address);
        if self.claims.contains_key(&address) {
            return is_due.then_some(address);
        }
        let port_is_due = due.0.contains(&port);
        let to_node = self.serves_node_ports(flow.destination.ip());
        // An address that is no longer there was a Service's own, or one of the node's.
        let belongs = to_node || (flow.is_translated() && !is_due);
        match belongs && (port_is_due || (is_due && self.claims.contains_key(&port))) {
            true => Some(port),
            false => is_due.then_some(address),
        }
    }

    fn serves_node_ports(&self, ip: IpAddr) -> bool {
        let Some(node) = &self.node else { return false };
        match &node.node_port_addresses {
            NodePortAddresses::All if ip.is_loopback() => node.localhost_node_ports,
            NodePortAddresses::All => self.addresses.contains(&ip),
            NodePortAddresses::Only(addresses) => addresses.contains(&ip),
        }
    }

    fn endpoints(&self, key: &Key) -> HashSet<Backend> {
        let names = self.claims.get(key).into_iter().flatten();
        let plans = names.filter_map(|name| self.ports.get(name)).flat_map(Port::plans);
        plans.flat_map(|plan| plan.serving.iter()).collect()
    }
}

// === impl Port ===

impl Port {
    /// What the kernel may hold.
    fn plans(&self) -> impl Iterator<Item = &Arc<ServicePlan>> {
        self.applied.iter().chain(&self.planned)
    }

    fn keys(&self) -> Vec<Key> {
        self.plans().flat_map(|plan| keys(plan)).collect()
    }
}

fn keys(plan: &ServicePlan) -> impl Iterator<Item = Key> {
    plan.frontends.iter().map(|frontend| match frontend.listen {
        Listen::ClusterIp(ip, port) | Listen::ExternalIp(ip, port) | Listen::LoadBalancerIp(ip, port) => {
            Key::Address(SocketAddr::new(ip, port))
        }
        Listen::NodePort(port) => Key::NodePort(port),
    })
}

#[cfg(test)]
mod tests;
