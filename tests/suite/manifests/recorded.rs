//! The recorded objects, read as manifests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ferrule::cluster::{ClusterState, Event};
use ferrule::model::Kind;
use ferrule::source::manifests::{Loaded, load};

use super::{Follower, everything, word};
use crate::recordings::{self, NODE, Objects};

fn loaded(paths: &[&str]) -> Loaded {
    let paths: Vec<PathBuf> = paths.iter().map(|path| recordings::path(path)).collect();
    let loaded = load(&paths, NODE);
    assert_eq!((&*loaded.broken, &*loaded.duplicates), (&[] as &[_], &[] as &[_]));
    loaded
}

fn cluster(events: Vec<Event>) -> ClusterState {
    let mut state = ClusterState::new();
    for event in events {
        state.apply(event);
    }
    state
}

#[test]
fn every_recorded_object_is_read() {
    let events = loaded(&["objects/all.yaml"]).events;
    let count = |kind: &str| events.iter().filter(|event| word(event).starts_with(kind)).count();
    // Counted in the text, without a parser.
    let text = recordings::read("objects/all.yaml");
    let documents: Vec<&str> = text.split("\n---\n").map(|document| document.trim_start_matches("---\n")).collect();
    let of_kind = |kind: &str| {
        let line = format!("kind: {kind}");
        documents
            .iter()
            .copied()
            .filter(move |document| document.lines().any(|found| found == line))
            .collect::<Vec<_>>()
    };
    assert_eq!(of_kind("Service").len(), 46);
    let without_rules = |document: &&&str| {
        let has = |text| document.contains(text);
        has("  clusterIP: None\n")
            || has("  type: ExternalName\n")
            || has("    service.kubernetes.io/service-proxy-name:")
    };
    assert_eq!(count("Service "), 46 - of_kind("Service").iter().filter(without_rules).count());
    assert_eq!(of_kind("EndpointSlice").len(), 42);
    let unseen = |document: &&&str| document.contains("    service.kubernetes.io/headless:");
    let no_address = |document: &&&str| document.lines().any(|line| line == "addressType: FQDN");
    let expected = of_kind("EndpointSlice").iter().filter(|slice| !unseen(slice) && !no_address(slice)).count();
    assert_eq!(count("EndpointSlice "), expected);

    let node = events.iter().find_map(|event| match event {
        Event::Node(node) => Some(node.clone()),
        _ => None,
    });
    let node = node.unwrap();
    let document = of_kind("Node")[0];
    let zone = node.zone.clone().unwrap();
    assert!(document.contains(&format!("    topology.kubernetes.io/zone: {zone}\n")));
    let cidrs: String = node.pod_cidrs.iter().map(|cidr| format!("  - {cidr}\n")).collect();
    assert!(document.contains(&format!("  podCIDRs:\n{cidrs}  taints:")), "{cidrs}");
    let addresses: String =
        node.addresses.iter().map(|ip| format!("  - type: InternalIP\n    address: {ip}\n")).collect();
    assert!(document.contains(&format!("  addresses:\n{addresses}  - type: Hostname")), "{addresses}");
}

#[test]
fn a_file_gives_the_cluster_that_was_recorded() {
    let mut objects = Objects::default();
    objects.apply("objects/all.yaml");
    assert_eq!(everything(&cluster(loaded(&["objects/all.yaml"]).events)), everything(&objects.cluster()));
    objects.apply("objects/large-extra.yaml");
    let large = loaded(&["objects/all.yaml", "objects/large-extra.yaml"]);
    let endpoints = recordings::read("objects/large-extra.yaml").lines().filter(|line| *line == "- addresses:").count();
    assert!(endpoints > 1000, "{endpoints}");
    assert_eq!(everything(&cluster(large.events)), everything(&objects.cluster()));
}

#[test]
fn problems_name_the_file() {
    let problems: Vec<String> = loaded(&["objects/all.yaml"])
        .events
        .iter()
        .filter(|event| matches!(event, Event::Problem(_)))
        .map(word)
        .collect();
    let path = recordings::path("objects/all.yaml");
    for problem in &problems {
        assert!(problem.contains(&format!(" ({}:", path.display())), "{problem}");
    }
}

/// One file for each object.
struct Directory {
    files: HashMap<String, PathBuf>,
    path: tempfile::TempDir,
}

impl Directory {
    fn put(&mut self, relative: &str) {
        for document in recordings::read(relative).split("\n---\n") {
            let field = |start: &str| {
                let line = document.lines().find_map(|line| line.strip_prefix(start));
                line.unwrap_or_else(|| panic!("no {start:?} in {document}")).to_owned()
            };
            let kind = field("kind: ");
            let namespace = if kind == "Node" { "-".into() } else { field("  namespace: ") };
            let name = format!("{kind} {namespace}/{}", field("  name: "));
            let path = self.path.path().join(format!("{}.yaml", name.replace(['/', ' '], "_")));
            super::replace(&path, document);
            self.files.insert(name, path);
        }
    }

    fn step(&mut self, name: &str) {
        let directory = format!("objects/steps/{name}");
        if recordings::path(&format!("{directory}/delete.txt")).exists() {
            for line in recordings::read(&format!("{directory}/delete.txt")).lines() {
                std::fs::remove_file(&self.files[line]).unwrap();
            }
        }
        if recordings::path(&format!("{directory}/apply.yaml")).exists() {
            self.put(&format!("{directory}/apply.yaml"));
        }
    }
}

#[tokio::test]
async fn recorded_changes_are_followed() {
    let mut directory = Directory { files: HashMap::new(), path: tempfile::tempdir().unwrap() };
    let mut objects = Objects::default();
    directory.put("objects/all.yaml");
    objects.apply("objects/all.yaml");
    let path: PathBuf = directory.path.path().into();
    let mut follower = Follower::listed(&[Path::new(&path)]).await;
    assert!(follower.state.has_listed(Kind::Node));
    assert_eq!(everything(&follower.state), everything(&objects.cluster()));
    for step in recordings::steps() {
        directory.step(&step);
        objects.step(&step);
        let expected = everything(&objects.cluster());
        assert_ne!(everything(&follower.state), expected, "{step} changes something");
        let said = follower.until(&step, |state| everything(state) == expected).await;
        assert!(said.len() <= 3, "{step} touches few objects: {said:?}");
    }
}
