//! Small clusters, settings and packets made up at random: every type, policy, condition and hint
//! that rules depend on, in both families.
//!
//! No two Services claim the same address, port and protocol, nor the same node port: which of them
//! gets the traffic depends on the order of rules, which is free. Ports of endpoints are none of the
//! Services' own, and no endpoint sits behind a Service's address: a translated packet is looked at
//! by filter rules again, and would be taken for one to that other Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ferrule::backend::iptables::compile::Layout;
use ferrule::backend::iptables::names::ServiceChains;
use ferrule::model::{
    Conditions, Endpoint, EndpointSlice, Hints, Node, Service, ServiceName, ServicePort, ServicePortName, SlicePort,
};
use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings};
use ferrule::plan::{Backend, Listen, Plan};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::oracle::Remembered;
use crate::tracer::{Packet, Seen, World};

/// Addresses of the node's interfaces. The first of a family is usually the Node object's; the last
/// ones are also some Service's external address.
const OWN: [&str; 6] = ["172.31.99.2", "10.128.0.254", "198.18.0.1", "fd00:99::2", "fd00:10:128::fe", "fd00:18::1"];

/// Name of the node.
const NODE: &str = "n0";

/// Everything rules are made from.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) settings: Settings,
    pub(crate) node: Node,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
}

/// A packet in the making: what it is aimed at is chosen from a Plan.
#[derive(Clone, Debug)]
pub(crate) struct PacketSeed {
    target: Index,
    destination: Aim,
    port: Aim,
    protocol: Option<Protocol>,
    source: Index,
    interface: &'static str,
    remembered: Vec<(Index, u32)>,
}

/// A packet, and what its sender did before.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) packet: Packet,
    /// Where the Service remembers to have sent it.
    pub(crate) remembered: Remembered,
    /// The same, as rules remember it.
    pub(crate) seen: Seen,
}

/// Whether a packet goes where a Service is.
#[derive(Clone, Copy, Debug)]
enum Aim {
    Service,
    Elsewhere(Index),
}

/// At least so many cases; more if `PROPTEST_CASES` says so.
pub(crate) fn cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(1024), ..default }
}

/// The node as packets see it.
pub(crate) fn world() -> World {
    World { addresses: OWN.map(|ip| ip.parse().unwrap()).to_vec() }
}

/// Addresses of all interfaces, loopback included.
pub(crate) fn interface_addresses() -> Vec<IpAddr> {
    let loopback = [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()];
    world().addresses.into_iter().chain(loopback).collect()
}

// === clusters ===

/// Every layout of rules.
pub(crate) const LAYOUTS: [Layout; 4] = [
    Layout { bucketed_services: false, compact_endpoints: false },
    Layout { bucketed_services: true, compact_endpoints: false },
    Layout { bucketed_services: false, compact_endpoints: true },
    Layout { bucketed_services: true, compact_endpoints: true },
];

/// kube-proxy's layout mostly. Those with many chains take many times as long to follow.
pub(crate) fn layout() -> impl Strategy<Value = Layout> {
    let [usual, bucketed, compact, both] = LAYOUTS;
    prop_oneof![6 => Just(usual), 2 => Just(compact), 1 => Just(bucketed), 1 => Just(both)]
}

/// A cluster with up to so many Services.
pub(crate) fn input(services: usize) -> impl Strategy<Value = Input> {
    let named = |count: usize| (0..count).map(service_with_slices).collect::<Vec<_>>();
    (settings(), node(), (0..=services).prop_flat_map(named)).prop_map(|(settings, node, made)| {
        let (services, slices): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        Input { settings, node, services: services.into_iter().flatten().collect(), slices: slices.concat() }
    })
}

pub(crate) fn settings() -> impl Strategy<Value = Settings> {
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
    let node_ports = vec![
        NodePortSetting::Cidrs(Vec::new()),
        NodePortSetting::Primary,
        NodePortSetting::Cidrs(nets(&["172.31.99.0/24"])),
        NodePortSetting::Cidrs(nets(&["127.0.0.0/8", "10.128.0.0/16", "fd00:99::/64", "::1/128"])),
        NodePortSetting::Cidrs(nets(&["192.0.2.0/24"])),
        NodePortSetting::Cidrs(nets(&["172.31.99.0/24", "0.0.0.0/0"])),
    ];
    let detect = vec![
        DetectLocal::ClusterCidr(Vec::new()),
        DetectLocal::ClusterCidr(nets(&["10.128.0.0/9", "fd00:10:128::/48"])),
        DetectLocal::ClusterCidr(nets(&["0.0.0.0/0"])),
        DetectLocal::NodeCidr,
        DetectLocal::BridgeInterface("cni0".into()),
        DetectLocal::InterfaceNamePrefix("veth".into()),
    ];
    let bind = vec![None, Some("0.0.0.0".parse().unwrap()), Some("10.128.0.254".parse().unwrap())];
    let switches = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.8));
    (select(bind), switches, select(node_ports), select(detect)).prop_map(
        |(bind_address, (masquerade_all, localhost_node_ports, external_ips), node_port_addresses, detect_local)| {
            Settings {
                node_name: NODE.into(),
                bind_address,
                masquerade_all,
                localhost_node_ports,
                node_port_addresses,
                detect_local,
                external_ips,
                balancing: Balancing::Rules,
            }
        },
    )
}

pub(crate) fn node() -> impl Strategy<Value = Node> {
    let addresses = vec!["172.31.99.2".parse().unwrap(), "fd00:99::2".parse().unwrap()];
    let cidrs = vec!["10.128.0.0/24".parse().unwrap(), "fd00:10:128::/64".parse().unwrap()];
    (prop::option::of(Just("z0".into())), subsequence(addresses, 0..=2), subsequence(cidrs, 0..=2)).prop_map(
        |(zone, addresses, pod_cidrs)| Node { name: NODE.into(), zone, addresses, pod_cidrs, draining: false },
    )
}

/// The i-th Service, if it is there, and its slices, which may be there without it.
pub(crate) fn service_with_slices(i: usize) -> impl Strategy<Value = (Option<Service>, Vec<EndpointSlice>)> {
    let slice = |n| prop::option::weighted(0.7, slice(i, n));
    (prop::option::weighted(0.9, service(i)), slice(0), slice(1), slice(2))
        .prop_map(|(service, a, b, c)| (service, [a, b, c].into_iter().flatten().collect()))
}

/// The i-th Service as simple as can be, with so many endpoints elsewhere.
pub(crate) fn plain_service(i: usize, endpoints: u16) -> (Service, EndpointSlice) {
    let service = Service {
        name: name(i),
        cluster_ips: ips(&[&format!("10.96.{}.{}", i / 250, i % 250 + 1)]).into(),
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        external_policy_local: false,
        internal_policy_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    };
    let endpoint = |n: u16| Endpoint {
        ip: IpAddr::from([10, 129, n.to_be_bytes()[0], n.to_be_bytes()[1]]),
        conditions: Conditions { ready: true, serving: true, terminating: false },
        local: false,
        hints: None,
    };
    let slice = EndpointSlice {
        service: name(i),
        name: format!("s{i}-0").into(),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
        trigger_time: None,
        version: 0,
    };
    (service, slice)
}

fn service(i: usize) -> impl Strategy<Value = Service> {
    let k = i + 1;
    let cluster_ips: Vec<IpAddr> = ips(&[&format!("10.96.0.{k}"), &format!("fd00:96::{k}")]);
    // One of them is also a load balancer's; for the first Service they are the node's own.
    let shared = [format!("198.18.0.{k}"), format!("fd00:18::{k}")];
    let external = ips(&[&shared[0], &format!("198.18.1.{k}"), &shared[1]]);
    let balancer = ips(&[&format!("203.0.113.{k}"), &format!("203.0.114.{k}"), &format!("fd00:113::{k}"), &shared[0]]);
    let ranges: Vec<IpNet> =
        ["192.0.2.0/24", "172.31.0.0/16", "10.128.0.0/16", "203.0.113.0/24", "fd00:2::/64", "fd00:99::/64"]
            .map(|net| net.parse().unwrap())
            .to_vec();
    let sources = (subsequence(ranges, 0..=3), prop::bool::weighted(0.1)).prop_map(|(mut ranges, all)| {
        ranges.extend(all.then(|| "0.0.0.0/0".parse::<IpNet>().unwrap()));
        ranges
    });
    let external = (subsequence(external, 0..=3), prop::bool::weighted(0.2)).prop_map(|(mut ips, twice)| {
        ips.extend(ips.first().copied().filter(|_| twice));
        ips
    });
    let node_port = |n: usize| prop::option::of(Just(u16::try_from(30_000 + 10 * i + n).unwrap()));
    let ports =
        [("http", Protocol::Tcp, 80), ("dns", Protocol::Udp, 53), ("dns", Protocol::Tcp, 53), ("", Protocol::Sctp, 81)];
    let ports = subsequence(ports.to_vec(), 1..=3);
    (
        (subsequence(cluster_ips, 1..=2), ports, [node_port(0), node_port(1), node_port(2)]),
        (external, subsequence(balancer, 0..=3), sources),
        (any::<bool>(), any::<bool>(), prop::option::weighted(0.3, select(vec![10u32, 10_800]))),
        prop::option::of(Just(u16::try_from(32_000 + i).unwrap())),
    )
        .prop_map(move |((cluster_ips, ports, node_ports), addresses, policies, health_check)| {
            let (external_ips, load_balancer_ips, source_ranges) = addresses;
            let (external_policy_local, internal_policy_local, affinity_seconds) = policies;
            let ports = ports.into_iter().zip(node_ports);
            Service {
                name: name(i),
                cluster_ips: cluster_ips.into(),
                ports: ports
                    .map(|((name, protocol, port), node_port)| ServicePort {
                        name: name.into(),
                        protocol,
                        port,
                        node_port,
                    })
                    .collect(),
                external_ips: external_ips.into(),
                load_balancer_ips: load_balancer_ips.into(),
                source_ranges: source_ranges.into(),
                external_policy_local,
                internal_policy_local,
                affinity_seconds,
                health_check_node_port: health_check.filter(|_| external_policy_local),
            }
        })
}

fn slice(i: usize, n: usize) -> impl Strategy<Value = EndpointSlice> {
    let ports = [
        ("http", Protocol::Tcp, 8080),
        ("dns", Protocol::Udp, 8053),
        ("dns", Protocol::Tcp, 8053),
        ("", Protocol::Sctp, 8081),
        ("http", Protocol::Tcp, 8090),
    ];
    (select(IpFamily::BOTH.to_vec()), subsequence(ports.to_vec(), 2..=5)).prop_flat_map(move |(family, ports)| {
        prop::collection::vec(endpoint(family), 0..=4).prop_map(move |endpoints| EndpointSlice {
            service: name(i),
            name: format!("s{i}-{n}").into(),
            family,
            ports: ports
                .iter()
                .map(|(name, protocol, port)| SlicePort { name: (*name).into(), protocol: *protocol, port: *port })
                .collect(),
            endpoints: endpoints.into_iter().collect(),
            trigger_time: None,
            version: 0,
        })
    })
}

fn endpoint(family: IpFamily) -> impl Strategy<Value = Endpoint> {
    let names = |a, b| subsequence(vec![Box::from(a), Box::from(b)], 0..=2).prop_map(Into::into);
    let hints = (names("z0", "z1"), names("n0", "n1")).prop_map(|(zones, nodes)| Arc::new(Hints { zones, nodes }));
    let conditions = prop_oneof![
        3 => Just((true, true, false)),
        1 => (any::<bool>(), any::<bool>(), any::<bool>()),
        1 => Just((false, true, true)),
    ];
    let ip = select(pods(family));
    (ip, conditions, any::<bool>(), prop::option::weighted(0.6, hints)).prop_map(
        |(ip, (ready, serving, terminating), local, hints)| Endpoint {
            ip,
            conditions: Conditions { ready, serving, terminating },
            local,
            hints,
        },
    )
}

/// Addresses of endpoints: pods here and elsewhere, the node itself, and a host outside.
fn pods(family: IpFamily) -> Vec<IpAddr> {
    match family {
        IpFamily::V4 => ips(&["10.128.0.5", "10.128.0.10", "10.128.1.5", "10.128.1.50", "172.31.99.2", "192.0.2.9"]),
        IpFamily::V6 => ips(&["fd00:10:128::5", "fd00:10:128::a", "fd00:10:128:1::5", "fd00:99::2", "fd00:2::9"]),
    }
}

fn name(i: usize) -> ServiceName {
    ServiceName::new("ns", &format!("svc{i}"))
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|ip| ip.parse().unwrap()).collect()
}

// === packets ===

pub(crate) fn packet_seed() -> impl Strategy<Value = PacketSeed> {
    let aim = |weight| prop_oneof![weight => Just(Aim::Service), 1 => any::<Index>().prop_map(Aim::Elsewhere)];
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let remembered = prop::collection::vec((any::<Index>(), select(vec![5u32, 10, 100, 20_000])), 0..=2);
    (
        (any::<Index>(), aim(6), aim(10), prop::option::weighted(0.1, protocol)),
        (any::<Index>(), select(vec!["eth0", "cni0", "veth1a", "veth"])),
        remembered,
    )
        .prop_map(|((target, destination, port, protocol), (source, interface), remembered)| PacketSeed {
            target,
            destination,
            port,
            protocol,
            source,
            interface,
            remembered,
        })
}

impl PacketSeed {
    /// The packet.
    pub(crate) fn grow(&self, plan: &Plan) -> Sent {
        let family = plan.node.family;
        let of_family = |ips: Vec<IpAddr>| ips.into_iter().filter(|ip| IpFamily::of(*ip) == family).collect::<Vec<_>>();
        let own = of_family(interface_addresses().into_iter().chain(ips(&["127.0.0.9"])).collect());
        let targets: Vec<(&ServicePortName, Listen)> = plan
            .services()
            .iter()
            .flat_map(|(name, service)| service.frontends.iter().map(move |frontend| (name, frontend.listen)))
            .collect();
        let target = (!targets.is_empty()).then(|| targets[self.target.index(targets.len())]);
        let aimed = target.map(|(_, listen)| match listen {
            Listen::ClusterIp(ip, port) | Listen::ExternalIp(ip, port) | Listen::LoadBalancerIp(ip, port) => (ip, port),
            Listen::NodePort(port) => (own[self.source.index(own.len())], port),
        });
        let elsewhere =
            [own.clone(), pods(family), of_family(ips(&["8.8.8.8", "fd00:8::8", "10.96.0.200", "fd00:96::200"]))]
                .concat();
        let destination = match (self.destination, aimed) {
            (Aim::Service, Some((ip, _))) => ip,
            (Aim::Elsewhere(index), _) => elsewhere[index.index(elsewhere.len())],
            (Aim::Service, None) => elsewhere[0],
        };
        let ports: Vec<u16> = plan
            .services()
            .values()
            .filter_map(|service| Some(service.health_check.as_ref()?.node_port))
            .chain([80, 8080, 9])
            .collect();
        let port = match (self.port, aimed) {
            (Aim::Service, Some((_, port))) => port,
            (Aim::Elsewhere(index), _) => ports[index.index(ports.len())],
            (Aim::Service, None) => 80,
        };
        let vips: Vec<IpAddr> = targets
            .iter()
            .filter_map(|(_, listen)| match listen {
                Listen::LoadBalancerIp(ip, _) => Some(*ip),
                _ => None,
            })
            .collect();
        let clients =
            of_family(ips(&["192.0.2.7", "192.0.2.9", "198.51.100.7", "172.31.5.5", "fd00:2::7", "fd00:5::7"]));
        let sources = [pods(family), own, vips, clients].concat();
        let source = sources[self.source.index(sources.len())];
        // Own addresses are those of processes here; nothing else comes with them from outside.
        let interface = (!world().is_local(source)).then(|| self.interface.to_owned());
        let protocol = self.protocol.or(target.map(|(name, _)| name.protocol)).unwrap_or_default();
        // Elsewhere may be an address of another Service, which knows nothing of these clients.
        let at_service = matches!((self.destination, self.port), (Aim::Service, Aim::Service));
        let name = target.map(|(name, _)| name).filter(|name| at_service && name.protocol == protocol);
        let known = name.and_then(|name| plan.services().get(name)).map(|service| service.backends());
        let remembered: Remembered = match known.as_deref() {
            None | Some([]) => BTreeMap::new(),
            Some(known) => self.remembered.iter().map(|(index, age)| (known[index.index(known.len())], *age)).collect(),
        };
        let list = |backend: &Backend| name.map(|name| ServiceChains::new(name).endpoint(backend));
        let seen = remembered.iter().filter_map(|(backend, age)| Some((list(backend)?, *age))).collect();
        Sent { packet: Packet { protocol, interface, source, destination, port }, remembered, seen }
    }
}
