//! nftables mode, whose tables are not kube-proxy's: what ferrule does with the tables and settings that one left, of each
//! recorded configuration. (What becomes of packets is for `tests/netns/`.)

use std::collections::BTreeSet;
use std::path::Path;

use crate::configurations::object_files;
use crate::node::{Node, Tools};
use crate::proxy::Proxy;
use crate::recording::{compare_settings, config, golden, read};
use crate::source::Source;

/// Starts ferrule in an empty kernel, and over what kube-proxy left: in the end there is the same. The settings of the
/// kernel are then those that were recorded.
#[track_caller]
fn check(case: &str) {
    let folder = golden().join(format!("nftables-{case}"));
    let files = object_files(case).iter().map(|file| golden().join("objects").join(file));
    let source = Source::Files(files.collect());
    let config = config(&folder);
    let mut fresh = BTreeSet::new();
    Node::run(Tools::Legacy, |node| {
        let mut proxy = Proxy::start(node, &config, &source);
        proxy.wait_until("all rules are in the kernel", || is_served(node));
        fresh = listed(node);
        settings_are(&folder);
    });
    let of_services = |tables: &BTreeSet<String>| tables.iter().filter(|line| line.contains("comment \"")).count();
    assert!(of_services(&fresh) > 200, "{case}: {} lines", of_services(&fresh));
    Node::run(Tools::Legacy, |node| {
        node.feed(node.command("nft").args(["-f", "-"]), &read(&folder.join("nft-list-ruleset.txt")));
        let left = listed(node);
        assert!(left.iter().any(|line| line.starts_with("chain service-")), "{case}: rules of kube-proxy");
        let mut proxy = Proxy::start(node, &config, &source);
        let difference = || {
            let now = listed(node);
            let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
            (only(&fresh, &now), only(&now, &fresh))
        };
        proxy.wait_until("there is what there is after a start in an empty kernel", || {
            difference() == (Vec::new(), Vec::new())
        });
    });
}

/// Whether both families are served.
fn is_served(node: &Node) -> bool {
    let log = read(&node.dir().join("ferrule.log"));
    log.matches("all rules are in the kernel").count() == 2
}

/// The lines of the tables of both families, whatever the order of elements.
fn listed(node: &Node) -> BTreeSet<String> {
    let output = node.command("nft").args(["list", "ruleset"]).output().expect("nft");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text").replace("elements = {", "").replace('}', ",");
    text.lines().map(|line| line.trim().trim_end_matches(',').to_owned()).collect()
}

/// The settings that a kube-proxy touches are those it left.
#[track_caller]
fn settings_are(folder: &Path) {
    let file = folder.join("sysctl.txt");
    if !file.exists() {
        return;
    }
    // In other modes it forwards, too: here the recorded node did so before.
    let touched = ["route_localnet", "tcp_be_liberal", "tcp_timeout_established", "tcp_timeout_close_wait"];
    let is_touched = |name: &str| touched.iter().any(|part| name.ends_with(part));
    let (compared, wrong) = compare_settings(&read(&file), is_touched);
    assert!(wrong.is_empty() && compared == 4, "{compared} compared: {wrong:#?}");
}

macro_rules! configurations {
    ($($case:ident)*) => {
        const CASES: &[&str] = &[$(stringify!($case)),*];

        $(#[test]
        fn $case() {
            check(stringify!($case));
        })*
    };
}

configurations! {
    base masqall nodetect npprimary npcidr ifprefix bridge nodecidr masqbit large
}

/// A configuration that is recorded later must not go unnoticed.
#[test]
fn every_recorded_configuration_is_taken_over() {
    let entries = std::fs::read_dir(golden()).expect("the recordings");
    let names = entries.map(|entry| entry.expect("a folder").file_name().to_string_lossy().into_owned());
    let recorded: BTreeSet<String> =
        names.filter_map(|name| Some(name.strip_prefix("nftables-")?.to_owned())).collect();
    assert_eq!(recorded, CASES.iter().map(|case| (*case).to_owned()).collect());
}
