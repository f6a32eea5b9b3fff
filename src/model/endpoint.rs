//! EndpointSlices, as far as rules depend on them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Kind, ObjectRef, Problem, ServiceName, wire};
use crate::net::{IpFamily, PackedIps, Protocol, parse_ip};

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
    pub endpoints: Endpoints,
    /// Value of [`TRIGGER_TIME_ANNOTATION`] as written (RFC 3339), for the latency metric.
    pub trigger_time: Option<Box<str>>,
    /// `metadata.resourceVersion` as a number: a slice with a greater one changed later. (Kubernetes promises
    /// that from 1.35 on, and API servers did so before.) 0 without one.
    pub version: u64,
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

/// The endpoints of a slice: 5 bytes each (IPv6: 17), and 4 more if any of them has hints.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Addresses, each with its [flags](Endpoint::flags).
    ips: PackedIps<1>,
    hints: Option<Arc<Hinted>>,
}

/// Hints of endpoints, most of which are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Hinted {
    /// All there are, in order of their first use.
    kinds: Box<[Arc<Hints>]>,
    /// For each endpoint the place of its hints among these, counted from 1; 0 if it has none.
    of: Box<[u32]>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `hints.forZones[].name`
    pub zones: Box<[Box<str>]>,
    /// `hints.forNodes[].name`
    pub nodes: Box<[Box<str>]>,
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
            endpoints: endpoints.into_iter().collect(),
            trigger_time: meta.annotations.get(TRIGGER_TIME_ANNOTATION).map(Into::into),
            version: meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default(),
        };
        (Some(slice), problems)
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ips.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ips.is_empty()
    }

    /// The endpoints, in the slice's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Endpoint> {
        self.ips.iter().enumerate().map(|(i, (ip, [flags]))| {
            let hints = self.hints.as_ref().and_then(|hinted| hinted.get(i)).cloned();
            Endpoint::unpacked(ip, flags, hints)
        })
    }

    /// The same with every hint replaced by an equal one.
    pub fn with_hints(self, mut equal: impl FnMut(&Arc<Hints>) -> Arc<Hints>) -> Endpoints {
        let hints = self.hints.map(|hinted| {
            let kinds = hinted.kinds.iter().map(&mut equal).collect();
            Arc::new(Hinted { kinds, of: hinted.of.clone() })
        });
        Endpoints { hints, ..self }
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Endpoints {
        let mut kinds: Vec<Arc<Hints>> = Vec::new();
        let mut of = Vec::new();
        let packed = endpoints.into_iter().map(|endpoint| {
            let place = endpoint.hints.as_ref().map_or(0, |hints| {
                let known = kinds.iter().position(|known| known == hints);
                1 + known.unwrap_or_else(|| {
                    kinds.push(hints.clone());
                    kinds.len() - 1
                })
            });
            of.push(u32::try_from(place).unwrap_or(0));
            (endpoint.ip, [endpoint.flags()])
        });
        let ips = packed.collect();
        let hints = (!kinds.is_empty()).then(|| Arc::new(Hinted { kinds: kinds.into(), of: of.into() }));
        Endpoints { ips, hints }
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl Hinted ===

impl Hinted {
    fn get(&self, endpoint: usize) -> Option<&Arc<Hints>> {
        let place = usize::try_from(*self.of.get(endpoint)?).ok()?.checked_sub(1)?;
        self.kinds.get(place)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Its conditions and place, a bit each.
    fn flags(&self) -> u8 {
        let Conditions { ready, serving, terminating } = self.conditions;
        let bits = [ready, serving, terminating, self.local];
        bits.into_iter().rev().fold(0, |flags, bit| flags << 1 | u8::from(bit))
    }

    fn unpacked(ip: IpAddr, flags: u8, hints: Option<Arc<Hints>>) -> Endpoint {
        let bit = |place: u8| flags >> place & 1 == 1;
        let conditions = Conditions { ready: bit(0), serving: bit(1), terminating: bit(2) };
        Endpoint { ip, conditions, local: bit(3), hints }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_out_as_they_went_in() {
        let hints = |zone: &str| Arc::new(Hints { zones: [zone.into()].into(), nodes: Box::default() });
        let endpoint = |i: u8, hints| Endpoint {
            ip: [10, 0, 0, i].into(),
            conditions: Conditions { ready: i & 1 > 0, serving: i & 2 > 0, terminating: i & 4 > 0 },
            local: i & 8 > 0,
            hints,
        };
        let all: Vec<Endpoint> = (0..16).map(|i| endpoint(i, None)).collect();
        assert_eq!(all.iter().cloned().collect::<Endpoints>().iter().collect::<Vec<_>>(), all);

        let hinted = [None, Some(hints("a")), Some(hints("b")), None, Some(hints("a"))];
        let hinted: Vec<Endpoint> = (0..).zip(hinted).map(|(i, hints)| endpoint(i, hints)).collect();
        let packed: Endpoints = hinted.iter().cloned().collect();
        assert_eq!(packed.iter().collect::<Vec<_>>(), hinted);
        assert_eq!(packed.hints.as_ref().unwrap().kinds.len(), 2);
        let one = hints("a");
        let packed = packed.with_hints(|known| if *known == one { one.clone() } else { known.clone() });
        assert_eq!(packed.iter().collect::<Vec<_>>(), hinted);
        assert!(Arc::ptr_eq(&packed.iter().last().unwrap().hints.unwrap(), &one));
    }
}
