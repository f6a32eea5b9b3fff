//! Objects as sources read them: whatever an API server or a manifest file says, what becomes of it
//! is sound, and comes to rules that the tools read as they are meant.

use std::collections::BTreeSet;
use std::sync::Arc;

use ferrule::backend::iptables::compile::Layout;
use ferrule::cluster::{ClusterState, Event};
use ferrule::model::{Kind, Node};
use ferrule::net::IpFamily;
use ferrule::plan::Plan;
use ferrule::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings};
use ferrule::source::{api, manifests};
use serde_json::Value;
use serde_json::value::RawValue;

use super::rules;
use crate::pipeline;

/// Mark that asks for masquerading.
pub(super) const MARK: u32 = 0x4000;
const NODE: &str = "node-1";
const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

/// A manifest file.
pub(super) fn manifest(input: &[u8]) {
    let loaded = manifests::load_text(input, NODE);
    for error in &loaded.broken {
        // To YAML, a carriage return ends a line as well.
        let lines = input.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64 + 1;
        assert!(error.line <= lines, "{error}: there are {lines} lines");
        assert!(!error.reason.is_empty(), "{error}");
    }
    assert_eq!(loaded.broken.is_empty(), !loaded.events.is_empty(), "{:?}", loaded.broken);
    // A carriage return alone ends a line to YAML, but no document to us.
    let is_usual =
        input.iter().filter(|byte| **byte == b'\r').count() == input.windows(2).filter(|w| w == b"\r\n").count();
    if loaded.broken.is_empty() && is_usual {
        // A further document that holds nothing is no news.
        let longer = manifests::load_text(&[input, b"\n---\n# Nothing.\n"].concat(), NODE);
        assert_eq!(told(&longer.events), told(&loaded.events), "{:?}", longer.broken);
        if [&b"kind:"[..], b"apiVersion:"].iter().any(|key| input.starts_with(key)) {
            // What the object is can be told without parsing; a quoted key forbids that.
            let parsed = manifests::load_text(&[b"\"x\": 0\n", input].concat(), NODE);
            assert!(!parsed.broken.is_empty() || objects(&parsed.events) == objects(&loaded.events), "{parsed:?}");
        }
    }
    lead_to_good_rules(loaded.events);
}

/// Lines of a watch, which may also be bare objects; and the whole as a page of a list.
pub(super) fn watch(input: &[u8]) {
    for kind in KINDS {
        let mut events = api::read_page(kind, input, NODE).unwrap_or_default();
        for line in input.split(|byte| *byte == b'\n') {
            events.extend(api::read_line(kind, line, NODE).unwrap_or_default());
            if serde_json::from_slice::<&RawValue>(line).is_ok() {
                events.extend(bare(kind, line));
                as_manifest(kind, line);
            }
        }
        for event in &events {
            assert!(is_about(event, kind), "{event:?} of a watch of {kind}");
        }
        lead_to_good_rules(events);
    }
}

/// An object means the same in an event and in a list.
fn bare(kind: Kind, object: &[u8]) -> Vec<Event> {
    let event = |name: &str| [br#"{"type":""#, name.as_bytes(), br#"","object":"#, object, b"}"].concat();
    let Ok(added) = api::read_line(kind, &event("ADDED"), NODE) else { return Vec::new() };
    let modified = api::read_line(kind, &event("MODIFIED"), NODE);
    assert_eq!(modified.as_deref().map(told), Ok(told(&added)));
    let head = format!(r#"{{"kind":"{kind}List","metadata":{{}},"items":["#);
    let listed = api::read_page(kind, &[head.as_bytes(), object, b"]}"].concat(), NODE);
    assert_eq!(listed.as_deref().map(told), Ok(told(&added)));
    let deleted = api::read_line(kind, &event("DELETED"), NODE).expect("an object that can come can go");
    assert_eq!(deleted.len(), 1, "{deleted:?}");
    [added, deleted].concat()
}

/// An object means the same to the API server and in a file, where both read it without a word and
/// leave nothing open.
fn as_manifest(kind: Kind, object: &[u8]) {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(object) else { return };
    let version = match kind {
        Kind::Service | Kind::Node => "v1",
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::ServiceCidr => "networking.k8s.io/v1",
    };
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.to_string().into());
    let object = Value::Object(object);
    let is_open = |field: &str| object.pointer(field).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let is_selected = object.pointer("/metadata/labels").is_none_or(|labels| {
        ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"]
            .iter()
            .all(|l| labels.get(l).is_none())
    });
    if !is_selected || (kind == Kind::Service && is_open("/spec/ipFamilies")) {
        return;
    }
    let watched = api::read_line(kind, format!(r#"{{"type":"ADDED","object":{object}}}"#).as_bytes(), NODE);
    let watched = watched.expect("it was read before");
    let loaded = manifests::load_text(object.to_string().as_bytes(), NODE);
    if matches!(watched[..], [Event::Service(_) | Event::EndpointSlice(_) | Event::ServiceCidr(_)])
        && loaded.broken.is_empty()
    {
        assert_eq!(objects(&loaded.events), objects(&watched), "{object}");
    }
}

/// Services, slices and networks of Services as text.
fn objects(events: &[Event]) -> Vec<String> {
    let objects = events
        .iter()
        .filter(|event| matches!(event, Event::Service(_) | Event::EndpointSlice(_) | Event::ServiceCidr(_)));
    objects.map(|event| format!("{event:?}")).collect()
}

/// Events as text: they are not made to be compared.
fn told(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{event:?}")).collect()
}

fn is_about(event: &Event, kind: Kind) -> bool {
    match event {
        Event::Service(_) => kind == Kind::Service,
        Event::EndpointSlice(_) => kind == Kind::EndpointSlice,
        Event::Node(_) => kind == Kind::Node,
        Event::ServiceCidr(_) => kind == Kind::ServiceCidr,
        Event::Deleted(object) | Event::Unreadable(object) => object.kind == kind,
        Event::Problem(problem) => problem.object.kind == kind,
        Event::Listing(_) | Event::Synced(_) | Event::Addresses(_) | Event::Disturbed(_) => false,
    }
}

fn lead_to_good_rules(events: Vec<Event>) {
    events.iter().for_each(assert_sound);
    let state = cluster(events);
    for family in IpFamily::BOTH {
        let plan = plan(&state, family);
        // Without Services, the rules are always the same.
        if plan.services().is_empty() {
            continue;
        }
        for ((_, chain), rules) in pipeline::compile(&plan, &pipeline::style(&plan, MARK, Layout::default())) {
            for rule in rules {
                let text = rule.to_string();
                assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "-A {chain} {text:?}");
                rules::reads_back(&rule, family);
            }
        }
    }
}

/// What later parts take for granted.
fn assert_sound(event: &Event) {
    match event {
        Event::Service(service) => {
            let families: BTreeSet<IpFamily> = service.cluster_ips.iter().copied().map(IpFamily::of).collect();
            assert!(!families.is_empty() && families.len() == service.cluster_ips.len(), "{service:?}");
            let names: BTreeSet<_> = service.ports.iter().map(|port| (&port.name, port.protocol)).collect();
            assert!(!names.is_empty() && names.len() == service.ports.len(), "{service:?}");
            assert!(service.ports.iter().all(|port| port.port != 0 && port.node_port != Some(0)), "{service:?}");
            assert!(service.affinity_seconds.is_none_or(|seconds| (1..=86_400).contains(&seconds)), "{service:?}");
            let checked = service.health_check_node_port;
            assert!(checked.is_none_or(|port| port != 0 && service.external_policy_local), "{service:?}");
        }
        Event::EndpointSlice(slice) => {
            let is_of_family = |ip| IpFamily::of(ip) == slice.family;
            assert!(slice.endpoints.iter().all(|endpoint| is_of_family(endpoint.ip)), "{slice:?}");
            assert!(slice.ports.iter().all(|port| port.port != 0), "{slice:?}");
        }
        Event::Problem(problem) => {
            assert!(!problem.field.is_empty() && !problem.reason.is_empty(), "{problem:?}");
        }
        _ => {}
    }
}

/// A cluster in which these events happen.
pub(super) fn cluster(events: Vec<Event>) -> ClusterState {
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("an address"));
    let node =
        Node { name: NODE.into(), zone: None, addresses: addresses.to_vec(), pod_cidrs: Vec::new(), draining: false };
    let mut state = pipeline::cluster(&node, &addresses, [], []);
    for event in events {
        state.apply(event);
    }
    // A file can be without the node.
    state.apply(Event::Node(Arc::new(node)));
    state
}

pub(super) fn plan(state: &ClusterState, family: IpFamily) -> Plan {
    let settings = Settings {
        node_name: NODE.into(),
        bind_address: None,
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortSetting::Primary,
        detect_local: DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a network")]),
        external_ips: true,
        balancing: Balancing::Rules,
    };
    pipeline::plan(state, &settings, family)
}
