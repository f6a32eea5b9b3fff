//! Watches over a long time: timeouts, bookmarks, forgotten versions, objects that cannot be read.

use std::collections::BTreeSet;
use std::time::Duration;

use ferrule::cluster::Changed;
use ferrule::model::Kind;
use serde_json::json;

use super::follower::{Follower, requests_for, service, slice};
use super::server::answer::{Core, Fault, On, Seen};

fn value(seen: &Seen, key: &str) -> Option<String> {
    seen.pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone())
}

/// Every watch has an end of its own, so that the nodes of a cluster do not come back in step.
#[tokio::test(start_paused = true)]
async fn timeouts_are_spread_and_watches_go_on() {
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    let events = follower.within(Duration::from_secs(12 * 3600)).await;
    assert_eq!(events, [], "nothing happened");
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let seen = requests_for(&core, kind);
        let seconds: Vec<u64> = seen
            .iter()
            .map(|seen| value(seen, "timeoutSeconds").expect("a timeout").parse().expect("a number"))
            .collect();
        assert!(seconds.iter().all(|seconds| (300..600).contains(seconds)), "{seconds:?}");
        let different: BTreeSet<_> = seconds.iter().collect();
        assert!(different.len() > seconds.len() / 2, "{seconds:?}");
        // 12 hours in watches of 5 to 10 minutes, one after the other, without a pause.
        assert!((73..=145).contains(&seen.len()), "{} requests", seen.len());
        assert_eq!(seen.iter().filter(|seen| value(seen, "sendInitialEvents").is_some()).count(), 1);
    }
    core.apply(service("b", "10.0.0.2"));
    assert_eq!(follower.next().await.0, "Service t/b");
}

/// Networks of Services are asked for if they are of interest, and nothing waits for them.
#[tokio::test(start_paused = true)]
async fn networks_of_services_are_watched() {
    let service_cidr = |cidrs: &[&str]| {
        json!({
            "kind": "ServiceCIDR",
            "apiVersion": "networking.k8s.io/v1",
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": cidrs },
        })
    };
    let core = Core::new([service("a", "10.0.0.1"), service_cidr(&["10.0.0.0/16"])]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    assert_eq!(follower.within(Duration::from_secs(60)).await, []);
    assert_eq!(requests_for(&core, Kind::ServiceCidr).len(), 0);
    assert!(follower.liveness.read().iter().all(|watch| watch.kind != Kind::ServiceCidr));

    let mut follower = Follower::of_all_kinds(&core);
    follower.until("ServiceCIDR kubernetes [10.0.0.0/16]").await;
    follower.within(Duration::from_secs(1)).await;
    assert!(follower.liveness.read().iter().any(|watch| watch.kind == Kind::ServiceCidr && watch.connected));
    core.apply(service_cidr(&["10.0.0.0/16", "fd00::/108"]));
    let expected = ("ServiceCIDR kubernetes [10.0.0.0/16, fd00::/108]".to_owned(), Changed::Node);
    assert_eq!(follower.next().await, expected);
    core.delete("ServiceCIDR", "", "kubernetes");
    assert_eq!(follower.next().await, ("Deleted ServiceCIDR kubernetes".to_owned(), Changed::Node));

    // An API server that is older than they are.
    let core = Core::new([service("a", "10.0.0.1")]);
    core.set_fault(On::ServiceCidrs, Fault::Status(404, "NotFound"));
    let mut follower = Follower::of_all_kinds(&core);
    follower.until_synced().await;
    follower.within(Duration::from_secs(3600)).await;
    assert!(!follower.state.has_listed(Kind::ServiceCidr));
    let requests = requests_for(&core, Kind::ServiceCidr).len();
    assert!((1..=200).contains(&requests), "{requests} requests in an hour");
    core.apply(service("b", "10.0.0.2"));
    assert_eq!(follower.next().await.0, "Service t/b");
}

/// Where nothing but bookmarks comes, the watch still keeps up with the server's memory.
#[tokio::test(start_paused = true)]
async fn bookmarks_move_a_watch_on() {
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    // Other resources change; the server forgets; bookmarks tell.
    for hour in 1..=5 {
        core.advance_to(1000 * hour);
        follower.within(Duration::from_secs(70)).await;
        core.compact();
        assert_eq!(follower.within(Duration::from_secs(3600)).await, []);
    }
    let seen = requests_for(&core, Kind::Service);
    assert_eq!(value(seen.last().expect("requests"), "resourceVersion").as_deref(), Some("5000"));
    assert_eq!(seen.iter().filter(|seen| value(seen, "sendInitialEvents").is_some()).count(), 1, "listed once");
}

/// 410 as an event in a watch that was accepted.
#[tokio::test(start_paused = true)]
async fn a_forgotten_version_in_the_stream() {
    lists_afresh(|_| {}).await;
}

/// 410 as the status of the answer to a watch.
#[tokio::test(start_paused = true)]
async fn a_forgotten_version_as_a_status() {
    lists_afresh(|core| core.set_fault(On::Watch, Fault::Status(410, "Gone"))).await;
}

async fn lists_afresh(say_so: impl Fn(&Core)) {
    let core = Core::new([service("a", "10.0.0.1"), service("b", "10.0.0.2"), slice("a-1", "a", "10.1.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    core.set_down(true);
    core.delete("Service", "t", "a");
    core.apply(service("c", "10.0.0.3"));
    core.advance_to(1000);
    core.compact();
    core.set_down(false);
    say_so(&core);
    // The deletion was never said; the listing shows it.
    let mut changes = Vec::new();
    loop {
        let (event, changed) = follower.next().await;
        changes.push((event.clone(), changed));
        if event == "Synced Service" {
            break;
        }
    }
    follower.within(Duration::from_secs(60)).await;
    let gone = &changes.last().expect("changes").1;
    assert!(matches!(gone, Changed::Services(names) if names.len() == 1), "{gone:?}");
    let of_services: Vec<&str> = changes
        .iter()
        .map(|(event, _)| event.as_str())
        .filter(|e| e.contains("Service ") || e.ends_with("Service"))
        .collect();
    assert_eq!(of_services, ["Listing Service", "Service t/b", "Service t/c", "Synced Service"]);
    follower.assert_equals_server();
}

/// Trap: one object that cannot be read must not end the watch, and its last good version stays.
#[tokio::test(start_paused = true)]
async fn a_half_valid_object_in_a_watch() {
    let core = Core::new([service("a", "10.0.0.1"), slice("a-1", "a", "10.1.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    let requests = core.requests().len();

    let mut broken = service("a", "10.0.0.7");
    broken["spec"]["ports"] = json!({ "port": 80 });
    core.apply(broken);
    let (problem, changed) = follower.next().await;
    assert!(problem.starts_with("Problem Service t/a: spec.ports: cannot be read (invalid type: map"), "{problem}");
    assert_eq!(changed, Changed::Nothing);
    assert_eq!(follower.next().await, ("Unreadable Service t/a".to_string(), Changed::Nothing));
    let (kept, _) = follower.state.services().next().expect("the last good version");
    assert_eq!(*kept.cluster_ips, ["10.0.0.1".parse::<std::net::IpAddr>().expect("an address")]);

    let mut broken = slice("a-1", "a", "10.1.0.1");
    broken["endpoints"][0]["addresses"] = json!([1]);
    core.apply(broken);
    let (problem, _) = follower.next().await;
    assert!(problem.starts_with("Problem EndpointSlice t/a-1: endpoints[0].addresses[0]: "), "{problem}");
    assert_eq!(follower.next().await.0, "Unreadable EndpointSlice t/a-1");

    // The watch goes on, from the unreadable object's version.
    core.apply(service("b", "10.0.0.2"));
    assert_eq!(follower.next().await.0, "Service t/b");
    assert_eq!(core.requests().len(), requests);
    core.delete("Service", "t", "b");
    assert_eq!(follower.next().await.0, "Deleted Service t/b");
    // It can still be deleted, and mended.
    core.delete("EndpointSlice", "t", "a-1");
    assert_eq!(follower.next().await.0, "Deleted EndpointSlice t/a-1");
    core.apply(service("a", "10.0.0.7"));
    assert_eq!(follower.next().await.0, "Service t/a");
    follower.assert_equals_server();
}

/// An object without a name can be about nothing.
#[tokio::test(start_paused = true)]
async fn an_object_without_a_name() {
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    let requests = core.requests().len();
    for object in [r#"{"metadata":{}}"#, r#"{"metadata":7}"#, "7", r#"{"metadata":{"name":7}}"#] {
        for kind in ["ADDED", "DELETED"] {
            core.send_line("Service", &format!(r#"{{"type":"{kind}","object":{object}}}"#));
            let (problem, changed) = follower.next().await;
            assert!(problem.contains("metadata.name: is missing"), "{object}: {problem}");
            assert_eq!(changed, Changed::Nothing);
        }
    }
    assert_eq!(core.requests().len(), requests, "the watch goes on");
}

/// The type of an event may stand behind its object.
#[tokio::test(start_paused = true)]
async fn the_order_of_keys_is_free() {
    let core = Core::new([]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    let object = service("a", "10.0.0.1");
    core.send_line("Service", &format!(r#"{{"object":{object},"extra":[{{}}],"type":"ADDED"}}"#));
    assert_eq!(follower.next().await.0, "Service t/a");
}

#[tokio::test(start_paused = true)]
async fn the_node_follows() {
    let node = |zone: &str| {
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": "node-000", "labels": { "topology.kubernetes.io/zone": zone } },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
        })
    };
    let mut other = node("c");
    other["metadata"]["name"] = json!("node-001");
    let core = Core::new([other]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    assert!(follower.state.node().is_none());
    core.apply(node("a"));
    assert_eq!(follower.next().await, ("Node node-000".to_string(), Changed::Node));
    core.apply(node("b"));
    assert_eq!(follower.next().await, ("Node node-000".to_string(), Changed::Node));
    core.delete("Node", "", "node-000");
    assert_eq!(follower.next().await, ("Deleted Node node-000".to_string(), Changed::Nothing));
    assert_eq!(follower.state.node().and_then(|node| node.zone.clone()).as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn ends_when_nobody_listens() {
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    assert!(follower.hang_up().await, "the source still runs");
}
