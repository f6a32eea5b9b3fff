//! What the fake API server holds: objects, and the log of all changes to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::selector::Selector;

/// The resources that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
}

impl Resource {
    const ALL: [Resource; 4] = [Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs];

    /// The resource of a kind, as objects name it.
    pub fn of_kind(kind: &str) -> Resource {
        let found = Resource::ALL.into_iter().find(|resource| resource.kind() == kind);
        found.unwrap_or_else(|| panic!("the fake API server does not serve {kind:?}"))
    }

    /// The resource that is listed and watched at a path.
    pub fn at_path(path: &str) -> Option<Resource> {
        Resource::ALL.into_iter().find(|resource| resource.path() == path)
    }

    pub fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::EndpointSlices => "EndpointSlice",
            Resource::Nodes => "Node",
            Resource::ServiceCidrs => "ServiceCIDR",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes => "v1",
            Resource::EndpointSlices => "discovery.k8s.io/v1",
            Resource::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Resource::Services => "/api/v1/services",
            Resource::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
            Resource::Nodes => "/api/v1/nodes",
            Resource::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    pub fn selectable_fields(self) -> &'static [&'static str] {
        match self {
            Resource::Services => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
            Resource::EndpointSlices => &["metadata.name", "metadata.namespace"],
            Resource::Nodes => &["metadata.name", "spec.unschedulable"],
            Resource::ServiceCidrs => &["metadata.name"],
        }
    }

    /// The object of a bookmark: nothing but a version, and what Go writes for empty values.
    pub fn bookmark(self, metadata: Value) -> Value {
        let mut object = json!({ "kind": self.kind(), "apiVersion": self.api_version(), "metadata": metadata });
        match self {
            Resource::Services => {
                object["spec"] = json!({});
                object["status"] = json!({ "loadBalancer": {} });
            }
            Resource::EndpointSlices => {
                object["addressType"] = json!("");
                object["endpoints"] = Value::Null;
                object["ports"] = Value::Null;
            }
            Resource::Nodes => {
                object["spec"] = json!({});
                let empty = [
                    "machineID",
                    "systemUUID",
                    "bootID",
                    "kernelVersion",
                    "osImage",
                    "containerRuntimeVersion",
                    "kubeletVersion",
                    "kubeProxyVersion",
                    "operatingSystem",
                    "architecture",
                ];
                let node_info: serde_json::Map<_, _> = empty.into_iter().map(|key| (key.into(), json!(""))).collect();
                object["status"] = json!({
                    "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } },
                    "nodeInfo": node_info,
                });
            }
            Resource::ServiceCidrs => {
                object["spec"] = json!({});
                object["status"] = json!({});
            }
        }
        object
    }
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub enum Entry {
    /// An object came, changed or went.
    Change { revision: u64, resource: Resource, before: Option<Arc<Value>>, after: Option<Arc<Value>> },
    /// A line that every watch open at the time is sent as it stands.
    Line { resource: Resource, text: String },
}

/// Objects and their history.
#[derive(Debug, Default)]
pub struct Store {
    pub revision: u64,
    /// Revision up to which the history is forgotten.
    pub compacted: u64,
    pub log: Vec<Entry>,
    objects: BTreeMap<(Resource, String), Arc<Value>>,
}

impl Store {
    pub fn new(objects: impl IntoIterator<Item = Value>) -> Store {
        let mut store = Store::default();
        let (mut dated, undated): (Vec<Value>, Vec<Value>) = objects.into_iter().partition(|o| version(o).is_some());
        dated.sort_by_key(version);
        for object in dated {
            let revision = version(&object).unwrap_or_default().max(store.revision);
            store.put(revision, object);
        }
        for object in undated {
            store.apply(object);
        }
        store
    }

    /// Creates or replaces an object. One that is the same already is left alone.
    pub fn apply(&mut self, object: Value) {
        let same = self.objects.get(&key(&object)).is_some_and(|known| {
            let mut known = Value::clone(known);
            known["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
            for field in ["uid", "creationTimestamp"] {
                if object["metadata"].get(field).is_none() {
                    known["metadata"].as_object_mut().expect("metadata").remove(field);
                }
            }
            if object["metadata"].get("resourceVersion").is_none() {
                known["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
            }
            known == object
        });
        if !same {
            self.put(self.revision + 1, object);
        }
    }

    /// Creates or replaces an object with a change of that revision.
    pub fn put(&mut self, revision: u64, mut object: Value) {
        let (resource, name) = key(&object);
        let before = self.objects.get(&(resource, name.clone())).cloned();
        let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
        metadata.insert("resourceVersion".into(), json!(revision.to_string()));
        for (field, first) in [
            ("uid", json!(format!("00000000-0000-4000-8000-{revision:012}"))),
            ("creationTimestamp", json!("2026-11-20T22:06:35Z")),
        ] {
            let known = before.as_ref().and_then(|before| before["metadata"].get(field)).cloned();
            metadata.entry(field).or_insert(known.unwrap_or(first));
        }
        let after = Arc::new(object);
        self.objects.insert((resource, name), after.clone());
        self.revision = self.revision.max(revision);
        self.log.push(Entry::Change { revision, resource, before, after: Some(after) });
    }

    /// Deletes an object; whether there was one.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> bool {
        let resource = Resource::of_kind(kind);
        let path = if namespace.is_empty() { format!("/{name}") } else { format!("/{namespace}/{name}") };
        let Some(before) = self.objects.remove(&(resource, path)) else { return false };
        self.revision += 1;
        self.log.push(Entry::Change { revision: self.revision, resource, before: Some(before), after: None });
        true
    }

    /// An object as it stands.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = Resource::of_kind(kind);
        let path = if namespace.is_empty() { format!("/{name}") } else { format!("/{namespace}/{name}") };
        self.objects.get(&(resource, path)).map(|object| Value::clone(object))
    }

    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let resource = Resource::of_kind(kind);
        let of_kind = self.objects.iter().filter(|((of, _), _)| *of == resource);
        of_kind.map(|(_, object)| Value::clone(object)).collect()
    }

    /// Selected objects with their keys, in order of the keys, as they were at a revision.
    pub fn list_at(&self, revision: u64, resource: Resource, selector: &Selector) -> Vec<(String, Arc<Value>)> {
        let mut objects = BTreeMap::new();
        for entry in &self.log {
            let Entry::Change { revision: at, resource: of, before, after } = entry else { continue };
            if *of != resource || *at > revision {
                continue;
            }
            match (before, after) {
                (_, Some(after)) => objects.insert(key(after).1, after.clone()),
                (Some(before), None) => objects.remove(&key(before).1),
                (None, None) => None,
            };
        }
        objects.into_iter().filter(|(_, object)| selector.matches(object)).collect()
    }
}

impl Entry {
    /// What a watch with that selector is told: type and object, if anything.
    pub fn seen_by(&self, watched: Resource, selector: &Selector) -> Option<(&'static str, Value)> {
        let Entry::Change { revision, resource, before, after } = self else { return None };
        if *resource != watched {
            return None;
        }
        let before = before.as_ref().filter(|object| selector.matches(object));
        let after = after.as_ref().filter(|object| selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(("ADDED", Value::clone(after))),
            (Some(_), Some(after)) => Some(("MODIFIED", Value::clone(after))),
            // The last state that was selected, with the version of the change.
            (Some(before), None) => {
                let mut object = Value::clone(before);
                object["metadata"]["resourceVersion"] = json!(revision.to_string());
                Some(("DELETED", object))
            }
        }
    }
}

fn version(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

fn key(object: &Value) -> (Resource, String) {
    let resource = Resource::of_kind(object["kind"].as_str().expect("an object has a kind"));
    let name = object["metadata"]["name"].as_str().expect("an object has a name");
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => (resource, format!("/{namespace}/{name}")),
        None => (resource, format!("/{name}")),
    }
}
