//! The cluster as this node knows it: the sum of all events so far.
//!
//! [`ClusterState::apply`] folds one [`Event`] in and says which Services it touched. It is owned by
//! one task, and it is the only thing that remembers objects. Losing a source changes nothing here:
//! objects go when a source says so, or when a completed listing no longer holds them.

mod shared;
mod slices;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{EndpointSlice, Hints, Kind, Node, ObjectRef, Problem, Service, ServiceCidr, ServiceName};
use crate::net::IpFamily;

use shared::Shared;
pub use slices::{PortEndpoint, Slices, endpoints_of};

/// What a source says. Closed: [`ClusterState::apply`] matches it once.
#[derive(Clone, Debug)]
pub enum Event {
    /// A source begins to list a kind afresh. Until it says [`Event::Synced`], nothing is removed.
    Listing(Kind),
    /// A listing is complete: what it did not mention is gone.
    Synced(Kind),
    /// A Service was added or changed.
    Service(Arc<Service>),
    /// An EndpointSlice was added or changed.
    EndpointSlice(Arc<EndpointSlice>),
    /// The Node object of this node was added or changed.
    Node(Arc<Node>),
    /// A ServiceCIDR was added or changed.
    ServiceCidr(Arc<ServiceCidr>),
    /// The addresses of this node's interfaces, all of them, sorted.
    Addresses(Arc<[IpAddr]>),
    /// An object was deleted, or no longer has anything that rules depend on.
    Deleted(ObjectRef),
    /// An object is there, but cannot be read: its last good version stays.
    Unreadable(ObjectRef),
    /// Something in an object cannot be honoured. For the log; changes nothing.
    Problem(Problem),
    /// Somebody else may have taken rules of a family away. Changes nothing of the cluster.
    Disturbed(IpFamily),
}

/// What an event may have changed in the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Nothing.
    Nothing,
    /// One Service, in the families that are named.
    Service(ServiceName, Families),
    /// Services that a listing no longer held.
    Services(BTreeSet<ServiceName>),
    /// Whatever depends on the node, its addresses or the networks of Services, and not on one Service.
    Node,
}

/// A set of IP families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// One family.
    Only(IpFamily),
    /// Both families.
    Both,
}

impl Families {
    /// Whether the set holds `family`.
    pub fn contains(self, family: IpFamily) -> bool {
        match self {
            Families::Only(only) => only == family,
            Families::Both => true,
        }
    }
}

/// Everything known about the cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    services: BTreeMap<ServiceName, Entry>,
    /// Which Service each slice, by namespace and name, is filed under.
    owners: HashMap<SliceName, ServiceName>,
    node: Option<Arc<Node>>,
    addresses: Option<Arc<[IpAddr]>>,
    service_cidrs: BTreeMap<Arc<str>, CidrEntry>,
    listings: [Listing; 4],
    /// Names of namespaces and ports.
    names: Shared<str>,
    hints: Shared<Hints>,
}

/// Namespace and name of an EndpointSlice.
type SliceName = (Arc<str>, Arc<str>);

/// What is known about one Service. Slices may come before their Service.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// Listing in which the Service was last mentioned.
    seen: u32,
    slices: Slices,
}

/// What is known about one ServiceCIDR.
#[derive(Debug)]
struct CidrEntry {
    object: Arc<ServiceCidr>,
    /// Listing in which it was last mentioned.
    seen: u32,
}

/// Where the listing of one kind stands.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    /// Counts listings; an object carries the number of the one that last mentioned it.
    number: u32,
    /// Whether one has ever been completed.
    synced: bool,
}

// === impl ClusterState ===

impl ClusterState {
    /// Nothing known yet.
    pub fn new() -> ClusterState {
        ClusterState::default()
    }

    /// Folds an event in.
    pub fn apply(&mut self, event: Event) -> Changed {
        match event {
            Event::Listing(kind) => {
                self.listing_mut(kind).number += 1;
                Changed::Nothing
            }
            Event::Synced(kind) => self.finish_listing(kind),
            Event::Service(service) => self.put_service(service),
            Event::EndpointSlice(slice) => self.put_slice(slice),
            Event::Node(node) => self.put_node(node),
            Event::ServiceCidr(object) => self.put_service_cidr(object),
            Event::Addresses(addresses) => self.put_addresses(addresses),
            Event::Deleted(object) => self.delete(&object),
            Event::Unreadable(object) => {
                self.keep(&object);
                Changed::Nothing
            }
            Event::Problem(_) | Event::Disturbed(_) => Changed::Nothing,
        }
    }

    /// Whether every kind but ServiceCIDR has been listed once and the node's addresses are known: before that no
    /// rule may be written (kube-proxy: the "synced" gate in front of the first sync, and the wait
    /// for the Node before it).
    pub fn is_synced(&self) -> bool {
        let needed = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        needed.into_iter().all(|kind| self.has_listed(kind)) && self.addresses.is_some()
    }

    /// Whether a kind has been listed once.
    pub fn has_listed(&self, kind: Kind) -> bool {
        self.listing(kind).synced
    }

    /// The Node object of this node, as last seen.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// The addresses of this node's interfaces; `None` until they were read.
    pub fn addresses(&self) -> Option<&[IpAddr]> {
        self.addresses.as_deref()
    }

    /// The networks that Services get their addresses from, as far as ServiceCIDR objects say: in order, each once. (Of
    /// two objects with the same network one can go; kube-proxy forgets the network then.)
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flat_map(|entry| entry.object.cidrs.iter().copied()).collect()
    }

    /// All Services, in order of their names.
    pub fn services(&self) -> impl Iterator<Item = (&Arc<Service>, &Slices)> {
        self.services.values().filter_map(|entry| Some((entry.service.as_ref()?, &entry.slices)))
    }

    /// One Service and its slices.
    pub fn service(&self, name: &ServiceName) -> Option<(&Arc<Service>, &Slices)> {
        let entry = self.services.get(name)?;
        Some((entry.service.as_ref()?, &entry.slices))
    }

    /// The Services whose slices changed last, at most so many; none of which that is unknown.
    pub fn recent(&self, count: usize) -> BTreeSet<ServiceName> {
        let versions = self.services.iter().map(|(name, entry)| (entry.slices.version(), name));
        let mut versions: Vec<_> = versions.filter(|(version, _)| *version > 0).collect();
        versions.sort_unstable_by_key(|(version, _)| Reverse(*version));
        versions.into_iter().take(count).map(|(_, name)| name.clone()).collect()
    }

    fn listing(&self, kind: Kind) -> &Listing {
        let [service, slice, node, service_cidr] = &self.listings;
        match kind {
            Kind::Service => service,
            Kind::EndpointSlice => slice,
            Kind::Node => node,
            Kind::ServiceCidr => service_cidr,
        }
    }

    fn listing_mut(&mut self, kind: Kind) -> &mut Listing {
        let [service, slice, node, service_cidr] = &mut self.listings;
        match kind {
            Kind::Service => service,
            Kind::EndpointSlice => slice,
            Kind::Node => node,
            Kind::ServiceCidr => service_cidr,
        }
    }

    /// The name that is kept for a Service, equal to `name`.
    fn kept_name(&mut self, name: &ServiceName) -> ServiceName {
        match self.services.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None => ServiceName::within(self.names.one(&name.namespace), &name.name),
        }
    }

    fn put_service(&mut self, service: Arc<Service>) -> Changed {
        let seen = self.listing(Kind::Service).number;
        let name = self.kept_name(&service.name);
        let entry = self.services.entry(name.clone()).or_default();
        entry.seen = seen;
        if entry.service.as_ref() == Some(&service) {
            return Changed::Nothing;
        }
        let mut service = Arc::unwrap_or_clone(service);
        service.name = name.clone();
        service.ports.iter_mut().for_each(|port| port.name = self.names.one(&port.name));
        entry.service = Some(Arc::new(service));
        Changed::Service(name, Families::Both)
    }

    /// The slice as it is kept: what others have too is theirs, and its trigger time has been told of.
    fn kept_slice(&mut self, slice: Arc<EndpointSlice>) -> EndpointSlice {
        let mut slice = Arc::unwrap_or_clone(slice);
        slice.service = self.kept_name(&slice.service);
        slice.trigger_time = None;
        slice.ports.iter_mut().for_each(|port| port.name = self.names.one(&port.name));
        slice.endpoints = slice.endpoints.with_hints(|hints| self.hints.one(hints));
        slice
    }

    fn put_slice(&mut self, slice: Arc<EndpointSlice>) -> Changed {
        let seen = self.listing(Kind::EndpointSlice).number;
        let trigger = slice.trigger_time.as_deref().map_or(0, fingerprint);
        let mut slice = self.kept_slice(slice);
        let owner = slice.service.clone();
        let key = (owner.namespace.clone(), slice.name.clone());
        if let Some(((_, name), _)) = self.owners.get_key_value(&key) {
            slice.name = name.clone();
        }
        // The label can be changed on a live slice: it then leaves the Service it belonged to.
        let before = self.owners.insert(key, owner.clone()).filter(|before| *before != owner);
        if let Some(before) = &before {
            self.remove_slice(before, &slice.name);
        }
        let changed = self.services.entry(owner.clone()).or_default().slices.put(slice, trigger, seen);
        match before {
            Some(before) => Changed::Services([before, owner].into()),
            None => changed.map_or(Changed::Nothing, |families| Changed::Service(owner, families)),
        }
    }

    fn put_node(&mut self, mut node: Arc<Node>) -> Changed {
        // A Node that is registered anew says nothing of these for a while, and nothing is no reason
        // to change rules. (kube-proxy goes on with the addresses it started with.)
        if let Some(before) = &self.node {
            let keeps_addresses = node.addresses.is_empty() && !before.addresses.is_empty();
            let keeps_pod_cidrs = node.pod_cidrs.is_empty() && !before.pod_cidrs.is_empty();
            if keeps_addresses {
                Arc::make_mut(&mut node).addresses = before.addresses.clone();
            }
            if keeps_pod_cidrs {
                Arc::make_mut(&mut node).pod_cidrs = before.pod_cidrs.clone();
            }
        }
        // Whether it is about to go is not for rules, but for those who look at events.
        let same = |before: &Arc<Node>| Node { draining: node.draining, ..(**before).clone() } == *node;
        let changed = if self.node.as_ref().is_some_and(same) { Changed::Nothing } else { Changed::Node };
        self.node = Some(node);
        changed
    }

    fn put_service_cidr(&mut self, object: Arc<ServiceCidr>) -> Changed {
        let seen = self.listing(Kind::ServiceCidr).number;
        self.change_service_cidrs(|known| {
            known.insert(object.name.clone(), CidrEntry { object, seen });
        })
    }

    fn change_service_cidrs(&mut self, change: impl FnOnce(&mut BTreeMap<Arc<str>, CidrEntry>)) -> Changed {
        let before = self.service_cidrs();
        change(&mut self.service_cidrs);
        match self.service_cidrs() == before {
            true => Changed::Nothing,
            false => Changed::Node,
        }
    }

    fn put_addresses(&mut self, addresses: Arc<[IpAddr]>) -> Changed {
        if self.addresses.as_ref() == Some(&addresses) {
            return Changed::Nothing;
        }
        self.addresses = Some(addresses);
        Changed::Node
    }

    fn delete(&mut self, object: &ObjectRef) -> Changed {
        match object.kind {
            // kube-proxy goes on with the node it last saw.
            Kind::Node => Changed::Nothing,
            Kind::ServiceCidr => self.change_service_cidrs(|known| _ = known.remove(&object.name)),
            Kind::Service => {
                let name = ServiceName::within(object.namespace.clone(), &object.name);
                match self.services.get_mut(&name).and_then(|entry| entry.service.take()) {
                    None => Changed::Nothing,
                    Some(_) => {
                        self.drop_if_empty(&name);
                        Changed::Service(name, Families::Both)
                    }
                }
            }
            Kind::EndpointSlice => {
                let Some(owner) = self.owners.remove(&(object.namespace.clone(), object.name.clone())) else {
                    return Changed::Nothing;
                };
                match self.remove_slice(&owner, &object.name) {
                    None => Changed::Nothing,
                    Some(family) => Changed::Service(owner, Families::Only(family)),
                }
            }
        }
    }

    /// An object that is there but unreadable must survive the end of a listing.
    fn keep(&mut self, object: &ObjectRef) {
        let seen = self.listing(object.kind).number;
        match object.kind {
            Kind::Node => {}
            Kind::Service => {
                let name = ServiceName::within(object.namespace.clone(), &object.name);
                if let Some(entry) = self.services.get_mut(&name) {
                    entry.seen = seen;
                }
            }
            Kind::EndpointSlice => {
                let owner = self.owners.get(&(object.namespace.clone(), object.name.clone()));
                if let Some(entry) = owner.and_then(|owner| self.services.get_mut(owner)) {
                    entry.slices.keep(&object.name, seen);
                }
            }
            Kind::ServiceCidr => {
                if let Some(entry) = self.service_cidrs.get_mut(&object.name) {
                    entry.seen = seen;
                }
            }
        }
    }

    fn finish_listing(&mut self, kind: Kind) -> Changed {
        let listing = self.listing_mut(kind);
        listing.synced = true;
        let number = listing.number;
        let mut gone = BTreeSet::new();
        match kind {
            Kind::Node => {}
            Kind::ServiceCidr => {
                return self.change_service_cidrs(|known| known.retain(|_, entry| entry.seen == number));
            }
            Kind::Service => {
                for (name, entry) in &mut self.services {
                    if entry.seen != number && entry.service.take().is_some() {
                        gone.insert(name.clone());
                    }
                }
            }
            Kind::EndpointSlice => {
                for (name, entry) in &mut self.services {
                    for slice in entry.slices.sweep(number) {
                        self.owners.remove(&(name.namespace.clone(), slice));
                        gone.insert(name.clone());
                    }
                }
            }
        }
        self.services.retain(|_, entry| entry.service.is_some() || !entry.slices.is_empty());
        match gone.is_empty() {
            true => Changed::Nothing,
            false => Changed::Services(gone),
        }
    }

    fn remove_slice(&mut self, owner: &ServiceName, slice: &str) -> Option<IpFamily> {
        let family = self.services.get_mut(owner)?.slices.remove(slice);
        self.drop_if_empty(owner);
        family
    }

    fn drop_if_empty(&mut self, name: &ServiceName) {
        if self.services.get(name).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(name);
        }
    }
}

/// Tells texts apart, almost surely.
fn fingerprint(text: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests;
