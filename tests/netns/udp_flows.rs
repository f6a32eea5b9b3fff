//! UDP clients that keep their source port: after a change, the next datagram goes where the rules
//! say, or nowhere, and not where the kernel's connection tracking remembers; all other flows stay.
//!
//! Endpoints that leave a Service go on answering here, so that whoever is still sent to them shows.

use std::net::SocketAddr;

use crate::objects::{Endpoint, NODE_PORT_BASE, Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Proxy, write};
use crate::traffic::{Call, Datagrams, Outcome, Proto, Stream, Tracked, tracked};
use crate::world::{Case, Fabric, Namespace, POD_PORT, World, eventually};

matrix!(
    an_endpoint_goes,
    the_last_endpoint_goes,
    a_service_and_its_addresses_go,
    before_there_were_rules,
    left_from_before_a_restart,
    others_are_left_alone,
);

/// A Service that changes its endpoint whenever somebody wants to know that all flows were looked at.
const SENTINEL: &str = "zz-sentinel";
const SENTINEL_PODS: [&str; 2] = ["a0", "b0"];

/// One flow through each kind of frontend, and through the cluster IP from a pod and from the node.
struct Flows<'w> {
    world: &'w World,
    all: Vec<(&'static str, Datagrams)>,
}

/// A world whose node A remembers flows for long, and counts their packets.
fn world(case: Case) -> World {
    let world = case.world(Fabric::Bridge, 3, 2);
    world.node.sysctl(&[
        ("net/netfilter/nf_conntrack_acct", "1"),
        ("net/netfilter/nf_conntrack_udp_timeout", "600"),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", "600"),
        ("net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", "600"),
        ("net/netfilter/nf_conntrack_sctp_timeout_cookie_echoed", "600"),
    ]);
    world
}

/// A Service with UDP on every kind of frontend.
fn dns(world: &World, pods: &[&str]) -> Service {
    Service { protocols: vec![Proto::Udp], ..Service::new(world, "dns", 1, pods).outside(1) }
}

fn ready(world: &World, pods: &[&str]) -> Vec<Endpoint> {
    pods.iter().map(|pod| Endpoint::ready(world.pod(pod), world.family())).collect()
}

fn at(world: &World, pod: &str, port: u16) -> SocketAddr {
    SocketAddr::new(world.pod(pod).ip(world.family()), port)
}

// === impl Flows ===

impl<'w> Flows<'w> {
    /// None has sent anything yet.
    fn open(world: &'w World, service: &Service) -> Flows<'w> {
        let to = |ip| SocketAddr::new(ip, SERVICE_PORT);
        let node_port = SocketAddr::new(world.family().node(), service.node_port.unwrap());
        let all = [
            ("cluster IP from a pod", &world.pod("a2").netns, to(service.cluster_ip)),
            ("cluster IP from the node", &world.node, to(service.cluster_ip)),
            ("load balancer", &world.client, to(service.load_balancers[0])),
            ("external IP", &world.client, to(service.external_ips[0])),
            ("node port", &world.client, node_port),
        ];
        let all = all.map(|(what, netns, to): (_, &Namespace, _)| (what, Datagrams::open(netns, to)));
        Flows { world, all: all.into() }
    }

    /// Each asks, and this pod answers.
    #[track_caller]
    fn reach(&self, pod: &str, when: &str) {
        for (what, flow) in &self.all {
            let outcome = flow.ask();
            assert_eq!(outcome.endpoint(), Some(pod), "{when}: {what}: {outcome}");
        }
    }

    /// Each asks, and gets no answer.
    #[track_caller]
    fn reach_nobody(&self, outcomes: &[Outcome], when: &str) {
        for (what, flow) in &self.all {
            let outcome = flow.knock();
            assert!(outcomes.contains(&outcome), "{when}: {what}: {outcome}");
        }
    }

    /// Waits until node A remembers none of them. Nobody sends meanwhile.
    #[track_caller]
    fn gone(&self, when: &str) {
        for (what, flow) in &self.all {
            eventually(LONG, &format!("{when}: {what}: the flow is forgotten"), || {
                flow.tracked(&self.world.node).is_none().then_some(())
            });
        }
    }

    /// What node A remembers of them, in order.
    fn tracked(&self) -> Vec<Option<Tracked>> {
        self.all.iter().map(|(_, flow)| flow.tracked(&self.world.node)).collect()
    }
}

/// Writes objects, and makes sure that all flows have been looked at after that, and the look has ended.
fn looked_at(world: &World, objects: &Objects) {
    let sentinel = |pod: &str| Service { protocols: vec![Proto::Udp], ..Service::new(world, SENTINEL, 999, &[pod]) };
    // In the second round the first change is in the kernel; in the third the second look is over.
    let mut flow: Option<Datagrams> = None;
    for pod in SENTINEL_PODS.into_iter().cycle().take(4) {
        let mut all = objects.clone();
        all.services.push(sentinel(pod));
        write(world, &all);
        if let Some(flow) = &flow {
            eventually(LONG, "the sentinel's flow is forgotten", || flow.tracked(&world.node).is_none().then_some(()));
        }
        let to = SocketAddr::new(sentinel(pod).cluster_ip, SERVICE_PORT);
        let next = flow.take().unwrap_or_else(|| Datagrams::open(&world.pod("a2").netns, to));
        eventually(LONG, "the sentinel answers", || (next.knock().endpoint() == Some(pod)).then_some(()));
        flow = Some(next);
    }
}

fn an_endpoint_goes(case: Case) {
    let world = world(case);
    let mut objects = Objects::new([dns(&world, &["a0"])]);
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    let flows = Flows::open(&world, &objects.services[0]);
    flows.reach("a0", "at first");

    objects.service("dns").endpoints = ready(&world, &["b0"]);
    write(&world, &objects);
    flows.gone("removed");
    flows.reach("b0", "another endpoint instead");

    let unready = Endpoint::ready(world.pod("b0"), case.family).unready();
    objects.service("dns").endpoints = [vec![unready], ready(&world, &["a1"])].concat();
    write(&world, &objects);
    flows.gone("unready");
    flows.reach("a1", "the only one that is ready");

    // The pod goes on answering at its old port.
    world.servers.listen(world.pod("a1"), Proto::Udp, POD_PORT + 1);
    objects.service("dns").target_port = POD_PORT + 1;
    objects.service("dns").endpoints = ready(&world, &["a1"]);
    write(&world, &objects);
    flows.gone("another port");
    flows.reach("a1", "at its new port");
    for tracked in flows.tracked() {
        assert_eq!(tracked.unwrap().endpoint, at(&world, "a1", POD_PORT + 1));
    }
}

fn the_last_endpoint_goes(case: Case) {
    let world = world(case);
    let mut objects = Objects::new([dns(&world, &["a0", "b0"])]);
    objects.service("dns").endpoints.pop();
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    let flows = Flows::open(&world, &objects.services[0]);
    flows.reach("a0", "at first");

    objects.service("dns").endpoints.clear();
    write(&world, &objects);
    flows.gone("no endpoint left");
    flows.reach_nobody(&[Outcome::Refused], "no endpoint left");

    objects.service("dns").endpoints = ready(&world, &["b0"]);
    let marker = write(&world, &objects);
    _proxy.settled(&marker);
    flows.reach("b0", "an endpoint again");
}

fn a_service_and_its_addresses_go(case: Case) {
    let world = world(case);
    let mut objects = Objects::new([dns(&world, &["a0"])]);
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    let mut flows = Flows::open(&world, &objects.services[0]);
    flows.reach("a0", "at first");

    // What is left is a Service with a cluster IP.
    let inside = flows.all.drain(..2).collect::<Vec<_>>();
    let outside = Flows { world: &world, all: std::mem::take(&mut flows.all) };
    let inside = Flows { world: &world, all: inside };
    let before = inside.tracked();
    let service = objects.service("dns");
    (service.node_port, service.load_balancers, service.external_ips) = (None, Vec::new(), Vec::new());
    write(&world, &objects);
    outside.gone("withdrawn");
    outside.reach_nobody(&[Outcome::Refused, Outcome::Silence], "withdrawn");
    looked_at(&world, &objects);
    assert_eq!(inside.tracked(), before, "the cluster IP was not withdrawn");
    inside.reach("a0", "the cluster IP was not withdrawn");

    objects.services.clear();
    write(&world, &objects);
    inside.gone("deleted");
    inside.reach_nobody(&[Outcome::Refused, Outcome::Silence], "deleted");
}

/// Flows that no rule has seen: to be forgotten, but not before there is somewhere to go.
fn before_there_were_rules(case: Case) {
    let world = world(case);
    let mut objects = Objects::default();
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let mut service = dns(&world, &[]);
    let flows = Flows::open(&world, &service);
    flows.reach_nobody(&[Outcome::Refused, Outcome::Silence], "no Service yet");
    let untranslated = flows.tracked();
    for ((what, flow), tracked) in flows.all.iter().zip(&untranslated) {
        assert_eq!(tracked.unwrap().endpoint, flow.to, "{what}: not translated");
    }

    objects.services.push(service.clone());
    proxy.apply(&objects);
    looked_at(&world, &objects);
    assert_eq!(flows.tracked(), untranslated, "there is no endpoint yet");

    service.endpoints = ready(&world, &["a0"]);
    objects.services = vec![service];
    write(&world, &objects);
    flows.gone("an endpoint");
    flows.reach("a0", "an endpoint");
}

fn left_from_before_a_restart(case: Case) {
    let world = world(case);
    let mut objects = Objects::new([dns(&world, &["a0"]), Service::new(&world, "other", 2, &["a0"])]);
    let other = SocketAddr::new(objects.services[1].cluster_ip, SERVICE_PORT);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let flows = Flows::open(&world, &objects.services[0]);
    let other = Datagrams::open(&world.pod("a2").netns, other);
    flows.reach("a0", "at first");
    other.ask();
    let before = other.tracked(&world.node).unwrap();

    proxy.terminate();
    objects.service("dns").endpoints = ready(&world, &["b0"]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    flows.gone("changed while no proxy ran");
    flows.reach("b0", "changed while no proxy ran");
    assert_eq!(other.tracked(&world.node), Some(before), "it is as it was");

    proxy.crash();
    objects.service("dns").endpoints.clear();
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    flows.gone("no endpoint left while no proxy ran");
    flows.reach_nobody(&[Outcome::Refused], "no endpoint left while no proxy ran");
    assert_eq!(other.tracked(&world.node), Some(before), "it is as it was");
}

fn others_are_left_alone(case: Case) {
    let world = world(case);
    let family = case.family;
    for pod in ["a0", "b0"] {
        world.servers.listen(world.pod(pod), Proto::Sctp, POD_PORT);
    }
    let mut objects = Objects::new([
        Service {
            protocols: vec![Proto::Udp, Proto::Tcp, Proto::Sctp],
            ..Service::new(&world, "dns", 1, &["a0"]).outside(1)
        },
        Service { protocols: vec![Proto::Udp], ..Service::new(&world, "other", 2, &["a0"]).outside(2) },
        Service { protocols: vec![Proto::Udp], ..Service::new(&world, "leaving", 3, &["a0"]).outside(3) },
        // Its port is the node port of the first.
        Service { protocols: vec![Proto::Udp], port: NODE_PORT_BASE + 1, ..Service::new(&world, "alike", 4, &["a0"]) },
    ]);
    let [dns, other, leaving, alike] = [0, 1, 2, 3].map(|i| objects.services[i].clone());
    let proxy = Proxy::start(&world, &Config::default(), &objects);

    let pod = &world.pod("a2").netns;
    let to_dns = SocketAddr::new(dns.cluster_ip, SERVICE_PORT);
    let tcp = Stream::open(pod, Call::new(Proto::Tcp, to_dns));
    let outcome = Call::new(Proto::Sctp, to_dns).make_in(pod);
    assert_eq!(outcome.endpoint(), Some("a0"), "{outcome}");
    // To no Service at all: the pod itself, and the number of the node port at a pod and at another node.
    let number = NODE_PORT_BASE + 1;
    world.servers.listen(world.pod("b0"), Proto::Udp, number);
    let direct = [
        Datagrams::open(&world.client, at(&world, "a0", POD_PORT)),
        Datagrams::open(&world.client, at(&world, "b0", number)),
        Datagrams::open(pod, SocketAddr::new(family.inner(crate::world::Node::B), number)),
        Datagrams::open(pod, SocketAddr::new(alike.cluster_ip, number)),
    ];
    let flows = Flows::open(&world, &dns);
    let mut others = Flows::open(&world, &other);
    others.all.extend(Flows::open(&world, &leaving).all);
    others.all.extend(direct.into_iter().map(|flow| ("no Service's", flow)));
    flows.reach("a0", "at first");
    for (_, flow) in &others.all {
        (0..3).for_each(|_| drop(flow.knock()));
    }
    let before = others.tracked();
    for ((what, flow), tracked) in others.all.iter().zip(&before) {
        assert_eq!(tracked.unwrap_or_else(|| panic!("{what} {}", flow.to)).packets, 3, "{what} {}", flow.to);
    }
    let sctp = tracked(&world.node, Proto::Sctp, to_dns, None).unwrap();

    // Every endpoint is another one, or about to go; then nothing is left of it.
    objects.service("dns").endpoints = ready(&world, &["b0"]);
    let going = Endpoint::ready(world.pod("a0"), family).leaving();
    objects.service("leaving").endpoints = [vec![going], ready(&world, &["b1"])].concat();
    write(&world, &objects);
    flows.gone("another endpoint");
    looked_at(&world, &objects);
    flows.reach("b0", "another endpoint");
    objects.services.retain(|service| service.name != "dns");
    write(&world, &objects);
    flows.gone("deleted");
    looked_at(&world, &objects);

    for (((what, flow), before), after) in others.all.iter().zip(before).zip(others.tracked()) {
        assert_eq!(after, before, "{what} {}: counters before and after", flow.to);
    }
    for (what, flow) in others.all.iter().filter(|(what, _)| *what != "no Service's") {
        let outcome = flow.ask();
        assert_eq!(outcome.endpoint(), Some("a0"), "{what} {}: {outcome}", flow.to);
    }
    assert_eq!(tracked(&world.node, Proto::Sctp, to_dns, None), Some(sctp));
    tcp.works("without its Service");
    tcp.finish();
    assert!(proxy.running());
}
