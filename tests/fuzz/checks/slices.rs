//! The cluster's state after any sequence of events: the same as that of a listing of what is left
//! in the end, with everything that changed on the way named by some event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ferrule::cluster::{Changed, ClusterState, Event, PortEndpoint, endpoints_of};
use ferrule::model::{
    Conditions, Endpoint, EndpointSlice, Hints, Kind, ObjectRef, Service, ServiceName, ServicePort, SlicePort,
};
use ferrule::net::{IpFamily, Protocol};

use super::rules::{address, family, protocol};

const NAMESPACES: [&str; 2] = ["a", "b"];
const SERVICES: [&str; 2] = ["web", "dns"];
const SLICES: [&str; 4] = ["s1", "s10", "s2", "web"];
const PORTS: [&str; 2] = ["", "p"];
/// So many events at most.
const EVENTS: usize = 64;

/// The input says which events come.
pub(super) fn events(input: &[u8]) {
    let mut seed = Unstructured::new(input);
    let (mut state, mut known) = (ClusterState::new(), Known::default());
    for _ in 0..EVENTS {
        let Ok(event) = event(&mut seed) else { break };
        let before = known.clone();
        known.take(&event);
        let changed = state.apply(event.clone());
        assert_told(&changed, &before, &known, &event);
        assert_same(&state, &known);
        if let Changed::Service(name, _) = &changed {
            assert_merged(&state, &known, name);
        }
        if seed.is_empty() {
            break;
        }
    }
    assert_same(&known.listed(), &known);
    // Slices that wait for their Service are seen once it is there.
    for name in names() {
        let event = Event::Service(Arc::new(service(name, 1)));
        known.take(&event);
        state.apply(event);
    }
    assert_same(&state, &known);
    names().for_each(|name| assert_merged(&state, &known, &name));
}

/// The objects there are, in the simplest form.
#[derive(Clone, Default)]
struct Known {
    services: BTreeMap<ServiceName, Arc<Service>>,
    slices: BTreeMap<SliceName, Arc<EndpointSlice>>,
    /// What was mentioned since the last listing of its kind began.
    mentioned: BTreeSet<ObjectRef>,
}

/// Namespace and name.
type SliceName = (Arc<str>, Arc<str>);

// === impl Known ===

impl Known {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Listing(kind) => self.mentioned.retain(|object| object.kind != *kind),
            Event::Synced(Kind::Service) => {
                self.services.retain(|name, _| self.mentioned.contains(&service_ref(name)));
            }
            Event::Synced(Kind::EndpointSlice) => {
                self.slices.retain(|name, _| self.mentioned.contains(&slice_ref(name)));
            }
            Event::Service(service) => {
                self.mentioned.insert(service_ref(&service.name));
                self.services.insert(service.name.clone(), service.clone());
            }
            Event::EndpointSlice(slice) => {
                let name = (slice.service.namespace.clone(), slice.name.clone());
                self.mentioned.insert(slice_ref(&name));
                self.slices.insert(name, slice.clone());
            }
            Event::Deleted(object) if object.kind == Kind::Service => {
                let ObjectRef { namespace, name, .. } = object.clone();
                self.services.remove(&ServiceName::within(namespace, &name));
            }
            Event::Deleted(object) if object.kind == Kind::EndpointSlice => {
                self.slices.remove(&(object.namespace.clone(), object.name.clone()));
            }
            Event::Unreadable(object) => drop(self.mentioned.insert(object.clone())),
            _ => {}
        }
    }

    /// A state that has heard of nothing but what there is now, last things first.
    fn listed(&self) -> ClusterState {
        let mut state = ClusterState::new();
        for kind in [Kind::EndpointSlice, Kind::Service] {
            state.apply(Event::Listing(kind));
        }
        for slice in self.slices.values().rev() {
            state.apply(Event::EndpointSlice(slice.clone()));
        }
        for service in self.services.values().rev() {
            state.apply(Event::Service(service.clone()));
        }
        for kind in [Kind::Service, Kind::EndpointSlice] {
            state.apply(Event::Synced(kind));
        }
        state
    }

    /// A Service's slices of a family, in order of their names.
    fn slices_of(&self, name: &ServiceName, family: IpFamily) -> Vec<&Arc<EndpointSlice>> {
        self.slices.values().filter(|slice| slice.service == *name && slice.family == family).collect()
    }

    /// All that rules of a Service in a family depend on.
    fn part(&self, name: &ServiceName, family: IpFamily) -> (Option<&Arc<Service>>, Vec<&Arc<EndpointSlice>>) {
        (self.services.get(name), self.slices_of(name, family))
    }

    /// Endpoints by the text of address and port; a terminating one never replaces another.
    fn endpoints(&self, name: &ServiceName, family: IpFamily, port: &str, protocol: Protocol) -> Vec<PortEndpoint> {
        let mut endpoints: BTreeMap<String, PortEndpoint> = BTreeMap::new();
        for slice in self.slices_of(name, family) {
            for slice_port in slice.ports.iter().filter(|found| *found.name == *port && found.protocol == protocol) {
                for Endpoint { ip, conditions, local, hints } in slice.endpoints.iter() {
                    let text = SocketAddr::new(ip, slice_port.port).to_string();
                    if !conditions.terminating || !endpoints.contains_key(&text) {
                        let endpoint = PortEndpoint { ip, port: slice_port.port, conditions, local, hints };
                        endpoints.insert(text, endpoint);
                    }
                }
            }
        }
        endpoints.into_values().collect()
    }
}

/// The state knows these objects and no others.
fn assert_same(state: &ClusterState, known: &Known) {
    let services: Vec<_> = state.services().map(|(service, _)| service).collect();
    assert_eq!(services, known.services.values().collect::<Vec<_>>());
    for (name, service) in &known.services {
        let (found, slices) = state.service(name).expect("it is among all");
        assert_eq!(found, service);
        for family in IpFamily::BOTH {
            assert_eq!(slices.of_family(family).collect::<Vec<_>>(), known.slices_of(name, family), "{name} {family}");
        }
    }
}

/// The endpoints of a Service come of its slices as they should.
fn assert_merged(state: &ClusterState, known: &Known, name: &ServiceName) {
    let Some((_, slices)) = state.service(name) else { return };
    for family in IpFamily::BOTH {
        for (port, protocol) in PORTS.iter().flat_map(|port| [(port, Protocol::Tcp), (port, Protocol::Udp)]) {
            let merged = endpoints_of(slices.of_family(family), port, protocol);
            assert_eq!(merged, known.endpoints(name, family, port, protocol), "{name}:{port} {protocol} {family}");
        }
    }
}

/// Whatever rules depend on is named when it changes, and nothing is if nothing does.
fn assert_told(changed: &Changed, before: &Known, after: &Known, event: &Event) {
    for name in names() {
        for family in IpFamily::BOTH {
            let is_told = match changed {
                Changed::Nothing | Changed::Node => false,
                Changed::Service(told, families) => *told == name && families.contains(family),
                Changed::Services(told) => told.contains(&name),
            };
            let differs = before.part(&name, family) != after.part(&name, family);
            assert!(is_told || !differs, "{name} {family} after {event:?}: {changed:?}");
        }
    }
    let nothing = (&before.services, &before.slices) == (&after.services, &after.slices);
    assert!(!nothing || *changed == Changed::Nothing, "{event:?}: {changed:?}");
}

// === events ===

fn event(seed: &mut Unstructured<'_>) -> Result<Event> {
    Ok(match seed.int_in_range(0..=7)? {
        0 => Event::Listing(kind(seed)?),
        1 => Event::Synced(kind(seed)?),
        2 => Event::Deleted(object(seed)?),
        3 => Event::Unreadable(object(seed)?),
        4 => Event::Service(Arc::new(service(service_name(seed)?, seed.int_in_range(1..=3)?))),
        _ => Event::EndpointSlice(Arc::new(slice(seed)?)),
    })
}

fn kind(seed: &mut Unstructured<'_>) -> Result<Kind> {
    seed.choose(&[Kind::Service, Kind::EndpointSlice]).copied()
}

fn object(seed: &mut Unstructured<'_>) -> Result<ObjectRef> {
    let (kind, namespace) = (kind(seed)?, seed.choose(&NAMESPACES)?);
    let name = if kind == Kind::Service { seed.choose(&SERVICES)? } else { seed.choose(&SLICES)? };
    Ok(ObjectRef::new(kind, namespace, name))
}

fn service_name(seed: &mut Unstructured<'_>) -> Result<ServiceName> {
    Ok(ServiceName::new(seed.choose(&NAMESPACES)?, seed.choose(&SERVICES)?))
}

fn service(name: ServiceName, port: u16) -> Service {
    let port = |name: &&str| ServicePort { name: (*name).into(), protocol: Protocol::Tcp, port, node_port: None };
    Service {
        name,
        cluster_ips: [IpAddr::from([10, 96, 0, 1])].into(),
        ports: PORTS.iter().map(port).collect(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        external_policy_local: false,
        internal_policy_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    }
}

fn slice(seed: &mut Unstructured<'_>) -> Result<EndpointSlice> {
    let (service, family) = (service_name(seed)?, family(seed)?);
    let name = (*seed.choose(&SLICES)?).into();
    let ports = some(seed, 2, |seed| {
        let (name, protocol) = ((*seed.choose(&PORTS)?).into(), protocol(seed)?);
        Ok(SlicePort { name, protocol, port: *seed.choose(&[80, 8080, 8, u16::MAX])? })
    })?;
    let endpoints = some(seed, 3, |seed| endpoint(seed, family))?.into_iter().collect();
    Ok(EndpointSlice { service, name, family, ports, endpoints, trigger_time: None, version: 0 })
}

fn endpoint(seed: &mut Unstructured<'_>, family: IpFamily) -> Result<Endpoint> {
    let [ready, serving, terminating, local, hinted, usual] = seed.arbitrary()?;
    let ip = match (usual, family) {
        (true, IpFamily::V4) => IpAddr::from([10, 0, 0, seed.int_in_range(1..=12)?]),
        (true, IpFamily::V6) => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, seed.int_in_range(1..=0x12)?]),
        (false, family) => address(seed, family)?,
    };
    let hints = hinted.then(|| Arc::new(Hints { zones: ["z".into()].into(), nodes: Box::default() }));
    Ok(Endpoint { ip, conditions: Conditions { ready, serving, terminating }, local, hints })
}

fn some<T>(
    seed: &mut Unstructured<'_>,
    most: usize,
    mut one: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Box<[T]>> {
    (0..seed.int_in_range(0..=most)?).map(|_| one(seed)).collect()
}

/// Every Service there may be.
fn names() -> impl Iterator<Item = ServiceName> {
    NAMESPACES.iter().flat_map(|namespace| SERVICES.iter().map(|name| ServiceName::new(namespace, name)))
}

fn service_ref(name: &ServiceName) -> ObjectRef {
    ObjectRef::new(Kind::Service, &name.namespace, &name.name)
}

fn slice_ref((namespace, name): &SliceName) -> ObjectRef {
    ObjectRef::new(Kind::EndpointSlice, namespace, name)
}
