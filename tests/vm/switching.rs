//! From iptables to ipvs and back on a node with traffic, and cleanup: nothing is left, and no Service is without rules
//! in between.

use std::net::SocketAddr;
use std::process::Command;

use crate::kernel::{link, sets, table};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Mode, Proxy, binary, table as nft_table, write};
use crate::rules::Rules;
use crate::tools::Variant;
use crate::traffic::{Call, Probers, Proto, Stream};
use crate::world::{Case, Fabric, Family, World, eventually};

families!(to_ipvs_and_back, cleanup_leaves_nothing, a_kernel_without_nf_tables_is_named);

fn ipvs() -> Config {
    Config { mode: Mode::IPVS, sync_period: "1s", ..Config::default() }
}

/// Chains and jumps that only one mode has, of both families.
fn chains_of(world: &World, only: &[&str]) -> Vec<String> {
    let rules = Family::BOTH.map(|family| Rules::read(world, family));
    let chains = rules.iter().flat_map(|rules| &rules.chains).flat_map(|((table, chain), rules)| {
        std::iter::once(format!("{table} {chain}"))
            .chain(rules.iter().map(move |rule| format!("{table} {chain} {rule}")))
    });
    chains.filter(|line| only.iter().any(|name| line.contains(name))).collect()
}

const IPVS: [&str; 6] = [
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "--match-set",
];
const IPTABLES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-CANARY"];

fn to_ipvs_and_back(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let objects = Objects::new([service.clone()]);
    let cluster = Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT));
    let node_port = Call::new(Proto::Tcp, SocketAddr::new(world.family().node(), service.node_port.unwrap()));

    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let streams = [Stream::open(&world.client, node_port), Stream::open(&world.pod("a1").netns, cluster)];
    let probers = Probers::start(&world, &service, "a2");
    proxy.terminate();
    for round in 0..2 {
        if round > 0 {
            let proxy = Proxy::start(&world, &Config::default(), &objects);
            eventually(LONG, "nothing is left of ipvs mode", || {
                let left = chains_of(&world, &IPVS);
                (left.is_empty() && table(&world).is_empty() && link(&world).is_empty() && sets(&world).is_empty())
                    .then_some(())
            });
            probers.go_on(5);
            proxy.terminate();
        }
        let proxy = Proxy::start(&world, &ipvs(), &objects);
        eventually(LONG, "nothing is left of iptables mode", || chains_of(&world, &IPTABLES).is_empty().then_some(()));
        probers.go_on(5);
        if round == 0 {
            streams.iter().for_each(|stream| stream.works("that was made through rules, with virtual servers"));
        }
        // Those that went are not missed.
        std::thread::sleep(std::time::Duration::from_secs(3));
        let log = std::fs::read_to_string(world.log_path()).unwrap();
        assert!(!log.contains("removed by another program"), "{log}");
        proxy.terminate();
    }
    probers.finish_unharmed();
}

fn cleanup_leaves_nothing(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let rules = || Family::BOTH.map(|family| Rules::read(&world, family).chains.into_keys().collect::<Vec<_>>());
    let objects = Objects::new([Service::new(&world, "web", 1, &["a0", "b0"]).outside(1)]);
    let proxy = Proxy::start(&world, &ipvs(), &objects);
    let clean = || {
        let path = world.tools.path_variable();
        world.node.run(move || Command::new(binary()).arg("--cleanup").env("PATH", path).output().unwrap())
    };
    let output = clean();
    assert!(!output.status.success(), "not while a proxy runs");
    assert!(!table(&world).is_empty());
    proxy.terminate();
    let output = clean();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(table(&world).is_empty() && link(&world).is_empty() && sets(&world).is_empty());
    for chains in rules() {
        assert!(!chains.iter().any(|(_, chain)| chain.starts_with("KUBE-")), "{chains:?}");
    }
}

/// Nothing is written then, and what another mode has in the kernel serves on.
fn a_kernel_without_nf_tables_is_named(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]);
    let objects = Objects::new([service.clone()]);
    let call = Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT));
    let nftables = Config { mode: Mode::Nftables, ..Config::default() };
    Proxy::start(&world, &ipvs(), &objects).terminate();
    if case.variant == Variant::Nft {
        let _proxy = Proxy::start(&world, &nftables, &objects);
        assert!(nft_table(&world, world.family()).contains("ns/web"));
        return;
    }
    let state = || (table(&world), link(&world), sets(&world), Family::BOTH.map(|family| Rules::read(&world, family)));
    let before = state();
    write(&world, &objects);
    let status = Proxy::launch(&world, &nftables).wait();
    let log = std::fs::read_to_string(world.log_path()).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    let said = log.lines().last().unwrap();
    assert!(said.contains("can't use the nftables proxier") && said.contains("nf_tables"), "{said}");
    assert_eq!(state(), before);
    for outcome in call.repeat_in(&world.client, 4) {
        assert!(outcome.endpoint().is_some(), "{outcome}");
    }
}
