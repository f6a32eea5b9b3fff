//! The proxy ends, comes back, starts over, or takes over from a kube-proxy: connections that are
//! open stay open, and new ones never fail.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Detector, LONG, Proxy, quiet};
use crate::rules::Rules;
use crate::tools::Variant;
use crate::traffic::{Call, Prober, Probers, Proto, Stream};
use crate::world::{Case, Fabric, Family, POD_PORT, World, eventually};

matrix!(
    connections_survive_restarts_and_full_syncs,
    the_recorded_rules_of_a_kube_proxy_are_taken_over,
    a_changed_configuration_file_ends_the_proxy,
);

/// It leaves it to its supervisor to start it with what the file says now. Its rules stay.
fn a_changed_configuration_file_ends_the_proxy(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let objects = Objects::new([Service::new(&world, "web", 1, &["a0", "b0"])]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let before = state(&world);
    let mut file = File::options().append(true).open(world.dir().join("config.json")).unwrap();
    file.write_all(b"\n").unwrap();
    let status = proxy.wait();
    assert_eq!(status.code(), Some(1));
    let log = fs::read_to_string(world.log_path()).unwrap();
    for message in ["Error running ProxyServer", "command failed"] {
        let expected = format!("\"{message}\" err=\"content of the proxy server's configuration file was updated\"\n");
        assert!(log.contains(&expected), "{expected} is not in the log:\n{log}");
    }
    assert_eq!(state(&world), before);
}

fn connections_survive_restarts_and_full_syncs(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let mut objects = Objects::new([service.clone()]);
    let config = Config { sync_period: "1s", ..Config::default() };
    let proxy = Proxy::start(&world, &config, &objects);
    let before = state(&world);
    let cluster = Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT));
    let node_port = Call::new(Proto::Tcp, SocketAddr::new(world.family().node(), service.node_port.unwrap()));
    let streams = [
        Stream::open(&world.pod("a1").netns, cluster),
        Stream::open(&world.node, cluster),
        Stream::open(&world.client, node_port),
    ];
    let works = |when: &str| streams.iter().for_each(|stream| stream.works(when));
    let probers = Probers::start(&world, &service, "a2");

    proxy.crash();
    works("without a proxy");
    probers.go_on(10);
    let proxy = Proxy::start(&world, &config, &objects);
    works("after a crash and a restart");
    probers.go_on(10);

    proxy.terminate();
    // What changed meanwhile must be caught up with, and what has not must not be disturbed.
    objects.services.push(Service::new(&world, "second", 2, &["a0"]).outside(2));
    let proxy = Proxy::start(&world, &config, &objects);
    works("after a stop and a restart");
    objects.services.pop();
    proxy.apply(&objects);
    works("after a change");

    // Without its canary the proxy has to think that somebody has flushed everything.
    for family in Family::BOTH {
        for table in ["mangle", "nat", "filter"] {
            world.node.exec(&world.tools.real(family, ""), &["-w", "5", "-t", table, "-X", "KUBE-PROXY-CANARY"], "");
        }
    }
    eventually(LONG, "the canaries are back", || {
        let back = Family::BOTH.map(|family| Rules::read(&world, family)).iter().all(|rules| {
            ["mangle", "nat", "filter"].iter().all(|table| rules.chains.contains_key(&key(table, "KUBE-PROXY-CANARY")))
        });
        back.then_some(())
    });
    quiet(&world);
    works("after a full sync");
    probers.go_on(10);

    assert_eq!(before.difference(&state(&world)), "", "the rules before (first) and after (second)");
    probers.finish_unharmed();
    streams.into_iter().for_each(Stream::finish);
}

fn key(table: &str, chain: &str) -> (String, String) {
    (table.to_owned(), chain.to_owned())
}

/// The rules of the tested family but for those of marker Services, which differ each time.
pub fn state(world: &World) -> Rules {
    Rules::read(world, world.family()).without("ns/zz-marker-").normal()
}

/// The recordings of a real kube-proxy.
fn recordings() -> PathBuf {
    let shared = std::env::var_os("FERRULE_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let golden = shared.join("golden");
    assert!(golden.is_dir(), "{}: no recordings there; set FERRULE_SHARED", golden.display());
    golden
}

/// Starts with what a kube-proxy has left, once up to date, once with what it had some changes ago
/// and, beside it, chains of Services that are no more.
fn the_recorded_rules_of_a_kube_proxy_are_taken_over(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let golden = recordings();
    let case_dir = golden.join(match case.variant {
        Variant::Legacy => "legacy-base",
        Variant::Nft | Variant::Unused => "nft-base",
    });
    // In the recordings: `dual`, by its cluster IP, and `dual-lb`, by its node port, each with two
    // endpoints, which no step changes.
    let node_port = 30_095;
    let (service, local, remote) = match family {
        Family::V4 => ("10.96.1.44", ["10.128.0.36", "10.128.0.37"], ["10.128.1.36", "10.128.1.37"]),
        Family::V6 => {
            ("fd00:10:96::12c", ["fd00:10:128::23", "fd00:10:128::24"], ["fd00:10:128:1::23", "fd00:10:128:1::24"])
        }
    };
    for (local, remote) in local.into_iter().zip(remote) {
        also_known_as(&world, "a0", local);
        also_known_as(&world, "b0", remote);
    }
    let text = |step: &str, family: Family| {
        let name = if family == Family::V4 { "iptables-save.txt" } else { "ip6tables-save.txt" };
        let path = case_dir.join(step).join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let load = |text: &str, family: Family, options: &[&str]| {
        world.node.exec(&world.tools.real(family, "-restore"), options, text);
    };
    // The rules name packet counters, which must exist; a proxy makes them when it starts.
    let config = Config { detector: Detector::None, ..Config::default() };
    drop(Proxy::start(&world, &config, &Objects::default()));

    for step in [".", "steps/05-add-svc"] {
        Family::BOTH.into_iter().for_each(|family| load(&text(step, family), family, &[]));
        if step != "." {
            load(STALE, family, &["--noflush"]);
        }
        let to = SocketAddr::new(service.parse().unwrap(), 80);
        let stream = Stream::open(&world.pod("a1").netns, Call::new(Proto::Tcp, to));
        let outside = Call::new(Proto::Tcp, SocketAddr::new(family.node(), node_port));
        let probers = [
            Prober::start(&world.pod("a1").netns, Call::new(Proto::Tcp, to), Duration::from_millis(3)),
            Prober::start(&world.client, outside, Duration::from_millis(3)),
        ];
        probers.iter().for_each(|prober| prober.go_on(20));

        let objects = golden.join("objects/all.yaml");
        let _proxy = Proxy::launch_with(&world, &case_dir.join("config.yaml"), &objects, "node-000");
        let want = Family::BOTH.map(|family| (family, Rules::parse(&text(".", family)).normal()));
        let mut last = String::new();
        let waited = crate::world::within(LONG, || {
            last.clear();
            for (family, want) in &want {
                last += &want.difference(&Rules::read(&world, *family).normal());
            }
            last.is_empty().then_some(())
        });
        assert!(waited.is_some(), "from {step}: not the kube-proxy's rules (first) but others (second):\n{last}");
        quiet(&world);
        stream.works("after the takeover");
        probers.iter().for_each(|prober| prober.go_on(20));
        stream.finish();
        for prober in probers {
            let tally = prober.finish_unharmed();
            assert_eq!(tally.answers.keys().collect::<Vec<_>>(), ["a0", "b0"], "both endpoints are used");
        }
    }
}

/// What an earlier version, or a Service long gone, may have left.
const STALE: &str = "*nat
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVL-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-FW-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
:KUBE-SEP-CCCCCCCCCCCCCCCC - [0:0]
-A KUBE-SERVICES -p tcp -m comment --comment \"gone/gone:http cluster IP\" -m tcp --dport 4711 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-NODEPORTS -p tcp -m comment --comment \"gone/gone:http\" -m tcp --dport 32767 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-EXT-AAAAAAAAAAAAAAAA -j KUBE-SVL-AAAAAAAAAAAAAAAA
-A KUBE-FW-AAAAAAAAAAAAAAAA -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SVL-AAAAAAAAAAAAAAAA -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SEP-BBBBBBBBBBBBBBBB -j KUBE-MARK-MASQ
COMMIT
*filter
-A KUBE-SERVICES -p tcp -m comment --comment \"gone/gone:http has no endpoints\" -m tcp --dport 4711 -j REJECT
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment \"gone/gone:http has no endpoints\" -m tcp --dport 4711 -j REJECT
-A KUBE-PROXY-FIREWALL -p tcp -m comment --comment \"gone/gone:http traffic not accepted by KUBE-FW-AAAAAAAAAAAAAAAA\" -m tcp --dport 4711 -j DROP
COMMIT
";

/// Gives a pod an address from the recordings.
fn also_known_as(world: &World, pod: &str, address: &str) {
    let pod = world.pod(pod);
    let bits = world.family().host_bits();
    pod.netns.exec("ip", &["addr", "add", &format!("{address}/{bits}"), "dev", "eth0", "preferred_lft", "0"], "");
    let (here, there) = (&world.node, &world.peer);
    let via = world.family().inner(crate::world::Node::B).to_string();
    match pod.node {
        crate::world::Node::A => here.exec("ip", &["route", "add", address, "dev", "cni0"], ""),
        crate::world::Node::B => {
            there.exec("ip", &["route", "add", address, "dev", "cni0"], "");
            here.exec("ip", &["route", "add", address, "via", &via], "")
        }
    };
    assert_eq!(POD_PORT, 8080, "the port of the recordings' endpoints");
}
