//! From the Plan to virtual servers, entries of sets, and rules.

mod glue;

use std::net::IpAddr;

use super::netlink::{Address, Flags, Forwarding, RealServer, Scheduler, VirtualServer};
use super::ruleset::{Entry, Set};
use crate::backend::iptables::ruleset::{Match, Rule, Target};
use crate::model::ServicePortName;
use crate::net::{Protocol, host_net};
use crate::plan::{Action, Backend, Frontend, Listen, NodePlan, NodePortAddresses, PoolKind, ServicePlan};

pub use self::glue::{JUMPS, glue};

/// What all this depends on besides the Plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Chooses real servers.
    pub scheduler: Scheduler,
    /// Bit of the packet mark that asks for source translation.
    pub mark: u32,
    /// `MASQUERADE` knows `--random-fully` (iptables 1.6.2).
    pub random_fully: bool,
}

/// What one Service port has in the kernel. Entries may be those of other Service ports, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// Virtual servers, each with the pool of its real servers.
    pub servers: Vec<(VirtualServer, PoolKind)>,
    /// Entries of sets. Those of [`Set::IpvsIps`] are addresses of the link.
    pub entries: Vec<(Set, Entry)>,
    /// Virtual servers that this node may not use ([`guard`]).
    pub guards: Vec<Address>,
}

/// The scheduler for which kube-proxy asks that clients' ports count.
pub const MAGLEV: &str = "mh";

/// Compiles one Service port.
pub fn service(name: &ServicePortName, plan: &ServicePlan, node: &NodePlan, style: &Style) -> ServiceRules {
    let mut compiler = Compiler { protocol: name.protocol, plan, node, style, rules: ServiceRules::default() };
    let endpoints = plan.here.iter();
    compiler
        .rules
        .entries
        .extend(endpoints.map(|Backend { ip, port }| (Set::LoopBack, Entry::IpPortIp(ip, name.protocol, port, ip))));
    plan.frontends.iter().for_each(|frontend| compiler.frontend(frontend));
    if let Some(check) = plan.health_check.as_ref().filter(|_| compiler.serves_node_ports()) {
        compiler.rules.entries.push((Set::HealthCheckNodePort, Entry::Port(check.node_port)));
    }
    compiler.rules
}

/// A real server of a virtual one.
pub fn real_server(Backend { ip, port }: Backend) -> RealServer {
    RealServer { ip, port, weight: 1, forwarding: Forwarding::Masquerade }
}

/// The rule in [`super::names::OUT_FILTER`] for a virtual server that this node may not use: its processes would connect
/// from the address they connect to.
pub fn guard(Address { protocol, ip, port }: Address) -> Rule {
    Rule::to(Target::Drop).from(host_net(ip)).with(Match::ThroughVirtualServer { ip, protocol, port })
}

struct Compiler<'a> {
    protocol: Protocol,
    plan: &'a ServicePlan,
    node: &'a NodePlan,
    style: &'a Style,
    rules: ServiceRules,
}

// === impl Compiler ===

impl<'a> Compiler<'a> {
    fn frontend(&mut self, frontend: &Frontend) {
        // Who sends it is nothing to a virtual server; that what pods of this node send to cluster IPs is not
        // masqueraded is the same for all of them, and said in the glue.
        let Some(Action::Balance { pool, masquerade }) = frontend.default_action() else { return };
        match frontend.listen {
            Listen::ClusterIp(ip, port) => {
                self.bind(ip);
                self.serve(ip, port, pool);
                self.enter(Set::ClusterIp, ip, port);
            }
            Listen::ExternalIp(ip, port) => {
                self.bind_elsewhere(ip);
                self.serve(ip, port, pool);
                self.enter(if masquerade { Set::ExternalIp } else { Set::ExternalIpLocal }, ip, port);
            }
            Listen::LoadBalancerIp(ip, port) => {
                self.bind_elsewhere(ip);
                self.serve(ip, port, pool);
                self.enter(Set::LoadBalancer, ip, port);
                if !masquerade {
                    self.enter(Set::LoadBalancerLocal, ip, port);
                }
                self.restrict(frontend, ip, port);
            }
            Listen::NodePort(port) => self.node_port(port, pool, masquerade),
        }
    }

    /// Who may use a load balancer's address. Where the node itself may, the address is among its own sources: a
    /// connection to one's own address has that address as its source.
    fn restrict(&mut self, frontend: &Frontend, ip: IpAddr, port: u16) {
        let Some(sources) = &frontend.allow_from else { return };
        self.enter(Set::LoadBalancerFw, ip, port);
        for source in sources.iter() {
            let entry = match *source == host_net(ip) {
                true => (Set::LoadBalancerSourceIp, Entry::IpPortIp(ip, self.protocol, port, ip)),
                false => (Set::LoadBalancerSourceCidr, Entry::IpPortNet(ip, self.protocol, port, *source)),
            };
            self.rules.entries.push(entry);
        }
        if !sources.contains(&host_net(ip)) {
            self.rules.guards.push(Address { protocol: self.protocol, ip, port });
        }
    }

    fn node_port(&mut self, port: u16, pool: PoolKind, masquerade: bool) {
        let all = Set::of_node_ports(self.protocol);
        let local = match self.protocol {
            Protocol::Tcp => Set::NodePortLocalTcp,
            Protocol::Udp => Set::NodePortLocalUdp,
            Protocol::Sctp => Set::NodePortLocalSctpHash,
        };
        let addresses = self.node_port_addresses();
        for ip in addresses {
            self.serve(*ip, port, pool);
        }
        for set in [all, local].into_iter().filter(|set| *set == all || !masquerade) {
            match self.protocol {
                Protocol::Sctp => addresses.iter().for_each(|ip| self.enter(set, *ip, port)),
                Protocol::Tcp | Protocol::Udp if addresses.is_empty() => {}
                Protocol::Tcp | Protocol::Udp => self.rules.entries.push((set, Entry::Port(port))),
            }
        }
    }

    fn node_port_addresses(&self) -> &'a [IpAddr] {
        match &self.node.node_port_addresses {
            NodePortAddresses::Only(addresses) => addresses,
            NodePortAddresses::All => &[],
        }
    }

    /// Whether there is no node port, or an address to have it on. (kube-proxy: without one, the rest of a Service port
    /// is left out.)
    fn serves_node_ports(&self) -> bool {
        let has_node_port = self.plan.frontends.iter().any(|frontend| matches!(frontend.listen, Listen::NodePort(_)));
        !has_node_port || !self.node_port_addresses().is_empty()
    }

    fn serve(&mut self, ip: IpAddr, port: u16, pool: PoolKind) {
        let mut flags = Flags::default();
        if self.style.scheduler.as_str() == MAGLEV {
            flags = flags | Flags::SCHEDULER_2;
        }
        if self.plan.affinity_seconds.is_some() {
            flags = flags | Flags::PERSISTENT;
        }
        let server = VirtualServer {
            address: Address { protocol: self.protocol, ip, port },
            scheduler: self.style.scheduler,
            flags,
            timeout: self.plan.affinity_seconds.unwrap_or_default(),
        };
        self.rules.servers.push((server, pool));
    }

    /// The address becomes one of the link's, unless the node has it anyway.
    fn bind_elsewhere(&mut self, ip: IpAddr) {
        let own = self.node.virtual_servers.as_ref().is_some_and(|node| node.addresses.contains(&ip));
        if !own {
            self.bind(ip);
        }
    }

    fn bind(&mut self, ip: IpAddr) {
        self.rules.entries.push((Set::IpvsIps, Entry::Ip(ip)));
    }

    fn enter(&mut self, set: Set, ip: IpAddr, port: u16) {
        self.rules.entries.push((set, Entry::IpPort(ip, self.protocol, port)));
    }
}
