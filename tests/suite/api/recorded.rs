//! The fake API server answers as a real one did.
//!
//! Every recorded request is made again, byte for byte but for `timeoutSeconds`, over TCP, while
//! the same objects change in the same steps. Compared are the status line, the names of the
//! headers, the values of those that mean something, and the whole body, as JSON.
//!
//! Not compared, because it is made up anew for every answer or depends on the second in which the
//! question is put: the values of `Audit-Id`, `Date` and `X-Kubernetes-Pf-*` (ids of the server's
//! own objects); the number of ordinary bookmarks (a timer's; that they come, and their shape, is
//! compared); `timeoutSeconds`, which is shortened so that the test does not take minutes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::follower::Follower;
use super::server::answer::Core;
use super::server::{FakeApi, objects_from_yaml};
use crate::recordings;

/// A recorded exchange, or one to compare it with.
struct Exchange {
    status: String,
    headers: BTreeMap<String, String>,
    body: Vec<Value>,
}

/// The request line of a recording and the recorded answer.
fn recording(name: &str) -> (String, Exchange) {
    let text = recordings::read(&format!("api/{name}"));
    let (request, answer) = text.split_once('\n').expect("a first line");
    let (head, body) = answer.split_once("\n\n").expect("an empty line");
    (request.trim_start_matches("# ").to_string(), Exchange::parse(head, body))
}

impl Exchange {
    fn parse(head: &str, body: &str) -> Exchange {
        let mut lines = head.lines();
        let status = lines.next().expect("a status line").trim().to_string();
        let headers =
            lines.map(|line| line.split_once(':').expect("a header")).map(|(k, v)| (k.into(), v.trim().into()));
        let body = serde_json::Deserializer::from_str(body).into_iter().map(|v| v.expect("JSON")).collect();
        Exchange { status, headers: headers.collect(), body }
    }
}

/// Makes a recorded request. `lines` is how many lines of a watch to wait for; 0 reads to the end.
struct Client {
    reader: BufReader<TcpStream>,
    head: String,
}

impl Client {
    fn ask(fake: &FakeApi, request: &str, body: &str) -> Client {
        let mut stream = TcpStream::connect(fake.address()).expect("the fake listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let request = shorten(request);
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: fake\r\nUser-Agent: curl/8\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the request is sent");
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("a head"), 0, "the answer ends in its head: {head}");
        }
        Client { reader, head: head.replace("\r\n", "\n") }
    }

    /// Reads chunks until the body holds so many JSON values.
    fn wait_for(&mut self, body: &mut String, values: usize) {
        while serde_json::Deserializer::from_str(body).into_iter::<Value>().filter(Result::is_ok).count() < values {
            assert!(self.chunk(body), "the stream ended after: {body}");
        }
    }

    fn chunk(&mut self, body: &mut String) -> bool {
        let mut size = String::new();
        self.reader.read_line(&mut size).expect("a chunk");
        let size = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
        let mut bytes = vec![0; size + 2];
        self.reader.read_exact(&mut bytes).expect("a chunk");
        body.push_str(std::str::from_utf8(&bytes[..size]).expect("UTF-8"));
        size != 0
    }

    fn finish(mut self, mut body: String) -> Exchange {
        if self.head.contains("Transfer-Encoding: chunked") {
            while self.chunk(&mut body) {}
        } else {
            self.reader.read_to_string(&mut body).expect("a body");
        }
        let mut exchange = Exchange::parse(self.head.trim_end(), &body);
        // Sent because the request asks for it, so that its answer has an end.
        assert_eq!(exchange.headers.remove("Connection").as_deref(), Some("close"));
        exchange
    }
}

fn shorten(request: &str) -> String {
    match request.split_once("timeoutSeconds=") {
        Some((before, _)) => format!("{before}timeoutSeconds=3"),
        None => request.to_string(),
    }
}

#[track_caller]
fn assert_same(name: &str, expected: Exchange, actual: Exchange) {
    assert_eq!(actual.status, expected.status, "{name}: status line");
    let names = |exchange: &Exchange| exchange.headers.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&actual), names(&expected), "{name}: names of headers");
    for header in ["Cache-Control", "Content-Type", "Content-Length", "Transfer-Encoding"] {
        // An Event's answer holds the server's notes on who wrote which field: other lengths.
        if name != "event-create.txt" || header != "Content-Length" {
            assert_eq!(actual.headers.get(header), expected.headers.get(header), "{name}: {header}");
        }
    }
    let (actual, expected) = (without_repeats(actual.body), without_repeats(expected.body));
    for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
        assert_eq!(actual, expected, "{name}: value {i} of the body");
    }
    assert_eq!(actual.len(), expected.len(), "{name}: length of the body");
}

/// Ordinary bookmarks once, however often they came.
fn without_repeats(body: Vec<Value>) -> Vec<Value> {
    let mut body = body;
    body.dedup_by(|a, b| a["type"] == "BOOKMARK" && a == b);
    body
}

/// What the server held and did, told from what its watches said. Objects of an `ADDED` at the
/// beginning exist at their own versions.
fn events(name: &str) -> Vec<(String, u64, Value)> {
    let (_, exchange) = recording(name);
    let events = exchange.body.into_iter().map(|event| {
        let object = event["object"].clone();
        let version = object["metadata"]["resourceVersion"].as_str().map_or(0, |v| v.parse().expect("a version"));
        (event["type"].as_str().expect("a type").to_string(), version, object)
    });
    events.collect()
}

/// Does to `fake` what a watch saw: an object that vanished from it got the label that hides it.
fn replay(fake: &FakeApi, events: &[(String, u64, Value)], label: &str) {
    for (kind, version, object) in events {
        match kind.as_str() {
            "ADDED" | "MODIFIED" => fake.apply_at(*version, object.clone()),
            "DELETED" => {
                let mut hidden = object.clone();
                hidden["metadata"]["labels"][label] = json!("x");
                fake.apply_at(*version, hidden);
            }
            _ => {}
        }
    }
}

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// A server with the Services' whole history, at revision 117 as it was when lists were recorded.
fn with_services() -> FakeApi {
    let fake = FakeApi::start([]);
    // What the selector hides is there too.
    let headless = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "headless", "namespace": "g" },
        "spec": { "clusterIP": "None" },
    });
    fake.apply_at(60, headless);
    replay(&fake, &events("services-watch-rv1.txt"), PROXY_NAME);
    fake.advance_to(117);
    fake
}

#[track_caller]
fn check(fake: &FakeApi, name: &str, body: &str) {
    let (request, expected) = recording(name);
    let actual = Client::ask(fake, &request, body).finish(String::new());
    assert_same(name, expected, actual);
}

#[test]
fn lists() {
    let fake = with_services();
    check(&fake, "services-list-rv0.txt", "");
    check(&fake, "services-list-page1.txt", "");
    check(&fake, "services-list-page2.txt", "");
    check(&fake, "bad-field-selector.txt", "");
}

#[test]
fn service_cidrs() {
    let (_, exchange) = recording("servicecidrs.txt");
    let mut object = exchange.body[0]["items"][0].clone();
    object["kind"] = json!("ServiceCIDR");
    object["apiVersion"] = json!("networking.k8s.io/v1");
    let fake = FakeApi::start([object]);
    fake.advance_to(119);
    check(&fake, "servicecidrs.txt", "");
}

#[test]
fn unauthorized() {
    let fake = with_services();
    fake.require_token("sesame");
    check(&fake, "unauthorized.txt", "");
}

#[test]
fn streaming_lists_refused() {
    let fake = with_services();
    fake.set_streaming_lists(false);
    check(&fake, "services-watchlist-disabled-422.txt", "");
}

#[test]
fn compacted() {
    let fake = with_services();
    fake.advance_to(128);
    fake.compact();
    check(&fake, "services-watch-compacted-410.txt", "");
    check(&fake, "services-list-exact-compacted-410.txt", "");
}

#[test]
fn watch_from_a_version() {
    check(&with_services(), "services-watch-rv1.txt", "");
}

#[test]
fn watch_from_the_future() {
    check(&with_services(), "services-watch-future-rv.txt", "");
}

#[test]
fn streaming_list_of_services() {
    let name = "services-watchlist.txt";
    let events = events(name);
    let end = events.iter().position(|(kind, ..)| kind == "BOOKMARK").expect("an end of the initial events");
    let fake = FakeApi::start([]);
    replay(&fake, &events[..end], PROXY_NAME);
    fake.advance_to(events[end].1);
    let (request, expected) = recording(name);
    let (mut client, mut body) = (Client::ask(&fake, &request, ""), String::new());
    client.wait_for(&mut body, end + 1);
    replay(&fake, &events[end + 1..], PROXY_NAME);
    fake.advance_to(107);
    assert_same(name, expected, client.finish(body));
}

#[test]
fn streaming_list_of_endpoint_slices() {
    let name = "endpointslices-watchlist.txt";
    let events = events(name);
    let end = events.iter().position(|(kind, ..)| kind == "BOOKMARK").expect("an end of the initial events");
    let fake = FakeApi::start([]);
    replay(&fake, &events[..end], "");
    fake.advance_to(115);
    let (request, mut expected) = recording(name);
    // At 112 when recorded; another object changed before the slice went.
    expected.body[end]["object"]["metadata"]["resourceVersion"] = json!("115");
    let (mut client, mut body) = (Client::ask(&fake, &request, ""), String::new());
    client.wait_for(&mut body, end + 1);
    assert!(fake.delete("EndpointSlice", "g", "cip-udp-v4"));
    assert_same(name, expected, client.finish(body));
}

#[test]
fn streaming_list_of_the_node() {
    let name = "node-watchlist.txt";
    let events = events(name);
    let fake = FakeApi::start([json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": "other" } })]);
    replay(&fake, &events, "");
    fake.advance_to(117);
    let (request, expected) = recording(name);
    let mut actual = Client::ask(&fake, &request, "").finish(String::new());
    // The recorded watch ended before its first ordinary bookmark.
    actual.body.truncate(expected.body.len());
    assert_same(name, expected, actual);
}

#[test]
fn event_created() {
    let name = "event-create.txt";
    let (request, mut expected) = recording(name);
    let mut posted = expected.body[0].clone();
    for field in ["deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
        posted.as_object_mut().expect("an object").remove(field);
    }
    posted["metadata"] = json!({ "name": posted["metadata"]["name"] });
    let fake = FakeApi::start([]);
    fake.advance_to(119);
    let actual = Client::ask(&fake, &request, &posted.to_string()).finish(String::new());
    // Who wrote which field is the server's own bookkeeping, and an id is an id.
    let metadata = expected.body[0]["metadata"].as_object_mut().expect("metadata");
    metadata.remove("managedFields");
    metadata.insert("uid".into(), actual.body[0]["metadata"]["uid"].clone());
    assert_same(name, expected, actual);
    assert_eq!(fake.posted_events(), [posted]);
}

/// The source understands all that a real API server held.
#[tokio::test(start_paused = true)]
async fn recorded_objects_are_followed() {
    for streaming in [true, false] {
        let core = Core::new(objects_from_yaml(&recordings::read("objects/all.yaml")));
        core.set_streaming_lists(streaming);
        let mut follower = Follower::start(&core);
        let events = follower.until_synced().await;
        assert!(events.iter().all(|event| !event.starts_with("Problem")), "{events:?}");
        follower.assert_equals_server();
        assert_eq!(core.objects("Service").len(), 46, "Services in the recorded objects");
        assert_eq!(follower.state.node().map(|node| node.name.to_string()).as_deref(), Some(recordings::NODE));
    }
}
