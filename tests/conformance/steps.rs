//! Changes of objects one after the other, to one running ferrule; and a start with the objects as
//! they are after some of them.

use crate::node::{Node, Tools};
use crate::objects::{Objects, Step};
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder};
use crate::source::{Make, Source};

/// All steps, one after the other.
fn one_by_one(tools: Tools, make: Make) {
    let folder = folder(tools, "base");
    Node::run(tools, |node| {
        let source = make(node, &Objects::recorded(&["all.yaml"]));
        let mut proxy = Proxy::start(node, &config(&folder), &source);
        proxy.wait_for(&Rules::recorded(&folder));
        for step in Step::recorded() {
            source.take(&step);
            proxy.wait_for_step(&Rules::recorded(&folder.join("steps").join(&step.name)), &step.name);
        }
    });
}

/// Fresh starts with the objects as they are after some of the steps.
fn fresh(tools: Tools, make: Make) {
    let folder = folder(tools, "base");
    for last in [4, 8, 12] {
        Node::run(tools, |node| {
            let (objects, step) = objects_after(last);
            let source = make(node, &objects);
            let mut proxy = Proxy::start(node, &config(&folder), &source);
            proxy.wait_for_step(&Rules::recorded(&folder.join("steps").join(&step)), &step);
        });
    }
}

/// A cluster passes 1,000 endpoints, and comes back: the rules are those of a fresh start each
/// time. (kube-proxy would leave the comments of chains that do not change otherwise.)
fn growing_large(tools: Tools, make: Make) {
    let (base, large) = (folder(tools, "base"), folder(tools, "large"));
    let more = Objects::recorded(&["large-extra.yaml"]);
    let deleted = more.0.keys().cloned().collect();
    Node::run(tools, |node| {
        let source = make(node, &Objects::recorded(&["all.yaml"]));
        let mut proxy = Proxy::start(node, &config(&base), &source);
        proxy.wait_for(&Rules::recorded(&base));
        let grow = Step { name: "growing".to_owned(), applied: more, deleted: Vec::new() };
        source.take(&grow);
        proxy.wait_for_step(&Rules::recorded(&large), &grow.name);
        let shrink = Step { name: "shrinking".to_owned(), applied: Objects::default(), deleted };
        source.take(&shrink);
        proxy.wait_for_step(&Rules::recorded(&base), &shrink.name);
    });
}

/// The objects after step `last` (from 1), and its name.
pub fn objects_after(last: usize) -> (Objects, String) {
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
fn legacy_one_by_one_from_manifests() {
    one_by_one(Tools::Legacy, Source::folder);
}

#[test]
fn nft_one_by_one_from_manifests() {
    one_by_one(Tools::Nft, Source::folder);
}

#[test]
fn legacy_one_by_one_from_api() {
    one_by_one(Tools::Legacy, Source::api);
}

#[test]
fn nft_one_by_one_from_api() {
    one_by_one(Tools::Nft, Source::api);
}

#[test]
fn legacy_fresh_from_manifests() {
    fresh(Tools::Legacy, Source::folder);
}

#[test]
fn nft_fresh_from_manifests() {
    fresh(Tools::Nft, Source::folder);
}

#[test]
fn legacy_fresh_from_api() {
    fresh(Tools::Legacy, Source::api);
}

#[test]
fn nft_fresh_from_api() {
    fresh(Tools::Nft, Source::api);
}

#[test]
fn legacy_growing_large_from_manifests() {
    growing_large(Tools::Legacy, Source::folder);
}

#[test]
fn nft_growing_large_from_manifests() {
    growing_large(Tools::Nft, Source::folder);
}

#[test]
fn legacy_growing_large_from_api() {
    growing_large(Tools::Legacy, Source::api);
}

#[test]
fn nft_growing_large_from_api() {
    growing_large(Tools::Nft, Source::api);
}
