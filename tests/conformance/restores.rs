//! What `iptables-restore` is given: only what has to change.

use std::collections::{BTreeMap, BTreeSet};

use crate::node::{Node, Tools};
use crate::objects::{Objects, Step};
use crate::proxy::Proxy;
use crate::recording::{Rules, config, folder, read};
use crate::saved::{Chain, Tables};
use crate::source::Source;

/// Chains that belong to one Service.
const PER_SERVICE: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];

/// A Service without endpoints, in both families. Once its rules are there, a sync before it has
/// ended.
const MARKER: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: zz, name: marker}
spec:
  clusterIP: 10.96.200.1
  clusterIPs: [10.96.200.1, 'fd00:10:96::c801']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, protocol: TCP, port: 80}]
";

/// Rules with those of the marker.
fn with_marker(rules: &Rules) -> Rules {
    let mut rules = rules.clone();
    let add = |tables: &mut Tables, address: &str, icmp: &str| {
        let rule = format!(
            "-d {address} -p tcp -m comment --comment \"zz/marker:http has no endpoints\" -m tcp --dport 80 \
             -j REJECT --reject-with {icmp}-port-unreachable"
        );
        tables.append("filter", "KUBE-SERVICES", &rule);
    };
    add(&mut rules.v4, "10.96.200.1/32", "icmp");
    add(&mut rules.v6, "fd00:10:96::c801/128", "icmp6");
    rules
}

/// Chains that a restore's input touches: declares (which empties them), adds to, inserts into,
/// deletes from, flushes or removes. Jumps to them are something else.
fn touched(input: &str) -> impl Iterator<Item = &str> {
    input.lines().filter_map(|line| match line.strip_prefix(':') {
        Some(declared) => declared.split(' ').next(),
        None => line.strip_prefix('-')?.split(' ').nth(1),
    })
}

/// Those of them that belong to one Service.
fn services_touched(input: &str) -> BTreeSet<&str> {
    touched(input).filter(|chain| PER_SERVICE.iter().any(|prefix| chain.starts_with(prefix))).collect()
}

/// Starts a proxy over rules that are right, and expects it to write no chain of any Service.
fn check_left_alone(node: &Node, config: &str, recorded: &Rules) {
    let source = Source::folder(node, &Objects::recorded(&["all.yaml"]));
    node.log_restores();
    let mut proxy = Proxy::start(node, config, &source);
    // The rules are right from the beginning. That the first sync is over shows when changes made
    // after the start have arrived, and gone again.
    let marker = Objects::parse(MARKER);
    source.take(&Step { name: "marker".to_owned(), applied: marker.clone(), deleted: Vec::new() });
    proxy.wait_for_step(&with_marker(recorded), "the marker");
    let deleted = marker.0.into_keys().collect();
    source.take(&Step { name: "no marker".to_owned(), applied: Objects::default(), deleted });
    proxy.wait_for_step(recorded, "the marker went");

    let restores = node.restores();
    assert!(!restores.is_empty(), "the marker came without a restore");
    for (program, input) in restores {
        assert_eq!(services_touched(&input), BTreeSet::new(), "{program} was given\n{input}");
    }
}

/// Rules that a kube-proxy left.
fn takeover(tools: Tools) {
    let folder = folder(tools, "base");
    let recorded = Rules::recorded(&folder);
    Node::run(tools, |node| {
        node.restore(&recorded);
        check_left_alone(node, &config(&folder), &recorded);
    });
}

/// Rules that ferrule left. It leaves them when it ends.
fn restart(tools: Tools) {
    let folder = folder(tools, "base");
    let recorded = Rules::recorded(&folder);
    Node::run(tools, |node| {
        let source = Source::folder(node, &Objects::recorded(&["all.yaml"]));
        let mut proxy = Proxy::start(node, &config(&folder), &source);
        proxy.wait_for(&recorded);
        proxy.stop();
        assert_eq!(recorded.differences(&node.rules()), "", "after the end");
        check_left_alone(node, &config(&folder), &recorded);
    });
}

/// Each recorded step writes only chains of Services in which it changes a rule, shared chains
/// rule by rule, and nothing at all in a family that it does not concern. Tables are not read.
fn steps(tools: Tools) {
    let folder = folder(tools, "base");
    let mut before = Rules::recorded(&folder);
    // Not a second to wait after each sync.
    let config = config(&folder) + "iptables: {minSyncPeriod: 0s}\n";
    Node::run(tools, |node| {
        let source = Source::folder(node, &Objects::recorded(&["all.yaml"]));
        let mut proxy = Proxy::start(node, &config, &source);
        proxy.wait_for(&before);
        node.log_restores();
        let saved = node.dir().join("saved");
        for program in ["iptables-save", "ip6tables-save"] {
            node.wrap(program, &format!("echo {program} \"$@\" >>{}\nexec $real \"$@\"", saved.display()));
        }
        let mut seen = 0;
        for step in Step::recorded() {
            source.take(&step);
            let after = Rules::recorded(&folder.join("steps").join(&step.name));
            proxy.wait_for_step(&after, &step.name);
            let restores = node.restores();
            for (program, input) in &restores[seen..] {
                let (before, after) = match program.as_str() {
                    "iptables-restore" => (&before.v4, &after.v4),
                    _ => (&before.v6, &after.v6),
                };
                check_step(&step.name, before, after, input);
            }
            (before, seen) = (after, restores.len());
        }
        assert!(seen > 0, "twelve steps without a restore");
        assert!(!saved.exists(), "tables were read between the steps: {}", read(&saved));
    });
}

#[track_caller]
fn check_step(step: &str, before: &Tables, after: &Tables, input: &str) {
    assert!(before != after, "step {step} changes nothing in this family, but a restore was given\n{input}");
    let (before, after) = (nat(before), nat(after));
    for chain in services_touched(input) {
        assert!(before.get(chain) != after.get(chain), "step {step} does not change {chain}, but writes it:\n{input}");
    }
    // Declaring a chain empties it.
    let shared = |line: &&str| line.starts_with(":KUBE-") && services_touched(line).is_empty();
    let rewritten: Vec<&str> = input.lines().filter(shared).collect();
    assert!(rewritten.is_empty(), "step {step} rewrites shared chains: {rewritten:?}");
}

fn nat(tables: &Tables) -> &BTreeMap<String, Chain> {
    &tables.0["nat"]
}

#[test]
fn legacy_takeover_of_right_rules_writes_no_service() {
    takeover(Tools::Legacy);
}

#[test]
fn nft_takeover_of_right_rules_writes_no_service() {
    takeover(Tools::Nft);
}

#[test]
fn legacy_restart_writes_no_service() {
    restart(Tools::Legacy);
}

#[test]
fn nft_restart_writes_no_service() {
    restart(Tools::Nft);
}

#[test]
fn legacy_steps_write_what_changes() {
    steps(Tools::Legacy);
}

#[test]
fn nft_steps_write_what_changes() {
    steps(Tools::Nft);
}

#[test]
fn touched_chains_are_recognised() {
    let own = ":KUBE-SVC-A - [0:0]\n-A KUBE-SEP-A -j X\n-X KUBE-FW-A\n-D KUBE-EXT-A 1\n-F KUBE-SVL-A";
    let chains = ["KUBE-EXT-A", "KUBE-FW-A", "KUBE-SEP-A", "KUBE-SVC-A", "KUBE-SVL-A"];
    assert_eq!(services_touched(own), BTreeSet::from(chains));
    let others = "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-A\n-I KUBE-NODEPORTS 1 -j KUBE-EXT-A\n";
    assert_eq!(services_touched(others), BTreeSet::new());
    assert_eq!(touched(others).collect::<Vec<_>>(), ["KUBE-SERVICES", "KUBE-SERVICES", "KUBE-NODEPORTS"]);
}
