//! The acceptance table: for every source and every kind of address, which endpoints are reached,
//! and whether they see the true source.
//!
//! The Services have one endpoint on node A and one on node B. The table is written down here as it
//! stands in the specification; where a configuration changes a cell, the test says so.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::comparison::Comparison;
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Detector, Layout, Proxy};
use crate::traffic::{Answer, Call, Outcome, Proto};
use crate::world::{Case, Family, Namespace, Node, POD_PORT, World};

every_mode!(
    cluster_cidr,
    node_cidr,
    bridge_interface,
    interface_name_prefix,
    no_detector,
    masquerade_all,
    masquerade_all_without_detector,
);
matrix!(rules_elsewhere);

fn cluster_cidr(case: Case) {
    check(case, Detector::ClusterCidr, false, &Proto::SOCKETS);
}

fn node_cidr(case: Case) {
    check(case, Detector::NodeCidr, false, &Proto::SOCKETS);
}

fn bridge_interface(case: Case) {
    check(case, Detector::Bridge, false, &Proto::SOCKETS);
}

/// Also the one for SCTP: with UDP and TCP, all three protocols are on one port number.
fn interface_name_prefix(case: Case) {
    check(case, Detector::InterfacePrefix, false, &[Proto::Tcp, Proto::Udp, Proto::Sctp]);
}

fn no_detector(case: Case) {
    check(case, Detector::None, false, &Proto::SOCKETS);
}

fn masquerade_all(case: Case) {
    check(case, Detector::ClusterCidr, true, &Proto::SOCKETS);
}

fn masquerade_all_without_detector(case: Case) {
    check(case, Detector::None, true, &Proto::SOCKETS);
}

/// Where rules stand makes no difference.
fn rules_elsewhere(case: Case) {
    check_laid_out(case, Detector::ClusterCidr, false, &[Proto::Udp, Proto::Sctp], Layout::BOTH);
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A pod on node A.
    Pod,
    /// A pod on node B, whose packets come in from outside like anybody's.
    RemotePod,
    /// Node A itself.
    Node,
    /// Node A itself, by its loopback address.
    Loopback,
    /// Outside of the cluster.
    Client,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    Cluster,
    NodePort,
    LoadBalancer,
    External,
}

/// Which endpoints are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    All,
    LocalOnly,
}

/// A cell of the table.
type Cell = (Reach, bool);

/// A Service has both policies, so every combination of them is one Service.
struct Policies {
    internal_local: bool,
    external_local: bool,
}

fn check(case: Case, detector: Detector, masquerade_all: bool, protocols: &[Proto]) {
    check_laid_out(case, detector, masquerade_all, protocols, Layout::USUAL);
}

fn check_laid_out(case: Case, detector: Detector, masquerade_all: bool, protocols: &[Proto], layout: Layout) {
    let world = case.world(detector.fabric(), 2, 2);
    if protocols.contains(&Proto::Sctp) {
        world.pods.iter().for_each(|pod| world.servers.listen(pod, Proto::Sctp, POD_PORT));
    }
    let mut objects = Objects::default();
    let mut policies = Vec::new();
    for internal_local in [false, true] {
        for external_local in [false, true] {
            let n = 1 + u8::try_from(policies.len()).unwrap();
            let mut service = Service::new(&world, &format!("s{n}"), n.into(), &["a0", "b0"]).outside(n);
            service.protocols = protocols.to_vec();
            (service.internal_local, service.external_local) = (internal_local, external_local);
            objects.services.push(service);
            policies.push(Policies { internal_local, external_local });
        }
    }
    let config = Config { detector, masquerade_all, layout, ..Config::default() };
    let _proxy = Proxy::start(&world, &config, &objects);
    let mut comparison = Comparison::begin(&world);

    for proto in protocols {
        for (service, policies) in objects.services.iter().zip(&policies) {
            for source in [Source::Pod, Source::RemotePod, Source::Node, Source::Loopback, Source::Client] {
                for address in [Address::Cluster, Address::NodePort, Address::LoadBalancer, Address::External] {
                    let Some(cell) = expected(&world, detector, masquerade_all, policies, source, address) else {
                        continue;
                    };
                    cell_holds(&world, &mut comparison, service, *proto, (source, address), cell);
                }
                // What the tracer reads from the rules is the same.
                comparison.holds();
            }
        }
    }
}

/// The table of the specification, with its brackets. None where it has no cell, or where this
/// world's answer would not find the way back.
fn expected(
    world: &World,
    detector: Detector,
    masquerade_all: bool,
    policies: &Policies,
    source: Source,
    address: Address,
) -> Option<Cell> {
    let detected = detector != Detector::None;
    let reach = |local: bool| if local { Reach::LocalOnly } else { Reach::All };
    // "pod" in the table is what the detector takes for one.
    let row = match source {
        Source::RemotePod if detector == Detector::ClusterCidr => Source::Pod,
        Source::RemotePod => Source::Client,
        other => other,
    };
    let cell = match (row, address) {
        // In iptables mode alone.
        (Source::Loopback, Address::NodePort) if world.family() == Family::V4 && !world.tools.are_unused() => {
            (Reach::All, true)
        }
        (Source::Loopback, _) => return None,
        // Without a detector a pod is a source like any other, which is not masqueraded either.
        (Source::Pod, Address::Cluster) => (reach(policies.internal_local), masquerade_all),
        (_, Address::Cluster) => (reach(policies.internal_local), masquerade_all || detected),
        (_, _) if !policies.external_local => (Reach::All, true),
        (Source::Pod, _) if detected => (Reach::All, false),
        (Source::Pod, _) => (Reach::LocalOnly, false),
        (Source::Node, _) => (Reach::All, true),
        (_, _) => (Reach::LocalOnly, false),
    };
    // Between pods of node B, answers do not come through node A, which had changed the address.
    let way_back = source != Source::RemotePod || cell.1 || cell.0 == Reach::LocalOnly;
    way_back.then_some(cell)
}

/// Asks until all that should be reached have been, and often enough for others to show.
fn cell_holds(
    world: &World,
    comparison: &mut Comparison<'_>,
    service: &Service,
    proto: Proto,
    (source, address): (Source, Address),
    cell: Cell,
) {
    const AT_LEAST: usize = 10;
    // Two endpoints: one of them stays unseen by chance once in 2^63 times.
    const AT_MOST: usize = 64;

    let family = world.family();
    let netns: &Namespace = match source {
        Source::Pod => &world.pod("a1").netns,
        Source::RemotePod => &world.pod("b1").netns,
        Source::Node | Source::Loopback => &world.node,
        Source::Client => &world.client,
    };
    let to = match address {
        Address::Cluster => SocketAddr::new(service.cluster_ip, SERVICE_PORT),
        Address::LoadBalancer => SocketAddr::new(service.load_balancers[0], SERVICE_PORT),
        Address::External => SocketAddr::new(service.external_ips[0], SERVICE_PORT),
        Address::NodePort if source == Source::Loopback => {
            SocketAddr::new(family.loopback(), service.node_port.unwrap())
        }
        Address::NodePort => SocketAddr::new(family.node(), service.node_port.unwrap()),
    };
    let (reach, masqueraded) = cell;
    let want: BTreeSet<&str> = match reach {
        Reach::All => ["a0", "b0"].into(),
        Reach::LocalOnly => ["a0"].into(),
    };
    let what = format!(
        "{source:?} -> {address:?} {to} of {} ({proto:?}, internal {}, external {})",
        service.name,
        if service.internal_local { "Local" } else { "Cluster" },
        if service.external_local { "Local" } else { "Cluster" },
    );
    let truth = match source {
        Source::Pod => family.pod(Node::A, 1),
        Source::RemotePod => family.pod(Node::B, 1),
        Source::Node => family.node(),
        Source::Loopback => family.loopback(),
        Source::Client => family.client(0),
    };
    let call = Call::new(proto, to);
    let mut outcomes = Vec::new();
    let got: BTreeSet<String> = netns.run(|| {
        let mut got = BTreeSet::new();
        for round in 0..AT_MOST {
            if round >= AT_LEAST && got.len() >= want.len() {
                break;
            }
            let outcome = call.make();
            match &outcome {
                Outcome::Answer(answer) => {
                    assert_eq!(answer.source, truth, "{what}: sent from another address than the test thinks");
                    let seen = sees(world, answer, masqueraded, truth);
                    assert_eq!(answer.seen, seen, "{what}: {} saw another source", answer.endpoint);
                    got.insert(answer.endpoint.clone());
                }
                other => panic!("{what}: {other}"),
            }
            outcomes.push(outcome);
        }
        got
    });
    assert_eq!(got.iter().map(String::as_str).collect::<BTreeSet<_>>(), want, "{what}: the endpoints reached");
    comparison.asked_often(netns, call, &outcomes);
}

fn sees(world: &World, answer: &Answer, masqueraded: bool, truth: IpAddr) -> IpAddr {
    if masqueraded { world.masqueraded(world.pod(&answer.endpoint)) } else { truth }
}
