//! Who may come in where: source ranges of load balancers, addresses of node ports, the health
//! check port, the loopback address.

use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::comparison::{Comparison, Fate};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Proxy};
use crate::rules::packets;
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Family, Namespace, Node, World};

every_mode!(source_ranges, node_port_addresses);
matrix!(health_check_port_passes_the_firewall, rules_of_others_stay);

fn load_balancer(service: &Service) -> SocketAddr {
    SocketAddr::new(service.load_balancers[0], SERVICE_PORT)
}

fn only(ip: IpAddr, family: Family) -> String {
    format!("{ip}/{}", family.host_bits())
}

/// Where somebody asks, from which address, and whether they are let in.
type Visitor<'w> = (&'w Namespace, IpAddr, bool);

fn source_ranges(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let family = world.family();
    let ranges = |name, n: u8, ranges: Vec<String>| Service {
        source_ranges: ranges,
        ..Service::new(&world, name, n.into(), &["a0", "b0"]).outside(n)
    };
    let (first, second) = (family.client(0), family.client(1));
    let pod = family.pod(Node::A, 1);
    let services = [
        // A client and a pod, not the node.
        ranges("some", 1, vec![only(first, family), only(pod, family)]),
        // The node.
        ranges("node", 2, vec![only(family.node(), family)]),
        // Of the other family only, which is as good as none.
        ranges(
            "none",
            3,
            vec![match family {
                Family::V4 => "fd00:ffff::/64".to_owned(),
                Family::V6 => "192.0.2.0/24".to_owned(),
            }],
        ),
        // Somebody unknown, and also Local.
        Service { external_local: true, ..ranges("nobody", 4, vec![only(family.client(200), family)]) },
    ];
    let _proxy = Proxy::start(&world, &Config::default(), &Objects::new(services.clone()));
    let mut comparison = Comparison::begin(&world);
    let (client, node) = (&world.client, &world.node);
    let (allowed_pod, other_pod) = (&world.pod("a1").netns, &world.pod("a2").netns);
    let cases: [(&Service, [Visitor<'_>; 5]); 4] = [
        (
            &services[0],
            [
                (client, first, true),
                (client, second, false),
                (allowed_pod, pod, true),
                (other_pod, family.pod(Node::A, 2), false),
                (node, family.node(), false),
            ],
        ),
        (
            &services[1],
            [
                (client, first, false),
                (client, second, false),
                (allowed_pod, pod, false),
                (other_pod, family.pod(Node::A, 2), false),
                (node, family.node(), true),
            ],
        ),
        (
            &services[2],
            [
                (client, first, true),
                (client, second, true),
                (allowed_pod, pod, true),
                (other_pod, family.pod(Node::A, 2), true),
                (node, family.node(), true),
            ],
        ),
        (
            &services[3],
            [
                (client, first, false),
                (client, second, false),
                (allowed_pod, pod, false),
                (other_pod, family.pod(Node::A, 2), false),
                (node, family.node(), false),
            ],
        ),
    ];
    for (service, rows) in cases {
        for proto in Proto::SOCKETS {
            for (netns, from, allowed) in rows {
                let what = format!("{}: {proto:?} from {from} in {}", service.name, netns.name());
                let call = Call::new(proto, load_balancer(service)).from(from);
                if allowed {
                    let outcome = comparison.ask(netns, call);
                    assert!(outcome.endpoint().is_some(), "{what}: {outcome}");
                } else {
                    let text = format!("\"{} traffic not accepted", service.port(proto));
                    let dropped =
                        || if world.tools.are_unused() { None } else { Some(packets(&world, "filter", &text)) };
                    let before = dropped();
                    assert_eq!(comparison.ask(netns, call.impatient()), Outcome::Silence, "{what}");
                    assert!(dropped().is_none() || dropped() > before, "{what}: not dropped by the rule for it");
                }
                // The ranges are about the load balancer's address only.
                for to in [
                    SocketAddr::new(family.node(), service.node_port.unwrap()),
                    SocketAddr::new(service.external_ips[0], SERVICE_PORT),
                    SocketAddr::new(service.cluster_ip, SERVICE_PORT),
                ] {
                    let outcome = comparison.ask(netns, Call::new(proto, to).from(from));
                    assert!(outcome.endpoint().is_some(), "{what}: {to}: {outcome}");
                }
                comparison.holds();
            }
        }
    }
}

fn node_port_addresses(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let service = Service::new(&world, "port", 1, &["a0", "b0"]).outside(1);
    let objects = Objects::new([service.clone()]);
    let node_port = |ip| SocketAddr::new(ip, service.node_port.unwrap());
    let (outer, inner, gateway) = (family.node(), family.inner(Node::A), world.masqueraded(world.pod("a0")));
    let range = |ip: IpAddr| format!("{ip}/{}", family.link_bits());
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    // What is configured, and which addresses of the node then are open, the loopback address last.
    let v4 = family == Family::V4 && !world.tools.are_unused();
    let all = !world.tools.are_unused();
    let everything = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
    for (configured, localhost_node_ports, open) in [
        // Where nothing is said, it is all of them, but in nftables mode the node's own.
        (vec![], true, [true, all, all, v4]),
        (vec![], false, [true, all, all, false]),
        (vec![everything.to_owned()], false, [true, true, true, false]),
        (vec![range(outer)], true, [true, false, false, false]),
        (vec![range(inner), range(gateway)], true, [false, true, true, false]),
        (vec!["primary".to_owned()], true, [true, false, false, false]),
        (vec![loopback.to_owned()], true, [false, false, false, v4]),
        (vec![loopback.to_owned()], false, [false, false, false, false]),
    ] {
        let config = Config { node_port_addresses: configured.clone(), localhost_node_ports, ..Config::default() };
        let _proxy = Proxy::start(&world, &config, &objects);
        let mut comparison = Comparison::begin(&world);
        for proto in Proto::SOCKETS {
            for (ip, open) in [outer, inner, gateway, family.loopback()].into_iter().zip(open) {
                // From where the address can be reached.
                let netns = if ip.is_loopback() { &world.node } else { &world.client };
                let outcome = comparison.ask(netns, Call::new(proto, node_port(ip)));
                let good = if open { outcome.endpoint().is_some() } else { outcome == Outcome::Refused };
                assert!(
                    good,
                    "{configured:?}, localhost {localhost_node_ports}: {proto:?} {ip} is to be {}: {outcome}",
                    if open { "open" } else { "closed" }
                );
            }
            let outcome = comparison.ask(&world.client, Call::new(proto, load_balancer(&service)));
            assert!(
                outcome.endpoint().is_some(),
                "{configured:?}: load balancers have nothing to do with it: {outcome}"
            );
            comparison.holds();
        }
    }
}

fn health_check_port_passes_the_firewall(case: Case) {
    const PORT: u16 = 32_000;
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let tool = world.tools.real(family, "");
    // A node that lets in what it knows, and nothing else.
    let accept: &[&[&str]] = &[
        &["-A", "INPUT", "-i", "lo", "-j", "ACCEPT"],
        &["-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT"],
        &["-P", "INPUT", "DROP"],
    ];
    for args in accept {
        if family == Family::V6 || !args.contains(&"ipv6-icmp") {
            world.node.exec(&tool, args, "");
        }
    }
    let mut service = Service::new(&world, "health", 1, &["a0", "b0"]).outside(1);
    service.external_local = true;
    let mut objects = Objects::new([service]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let call = Call::new(Proto::Tcp, SocketAddr::new(family.node(), PORT)).impatient();
    // Also for the tracer, who says so of the packet that starts the connection.
    let silent = |call: Call, what: &str| {
        let mut comparison = Comparison::begin(&world);
        assert_eq!(comparison.ask(&world.client, call), Outcome::Silence, "{what}");
        comparison.holds();
    };
    silent(call, "the firewall is closed");
    objects.service("health").health_check_port = Some(PORT);
    proxy.apply(&objects);
    // Whoever listens there, or nobody: the packet reached the node's own sockets.
    let arrives = |netns: &Namespace| {
        let probe = Call::new(Proto::Tcp, SocketAddr::new(family.node(), PORT));
        netns.run(|| match probe.open() {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => true,
            Err(error) => {
                // Connected and waiting for a greeting that a health server does not send.
                let connected = std::net::TcpStream::connect_timeout(&probe.to, probe.patience).is_ok();
                assert!(connected, "the health check port is closed: {error}");
                true
            }
        })
    };
    assert!(arrives(&world.client));
    let expected = Comparison::begin(&world).expected(&world.client, call);
    assert_eq!(expected, [(Fate::Refused, 1.0)].into(), "as far as rules go, the node itself decides");
    let other = Call::new(Proto::Tcp, SocketAddr::new(family.node(), PORT + 1)).impatient();
    silent(other, "other ports stay closed");
    objects.service("health").health_check_port = None;
    proxy.apply(&objects);
    silent(call, "closed again");
}

/// What others have put into the built-in chains stays, before and after what ferrule adds; their own
/// chains too, and their traffic.
fn rules_of_others_stay(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let foreign = "*filter\n:MINE - [0:0]\n-A INPUT -p tcp -m tcp --dport 9 -j MINE\n-A FORWARD -j MINE\n-A MINE -p tcp -m tcp --dport 9 -j DROP\nCOMMIT\n\
                   *nat\n:MINE-NAT - [0:0]\n-A PREROUTING -p tcp -m tcp --dport 9999 -j MINE-NAT\n-A MINE-NAT -p tcp -j REDIRECT --to-ports 7777\nCOMMIT\n\
                   *mangle\n-A OUTPUT -p tcp -m tcp --dport 9 -j MARK --set-mark 1\nCOMMIT\n";
    world.node.exec(&world.tools.real(family, "-restore"), &["-w", "5", "--noflush"], foreign);
    let listener = world.node.run(|| TcpListener::bind(SocketAddr::new(family.node(), 7777)).unwrap());
    let objects = Objects::new([Service::new(&world, "one", 1, &["a0"]).outside(1)]);
    let saved = |world: &World| {
        let text = world.node.exec::<&str>(&world.tools.real(family, "-save"), &[], "");
        let ours = |line: &&str| !line.contains("KUBE-") && !line.starts_with('#') && !line.starts_with(':');
        text.lines().filter(ours).map(str::to_owned).collect::<Vec<_>>()
    };
    let without_headers =
        |lines: Vec<String>| lines.into_iter().filter(|line| line.starts_with("-A")).collect::<Vec<_>>();
    let before = without_headers(saved(&world));
    assert_eq!(before.len(), 6, "{before:?}");
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    assert_eq!(without_headers(saved(&world)), before);
    foreign_rules_are_traced(&world, &objects.services[0]);
    drop(proxy);
    assert_eq!(without_headers(saved(&world)), before);
    // And they still work.
    let to = SocketAddr::new(family.node(), 9999);
    let reached = world.client.run(|| std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(4)));
    assert!(reached.is_ok(), "{reached:?}");
    drop(listener);
}

/// The tracer goes through the rules of others as the packets do, and complains where it cannot read
/// one that a packet comes to.
fn foreign_rules_are_traced(world: &World, service: &Service) {
    let family = world.family();
    let mut comparison = Comparison::begin(world);
    let (client, node, pod) = (&world.client, &world.node, &world.pod("a1").netns);
    let closed = |ip| Call::new(Proto::Tcp, SocketAddr::new(ip, 9));
    for netns in [client, node, pod] {
        let outcome = comparison.ask(netns, Call::new(Proto::Tcp, load_balancer(service)));
        assert_eq!(outcome.endpoint(), Some("a0"), "{}: {outcome}", netns.name());
    }
    for (netns, to) in [(client, family.node()), (client, world.pod("a0").ip(family)), (pod, family.client(0))] {
        assert_eq!(comparison.ask(netns, closed(to).impatient()), Outcome::Silence, "{} {to}", netns.name());
    }
    assert_eq!(comparison.ask(node, closed(family.client(0))), Outcome::Refused, "only marked, which means nothing");
    comparison.holds();

    let redirected = Call::new(Proto::Tcp, SocketAddr::new(family.node(), 9999));
    comparison.ask(client, redirected.impatient());
    let differences = comparison.differences();
    let complains = |what: &String| what.contains("cannot trace") && what.contains("REDIRECT --to-ports 7777");
    assert!(differences.iter().any(complains), "{differences:#?}");
}
