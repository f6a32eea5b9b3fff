//! Recordings of a real kube-proxy: the objects it was given and the rules it left in the kernel.
//!
//! They live outside the repository, in `../shared/golden` or where `FERRULE_SHARED` says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::parse::{SaveReader, Saved};
use ferrule::backend::iptables::ruleset::Table;
use ferrule::cluster::ClusterState;
use ferrule::model::{EndpointSlice, Node, Service, wire};
use ferrule::net::IpFamily;
use serde::Deserialize;
use serde_json::Value;

use crate::pipeline;

/// Name of the node on which the recordings were made.
pub(crate) const NODE: &str = "node-000";

/// The addresses of that node's interfaces.
pub(crate) const ADDRESSES: [&str; 6] =
    ["127.0.0.1", "::1", "172.31.96.2", "172.31.99.2", "fd00:99::2", "10.128.0.254"];

/// Rule texts of every chain, as `iptables-save` printed them.
pub(crate) type SavedChains = BTreeMap<(Table, ChainName), Vec<String>>;

/// API objects by kind, namespace and name.
#[derive(Clone, Default)]
pub(crate) struct Objects(BTreeMap<(String, String, String), Value>);

/// A file of the recordings.
pub(crate) fn path(relative: &str) -> PathBuf {
    let shared = match std::env::var_os("FERRULE_SHARED") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    shared.join("golden").join(relative)
}

/// The text of a file of the recordings.
pub(crate) fn read(relative: &str) -> String {
    let path = path(relative);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; FERRULE_SHARED must name the directory with the recordings", path.display())
    })
}

/// Recordings of iptables mode: `legacy-base`, `nft-large`, …
pub(crate) fn iptables_cases() -> Vec<String> {
    let names = std::fs::read_dir(path("")).unwrap_or_else(|error| panic!("{}: {error}", path("").display()));
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> = names.filter(|name| name.starts_with("legacy-") || name.starts_with("nft-")).collect();
    cases.sort();
    assert!(cases.len() >= 14, "only {cases:?} in {}", path("").display());
    cases
}

/// The names of the twelve steps of the `*-base` cases, in order.
pub(crate) fn steps() -> Vec<String> {
    let names = std::fs::read_dir(path("objects/steps")).unwrap();
    let mut steps: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    steps.sort();
    assert_eq!(steps.len(), 12);
    steps
}

/// What was saved of a family in a directory of the recordings.
pub(crate) fn saved_text(directory: &str, family: IpFamily) -> String {
    match family {
        IpFamily::V4 => read(&format!("{directory}/iptables-save.txt")),
        IpFamily::V6 => read(&format!("{directory}/ip6tables-save.txt")),
    }
}

/// Chains and rules of a saved text.
pub(crate) fn saved_chains(text: &str) -> SavedChains {
    let mut chains = SavedChains::new();
    for_each_saved(text, |saved| match saved {
        Saved::Chain { table, name, .. } => {
            assert!(chains.insert((table, name.into()), Vec::new()).is_none(), "{table} {name} twice");
        }
        Saved::Rule { table, chain, text } => {
            let rules = chains.get_mut(&(table, chain.into())).expect("chains are declared before their rules");
            rules.push(text.to_owned());
        }
        Saved::Commit(_) => {}
    });
    chains
}

/// Reads a saved text to its end.
pub(crate) fn for_each_saved(text: &str, mut each: impl FnMut(Saved<'_>)) {
    let mut reader = SaveReader::default();
    for line in text.lines() {
        if let Some(saved) = reader.line(line).unwrap() {
            each(saved);
        }
    }
    reader.finish().unwrap();
}

// === impl Objects ===

impl Objects {
    /// Adds, or replaces, the objects of a file of several documents.
    pub(crate) fn apply(&mut self, relative: &str) {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&read(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"));
        assert!(!documents.is_empty(), "{relative}");
        for object in documents {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            let key = (text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
            self.0.insert(key, object);
        }
    }

    /// Makes one of the recorded changes.
    pub(crate) fn step(&mut self, name: &str) {
        let directory = format!("objects/steps/{name}");
        let deletions = format!("{directory}/delete.txt");
        if path(&deletions).exists() {
            for line in read(&deletions).lines() {
                let (kind, name) = line.split_once(' ').unwrap();
                let (namespace, name) = name.split_once('/').unwrap();
                let removed = self.0.remove(&(kind.to_owned(), namespace.to_owned(), name.to_owned()));
                assert!(removed.is_some(), "{deletions}: {line}");
            }
        }
        let changes = format!("{directory}/apply.yaml");
        if path(&changes).exists() {
            self.apply(&changes);
        }
    }

    /// The cluster they make. Objects with a label that the watches select against are not seen.
    pub(crate) fn cluster(&self) -> ClusterState {
        fn of_kind<'a, T: Deserialize<'a>>(objects: &'a Objects, kind: &str) -> Vec<T> {
            let labelled =
                |object: &Value, label| object.pointer("/metadata/labels").is_some_and(|l| l.get(label).is_some());
            let seen = |object: &Value| match kind {
                "Service" => !labelled(object, "service.kubernetes.io/service-proxy-name"),
                "EndpointSlice" => !labelled(object, "service.kubernetes.io/headless"),
                _ => true,
            };
            let found = objects.0.iter().filter(|((of, ..), object)| of == kind && seen(object));
            found.map(|(key, value)| T::deserialize(value).unwrap_or_else(|e| panic!("{key:?}: {e}"))).collect()
        }
        let nodes: Vec<wire::Node<'_>> = of_kind(self, "Node");
        let [node] = nodes.as_slice() else { panic!("{} nodes", nodes.len()) };
        let services = of_kind::<wire::Service<'_>>(self, "Service");
        let slices = of_kind::<wire::EndpointSlice<'_>>(self, "EndpointSlice");
        pipeline::cluster(
            &Node::from_wire(node),
            &ADDRESSES.map(|text| text.parse().unwrap()),
            services.iter().filter_map(|service| Service::from_wire(service).0),
            slices.iter().filter_map(|slice| EndpointSlice::from_wire(slice, NODE).0),
        )
    }
}
