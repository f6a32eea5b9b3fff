//! What is no Service's business goes its way as if there were no proxy.

use std::net::SocketAddr;

use crate::comparison::Comparison;
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Proxy};
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Node, POD_PORT, World};

matrix!(bridged, routed);

const CLOSED: u16 = 81;

fn bridged(case: Case) {
    check(case, Fabric::Bridge);
}

fn routed(case: Case) {
    check(case, Fabric::Routed);
}

fn check(case: Case, fabric: Fabric) {
    let world = case.world(fabric, 2, 2);
    let family = world.family();
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let _proxy = Proxy::start(&world, &Config::default(), &Objects::new([service.clone()]));
    let mut comparison = Comparison::begin(&world);
    for proto in Proto::SOCKETS {
        pods_are_reached_directly(&world, &mut comparison, proto);
    }
    let (client, node, pod) = (&world.client, &world.node, &world.pod("a1").netns);
    let node_port = service.node_port.unwrap();
    let refused = [
        // Ports on which nobody listens.
        (client, family.node(), CLOSED),
        (client, world.pod("a0").ip(family), CLOSED),
        (node, family.node(), CLOSED),
        (node, family.loopback(), CLOSED),
        (node, family.client(0), SERVICE_PORT),
        (pod, family.client(0), SERVICE_PORT),
        // A node port is one on the node's addresses only.
        (pod, family.client(0), node_port),
        (client, world.pod("a0").ip(family), node_port),
    ];
    // Nobody has these addresses, or this port of them.
    let silent = [
        (client, family.cluster_ip(7), SERVICE_PORT),
        (node, family.external(7), SERVICE_PORT),
        (pod, service.cluster_ip, CLOSED),
    ];
    let calls: Vec<_> = Proto::SOCKETS
        .into_iter()
        .flat_map(|proto| {
            let call = move |ip, port| Call::new(proto, SocketAddr::new(ip, port));
            let refused = refused.map(|(netns, ip, port)| (netns, call(ip, port)));
            let silent = silent.map(|(netns, ip, port)| (netns, call(ip, port).impatient()));
            refused.into_iter().chain(silent)
        })
        .collect();
    for ((netns, call), outcome) in calls.iter().zip(comparison.ask_at_once(&calls)) {
        let is_silent = silent.iter().any(|(_, ip, port)| call.to == SocketAddr::new(*ip, *port));
        let want = if is_silent { Outcome::Silence } else { Outcome::Refused };
        assert_eq!(outcome, want, "{:?} from {} to {}", call.proto, netns.name(), call.to);
    }
    comparison.holds();
}

fn pods_are_reached_directly(world: &World, comparison: &mut Comparison<'_>, proto: Proto) {
    let family = world.family();
    for to in ["a0", "b0"] {
        let to = world.pod(to);
        let sources = [
            (&world.client, family.client(0)),
            (&world.node, world.masqueraded(to)),
            (&world.pod("a1").netns, family.pod(Node::A, 1)),
        ];
        for (netns, source) in sources {
            let call = Call::new(proto, SocketAddr::new(to.ip(family), POD_PORT));
            let Outcome::Answer(answer) = comparison.ask(netns, call) else {
                panic!("{proto:?} from {} to {}: no answer", netns.name(), to.name)
            };
            let wrong = format!("{proto:?} from {} to {}", netns.name(), to.name);
            assert_eq!((answer.endpoint.as_str(), answer.seen), (to.name.as_str(), source), "{wrong}");
        }
    }
    comparison.holds();
}
