//! What kube-proxy's documentation of itself promises about traffic, as two tables: who answers,
//! by the state of the endpoints; and who sees whose address, by where a packet comes from.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ferrule::model::{Conditions, Endpoint, EndpointSlice, Hints, Node, Service, ServiceName, ServicePort, SlicePort};
use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings, node_plan};
use ferrule::plan::{Backend, Plan};

use crate::tracer::{Packet, Verdict, World};
use crate::{oracle, pipeline};

const NODE_IP: &str = "172.31.99.2";
const POD: &str = "10.128.0.99";
const CLIENT: &str = "192.0.2.7";
const CLUSTER_IP: &str = "10.96.0.1";
const EXTERNAL_IP: &str = "198.18.0.1";
const LB_IP: &str = "203.0.113.1";
const NODE_PORT: u16 = 30_080;

/// An endpoint of a table, by its letter: `R` ready, `T` not ready but serving and terminating, `U`
/// of no use; on this node if the letter is large, elsewhere if it is small.
fn endpoint(letter: char, at: usize, hints: Option<Arc<Hints>>) -> Endpoint {
    let (ready, serving, terminating) = match (letter.to_ascii_uppercase(), at % 3) {
        ('R', 0) => (true, true, false),
        // Published so for a Service that wants endpoints that are not ready.
        ('R', _) => (true, true, true),
        ('T', _) => (false, true, true),
        ('U', 0) => (false, true, false),
        ('U', 1) => (false, false, true),
        ('U', _) => (false, false, false),
        other => panic!("{other:?}"),
    };
    let conditions = Conditions { ready, serving, terminating };
    Endpoint { ip: address(letter, at), conditions, local: letter.is_ascii_uppercase(), hints }
}

fn address(letter: char, at: usize) -> IpAddr {
    IpAddr::from([10, 128, u8::from(letter.is_ascii_lowercase()), u8::try_from(at + 1).unwrap()])
}

struct Case {
    /// One letter for each endpoint.
    endpoints: &'static str,
    /// Nodes and zones hinted for each ready endpoint, if there are hints.
    hints: Option<fn(usize) -> Hints>,
    internal_local: bool,
    external_local: bool,
    /// `loadBalancerSourceRanges`
    ranges: &'static [&'static str],
    settings: Settings,
}

fn settings() -> Settings {
    Settings {
        node_name: "n0".into(),
        bind_address: None,
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortSetting::Cidrs(Vec::new()),
        detect_local: DetectLocal::ClusterCidr(vec!["10.128.0.0/9".parse().unwrap()]),
        external_ips: true,
        balancing: Balancing::Rules,
    }
}

impl Case {
    fn plan(&self) -> Plan {
        let name = ServiceName::new("ns", "svc");
        let service = Service {
            name: name.clone(),
            cluster_ips: [CLUSTER_IP.parse().unwrap()].into(),
            ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(NODE_PORT) }]
                .into(),
            external_ips: [EXTERNAL_IP.parse().unwrap()].into(),
            load_balancer_ips: [LB_IP.parse().unwrap()].into(),
            source_ranges: self.ranges.iter().map(|net| net.parse().unwrap()).collect(),
            external_policy_local: self.external_local,
            internal_policy_local: self.internal_local,
            affinity_seconds: None,
            health_check_node_port: None,
        };
        let hints = |at| self.hints.map(|hints| Arc::new(hints(at)));
        let endpoints = self.endpoints.chars().enumerate().map(|(at, letter)| endpoint(letter, at, hints(at)));
        let slice = EndpointSlice {
            service: name,
            name: "slice".into(),
            family: IpFamily::V4,
            ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
            endpoints: endpoints.collect(),
            trigger_time: None,
            version: 0,
        };
        let addresses = vec![NODE_IP.parse().unwrap()];
        let node = Node { name: "n0".into(), zone: Some("z0".into()), addresses, ..Node::default() };
        let state = pipeline::cluster(&node, &node.addresses, [service], [slice]);
        pipeline::plan(&state, &self.settings, IpFamily::V4)
    }

    /// What becomes of a packet from `source`: who may answer, and whether that one sees the node.
    fn ask(&self, source: &str, destination: &str, port: u16) -> String {
        let world = World { addresses: vec![NODE_IP.parse().unwrap()] };
        let source: IpAddr = source.parse().unwrap();
        let packet = Packet {
            protocol: Protocol::Tcp,
            interface: (!world.is_local(source)).then(|| "eth0".to_owned()),
            source,
            destination: destination.parse().unwrap(),
            port,
        };
        let verdicts = oracle::judge(&self.plan(), &world, &packet, &[].into());
        let mut answering = BTreeSet::new();
        let mut masqueraded = BTreeSet::new();
        for (verdict, _) in verdicts.iter() {
            match verdict {
                Verdict::Rejected => return "reject".into(),
                Verdict::Dropped => return "drop".into(),
                Verdict::Untouched { .. } => return "untouched".into(),
                Verdict::Delivered { backend, masqueraded: m, .. } => {
                    answering.insert(self.place(&backend));
                    masqueraded.insert(m);
                }
            }
        }
        assert_eq!(masqueraded.len(), 1);
        let places: Vec<String> = answering.iter().map(ToString::to_string).collect();
        let masquerade = if masqueraded.contains(&true) { " masq" } else { "" };
        format!("{}{masquerade}", places.concat())
    }

    /// The number of an endpoint among the letters.
    fn place(&self, backend: &Backend) -> usize {
        let mut letters = self.endpoints.chars().enumerate();
        letters.find(|(at, letter)| address(*letter, *at) == backend.ip).unwrap().0
    }
}

/// For endpoints in some state: who answers traffic to the cluster IP with the internal policy
/// Cluster and Local, from outside to external addresses with the external policy Cluster and
/// Local, and from this node's pods and processes to external addresses with the policy Local.
#[track_caller]
fn check_endpoints(endpoints: &'static str, hints: Option<fn(usize) -> Hints>, expected: [&str; 5]) {
    let case = |internal_local, external_local| Case {
        endpoints,
        hints,
        internal_local,
        external_local,
        ranges: &[],
        settings: settings(),
    };
    let who = |answer: String| answer.trim_end_matches(" masq").to_owned();
    let externals = [(EXTERNAL_IP, 80), (LB_IP, 80), (NODE_IP, NODE_PORT)];
    for other in [false, true] {
        // The other policy makes no difference.
        assert_eq!(who(case(false, other).ask(CLIENT, CLUSTER_IP, 80)), expected[0], "{endpoints}: internal Cluster");
        assert_eq!(who(case(true, other).ask(CLIENT, CLUSTER_IP, 80)), expected[1], "{endpoints}: internal Local");
        for (ip, port) in externals {
            let cluster = case(other, false).ask(CLIENT, ip, port);
            assert_eq!(who(cluster), expected[2], "{endpoints}: external Cluster, {ip}");
            let local = case(other, true).ask(CLIENT, ip, port);
            assert_eq!(who(local), expected[3], "{endpoints}: external Local, {ip}");
            let from_pod = case(other, true).ask(POD, ip, port);
            assert_eq!(who(from_pod), expected[4], "{endpoints}: external Local from a pod, {ip}");
        }
        let from_node = case(other, true).ask(NODE_IP, NODE_IP, NODE_PORT);
        assert_eq!(who(from_node), expected[4], "{endpoints}: external Local from the node");
    }
}

#[test]
fn who_answers() {
    let all = |endpoints, expected| check_endpoints(endpoints, None, expected);
    all("", ["reject"; 5]);
    all("UuU", ["reject"; 5]);
    all("uuu", ["reject"; 5]);
    // Ready ones, some of them here.
    all("RRrTtUu", ["012", "01", "012", "01", "012"]);
    all("R", ["0"; 5]);
    // Ready ones elsewhere, and nothing here that serves.
    all("rrtUu", ["01", "drop", "01", "drop", "01"]);
    all("rU", ["0", "drop", "0", "drop", "0"]);
    // Ready ones elsewhere, terminating ones here that still serve.
    all("rTTt", ["0", "12", "0", "12", "0"]);
    // None is ready.
    all("TTtU", ["012", "01", "012", "01", "012"]);
    all("ttUU", ["01", "drop", "01", "drop", "01"]);
}

fn hints(nodes: &[&str], zones: &[&str]) -> Hints {
    let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
    Hints { nodes: names(nodes), zones: names(zones) }
}

#[test]
fn hints_choose_among_ready_endpoints_that_may_be_anywhere() {
    // Every ready endpoint hinted for a zone: those of this zone. Local traffic cares for no hint.
    check_endpoints("Rrrt", Some(|at| hints(&[], &[["z0", "z1", "z0", "z1"][at]])), ["02", "0", "02", "0", "02"]);
    check_endpoints("RRr", Some(|at| hints(&[], &[["z1", "z1", "z0"][at]])), ["2", "01", "2", "01", "2"]);
    // None of this zone, or one without a hint: all.
    check_endpoints("Rrr", Some(|_| hints(&[], &["z1"])), ["012", "0", "012", "0", "012"]);
    check_endpoints("Rrr", Some(|at| hints(&[], [&["z0"][..], &[], &["z0"]][at])), ["012", "0", "012", "0", "012"]);
    // Nodes go before zones; where no endpoint is for this node, zones count.
    check_endpoints("Rrr", Some(|at| hints(&[["n1", "n0", "n2"][at]], &["z0"])), ["1", "0", "1", "0", "1"]);
    check_endpoints("Rrr", Some(|at| hints(&["n1"], &[["z0", "z1", "z1"][at]])), ["0", "0", "0", "0", "0"]);
    check_endpoints(
        "Rrr",
        Some(|at| hints([&["n0"][..], &[], &["n0"]][at], &["z0", "z1"])),
        ["012", "0", "012", "0", "012"],
    );
    // Terminating ones are a last resort, whatever their hints.
    check_endpoints("Tt", Some(|at| hints(&[], &[["z1", "z0"][at]])), ["01", "0", "01", "0", "01"]);
}

/// For a Service with an endpoint here (0) and one elsewhere (1): who answers, and who is
/// masqueraded, of what a pod, a process of this node (also by loopback), and a client send.
#[track_caller]
fn check_sources(settings: &Settings, local: bool, internal: [&str; 3], external: [&str; 4]) {
    // The other policy makes no difference.
    for other in [false, true] {
        let case = |internal_local, external_local| Case {
            endpoints: "Rr",
            hints: None,
            internal_local,
            external_local,
            ranges: &[],
            settings: settings.clone(),
        };
        for (source, expected) in [POD, NODE_IP, CLIENT].into_iter().zip(internal) {
            assert_eq!(case(local, other).ask(source, CLUSTER_IP, 80), expected, "cluster IP from {source}");
        }
        let [pod, node, loopback, client] = external;
        for (source, expected) in [(POD, pod), (NODE_IP, node), (CLIENT, client)] {
            for (ip, port) in [(EXTERNAL_IP, 80), (LB_IP, 80), (NODE_IP, NODE_PORT)] {
                assert_eq!(case(other, local).ask(source, ip, port), expected, "{ip} from {source}");
            }
        }
        assert_eq!(case(other, local).ask("127.0.0.1", "127.0.0.1", NODE_PORT), loopback, "node port on loopback");
    }
}

#[test]
fn who_is_masqueraded() {
    let plain = settings();
    check_sources(&plain, false, ["01", "01 masq", "01 masq"], ["01 masq"; 4]);
    check_sources(&plain, true, ["0", "0 masq", "0 masq"], ["01", "01 masq", "01 masq", "0"]);

    let everything = Settings { masquerade_all: true, ..settings() };
    check_sources(&everything, false, ["01 masq"; 3], ["01 masq"; 4]);
    check_sources(&everything, true, ["0 masq"; 3], ["01", "01 masq", "01 masq", "0"]);

    let blind = Settings { detect_local: DetectLocal::ClusterCidr(Vec::new()), ..settings() };
    check_sources(&blind, false, ["01"; 3], ["01 masq"; 4]);
    check_sources(&blind, true, ["0"; 3], ["0", "01 masq", "01 masq", "0"]);

    let both = Settings { masquerade_all: true, ..blind };
    check_sources(&both, false, ["01 masq"; 3], ["01 masq"; 4]);
    check_sources(&both, true, ["0 masq"; 3], ["0", "01 masq", "01 masq", "0"]);
}

#[test]
fn an_endpoint_sent_back_to_itself_is_masqueraded() {
    let case = Case {
        endpoints: "R",
        hints: None,
        internal_local: false,
        external_local: true,
        ranges: &[],
        settings: settings(),
    };
    let own = address('R', 0).to_string();
    assert_eq!(case.ask(&own, CLUSTER_IP, 80), "0 masq");
    assert_eq!(case.ask(&own, LB_IP, 80), "0 masq");
    assert_eq!(case.ask(POD, CLUSTER_IP, 80), "0");
}

#[test]
fn source_ranges_limit_load_balancer_addresses_alone() {
    let ask = |ranges, source| {
        let case = Case {
            endpoints: "r",
            hints: None,
            internal_local: false,
            external_local: false,
            ranges,
            settings: settings(),
        };
        for (ip, port) in [(EXTERNAL_IP, 80), (NODE_IP, NODE_PORT)] {
            assert_eq!(case.ask(source, ip, port), "0 masq", "{ip} from {source}");
        }
        case.ask(source, LB_IP, 80)
    };
    assert_eq!(ask(&["192.0.2.0/24"], CLIENT), "0 masq");
    assert_eq!(ask(&["198.51.100.0/24"], CLIENT), "drop");
    assert_eq!(ask(&["198.51.100.0/24"], POD), "drop");
    assert_eq!(ask(&["198.51.100.0/24"], NODE_IP), "drop");
    assert_eq!(ask(&["198.51.100.0/24", "192.0.2.0/24"], CLIENT), "0 masq");
    // Everybody, or only the other family's business.
    assert_eq!(ask(&["198.51.100.0/24", "0.0.0.0/0"], CLIENT), "0 masq");
    assert_eq!(ask(&["fd00:2::/64"], CLIENT), "0 masq");
    // Where the node may, its processes may also by the balancer's own address.
    assert_eq!(ask(&["172.31.99.0/24"], LB_IP), "0 masq");
    assert_eq!(ask(&["198.51.100.0/24"], LB_IP), "drop");
}

/// Routing for loopback addresses is opened only where node ports use it, and then the rule that guards
/// them is there, whatever the Node says.
#[test]
fn loopback_addresses_are_routed_only_where_node_ports_answer_there() {
    let nets = |nets: &[&str]| NodePortSetting::Cidrs(nets.iter().map(|net| net.parse().unwrap()).collect());
    for (node_port_addresses, routed) in [
        (nets(&[]), true),
        (nets(&["0.0.0.0/0"]), true),
        (nets(&["127.0.0.0/8"]), true),
        (nets(&["::1/128"]), true),
        (nets(&["10.0.0.0/8"]), false),
        (nets(&["10.0.0.0/8", "127.0.0.1/32"]), true),
        (NodePortSetting::Primary, false),
    ] {
        let settings = Settings { node_port_addresses, ..settings() };
        assert_eq!(settings.routes_localnet(), routed, "{:?}", settings.node_port_addresses);
        let guarded =
            |node: &Node| node_plan(IpFamily::V4, &settings, node, &[], &BTreeSet::new()).localhost_node_ports;
        let named = Node { addresses: vec![NODE_IP.parse().unwrap()], ..Node::default() };
        assert!(!routed || (guarded(&Node::default()) && guarded(&named)), "{:?}", settings.node_port_addresses);
        assert!(!Settings { localhost_node_ports: false, ..settings }.routes_localnet());
    }
}
