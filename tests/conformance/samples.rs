//! The tools themselves take what `tests/golden` says a first sync gives to them, and it makes the
//! same rules as a running ferrule.

use std::path::{Path, PathBuf};

use crate::node::{Node, Tools};
use crate::proxy::Proxy;
use crate::recording::{Rules, read};
use crate::source::Source;

/// The expected texts of both families, with the programs they are for.
const TEXTS: [(&str, &str); 2] =
    [("iptables-restore", "iptables-IPv4.txt"), ("ip6tables-restore", "iptables-IPv6.txt")];

/// The folders of all cases.
fn cases() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(&golden).expect("tests/golden");
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(cases.len() >= 12, "cases are missing: {cases:?}");
    cases
}

/// Gives the texts of one case to the tools, then runs a proxy on its objects.
fn check(node: &Node, case: &Path) -> Result<(), String> {
    node.restore(&Rules::empty());
    for (program, file) in TEXTS {
        node.offer(program, &["--test"], &read(&case.join(file)))?;
    }
    assert_eq!(Rules::empty().differences(&node.rules()), "", "--test changed something");
    for (program, file) in TEXTS {
        node.offer(program, &[], &read(&case.join(file)))?;
    }
    let rendered = node.rules();

    node.restore(&Rules::empty());
    let source = Source::Files(vec![case.join("input.yaml")]);
    // The limits of the connection table belong to the host, and cannot be set from in here.
    let config = read(&case.join("config.yaml")) + "conntrack: {maxPerCore: 0, min: 0}\noomScoreAdj: 0\n";
    let mut proxy = Proxy::start(node, &config, &source);
    proxy.wait_for_step(&rendered, &case.display().to_string());
    Ok(())
}

fn check_all(tools: Tools) {
    Node::run(tools, |node| {
        let refused: Vec<String> = cases()
            .iter()
            .filter_map(|case| check(node, case).err().map(|error| format!("{}: {error}", case.display())))
            .collect();
        assert!(refused.is_empty(), "{tools:?}:\n{}", refused.join("\n"));
    });
}

#[test]
fn legacy_tools_accept_the_samples() {
    check_all(Tools::Legacy);
}

#[test]
fn nft_tools_accept_the_samples() {
    check_all(Tools::Nft);
}

#[test]
fn bad_rules_are_refused() {
    for tools in Tools::ALL {
        Node::run(tools, |node| {
            let good = "*filter\n:KUBE-X - [0:0]\n-A KUBE-X -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n";
            let bad = good.replace("10.0.0.1/32", "10.0.0.1/33");
            let worse = good.replace("-j ACCEPT", "-j KUBE-NOT-THERE");
            assert_eq!(node.offer("iptables-restore", &["--test"], good), Ok(()));
            assert!(node.offer("iptables-restore", &["--test"], &bad).is_err());
            assert!(node.offer("iptables-restore", &[], &bad).is_err());
            assert!(node.offer("iptables-restore", &[], &worse).is_err());
        });
    }
}
