//! Services, as far as rules depend on them.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Kind, ObjectRef, Problem, ServiceName, is_name, wire};
use crate::net::{IpFamily, Protocol, parse_cidr, parse_ip};

/// The affinity timeout the API server fills in (3 h), used if a manifest leaves it out.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// A Service that has rules in at least one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// Virtual address of each family it has, at most one a family.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its ports, in the order of `spec.ports`.
    pub ports: Box<[ServicePort]>,
    /// `spec.externalIPs` of both families, in order, duplicates kept.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of the load balancer that deliver packets with that destination (`ipMode: VIP`).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.loadBalancerSourceRanges` of both families, in order.
    pub source_ranges: Box<[IpNet]>,
    /// Whether traffic to external addresses stays on this node. Already false where the
    /// Service's type has no external traffic.
    pub external_policy_local: bool,
    /// Whether traffic to the cluster IP stays on this node.
    pub internal_policy_local: bool,
    /// Timeout in seconds of client-IP affinity, if that is on.
    pub affinity_seconds: Option<u32>,
    /// Port of the load balancer's health check; only with `external_policy_local`.
    pub health_check_node_port: Option<u16>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty for the only port of a Service.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the virtual addresses.
    pub port: u16,
    /// Port on the nodes' own addresses.
    pub node_port: Option<u16>,
}

// === impl Service ===

impl Service {
    /// Keeps what rules depend on. `None` for a Service that has none by design: headless, of type
    /// ExternalName, or not yet given an address. (kube-proxy: `servicechangetracker.go`,
    /// `serviceport.go`.)
    pub fn from_wire(object: &wire::Service<'_>) -> (Option<Service>, Vec<Problem>) {
        let mut check = Check::new(&object.metadata);
        let spec = &object.spec;
        let Some(name) = check.name() else { return (None, check.problems) };
        if spec.kind.as_deref() == Some("ExternalName")
            || matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
        {
            return (None, check.problems);
        }
        let cluster_ips = check.cluster_ips(spec);
        let external_ips = check.addresses("spec.externalIPs", spec.external_ips.iter().map(|text| &**text));
        let load_balancer_ips = check.load_balancer_ips(&object.status);
        let source_ranges = check.source_ranges(spec);
        let has_external_traffic = match spec.kind.as_deref() {
            Some("LoadBalancer" | "NodePort") => true,
            _ => !spec.external_ips.is_empty(),
        };
        let external_policy_local = has_external_traffic && spec.external_traffic_policy.as_deref() == Some("Local");
        let health_check_node_port = match spec.kind.as_deref() {
            Some("LoadBalancer") if external_policy_local => check.health_check_node_port(spec),
            _ => None,
        };
        let affinity_seconds = check.affinity(spec);
        let ports = check.ports(spec);
        let service = Service {
            name,
            cluster_ips: cluster_ips.into(),
            ports: ports.into(),
            external_ips: external_ips.into(),
            load_balancer_ips: load_balancer_ips.into(),
            source_ranges: source_ranges.into(),
            external_policy_local,
            internal_policy_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity_seconds,
            health_check_node_port,
        };
        let usable = !service.cluster_ips.is_empty() && !service.ports.is_empty();
        (usable.then_some(service), check.problems)
    }

    /// The virtual address in a family.
    pub fn cluster_ip(&self, family: IpFamily) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| IpFamily::of(*ip) == family)
    }
}

/// Collects problems while a Service is read.
struct Check {
    object: ObjectRef,
    problems: Vec<Problem>,
}

impl Check {
    fn new(meta: &wire::Meta<'_>) -> Check {
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let name = meta.name.as_deref().unwrap_or("");
        Check { object: ObjectRef::new(Kind::Service, namespace, name), problems: Vec::new() }
    }

    fn problem(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem { object: self.object.clone(), field: field.into(), reason: reason.into() });
    }

    fn name(&mut self) -> Option<ServiceName> {
        if self.object.name.is_empty() {
            self.problem("metadata.name", "is missing; the object is ignored");
            return None;
        }
        let parts =
            [("metadata.namespace", self.object.namespace.clone()), ("metadata.name", self.object.name.clone())];
        if let Some((field, text)) = parts.into_iter().find(|(_, text)| !is_name(text)) {
            self.problem(field, format!("{text:?} is not a name in Kubernetes; the object is ignored"));
            return None;
        }
        Some(ServiceName::within(self.object.namespace.clone(), &self.object.name))
    }

    /// kube-proxy takes `clusterIPs[i]` where `ipFamilies[i]` names the family, and `clusterIP`
    /// alone when `ipFamilies` is empty.
    fn cluster_ips(&mut self, spec: &wire::ServiceSpec<'_>) -> Vec<IpAddr> {
        let mut found = Vec::new();
        if spec.ip_families.is_empty() {
            let text = spec.cluster_ip.as_deref().unwrap_or_default();
            match parse_ip(text) {
                Some(ip) => found.push(ip),
                None => {
                    self.problem("spec.clusterIP", format!("{text:?} is not an IP address; the Service has no rules"));
                }
            }
            return found;
        }
        for family in IpFamily::BOTH {
            let Some(i) = spec.ip_families.iter().position(|text| **text == *family.as_str()) else { continue };
            let Some(text) = spec.cluster_ips.get(i) else { continue };
            match parse_ip(text) {
                Some(ip) if IpFamily::of(ip) == family => found.push(ip),
                _ => self.problem(
                    format!("spec.clusterIPs[{i}]"),
                    format!("{text:?} is not an {family} address; the Service has no {family} rules"),
                ),
            }
        }
        found
    }

    fn addresses<'a>(&mut self, field: &str, texts: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for (i, text) in texts.enumerate() {
            match parse_ip(text) {
                Some(ip) => found.push(ip),
                None if text.trim().is_empty() => {}
                None => self.problem(format!("{field}[{i}]"), format!("{text:?} is not an IP address; it is left out")),
            }
        }
        found
    }

    fn load_balancer_ips(&mut self, status: &wire::ServiceStatus<'_>) -> Vec<IpAddr> {
        let vips = status.load_balancer.ingress.iter().map(|ingress| match ingress.ip_mode.as_deref() {
            None | Some("VIP") => ingress.ip.as_deref().unwrap_or_default(),
            Some(_) => "",
        });
        self.addresses("status.loadBalancer.ingress", vips)
    }

    fn source_ranges(&mut self, spec: &wire::ServiceSpec<'_>) -> Vec<IpNet> {
        let mut found = Vec::new();
        for (i, text) in spec.load_balancer_source_ranges.iter().enumerate() {
            match parse_cidr(text.trim()) {
                Some(net) => found.push(net),
                None if text.trim().is_empty() => {}
                None => self.problem(
                    format!("spec.loadBalancerSourceRanges[{i}]"),
                    format!("{text:?} is not a CIDR such as 203.0.113.0/24; it is left out"),
                ),
            }
        }
        found
    }

    fn affinity(&mut self, spec: &wire::ServiceSpec<'_>) -> Option<u32> {
        if spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = spec.session_affinity_config.as_ref();
        let timeout = config.and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
        let Some(seconds) = timeout else { return Some(DEFAULT_AFFINITY_SECONDS) };
        match u32::try_from(seconds) {
            Ok(seconds) if (1..=86_400).contains(&seconds) => Some(seconds),
            _ => {
                self.problem(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("{seconds} is not within 1..86400; {DEFAULT_AFFINITY_SECONDS} is used"),
                );
                Some(DEFAULT_AFFINITY_SECONDS)
            }
        }
    }

    fn port(&mut self, field: impl Into<String>, value: i64) -> Option<u16> {
        match u16::try_from(value) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.problem(field, format!("{value} is not a port (1..65535); it is left out"));
                None
            }
        }
    }

    fn health_check_node_port(&mut self, spec: &wire::ServiceSpec<'_>) -> Option<u16> {
        let field = "spec.healthCheckNodePort";
        match spec.health_check_node_port {
            None | Some(0) => {
                self.problem(field, "is not set yet; the load balancer cannot ask which nodes have endpoints");
                None
            }
            Some(value) => self.port(field, value),
        }
    }

    fn ports(&mut self, spec: &wire::ServiceSpec<'_>) -> Vec<ServicePort> {
        let mut ports: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
        for (i, entry) in spec.ports.iter().enumerate() {
            let protocol = match entry.protocol.as_deref() {
                None | Some("") => Protocol::Tcp,
                Some(text) => match Protocol::parse(text) {
                    Some(protocol) => protocol,
                    None => {
                        let reason = format!("{text:?} is not TCP, UDP or SCTP; the port is left out");
                        self.problem(format!("spec.ports[{i}].protocol"), reason);
                        continue;
                    }
                },
            };
            let Some(port) = self.port(format!("spec.ports[{i}].port"), entry.port.unwrap_or(0)) else { continue };
            let node_port = match entry.node_port {
                None | Some(0) => None,
                Some(value) => self.port(format!("spec.ports[{i}].nodePort"), value),
            };
            let name: Arc<str> = entry.name.as_deref().unwrap_or_default().into();
            if !name.is_empty() && !is_name(&name) {
                let reason = format!("{name:?} is not a name in Kubernetes; the port is left out");
                self.problem(format!("spec.ports[{i}].name"), reason);
                continue;
            }
            let twin = ports.iter().position(|p| p.name == name && p.protocol == protocol);
            if let Some(twin) = twin {
                self.problem(
                    format!("spec.ports[{i}]"),
                    format!("has the name and protocol of spec.ports[{twin}]; the later one is used"),
                );
                ports.remove(twin);
            }
            ports.push(ServicePort { name, protocol, port, node_port });
        }
        ports
    }
}
