//! `--cleanup` ends where a real kube-proxy's ended, and leaves the rules of others alone.

use crate::node::{Node, Tools};
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder, golden};
use crate::source::Source;
use crate::takeover::{foreign, foreign_first};

/// Runs `ferrule --cleanup`: its exit code and log.
fn clean(node: &Node) -> (Option<i32>, String) {
    let output = node.command(env!("CARGO_BIN_EXE_ferrule")).args(["--cleanup", "-v=2"]).output().expect("run ferrule");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn check(node: &Node, expected: &Rules) {
    let (code, log) = clean(node);
    let differences = expected.differences(&node.rules());
    assert!(code == Some(0) && differences.is_empty(), "exit code {code:?}\n{differences}{log}");
}

#[test]
fn after_a_kube_proxy() {
    for tools in Tools::ALL {
        let base = folder(tools, "base");
        Node::run(tools, |node| {
            node.restore(&Rules::recorded(&base));
            let cleaned = Rules::recorded(&base.join("cleanup"));
            check(node, &cleaned);
            // Once more: there is nothing left to do, and that is no error.
            check(node, &cleaned);
        });
    }
}

#[test]
fn after_a_ferrule_that_took_over() {
    for tools in Tools::ALL {
        let base = folder(tools, "base");
        Node::run(tools, |node| {
            node.restore(&Rules::recorded(&base));
            let source = Source::Files(vec![golden().join("objects/all.yaml")]);
            let mut proxy = Proxy::start(node, &config(&base), &source);
            proxy.wait_for(&Rules::recorded(&base));
            drop(proxy);
            check(node, &Rules::recorded(&base.join("cleanup")));
        });
    }
}

#[test]
fn rules_of_others_stay() {
    for tools in Tools::ALL {
        let base = folder(tools, "base");
        Node::run(tools, |node| {
            node.restore(&Rules::recorded(&base).both(foreign).both(foreign_first));
            check(node, &Rules::recorded(&base.join("cleanup")).both(foreign).both(foreign_first));
        });
    }
}

#[test]
fn a_large_cluster() {
    for tools in Tools::ALL {
        Node::run(tools, |node| {
            node.restore(&Rules::recorded(&folder(tools, "large")));
            check(node, &Rules::recorded(&folder(tools, "base").join("cleanup")));
        });
    }
}

#[test]
fn no_tools_are_nothing_to_do() {
    Node::run(Tools::Legacy, |node| {
        let nothing = node.dir().join("nothing");
        std::fs::create_dir(&nothing).expect("a folder");
        let mut command = node.command(env!("CARGO_BIN_EXE_ferrule"));
        let output = command.env("PATH", nothing).arg("--cleanup").output().expect("run ferrule");
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{log}");
        assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    });
}
