//! How many rules and bytes a full sync has, by the number of Services and of endpoints:
//! `tests/golden/sizes.txt`. Growth shows as a difference there.

use std::fmt::Write as _;
use std::path::Path;

use super::rendered::{check_file, render};

/// A kind of Service: its name, and what its spec and status have beyond those of a ClusterIP.
/// `{n}` is the number of the Service.
struct Shape {
    name: &'static str,
    spec: &'static str,
    status: &'static str,
}

const SHAPES: [Shape; 5] = [
    Shape { name: "ClusterIP", spec: "type: ClusterIP", status: "" },
    Shape {
        name: "ClusterIP, affinity",
        spec: "type: ClusterIP, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
        status: "",
    },
    Shape { name: "NodePort", spec: "type: NodePort", status: "" },
    Shape { name: "NodePort, Local", spec: "type: NodePort, externalTrafficPolicy: Local", status: "" },
    Shape {
        name: "LoadBalancer, 2 source ranges",
        spec: "type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.0/24, 198.51.100.0/24]",
        status: "loadBalancer: {ingress: [{ip: 203.0.113.{n}}]}",
    },
];

/// Services and endpoints of each, half of them on this node: three that give the formula, others
/// that must obey it. The last one is a large cluster (over 1,000 endpoints).
const SIZES: [(usize, usize); 6] = [(0, 0), (1, 2), (1, 4), (7, 6), (100, 10), (101, 10)];

/// A cluster of `services` Services with `endpoints` endpoints each, every second one on this node.
fn manifests(shape: &Shape, services: usize, endpoints: usize) -> String {
    let mut text = "{apiVersion: v1, kind: Node, metadata: {name: node-a}}\n".to_owned();
    for n in 1..=services {
        let spec = shape.spec.replace("{n}", &n.to_string());
        let status = shape.status.replace("{n}", &n.to_string());
        let node_port = if shape.spec.contains("type: ClusterIP") { 0 } else { 30000 + n };
        let _ = write!(
            text,
            "---\n\
             {{apiVersion: v1, kind: Service, metadata: {{namespace: shop, name: svc-{n:03}}}, spec: {{{spec}, \
             clusterIP: 10.96.0.{n}, ports: [{{name: http, port: 80, nodePort: {node_port}}}]}}, \
             status: {{{status}}}}}\n\
             ---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{namespace: shop, \
             name: svc-{n:03}-x, labels: {{kubernetes.io/service-name: svc-{n:03}}}}}, \
             ports: [{{name: http, port: 8080}}], endpoints: [",
        );
        for m in 1..=endpoints {
            let node = if m % 2 == 1 { "node-a" } else { "node-b" };
            let _ = write!(text, "{{addresses: [10.244.{n}.{m}], nodeName: {node}}}, ");
        }
        text.push_str("]}\n");
    }
    text
}

struct Size {
    rules: usize,
    chains: usize,
    bytes: usize,
}

fn size(shape: &Shape, services: usize, endpoints: usize, folder: &Path) -> Size {
    let (input, config) = (folder.join("input.yaml"), folder.join("config.yaml"));
    std::fs::write(&input, manifests(shape, services, endpoints)).expect("write manifests");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
        mode: iptables\nhostnameOverride: node-a\nclusterCIDR: 10.244.0.0/16\n";
    std::fs::write(&config, text).expect("write a configuration");
    let text = render(&input, &config, "IPv4");
    Size {
        rules: text.lines().filter(|line| line.starts_with("-A ") || line.starts_with("-I ")).count(),
        chains: text.lines().filter(|line| line.starts_with(':')).count(),
        bytes: text.len(),
    }
}

/// The number of rules as a formula in n and m, derived from the first sizes and true for all.
fn formula(rules: &[usize; 6]) -> String {
    let [none, two, four, ..] = *rules;
    let per_pair = four - two;
    let per_service = two - none - per_pair;
    for ((services, endpoints), rules) in SIZES.into_iter().zip(rules) {
        let expected = none + services * (per_service + per_pair * endpoints / 2);
        assert_eq!(*rules, expected, "{services} Services with {endpoints} endpoints each");
    }
    format!("rules = {none} + n x ({per_service} + {per_pair} x m/2)")
}

#[test]
fn rules_grow_as_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut table =
        "# A full sync in iptables mode, IPv4: n Services with m endpoints each, half of them on this node.\n\
        # Over 1,000 endpoints in all, rules carry fewer comments.\n"
            .to_owned();
    for shape in &SHAPES {
        let sizes = SIZES.map(|(services, endpoints)| size(shape, services, endpoints, folder.path()));
        let formula = formula(&sizes.each_ref().map(|size| size.rules));
        let _ = writeln!(table, "\n{}: {formula}", shape.name);
        let _ = writeln!(table, "{:>8} {:>9} {:>8} {:>8} {:>9}", "n", "m", "rules", "chains", "bytes");
        for ((services, endpoints), Size { rules, chains, bytes }) in SIZES.into_iter().zip(sizes) {
            let _ = writeln!(table, "{services:>8} {endpoints:>9} {rules:>8} {chains:>8} {bytes:>9}");
        }
    }
    check_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sizes.txt"), &table);
}
