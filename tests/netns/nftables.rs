//! What is nftables mode's own. (The tests that are for every mode are beside those of iptables mode.)

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ferrule::backend::nftables::compile::{Base, Style, base};
use ferrule::backend::nftables::ruleset::Action;
use ferrule::backend::nftables::support::check_netlink;
use ferrule::net::IpFamily;
use ferrule::plan::NodePlan;

use crate::objects::{Endpoint, Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Mode, Proxy, arguments, manifests, table, write};
use crate::rules::Rules;
use crate::tools::Variant;
use crate::traffic::{Call, Outcome, Prober, Probers, Proto, Stream};
use crate::world::{Case, Fabric, Family, Node, World, eventually};

families!(
    choices_are_even_for_any_number,
    a_flush_is_repaired_at_once,
    a_restart_writes_no_element,
    modes_take_over_from_one_another,
    a_kube_proxys_table_is_taken_over,
    tables_that_nft_cannot_list_are_no_obstacle,
    a_set_of_another_shape_is_made_anew,
    what_cannot_be_written_is_said_at_the_start,
    what_the_kernel_refuses_stays_with_its_service,
    so_it_does_however_much_that_is,
    loopback_addresses_serve_node_ports_if_asked,
    addresses_that_no_service_has_are_dropped,
    many_changes_end_in_the_same_state,
);

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn log(world: &World) -> String {
    fs::read_to_string(world.log_path()).unwrap()
}

fn cluster(service: &Service) -> Call {
    Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT))
}

fn node_port(service: &Service) -> Call {
    Call::new(Proto::Tcp, SocketAddr::new(service.family.node(), service.node_port.unwrap()))
}

/// Which of them a connection goes to, the kernel tells; nobody need answer.
fn choices_are_even_for_any_number(case: Case) {
    const EACH: usize = 40;
    let world = case.world(Fabric::Bridge, 1, 1);
    let family = world.family();
    for (n, many) in (1..).zip([3_u8, 7, 100]) {
        let at = |i: u8| Endpoint { ip: family.pod(Node::B, 20 + i), ..Endpoint::ready(world.pod("b0"), family) };
        let endpoints: Vec<Endpoint> = (0..many).map(at).collect();
        let service = Service { endpoints, ..Service::new(&world, &format!("of-{many}"), n, &[]) };
        let proxy = Proxy::start(&world, &Config::default(), &Objects::new([service.clone()]));
        let to = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
        let times = EACH * usize::from(many);
        world.client.run(|| {
            for _ in 0..times {
                let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
                socket.send_to(b"?", to).unwrap();
            }
        });
        let flows = world.node.proc_net("nf_conntrack");
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for line in flows.lines().filter(|line| line.contains("udp")) {
            let words =
                |name: &str| line.split_whitespace().filter_map(|word| word.strip_prefix(name)).collect::<Vec<_>>();
            let (destinations, sources) = (words("dst="), words("src="));
            if destinations[0].parse() == Ok(to.ip()) {
                *counts.entry(sources[1].to_owned()).or_default() += 1;
            }
        }
        let total: usize = counts.values().sum();
        assert!(total > times * 9 / 10 && counts.len() == usize::from(many), "{total} of {times}: {counts:?}");
        // Pearson's chi-square; the bound is exceeded once in ten million times (Wilson and Hilferty).
        let (degrees, mean) = (f64::from(many) - 1.0, total as f64 / f64::from(many));
        let square: f64 = counts.values().map(|count| (*count as f64 - mean).powi(2) / mean).sum();
        let part = 2.0 / (9.0 * degrees);
        let bound = degrees * (1.0 - part + 5.2 * part.sqrt()).powi(3);
        assert!(square < bound, "{many} endpoints: chi-square {square:.1} is not below {bound:.1}: {counts:?}");
        proxy.terminate();
    }
}

/// What others remove comes back as soon as they have removed it, and what ferrule itself changes is not taken for that.
fn a_flush_is_repaired_at_once(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let services: Vec<Service> = (1..=40).map(|n| Service::new(&world, &format!("s{n}"), n, &["a0", "b0"])).collect();
    let mut objects = Objects::new(services.clone());
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    for n in 0..5 {
        objects.services[n].endpoints.truncate(1);
        proxy.apply(&objects);
    }
    assert!(!log(&world).contains("removed by another program"), "{}", log(&world));

    let whole = table(&world, family);
    let removals: [&[&str]; 5] = [
        &["flush", "ruleset"],
        &["delete", "table", ip(family), "kube-proxy"],
        &["flush", "chain", ip(family), "kube-proxy", "services"],
        &["flush", "map", ip(family), "kube-proxy", "endpoints"],
        &["flush", "set", ip(family), "kube-proxy", "cluster-ips"],
    ];
    for removal in removals {
        // Where the chains at hooks go, the kernel translates nothing meanwhile, and what comes then is reset.
        let stream = (removal[0] == "flush" && removal[1] != "ruleset")
            .then(|| Stream::open(&world.client, cluster(&services[20])));
        world.node.exec("nft", removal, "");
        let removed = Instant::now();
        let call = Call { patience: Duration::from_millis(20), ..cluster(&services[20]) };
        eventually(LONG, &format!("connections work after {removal:?}"), || {
            call.make_in(&world.client).endpoint().is_some().then_some(())
        });
        eprintln!("{removal:?}: {:?} until the first connection", removed.elapsed());
        assert!(removed.elapsed() < Duration::from_secs(5), "not only when the sync period was over");
        eventually(LONG, "all is as it was", || (table(&world, family) == whole).then_some(()));
        stream.into_iter().for_each(Stream::finish);
    }
    let repairs = log(&world).matches("removed by another program").count();
    // A flush of everything is heard of in both families.
    assert!((5..=6).contains(&repairs), "{repairs} repairs\n{}", log(&world));
}

/// Elements that are right stay, and so do clients that are remembered.
fn a_restart_writes_no_element(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let sticky = Service { affinity: Some(600), ..Service::new(&world, "sticky", 2, &["a0", "a1", "b0"]).outside(2) };
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let mut objects = Objects::new([service.clone(), sticky.clone()]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let home = cluster(&sticky).make_in(&world.client).endpoint().unwrap().to_owned();
    let streams =
        [Stream::open(&world.pod("a1").netns, cluster(&service)), Stream::open(&world.client, node_port(&service))];
    let probers = Probers::start(&world, &service, "a2");
    // With the numbers that the kernel gives them, which are new for those that are written again.
    let rules = || {
        let chains =
            ["pick-services-of-4", "inside-pick-nodeports-of-1", "keep-clients-of-services", "remember-client-ip"];
        let list =
            |chain: &str| world.node.exec("nft", &["-a", "list", "chain", ip(world.family()), "kube-proxy", chain], "");
        chains.map(list)
    };
    let before_restarts = rules();
    proxy.crash();
    for _ in 0..3 {
        let before = log(&world).len();
        let proxy = Proxy::launch(&world, &Config::default());
        eventually(LONG, "all rules are in the kernel", || {
            log(&world)[before..]
                .contains(&format!("\"all rules are in the kernel\" family=\"{}\"", world.family().name()))
                .then_some(())
        });
        let said = log(&world)[before..].to_owned();
        let line =
            said.lines().find(|line| line.contains("all rules") && line.contains(world.family().name())).unwrap();
        assert!(line.contains("written=0"), "{line}");
        probers.go_on(10);
        streams.iter().for_each(|stream| stream.works("after a restart"));
        assert_eq!(cluster(&sticky).make_in(&world.client).endpoint(), Some(home.as_str()));
        assert_eq!(rules(), before_restarts, "rules that ask maps are dear to write");
        proxy.crash();
    }
    // What has changed meanwhile is caught up with: the client's endpoint is gone.
    objects.service("sticky").endpoints.retain(|endpoint| endpoint.ip != world.pod(&home).ip(world.family()));
    objects.services.retain(|service| service.name != "gone");
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    for _ in 0..10 {
        let outcome = cluster(&sticky).make_in(&world.client);
        assert!(outcome.endpoint().is_some_and(|endpoint| endpoint != home), "{outcome}");
    }
    probers.finish_unharmed();
    streams.into_iter().for_each(Stream::finish);
}

/// From iptables mode and back: nothing is left of the other one, connections go on, and none fails.
fn modes_take_over_from_one_another(case: Case) {
    for variant in [Variant::Legacy, Variant::Nft] {
        let world = Case { variant, ..case }.world(Fabric::Bridge, 3, 1);
        let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
        let objects = Objects::new([service.clone()]);
        let (rules, maps) = (Config::default(), Config { mode: Mode::Nftables, ..Config::default() });
        let proxy = Proxy::start(&world, &rules, &objects);
        let streams =
            [Stream::open(&world.client, node_port(&service)), Stream::open(&world.pod("a1").netns, cluster(&service))];
        let probers = Probers::start(&world, &service, "a2");
        proxy.terminate();
        for round in 0..2 {
            let proxy = Proxy::start(&world, &maps, &objects);
            eventually(LONG, "nothing is left of iptables mode", || {
                let chains = Family::BOTH.map(|family| Rules::read(&world, family).chains.into_keys());
                let mut chains = chains.into_iter().flatten();
                let own =
                    ["KUBE-SERVICES", "KUBE-SVC-", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-FORWARD", "KUBE-PROXY-"];
                (!chains.any(|(_, chain)| own.iter().any(|own| chain.starts_with(own)))).then_some(())
            });
            probers.go_on(5);
            streams.iter().for_each(|stream| stream.works("in nftables mode"));
            proxy.terminate();
            let proxy = Proxy::start(&world, &rules, &objects);
            eventually(LONG, "nothing is left of nftables mode", || {
                Family::BOTH.iter().all(|family| table(&world, *family).is_empty()).then_some(())
            });
            probers.go_on(5);
            streams.iter().for_each(|stream| stream.works("in iptables mode"));
            assert!(!log(&world).contains("leftovers of another mode stay"), "{round}: {}", log(&world));
            proxy.terminate();
        }
        probers.finish_unharmed();
    }
}

/// A table as kube-proxy writes it, with one Service.
fn table_of_kube_proxy(world: &World, service: &Service) -> String {
    let family = world.family();
    let (ip, addr) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let pods = ["a0", "b0"].map(|pod| world.pod(pod).ip(family));
    let (cluster_ip, node, port) = (service.cluster_ip, family.node(), service.node_port.unwrap());
    let chain = "ULMVA6XW-ns/web/tcp/tcp";
    format!(
        "add table {ip} kube-proxy {{ comment \"rules for kube-proxy\" ; }}
add set {ip} kube-proxy cluster-ips {{ type {addr} ; comment \"Active ClusterIPs\" ; }}
add set {ip} kube-proxy nodeport-ips {{ type {addr} ; }}
add map {ip} kube-proxy service-ips {{ type {addr} . inet_proto . inet_service : verdict ; }}
add map {ip} kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; }}
add chain {ip} kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}
add chain {ip} kube-proxy nat-output {{ type nat hook output priority -100 ; }}
add chain {ip} kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}
add chain {ip} kube-proxy services
add chain {ip} kube-proxy masquerading
add chain {ip} kube-proxy service-{chain}
add chain {ip} kube-proxy external-{chain}
add rule {ip} kube-proxy nat-prerouting jump services
add rule {ip} kube-proxy nat-output jump services
add rule {ip} kube-proxy nat-postrouting jump masquerading
add rule {ip} kube-proxy masquerading mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
add rule {ip} kube-proxy services {ip} daddr . meta l4proto . th dport vmap @service-ips
add rule {ip} kube-proxy services {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule {ip} kube-proxy external-{chain} mark set mark or 0x4000
add rule {ip} kube-proxy external-{chain} goto service-{chain}
add rule {ip} kube-proxy service-{chain} meta l4proto tcp dnat {ip} addr . port to numgen random mod 2 map {{ 0 : {} . 8080 , 1 : {} . 8080 }}
add element {ip} kube-proxy cluster-ips {{ {cluster_ip} }}
add element {ip} kube-proxy nodeport-ips {{ {node} }}
add element {ip} kube-proxy service-ips {{ {cluster_ip} . tcp . {SERVICE_PORT} : goto service-{chain} }}
add element {ip} kube-proxy service-nodeports {{ tcp . {port} : goto external-{chain} }}
",
        pods[0], pods[1]
    )
}

/// Without a connection that fails; and of kube-proxy's own chains and maps nothing is left.
fn a_kube_proxys_table_is_taken_over(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    world.node.exec("nft", &["-f", "-"], &table_of_kube_proxy(&world, &service));
    let stream = Stream::open(&world.client, node_port(&service));
    let pause = Duration::from_millis(3);
    let probers = [
        Prober::start(&world.client, node_port(&service), pause),
        Prober::start(&world.pod("a1").netns, cluster(&service), pause),
    ];
    probers.iter().for_each(|prober| prober.go_on(10));
    let _proxy = Proxy::start(&world, &Config::default(), &Objects::new([service.clone()]));
    probers.iter().for_each(|prober| prober.go_on(10));
    stream.works("after the takeover");
    let left = table(&world, world.family());
    for name in ["service-ips", "service-nodeports", "ns/web/tcp"] {
        assert!(!left.contains(&format!("{name} {{")) && !left.contains("vmap"), "{name} is left:\n{left}");
    }
    probers.into_iter().for_each(|prober| drop(prober.finish_unharmed()));
    stream.finish();
}

/// `nft` crashes over some tables of others: changes go on.
fn tables_that_nft_cannot_list_are_no_obstacle(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let mut service = Service::new(&world, "web", 1, &["a0"]);
    let mut objects = Objects::new([service.clone()]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    // Since it is there, `nft` does nothing at all.
    let broken = "#!/bin/sh\necho 'nft: netlink_delinearize.c:126: Assertion failed.' >&2\nkill -ABRT $$\n";
    let path = world.dir().join("bin/nft");
    fs::write(&path, broken).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    service.endpoints = vec![Endpoint::ready(world.pod("b0"), family)];
    objects.services = vec![service.clone(), Service::new(&world, "second", 2, &["a0"])];
    proxy.apply(&objects);
    assert_eq!(cluster(&service).make_in(&world.client).endpoint(), Some("b0"));
    assert_eq!(cluster(&objects.services[1]).make_in(&world.client).endpoint(), Some("a0"));
    assert!(!log(&world).contains("sync failed"), "{}", log(&world));
}

/// Of another program, or of another version: what the kernel can do does not depend on it.
fn a_set_of_another_shape_is_made_anew(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let (ip, addr) = match world.family() {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let table_of_others =
        format!("add table {ip} kube-proxy\nadd set {ip} kube-proxy services-2 {{ type {addr} ; }}\n");
    world.node.exec("nft", &["-f", "-"], &table_of_others);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]);
    let _proxy = Proxy::start(&world, &Config::default(), &Objects::new([service.clone()]));
    assert!(cluster(&service).make_in(&world.client).endpoint().is_some());
    assert!(log(&world).contains("the table is made anew"), "{}", log(&world));
}

/// Also what `nft` has no part in.
fn what_cannot_be_written_is_said_at_the_start(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 0);
    let family = match world.family() {
        Family::V4 => IpFamily::V4,
        Family::V6 => IpFamily::V6,
    };
    let usual = base(&NodePlan::unknown(family), &Style { mark: 0x4000 }, &[10].into());
    let said = |base: &Base| world.node.run(|| check_netlink(family, base).map_err(|missing| missing.to_string()));
    assert_eq!(said(&usual), Ok(()));

    // A kernel without an expression refuses the rule that has it, as it does one that makes no sense.
    let mut senseless = usual.clone();
    let chain = senseless.netlink_chains.iter_mut().find(|chain| chain.name == "pick-nodeports-of-4").unwrap();
    let Action::Translate { below, .. } = &mut chain.rules[3].action else { panic!("{chain:?}") };
    *below = Some(0);
    let refusal = said(&senseless).unwrap_err();
    let rule = "th dport . numgen random mod 0 map @nodeport-endpoints: ";
    assert!(
        refusal.contains("the kernel refuses what nftables mode needs (dnat ") && refusal.contains(rule),
        "{refusal}"
    );

    // One that asks a set that is not there is refused as well.
    let mut without = usual;
    without.sets.retain(|set| set.name() != "client-ip-10s");
    let refusal = said(&without).unwrap_err();
    assert!(refusal.contains("@client-ip-10s") && refusal.contains("No such file or directory"), "{refusal}");
    assert_eq!(world.node.exec("nft", &["list", "ruleset"], ""), "", "nothing of it stays");

    // The program asks, and ends: here it may not write, and its `nft` finds nothing wrong.
    world.tools.put("nft", "[ \"$1\" != --version ] || PATH=/usr/sbin:/sbin:/usr/bin:/bin exec nft --version");
    write(&world, &Objects::new([]));
    let file = world.dir().join("config.json");
    let config = Config { mode: Mode::Nftables, ..Config::default() };
    fs::write(&file, config.file().to_string()).unwrap();
    let unable = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", "--"].map(Into::into);
    let arguments = [unable.to_vec(), arguments(&file, &manifests(&world), Node::A.name())].concat();
    let status = Proxy::spawn(&world, &arguments).wait();
    assert_eq!(status.code(), Some(1));
    let said = log(&world);
    assert!(
        said.contains("can't use the nftables proxier: IPv4: the kernel refuses what nftables mode needs"),
        "{said}"
    );
    assert!(said.contains("(nf_tables: Operation not permitted"), "{said}");
}

/// A set that takes no more than one Service with two endpoints.
fn one_of_two_endpoints(world: &World) {
    let (ip, addr) = match world.family() {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let full = format!(
        "add table {ip} kube-proxy\nadd set {ip} kube-proxy services-2 {{ type {addr} . inet_proto . inet_service ; size 1 ; }}\n"
    );
    world.node.exec("nft", &["-f", "-"], &full);
}

/// One Service is set aside, by name, and all others work; when there is room, it does, too.
fn what_the_kernel_refuses_stays_with_its_service(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    one_of_two_endpoints(&world);
    let first = Service { protocols: vec![Proto::Tcp], ..Service::new(&world, "first", 1, &["a0", "b0"]) };
    let second = Service { protocols: vec![Proto::Tcp], ..Service::new(&world, "second", 2, &["a0", "b0"]) };
    let third = Service { protocols: vec![Proto::Tcp], ..Service::new(&world, "third", 3, &["b0"]) };
    let mut objects = Objects::new([first.clone(), second.clone(), third.clone()]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let answers = |service: &Service| cluster(service).impatient().make_in(&world.client).endpoint().is_some();
    let serves = [&first, &second].map(answers);
    assert!(serves == [true, false] || serves == [false, true], "{serves:?}");
    assert!(answers(&third));
    let aside = if serves[0] { "ns/second:tcp" } else { "ns/first:tcp" };
    let said = log(&world);
    let line =
        said.lines().find(|line| line.contains("set aside: the kernel refuses")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(aside), "{line}");
    // Without the other one, there is room.
    objects.services.retain(|service| service.name != if serves[0] { "first" } else { "second" });
    objects.services[0].endpoints.reverse();
    objects.services[0].port = 81;
    proxy.apply(&objects);
    let moved = Call::new(Proto::Tcp, SocketAddr::new(objects.services[0].cluster_ip, 81));
    assert!(moved.make_in(&world.client).endpoint().is_some(), "{}", log(&world));
    assert!(answers(&third));
}

/// The kernel has no room for as many answers as it would have to give at once.
fn so_it_does_however_much_that_is(case: Case) {
    const MANY: u16 = 1_000;
    let world = case.world(Fabric::Bridge, 1, 1);
    one_of_two_endpoints(&world);
    let service = |n: u16, endpoints: &[&str]| Service {
        protocols: vec![Proto::Tcp],
        ..Service::new(&world, &format!("s{n}"), n, endpoints)
    };
    let other = service(MANY + 1, &["b0"]);
    let objects = Objects::new((1..=MANY).map(|n| service(n, &["a0", "b0"])).chain([other.clone()]));
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    assert!(cluster(&other).make_in(&world.client).endpoint().is_some());
    let aside = format!("set_aside={} ", MANY - 1);
    eventually(LONG, "all others are set aside", || log(&world).contains(&aside).then_some(()));
}

/// `--ferrule-localhost-nodeports`: IPv4 alone, TCP and UDP, whichever addresses else serve them.
fn loopback_addresses_serve_node_ports_if_asked(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let local = Service { external_local: true, ..Service::new(&world, "local", 2, &["a0"]).outside(2) };
    let objects = Objects::new([service.clone(), local.clone()]);
    let call =
        |service: &Service, proto| Call::new(proto, SocketAddr::new(family.loopback(), service.node_port.unwrap()));
    let usual = Proxy::start(&world, &Config::default(), &objects);
    for proto in Proto::SOCKETS {
        assert_eq!(call(&service, proto).make_in(&world.node), Outcome::Refused, "{proto:?}: only if asked");
    }
    usual.terminate();
    let config = Config { localhost_nodeports: true, ..Config::default() };
    let _proxy = Proxy::start(&world, &config, &objects);
    for proto in Proto::SOCKETS {
        for service in [&service, &local] {
            let outcomes = call(service, proto).repeat_in(&world.node, 20);
            let shown: Vec<String> = outcomes.iter().map(ToString::to_string).collect();
            for outcome in &outcomes {
                match family {
                    Family::V4 => assert!(outcome.endpoint().is_some(), "{proto:?} {}: {shown:?}", service.name),
                    Family::V6 => assert_eq!(outcome, &Outcome::Refused, "{proto:?}: IPv6 has no such routes"),
                }
            }
        }
    }
}

/// Within the networks of ServiceCIDRs, and as long as there is one. Somebody outside has that address, and refuses.
fn addresses_that_no_service_has_are_dropped(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let family = world.family();
    let service = Service { protocols: Proto::SOCKETS.to_vec(), ..Service::new(&world, "web", 1, &["a0"]) };
    let (nobodys, beyond) = (family.cluster_ip(200), family.external(9));
    for ip in [nobodys, beyond] {
        world.client.exec("ip", &["address", "add", &format!("{ip}/{}", family.host_bits()), "dev", "lo"], "");
    }
    let mut objects = Objects::new([service.clone()]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    let senders = [&world.pod("a0").netns, &world.pod("b0").netns, &world.node];
    let holds = |when: &str, dropped: bool| {
        for netns in senders {
            for proto in Proto::SOCKETS {
                let to = |ip, port| Call::new(proto, SocketAddr::new(ip, port));
                let outcome = match dropped {
                    true => to(nobodys, SERVICE_PORT).impatient().make_in(netns),
                    false => to(nobodys, SERVICE_PORT).make_in(netns),
                };
                let expected = if dropped { Outcome::Silence } else { Outcome::Refused };
                assert_eq!(outcome, expected, "{proto:?} from {} {when}", netns.name());
                assert_eq!(to(beyond, SERVICE_PORT).make_in(netns), Outcome::Refused, "{proto:?} {when}: none of them");
                let served = to(service.cluster_ip, SERVICE_PORT).make_in(netns);
                assert!(served.endpoint().is_some(), "{proto:?} from {} {when}: {served}", netns.name());
                assert_eq!(
                    to(service.cluster_ip, 9).make_in(netns),
                    Outcome::Refused,
                    "{proto:?} {when}: no such port"
                );
            }
        }
    };
    holds("without a ServiceCIDR", false);
    objects.service_cidrs = Family::BOTH.map(|family| family.service_cidr().to_owned()).to_vec();
    proxy.apply(&objects);
    holds("with one", true);
    objects.service_cidrs.retain(|net| net.contains(':') != (family == Family::V6));
    proxy.apply(&objects);
    holds("with one for the other family", false);
    proxy.terminate();
    objects.service_cidrs = vec![family.service_cidr().to_owned()];
    let _proxy = Proxy::start(&world, &Config::default(), &objects);
    holds("with one from the beginning", true);
}

/// After random changes the table is that of a proxy that starts with the last objects.
fn many_changes_end_in_the_same_state(case: Case) {
    const CHANGES: usize = 1_000;
    const AT_ONCE: usize = 25;
    let world = case.world(Fabric::Bridge, 3, 2);
    let family = world.family();
    let pods = ["a0", "a1", "a2", "b0", "b1"];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        // Xorshift: the same numbers each time.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut objects = Objects::new([Service::new(&world, "s1", 1, &["a0"])]);
    let proxy = Proxy::start(&world, &Config::default(), &objects);
    for _ in 0..CHANGES / AT_ONCE {
        for _ in 0..AT_ONCE {
            let n = 1 + next(12);
            let name = format!("s{n}");
            objects.services.retain(|service| service.name != name);
            if next(4) > 0 {
                let some: Vec<&str> = pods.iter().copied().filter(|_| next(2) == 0).collect();
                let mut service = Service::new(&world, &name, n as u16, &some);
                if next(2) == 0 {
                    service = service.outside(n as u8);
                }
                service.external_local = next(3) == 0;
                service.internal_local = next(4) == 0;
                service.affinity = [None, None, Some(60), Some(600)][next(4)];
                if next(3) == 0 && !service.load_balancers.is_empty() {
                    service.source_ranges = vec![format!("{}/{}", family.client(0), family.host_bits())];
                }
                objects.services.push(service);
            }
        }
        proxy.apply(&objects);
    }
    let after_changes = table(&world, family);
    proxy.terminate();
    world.node.exec("nft", &["delete", "table", ip(family), "kube-proxy"], "");
    let _fresh = Proxy::start(&world, &Config::default(), &objects);
    let fresh = table(&world, family);
    let sorted = |text: &str| {
        let words = text.replace("elements = {", "").replace('}', ",");
        let mut lines: Vec<String> = words.lines().map(|line| line.trim().trim_end_matches(',').to_owned()).collect();
        lines.retain(|line| !line.contains("zz-marker"));
        lines.sort();
        lines
    };
    let (left, right) = (sorted(&after_changes), sorted(&fresh));
    let only = |these: &[String], others: &[String]| {
        these.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>()
    };
    assert_eq!((only(&left, &right), only(&right, &left)), (Vec::new(), Vec::new()));
    assert!(left.len() > 100);
}
