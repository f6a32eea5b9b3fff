//! The Plan: what every frontend of every Service port does with a packet, in one IP family.
//!
//! This is the seam between Kubernetes and kernels. [`build`] is the only place where a traffic
//! policy, a hint or readiness decides anything; a backend only translates. Whoever needs to know
//! what the node does with traffic (rules, conntrack, health checks, metrics, explanations) reads
//! the Plan. Equal input gives an equal Plan, in the same order.

pub mod build;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use crate::model::{ServiceName, ServicePortName};
use crate::net::{IpFamily, PackedIps, Protocol};

/// What this node does with the traffic of every Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What does not belong to one Service.
    pub node: Arc<NodePlan>,
    services: BTreeMap<ServicePortName, Arc<ServicePlan>>,
    endpoints: usize,
}

/// What does not belong to one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// The family of the Plan.
    pub family: IpFamily,
    /// Addresses of this node on which node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Addresses of this node on which load balancers ask for its health: the same, but with the
    /// loopback ones that belong to it in any case.
    pub health_check_addresses: NodePortAddresses,
    /// Whether node ports answer on IPv4 loopback addresses too. Never for IPv6.
    pub localhost_node_ports: bool,
    /// How to recognise traffic of this node's pods, if that is possible.
    pub pod_traffic: Option<PodTraffic>,
    /// Everything that is sent to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Networks whose addresses only Services have, sorted: what is sent to one that no Service has is dropped. Only
    /// where maps balance; otherwise nobody asks.
    pub service_cidrs: Vec<IpNet>,
    /// What else there is to know where virtual servers balance ([`build::Balancing::VirtualServers`]).
    pub virtual_servers: Option<VirtualServerNode>,
}

/// What virtual servers depend on that belongs to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServerNode {
    /// Addresses of the node's interfaces, sorted, but for those of virtual servers, loopback ones, and those that are
    /// valid on one link only (IPv6).
    pub addresses: Vec<IpAddr>,
}

/// Addresses of this node on which node ports are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node, except loopback ones unless `localhost_node_ports`.
    All,
    /// These addresses, sorted.
    Only(Vec<IpAddr>),
}

/// How to recognise traffic that comes from a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodTraffic {
    /// By source address.
    Source(IpNet),
    /// By the interface it comes in through.
    Interface(String),
    /// By the beginning of the name of that interface.
    InterfacePrefix(String),
}

/// What one Service port does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its addresses, each with what happens to packets sent there.
    pub frontends: Box<[Frontend]>,
    /// Endpoints for traffic that may go anywhere in the cluster.
    pub cluster: Pool,
    /// Endpoints for traffic that must stay on this node.
    pub local: Pool,
    /// Seconds for which a client stays with its endpoint, if it does.
    pub affinity_seconds: Option<u32>,
    /// What the load balancer asks this node, if it does.
    pub health_check: Option<HealthCheck>,
    /// Endpoints that serve, wherever they are and whatever policies and hints say: flows that lead
    /// to others are stale. Empty for protocols whose flows end by themselves (all but UDP).
    pub serving: Pool,
    /// Endpoints on this node, usable or not: where virtual servers or maps balance, packets that come back to the one
    /// they came from are known by these. Empty where rules balance.
    pub here: Pool,
    /// Policies that ask for endpoints on this node where there are none, though there are elsewhere.
    pub unmet: Unmet,
    /// How many endpoints the port has anywhere, usable or not: the measure of a cluster's size.
    pub endpoints: u32,
}

/// Which Local policies find no endpoint on this node. Where rules balance, they drop what comes then; where virtual
/// servers balance, it goes to endpoints elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unmet {
    /// `internalTrafficPolicy`
    pub internal: bool,
    /// `externalTrafficPolicy`
    pub external: bool,
}

/// A load balancer's question whether to send traffic to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Port on which it asks.
    pub node_port: u16,
    /// Addresses of ready endpoints of this port on this node, sorted. (kube-proxy: terminating ones
    /// do not count, though they may still get traffic. The answer is the number of all addresses
    /// of a Service, over its ports.)
    pub ready_here: Box<[IpAddr]>,
}

/// Endpoints among which connections are balanced with equal chances, sorted by their text: 6 bytes each
/// (IPv6: 18), which clones share.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pool(PackedIps<2>);

/// Where a connection ends up: address and port of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// One address of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Which address.
    pub listen: Listen,
    /// Who may use it; `None` is anybody. Others are dropped, before any route is looked at.
    pub allow_from: Option<Arc<[IpNet]>>,
    /// What happens to a packet: the first route whose source matches decides. The last one's
    /// source is [`Source::Any`].
    pub routes: Routes,
}

/// What happens to the packets of one frontend, by where they come from.
pub type Routes = SmallVec<[(Source, Action); 4]>;

/// The address of a frontend. The protocol is that of the Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listen {
    /// The Service's virtual address.
    ClusterIp(IpAddr, u16),
    /// An address some router sends to this node.
    ExternalIp(IpAddr, u16),
    /// An address of a load balancer that leaves the destination as it is.
    LoadBalancerIp(IpAddr, u16),
    /// A port on the node's own addresses ([`NodePlan::node_port_addresses`]).
    NodePort(u16),
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A pod of this node ([`NodePlan::pod_traffic`]). Only used if that is known.
    Pod,
    /// A process of this node: the source is one of the node's own addresses.
    Node,
    /// Anywhere.
    Any,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes to an endpoint of a pool. That is empty only where virtual servers balance: those refuse the packet
    /// then. A packet sent back to the endpoint it came from is masqueraded in any case.
    Balance {
        /// Which pool.
        pool: PoolKind,
        /// Whether the endpoint sees this node's address instead of the client's.
        masquerade: bool,
    },
    /// It is refused: the Service has no endpoint anywhere.
    Reject,
    /// It is dropped silently: the Service has endpoints, but none here.
    Drop,
}

/// Which of a Service port's two pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PoolKind {
    /// [`ServicePlan::cluster`]
    Cluster,
    /// [`ServicePlan::local`]
    Local,
}

// === impl Plan ===

impl Plan {
    /// A plan of these Service ports.
    pub fn new(node: Arc<NodePlan>, services: BTreeMap<ServicePortName, Arc<ServicePlan>>) -> Plan {
        let endpoints = services.values().map(|service| service.endpoints as usize).sum();
        Plan { node, services, endpoints }
    }

    /// Every Service port.
    pub fn services(&self) -> &BTreeMap<ServicePortName, Arc<ServicePlan>> {
        &self.services
    }

    /// How many endpoints all Service ports have together, usable or not.
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// The ports of one Service.
    pub fn ports_of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a ServicePortName> {
        let first = ServicePortName { service: service.clone(), port: "".into(), protocol: Protocol::Tcp };
        self.services.range(first..).map(|(name, _)| name).take_while(move |name| name.service == *service)
    }

    /// Changes the plan of one Service port, or removes it.
    pub fn set(&mut self, name: ServicePortName, plan: Option<Arc<ServicePlan>>) {
        let count = |plan: &ServicePlan| plan.endpoints as usize;
        let new = plan.as_deref().map_or(0, count);
        let old = match plan {
            Some(plan) => self.services.insert(name, plan),
            None => self.services.remove(&name),
        };
        self.endpoints = self.endpoints + new - old.as_deref().map_or(0, count);
    }
}

// === impl PoolKind ===

impl PoolKind {
    /// Both.
    pub const ALL: [PoolKind; 2] = [PoolKind::Cluster, PoolKind::Local];
}

// === impl NodePlan ===

impl NodePlan {
    /// That of a node of which nothing is known yet.
    pub fn unknown(family: IpFamily) -> NodePlan {
        NodePlan {
            family,
            node_port_addresses: NodePortAddresses::Only(Vec::new()),
            health_check_addresses: NodePortAddresses::Only(Vec::new()),
            localhost_node_ports: false,
            pod_traffic: None,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            virtual_servers: None,
        }
    }
}

// === impl ServicePlan ===

impl ServicePlan {
    /// The endpoints of a pool.
    pub fn pool(&self, kind: PoolKind) -> Vec<Backend> {
        match kind {
            PoolKind::Cluster => self.cluster.iter().collect(),
            PoolKind::Local => self.local.iter().collect(),
        }
    }

    /// Both pools together, each endpoint once, sorted by text: those of `local` that `cluster`
    /// lacks (terminating ones, or ones that hints send elsewhere) are merged in.
    pub fn backends(&self) -> Vec<Backend> {
        let mut all = self.pool(PoolKind::Cluster);
        let known: HashSet<Backend> =
            if self.local.is_empty() { HashSet::new() } else { all.iter().copied().collect() };
        let before = all.len();
        all.extend(self.local.iter().filter(|backend| !known.contains(backend)));
        if before > 0 && all.len() > before {
            all.sort_by_cached_key(ToString::to_string);
        }
        all
    }
}

// === impl Pool ===

impl Pool {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The endpoints, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Backend> {
        self.0.iter().map(|(ip, port)| Backend { ip, port: u16::from_be_bytes(port) })
    }
}

impl FromIterator<Backend> for Pool {
    fn from_iter<I: IntoIterator<Item = Backend>>(endpoints: I) -> Pool {
        Pool(endpoints.into_iter().map(|Backend { ip, port }| (ip, port.to_be_bytes())).collect())
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl Backend ===

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

// === impl Frontend ===

impl Frontend {
    /// Whether every packet that may use the frontend meets the same fate.
    pub fn sole_action(&self) -> Option<Action> {
        match self.routes.as_slice() {
            [(Source::Any, action)] => Some(*action),
            _ => None,
        }
    }

    /// What happens to packets from anywhere that no earlier route caught.
    pub fn default_action(&self) -> Option<Action> {
        self.routes.last().map(|(_, action)| *action)
    }
}
