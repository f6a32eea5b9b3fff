//! Endpoints that go and come back, with connections to them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::kernel::{Server, key, table};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Mode, Proxy};
use crate::traffic::{Call, Datagrams, Probers, Proto, Stream};
use crate::world::{Case, Fabric, World, eventually};

families!(
    connections_are_served_to_the_end,
    an_endpoint_that_returns_serves_again,
    a_restart_forgets_nothing,
    datagrams_move_on_at_once,
    endpoints_go_and_come_under_load,
);

/// How often the proxy looks after those on their way out.
const SOON: &str = "2s";

fn config() -> Config {
    Config { mode: Mode::IPVS, sync_period: SOON, ..Config::default() }
}

fn objects(world: &World, pods: &[&str]) -> (Service, Objects) {
    let service = Service::new(world, "leaving", 1, pods).outside(1);
    (service.clone(), Objects::new([service]))
}

fn cluster(service: &Service) -> SocketAddr {
    SocketAddr::new(service.cluster_ip, SERVICE_PORT)
}

fn server(world: &World, proto: &str, service: &Service) -> Server {
    table(world).remove(&key(proto, service.cluster_ip, SERVICE_PORT)).unwrap()
}

fn pod(world: &World, name: &str) -> SocketAddr {
    world.pod(name).address(world.family())
}

/// Opens a connection from outside that an endpoint answers.
fn stream_to(world: &World, service: &Service, endpoint: &str) -> Stream {
    let call = Call::new(Proto::Tcp, cluster(service));
    for _ in 0..8 {
        let stream = Stream::open(&world.client, call);
        if stream.answer.endpoint == endpoint {
            return stream;
        }
        stream.break_off();
    }
    panic!("{endpoint} does not answer");
}

fn answers(world: &World, service: &Service) -> BTreeSet<String> {
    let call = Call::new(Proto::Tcp, cluster(service));
    let outcomes = call.repeat_in(&world.client, 8);
    outcomes.iter().map(|outcome| outcome.endpoint().unwrap_or_else(|| panic!("{outcome}")).to_owned()).collect()
}

fn connections_are_served_to_the_end(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let (service, all) = objects(&world, &["a0", "a1", "b0"]);
    let proxy = Proxy::start(&world, &config(), &all);
    let (leaving, leaving_too) = (stream_to(&world, &service, "a0"), stream_to(&world, &service, "b0"));
    let (_, fewer) = objects(&world, &["a1"]);
    proxy.apply(&fewer);
    let now = server(&world, "TCP", &service);
    assert_eq!(now.weights[&pod(&world, "a0")], 0, "{now:?}");
    assert_eq!(now.weights[&pod(&world, "b0")], 0, "{now:?}");
    assert_eq!(answers(&world, &service), ["a1".to_owned()].into(), "no new connection goes there");
    assert!(!server(&world, "UDP", &service).weights.contains_key(&pod(&world, "a0")), "flows are not waited for");
    leaving.works("to an endpoint on its way out");
    leaving_too.works("to another one");
    // One ends; its real server goes with it, once the kernel has forgotten the connection.
    leaving.break_off();
    eventually(LONG, "the real server without connections goes", || {
        (!server(&world, "TCP", &service).weights.contains_key(&pod(&world, "a0"))).then_some(())
    });
    let now = server(&world, "TCP", &service);
    assert_eq!(now.weights[&pod(&world, "b0")], 0, "{now:?}");
    leaving_too.works("still");
    leaving_too.break_off();
    eventually(LONG, "all that is left is ready", || {
        (server(&world, "TCP", &service).weights == [(pod(&world, "a1"), 1)].into()).then_some(())
    });
}

fn an_endpoint_that_returns_serves_again(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 0);
    let (service, all) = objects(&world, &["a0", "a1"]);
    let proxy = Proxy::start(&world, &config(), &all);
    let stream = stream_to(&world, &service, "a0");
    let (_, fewer) = objects(&world, &["a1"]);
    for round in 0..3 {
        // On a busy machine what is written at once may be read in two parts.
        proxy.apply(&fewer);
        eventually(LONG, &format!("a0 is on its way out, round {round}"), || {
            (server(&world, "TCP", &service).weights.get(&pod(&world, "a0")) == Some(&0)).then_some(())
        });
        proxy.apply(&all);
        eventually(LONG, &format!("a0 is back, round {round}"), || {
            let ready = [(pod(&world, "a0"), 1), (pod(&world, "a1"), 1)].into();
            (server(&world, "TCP", &service).weights == ready).then_some(())
        });
        stream.works("though its endpoint went and came back");
        assert_eq!(answers(&world, &service).len(), 2);
    }
    // It is none of those on their way out any more, and stays when the next look would end their time.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(server(&world, "TCP", &service).weights.len(), 2);
    stream.finish();
}

/// What one proxy has begun, the next one ends; and an endpoint that returned meanwhile has its weight. (kube-proxy
/// leaves it without, unless this is its first look, and forgets those on their way out until they change.)
fn a_restart_forgets_nothing(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let (service, all) = objects(&world, &["a0", "a1", "b0"]);
    let proxy = Proxy::start(&world, &config(), &all);
    let (returns, goes) = (stream_to(&world, &service, "a0"), stream_to(&world, &service, "b0"));
    let (_, fewer) = objects(&world, &["a1"]);
    proxy.apply(&fewer);
    let now = server(&world, "TCP", &service);
    assert_eq!((now.weights[&pod(&world, "a0")], now.weights[&pod(&world, "b0")]), (0, 0));
    proxy.crash();
    let (_, without_one) = objects(&world, &["a0", "a1"]);
    let _proxy = Proxy::start(&world, &config(), &without_one);
    let now = server(&world, "TCP", &service);
    assert_eq!((now.weights[&pod(&world, "a0")], now.weights[&pod(&world, "b0")]), (1, 0), "{now:?}");
    returns.works("after the restart");
    goes.works("after the restart");
    goes.break_off();
    eventually(LONG, "the real server that was left goes", || {
        (server(&world, "TCP", &service).weights.len() == 2).then_some(())
    });
    returns.finish();
}

/// A flow of datagrams, always from the same port, leaves an endpoint that goes with its next packets.
fn datagrams_move_on_at_once(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 0);
    let (service, all) = objects(&world, &["a0", "a1"]);
    let proxy = Proxy::start(&world, &config(), &all);
    let flow = Datagrams::open(&world.client, cluster(&service));
    let first = flow.ask().endpoint().expect("an answer").to_owned();
    let other = if first == "a0" { "a1" } else { "a0" };
    let (_, fewer) = objects(&world, &[other]);
    proxy.apply(&fewer);
    world.servers.stop(world.pod(&first), Proto::Udp);
    let moved = eventually(Duration::from_secs(10), "the flow finds the endpoint that is left", || {
        flow.knock().endpoint().map(str::to_owned)
    });
    assert_eq!(moved, other);
}

/// Endpoints are pulled and put back while clients connect all the time: no connection to one that is ready fails. As
/// pods end: first one is on its way out and still answers, then it is gone.
fn endpoints_go_and_come_under_load(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let all = ["a0", "a1", "b0"];
    let (service, before) = objects(&world, &all);
    let proxy = Proxy::start(&world, &config(), &before);
    let probers = Probers::start(&world, &service, "a2");
    for round in 0..3 {
        for (n, gone) in all.into_iter().enumerate() {
            let (mut leaving, mut fewer) = (service.clone(), service.clone());
            leaving.endpoints[n] = leaving.endpoints[n].clone().leaving();
            fewer.endpoints.remove(n);
            for now in [leaving, fewer] {
                proxy.apply(&Objects::new([now]));
                probers.go_on(3);
                let weights = server(&world, "TCP", &service).weights;
                for ready in all.into_iter().filter(|ready| *ready != gone) {
                    assert_eq!(weights.get(&pod(&world, ready)), Some(&1), "round {round}: {weights:?}");
                }
                assert_ne!(weights.get(&pod(&world, gone)), Some(&1), "round {round}: {weights:?}");
            }
        }
    }
    proxy.apply(&before);
    probers.go_on(5);
    probers.finish_unharmed();
    let weights = server(&world, "TCP", &service).weights;
    assert_eq!(weights.values().collect::<Vec<_>>(), [&1, &1, &1], "none that is ready is without weight");
}
