//! Changes of objects one after the other, to one running ferrule; and a start with the objects as
//! they are after some of them.

use crate::node::{Node, Tools};
use crate::objects::{Objects, Step};
use crate::proxy::{Proxy, Source};
use crate::recording::{Rules, config, folder};

/// All steps, one after the other.
fn incremental_from_manifests(tools: Tools) {
    let folder = folder(tools, "base");
    Node::run(tools, |node| {
        let manifests = node.dir().join("manifests");
        Objects::recorded(&["all.yaml"]).write(&manifests);
        let mut proxy = Proxy::start(node, &config(&folder), &Source::Manifests(vec![manifests.clone()]));
        proxy.wait_for(&Rules::recorded(&folder));
        for step in Step::recorded() {
            step.write(&manifests);
            proxy.wait_for_step(&Rules::recorded(&folder.join("steps").join(&step.name)), &step.name);
        }
    });
}

/// A fresh start with the objects as they are after step `last`.
fn fresh_from_manifests(tools: Tools, last: usize) {
    let folder = folder(tools, "base");
    Node::run(tools, |node| {
        let manifests = node.dir().join("manifests");
        let (objects, step) = objects_after(last);
        objects.write(&manifests);
        let mut proxy = Proxy::start(node, &config(&folder), &Source::Manifests(vec![manifests]));
        proxy.wait_for_step(&Rules::recorded(&folder.join("steps").join(&step)), &step);
    });
}

/// The objects after step `last` (from 1), and its name.
fn objects_after(last: usize) -> (Objects, String) {
    let mut objects = Objects::recorded(&["all.yaml"]);
    let steps = Step::recorded();
    let taken = steps.get(..last).unwrap_or_else(|| panic!("{} steps are recorded", steps.len()));
    taken.iter().for_each(|step| objects.take(step));
    (objects, taken.last().expect("a step").name.clone())
}

#[test]
fn there_are_twelve_steps() {
    let names: Vec<String> = Step::recorded().into_iter().map(|step| step.name).collect();
    assert_eq!(names.len(), 12, "{names:?}");
}

#[test]
fn legacy_step_by_step_from_manifests() {
    incremental_from_manifests(Tools::Legacy);
}

#[test]
fn nft_step_by_step_from_manifests() {
    incremental_from_manifests(Tools::Nft);
}

#[test]
fn legacy_fresh_starts_in_between() {
    [4, 8, 12].into_iter().for_each(|last| fresh_from_manifests(Tools::Legacy, last));
}

#[test]
fn nft_fresh_starts_in_between() {
    [4, 8, 12].into_iter().for_each(|last| fresh_from_manifests(Tools::Nft, last));
}
