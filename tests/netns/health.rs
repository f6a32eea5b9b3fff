//! Probes and health check node ports of the running proxy: who is told what, while all is well and
//! while it is not, and that it comes right by itself.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::objects::{Objects, Service};
use crate::proxy::{Config, LONG, Proxy, write};
use crate::tools::Variant;
use crate::world::{Case, Fabric, Family, Namespace, World, eventually};

matrix!(a_load_balancer_asks, only_on_node_port_addresses);

/// A period of one second: something that waits for two is not healthy.
const SYNC_PERIOD: &str = "1s";
const TIMEOUT: Duration = Duration::from_secs(2);
const PROBES: u16 = 10_256;
const ASKED: u16 = 32_000;

fn config() -> Config {
    Config { sync_period: SYNC_PERIOD, ..Config::default() }
}

/// An answer over HTTP.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    code: u16,
    head: String,
    body: Value,
}

impl Answer {
    /// A member of the body.
    fn is(&self, key: &str) -> Option<bool> {
        self.body[key].as_bool()
    }
}

/// Asks from within a namespace; `None` if nobody listens.
fn get(netns: &Namespace, to: SocketAddr, path: &str) -> Option<Answer> {
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).ok()?;
        stream.set_read_timeout(Some(LONG)).unwrap();
        // Who closes its socket now may cut this short.
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_default();
        Some(Answer { code, head: head.to_lowercase(), body })
    })
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn probe(world: &World, path: &str) -> Answer {
    get(&world.node, (Ipv4Addr::LOCALHOST, PROBES).into(), path).expect("probes are answered")
}

/// The status of an answer to a probe: all that a kubelet looks at.
pub fn probe_status(world: &World, path: &str) -> u16 {
    probe(world, path).code
}

fn asked_at(world: &World, ip: IpAddr) -> Option<Answer> {
    get(&world.node, (ip, ASKED).into(), "/")
}

/// A Service whose load balancer asks at node A, with these pods.
fn balanced(world: &World, pods: &[&str]) -> Service {
    Service { external_local: true, health_check_port: Some(ASKED), ..Service::new(world, "asked", 7, pods).outside(7) }
}

/// The codes of `/healthz`, `/livez` and the health check node port.
fn codes(world: &World) -> [u16; 3] {
    let port = asked_at(world, world.family().node()).expect("the health check node port is open");
    [probe(world, "/healthz").code, probe(world, "/livez").code, port.code]
}

#[track_caller]
fn codes_become(world: &World, limit: Duration, what: &str, wanted: [u16; 3]) {
    let mut last = [0; 3];
    let reached = crate::world::within(limit, || {
        last = codes(world);
        (last == wanted).then_some(())
    });
    assert!(reached.is_some(), "{what}: not {wanted:?} but {last:?} after {limit:?}");
}

fn log(world: &World) -> String {
    fs::read_to_string(world.log_path()).unwrap()
}

const LEGACY: Case = Case { variant: Variant::Legacy, family: Family::V4 };
const NFT: Case = Case { variant: Variant::Nft, family: Family::V6 };

/// A node that is about to go is told to load balancers, not to kubelet, and changes no rule.
#[test]
fn a_node_about_to_go() {
    let world = NFT.world(Fabric::Bridge, 1, 0);
    let mut objects = Objects::new([balanced(&world, &["a0"])]);
    let proxy = Proxy::start(&world, &config(), &objects);
    for ip in [loopback(Family::V4), loopback(Family::V6), Family::V4.node(), Family::V6.node()] {
        let answer = get(&world.node, (ip, PROBES).into(), "/healthz").unwrap_or_else(|| panic!("nobody at {ip}"));
        assert_eq!((answer.code, answer.is("healthy"), answer.is("nodeEligible")), (200, Some(true), Some(true)));
        assert!(answer.head.starts_with("http/1.1 200 ok\r\n"), "{}", answer.head);
        assert_eq!(answer.body["status"]["IPv6"]["healthy"], true);
    }
    assert_eq!(get(&world.client, (Family::V6.node(), PROBES).into(), "/livez").map(|answer| answer.code), Some(200));
    assert_eq!(probe(&world, "/readyz").code, 404);
    // What restores there are from now on.
    let restores = world.tools.replace("-restore", "touch $STATE/$$; exec $REAL \"$@\"");
    for (taints, code) in [(vec!["ToBeDeletedByClusterAutoscaler"], 503), (vec!["other"], 200)] {
        objects.taints = taints;
        crate::proxy::write_same_marker(&world, &objects);
        eventually(LONG, "the taint shows", || (probe(&world, "/healthz").code == code).then_some(()));
        let answer = probe(&world, "/healthz");
        assert_eq!((answer.is("healthy"), answer.is("nodeEligible")), (Some(true), Some(code == 200)));
        assert_eq!(probe(&world, "/livez").code, 200);
        assert_eq!(probe(&world, "/livez").is("nodeEligible"), None);
        assert_eq!(
            asked_at(&world, Family::V6.node()).map(|answer| answer.code),
            Some(200),
            "the node is not asked for"
        );
    }
    assert_eq!(fs::read_dir(restores).unwrap().count(), 0, "restores for a taint");
    assert!(proxy.running());
}

/// A proxy that never saw its Node, for want of one, lives, but wants no traffic.
#[test]
fn a_node_that_was_never_seen() {
    let world = LEGACY.world(Fabric::Bridge, 1, 0);
    let (manifests, file) = (world.dir().join("empty"), world.dir().join("config.yaml"));
    fs::create_dir(&manifests).unwrap();
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\nconntrack: {maxPerCore: 0, min: 0}\noomScoreAdj: 0\n";
    fs::write(&file, text).unwrap();
    let _proxy = Proxy::launch_with(&world, &file, &manifests, "nobody");
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PROBES));
    let health = eventually(LONG, "probes are answered", || get(&world.node, to, "/healthz"));
    assert_eq!((health.code, health.is("healthy"), health.is("nodeEligible")), (503, Some(true), Some(false)));
    assert_eq!(probe(&world, "/livez").code, 200);
}

/// Whoever holds the lock keeps rules from being written.
#[test]
fn a_held_lock_shows_and_passes() {
    let world = LEGACY.world(Fabric::Bridge, 1, 0);
    let mut objects = Objects::new([balanced(&world, &["a0"])]);
    let proxy = Proxy::start(&world, &config(), &objects);
    assert_eq!(codes(&world), [200; 3]);
    let lock = File::options().create(true).append(true).open(world.tools.lock_file()).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    objects.services.push(Service::new(&world, "more", 4, &["a0"]));
    let start = Instant::now();
    write(&world, &objects);
    codes_become(&world, TIMEOUT + Duration::from_secs(10), "the lock is held", [503; 3]);
    assert!(start.elapsed() >= TIMEOUT, "too early: after {:?}", start.elapsed());
    let body = probe(&world, "/livez").body;
    assert_eq!((&body["healthy"], &body["status"]["IPv4"]["healthy"]), (&false.into(), &false.into()), "{body}");
    assert_eq!(asked_at(&world, world.family().node()).unwrap().is("serviceProxyHealthy"), Some(false));
    assert!(proxy.running());
    drop(lock);
    codes_become(&world, LONG, "the lock is free again", [200; 3]);
}

/// A restore that never ends is ended.
#[test]
fn a_hung_restore_shows_and_passes() {
    let world = NFT.world(Fabric::Bridge, 1, 0);
    let mut objects = Objects::new([balanced(&world, &["a0"])]);
    let proxy = Proxy::start(&world, &config(), &objects);
    // Once for the family of the Service, the only one that has something to write.
    world.tools.replace("-restore", "mkdir $STATE/hung 2>/dev/null && exec sleep 100000\nexec $REAL \"$@\"");
    objects.services.push(Service::new(&world, "more", 4, &["a0"]));
    let start = Instant::now();
    let marker = write(&world, &objects);
    codes_become(&world, TIMEOUT + Duration::from_secs(10), "a restore hangs", [503; 3]);
    assert!(start.elapsed() >= TIMEOUT, "too early: after {:?}", start.elapsed());
    assert!(probe(&world, "/healthz").is("healthy") == Some(false));
    // Its minute, and what a loaded machine takes.
    codes_become(&world, Duration::from_secs(60) + LONG, "the restore is given up", [200; 3]);
    proxy.settled(&marker);
    assert!(log(&world).contains("did not end within 60 s and was killed"), "the log does not say so");
}

/// The number of endpoints on this node, opened and closed with the Service.
fn a_load_balancer_asks(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let mut objects = Objects::new([balanced(&world, &["a0", "a1", "b0"])]);
    let proxy = Proxy::start(&world, &config(), &objects);
    let at = |port| get(&world.client, (family.node(), port).into(), "/any/path?x");
    let weight = |answer: &Answer| {
        let line = answer.head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "));
        line.unwrap_or("none").to_owned()
    };
    // Listeners follow the rules by a moment.
    let answered = |port, code, count: usize| {
        eventually(LONG, &format!("{code} with {count} endpoints on port {port}"), || {
            let answer = at(port)?;
            let said = (answer.code, weight(&answer), answer.body["localEndpoints"].as_u64());
            (said == (code, count.to_string(), Some(count as u64))).then_some(answer)
        })
    };
    let answer = answered(ASKED, 200, 2);
    assert_eq!(answer.body["service"], json!({"namespace": "ns", "name": "asked"}));
    assert_eq!(answer.is("serviceProxyHealthy"), Some(true));
    // Only in the family in which the Service has an address, on any address of it.
    let other = Family::BOTH.into_iter().find(|other| *other != family).unwrap();
    assert!(asked_at(&world, loopback(family)).is_some());
    assert_eq!(asked_at(&world, other.node()), None);

    // One that is on its way out still serves, but no more is to come; one elsewhere is of no use.
    let endpoints = std::mem::take(&mut objects.service("asked").endpoints);
    objects.service("asked").endpoints =
        vec![endpoints[0].clone(), endpoints[1].clone().leaving(), endpoints[2].clone()];
    proxy.apply(&objects);
    answered(ASKED, 200, 1);
    objects.service("asked").endpoints = vec![endpoints[1].clone().leaving(), endpoints[2].clone()];
    proxy.apply(&objects);
    answered(ASKED, 503, 0);
    objects.service("asked").endpoints = endpoints;
    proxy.apply(&objects);
    answered(ASKED, 200, 2);

    // Another port, which somebody else has at first.
    let taken = world.node.run(|| TcpListener::bind((family.node(), ASKED + 1))).unwrap();
    objects.service("asked").health_check_port = Some(ASKED + 1);
    proxy.apply(&objects);
    eventually(LONG, "the old port is closed", || at(ASKED).is_none().then_some(()));
    eventually(LONG, "the log says that the port is taken", || {
        log(&world).contains("bind: address already in use").then_some(())
    });
    drop(taken);
    answered(ASKED + 1, 200, 2);

    objects.services.clear();
    proxy.apply(&objects);
    eventually(LONG, "the port is closed", || at(ASKED + 1).is_none().then_some(()));
}

/// A Service with addresses of both families is asked for in both, each with its own endpoints.
#[test]
fn both_families_are_asked() {
    let world = LEGACY.world(Fabric::Bridge, 2, 0);
    let families = Family::BOTH;
    let slice = |family: Family, pods: &[&str]| {
        let endpoints = pods.iter().map(|pod| {
            json!({"addresses": [world.pod(pod).ip(family)], "nodeName": "node-a", "conditions": {"ready": true}})
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.name(),
            "metadata": {
                "name": format!("both-{}", family.name().to_lowercase()), "namespace": "ns",
                "labels": {"kubernetes.io/service-name": "both"},
            },
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    };
    let ips = families.map(|family| family.cluster_ip(9));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "both", "namespace": "ns"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families.map(Family::name),
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30009}],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": ASKED,
        },
    });
    let items = [service, slice(Family::V4, &["a0", "a1"]), slice(Family::V6, &["a1"])];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let folder = world.dir().join("manifests");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("both.json"), serde_json::to_vec(&list).unwrap()).unwrap();
    let _proxy = Proxy::start(&world, &config(), &Objects::default());
    for (family, count) in [(Family::V4, 2), (Family::V6, 1)] {
        let answer = eventually(LONG, "it is answered", || asked_at(&world, family.node()));
        assert_eq!((answer.code, &answer.body["localEndpoints"]), (200, &json!(count)), "{family:?}");
    }
    let listening = world.node.exec("ss", &["-Hltn", &format!("sport = :{ASKED}")], "");
    let mut at: Vec<&str> = listening.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    at.sort_unstable();
    assert_eq!(at, ["0.0.0.0:32000", "[::]:32000"]);
}

/// Load balancers are answered on these addresses only, and addresses may come and go.
fn only_on_node_port_addresses(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 0);
    let family = world.family();
    let (first, second) = (family.node(), family.external(77));
    let network = |ip: IpAddr| format!("{ip}/{}", family.host_bits());
    let node_port_addresses = vec![network(first), network(second), network(loopback(family))];
    // Loopback addresses count here even if they serve no node ports.
    let config = Config { node_port_addresses, localhost_node_ports: false, ..config() };
    let _proxy = Proxy::start(&world, &config, &Objects::new([balanced(&world, &["a0"])]));
    let asked = |ip| asked_at(&world, ip).map(|answer| answer.code);
    eventually(LONG, "it is answered", || (asked(first) == Some(200)).then_some(()));
    assert_eq!(asked(loopback(family)), Some(200));
    assert_eq!(asked(family.inner(crate::world::Node::A)), None, "not one of them");
    let address = |verb| {
        world.node.exec("ip", &["address", verb, &network(second), "dev", "inner"], "");
    };
    address("add");
    eventually(LONG, "it is answered on the new address", || (asked(second) == Some(200)).then_some(()));
    address("delete");
    let listening = || world.node.exec("ss", &["-Hltn", &format!("sport = :{ASKED}")], "").lines().count();
    eventually(LONG, "the old address is given up", || (listening() == 2).then_some(()));
    assert_eq!((asked(first), asked(loopback(family))), (Some(200), Some(200)));
}

/// An address that is taken is asked for again; with `bindAddressHardFail` it is the end.
#[test]
fn probes_whose_address_is_taken() {
    let world = LEGACY.world(Fabric::Bridge, 1, 0);
    let objects = Objects::new([Service::new(&world, "web", 1, &["a0"])]);
    let taken = world.node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PROBES))).unwrap();
    let proxy = Proxy::start(&world, &config(), &objects);
    let words =
        "failed to start proxy healthz on 0.0.0.0:10256: listen tcp 0.0.0.0:10256: bind: address already in use";
    assert!(log(&world).contains(words), "the log does not say so");
    drop(taken);
    eventually(LONG, "probes are answered", || {
        get(&world.node, (Ipv4Addr::LOCALHOST, PROBES).into(), "/healthz").filter(|answer| answer.code == 200)
    });
    proxy.terminate();

    let _taken = world.node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PROBES))).unwrap();
    let mut proxy = Proxy::launch(&world, &Config { bind_address_hard_fail: true, ..config() });
    let code = eventually(LONG, "it ends", || proxy.ended());
    assert_eq!(code, Some(1));
    assert!(log(&world).contains(&format!("healthz server failed: {words}")), "the log does not say so");
}
