//! Services, EndpointSlices and Nodes as manifests.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::traffic::Proto;
use crate::world::{Family, Node, POD_PORT, Pod, World};

/// The namespace of all Services here.
pub const NAMESPACE: &str = "ns";

/// The port of Services here.
pub const SERVICE_PORT: u16 = 80;

/// Node ports are those from here on.
pub const NODE_PORT_BASE: u16 = 30_000;

/// Everything a proxy is to know.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The Services with their endpoints.
    pub services: Vec<Service>,
    /// Taints of node A.
    pub taints: Vec<&'static str>,
    /// Networks of the one ServiceCIDR object; without any there is none.
    pub service_cidrs: Vec<String>,
}

/// A Service of one family with a port `tcp`, `udp`, … for each protocol, and its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Its protocols.
    pub protocols: Vec<Proto>,
    /// Its cluster IP.
    pub cluster_ip: IpAddr,
    /// Its port, the same for all protocols.
    pub port: u16,
    /// The port of its endpoints.
    pub target_port: u16,
    /// Its node port, the same for all protocols.
    pub node_port: Option<u16>,
    /// Its external IPs.
    pub external_ips: Vec<IpAddr>,
    /// The addresses of its load balancer.
    pub load_balancers: Vec<IpAddr>,
    /// Who may use its load balancer.
    pub source_ranges: Vec<String>,
    /// Whether `internalTrafficPolicy` is Local.
    pub internal_local: bool,
    /// Whether `externalTrafficPolicy` is Local.
    pub external_local: bool,
    /// The port at which load balancers ask for the node's health.
    pub health_check_port: Option<u16>,
    /// How long a client stays with an endpoint, in seconds.
    pub affinity: Option<u32>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When those changed last, as its slice says.
    pub changed_at: Option<String>,
}

/// An endpoint of a Service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Where it runs.
    pub node: Node,
    /// New connections are welcome.
    pub ready: bool,
    /// It answers.
    pub serving: bool,
    /// It is about to go.
    pub terminating: bool,
    /// Zones that should use it.
    pub for_zones: Vec<&'static str>,
}

// === impl Endpoint ===

impl Endpoint {
    /// A pod that is ready.
    pub fn ready(pod: &Pod, family: Family) -> Endpoint {
        Endpoint {
            ip: pod.ip(family),
            node: pod.node,
            ready: true,
            serving: true,
            terminating: false,
            for_zones: Vec::new(),
        }
    }

    /// On its way out, but still answering.
    pub fn leaving(self) -> Endpoint {
        Endpoint { ready: false, serving: true, terminating: true, ..self }
    }

    /// Not (yet) answering.
    pub fn unready(self) -> Endpoint {
        Endpoint { ready: false, serving: false, terminating: false, ..self }
    }
}

// === impl Service ===

impl Service {
    /// A Service in the world's family with TCP and UDP and the n-th cluster IP; these pods are its
    /// ready endpoints.
    pub fn new(world: &World, name: &str, n: u16, pods: &[&str]) -> Service {
        let family = world.family();
        Service {
            name: name.to_owned(),
            family,
            protocols: Proto::SOCKETS.to_vec(),
            cluster_ip: family.cluster_ip(n),
            port: SERVICE_PORT,
            target_port: POD_PORT,
            node_port: None,
            external_ips: Vec::new(),
            load_balancers: Vec::new(),
            source_ranges: Vec::new(),
            internal_local: false,
            external_local: false,
            health_check_port: None,
            affinity: None,
            endpoints: pods.iter().map(|pod| Endpoint::ready(world.pod(pod), family)).collect(),
            changed_at: None,
        }
    }

    /// With a node port, a load balancer address and an external IP made from `n`.
    pub fn outside(self, n: u8) -> Service {
        Service {
            node_port: Some(NODE_PORT_BASE + u16::from(n)),
            load_balancers: vec![self.family.load_balancer(n)],
            external_ips: vec![self.family.external(n)],
            ..self
        }
    }

    /// The name of one of its ports as rules have it.
    pub fn port(&self, proto: Proto) -> String {
        format!("{NAMESPACE}/{}:{}", self.name, proto.lower())
    }

    fn kind(&self) -> &'static str {
        match (&self.node_port, self.load_balancers.is_empty()) {
            (_, false) => "LoadBalancer",
            (Some(_), true) => "NodePort",
            (None, true) => "ClusterIP",
        }
    }

    fn policy(local: bool) -> &'static str {
        if local { "Local" } else { "Cluster" }
    }

    fn objects(&self) -> [Value; 2] {
        let mut spec = json!({
            "type": self.kind(),
            "clusterIP": self.cluster_ip,
            "clusterIPs": [self.cluster_ip],
            "ipFamilies": [self.family.name()],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": Service::policy(self.internal_local),
            "sessionAffinity": if self.affinity.is_some() { "ClientIP" } else { "None" },
            "ports": self.protocols.iter().map(|proto| {
                let mut port = json!({
                    "name": proto.lower(), "protocol": proto.name(), "port": self.port, "targetPort": self.target_port,
                });
                if let Some(number) = self.node_port {
                    port["nodePort"] = json!(number);
                }
                port
            }).collect::<Vec<_>>(),
        });
        if !self.external_ips.is_empty() {
            spec["externalIPs"] = json!(self.external_ips);
        }
        if self.kind() != "ClusterIP" || !self.external_ips.is_empty() {
            spec["externalTrafficPolicy"] = json!(Service::policy(self.external_local));
        }
        if !self.source_ranges.is_empty() {
            spec["loadBalancerSourceRanges"] = json!(self.source_ranges);
        }
        if let Some(port) = self.health_check_port {
            spec["healthCheckNodePort"] = json!(port);
        }
        if let Some(seconds) = self.affinity {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        let ingress: Vec<_> = self.load_balancers.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": NAMESPACE, "uid": format!("uid-of-{}", self.name)},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let mut slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-slice", self.name),
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": self.family.name(),
            "ports": self.protocols.iter().map(|proto| {
                json!({"name": proto.lower(), "protocol": proto.name(), "port": self.target_port})
            }).collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().map(Endpoint::object).collect::<Vec<_>>(),
        });
        if let Some(time) = &self.changed_at {
            slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
        }
        [service, slice]
    }
}

impl Endpoint {
    fn object(&self) -> Value {
        let mut object = json!({
            "addresses": [self.ip],
            "conditions": {"ready": self.ready, "serving": self.serving, "terminating": self.terminating},
            "nodeName": self.node.name(),
            "zone": self.node.zone(),
        });
        if !self.for_zones.is_empty() {
            let zones: Vec<_> = self.for_zones.iter().map(|zone| json!({"name": zone})).collect();
            object["hints"] = json!({"forZones": zones});
        }
        object
    }
}

// === impl Objects ===

impl Objects {
    /// These Services.
    pub fn new(services: impl IntoIterator<Item = Service>) -> Objects {
        Objects { services: services.into_iter().collect(), taints: Vec::new(), service_cidrs: Vec::new() }
    }

    /// The Service with this name.
    pub fn service(&mut self, name: &str) -> &mut Service {
        self.services.iter_mut().find(|service| service.name == name).unwrap_or_else(|| panic!("no Service {name}"))
    }

    /// All of them as an API server has them, the Node first.
    pub fn items(&self) -> Vec<Value> {
        let service_cidrs = (!self.service_cidrs.is_empty()).then(|| {
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": self.service_cidrs},
            })
        });
        let first = [self.node_a()].into_iter().chain(service_cidrs);
        first.chain(self.services.iter().flat_map(Service::objects)).collect()
    }

    /// Writes all as one file, which changes as a whole.
    pub fn write(&self, dir: &Path) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": self.items()});
        let fresh = dir.with_file_name("objects.fresh");
        std::fs::write(&fresh, serde_json::to_vec(&list).unwrap()).unwrap();
        std::fs::rename(&fresh, dir.join("objects.json")).unwrap();
    }

    fn node_a(&self) -> Value {
        let node = Node::A;
        let addresses: Vec<_> =
            Family::BOTH.iter().map(|family| json!({"type": "InternalIP", "address": family.node()})).collect();
        let cidrs = Family::BOTH.map(|family| family.pod_cidr(node));
        let labels = json!({"topology.kubernetes.io/zone": node.zone()});
        let taints: Vec<_> = self.taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name(), "uid": "uid-of-node-a", "labels": labels},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs, "taints": taints},
            "status": {"addresses": addresses},
        })
    }
}
