//! What only a kernel with both IPVS and nf_tables can show (`make test-kernel`).

use std::net::SocketAddr;
use std::time::Duration;

use crate::kernel::{link, sets, table as servers};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Mode, Proxy, table};
use crate::rules::Rules;
use crate::tools::Variant;
use crate::traffic::{Call, Datagrams, Outcome, Probers, Proto, Stream};
use crate::world::{Case, Fabric, Family, World, eventually};

families!(the_iptables_programs_are_those_of_nft, ipvs_and_nftables_take_over_from_one_another);

/// The others of this binary are then run with them, too.
fn the_iptables_programs_are_those_of_nft(case: Case) {
    assert_eq!(case.variant, Variant::Nft, "this kernel has no nf_tables: tests/vm/boot-qemu starts one that has");
    let world = case.world(Fabric::Bridge, 1, 1);
    let objects = Objects::new([Service::new(&world, "web", 1, &["a0", "b0"])]);
    let _proxy = Proxy::start(&world, &Config { mode: Mode::IPVS, ..Config::default() }, &objects);
    let ip = if world.family() == Family::V4 { "ip" } else { "ip6" };
    let listed = world.node.exec("nft", &["list", "table", ip, "nat"], "");
    assert!(listed.contains("chain KUBE-SERVICES"), "{listed}");
}

fn nothing_of_ipvs(world: &World) -> Option<()> {
    let mut chains = Family::BOTH.into_iter().flat_map(|family| Rules::read(world, family).chains.into_keys());
    let no_chain = !chains.any(|(_, chain)| chain.starts_with("KUBE-"));
    (no_chain && servers(world).is_empty() && link(world).is_empty() && sets(world).is_empty()).then_some(())
}

fn nothing_of_nftables(world: &World) -> Option<()> {
    Family::BOTH.iter().all(|family| table(world, *family).is_empty()).then_some(())
}

/// A connection that nftables has translated stays so. One of IPVS is IPVS's: it cannot outlive its virtual server. New ones
/// never fail.
fn ipvs_and_nftables_take_over_from_one_another(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let objects = Objects::new([service.clone()]);
    let cluster = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
    let node_port = SocketAddr::new(world.family().node(), service.node_port.unwrap());
    let (ipvs, nftables) =
        [Mode::IPVS, Mode::Nftables].map(|mode| Config { mode, sync_period: "1s", ..Config::default() }).into();
    let log = || std::fs::read_to_string(world.log_path()).unwrap();
    // A start may take longer here than a flow that rests is remembered.
    world.node.sysctl(&[("net/netfilter/nf_conntrack_udp_timeout", "600")]);

    let proxy = Proxy::start(&world, &nftables, &objects);
    let inside = &world.pod("a1").netns;
    let streams = [(&world.client, node_port), (inside, cluster)]
        .map(|(netns, to)| Stream::open(netns, Call::new(Proto::Tcp, to)));
    let datagrams = [(&world.client, node_port), (inside, cluster)].map(|(netns, to)| {
        let datagrams = Datagrams::open(netns, to);
        let outcome = datagrams.ask();
        let endpoint = outcome.endpoint().unwrap_or_else(|| panic!("{to}: {outcome}")).to_owned();
        (datagrams, endpoint)
    });
    let go_on = |mode: &str| {
        for stream in &streams {
            stream.works(&format!("that nftables translates, in {mode} mode"));
        }
        for (datagrams, endpoint) in &datagrams {
            let outcome = datagrams.ask();
            assert_eq!(outcome.endpoint(), Some(endpoint.as_str()), "{} in {mode} mode: {outcome}", datagrams.to);
        }
    };
    let probers = Probers::start(&world, &service, "a2");
    proxy.terminate();
    let proxy = Proxy::start(&world, &ipvs, &objects);
    eventually(LONG, "nothing is left of nftables mode", || nothing_of_nftables(&world));
    probers.go_on(5);
    go_on("ipvs");
    proxy.terminate();
    let _proxy = Proxy::start(&world, &nftables, &objects);
    eventually(LONG, "nothing is left of ipvs mode", || nothing_of_ipvs(&world));
    probers.go_on(5);
    go_on("nftables");
    // Those that went are not missed.
    std::thread::sleep(Duration::from_secs(3));
    for complaint in ["removed by another program", "leftovers of another mode stay"] {
        assert!(!log().contains(complaint), "{}", log());
    }
    probers.finish_unharmed();
}
