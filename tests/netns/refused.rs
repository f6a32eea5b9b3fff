//! A Service whose rules the kernel refuses is set aside alone; all others are in the kernel.

use data_encoding::BASE32;
use sha2::{Digest, Sha256};

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::objects::{Endpoint, Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Proxy, write};
use crate::rules::Rules;
use crate::traffic::{Call, Proto};
use crate::world::{Case, Fabric, World, eventually};

matrix!(refused_with_a_line_number, refused_without_a_word, refused_by_the_real_programs, chains_that_others_use);

/// The name of a Service's cluster chain.
fn chain(service: &Service, proto: Proto) -> String {
    let hash = Sha256::digest(format!("{}{}", service.port(proto), proto.lower()));
    format!("KUBE-SVC-{}", &BASE32.encode(&hash)[..16])
}

/// Refuses input with rules in one chain, and says what real programs say, or nothing.
fn refuse(world: &World, chain: &str, says_where: bool) {
    let complain = if says_where {
        "echo \"$NAME: line $line failed\" >&2; exit 1"
    } else {
        "echo \"$NAME: something is wrong with this\" >&2; exit 1"
    };
    world.tools.replace(
        "-restore",
        &format!(
            "cat > $STATE/input.$$\nline=$(grep -n -m 1 -e '^-A {chain} ' $STATE/input.$$ | cut -d : -f 1)\nif [ -n \"$line\" ]; then {complain}; fi\n$REAL \"$@\" < $STATE/input.$$ 2> $STATE/err.$$; code=$?; cat $STATE/err.$$ >&2; [ $code = 0 ] && rm $STATE/*.$$; exit $code"
        ),
    );
}

fn refused_with_a_line_number(case: Case) {
    set_aside(case, true);
}

fn refused_without_a_word(case: Case) {
    set_aside(case, false);
}

fn set_aside(case: Case, says_where: bool) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let family = world.family();
    let config = Config { sync_period: "1s", ..Config::default() };
    let good = |n: u16| Service::new(&world, &format!("good-{n}"), n, &["a0", "b0"]);
    let bad = Service::new(&world, "bad", 500, &["a0"]).outside(1);
    let mut objects = Objects::new((1..=20).map(good).chain([bad.clone()]));
    refuse(&world, &chain(&bad, Proto::Tcp), says_where);

    // From the start: all others are there, and the log says which one is not.
    let proxy = Proxy::start(&world, &config, &objects);
    all_but(&world, &objects, "bad");
    let named = || fs::read_to_string(world.log_path()).unwrap().lines().filter(|line| line.contains("ns/bad")).count();
    eventually(LONG, "the log names ns/bad", || (named() > 0).then_some(()));

    // Later changes of others are not held up by it, nor do they wait for a retry.
    objects.services.push(good(21));
    proxy.apply(&objects);
    all_but(&world, &objects, "bad");

    // It is retried when it changes: with success if nobody objects any more.
    world.tools.restore("-restore");
    objects.service("bad").endpoints.push(Endpoint::ready(world.pod("b0"), family));
    proxy.apply(&objects);
    all_but(&world, &objects, "");

    // And one that has worked and is refused after a change leaves the others alone.
    refuse(&world, &chain(&bad, Proto::Tcp), says_where);
    let before = named();
    objects.service("bad").endpoints.push(Endpoint::ready(world.pod("a1"), family));
    objects.service("good-1").endpoints.push(Endpoint::ready(world.pod("a1"), family));
    write(&world, &objects);
    eventually(LONG, "the change of a good Service beside a refused one", || {
        let rules = Rules::read(&world, family);
        (rules.endpoints("KUBE-SVC-", "ns/good-1:tcp").len() == 3).then_some(())
    });
    eventually(LONG, "the log names ns/bad again", || (named() > before).then_some(()));
    assert!(proxy.running());
    all_but(&world, &objects, "bad");
}

/// What Services have in the kernel that have not what they should, the one set aside excepted.
fn missing(world: &World, objects: &Objects, aside: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut missing = BTreeMap::new();
    let rules = Rules::read(world, world.family());
    for service in objects.services.iter().filter(|service| service.name != aside) {
        for proto in Proto::SOCKETS {
            let want = service
                .endpoints
                .iter()
                .map(|endpoint| SocketAddr::new(endpoint.ip, crate::world::POD_PORT).to_string())
                .collect();
            let there = rules.endpoints("KUBE-SVC-", &service.port(proto));
            if there != want {
                missing.insert(service.port(proto), there);
            }
        }
    }
    missing
}

/// Every Service has its endpoints in the kernel and answers, the one set aside excepted.
#[track_caller]
fn all_but(world: &World, objects: &Objects, aside: &str) {
    // The search for what is refused takes restores that change nothing, which on a busy machine looks like the end of it.
    let deadline = Instant::now() + LONG;
    while !missing(world, objects, aside).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    let missing = missing(world, objects, aside);
    assert!(missing.is_empty(), "not in the kernel as they should be: {missing:?}");
    for service in objects.services.iter().filter(|service| service.name != aside).take(3) {
        for proto in Proto::SOCKETS {
            let call = Call::new(proto, SocketAddr::new(service.cluster_ip, SERVICE_PORT));
            let outcome = call.make_in(&world.pod("a2").netns);
            assert!(outcome.endpoint().is_some(), "{} {proto:?}: {outcome}", service.name);
        }
    }
}

/// Somebody's own rule leads to a chain of a Service that goes: the kernel will not remove the chain.
/// That is no reason to hold up anything else.
fn chains_that_others_use(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let family = world.family();
    let good = |n: u16| Service::new(&world, &format!("good-{n}"), n, &["a0", "b0"]);
    let used = Service::new(&world, "used", 500, &["a0"]).outside(1);
    let mut objects = Objects::new((1..=3).map(good).chain([used.clone()]));
    let config = Config { sync_period: "1s", ..Config::default() };
    let proxy = Proxy::start(&world, &config, &objects);
    let chain = chain(&used, Proto::Tcp);
    let foreign = ["-w", "5", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "4711", "-j", &chain];
    world.node.exec(&world.tools.real(family, ""), &foreign, "");

    objects.services.pop();
    objects.services.push(good(4));
    proxy.apply(&objects);
    all_but(&world, &objects, "");
    let rules = Rules::read(&world, family);
    assert!(rules.has("nat", "PREROUTING", &chain), "the rule of somebody else is gone");
    objects.services.push(good(5));
    proxy.apply(&objects);
    all_but(&world, &objects, "");
    // A restart finds the chain again, and must get along with it as well.
    drop(proxy);
    let proxy = Proxy::start(&world, &config, &objects);
    objects.services.push(good(6));
    proxy.apply(&objects);
    all_but(&world, &objects, "");
}

/// No script this time: the real programs do not take an affinity of zero seconds. An API server
/// would not take it either; a manifest file may have it.
fn refused_by_the_real_programs(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let bad = Service { affinity: Some(0), ..Service::new(&world, "bad", 500, &["a0"]).outside(1) };
    let good = |n: u16| Service::new(&world, &format!("good-{n}"), n, &["a0", "b0"]);
    let mut objects = Objects::new((1..=5).map(good).chain([bad]));
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    all_but(&world, &objects, "bad");
    let log = fs::read_to_string(world.log_path()).unwrap();
    assert!(log.contains("ns/bad"), "the log does not name the Service");
    objects.services.push(good(6));
    proxy.apply(&objects);
    all_but(&world, &objects, "bad");
    objects.service("bad").affinity = Some(60);
    proxy.apply(&objects);
    all_but(&world, &objects, "");
}
