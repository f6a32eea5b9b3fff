//! Real connections through virtual servers: from everywhere, to every kind of address, with every protocol; which
//! endpoints are reached, and whether they see the true source.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::kernel::{key, table};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Detector, Mode, Proxy};
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Family, Namespace, Node, POD_PORT, World};

families!(
    by_cluster_cidr,
    without_detector,
    masquerade_all,
    source_ranges,
    nothing_else_listens,
    clients_stay_with_their_endpoint,
    turn_by_turn,
);

const ALL: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A pod on node A.
    Pod,
    /// A pod on node B.
    RemotePod,
    /// Node A itself.
    Node,
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

fn by_cluster_cidr(case: Case) {
    check(case, Detector::ClusterCidr, false);
}

fn without_detector(case: Case) {
    check(case, Detector::None, false);
}

fn masquerade_all(case: Case) {
    check(case, Detector::ClusterCidr, true);
}

fn check(case: Case, detector: Detector, masquerade_all: bool) {
    let world = case.world(Fabric::Bridge, 2, 2);
    world.pods.iter().for_each(|pod| world.servers.listen(pod, Proto::Sctp, POD_PORT));
    let mut objects = Objects::default();
    for (n, (internal_local, external_local)) in (1..).zip([(false, false), (false, true), (true, false), (true, true)])
    {
        let service = Service::new(&world, &format!("s{n}"), n.into(), &["a0", "b0"]).outside(n);
        objects.services.push(Service { protocols: ALL.to_vec(), internal_local, external_local, ..service });
    }
    let config = Config { mode: Mode::IPVS, detector, masquerade_all, ..Config::default() };
    let _proxy = Proxy::start(&world, &config, &objects);
    for service in &objects.services {
        for proto in ALL {
            for source in [Source::Pod, Source::RemotePod, Source::Node, Source::Client] {
                for address in [Address::Cluster, Address::NodePort, Address::LoadBalancer, Address::External] {
                    cell(&world, &config, service, proto, source, address);
                }
            }
        }
    }
    // A pod gets its own packets back from somebody else, or it would answer itself directly.
    let own = &world.pod("a0").netns;
    for proto in ALL {
        let outcomes = Call::new(proto, at(&world, &objects.services[2], Address::Cluster)).repeat_in(own, 4);
        for outcome in outcomes {
            let Outcome::Answer(answer) = outcome else { panic!("{proto:?}: a pod to itself: {outcome}") };
            assert_eq!(
                (answer.endpoint.as_str(), answer.seen),
                ("a0", world.masqueraded(world.pod("a0"))),
                "{proto:?}"
            );
        }
    }
}

fn at(world: &World, service: &Service, address: Address) -> SocketAddr {
    match address {
        Address::Cluster => SocketAddr::new(service.cluster_ip, SERVICE_PORT),
        Address::LoadBalancer => SocketAddr::new(service.load_balancers[0], SERVICE_PORT),
        Address::External => SocketAddr::new(service.external_ips[0], SERVICE_PORT),
        Address::NodePort => SocketAddr::new(world.family().node(), service.node_port.unwrap()),
    }
}

/// Asks as often as it takes a round of both endpoints, and more often.
fn cell(world: &World, config: &Config, service: &Service, proto: Proto, source: Source, address: Address) {
    const TIMES: usize = 6;
    let family = world.family();
    let to = at(world, service, address);
    let (netns, home) = match source {
        Source::Pod => (&world.pod("a1").netns, family.pod(Node::A, 1)),
        Source::RemotePod => (&world.pod("b1").netns, family.pod(Node::B, 1)),
        // The address it connects to is its own, so it connects from there; not so with raw packets.
        Source::Node if address == Address::NodePort || proto == Proto::Sctp => (&world.node, to.ip()),
        Source::Node => (&world.node, to.ip()),
        Source::Client => (&world.client, family.client(0)),
    };
    let is_local = if address == Address::Cluster { service.internal_local } else { service.external_local };
    let is_pod = matches!(source, Source::Pod | Source::RemotePod);
    let masqueraded = match address {
        Address::Cluster if config.masquerade_all => true,
        Address::Cluster if config.detector == Detector::None => source == Source::Node,
        Address::Cluster => !is_pod,
        _ => !service.external_local,
    };
    // Between pods of node B, answers do not come through node A, which had changed the address.
    if source == Source::RemotePod && !masqueraded && !is_local {
        return;
    }
    let want: BTreeSet<&str> = if is_local { ["a0"].into() } else { ["a0", "b0"].into() };
    let what = format!("{source:?} -> {address:?} {to} of {} ({proto:?})", service.name);
    let mut got = BTreeSet::new();
    for outcome in Call::new(proto, to).repeat_in(netns, TIMES) {
        let Outcome::Answer(answer) = outcome else { panic!("{what}: {outcome}") };
        assert_eq!(answer.source, home, "{what}: sent from another address than the test thinks");
        let sees = if masqueraded { world.masqueraded(world.pod(&answer.endpoint)) } else { home };
        assert_eq!(answer.seen, sees, "{what}: {} saw another source", answer.endpoint);
        got.insert(answer.endpoint);
    }
    assert_eq!(got.iter().map(String::as_str).collect::<BTreeSet<_>>(), want, "{what}: the endpoints reached");
}

/// What the tool prints.
fn saved(world: &World) -> String {
    world.node.exec("ipvsadm", &["-Sn"], "")
}

fn only(ip: IpAddr, family: Family) -> String {
    format!("{ip}/{}", family.host_bits())
}

/// Who may use a load balancer. The Services differ in whether the node is among them.
fn source_ranges(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    world.pods.iter().for_each(|pod| world.servers.listen(pod, Proto::Sctp, POD_PORT));
    let family = world.family();
    let (first, second) = (family.client(0), family.client(1));
    let pod = family.pod(Node::A, 1);
    let ranges = |name, n: u8, ranges: Vec<String>| Service {
        source_ranges: ranges,
        protocols: ALL.to_vec(),
        ..Service::new(&world, name, n.into(), &["a0", "b0"]).outside(n)
    };
    let everybody = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    let (some, node) = (ranges("some", 1, vec![only(first, family), only(pod, family)]), only(family.node(), family));
    let nobody = Service { external_local: true, ..ranges("nobody", 4, vec![only(family.client(200), family)]) };
    let services = [some, ranges("node", 2, vec![node]), ranges("all", 3, vec![everybody.to_owned()]), nobody];
    let _proxy =
        Proxy::start(&world, &Config { mode: Mode::IPVS, ..Config::default() }, &Objects::new(services.clone()));
    let visitors: [(&Namespace, Option<IpAddr>, [bool; 4]); 5] = [
        (&world.client, Some(first), [true, false, true, false]),
        (&world.client, Some(second), [false, false, true, false]),
        (&world.pod("a1").netns, None, [true, false, true, false]),
        (&world.pod("a2").netns, None, [false, false, true, false]),
        (&world.node, None, [false, true, true, false]),
    ];
    for (n, service) in services.iter().enumerate() {
        for proto in ALL {
            for (netns, from, allowed) in visitors {
                let what = format!("{}: {proto:?} from {from:?} in {}", service.name, netns.name());
                let to = |address| Call { from, ..Call::new(proto, at(&world, service, address)) };
                let outcome = match allowed[n] {
                    true => to(Address::LoadBalancer).make_in(netns),
                    false => to(Address::LoadBalancer).impatient().make_in(netns),
                };
                assert_eq!(outcome.endpoint().is_some(), allowed[n], "{what}: {outcome}");
                // The ranges are about the load balancer's address only.
                if !service.external_local {
                    for address in [Address::NodePort, Address::External, Address::Cluster] {
                        let outcome = to(address).make_in(netns);
                        assert!(outcome.endpoint().is_some(), "{what}: {address:?}: {outcome}");
                    }
                }
            }
        }
    }
}

/// Addresses of virtual servers are the node's own, but what else listens there is not for everybody; and a virtual
/// server without real ones refuses.
fn nothing_else_listens(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let family = world.family();
    let service = Service::new(&world, "one", 1, &["a0"]).outside(1);
    let empty = Service::new(&world, "empty", 2, &[]).outside(2);
    let objects = Objects::new([service.clone(), empty.clone()]);
    let _proxy = Proxy::start(&world, &Config { mode: Mode::IPVS, ..Config::default() }, &objects);
    let any: IpAddr = match family {
        Family::V4 => [0; 4].into(),
        Family::V6 => [0; 16].into(),
    };
    let _listener = world.node.run(|| std::net::TcpListener::bind(SocketAddr::new(any, 22)).unwrap());
    let reaches = |ip| {
        let to = SocketAddr::new(ip, 22);
        let limit = std::time::Duration::from_secs(2);
        world.client.run(|| std::net::TcpStream::connect_timeout(&to, limit)).is_ok()
    };
    assert!(reaches(family.node()), "the node's own address");
    for ip in [service.cluster_ip, service.load_balancers[0], service.external_ips[0]] {
        assert!(!reaches(ip), "{ip} is a Service's");
    }
    for address in [Address::Cluster, Address::NodePort, Address::LoadBalancer, Address::External] {
        let outcome = Call::new(Proto::Tcp, at(&world, &empty, address)).impatient().make_in(&world.client);
        assert_eq!(outcome.endpoint(), None, "{address:?}: nobody is there: {outcome}");
    }
}

fn clients_stay_with_their_endpoint(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 2);
    world.pods.iter().for_each(|pod| world.servers.listen(pod, Proto::Sctp, POD_PORT));
    let service = Service::new(&world, "sticky", 1, &["a0", "a1", "b0", "b1"]).outside(1);
    let service = Service { affinity: Some(600), protocols: ALL.to_vec(), ..service };
    let objects = Objects::new([service.clone()]);
    let _proxy = Proxy::start(&world, &Config { mode: Mode::IPVS, ..Config::default() }, &objects);
    let line = format!("-A -t {} -s rr -p 600", SocketAddr::new(service.cluster_ip, SERVICE_PORT));
    assert!(saved(&world).contains(&line), "{}", saved(&world));
    let mut homes = BTreeSet::new();
    for proto in ALL {
        for client in 0..3 {
            let call = Call::new(proto, at(&world, &service, Address::NodePort)).from(world.family().client(client));
            let answers: BTreeSet<String> = (call.repeat_in(&world.client, 5).into_iter())
                .map(|outcome| outcome.endpoint().unwrap_or_else(|| panic!("{proto:?}: {outcome}")).to_owned())
                .collect();
            assert_eq!(answers.len(), 1, "{proto:?} client {client}: {answers:?}");
            homes.extend(answers);
        }
    }
    assert!(homes.len() > 1, "and not all with the same one");
}

/// `rr` means that, and another scheduler is the one that is configured, or none is started.
fn turn_by_turn(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let service = Service::new(&world, "turns", 1, &["a0", "a1", "b0"]);
    let objects = Objects::new([service.clone()]);
    let proxy = Proxy::start(&world, &Config { mode: Mode::IPVS, ..Config::default() }, &objects);
    let call = Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT));
    let outcomes = call.repeat_in(&world.client, 9);
    let answers: Vec<&str> = outcomes.iter().map(|outcome| outcome.endpoint().unwrap()).collect();
    for (one, next) in answers.iter().zip(&answers[3..]) {
        assert_eq!(one, next, "{answers:?}");
    }
    assert_eq!(answers[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{answers:?}");
    proxy.terminate();

    for scheduler in ["wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq", "fo", "ovf"] {
        let mode = Mode::Ipvs { scheduler, excluded: Vec::new() };
        let proxy = Proxy::start(&world, &Config { mode, ..Config::default() }, &objects);
        let server = &table(&world)[&key("TCP", service.cluster_ip, SERVICE_PORT)];
        assert_eq!(server.scheduler, scheduler, "it is changed while it stands");
        assert_eq!(saved(&world).contains("-s mh -b mh-port"), scheduler == "mh", "{}", saved(&world));
        let outcome = call.make_in(&world.client);
        assert!(outcome.endpoint().is_some(), "{scheduler}: {outcome}");
        proxy.terminate();
    }
    let mode = Mode::Ipvs { scheduler: "nosuch", excluded: Vec::new() };
    let proxy = Proxy::launch(&world, &Config { mode, ..Config::default() });
    assert!(!proxy.wait().success());
    let log = std::fs::read_to_string(world.log_path()).unwrap();
    assert!(log.contains("ip_vs_nosuch"), "the module is named: {}", log.lines().last().unwrap_or_default());
    assert!(call.make_in(&world.client).endpoint().is_some(), "what was there goes on");
}

/// What `ferrule demo` shows of this mode is as expected.
#[test]
fn the_demo() {
    crate::kernel::prepare();
    let demo =
        std::process::Command::new(crate::proxy::binary()).args(["demo", "--proxy-mode", "ipvs"]).output().unwrap();
    let shown = String::from_utf8_lossy(&demo.stdout);
    assert!(demo.status.success(), "{shown}\n{}", String::from_utf8_lossy(&demo.stderr));
    assert!(
        shown.contains("virtual servers (IPVS)") && shown.contains("connections went where they should"),
        "{shown}"
    );
}
