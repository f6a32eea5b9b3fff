//! How the initial objects are fetched, from servers that stream lists and from those that do not.

use std::time::Duration;

use ferrule::model::Kind;
use serde_json::json;

use super::follower::{Follower, objects, requests_for, service, slice};
use super::server::answer::{Core, Fault, On};

const STREAMING: &str = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
const SERVICES: &str =
    "fieldSelector=spec.clusterIP%21%3DNone&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name";

/// The value of a query's parameter.
fn value(query: &str, key: &str) -> Option<String> {
    let found = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key);
    found.map(|(_, value)| value.to_string())
}

/// A query without the timeout, which is random.
fn without_timeout(query: &str) -> String {
    let pairs: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("timeoutSeconds=")).collect();
    pairs.join("&")
}

#[tokio::test(start_paused = true)]
async fn streams_the_initial_objects() {
    let core = Core::new(objects());
    let mut follower = Follower::start(&core);
    let events = follower.until_synced().await;
    follower.assert_equals_server();
    assert_eq!(follower.state.services().count(), 60);
    assert_eq!(follower.state.node().map(|node| node.name.to_string()).as_deref(), Some("node-000"));

    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let of_kind = |event: &&String| {
            event.split(' ').nth(if event.contains("ing ") || event.contains("Synced") { 1 } else { 0 })
                == Some(&kind.to_string())
        };
        let of_kind: Vec<&String> = events.iter().filter(of_kind).collect();
        assert_eq!(of_kind.first().map(|e| e.as_str()), Some(format!("Listing {kind}").as_str()));
        assert_eq!(of_kind.last().map(|e| e.as_str()), Some(format!("Synced {kind}").as_str()));
        assert!(of_kind.len() > 2, "no object of kind {kind}");
    }

    // Exactly kube-proxy's selectors, and no resourceVersion: the present state.
    let mut seen: Vec<(String, String)> =
        core.requests().into_iter().map(|seen| (seen.path, without_timeout(&seen.query))).collect();
    seen.sort();
    let expected = [
        ("/api/v1/nodes", format!("fieldSelector=metadata.name%3Dnode-000&{STREAMING}")),
        ("/api/v1/services", format!("{SERVICES}&{STREAMING}")),
        (
            "/apis/discovery.k8s.io/v1/endpointslices",
            format!("labelSelector=%21service.kubernetes.io%2Fheadless&{STREAMING}"),
        ),
    ];
    assert_eq!(seen, expected.map(|(path, query)| (path.to_string(), query)));
}

#[tokio::test(start_paused = true)]
async fn goes_on_watching_in_the_same_stream() {
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    let requests = core.requests().len();
    core.apply(service("b", "10.0.0.2"));
    assert_eq!(follower.next().await.0, "Service t/b");
    core.delete("Service", "t", "a");
    assert_eq!(follower.next().await.0, "Deleted Service t/a");
    assert_eq!(core.requests().len(), requests);
}

/// Trap: a server without streaming lists refuses them for ever.
#[tokio::test(start_paused = true)]
async fn falls_back_to_pages_on_422() {
    falls_back_at_once(|core| core.set_streaming_lists(false)).await;
}

#[tokio::test(start_paused = true)]
async fn falls_back_to_pages_on_400() {
    falls_back_at_once(|core| core.set_fault(On::InitialWatch, Fault::Status(400, "BadRequest"))).await;
}

async fn falls_back_at_once(refuse: impl Fn(&Core)) {
    let core = Core::new(objects());
    refuse(&core);
    let began = tokio::time::Instant::now();
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    follower.assert_equals_server();
    assert_eq!(began.elapsed(), Duration::ZERO, "a refusal is no reason to wait");
    core.apply(service("new", "10.0.0.1"));
    assert_eq!(follower.next().await.0, "Service t/new");

    let queries: Vec<String> =
        requests_for(&core, Kind::Service).iter().map(|seen| without_timeout(&seen.query)).collect();
    let version = value(&queries[2], "resourceVersion").expect("a version");
    // The first list may come from the server's cache.
    let expected = [
        format!("{SERVICES}&{STREAMING}"),
        format!("{SERVICES}&limit=250&resourceVersion=0"),
        format!("{SERVICES}&watch=true&allowWatchBookmarks=true&resourceVersion={version}"),
    ];
    assert_eq!(queries, expected);

    // Later ones may not, and the server's refusal is remembered.
    core.close_watches();
    follower.within(Duration::from_secs(1)).await;
    core.compact();
    core.advance_to(10_000);
    core.apply(service("newer", "10.0.0.2"));
    core.compact();
    core.close_watches();
    follower.until("Synced Service").await;
    let queries: Vec<String> = requests_for(&core, Kind::Service).iter().map(|seen| seen.query.clone()).collect();
    assert_eq!(queries.iter().filter(|query| query.contains("sendInitialEvents")).count(), 1, "{queries:?}");
    assert_eq!(queries.iter().filter(|query| query.contains("resourceVersion=0")).count(), 1, "{queries:?}");
    assert!(queries.contains(&format!("{SERVICES}&limit=250")), "{queries:?}");
}

#[tokio::test(start_paused = true)]
async fn falls_back_when_the_initial_list_does_not_end() {
    let core = Core::new([service("a", "10.0.0.1")]);
    core.set_fault(On::InitialWatch, Fault::NoEndBookmark);
    let began = tokio::time::Instant::now();
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    assert_eq!(follower.state.services().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn falls_back_when_the_initial_list_is_always_cut_short() {
    let core = Core::new([service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    core.set_fault(On::InitialWatch, Fault::CloseAfter(1));
    let mut follower = Follower::start(&core);
    let events = follower.until("Synced Service").await;
    assert_eq!(follower.state.services().count(), 2);
    let listings = events.iter().filter(|event| *event == "Listing Service").count();
    assert_eq!(listings, 4, "three attempts at a stream and one list: {events:?}");
}

/// A receiver that is busy for long does not make the server look slow.
#[tokio::test(start_paused = true)]
async fn a_busy_receiver_is_no_reason_to_fall_back() {
    let core = Core::new((0..5).map(|i| service(&format!("s{i}"), &format!("10.0.0.{i}"))));
    let mut follower = Follower::with_capacity(&core, 1);
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        follower.next().await;
    }
    follower.until_synced().await;
    assert_eq!(core.requests().len(), 3, "{:?}", core.requests());
}

#[tokio::test(start_paused = true)]
async fn lists_in_pages() {
    let objects: Vec<_> =
        (0..620).map(|i| service(&format!("s{i:03}"), &format!("10.0.{}.{}", i / 250, i % 250))).collect();
    let core = Core::new(objects.clone());
    core.set_streaming_lists(false);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    follower.assert_equals_server();
    // The first list was served whole, from the cache. After 410 the second comes in pages.
    core.advance_to(1000);
    core.apply(service("s000", "10.9.9.9"));
    core.compact();
    core.delete("Service", "t", "s400");
    core.close_watches();
    core.set_fault(On::Watch, Fault::Status(410, "Expired"));
    follower.until("Listing Service").await;
    core.clear_faults();
    let listed = follower.until("Synced Service").await;
    assert_eq!(listed.len(), 619, "each object is mentioned once");
    follower.assert_equals_server();
    let queries: Vec<String> = requests_for(&core, Kind::Service).iter().map(|seen| seen.query.clone()).collect();
    let pages: Vec<&String> =
        queries.iter().filter(|query| query.contains("limit=250") && !query.contains("resourceVersion=0")).collect();
    assert_eq!(pages.len(), 3, "{queries:?}");
    assert!(!pages[0].contains("continue=") && pages[1].contains("continue=") && pages[2].contains("continue="));
}

/// 410 as an HTTP status: the server forgot the version of a list between two of its pages.
#[tokio::test(start_paused = true)]
async fn a_list_expires_between_pages() {
    let objects: Vec<_> =
        (0..300).map(|i| service(&format!("s{i:03}"), &format!("10.0.{}.{}", i / 250, i % 250))).collect();
    let core = Core::new(objects.clone());
    core.set_streaming_lists(false);
    // A cache that does page, so that the first list has two.
    let page = json!({
        "kind": "ServiceList", "apiVersion": "v1",
        "metadata": { "resourceVersion": "1", "continue": data_encoding::BASE64URL_NOPAD.encode(br#"{"v":"meta.k8s.io/v1","rv":1,"start":"/t/s001"}"#) },
        "items": [{ "metadata": { "name": "s000", "namespace": "t" }, "spec": { "clusterIP": "10.0.0.0", "ports": [{ "port": 80 }] } }],
    });
    core.compact();
    core.set_fault(On::List, Fault::Text(page.to_string()));
    let mut follower = Follower::start(&core);
    follower.until("Service t/s000").await;
    core.clear_faults();
    follower.until("Synced Service").await;
    follower.assert_equals_server();
    // Not in pages this time: paging could expire again for ever.
    let queries: Vec<String> = requests_for(&core, Kind::Service).iter().map(|seen| seen.query.clone()).collect();
    let last = queries.iter().rev().find(|query| !query.contains("watch=true")).expect("a list");
    assert!(!last.contains("limit="), "{queries:?}");
}

/// Objects that the selectors hide, or that go out of sight while they are watched.
#[tokio::test(start_paused = true)]
async fn labels_hide_and_show() {
    let mut hidden = service("hidden", "10.0.0.3");
    hidden["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    let mut headless_slice = slice("headless-1", "headless", "10.1.0.9");
    headless_slice["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    let core = Core::new([
        service("a", "10.0.0.1"),
        service("headless", "None"),
        hidden.clone(),
        headless_slice,
        slice("a-1", "a", "10.1.0.1"),
    ]);
    let mut follower = Follower::start(&core);
    let events = follower.until_synced().await;
    assert!(events.iter().all(|event| !event.contains("hidden") && !event.contains("headless")), "{events:?}");

    let mut a = service("a", "10.0.0.1");
    a["metadata"]["labels"] = hidden["metadata"]["labels"].clone();
    core.apply(a);
    assert_eq!(follower.next().await.0, "Deleted Service t/a");
    core.apply(service("a", "10.0.0.1"));
    assert_eq!(follower.next().await.0, "Service t/a");
    core.apply(service("hidden", "10.0.0.3"));
    assert_eq!(follower.next().await.0, "Service t/hidden");
}

/// A Service that has no rules any more is as good as deleted, whatever its label.
#[tokio::test(start_paused = true)]
async fn an_object_without_rules_is_deleted() {
    let core = Core::new([service("a", "10.0.0.1"), slice("a-1", "a", "10.1.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    let mut external = service("a", "10.0.0.1");
    external["spec"]["type"] = json!("ExternalName");
    core.apply(external);
    assert_eq!(follower.next().await.0, "Deleted Service t/a");
    let mut names = slice("a-1", "a", "10.1.0.1");
    names["addressType"] = json!("FQDN");
    core.apply(names);
    let (problem, _) = follower.next().await;
    assert!(problem.starts_with("Problem EndpointSlice t/a-1: addressType: "), "{problem}");
    assert_eq!(follower.next().await.0, "Deleted EndpointSlice t/a-1");
}

/// Trap: the whole list is one document; an object that cannot be read must not fail it.
#[tokio::test(start_paused = true)]
async fn a_half_valid_object_in_a_list() {
    for streaming in [true, false] {
        let core = Core::new([service("a", "10.0.0.1"), service("b", "10.0.0.2"), slice("b-1", "b", "10.1.0.2")]);
        core.set_streaming_lists(streaming);
        let mut broken = service("broken", "10.0.0.9");
        broken["spec"]["ports"][0]["port"] = json!("eighty");
        core.apply(broken);
        let mut follower = Follower::start(&core);
        let events = follower.until_synced().await;
        let problem = events.iter().find(|event| event.starts_with("Problem")).expect("a problem");
        assert!(
            problem.starts_with("Problem Service t/broken: spec.ports[0].port: cannot be read (invalid type: string"),
            "{problem}"
        );
        assert!(!problem.contains(" line "), "{problem}");
        assert!(events.contains(&"Unreadable Service t/broken".to_string()), "{events:?}");
        assert_eq!(follower.state.services().count(), 2, "streaming: {streaming}");
        assert_eq!(
            requests_for(&core, Kind::Service).iter().filter(|seen| !seen.query.contains("watch=true")).count(),
            usize::from(!streaming)
        );
    }
}

/// The last good version of an object that has become unreadable survives a listing.
#[tokio::test(start_paused = true)]
async fn the_last_good_version_survives_a_listing() {
    for streaming in [true, false] {
        let core = Core::new([service("a", "10.0.0.1"), slice("a-1", "a", "10.1.0.1"), service("b", "10.0.0.2")]);
        core.set_streaming_lists(streaming);
        let mut follower = Follower::start(&core);
        follower.until_synced().await;
        core.set_down(true);
        let mut broken = service("a", "10.0.0.1");
        broken["spec"] = json!("nothing");
        core.apply(broken);
        let mut broken = slice("a-1", "a", "10.1.0.1");
        broken["endpoints"][0]["conditions"] = json!({ "ready": "yes" });
        core.apply(broken);
        core.delete("Service", "t", "b");
        core.compact();
        // The next watch finds its version forgotten.
        core.advance_to(1000);
        core.compact();
        core.set_down(false);
        let events = follower.until("Synced Service").await;
        follower.within(Duration::from_secs(40)).await;
        assert!(events.contains(&"Unreadable Service t/a".to_string()), "{events:?}");
        let left: Vec<_> = follower.state.services().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(&*left[0].0.name.name, "a");
        assert!(!left[0].1.is_empty(), "its slice stays too");
    }
}
