//! What an API server does with an object before a proxy sees it, as far as that follows from the
//! object itself: selectors and defaults. Then the object is reduced to what rules depend on.

use std::sync::Arc;

use crate::cluster::Event;
use crate::model::{EndpointSlice, Kind, Node, ObjectRef, Problem, Service, ServiceCidr, wire};
use crate::net::{IpFamily, parse_ip};

/// Services with this label are another proxy's.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Slices with this label belong to headless Services.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// An object as written.
pub(super) enum Object<'a> {
    Service(Box<wire::Service<'a>>),
    EndpointSlice(wire::EndpointSlice<'a>),
    Node(wire::Node<'a>),
    ServiceCidr(wire::ServiceCidr<'a>),
}

/// An object of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Which object.
    pub(super) object: ObjectRef,
    /// Line on which it begins, from 1.
    pub(super) line: u64,
    /// What rules depend on; `None` if there is nothing, as for a headless Service.
    pub(super) value: Option<Value>,
    /// What cannot be honoured.
    pub(super) problems: Vec<Problem>,
}

/// A model object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Node(Arc<Node>),
    ServiceCidr(Arc<ServiceCidr>),
}

// === impl Object ===

impl Object<'_> {
    /// Does what an API server would have done (selectors, defaults), then keeps what rules depend
    /// on. `None` for other nodes.
    pub(super) fn admit(mut self, line: u64, node_name: &str) -> Option<Entry> {
        let (kind, meta) = match &mut self {
            Object::Service(object) => (Kind::Service, &mut object.metadata),
            Object::EndpointSlice(object) => (Kind::EndpointSlice, &mut object.metadata),
            Object::Node(object) => (Kind::Node, &mut object.metadata),
            Object::ServiceCidr(object) => (Kind::ServiceCidr, &mut object.metadata),
        };
        default_namespace(meta);
        let name = meta.name.as_deref().unwrap_or_default();
        let (namespace, selected) = match kind {
            Kind::Node => ("", name == node_name),
            Kind::ServiceCidr => ("", true),
            Kind::Service => (meta.namespace.as_deref().unwrap_or_default(), !meta.labels.has(OTHER_PROXY_LABEL)),
            Kind::EndpointSlice => (meta.namespace.as_deref().unwrap_or_default(), !meta.labels.has(HEADLESS_LABEL)),
        };
        let object = ObjectRef::new(kind, namespace, name);
        let (value, problems) = match self {
            Object::Node(_) if !selected => return None,
            _ if !selected => (None, Vec::new()),
            Object::Node(node) => (Some(Value::Node(Arc::new(Node::from_wire(&node)))), Vec::new()),
            Object::ServiceCidr(service_cidr) => {
                let (value, problems) = ServiceCidr::from_wire(&service_cidr);
                (Some(Value::ServiceCidr(Arc::new(value))), problems)
            }
            Object::Service(mut service) => {
                default_cluster_ips(&mut service.spec);
                let (value, mut problems) = Service::from_wire(&service);
                problems.extend(unassigned(&object, &service.spec));
                (value.map(|value| Value::Service(Arc::new(value))), problems)
            }
            Object::EndpointSlice(mut slice) => {
                // The API server turns an absent port name into the empty one.
                for port in &mut slice.ports {
                    port.name.get_or_insert_default();
                }
                let (value, problems) = EndpointSlice::from_wire(&slice, node_name);
                (value.map(|value| Value::EndpointSlice(Arc::new(value))), problems)
            }
        };
        Some(Entry { object, line, value, problems })
    }
}

fn default_namespace(meta: &mut wire::Meta<'_>) {
    if meta.namespace.as_deref().is_none_or(str::is_empty) {
        meta.namespace = Some("default".into());
    }
}

/// `clusterIP`, `clusterIPs` and `ipFamilies` each follow from the others.
fn default_cluster_ips(spec: &mut wire::ServiceSpec<'_>) {
    let is_set = |ip: &Option<wire::Text<'_>>| ip.as_deref().is_some_and(|ip| !ip.is_empty());
    match (is_set(&spec.cluster_ip), spec.cluster_ips.is_empty()) {
        (true, true) => spec.cluster_ips.extend(spec.cluster_ip.clone()),
        (false, false) => spec.cluster_ip = spec.cluster_ips.first().cloned(),
        (true, false) | (false, true) => {}
    }
    if spec.ip_families.is_empty() && spec.cluster_ips.len() > 1 {
        let family = |text: &wire::Text<'_>| parse_ip(text).map(|ip| IpFamily::of(ip).as_str().into());
        spec.ip_families = spec.cluster_ips.iter().map(family).collect::<Option<_>>().unwrap_or_default();
    }
}

/// What an API server would have assigned, and nobody does here.
fn unassigned(object: &ObjectRef, spec: &wire::ServiceSpec<'_>) -> Vec<Problem> {
    let problem = |field: String, reason: &str| Problem { object: object.clone(), field, reason: reason.into() };
    if spec.kind.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    if spec.cluster_ip.as_deref().is_none_or(str::is_empty) {
        let reason = "is missing, and no API server assigns one; the Service has no rules";
        return vec![problem("spec.clusterIP".into(), reason)];
    }
    if spec.kind.as_deref() != Some("NodePort") {
        return Vec::new();
    }
    let ports = spec.ports.iter().enumerate().filter(|(_, port)| port.node_port.unwrap_or(0) == 0);
    let reason = "is missing, and no API server assigns one; the port has no node port";
    ports.map(|(i, _)| problem(format!("spec.ports[{i}].nodePort"), reason)).collect()
}

// === impl Value ===

impl Value {
    /// The event that says the object is there and like this.
    pub(super) fn event(&self) -> Event {
        match self {
            Value::Service(service) => Event::Service(service.clone()),
            Value::EndpointSlice(slice) => Event::EndpointSlice(slice.clone()),
            Value::Node(node) => Event::Node(node.clone()),
            Value::ServiceCidr(service_cidr) => Event::ServiceCidr(service_cidr.clone()),
        }
    }
}
