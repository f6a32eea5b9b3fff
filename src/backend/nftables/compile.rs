//! From the Plan to elements. What rules there are is in `base`.

mod base;

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::ruleset::{Element, Frontend, Key, Label, MAX_SIZE, Set, Value, Way};
use crate::model::ServicePortName;
use crate::net::Protocol;
use crate::plan::{self, Action, Backend, Listen, PoolKind, ServicePlan, Source};

pub use self::base::{Base, base};

/// What all this depends on besides the Plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Bit of the packet mark that asks for source translation.
    pub mark: u32,
}

/// What one Service port has in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceElements {
    /// Elements that belong to one frontend each, in order.
    pub own: Vec<Element>,
    /// Elements that other Service ports may want as well, in order.
    pub shared: Vec<Element>,
}

/// More endpoints than that get no connections.
pub const ENDPOINTS_MAX: usize = 1 << MAX_SIZE;

/// The frontends of a Service port, in order.
pub fn frontends(name: &ServicePortName, plan: &ServicePlan) -> Vec<Frontend> {
    let mut frontends: Vec<_> = plan.frontends.iter().map(|frontend| site(frontend, name.protocol)).collect();
    frontends.sort_unstable();
    frontends.dedup();
    frontends
}

/// Compiles one Service port, but for frontends that it shall not have (`has`).
pub fn service(name: &ServicePortName, plan: &ServicePlan, has: impl Fn(Frontend) -> bool) -> ServiceElements {
    let mut compiler = Compiler { name, plan, own: Vec::new(), shared: Vec::new() };
    for frontend in &plan.frontends {
        compiler.frontend(frontend, name.protocol, &has);
    }
    let hairpins = plan.here.iter().map(|Backend { ip, port }| Key::Hairpin(ip, name.protocol, port));
    compiler.shared.extend(hairpins.map(|key| Element { set: Set::Hairpins, key, value: None }));
    let Compiler { mut own, mut shared, .. } = compiler;
    own.sort_unstable();
    own.dedup_by_key(|element| (element.set, element.key));
    shared.sort_unstable();
    shared.dedup();
    ServiceElements { own, shared }
}

/// The label of connections to a pool that keeps its clients. The same in every life of the proxy.
pub fn label(name: &ServicePortName, pool: PoolKind) -> Label {
    let pool = match pool {
        PoolKind::Cluster => "cluster",
        PoolKind::Local => "local",
    };
    let digest: [u8; 32] = Sha256::digest(format!("{name}/{}/{pool}", name.protocol.lower())).into();
    // Zero is what connections have without a label.
    Label(digest.first_chunk().map_or(1, |bytes| u128::from_be_bytes(*bytes)).max(1))
}

struct Compiler<'a> {
    name: &'a ServicePortName,
    plan: &'a ServicePlan,
    own: Vec<Element>,
    shared: Vec<Element>,
}

/// Where a frontend is.
fn site(frontend: &plan::Frontend, protocol: Protocol) -> Frontend {
    match frontend.listen {
        Listen::ClusterIp(ip, port) | Listen::ExternalIp(ip, port) | Listen::LoadBalancerIp(ip, port) => {
            Frontend::Address(ip, protocol, port)
        }
        Listen::NodePort(port) => Frontend::NodePort(protocol, port),
    }
}

// === impl Compiler ===

impl Compiler<'_> {
    fn frontend(&mut self, frontend: &plan::Frontend, protocol: Protocol, has: impl Fn(Frontend) -> bool) {
        let at = site(frontend, protocol);
        let address = |set, ip: IpAddr| Element { set, key: Key::Ip(ip), value: None };
        let is_cluster_ip = matches!(frontend.listen, Listen::ClusterIp(..));
        self.shared.extend(match frontend.listen {
            Listen::ClusterIp(ip, _) => Some(address(Set::ClusterIps, ip)),
            Listen::ExternalIp(ip, _) | Listen::LoadBalancerIp(ip, _) => Some(address(Set::ExternalIps, ip)),
            Listen::NodePort(_) => None,
        });
        if !has(at) {
            return;
        }
        if let Some(sources) = &frontend.allow_from {
            self.add(Set::Restricted, at);
            // The kernel refuses ranges that overlap.
            let allowed = IpNet::aggregate(&sources.to_vec()).into_iter().map(|net| Key::Allowed(at, net));
            self.own.extend(allowed.map(|key| Element { set: Set::AllowedSources, key, value: None }));
        }
        match frontend.default_action() {
            None => {}
            Some(Action::Reject) => self.add(Set::Reject(at.site()), at),
            Some(Action::Drop) => self.add(Set::Drop(at.site()), at),
            Some(Action::Balance { pool, masquerade }) => {
                // Of cluster IPs that is said for all of them, in the rules.
                if masquerade && !is_cluster_ip {
                    self.add(Set::Masquerade(at.site()), at);
                }
                self.pool(at, Way::Usual, pool);
            }
        }
        let inside = frontend.routes.iter().find_map(|(source, action)| match (source, action) {
            (Source::Pod | Source::Node, Action::Balance { pool, .. }) => Some(*pool),
            _ => None,
        });
        if let Some(pool) = inside.filter(|_| !is_cluster_ip) {
            self.add(Set::Apart(at.site()), at);
            self.pool(at, Way::Inside, pool);
        }
    }

    fn pool(&mut self, at: Frontend, way: Way, kind: PoolKind) {
        if let Some(seconds) = self.plan.affinity_seconds {
            let label = label(self.name, kind);
            let (set, value) = (Set::Labels(at.site(), way), Some(Value::Label(label)));
            self.own.push(Element { set, key: Key::Frontend(at), value });
            self.own.push(Element { set: Set::Kept(seconds), key: Key::Label(label), value: None });
        }
        let pool = match kind {
            PoolKind::Cluster => &self.plan.cluster,
            PoolKind::Local => &self.plan.local,
        };
        let endpoints = pool.len().min(ENDPOINTS_MAX);
        let Some(size) = size(endpoints) else { return };
        self.add(Set::Sized(at.site(), way, size), at);
        let set = Set::Endpoints(at.site(), way);
        let slots = (0..).zip(pool.iter().take(endpoints));
        self.own.extend(slots.map(|(n, endpoint)| Element {
            set,
            key: Key::Slot(at, n),
            value: Some(Value::Endpoint(endpoint)),
        }));
    }

    fn add(&mut self, set: Set, at: Frontend) {
        self.own.push(Element { set, key: Key::Frontend(at), value: None });
    }
}

/// The power of two that is not less than this many.
fn size(endpoints: usize) -> Option<u8> {
    let last = endpoints.checked_sub(1)?;
    u8::try_from(usize::BITS - last.leading_zeros()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        let sizes: Vec<_> = (0..=9).map(size).collect();
        let expected = [None, Some(0), Some(1), Some(2), Some(2), Some(3), Some(3), Some(3), Some(3), Some(4)];
        assert_eq!(sizes, expected);
        assert_eq!(size(ENDPOINTS_MAX), Some(MAX_SIZE));
    }
}
