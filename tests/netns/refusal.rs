//! Where there is no endpoint: refused at once, or silence, and never anything else.

use std::net::{IpAddr, SocketAddr};

use crate::comparison::Comparison;
use crate::objects::{Endpoint, NAMESPACE, Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Proxy};
use crate::rules::packets;
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Namespace, POD_PORT, World};

every_mode!(no_endpoints_anywhere_is_refused, no_local_endpoints_is_silence);

const ALL: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

/// Addresses of a Service by which others than pods and nodes come.
fn outside(world: &World, service: &Service) -> [SocketAddr; 3] {
    [
        SocketAddr::new(world.family().node(), service.node_port.unwrap()),
        SocketAddr::new(service.load_balancers[0], SERVICE_PORT),
        SocketAddr::new(service.external_ips[0], SERVICE_PORT),
    ]
}

fn inside(service: &Service) -> SocketAddr {
    SocketAddr::new(service.cluster_ip, SERVICE_PORT)
}

/// Makes many calls at once, which must all end alike, and as the tracer says.
#[track_caller]
fn all_end(comparison: &mut Comparison<'_>, calls: &[(&Namespace, Call)], want: &Outcome) {
    let outcomes = comparison.ask_at_once(calls);
    let wrong = calls.iter().zip(outcomes).filter(|(_, outcome)| outcome != want);
    let wrong: Vec<String> = wrong
        .map(|((netns, call), outcome)| format!("{} {:?} {}: {outcome}", netns.name(), call.proto, call.to))
        .collect();
    assert!(wrong.is_empty(), "should have been {want}:\n{}", wrong.join("\n"));
    comparison.holds();
}

fn no_endpoints_anywhere_is_refused(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let unready = |service: Service| Service {
        endpoints: vec![Endpoint::ready(world.pod("a0"), family).unready()],
        protocols: ALL.to_vec(),
        ..service
    };
    // Without any endpoint; with one that is not ready; and with policies that make no difference.
    let mut services = vec![
        Service { protocols: ALL.to_vec(), ..Service::new(&world, "none", 1, &[]).outside(1) },
        unready(Service::new(&world, "unready", 2, &[]).outside(2)),
        Service {
            internal_local: true,
            external_local: true,
            ..unready(Service::new(&world, "unready-local", 3, &[]).outside(3))
        },
    ];
    let proxy = Proxy::start(&world, &Config::default(), &Objects::new(services.clone()));
    let mut comparison = Comparison::begin(&world);
    // Apart, or the refusal of one could be taken for that of another.
    for netns in [&world.client, &world.node, &world.pod("a1").netns, &world.pod("b0").netns] {
        let (mut refused, mut leaving) = (Vec::new(), Vec::new());
        for service in &services {
            for proto in ALL {
                let [node_port, rest @ ..] = outside(&world, service);
                refused.extend([node_port, inside(service)].map(|to| (netns, Call::new(proto, to))));
                // What the node itself sends to its outside addresses leaves it as if there were no
                // Service: kube-proxy has no rule for it either.
                if netns.name() == world.node.name() && !world.tools.are_unused() {
                    leaving.extend(rest.map(|to| (netns, Call::new(proto, to).impatient())));
                } else {
                    refused.extend(rest.map(|to| (netns, Call::new(proto, to))));
                }
            }
        }
        all_end(&mut comparison, &refused, &Outcome::Refused);
        all_end(&mut comparison, &leaving, &Outcome::Silence);
    }

    // With the first endpoint it ends.
    services[0].endpoints.push(Endpoint::ready(world.pod("a0"), family));
    proxy.apply(&Objects::new(services.clone()));
    let mut comparison = Comparison::begin(&world);
    for to in outside(&world, &services[0]).into_iter().chain([inside(&services[0])]) {
        for proto in Proto::SOCKETS {
            let outcome = comparison.ask(&world.client, Call::new(proto, to));
            assert_eq!(outcome.endpoint(), Some("a0"), "{proto:?} {to}: {outcome}");
        }
    }
    comparison.holds();
}

fn no_local_endpoints_is_silence(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    for pod in &world.pods {
        world.servers.listen(pod, Proto::Sctp, POD_PORT);
    }
    let service =
        |name, n| Service { protocols: ALL.to_vec(), ..Service::new(&world, name, n, &["b0"]).outside(n as u8) };
    let external = Service { external_local: true, ..service("external", 1) };
    let internal = Service { internal_local: true, ..service("internal", 2) };
    let objects = Objects::new([external.clone(), internal.clone()]);
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    let mut comparison = Comparison::begin(&world);

    let pod = &world.pod("a1").netns;
    let mut silent = Vec::new();
    for proto in ALL {
        // Externally Local: silence for those outside, …
        for to in outside(&world, &external) {
            silent.push((&world.client, Call::new(proto, to).impatient()));
            // … but pods and processes of the node are served as if it were not Local.
            for netns in [&world.node, pod] {
                let outcome = comparison.ask(netns, Call::new(proto, to));
                assert_eq!(outcome.endpoint(), Some("b0"), "{} {proto:?} {to}: {outcome}", netns.name());
            }
        }
        // Internally Local: silence for everybody on the cluster IP, and only there.
        for netns in [&world.client, &world.node, pod] {
            silent.push((netns, Call::new(proto, inside(&internal)).impatient()));
            for to in outside(&world, &internal) {
                let outcome = comparison.ask(netns, Call::new(proto, to));
                assert_eq!(outcome.endpoint(), Some("b0"), "{} {proto:?} {to}: {outcome}", netns.name());
            }
        }
        let outcome = comparison.ask(&world.client, Call::new(proto, inside(&external)));
        assert_eq!(outcome.endpoint(), Some("b0"), "{proto:?}: {outcome}");
    }
    comparison.holds();
    // There are no counters in nftables mode.
    let counts = !world.tools.are_unused();
    let dropped =
        |service: &str| if counts { packets(&world, "filter", &format!("\"{NAMESPACE}/{service}:")) } else { 0 };
    let before = (dropped("external"), dropped("internal"));
    assert_eq!(before, (0, 0), "nothing has been dropped so far");
    all_end(&mut comparison, &silent, &Outcome::Silence);
    // Silence is a rule that drops, not a packet that found no way.
    assert!(!counts || dropped("external") >= 9, "{} packets dropped", dropped("external"));
    assert!(!counts || dropped("internal") >= 9, "{} packets dropped", dropped("internal"));
    // Not a connection of the client was let through to the node's own servers, if it had any.
    let node: IpAddr = world.family().node();
    let closed = comparison.ask(&world.client, Call::new(Proto::Tcp, SocketAddr::new(node, 31_999)));
    assert_eq!(closed, Outcome::Refused, "a port of no Service is the node's own affair");
    comparison.holds();
}
