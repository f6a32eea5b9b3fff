//! Objects for tests and benches: Services, EndpointSlices and Nodes that read as sentences, and
//! [clusters](cluster()) of any size. Each is an object as the API writes it, and goes through the
//! same decoding as any other.
//!
//! ```
//! use ferrule::fixtures::{service, slice};
//!
//! let web = service("web").at("10.96.0.1").port("http", 80).node_port(30080).external_traffic_local();
//! let endpoints = slice("web-1", "web").port("http", 8080).ready_on("10.128.0.7", "node-000").terminating("10.128.1.7");
//! assert_eq!(web.model().ports[0].node_port, Some(30080));
//! assert_eq!(endpoints.model("node-000").endpoints.len(), 2);
//! ```

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a mistake in a fixture ends the test that uses it")]

mod cluster;

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cluster::{ClusterState, Event};
use crate::model::{EndpointSlice, Node, Service, wire};
use crate::net::{IpFamily, Protocol};
use crate::plan::Plan;
use crate::plan::build::{self, Balancing, DetectLocal, NodePortSetting, Settings};

pub use cluster::{Cluster, NODE, cluster};

/// What a proxy plans by that is configured with nothing but the network of its pods.
pub fn settings(node: &str, pods: &str) -> Settings {
    Settings {
        node_name: node.into(),
        bind_address: None,
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortSetting::Cidrs(Vec::new()),
        detect_local: DetectLocal::ClusterCidr(vec![pods.parse().expect("a network")]),
        external_ips: true,
        balancing: Balancing::Rules,
    }
}

/// The Plan of everything in a cluster, of which the Node is known. Unless it was told otherwise, the node's interfaces
/// hold the addresses of its Node object.
pub fn plan(state: &ClusterState, settings: &Settings, family: IpFamily) -> Plan {
    let node = state.node().expect("a Node");
    build::plan(state, family, settings, node, state.addresses().unwrap_or(&node.addresses))
}

/// A Service of the namespace `default`, without addresses and ports so far.
pub fn service(name: &str) -> ServiceFixture {
    ServiceFixture(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIPs": [], "ipFamilies": [], "ports": []},
        "status": {"loadBalancer": {}},
    }))
}

/// An EndpointSlice of a Service of the namespace `default`, of the family of its first endpoint.
pub fn slice(name: &str, service: &str) -> SliceFixture {
    SliceFixture(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [],
        "endpoints": [],
    }))
}

/// A Node without addresses so far.
pub fn node(name: &str) -> NodeFixture {
    NodeFixture(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {}},
        "spec": {"podCIDRs": []},
        "status": {"addresses": []},
    }))
}

/// A Service in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFixture(Value);

/// An EndpointSlice in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceFixture(Value);

/// A Node in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFixture(Value);

// === impl ServiceFixture ===

impl ServiceFixture {
    /// In another namespace.
    pub fn in_namespace(self, namespace: &str) -> ServiceFixture {
        self.set("/metadata/namespace", json!(namespace))
    }

    /// With a cluster IP; once for each family.
    pub fn at(self, cluster_ip: &str) -> ServiceFixture {
        let first = self.0["spec"]["clusterIP"].as_str().unwrap_or(cluster_ip).to_owned();
        let family = IpFamily::of(ip(cluster_ip)).as_str();
        self.set("/spec/clusterIP", json!(first)).add("/spec/clusterIPs", cluster_ip).add("/spec/ipFamilies", family)
    }

    /// With a TCP port.
    pub fn port(self, name: &str, port: u16) -> ServiceFixture {
        self.port_of(Protocol::Tcp, name, port)
    }

    /// With a port of some protocol.
    pub fn port_of(self, protocol: Protocol, name: &str, port: u16) -> ServiceFixture {
        self.add("/spec/ports", json!({"name": name, "protocol": protocol.to_string(), "port": port}))
    }

    /// With a node port for the port named last.
    pub fn node_port(mut self, node_port: u16) -> ServiceFixture {
        let last = self.0["spec"]["ports"].as_array_mut().and_then(|ports| ports.last_mut());
        last.expect("name the port first")["nodePort"] = json!(node_port);
        match self.0["spec"]["type"] == "ClusterIP" {
            true => self.set("/spec/type", json!("NodePort")),
            false => self,
        }
    }

    /// With an address of a load balancer.
    pub fn load_balanced_at(self, ip: &str) -> ServiceFixture {
        let this = self.set("/spec/type", json!("LoadBalancer"));
        this.add("/status/loadBalancer/ingress", json!({"ip": ip, "ipMode": "VIP"}))
    }

    /// With an external IP.
    pub fn external_ip(self, ip: &str) -> ServiceFixture {
        self.add("/spec/externalIPs", ip)
    }

    /// With the load balancer's addresses open to a network only.
    pub fn only_from(self, network: &str) -> ServiceFixture {
        self.add("/spec/loadBalancerSourceRanges", network)
    }

    /// With external traffic staying on the node it came to.
    pub fn external_traffic_local(self) -> ServiceFixture {
        self.set("/spec/externalTrafficPolicy", json!("Local"))
    }

    /// With internal traffic staying on the node it comes from.
    pub fn internal_traffic_local(self) -> ServiceFixture {
        self.set("/spec/internalTrafficPolicy", json!("Local"))
    }

    /// With clients staying with their endpoint for so many seconds.
    pub fn affinity(self, seconds: u32) -> ServiceFixture {
        self.set("/spec/sessionAffinity", json!("ClientIP"))
            .set("/spec/sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    }

    /// With a health check of the load balancer at this port.
    pub fn health_checked_at(self, port: u16) -> ServiceFixture {
        self.set("/spec/healthCheckNodePort", json!(port))
    }

    /// What rules depend on. Ends the test if any of it cannot be honoured.
    pub fn model(&self) -> Service {
        let object: wire::Service<'_> = decode(&self.0);
        let (service, problems) = Service::from_wire(&object);
        assert!(problems.is_empty(), "{problems:?}");
        service.expect("the Service has rules")
    }

    /// The event that says the Service is there.
    pub fn event(&self) -> Event {
        Event::Service(Arc::new(self.model()))
    }

    /// A YAML document.
    pub fn yaml(&self) -> String {
        document(&self.0)
    }

    /// One line of JSON, as an API server writes it.
    pub fn json(&self) -> String {
        self.0.to_string()
    }

    fn set(self, pointer: &str, value: Value) -> ServiceFixture {
        ServiceFixture(set(self.0, pointer, value))
    }

    fn add(self, pointer: &str, value: impl Into<Value>) -> ServiceFixture {
        ServiceFixture(add(self.0, pointer, value.into()))
    }
}

// === impl SliceFixture ===

impl SliceFixture {
    /// In another namespace.
    pub fn in_namespace(self, namespace: &str) -> SliceFixture {
        SliceFixture(set(self.0, "/metadata/namespace", json!(namespace)))
    }

    /// With a TCP port that every endpoint serves.
    pub fn port(self, name: &str, port: u16) -> SliceFixture {
        self.port_of(Protocol::Tcp, name, port)
    }

    /// With a port of some protocol.
    pub fn port_of(self, protocol: Protocol, name: &str, port: u16) -> SliceFixture {
        SliceFixture(add(self.0, "/ports", json!({"name": name, "protocol": protocol.to_string(), "port": port})))
    }

    /// With a ready endpoint, on no node in particular.
    pub fn ready(self, ip: &str) -> SliceFixture {
        self.endpoint(ip, json!({"conditions": {"ready": true, "serving": true, "terminating": false}}))
    }

    /// With a ready endpoint on a node.
    pub fn ready_on(self, ip: &str, node: &str) -> SliceFixture {
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        self.endpoint(ip, json!({"nodeName": node, "conditions": conditions}))
    }

    /// With an endpoint that serves what connections it has while it is shut down.
    pub fn terminating(self, ip: &str) -> SliceFixture {
        self.endpoint(ip, json!({"conditions": {"ready": false, "serving": true, "terminating": true}}))
    }

    /// With an endpoint that does not serve (yet).
    pub fn unready(self, ip: &str) -> SliceFixture {
        self.endpoint(ip, json!({"conditions": {"ready": false, "serving": false, "terminating": false}}))
    }

    /// With the endpoint named last on a node.
    pub fn on(self, node: &str) -> SliceFixture {
        self.last("nodeName", json!(node))
    }

    /// With a hint that traffic to the endpoint named last should come from a zone.
    pub fn for_zone(self, zone: &str) -> SliceFixture {
        self.last("hints", json!({"forZones": [{"name": zone}]}))
    }

    /// What rules of a node depend on. Ends the test if any of it cannot be honoured.
    pub fn model(&self, this_node: &str) -> EndpointSlice {
        let object: wire::EndpointSlice<'_> = decode(&self.0);
        let (slice, problems) = EndpointSlice::from_wire(&object, this_node);
        assert!(problems.is_empty(), "{problems:?}");
        slice.expect("the slice belongs to a Service")
    }

    /// The event that tells a node that the slice is there.
    pub fn event(&self, this_node: &str) -> Event {
        Event::EndpointSlice(Arc::new(self.model(this_node)))
    }

    /// A YAML document.
    pub fn yaml(&self) -> String {
        document(&self.0)
    }

    /// One line of JSON, as an API server writes it.
    pub fn json(&self) -> String {
        self.0.to_string()
    }

    fn endpoint(self, address: &str, mut endpoint: Value) -> SliceFixture {
        endpoint["addresses"] = json!([address]);
        let family = IpFamily::of(ip(address)).as_str();
        SliceFixture(add(set(self.0, "/addressType", json!(family)), "/endpoints", endpoint))
    }

    fn last(mut self, key: &str, value: Value) -> SliceFixture {
        let last = self.0["endpoints"].as_array_mut().and_then(|endpoints| endpoints.last_mut());
        last.expect("name the endpoint first")[key] = value;
        self
    }
}

// === impl NodeFixture ===

impl NodeFixture {
    /// In a zone.
    pub fn in_zone(mut self, zone: &str) -> NodeFixture {
        self.0["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
        self
    }

    /// With an address.
    pub fn at(self, ip: &str) -> NodeFixture {
        NodeFixture(add(self.0, "/status/addresses", json!({"type": "InternalIP", "address": ip})))
    }

    /// With a network for its pods.
    pub fn with_pods_in(self, network: &str) -> NodeFixture {
        NodeFixture(add(self.0, "/spec/podCIDRs", json!(network)))
    }

    /// What rules depend on.
    pub fn model(&self) -> Node {
        Node::from_wire(&decode(&self.0))
    }

    /// The event that says the Node is there.
    pub fn event(&self) -> Event {
        Event::Node(Arc::new(self.model()))
    }

    /// A YAML document.
    pub fn yaml(&self) -> String {
        document(&self.0)
    }

    /// One line of JSON, as an API server writes it.
    pub fn json(&self) -> String {
        self.0.to_string()
    }
}

fn decode<'a, T: serde::Deserialize<'a>>(object: &'a Value) -> T {
    T::deserialize(object).expect("fixtures are written as the API writes objects")
}

fn document(object: &Value) -> String {
    let text = serde_saphyr::to_string(object).expect("JSON can be written as YAML");
    format!("---\n{}\n", text.trim_end())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

/// Sets a member of an object that is there.
fn set(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    object.pointer_mut(parent).expect("the parent is there")[key] = value;
    object
}

/// Adds to an array, which need not be there.
fn add(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let array = &mut object.pointer_mut(parent).expect("the parent is there")[key];
    match array.as_array_mut() {
        Some(array) => array.push(value),
        None => *array = json!([value]),
    }
    object
}
