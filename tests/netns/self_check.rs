//! The world itself, with rules written by hand: that these tests can tell right from wrong.

use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Family, Node, POD_PORT, World};
use std::net::SocketAddr;

matrix!(packets_go_where_rules_send_them, routed_pods_reach_each_other);

const SERVICE: u16 = 80;

/// A load balancer over one pod, with or without masquerading.
fn forward(world: &World, proto: Proto, to: &str, options: &str) {
    let family = world.family();
    let (p, ip) = (proto.lower(), family.cluster_ip(1));
    let target = world.pod(to).address(family);
    let rules = format!(
        "*nat\n-A PREROUTING -d {ip} -p {p} -m {p} --dport {SERVICE} {options} -j DNAT --to-destination {target}\n\
         -A OUTPUT -d {ip} -p {p} -m {p} --dport {SERVICE} -j DNAT --to-destination {target}\nCOMMIT\n"
    );
    let restore = world.tools.real(family, "-restore");
    world.node.exec(&restore, &["--noflush"], &rules);
}

fn masquerade(world: &World) {
    let tool = world.tools.real(world.family(), "");
    world.node.exec(&tool, &["-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"], "");
}

fn answer(world: &World, from: &str, proto: Proto, to: SocketAddr) -> (String, std::net::IpAddr, std::net::IpAddr) {
    let netns = match from {
        "client" => &world.client,
        "node" => &world.node,
        pod => &world.pod(pod).netns,
    };
    match Call::new(proto, to).make_in(netns) {
        Outcome::Answer(answer) => (answer.endpoint, answer.seen, answer.source),
        other => panic!("{from} {proto:?} {to}: {other}"),
    }
}

fn packets_go_where_rules_send_them(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let service = SocketAddr::new(family.cluster_ip(1), SERVICE);
    for pod in &world.pods {
        world.servers.listen(pod, Proto::Sctp, POD_PORT);
    }
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        // Nobody knows the address yet, and the pod itself sees whoever asks it.
        let nobody = Call::new(proto, service).impatient().make_in(&world.client);
        assert_eq!(nobody, Outcome::Silence, "{proto:?}");
        for (from, source) in
            [("client", family.client(0)), ("b0", family.pod(Node::B, 0)), ("a1", family.pod(Node::A, 1))]
        {
            let (endpoint, seen, _) = answer(&world, from, proto, world.pod("a0").address(family));
            assert_eq!((endpoint.as_str(), seen), ("a0", source), "{proto:?}");
        }
        forward(&world, proto, "b0", "");
        assert_eq!(answer(&world, "client", proto, service).0, "b0", "{proto:?}");
        assert_eq!(answer(&world, "client", proto, service).1, family.client(0), "{proto:?}");
        assert_eq!(answer(&world, "a0", proto, service).1, family.pod(Node::A, 0), "{proto:?}");
        assert_eq!(answer(&world, "node", proto, service).1, family.node(), "{proto:?}");
        let refused = SocketAddr::new(family.cluster_ip(2), SERVICE);
        let (p, ip) = (proto.lower(), refused.ip());
        for chain in ["OUTPUT", "FORWARD"] {
            let rule = ["-A", chain, "-p", &p, "-d", &ip.to_string(), "-j", "REJECT"];
            world.node.exec(&world.tools.real(family, ""), &rule, "");
        }
        for netns in [&world.client, &world.node, &world.pod("a0").netns] {
            assert_eq!(Call::new(proto, refused).make_in(netns), Outcome::Refused, "{proto:?} {}", netns.name());
        }
    }
    masquerade(&world);
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        for from in ["client", "node", "a0"] {
            assert_eq!(answer(&world, from, proto, service).1, family.inner(Node::A), "{proto:?} from {from}");
        }
    }
    let other = family.client(2);
    let call = Call::new(Proto::Tcp, world.pod("a0").address(family)).from(other);
    assert_eq!(call.make_in(&world.client).endpoint(), Some("a0"));
}

fn routed_pods_reach_each_other(case: Case) {
    let world = case.world(Fabric::Routed, 2, 1);
    for family in Family::BOTH {
        for (from, to) in [("a0", "a1"), ("a0", "b0"), ("b0", "a1"), ("client", "a0"), ("node", "a1")] {
            for proto in Proto::SOCKETS {
                assert_eq!(
                    answer(&world, from, proto, world.pod(to).address(family)).0,
                    to,
                    "{from} to {to} {proto:?}"
                );
            }
        }
    }
}
