//! Which endpoint a connection goes to: evenly spread, to oneself, always to the same one, or to the
//! last ones left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::comparison::Comparison;
use crate::objects::{Endpoint, Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Detector, Layout, Proxy};
use crate::tools::Variant;
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Family, Namespace, Node, POD_PORT, World, eventually};

every_mode!(
    connections_are_spread_evenly,
    a_pod_reaches_itself,
    clients_stay_with_their_endpoint,
    the_last_endpoints_serve,
    zones_keep_to_themselves
);

fn cluster(service: &Service) -> SocketAddr {
    SocketAddr::new(service.cluster_ip, SERVICE_PORT)
}

fn node_port(world: &World, service: &Service) -> SocketAddr {
    SocketAddr::new(world.family().node(), service.node_port.unwrap())
}

/// How often each endpoint answered; anything but an answer is a failure. That was often enough for
/// all to answer that can.
#[track_caller]
fn counts(
    comparison: &mut Comparison<'_>,
    netns: &Namespace,
    call: Call,
    outcomes: &[Outcome],
) -> BTreeMap<String, usize> {
    comparison.asked_often(netns, call, outcomes);
    comparison.holds();
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let Outcome::Answer(answer) = outcome else { panic!("{call:?}: {outcome}") };
        *counts.entry(answer.endpoint.clone()).or_default() += 1;
    }
    counts
}

#[track_caller]
fn reached(comparison: &mut Comparison<'_>, netns: &Namespace, call: Call, times: usize) -> BTreeSet<String> {
    counts(comparison, netns, call, &call.repeat_in(netns, times)).into_keys().collect()
}

/// Where a client of a Service that remembers its clients is sent.
#[track_caller]
fn sent_to(comparison: &mut Comparison<'_>, netns: &Namespace, call: Call, times: usize) -> BTreeSet<String> {
    let reached = (0..times).map(|_| match comparison.ask(netns, call) {
        Outcome::Answer(answer) => answer.endpoint,
        other => panic!("{call:?}: {other}"),
    });
    let reached = reached.collect();
    comparison.holds();
    reached
}

fn connections_are_spread_evenly(case: Case) {
    const TIMES: usize = 600;
    // Chi-square with two degrees of freedom exceeds x with probability exp(-x/2): 1e-7 here.
    let bound = -2.0 * (1e-7_f64).ln();

    let world = case.world(Fabric::Bridge, 2, 2);
    let pods = ["a0", "b0", "b1"];
    let service = Service::new(&world, "spread", 1, &pods).outside(1);
    let _proxy = Proxy::start(&world, &Config::default(), &Objects::new([service.clone()]));
    let mut comparison = Comparison::begin(&world);
    for proto in Proto::SOCKETS {
        for (netns, to) in [(&world.client, node_port(&world, &service)), (&world.pod("a1").netns, cluster(&service))] {
            let call = Call::new(proto, to);
            let outcomes = call.repeat_in(netns, TIMES);
            let counts = counts(&mut comparison, netns, call, &outcomes);
            let mean = TIMES as f64 / pods.len() as f64;
            let square = |pod: &&str| (counts.get(*pod).copied().unwrap_or_default() as f64 - mean).powi(2) / mean;
            let evenly: f64 = pods.iter().map(square).sum();
            // The tracer reads the chances from the rules.
            let as_traced = comparison.chi_square(netns, call, &outcomes);
            assert!(
                evenly < bound && as_traced < bound,
                "{proto:?} {to}: {counts:?}, chi-square {evenly:.1}, {as_traced:.1} as traced, is not below {bound:.1}"
            );
        }
    }
}

fn a_pod_reaches_itself(case: Case) {
    let usual = [Detector::ClusterCidr, Detector::InterfacePrefix, Detector::None].map(|of| (of, Layout::USUAL));
    let elsewhere = (case.variant != Variant::Unused).then_some((Detector::ClusterCidr, Layout::COMPACT));
    for (detector, layout) in usual.into_iter().chain(elsewhere) {
        let world = case.world(detector.fabric(), 2, 1);
        let family = world.family();
        for pod in &world.pods {
            world.servers.listen(pod, Proto::Sctp, POD_PORT);
        }
        let protocols = vec![Proto::Tcp, Proto::Udp, Proto::Sctp];
        let service = Service { protocols, ..Service::new(&world, "self", 1, &["a0", "a1"]).outside(1) };
        let config = Config { detector, layout, ..Config::default() };
        let _proxy = Proxy::start(&world, &config, &Objects::new([service.clone()]));
        let mut comparison = Comparison::begin(&world);
        let me = world.pod("a0");
        for proto in &service.protocols {
            for (to, others_see) in [
                (cluster(&service), family.pod(Node::A, 0)),
                (node_port(&world, &service), world.masqueraded(world.pod("a1"))),
            ] {
                let call = Call::new(*proto, to);
                let outcomes = call.repeat_in(&me.netns, 40);
                comparison.asked_often(&me.netns, call, &outcomes);
                comparison.holds();
                let mut seen: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
                for outcome in outcomes {
                    let Outcome::Answer(answer) = outcome else {
                        panic!("{detector:?} {layout:?} {proto:?} {to}: {outcome}")
                    };
                    seen.entry(answer.endpoint).or_default().insert(answer.seen);
                }
                // Its own packets must come back as somebody else's, or it would answer itself directly.
                let want = BTreeMap::from([
                    ("a0".to_owned(), BTreeSet::from([world.masqueraded(me)])),
                    ("a1".to_owned(), BTreeSet::from([others_see])),
                ]);
                assert_eq!(seen, want, "{detector:?} {layout:?} {proto:?} {to}");
            }
        }
    }
}

fn clients_stay_with_their_endpoint(case: Case) {
    const SECONDS: u32 = 3;
    let world = case.world(Fabric::Bridge, 2, 2);
    let family = world.family();
    let sticky = |name, n, seconds| Service {
        affinity: Some(seconds),
        ..Service::new(&world, name, n, &["a0", "b0", "b1"]).outside(n as u8)
    };
    let (long, short) = (sticky("long", 1, 10_800), sticky("short", 2, SECONDS));
    let objects = Objects::new([long.clone(), short.clone()]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let mut comparison = Comparison::begin(&world);

    let homes: BTreeSet<String> = (0..3)
        .flat_map(|client| {
            Proto::SOCKETS.map(|proto| {
                let call = Call::new(proto, node_port(&world, &long)).from(family.client(client));
                let reached = sent_to(&mut comparison, &world.client, call, 20);
                assert_eq!(reached.len(), 1, "{proto:?} from client {client}: one endpoint every time");
                reached.into_iter().next().unwrap()
            })
        })
        .collect();
    // Affinity is per client, not one endpoint for all. Six choices of three are all the same once in
    // 243 times, which says nothing yet; other clients are asked until one goes elsewhere.
    if homes.len() == 1 {
        let pods = ["a1"].iter().map(|pod| &world.pod(pod).netns);
        let elsewhere = (0..200).any(|_| {
            // Forgets every client: what follows is a new choice.
            clear_recent(&world);
            let call = Call::new(Proto::Tcp, cluster(&long));
            pods.clone().any(|netns| !sent_to(&mut comparison, netns, call, 1).is_subset(&homes))
        });
        assert!(elsewhere, "every client is sent to {homes:?}");
    }

    // Through another address of the same Service the client stays where it is.
    for proto in Proto::SOCKETS {
        let home = sent_to(&mut comparison, &world.client, Call::new(proto, node_port(&world, &long)), 5);
        let elsewhere = SocketAddr::new(long.load_balancers[0], SERVICE_PORT);
        assert_eq!(sent_to(&mut comparison, &world.client, Call::new(proto, elsewhere), 5), home, "{proto:?}");
        assert_eq!(sent_to(&mut comparison, &world.client, Call::new(proto, cluster(&long)), 5), home, "{proto:?}");
    }

    // Also while the Service changes, as long as the endpoint is there …
    let call = Call::new(Proto::Tcp, cluster(&long));
    let home = sent_to(&mut comparison, &world.client, call, 5);
    let mut fewer = objects.clone();
    let leaves = ["a0", "b0", "b1"].into_iter().find(|pod| !home.contains(*pod)).unwrap();
    fewer.service("long").endpoints.retain(|endpoint| endpoint.ip != world.pod(leaves).ip(family));
    proxy.apply(&fewer);
    let mut comparison = Comparison::begin(&world);
    assert_eq!(sent_to(&mut comparison, &world.client, call, 20), home, "after {leaves} has left");
    // … and not longer.
    let home = home.into_iter().next().unwrap();
    fewer.service("long").endpoints.retain(|endpoint| endpoint.ip != world.pod(&home).ip(family));
    proxy.apply(&fewer);
    let mut comparison = Comparison::begin(&world);
    assert!(!sent_to(&mut comparison, &world.client, call, 20).contains(&home), "{home} has left");

    // A client that was away for longer than the timeout is a new one.
    let call = Call::new(Proto::Udp, node_port(&world, &short)).from(family.client(1));
    let first = sent_to(&mut comparison, &world.client, call, 10);
    assert_eq!(first.len(), 1);
    let start = Instant::now();
    eventually(Duration::from_secs(60), "another endpoint after the affinity has ended", || {
        // A try within the time would begin it anew, so this is a pause, not a poll.
        std::thread::sleep(Duration::from_millis(u64::from(SECONDS) * 1000 + 300));
        (sent_to(&mut comparison, &world.client, call, 1) != first).then_some(())
    });
    assert!(start.elapsed() >= Duration::from_secs(u64::from(SECONDS)));
}

/// Forgets what the `recent` match remembers of clients.
fn clear_recent(world: &World) {
    if world.tools.are_unused() {
        let ip = if world.family() == Family::V4 { "ip" } else { "ip6" };
        world.node.exec("nft", &["flush", "map", ip, "kube-proxy", "client-ip-endpoints"], "");
        return;
    }
    world.node.run(|| {
        let lists = std::fs::read_dir("/proc/thread-self/net/xt_recent").unwrap();
        for list in lists {
            std::fs::write(list.unwrap().path(), "/").unwrap();
        }
    });
}

fn the_last_endpoints_serve(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let family = world.family();
    let ready = |pod| Endpoint::ready(world.pod(pod), family);
    let with = |local: bool, endpoints: Vec<Endpoint>| {
        let service = Service::new(&world, "last", 1, &[]).outside(1);
        Objects::new([Service { internal_local: local, external_local: local, endpoints, ..service }])
    };
    let proxy = Proxy::start(&world, &Config::default(), &with(false, vec![ready("a0"), ready("b0")]));
    let outside = node_port(&world, &with(false, Vec::new()).services[0]);
    let inside = SocketAddr::new(family.cluster_ip(1), SERVICE_PORT);
    let check = |what: &str, objects: Objects, want_outside: &[&str], want_inside: &[&str]| {
        proxy.apply(&objects);
        let mut comparison = Comparison::begin(&world);
        for proto in Proto::SOCKETS {
            for (netns, to, want) in
                [(&world.client, outside, want_outside), (&world.pod("a2").netns, inside, want_inside)]
            {
                let got = reached(&mut comparison, netns, Call::new(proto, to), 30);
                assert_eq!(got, want.iter().map(|pod| (*pod).to_owned()).collect(), "{what}: {proto:?} {to}");
            }
        }
    };
    let both = ["a0", "b0"];
    check(
        "a leaving one is not used beside a ready one",
        with(false, vec![ready("a0").leaving(), ready("b0")]),
        &["b0"],
        &["b0"],
    );
    check(
        "when all are leaving, all are used",
        with(false, vec![ready("a0").leaving(), ready("b0").leaving()]),
        &both,
        &both,
    );
    check(
        "unready ones are never used",
        with(false, vec![ready("a0").unready(), ready("a1").leaving(), ready("b0").unready()]),
        &["a1"],
        &["a1"],
    );
    check(
        "Local: leaving local ones before nothing",
        with(true, vec![ready("a0").leaving(), ready("b0")]),
        &["a0"],
        &["a0"],
    );
    check(
        "Local: ready local ones first",
        with(true, vec![ready("a0").leaving(), ready("a1"), ready("b0")]),
        &["a1"],
        &["a1"],
    );

    // Local, and what is left serves elsewhere only: nobody is served here.
    proxy.apply(&with(true, vec![ready("a0").unready(), ready("b0").leaving()]));
    let mut comparison = Comparison::begin(&world);
    for proto in Proto::SOCKETS {
        for (netns, to) in [(&world.client, outside), (&world.pod("a2").netns, inside)] {
            let outcome = comparison.ask(netns, Call::new(proto, to).impatient());
            assert_eq!(outcome, Outcome::Silence, "{proto:?} {to}");
        }
    }
    comparison.holds();
}

fn zones_keep_to_themselves(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 2);
    let family = world.family();
    let hinted = |zones: [&'static str; 3]| {
        let service = Service::new(&world, "zones", 1, &[]).outside(1);
        let endpoints = ["a0", "b0", "b1"].into_iter().zip(zones).map(|(pod, zone)| Endpoint {
            for_zones: if zone.is_empty() { Vec::new() } else { vec![zone] },
            ..Endpoint::ready(world.pod(pod), family)
        });
        Objects::new([Service { endpoints: endpoints.collect(), ..service }])
    };
    let (here, there) = (Node::A.zone(), Node::B.zone());
    let proxy = Proxy::start(&world, &Config::default(), &hinted([here, there, there]));
    for (zones, want) in [
        ([here, there, there], vec!["a0"]),
        // Not of its own zone, but hinted for it: hints count, not where a pod is.
        ([there, here, here], vec!["b0", "b1"]),
        // One without a hint, or none for this zone: hints are ignored.
        ([here, there, ""], vec!["a0", "b0", "b1"]),
        ([there, there, there], vec!["a0", "b0", "b1"]),
    ] {
        let objects = hinted(zones);
        proxy.apply(&objects);
        let mut comparison = Comparison::begin(&world);
        for to in [cluster(&objects.services[0]), node_port(&world, &objects.services[0])] {
            let got = reached(&mut comparison, &world.client, Call::new(Proto::Tcp, to), 60);
            assert_eq!(got, want.iter().map(|pod| (*pod).to_owned()).collect(), "{zones:?} {to}");
        }
    }
}
