//! Objects as the API writes them, to events. Every object is decoded on its own: one that cannot
//! be read harms nothing else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cluster::Event;
use crate::model::{EndpointSlice, Kind, Node, ObjectRef, Problem, Service, ServiceCidr, wire};

/// What an object means.
#[derive(Debug)]
pub(super) struct Decoded {
    /// Its resource version, if that can be read.
    pub(super) version: Option<String>,
    /// Events to send, in order.
    pub(super) events: Vec<Event>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`
    #[serde(borrow, rename = "type")]
    pub(super) kind: Cow<'a, str>,
    /// The object, not yet looked into.
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    pub(super) metadata: PageMeta,
    /// The objects, not yet looked into.
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// Metadata of a page.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// What a server says when it cannot do something (`meta/v1.Status`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) reason: String,
}

/// What any object says about itself, read so that nothing in it can be an obstacle.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Identity {
    #[serde(deserialize_with = "lenient")]
    metadata: IdentityMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IdentityMeta {
    #[serde(deserialize_with = "lenient")]
    name: Option<String>,
    #[serde(deserialize_with = "lenient")]
    namespace: Option<String>,
    #[serde(deserialize_with = "lenient")]
    resource_version: Option<String>,
    #[serde(deserialize_with = "lenient")]
    annotations: Option<BTreeMap<String, Value>>,
}

/// An object that is there. `this_node` is the name by which endpoints name the node we run on.
pub(super) fn object(kind: Kind, raw: &RawValue, this_node: &str) -> Decoded {
    let decoded = match kind {
        Kind::Service => wire(raw).map(|object| service(&object)),
        Kind::EndpointSlice => wire(raw).map(|object| slice(&object, this_node)),
        Kind::Node => wire(raw).map(|object| node(&object)),
        Kind::ServiceCidr => wire(raw).map(|object| service_cidr(&object)),
    };
    decoded.unwrap_or_else(|(field, error)| unreadable(kind, raw, field, &error))
}

/// A line about an object that is there and can be read, in one go: of ten thousand lines of an initial
/// list, that is all of them. `None` if the line is anything else.
pub(super) fn usual_line(kind: Kind, line: &[u8], this_node: &str) -> Option<Decoded> {
    #[derive(Deserialize)]
    struct Usual<'a, T> {
        #[serde(borrow, rename = "type")]
        kind: Cow<'a, str>,
        object: T,
    }
    fn present<'a, T: Deserialize<'a>>(line: &'a str) -> Option<T> {
        let line: Usual<'_, T> = serde_json::from_str(line).ok()?;
        matches!(&*line.kind, "ADDED" | "MODIFIED").then_some(line.object)
    }
    let line = std::str::from_utf8(line).ok()?;
    match kind {
        Kind::Service => present(line).map(|object| service(&object)),
        Kind::EndpointSlice => present(line).map(|object| slice(&object, this_node)),
        Kind::Node => present(line).map(|object| node(&object)),
        Kind::ServiceCidr => present(line).map(|object| service_cidr(&object)),
    }
}

fn service(object: &wire::Service<'_>) -> Decoded {
    let (service, problems) = Service::from_wire(object);
    let event = service.map(|service| Event::Service(Arc::new(service)));
    known(Kind::Service, &object.metadata, event, problems)
}

fn slice(object: &wire::EndpointSlice<'_>, this_node: &str) -> Decoded {
    let (slice, problems) = EndpointSlice::from_wire(object, this_node);
    let event = slice.map(|slice| Event::EndpointSlice(Arc::new(slice)));
    known(Kind::EndpointSlice, &object.metadata, event, problems)
}

fn node(object: &wire::Node<'_>) -> Decoded {
    let event = Event::Node(Arc::new(Node::from_wire(object)));
    known(Kind::Node, &object.metadata, Some(event), Vec::new())
}

fn service_cidr(object: &wire::ServiceCidr<'_>) -> Decoded {
    let (service_cidr, problems) = ServiceCidr::from_wire(object);
    known(Kind::ServiceCidr, &object.metadata, Some(Event::ServiceCidr(Arc::new(service_cidr))), problems)
}

/// An object that was deleted. Only its name matters.
pub(super) fn deleted(kind: Kind, raw: &RawValue) -> Decoded {
    let identity = Identity::of(raw);
    let events = match identity.object(kind) {
        Some(object) => vec![Event::Deleted(object)],
        None => vec![nameless(kind)],
    };
    Decoded { version: identity.version(), events }
}

fn known(kind: Kind, meta: &wire::Meta<'_>, event: Option<Event>, problems: Vec<Problem>) -> Decoded {
    let name = meta.name.as_deref().unwrap_or_default();
    let mut events: Vec<Event> = problems.into_iter().map(Event::Problem).collect();
    match event {
        _ if name.is_empty() && events.is_empty() => events.push(nameless(kind)),
        _ if name.is_empty() => {}
        Some(event) => events.push(event),
        // It is there, but no rule comes of it.
        None => events.push(Event::Deleted(object_ref(kind, meta.namespace.as_deref(), name))),
    }
    Decoded { version: meta.resource_version.as_deref().map(str::to_owned), events }
}

fn unreadable(kind: Kind, raw: &RawValue, field: String, error: &str) -> Decoded {
    let identity = Identity::of(raw);
    let Some(object) = identity.object(kind) else {
        return Decoded { version: identity.version(), events: vec![nameless(kind)] };
    };
    let reason = format!("cannot be read ({error}); the object's last good version stays in force until it is mended");
    let problem = Problem { object: object.clone(), field, reason };
    Decoded { version: identity.version(), events: vec![Event::Problem(problem), Event::Unreadable(object)] }
}

fn nameless(kind: Kind) -> Event {
    let object = ObjectRef::new(kind, "", "(without a name)");
    Event::Problem(Problem {
        object,
        field: "metadata.name".into(),
        reason: "is missing; the object is ignored".into(),
    })
}

fn object_ref(kind: Kind, namespace: Option<&str>, name: &str) -> ObjectRef {
    match kind {
        Kind::Node | Kind::ServiceCidr => ObjectRef::new(kind, "", name),
        Kind::Service | Kind::EndpointSlice => ObjectRef::new(kind, namespace.unwrap_or("default"), name),
    }
}

/// Decodes an object; an error says which field, and what is wrong with it. The field is only looked
/// for after a failure, because keeping track of it costs time.
fn wire<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, (String, String)> {
    if let Ok(object) = serde_json::from_str(raw.get()) {
        return Ok(object);
    }
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => "(object)".to_string(),
            path => path,
        };
        let text = error.inner().to_string();
        // A position in a line nobody sees helps nobody.
        let text = text.split_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        (field, text.to_string())
    })
}

/// A value of any shape; the default if it is not of the expected one.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

// === impl Identity ===

impl Identity {
    /// What an object says about itself; nothing if it says nothing usable.
    pub(super) fn of(raw: &RawValue) -> Identity {
        serde_json::from_str(raw.get()).unwrap_or_default()
    }

    /// Its resource version.
    pub(super) fn version(&self) -> Option<String> {
        self.metadata.resource_version.clone().filter(|version| !version.is_empty())
    }

    /// Whether it is the bookmark that ends the initial events of a streaming list.
    pub(super) fn ends_initial_events(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key("k8s.io/initial-events-end"))
    }

    fn object(&self, kind: Kind) -> Option<ObjectRef> {
        let name = self.metadata.name.as_deref().filter(|name| !name.is_empty())?;
        Some(object_ref(kind, self.metadata.namespace.as_deref(), name))
    }
}
