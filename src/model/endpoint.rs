//! EndpointSlices, as far as rules depend on them.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Kind, ObjectRef, Problem, ServiceName, wire};
use crate::net::{IpFamily, Protocol, parse_ip};

/// Label that names the Service a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Annotation with the time of the change that made the endpoints controller write the slice.
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// One EndpointSlice of one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service it belongs to.
    pub service: ServiceName,
    /// Its own name, in the Service's namespace.
    pub name: Arc<str>,
    /// The family of its addresses.
    pub family: IpFamily,
    /// Ports every endpoint serves.
    pub ports: Box<[SlicePort]>,
    /// Endpoints, in the slice's order.
    pub endpoints: Box<[Endpoint]>,
    /// Value of [`TRIGGER_TIME_ANNOTATION`] as written (RFC 3339), for the latency metric.
    pub trigger_time: Option<Box<str>>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service port it belongs to; empty for the unnamed one.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// First address of the endpoint: all that kube-proxy ever uses.
    pub ip: IpAddr,
    /// Its state.
    pub conditions: Conditions,
    /// Whether it runs on this node.
    pub local: bool,
    /// Where its traffic should come from, if the controller said.
    pub hints: Option<Arc<Hints>>,
}

/// State of an endpoint as published; the API's defaults are filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new connections.
    pub ready: bool,
    /// Would be ready, were it not terminating.
    pub serving: bool,
    /// Is being shut down.
    pub terminating: bool,
}

/// Names in the hints of an endpoint. An empty list is no hint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones[].name`
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes[].name`
    pub nodes: Vec<Arc<str>>,
}

// === impl EndpointSlice ===

impl EndpointSlice {
    /// Keeps what rules depend on, seen from the node called `this_node`. `None` for slices that
    /// belong to no Service or hold no IP addresses. (kube-proxy: `endpointslicecache.go`.)
    pub fn from_wire(object: &wire::EndpointSlice<'_>, this_node: &str) -> (Option<EndpointSlice>, Vec<Problem>) {
        let meta = &object.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let name = meta.name.as_deref().unwrap_or_default();
        let mut problems = Vec::new();
        let mut problem = |field: String, reason: String| {
            let object = ObjectRef::new(Kind::EndpointSlice, namespace, name);
            problems.push(Problem { object, field, reason });
        };
        if name.is_empty() {
            problem("metadata.name".into(), "is missing; the object is ignored".into());
            return (None, problems);
        }
        let service = match meta.label(SERVICE_NAME_LABEL) {
            Some(service) if !service.is_empty() => ServiceName::new(namespace, service),
            _ => {
                let field = format!("metadata.labels[{SERVICE_NAME_LABEL}]");
                problem(field, "is missing, so the slice belongs to no Service; it is ignored".into());
                return (None, problems);
            }
        };
        let family = match object.address_type.as_deref() {
            Some("IPv4") => IpFamily::V4,
            Some("IPv6") => IpFamily::V6,
            other => {
                let written = other.unwrap_or("(none)");
                problem("addressType".into(), format!("{written:?} is not IPv4 or IPv6; the slice is ignored"));
                return (None, problems);
            }
        };

        let mut ports = Vec::with_capacity(object.ports.len());
        for (i, entry) in object.ports.iter().enumerate() {
            let Some(port_name) = entry.name.as_deref() else {
                problem(format!("ports[{i}].name"), "is missing; the port is left out".into());
                continue;
            };
            let port = match entry.port.map(u16::try_from) {
                Some(Ok(port)) if port != 0 => port,
                _ => {
                    problem(
                        format!("ports[{i}].port"),
                        "is missing or not within 1..65535; the port is left out".into(),
                    );
                    continue;
                }
            };
            let protocol = match entry.protocol.as_deref() {
                None | Some("") => Protocol::Tcp,
                Some(text) => match Protocol::parse(text) {
                    Some(protocol) => protocol,
                    None => {
                        problem(
                            format!("ports[{i}].protocol"),
                            format!("{text:?} is not TCP, UDP or SCTP; the port is left out"),
                        );
                        continue;
                    }
                },
            };
            ports.push(SlicePort { name: port_name.into(), protocol, port });
        }

        let mut hints = HintsInterner::default();
        let mut endpoints = Vec::with_capacity(object.endpoints.len());
        for (i, entry) in object.endpoints.iter().enumerate() {
            let Some(text) = entry.addresses.0.as_deref() else {
                problem(format!("endpoints[{i}].addresses"), "is empty; the endpoint is left out".into());
                continue;
            };
            let ip = match parse_ip(text) {
                Some(ip) if IpFamily::of(ip) == family => ip,
                _ => {
                    problem(
                        format!("endpoints[{i}].addresses[0]"),
                        format!("{text:?} is not an {family} address; the endpoint is left out"),
                    );
                    continue;
                }
            };
            endpoints.push(Endpoint {
                ip,
                conditions: Conditions {
                    ready: entry.conditions.ready.unwrap_or(true),
                    serving: entry.conditions.serving.unwrap_or(true),
                    terminating: entry.conditions.terminating.unwrap_or(false),
                },
                local: !this_node.is_empty() && entry.node_name.as_deref() == Some(this_node),
                hints: entry.hints.as_ref().and_then(|written| hints.intern(written)),
            });
        }
        let slice = EndpointSlice {
            service,
            name: name.into(),
            family,
            ports: ports.into(),
            endpoints: endpoints.into(),
            trigger_time: meta.annotations.get(TRIGGER_TIME_ANNOTATION).map(Into::into),
        };
        (Some(slice), problems)
    }
}

/// Endpoints of a slice mostly share their hints: keeps one copy of each.
#[derive(Default)]
struct HintsInterner(Vec<Arc<Hints>>);

impl HintsInterner {
    fn intern(&mut self, written: &wire::Hints<'_>) -> Option<Arc<Hints>> {
        fn names<'a>(list: &'a [wire::ForName<'_>]) -> impl Iterator<Item = &'a str> {
            list.iter().filter_map(|entry| entry.name.as_deref())
        }
        if written.for_zones.is_empty() && written.for_nodes.is_empty() {
            return None;
        }
        let known = self.0.iter().find(|known| {
            known.zones.iter().map(|z| &**z).eq(names(&written.for_zones))
                && known.nodes.iter().map(|n| &**n).eq(names(&written.for_nodes))
        });
        if let Some(known) = known {
            return Some(known.clone());
        }
        let hints = Arc::new(Hints {
            zones: names(&written.for_zones).map(Into::into).collect(),
            nodes: names(&written.for_nodes).map(Into::into).collect(),
        });
        self.0.push(hints.clone());
        Some(hints)
    }
}
