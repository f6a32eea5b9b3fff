//! The tools themselves take what `tests/golden` says a first sync gives to them.

use std::path::Path;

use crate::node::{Node, Tools};
use crate::recording::read;

/// Every expected text, of both families.
fn check(tools: Tools) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(&golden).expect("tests/golden");
    let cases = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    Node::run(tools, |node| {
        let mut refused = Vec::new();
        let mut accepted = 0;
        for case in cases {
            for (program, family) in [("iptables-restore", "IPv4"), ("ip6tables-restore", "IPv6")] {
                let file = case.join(format!("iptables-{family}.txt"));
                match node.accepts(program, &read(&file)) {
                    Ok(()) => accepted += 1,
                    Err(error) => refused.push(format!("{}: {error}", file.display())),
                }
            }
        }
        assert!(refused.is_empty(), "{tools:?}:\n{}", refused.join("\n"));
        assert!(accepted >= 24, "{accepted} files only");
    });
}

#[test]
fn legacy_tools_accept_the_samples() {
    check(Tools::Legacy);
}

#[test]
fn nft_tools_accept_the_samples() {
    check(Tools::Nft);
}

#[test]
fn bad_rules_are_refused() {
    for tools in Tools::ALL {
        Node::run(tools, |node| {
            let good = "*filter\n:KUBE-X - [0:0]\n-A KUBE-X -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n";
            assert_eq!(node.accepts("iptables-restore", good), Ok(()));
            assert!(node.accepts("iptables-restore", &good.replace("10.0.0.1/32", "10.0.0.1/33")).is_err());
            assert!(node.accepts("iptables-restore", &good.replace("-j ACCEPT", "-j KUBE-NOT-THERE")).is_err());
        });
    }
}
