//! Every recorded configuration, from an empty kernel.

use std::collections::BTreeSet;

use crate::node::{Node, Tools};
use crate::objects::Objects;
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder, golden};
use crate::source::Source;

/// Files of `objects/` that the API server held in a configuration.
pub fn object_files(case: &str) -> &'static [&'static str] {
    match case {
        "large" => &["all.yaml", "large-extra.yaml"],
        _ => &["all.yaml"],
    }
}

/// From manifest files: the recorded ones, as they are.
fn from_manifests(tools: Tools, case: &str) {
    let folder = folder(tools, case);
    let files = object_files(case).iter().map(|file| golden().join("objects").join(file)).collect();
    Node::run(tools, |node| {
        let source = Source::Files(files);
        let mut proxy = Proxy::start(node, &config(&folder), &source);
        proxy.wait_for(&Rules::recorded(&folder));
    });
}

/// From an API server that holds the recorded objects.
fn from_api(tools: Tools, case: &str) {
    let folder = folder(tools, case);
    let objects = Objects::recorded(object_files(case));
    Node::run(tools, |node| {
        let server = Source::api(node, &objects);
        let mut proxy = Proxy::start(node, &config(&folder), &server);
        proxy.wait_for(&Rules::recorded(&folder));
    });
}

macro_rules! configurations {
    ($($case:ident)*) => {
        const CASES: &[&str] = &[$(stringify!($case)),*];

        $(mod $case {
            use super::*;

            #[test]
            fn legacy_from_manifests() {
                from_manifests(Tools::Legacy, stringify!($case));
            }

            #[test]
            fn nft_from_manifests() {
                from_manifests(Tools::Nft, stringify!($case));
            }

            #[test]
            fn legacy_from_api() {
                from_api(Tools::Legacy, stringify!($case));
            }

            #[test]
            fn nft_from_api() {
                from_api(Tools::Nft, stringify!($case));
            }
        })*
    };
}

configurations! {
    base masqall nodetect npprimary npcidr ifprefix bridge nodecidr nolocalhost masqbit large
}

/// A configuration that is recorded later must not go unnoticed.
#[test]
fn every_recorded_configuration_is_compared() {
    let entries = std::fs::read_dir(golden()).expect("the recordings");
    let names = entries.map(|entry| entry.expect("a folder").file_name().to_string_lossy().into_owned());
    let recorded: BTreeSet<String> = names
        .filter_map(|name| Some(name.strip_prefix("legacy-").or_else(|| name.strip_prefix("nft-"))?.to_owned()))
        .collect();
    assert_eq!(recorded, CASES.iter().map(|case| (*case).to_owned()).collect());
}
