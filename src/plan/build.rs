//! From the cluster to the Plan: the one place that decides policy.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::smallvec;

use super::{
    Action, Backend, Frontend, HealthCheck, Listen, NodePlan, NodePortAddresses, Plan, PodTraffic, Pool, PoolKind,
    Routes, ServicePlan, Source, Unmet, VirtualServerNode,
};
use crate::cluster::{ClusterState, PortEndpoint, Slices, endpoints_of};
use crate::model::{Node, Service, ServicePort, ServicePortName};
use crate::net::{IpFamily, Protocol, host_net};
use crate::topology::{self, SelectedEndpoints};

/// What the operator configured about planning. The same for both families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node.
    pub node_name: Arc<str>,
    /// `bindAddress`: stands in for the node's address in its family, unless unspecified.
    pub bind_address: Option<IpAddr>,
    /// Masquerade everything that is sent to cluster IPs.
    pub masquerade_all: bool,
    /// Serve node ports on IPv4 loopback addresses.
    pub localhost_node_ports: bool,
    /// Which of the node's addresses serve node ports.
    pub node_port_addresses: NodePortSetting,
    /// How to recognise traffic of pods.
    pub detect_local: DetectLocal,
    /// Feature gate `AllowServiceExternalIPs`.
    pub external_ips: bool,
    /// What balances. The mechanisms of the kernel differ in what policies come to.
    pub balancing: Balancing,
}

/// What balances connections in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancing {
    /// Chains of rules (iptables).
    Rules,
    /// Virtual servers (IPVS): all packets to an address go to one pool, wherever they come from, and where the Local
    /// policy finds no endpoint, that is the cluster's. (kube-proxy: `ipvs/proxier.go`.)
    VirtualServers,
    /// Maps (nftables): who may use an address is decided before anything else, whether there are endpoints or not.
    /// (kube-proxy: `nftables/proxier.go`.)
    Maps,
}

/// `nodePortAddresses`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortSetting {
    /// The addresses of the Node object.
    Primary,
    /// Addresses within these networks; a family without a network means all its addresses.
    Cidrs(Vec<IpNet>),
}

/// `detectLocalMode` with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Pods have addresses of `clusterCIDR`.
    ClusterCidr(Vec<IpNet>),
    /// Pods have addresses of the Node's `spec.podCIDRs`.
    NodeCidr,
    /// Pods send through this interface.
    BridgeInterface(String),
    /// Pods send through interfaces with this prefix.
    InterfaceNamePrefix(String),
}

/// Everything Service plans of one family depend on besides the Service and its slices: if two of
/// these are equal, so are all plans made with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanContext {
    family: IpFamily,
    node_name: Arc<str>,
    zone: Option<Arc<str>>,
    node_ip: IpAddr,
    masquerade_all: bool,
    external_ips: bool,
    detects_pods: bool,
    balancing: Balancing,
}

// === impl Settings ===

impl Settings {
    /// The node's address in a family: `bindAddress`, else the Node object's, else loopback.
    /// (kube-proxy: `detectNodeIPs`.)
    pub fn node_ip(&self, family: IpFamily, node: &Node) -> IpAddr {
        let bound = self.bind_address.filter(|ip| IpFamily::of(*ip) == family && !ip.is_unspecified());
        bound.or_else(|| node.address(family)).unwrap_or(match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpFamily::V6 => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        })
    }

    /// `nodePortAddresses` of a family as networks; empty means all addresses.
    fn node_port_nets(&self, family: IpFamily, node: &Node) -> Vec<IpNet> {
        let nets: Vec<IpNet> = match &self.node_port_addresses {
            NodePortSetting::Cidrs(nets) => {
                nets.iter().copied().filter(|net| IpFamily::of_net(*net) == family).collect()
            }
            NodePortSetting::Primary => {
                Some(self.node_ip(family, node)).filter(|ip| !ip.is_loopback()).map(host_net).into_iter().collect()
            }
        };
        match nets.iter().any(|net| net.prefix_len() == 0) {
            true => Vec::new(),
            false => nets,
        }
    }

    /// Whether the kernel must route packets from loopback addresses to endpoints elsewhere
    /// (`route_localnet`), which opens those addresses to the network but for `KUBE-FIREWALL`. Not with
    /// `primary`, whatever the Node says later: the node's own address is no loopback one.
    pub fn routes_localnet(&self) -> bool {
        let by_networks = matches!(self.node_port_addresses, NodePortSetting::Cidrs(_));
        (by_networks || self.balancing == Balancing::Maps) && self.localhost_node_ports(IpFamily::V4, &Node::default())
    }

    /// Whether it matters which networks Services get their addresses from.
    pub fn uses_service_cidrs(&self) -> bool {
        self.balancing == Balancing::Maps
    }

    /// Whether node ports answer on loopback addresses of a family. (kube-proxy: localhost node
    /// ports are IPv4 only, and only if `nodePortAddresses` cover the loopback network.)
    pub fn localhost_node_ports(&self, family: IpFamily, node: &Node) -> bool {
        if self.balancing == Balancing::Maps {
            // Asked for by itself there.
            return self.localhost_node_ports && family == IpFamily::V4;
        }
        let nets = self.node_port_nets(family, node);
        let covers = |net: &IpNet| net.addr().is_loopback() || net.contains(&IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)));
        self.localhost_node_ports && family == IpFamily::V4 && (nets.is_empty() || nets.iter().any(covers))
    }
}

/// Plans everything in a cluster, for a node whose interfaces hold `addresses`.
pub fn plan(state: &ClusterState, family: IpFamily, settings: &Settings, node: &Node, addresses: &[IpAddr]) -> Plan {
    let context = PlanContext::new(family, settings, node);
    let planned = state.services().flat_map(|(service, slices)| context.plan(service, slices));
    let services = planned.map(|(name, plan)| (name, Arc::new(plan))).collect();
    Plan::new(Arc::new(node_plan(family, settings, node, addresses, &state.service_cidrs())), services)
}

/// Plans what does not belong to one Service. `addresses` are those of this node's interfaces, `service_cidrs` the
/// networks that Services get their addresses from.
pub fn node_plan(
    family: IpFamily,
    settings: &Settings,
    node: &Node,
    addresses: &[IpAddr],
    service_cidrs: &BTreeSet<IpNet>,
) -> NodePlan {
    let nets = settings.node_port_nets(family, node);
    let localhost_node_ports = settings.localhost_node_ports(family, node);
    let virtual_servers = (settings.balancing == Balancing::VirtualServers)
        .then(|| VirtualServerNode { addresses: virtual_server_addresses(family, addresses) });
    let within = |loopback: bool| match (nets.is_empty(), &virtual_servers) {
        (true, None) => NodePortAddresses::All,
        (true, Some(node)) => NodePortAddresses::Only(node.addresses.clone()),
        (false, _) => {
            let serves = |ip: &IpAddr| nets.iter().any(|net| net.contains(ip)) && (loopback || !ip.is_loopback());
            let mut only: Vec<IpAddr> = addresses.iter().copied().filter(serves).collect();
            only.sort();
            only.dedup();
            NodePortAddresses::Only(only)
        }
    };
    let concerns = |net: &&IpNet| settings.uses_service_cidrs() && IpFamily::of_net(**net) == family;
    NodePlan {
        family,
        node_port_addresses: within(localhost_node_ports && settings.balancing != Balancing::Maps),
        health_check_addresses: within(true),
        localhost_node_ports,
        pod_traffic: pod_traffic(family, settings, node),
        masquerade_all: settings.masquerade_all,
        service_cidrs: service_cidrs.iter().filter(concerns).copied().collect(),
        virtual_servers,
    }
}

/// Of the addresses of this node's interfaces, those that can have virtual servers for node ports. (kube-proxy:
/// `getLocalAddresses`; addresses of IPv4 that are valid on one link only stay.)
fn virtual_server_addresses(family: IpFamily, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let is_good = |ip: &IpAddr| {
        let is_of_link = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        IpFamily::of(*ip) == family && !ip.is_loopback() && !is_of_link
    };
    let good: BTreeSet<IpAddr> = addresses.iter().copied().filter(is_good).collect();
    good.into_iter().collect()
}

fn pod_traffic(family: IpFamily, settings: &Settings, node: &Node) -> Option<PodTraffic> {
    match &settings.detect_local {
        DetectLocal::ClusterCidr(nets) => {
            nets.iter().copied().find(|net| IpFamily::of_net(*net) == family).map(PodTraffic::Source)
        }
        DetectLocal::NodeCidr => node.pod_cidr(family).map(PodTraffic::Source),
        DetectLocal::BridgeInterface(name) => Some(PodTraffic::Interface(name.clone())),
        DetectLocal::InterfaceNamePrefix(prefix) => Some(PodTraffic::InterfacePrefix(prefix.clone())),
    }
}

// === impl PlanContext ===

impl PlanContext {
    /// The context of a family.
    pub fn new(family: IpFamily, settings: &Settings, node: &Node) -> PlanContext {
        PlanContext {
            family,
            node_name: settings.node_name.clone(),
            zone: node.zone.clone(),
            node_ip: settings.node_ip(family, node),
            masquerade_all: settings.masquerade_all,
            external_ips: settings.external_ips,
            detects_pods: pod_traffic(family, settings, node).is_some(),
            balancing: settings.balancing,
        }
    }

    fn has_virtual_servers(&self) -> bool {
        self.balancing == Balancing::VirtualServers
    }

    /// Plans every port of a Service. Empty if the Service has no address in the family.
    pub fn plan<'a>(
        &'a self,
        service: &'a Service,
        slices: &'a Slices,
    ) -> impl Iterator<Item = (ServicePortName, ServicePlan)> + 'a {
        let cluster_ip = service.cluster_ip(self.family);
        let ports = service.ports.iter().filter_map(move |port| Some((port, cluster_ip?)));
        ports.map(move |(port, cluster_ip)| {
            let name =
                ServicePortName { service: service.name.clone(), port: port.name.clone(), protocol: port.protocol };
            let endpoints = endpoints_of(slices.of_family(self.family), &port.name, port.protocol);
            (name, self.plan_port(service, port, cluster_ip, &endpoints))
        })
    }

    fn plan_port(
        &self,
        service: &Service,
        port: &ServicePort,
        cluster_ip: IpAddr,
        endpoints: &[PortEndpoint],
    ) -> ServicePlan {
        let in_family = |ip: &IpAddr| IpFamily::of(*ip) == self.family;
        let external_ips: Vec<IpAddr> = service.external_ips.iter().copied().filter(in_family).collect();
        let vips: Vec<IpAddr> = service.load_balancer_ips.iter().copied().filter(in_family).collect();

        // kube-proxy counts external IPs here even where the feature gate hides them.
        let externally_accessible = port.node_port.is_some() || !vips.is_empty() || !external_ips.is_empty();
        let selected = topology::categorize(
            endpoints,
            &topology::Policy {
                node: &self.node_name,
                zone: self.zone.as_deref(),
                uses_cluster: !service.internal_policy_local || externally_accessible,
                uses_local: service.internal_policy_local || (service.external_policy_local && externally_accessible),
            },
        );

        let external = self.external_routes(service, &selected);
        // Without endpoints, chains of rules refuse before they look who asks.
        let is_restricted = selected.any || self.balancing != Balancing::Rules;
        let allow_from = |own: &[IpAddr]| if is_restricted { self.allow_from(service, own) } else { None };
        let allowed = allow_from(&vips);
        let mut frontends = Vec::new();
        let mut add = |listen, allow_from, routes| frontends.push(Frontend { listen, allow_from, routes });
        add(Listen::ClusterIp(cluster_ip, port.port), None, self.internal_routes(service, &selected));
        for ip in external_ips.iter().filter(|_| self.external_ips) {
            add(Listen::ExternalIp(*ip, port.port), None, external.clone());
        }
        for ip in &vips {
            // A virtual server is a set of its own, which holds no addresses of others.
            let allowed = if self.has_virtual_servers() { allow_from(&[*ip]) } else { allowed.clone() };
            add(Listen::LoadBalancerIp(*ip, port.port), allowed, external.clone());
        }
        if let Some(node_port) = port.node_port {
            add(Listen::NodePort(node_port), None, external);
        }
        let cluster = pool(&selected.cluster);
        let serving = match port.protocol {
            Protocol::Udp => {
                let serving: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.conditions.serving).collect();
                // Mostly the same, and then shared.
                if serving == selected.cluster { cluster.clone() } else { pool(&serving) }
            }
            Protocol::Tcp | Protocol::Sctp => Pool::default(),
        };
        ServicePlan {
            frontends: frontends.into(),
            cluster,
            local: pool(&selected.local),
            affinity_seconds: service.affinity_seconds,
            health_check: service
                .health_check_node_port
                .map(|node_port| HealthCheck { node_port, ready_here: ready_here(endpoints) }),
            serving,
            here: match self.balancing {
                Balancing::Rules => Pool::default(),
                Balancing::VirtualServers | Balancing::Maps => {
                    pool(&endpoints.iter().filter(|endpoint| endpoint.local).collect::<Vec<_>>())
                }
            },
            unmet: {
                let none_here = selected.any && selected.local.is_empty();
                Unmet {
                    internal: none_here && service.internal_policy_local,
                    external: none_here && service.external_policy_local && externally_accessible,
                }
            },
            endpoints: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
        }
    }

    /// Traffic to the cluster IP: masqueraded if it comes from outside the cluster, because the
    /// endpoint's answer would otherwise not pass through this node again.
    fn internal_routes(&self, service: &Service, selected: &SelectedEndpoints<'_>) -> Routes {
        let pool = match (service.internal_policy_local, selected.any) {
            (is_local, _) if self.has_virtual_servers() => only_pool(is_local, selected),
            (_, false) => return smallvec![(Source::Any, Action::Reject)],
            (true, true) if selected.local.is_empty() => return smallvec![(Source::Any, Action::Drop)],
            (true, true) => PoolKind::Local,
            (false, true) => PoolKind::Cluster,
        };
        let balance = |masquerade| Action::Balance { pool, masquerade };
        match (self.masquerade_all, self.detects_pods) {
            (true, _) => smallvec![(Source::Any, balance(true))],
            (false, true) => smallvec![(Source::Pod, balance(false)), (Source::Any, balance(true))],
            (false, false) => smallvec![(Source::Any, balance(false))],
        }
    }

    /// Traffic to addresses outside the cluster's own. With the Local policy, pods and processes
    /// of this node are "short-circuited": they may use every endpoint, and only traffic from
    /// elsewhere stays here and keeps its source address.
    fn external_routes(&self, service: &Service, selected: &SelectedEndpoints<'_>) -> Routes {
        let cluster = |masquerade| Action::Balance { pool: PoolKind::Cluster, masquerade };
        if self.has_virtual_servers() {
            let pool = only_pool(service.external_policy_local, selected);
            return smallvec![(Source::Any, Action::Balance { pool, masquerade: !service.external_policy_local })];
        }
        if !selected.any {
            return smallvec![(Source::Any, Action::Reject)];
        }
        if !service.external_policy_local {
            return smallvec![(Source::Any, cluster(true))];
        }
        let mut routes = Routes::new();
        if self.detects_pods {
            routes.push((Source::Pod, cluster(false)));
        }
        routes.push((Source::Node, cluster(true)));
        routes.push(match selected.local.is_empty() {
            true => (Source::Any, Action::Drop),
            false => (Source::Any, Action::Balance { pool: PoolKind::Local, masquerade: false }),
        });
        routes
    }

    /// Sources that may use the load balancer's addresses, if they are restricted. Where the node
    /// itself may, so may the load balancer's own addresses: some node images have them on an
    /// interface, and a connection to one's own address has that address as its source.
    fn allow_from(&self, service: &Service, vips: &[IpAddr]) -> Option<Arc<[IpNet]>> {
        let ranges = || service.source_ranges.iter().copied().filter(|net| IpFamily::of_net(*net) == self.family);
        if vips.is_empty() || ranges().next().is_none() || ranges().any(|net| net.prefix_len() == 0) {
            return None;
        }
        let own = if ranges().any(|net| net.contains(&self.node_ip)) { vips } else { &[] };
        Some(ranges().chain(own.iter().copied().map(host_net)).collect())
    }
}

/// The pool of a virtual server. (kube-proxy: without endpoints on this node, the Local policy is not heeded.)
fn only_pool(is_local: bool, selected: &SelectedEndpoints<'_>) -> PoolKind {
    match is_local && !selected.local.is_empty() {
        true => PoolKind::Local,
        false => PoolKind::Cluster,
    }
}

fn ready_here(endpoints: &[PortEndpoint]) -> Box<[IpAddr]> {
    let here = endpoints.iter().filter(|endpoint| endpoint.local && endpoint.conditions.ready);
    here.map(|endpoint| endpoint.ip).collect::<BTreeSet<_>>().into_iter().collect()
}

fn pool(endpoints: &[&PortEndpoint]) -> Pool {
    endpoints.iter().map(|endpoint| Backend { ip: endpoint.ip, port: endpoint.port }).collect()
}
