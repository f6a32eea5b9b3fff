//! What the fake API server answers, free of any transport.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::BoxStream;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::locked;
use super::selector::Selector;
use super::store::{Entry, Resource, Store};
use super::watch;

/// The state of a fake API server and the handling of its requests. Shared by all transports and
/// usable from any thread.
pub struct Core {
    pub(super) state: Mutex<State>,
    /// Counts changes of any kind, so that watches and tests can wait for one.
    pub(super) changes: tokio::sync::watch::Sender<u64>,
}

pub(super) struct State {
    pub(super) store: Store,
    pub(super) bookmark_every: Duration,
    /// How many times all watches were ended, and whether the last time was an abrupt one.
    pub(super) ends: u64,
    pub(super) abrupt: bool,
    streaming_lists: bool,
    token: Option<String>,
    faults: Vec<(On, Fault)>,
    down: bool,
    requests: Vec<Seen>,
    posted: Vec<Value>,
}

/// A request, as far as it matters.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub method: String,
    pub path: String,
    /// As written, percent-encoded.
    pub query: String,
    pub authorization: Option<String>,
    pub user_agent: Option<String>,
    pub body: Vec<u8>,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    /// As written, percent-encoded.
    pub query: String,
    /// The query's pairs, decoded, in the order in which they were written.
    pub pairs: Vec<(String, String)>,
    pub authorization: Option<String>,
    pub user_agent: Option<String>,
    /// When, on the clock of the runtime that serves.
    pub at: tokio::time::Instant,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
}

/// The body of an answer.
pub enum Body {
    /// All of it, with its length said beforehand.
    Whole(String),
    /// Piece by piece; an error stands for a broken connection.
    Stream(BoxStream<'static, io::Result<Bytes>>),
}

/// Which requests a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Anything,
    List,
    /// A watch that asks for the initial objects.
    InitialWatch,
    /// A watch from a version.
    Watch,
    /// Whatever is asked about ServiceCIDRs.
    ServiceCidrs,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A watch is accepted and closed after so many events (0: at once).
    CloseAfter(usize),
    /// A streaming list is never ended by its bookmark.
    NoEndBookmark,
    /// The request is never answered.
    Hang,
    /// The request is accepted; then nothing comes.
    Stall,
    /// The request fails with that HTTP status and reason.
    Status(u16, &'static str),
    /// The answer is 200 with that body.
    Text(String),
    /// The answer is that.
    Answer(u16, String),
    /// The connection breaks in the middle of the answer (of a list).
    Truncate,
}

// === impl Core: what tests set and ask ===

impl Core {
    /// A server that holds `objects`.
    pub fn new(objects: impl IntoIterator<Item = Value>) -> Arc<Core> {
        let state = State {
            store: Store::new(objects),
            bookmark_every: Duration::from_secs(60),
            ends: 0,
            abrupt: false,
            streaming_lists: true,
            token: None,
            faults: Vec::new(),
            down: false,
            requests: Vec::new(),
            posted: Vec::new(),
        };
        Arc::new(Core { state: Mutex::new(state), changes: tokio::sync::watch::Sender::new(0) })
    }

    /// Creates or replaces an object; nothing happens if it is the same already. Its fields are not
    /// checked, so it may well be half valid.
    pub fn apply(&self, object: Value) {
        self.change(|state| state.store.apply(object));
    }

    /// Applies every document of a YAML text.
    pub fn apply_yaml(&self, text: &str) {
        for object in super::objects_from_yaml(text) {
            self.apply(object);
        }
    }

    /// Creates or replaces an object with a change of that revision.
    pub fn apply_at(&self, revision: u64, object: Value) {
        self.change(|state| state.store.put(revision, object));
    }

    /// Deletes an object; whether there was one. The namespace of a Node is empty.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> bool {
        self.change(|state| state.store.delete(kind, namespace, name))
    }

    /// An object as it stands.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        locked(&self.state).store.get(kind, namespace, name)
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        locked(&self.state).store.all(kind)
    }

    /// Lets the revision move on, as writes to other resources do.
    pub fn advance_to(&self, revision: u64) {
        self.change(|state| state.store.revision = state.store.revision.max(revision));
    }

    /// Forgets the history up to now: watches and exact lists from before it are answered with 410.
    pub fn compact(&self) {
        self.change(|state| state.store.compacted = state.store.revision);
    }

    /// Sends a line, whatever it is, on every open watch of a kind.
    pub fn send_line(&self, kind: &str, text: &str) {
        let entry = Entry::Line { resource: Resource::of_kind(kind), text: text.to_string() };
        self.change(|state| state.store.log.push(entry));
    }

    /// Whether streaming lists are on (they are at first). Off, they are answered with 422.
    pub fn set_streaming_lists(&self, on: bool) {
        self.change(|state| state.streaming_lists = on);
    }

    /// Requires a bearer token; others are answered with 401.
    pub fn require_token(&self, token: &str) {
        self.change(|state| state.token = Some(token.to_string()));
    }

    /// How often a watch is sent a bookmark (every minute at first).
    pub fn set_bookmark_every(&self, period: Duration) {
        self.change(|state| state.bookmark_every = period);
    }

    /// Adds a fault.
    pub fn set_fault(&self, on: On, fault: Fault) {
        self.change(|state| state.faults.push((on, fault)));
    }

    /// Takes all faults away. Watches that stall go on doing so.
    pub fn clear_faults(&self) {
        self.change(|state| state.faults.clear());
    }

    /// Ends every open watch, as a server does at its timeout.
    pub fn close_watches(&self) {
        self.change(|state| {
            state.ends += 1;
            state.abrupt = false;
        });
    }

    /// Breaks every open watch off, and (`down`) every request from now on.
    pub fn set_down(&self, down: bool) {
        self.change(|state| {
            state.down = down;
            if down {
                state.ends += 1;
                state.abrupt = true;
            }
        });
    }

    /// Whether requests break off.
    pub fn is_down(&self) -> bool {
        locked(&self.state).down
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Seen> {
        locked(&self.state).requests.clone()
    }

    /// Events that were posted, as posted, with what was patched since.
    pub fn posted_events(&self) -> Vec<Value> {
        locked(&self.state).posted.clone()
    }

    /// Waits until the requests so far satisfy a condition.
    pub async fn requested(&self, enough: impl Fn(&[Seen]) -> bool) {
        let mut changes = self.changes.subscribe();
        while !enough(&locked(&self.state).requests) {
            changes.changed().await.expect("the core is alive");
        }
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut locked(&self.state));
        self.changes.send_modify(|count| *count += 1);
        result
    }
}

// === impl Core: answering ===

impl Core {
    /// Answers a request.
    pub async fn answer(self: &Arc<Self>, ask: Ask) -> Answer {
        let pairs = decode_query(&ask.query);
        let value = |key: &str| {
            let pair = pairs.iter().rev().find(|(k, _)| k == key);
            pair.map(|(_, value)| value.as_str()).unwrap_or_default().to_string()
        };
        self.change(|state| {
            state.requests.push(Seen {
                method: ask.method.clone(),
                path: ask.path.clone(),
                query: ask.query.clone(),
                pairs: pairs.clone(),
                authorization: ask.authorization.clone(),
                user_agent: ask.user_agent.clone(),
                at: tokio::time::Instant::now(),
            });
            // On a made-up clock such a client would never let time go on.
            assert!(state.requests.len() < 50_000, "a client that asks without end");
        });
        // A server prints for a reader when the reader is curl.
        let pretty = ask.user_agent.as_deref().is_some_and(|agent| agent.starts_with("curl/"));
        let watching = matches!(value("watch").as_str(), "true" | "1");
        let initial = value("sendInitialEvents") == "true";
        let on = match (watching, initial) {
            (false, _) => On::List,
            (true, true) => On::InitialWatch,
            (true, false) => On::Watch,
        };

        let (token, streaming_lists, fault) = {
            let state = locked(&self.state);
            let concerns = |at: On| match at {
                On::Anything => true,
                On::ServiceCidrs => ask.path.ends_with("/servicecidrs"),
                other => other == on,
            };
            let fault = state.faults.iter().rev().find(|(at, _)| concerns(*at));
            (state.token.clone(), state.streaming_lists, fault.map(|(_, fault)| fault.clone()))
        };
        if let Some(token) = token
            && ask.authorization.as_deref() != Some(&format!("Bearer {token}"))
        {
            let mut answer = failure(pretty, 401, "Unauthorized", "Unauthorized");
            answer.headers.retain(|(name, _)| !name.starts_with("x-kubernetes-pf"));
            return answer;
        }
        match &fault {
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::Status(code, reason)) => return failure(pretty, *code, reason, "made to fail"),
            Some(Fault::Text(text)) => return whole(200, text.clone()),
            Some(Fault::Answer(status, text)) => return whole(*status, text.clone()),
            _ => {}
        }
        if ask.method == "POST" && ask.path.ends_with("/events") {
            return self.create_event(pretty, &ask);
        }
        if ask.method == "PATCH" && ask.path.contains("/events/") {
            return self.patch_event(pretty, &ask);
        }
        let Some(resource) = Resource::at_path(&ask.path).filter(|_| ask.method == "GET") else {
            return failure(pretty, 404, "NotFound", "the server could not find the requested resource");
        };
        let selector = match Selector::parse(resource, &value("labelSelector"), &value("fieldSelector")) {
            Ok(selector) => selector,
            Err(message) => return failure(pretty, 400, "BadRequest", &message),
        };
        if !watching {
            let mut answer = self.list(pretty, resource, &selector, &value);
            if let (Some(Fault::Truncate), Body::Whole(text)) = (&fault, &answer.body) {
                let half = Bytes::from(text.as_bytes()[..text.len() / 2].to_vec());
                let broken = io::Error::new(io::ErrorKind::ConnectionReset, "made to break off");
                answer.body = Body::Stream(Box::pin(futures::stream::iter([Ok(half), Err(broken)])));
            }
            return answer;
        }
        if initial && !streaming_lists {
            return streaming_lists_forbidden(pretty);
        }
        let mut answer = whole(200, String::new());
        answer.body = Body::Stream(watch::open(self.clone(), resource, selector, &value, fault));
        answer
    }

    fn list(&self, pretty: bool, resource: Resource, selector: &Selector, value: &dyn Fn(&str) -> String) -> Answer {
        let state = locked(&self.state);
        let store = &state.store;
        let (mut limit, version) = (value("limit").parse::<usize>().unwrap_or(0), value("resourceVersion"));
        let (mut revision, mut start) = (store.revision, String::new());
        if let Some((at, from)) = read_continue(&value("continue")) {
            (revision, start) = (at, from);
            if at < store.compacted {
                return failure(pretty, 410, "Expired", CONTINUE_TOO_OLD);
            }
        } else if value("resourceVersionMatch") == "Exact" {
            revision = version.parse().unwrap_or(0);
            if revision < store.compacted {
                let message = "The resourceVersion for the provided list is too old.";
                return failure(pretty, 410, "Expired", message);
            }
        } else if version == "0" {
            // Served from the cache, which does not page.
            limit = 0;
        } else if version.parse::<u64>().is_ok_and(|asked| asked > store.revision) {
            return failure(pretty, 504, "Timeout", &format!("Too large resource version: {version}"));
        }

        let mut found = store.list_at(revision, resource, selector);
        found.retain(|(key, _)| *key >= start);
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if limit != 0 && found.len() > limit {
            let last = &found[limit - 1].0;
            metadata["continue"] = json!(write_continue(revision, &format!("{last}\0")));
            if selector.is_empty() {
                metadata["remainingItemCount"] = json!(found.len() - limit);
            }
            found.truncate(limit);
        }
        let items: Vec<Value> = found
            .into_iter()
            .map(|(_, object)| {
                let mut object = Value::clone(&object);
                let fields = object.as_object_mut().expect("an object");
                fields.remove("kind");
                fields.remove("apiVersion");
                object
            })
            .collect();
        let kind = format!("{}List", resource.kind());
        let list = json!({ "kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items });
        whole(200, print(pretty, &list))
    }

    /// Replaces the top-level fields that a merge patch names. (All that a series needs.)
    fn patch_event(&self, pretty: bool, ask: &Ask) -> Answer {
        let name = ask.path.rsplit('/').next().unwrap_or_default();
        let Ok(Value::Object(patch)) = serde_json::from_slice(&ask.body) else {
            return failure(pretty, 400, "BadRequest", "the body is not a JSON object");
        };
        self.change(|state| match state.posted.iter_mut().find(|event| event["metadata"]["name"] == name) {
            None => failure(pretty, 404, "NotFound", &format!("events.events.k8s.io \"{name}\" not found")),
            Some(event) => {
                for (field, value) in patch {
                    event[field] = value;
                }
                whole(200, print(pretty, event))
            }
        })
    }

    /// Events go after a while, as they do on a real server.
    pub fn expire_events(&self) {
        self.change(|state| state.posted.clear());
    }

    fn create_event(&self, pretty: bool, ask: &Ask) -> Answer {
        let Ok(posted) = serde_json::from_slice::<Value>(&ask.body) else {
            return failure(pretty, 400, "BadRequest", "the body is not JSON");
        };
        self.change(|state| {
            state.store.revision += 1;
            state.posted.push(posted.clone());
            let revision = state.store.revision;
            let mut event = posted;
            let namespace = ask.path.split('/').rev().nth(1).unwrap_or("default");
            if let Some(prefix) = event["metadata"].get("generateName").and_then(Value::as_str).map(str::to_string) {
                event["metadata"]["name"] = json!(format!("{prefix}{revision:05}"));
            }
            event["metadata"]["namespace"] = json!(namespace);
            event["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{revision:012}"));
            event["metadata"]["resourceVersion"] = json!(revision.to_string());
            event["metadata"]["creationTimestamp"] = json!("2026-11-20T22:08:09Z");
            event["deprecatedSource"] = json!({});
            event["deprecatedFirstTimestamp"] = Value::Null;
            event["deprecatedLastTimestamp"] = Value::Null;
            whole(201, print(pretty, &event))
        })
    }
}

const CONTINUE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You \
                                can start a new list without the continue parameter.";

fn streaming_lists_forbidden(pretty: bool) -> Answer {
    let detail = "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    let mut status =
        status(422, "Invalid", &format!("ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: {detail}"));
    status["details"] = json!({
        "group": "meta.k8s.io",
        "kind": "ListOptions",
        "causes": [{ "reason": "FieldValueForbidden", "message": detail, "field": "sendInitialEvents" }],
    });
    whole(422, print(pretty, &status))
}

/// A `Status` that says what failed.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}

fn failure(pretty: bool, code: u16, reason: &str, message: &str) -> Answer {
    whole(code, print(pretty, &status(code, reason, message)))
}

fn whole(status: u16, text: String) -> Answer {
    let headers = vec![
        ("audit-id", "00000000-0000-4000-8000-000000000000".to_string()),
        ("cache-control", "no-cache, private".to_string()),
        ("content-type", "application/json".to_string()),
        ("x-kubernetes-pf-flowschema-uid", "00000000-0000-4000-8000-000000000001".to_string()),
        ("x-kubernetes-pf-prioritylevel-uid", "00000000-0000-4000-8000-000000000002".to_string()),
    ];
    Answer { status, headers, body: Body::Whole(text) }
}

fn print(pretty: bool, value: &Value) -> String {
    match pretty {
        true => serde_json::to_string_pretty(value).expect("JSON"),
        false => format!("{value}\n"),
    }
}

fn write_continue(revision: u64, start: &str) -> String {
    let start = start.replace('\0', "\\u0000");
    let token = format!(r#"{{"v":"meta.k8s.io/v1","rv":{revision},"start":"{start}"}}"#);
    data_encoding::BASE64URL_NOPAD.encode(token.as_bytes())
}

fn read_continue(token: &str) -> Option<(u64, String)> {
    let text = data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    Some((value["rv"].as_u64()?, value["start"].as_str()?.to_string()))
}

fn decode_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().expect("two digits"), rest.next().expect("two digits")];
                let digits = std::str::from_utf8(&digits).expect("hex digits");
                bytes.push(u8::from_str_radix(digits, 16).expect("hex digits"));
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
