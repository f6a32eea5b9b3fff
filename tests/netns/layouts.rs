//! From one layout of rules to another: nobody notices, and nothing is left of the one before. (That a layout
//! is right is for the acceptance table and for `balancing.rs`.)

use std::net::SocketAddr;
use std::time::Duration;

use crate::cleanup::ferrule;
use crate::comparison::Comparison;
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Layout, Proxy};
use crate::restart::state;
use crate::rules::Rules;
use crate::traffic::{Call, Outcome, Prober, Probers, Proto};
use crate::world::{Case, Fabric, World};

matrix!(layouts_follow_each_other, only_what_comes_back_is_forwarded);

fn cluster(service: &Service) -> Call {
    Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT))
}

/// Whether the rules are laid out so.
fn is_laid_out(world: &World, layout: Layout) -> bool {
    let rules = Rules::read(world, world.family());
    let has = |prefix: &str| rules.chains.keys().any(|(_, chain)| chain.starts_with(prefix));
    let recognises = ["nat KUBE-POSTROUTING", "filter KUBE-FORWARD"].map(|place| {
        let (table, chain) = place.split_once(' ').unwrap();
        rules.has(table, chain, "-m bpf")
    });
    (has("KUBE-SVC-ADDR-"), recognises) == (layout.bucketed, [layout.compact; 2])
}

/// Under a stream of connections, of which some come back to where they are from: the proxy is started with
/// one layout after the other. (The suite tries every pair.)
fn layouts_follow_each_other(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let sticky = Service { affinity: Some(10_800), ..Service::new(&world, "sticky", 2, &["a0", "b0"]).outside(2) };
    // Others, in many buckets.
    let others = (3..40).map(|n| Service::new(&world, &format!("svc-{n:02}"), n, &["b0"]));
    let objects = Objects::new([service.clone(), sticky.clone()].into_iter().chain(others));
    let start = |layout| {
        let proxy = Proxy::start(&world, &Config { layout, ..Config::default() }, &objects);
        assert!(is_laid_out(&world, layout), "{layout:?}");
        proxy
    };
    let mut proxy = start(Layout::USUAL);
    let before = state(&world);
    let probers = Probers::start(&world, &service, "a2");
    let pause = Duration::from_millis(3);
    let more = [
        Prober::start(&world.pod("a0").netns, cluster(&service), pause),
        Prober::start(&world.pod("a1").netns, cluster(&sticky), pause),
    ];
    for layout in [Layout::BOTH, Layout::USUAL, Layout::COMPACT, Layout::BUCKETED, Layout::USUAL] {
        probers.go_on(5);
        proxy.terminate();
        proxy = start(layout);
    }
    probers.go_on(5);
    assert_eq!(before.difference(&state(&world)), "", "the rules before (first) and after (second)");
    let own = more.map(Prober::finish_unharmed);
    assert!(own[0].answers.contains_key("a0"), "a0 was sent to itself: {:?}", own[0].answers);
    probers.finish_unharmed();

    proxy.terminate();
    start(Layout::BOTH).terminate();
    let (code, log) = ferrule(&world, &["--cleanup"]);
    assert_eq!(code, Some(0), "{log}");
    let rules = Rules::read(&world, world.family());
    let is_left = |(_, chain): &&(String, String)| chain.starts_with("KUBE-") && chain != "KUBE-FIREWALL";
    assert_eq!(rules.chains.keys().find(is_left), None);
}

/// Where the node forwards nothing but what rules accept, kube-proxy's accept what is marked: also a pod's own
/// packets on their way back to it, and not those to another pod.
fn only_what_comes_back_is_forwarded(case: Case) {
    for layout in [Layout::USUAL, Layout::COMPACT] {
        let world = case.world(Fabric::Bridge, 2, 1);
        let service = Service::new(&world, "own", 1, &["a0"]);
        let _proxy = Proxy::start(&world, &Config { layout, ..Config::default() }, &Objects::new([service.clone()]));
        world.node.exec(&world.tools.real(case.family, ""), &["-w", "5", "-P", "FORWARD", "DROP"], "");
        let mut comparison = Comparison::begin(&world);
        let outcome = comparison.ask(&world.pod("a0").netns, cluster(&service));
        assert!(matches!(outcome, Outcome::Answer(_)), "{layout:?}: {outcome}");
        let outcome = comparison.ask(&world.pod("a1").netns, cluster(&service).impatient());
        assert_eq!(outcome, Outcome::Silence, "{layout:?}");
        comparison.holds();
    }
}
