//! What `iptables-restore` is given: only what has to change.

use crate::node::{Node, Tools};
use crate::objects::Objects;
use crate::proxy::{Proxy, Source};
use crate::recording::{Rules, config, folder};
use crate::saved::Tables;

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

/// Lines of a restore's input that touch the chain of a Service: declare (which empties it), add
/// to, insert into, delete from, flush or remove it. Jumps to it are something else.
fn per_service_lines(input: &str) -> impl Iterator<Item = &str> {
    input.lines().filter(|line| {
        let chain = match line.strip_prefix(':') {
            Some(declared) => declared,
            None => line.strip_prefix('-').and_then(|line| line.split(' ').nth(1)).unwrap_or_default(),
        };
        PER_SERVICE.iter().any(|prefix| chain.starts_with(prefix))
    })
}

/// Taking over rules that are right already writes no chain of any Service.
fn right_rules_are_left_alone(tools: Tools) {
    let folder = folder(tools, "base");
    let recorded = Rules::recorded(&folder);
    Node::run(tools, |node| {
        let manifests = node.dir().join("manifests");
        Objects::recorded(&["all.yaml"]).write(&manifests);
        node.restore(&recorded);
        node.log_restores();
        let mut proxy = Proxy::start(node, &config(&folder), &Source::Manifests(vec![manifests.clone()]));
        // The rules are right from the beginning. That the first sync is over shows when changes
        // made after the start have arrived, and gone again.
        let marker = manifests.join("marker.yaml");
        std::fs::write(&marker, MARKER).expect("write a manifest");
        proxy.wait_for(&with_marker(&recorded));
        std::fs::remove_file(&marker).expect("remove a manifest");
        proxy.wait_for(&recorded);

        let restores = node.restores();
        assert!(!restores.is_empty(), "the marker came without a restore");
        for (program, input) in restores {
            let lines: Vec<&str> = per_service_lines(&input).collect();
            assert!(lines.is_empty(), "{program} wrote chains of Services:\n{}", lines.join("\n"));
        }
    });
}

#[test]
fn legacy_takeover_of_right_rules_writes_no_service() {
    right_rules_are_left_alone(Tools::Legacy);
}

#[test]
fn nft_takeover_of_right_rules_writes_no_service() {
    right_rules_are_left_alone(Tools::Nft);
}

#[test]
fn lines_of_services_are_recognised() {
    let own = ":KUBE-SVC-A - [0:0]\n-A KUBE-SEP-A -j X\n-X KUBE-FW-A\n-D KUBE-EXT-A 1\n-F KUBE-SVL-A";
    assert_eq!(per_service_lines(own).count(), 5);
    let others =
        "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-A\n-I KUBE-NODEPORTS 1 -j KUBE-EXT-A\nCOMMIT";
    assert_eq!(per_service_lines(others).count(), 0);
}
