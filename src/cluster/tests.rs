use std::sync::Arc;

use super::*;
use crate::model::{Conditions, Endpoint, ServicePort, SlicePort};
use crate::net::Protocol;

fn service(name: &str) -> Event {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Event::Service(Arc::new(Service {
        name: ServiceName::new("ns", name),
        cluster_ips: [[10, 0, 0, 1].into()].into(),
        ports: [port].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        external_policy_local: false,
        internal_policy_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    }))
}

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const DRAINING: Conditions = Conditions { ready: false, serving: true, terminating: true };

fn slice_of(service: &str, name: &str, endpoints: &[(u8, Conditions)]) -> Arc<EndpointSlice> {
    let endpoint = |(last, conditions): &(u8, Conditions)| Endpoint {
        ip: [10, 1, 0, *last].into(),
        conditions: *conditions,
        local: false,
        hints: None,
    };
    Arc::new(EndpointSlice {
        service: ServiceName::new("ns", service),
        name: name.into(),
        family: IpFamily::V4,
        ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        trigger_time: None,
        version: 0,
    })
}

fn slice(service: &str, name: &str, last: u8) -> Event {
    Event::EndpointSlice(slice_of(service, name, &[(last, READY)]))
}

fn deleted(kind: Kind, name: &str) -> Event {
    Event::Deleted(ObjectRef::new(kind, "ns", name))
}

fn touched(name: &str, families: Families) -> Changed {
    Changed::Service(ServiceName::new("ns", name), families)
}

const V4: Families = Families::Only(IpFamily::V4);

fn endpoints(state: &ClusterState, name: &str) -> Vec<String> {
    let (_, slices) = state.service(&ServiceName::new("ns", name)).expect("the Service is known");
    let merged = endpoints_of(slices.of_family(IpFamily::V4), "", Protocol::Tcp);
    merged
        .iter()
        .map(|e| format!("{}:{}{}", e.ip, e.port, if e.conditions.terminating { " draining" } else { "" }))
        .collect()
}

#[test]
fn an_event_touches_one_service() {
    let mut state = ClusterState::new();
    assert_eq!(state.apply(slice("web", "web-1", 1)), touched("web", V4));
    assert_eq!(state.apply(service("web")), touched("web", Families::Both));
    assert_eq!(endpoints(&state, "web"), ["10.1.0.1:8080"]);
    assert_eq!(state.apply(slice("web", "web-1", 2)), touched("web", V4));
    assert_eq!(endpoints(&state, "web"), ["10.1.0.2:8080"]);
    assert_eq!(state.apply(deleted(Kind::EndpointSlice, "web-1")), touched("web", V4));
    assert_eq!(state.apply(deleted(Kind::Service, "web")), touched("web", Families::Both));
    assert_eq!(state.services().count(), 0);
}

#[test]
fn the_same_again_touches_nothing() {
    let mut state = ClusterState::new();
    state.apply(service("web"));
    state.apply(slice("web", "web-1", 1));
    assert_eq!(state.apply(service("web")), Changed::Nothing);
    assert_eq!(state.apply(slice("web", "web-1", 1)), Changed::Nothing);
    assert_eq!(state.apply(deleted(Kind::Service, "other")), Changed::Nothing);
    assert_eq!(state.apply(deleted(Kind::EndpointSlice, "web-2")), Changed::Nothing);
    assert_eq!(state.apply(Event::Addresses([[10, 0, 0, 9].into()].into())), Changed::Node);
    assert_eq!(state.apply(Event::Addresses([[10, 0, 0, 9].into()].into())), Changed::Nothing);
}

#[test]
fn a_slice_can_change_its_service() {
    let mut state = ClusterState::new();
    state.apply(service("web"));
    state.apply(service("shop"));
    state.apply(slice("web", "made-by-hand", 1));
    let both = [ServiceName::new("ns", "shop"), ServiceName::new("ns", "web")].into();
    assert_eq!(state.apply(slice("shop", "made-by-hand", 1)), Changed::Services(both));
    assert_eq!(endpoints(&state, "web"), [""; 0]);
    assert_eq!(endpoints(&state, "shop"), ["10.1.0.1:8080"]);
    assert_eq!(state.apply(deleted(Kind::EndpointSlice, "made-by-hand")), touched("shop", V4));
}

#[test]
fn a_listing_removes_what_it_did_not_mention_when_it_is_complete() {
    let mut state = ClusterState::new();
    for name in ["a", "b", "c"] {
        state.apply(service(name));
        state.apply(slice(name, &format!("{name}-1"), 1));
    }
    state.apply(Event::Listing(Kind::EndpointSlice));
    state.apply(slice("a", "a-1", 1));
    state.apply(Event::Unreadable(ObjectRef::new(Kind::EndpointSlice, "ns", "b-1")));
    assert_eq!(endpoints(&state, "c").len(), 1);
    let gone = [ServiceName::new("ns", "c")].into();
    assert_eq!(state.apply(Event::Synced(Kind::EndpointSlice)), Changed::Services(gone));
    assert_eq!((endpoints(&state, "a").len(), endpoints(&state, "b").len(), endpoints(&state, "c").len()), (1, 1, 0));

    // One that is broken off removes nothing, however often it is begun again.
    state.apply(Event::Listing(Kind::Service));
    state.apply(Event::Listing(Kind::Service));
    state.apply(service("a"));
    state.apply(Event::Unreadable(ObjectRef::new(Kind::Service, "ns", "b")));
    assert_eq!(state.services().count(), 3);
    state.apply(Event::Synced(Kind::Service));
    assert_eq!(state.services().map(|(service, _)| service.name.to_string()).collect::<Vec<_>>(), ["ns/a", "ns/b"]);
}

#[test]
fn it_is_synced_when_everything_but_networks_of_services_was_listed_once() {
    let mut state = ClusterState::new();
    state.apply(Event::Addresses([].into()));
    for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
        assert!(!state.is_synced());
        state.apply(Event::Listing(kind));
        state.apply(Event::Synced(kind));
    }
    assert!(state.is_synced());
    // Listing again does not take that back: rules go on being kept up.
    state.apply(Event::Listing(Kind::Service));
    assert!(state.is_synced());
}

#[test]
fn networks_of_services_are_those_of_all_objects_together() {
    let mut state = ClusterState::new();
    let service_cidr = |name: &str, cidrs: &[&str]| {
        let cidrs = cidrs.iter().map(|net| net.parse().unwrap()).collect();
        Event::ServiceCidr(Arc::new(ServiceCidr { name: name.into(), cidrs }))
    };
    let of = |name: &str| ObjectRef::new(Kind::ServiceCidr, "", name);
    let nets = |state: &ClusterState| state.service_cidrs().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(state.apply(service_cidr("b", &["fd00::/108", "10.96.0.0/16"])), Changed::Node);
    assert_eq!(state.apply(service_cidr("a", &["10.96.0.0/16"])), Changed::Nothing, "another has it already");
    assert_eq!(state.apply(service_cidr("c", &["10.98.0.0/24"])), Changed::Node);
    assert_eq!(nets(&state), ["10.96.0.0/16", "10.98.0.0/24", "fd00::/108"]);
    assert_eq!(state.apply(service_cidr("c", &["10.98.0.0/25"])), Changed::Node);
    assert_eq!(state.apply(Event::Deleted(of("b"))), Changed::Node);
    assert_eq!(nets(&state), ["10.96.0.0/16", "10.98.0.0/25"]);
    assert_eq!(state.apply(Event::Deleted(of("b"))), Changed::Nothing);

    state.apply(Event::Listing(Kind::ServiceCidr));
    state.apply(Event::Unreadable(of("c")));
    assert_eq!(state.apply(Event::Synced(Kind::ServiceCidr)), Changed::Node, "one is not there any more");
    assert_eq!(nets(&state), ["10.98.0.0/25"]);
    assert!(state.has_listed(Kind::ServiceCidr));
}

#[test]
fn endpoints_are_sorted_as_text() {
    let mut state = ClusterState::new();
    state.apply(service("web"));
    let all: Vec<_> = [2, 10, 1, 100].map(|last| (last, READY)).into();
    state.apply(Event::EndpointSlice(slice_of("web", "web-1", &all)));
    assert_eq!(endpoints(&state, "web"), ["10.1.0.100:8080", "10.1.0.10:8080", "10.1.0.1:8080", "10.1.0.2:8080"]);
}

#[test]
fn a_terminating_duplicate_never_replaces_another_endpoint() {
    for (first, second, expected) in [
        (READY, DRAINING, "10.1.0.5:8080"),
        (DRAINING, READY, "10.1.0.5:8080"),
        (DRAINING, DRAINING, "10.1.0.5:8080 draining"),
    ] {
        let mut state = ClusterState::new();
        state.apply(service("web"));
        state.apply(Event::EndpointSlice(slice_of("web", "web-1", &[(5, first)])));
        state.apply(Event::EndpointSlice(slice_of("web", "web-2", &[(5, second)])));
        assert_eq!(endpoints(&state, "web"), [expected]);
    }
}

#[test]
fn a_slice_that_changes_its_family_concerns_both() {
    let mut state = ClusterState::new();
    state.apply(service("a"));
    state.apply(slice("a", "a-1", 1));
    let mut other = (*slice_of("a", "a-1", &[(1, READY)])).clone();
    other.family = IpFamily::V6;
    assert_eq!(state.apply(Event::EndpointSlice(Arc::new(other))), touched("a", Families::Both));
    assert_eq!(endpoints(&state, "a"), [""; 0]);
}

#[test]
fn a_node_that_says_nothing_of_its_addresses_keeps_them() {
    let mut state = ClusterState::new();
    let node = Node {
        name: "node".into(),
        addresses: vec![[10, 0, 0, 7].into()],
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        ..Node::default()
    };
    assert_eq!(state.apply(Event::Node(Arc::new(node.clone()))), Changed::Node);
    let bare = Node { name: "node".into(), ..Node::default() };
    assert_eq!(state.apply(Event::Node(Arc::new(bare))), Changed::Nothing);
    assert_eq!(state.node().map(|node| &**node), Some(&node));
    let moved = Node { addresses: vec![[10, 0, 0, 8].into()], pod_cidrs: Vec::new(), ..node.clone() };
    assert_eq!(state.apply(Event::Node(Arc::new(moved))), Changed::Node);
    assert_eq!(state.node().map(|node| node.pod_cidrs.clone()), Some(node.pod_cidrs));
}

#[test]
fn a_node_about_to_go_changes_no_rules() {
    let mut state = ClusterState::new();
    let node = Node { name: "node".into(), addresses: vec![[10, 0, 0, 7].into()], ..Node::default() };
    assert_eq!(state.apply(Event::Node(Arc::new(node.clone()))), Changed::Node);
    for draining in [true, false] {
        let node = Arc::new(Node { draining, ..node.clone() });
        assert_eq!(state.apply(Event::Node(node.clone())), Changed::Nothing);
        assert_eq!(state.node(), Some(&node));
    }
    let moved = Node { addresses: vec![[10, 0, 0, 8].into()], draining: true, ..node };
    assert_eq!(state.apply(Event::Node(Arc::new(moved))), Changed::Node);
}

#[test]
fn what_changed_last_is_known() {
    let mut state = ClusterState::new();
    let versioned = |service: &str, name: &str, version: u64| {
        let mut slice = Arc::unwrap_or_clone(slice_of(service, name, &[(1, READY)]));
        slice.version = version;
        Event::EndpointSlice(Arc::new(slice))
    };
    for (service, name, version) in [("a", "a-1", 5), ("b", "b-1", 90), ("c", "c-1", 7), ("c", "c-2", 100)] {
        state.apply(versioned(service, name, version));
    }
    state.apply(slice("d", "d-1", 1));
    let recent = |state: &ClusterState, count| -> Vec<String> {
        state.recent(count).into_iter().map(|name| name.name.to_string()).collect()
    };
    assert_eq!(recent(&state, 2), ["b", "c"]);
    assert_eq!(recent(&state, 9), ["a", "b", "c"], "of the last one no version is known");
    assert_eq!(state.apply(versioned("a", "a-1", 101)), Changed::Nothing, "a version alone is no change");
    assert_eq!(recent(&state, 1), ["a"]);
}
