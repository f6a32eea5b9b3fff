//! The kernel holds what it should, whoever else is at work there: what is there is taken over, what others remove comes
//! back, what others made stays, and what one Service cannot have is missing for that one only.

use std::net::SocketAddr;

use crate::kernel::{key, link, sets, table};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, LONG, Mode, Proxy};
use crate::rules::Rules;
use crate::traffic::{Call, Prober, Proto};
use crate::world::{Case, Fabric, World, eventually};

families!(
    what_is_there_is_taken_over,
    what_others_remove_comes_back,
    what_belongs_to_others_stays,
    what_is_left_of_a_deleted_service_goes,
    a_full_set_is_the_matter_of_one_service,
    node_ports_follow_the_addresses_of_the_node,
);

fn config() -> Config {
    Config { mode: Mode::IPVS, sync_period: "1s", ..Config::default() }
}

fn objects(world: &World) -> (Service, Objects) {
    let service = Service::new(world, "one", 1, &["a0", "b0"]).outside(1);
    let restricted = Service {
        source_ranges: vec![format!("{}/{}", world.family().client(0), world.family().host_bits())],
        external_local: true,
        health_check_port: Some(30_500),
        ..Service::new(world, "two", 2, &["a0"]).outside(2)
    };
    (service.clone(), Objects::new([service, restricted]))
}

/// All that is there, but for the marker Service.
fn state(world: &World) -> impl PartialEq + std::fmt::Debug + use<> {
    let table: Vec<_> = table(world).into_iter().map(|(key, server)| (key, server.scheduler, server.weights)).collect();
    (table, link(world), sets(world), Rules::read(world, world.family()))
}

fn what_is_there_is_taken_over(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let (service, all) = objects(&world);
    let proxy = Proxy::start(&world, &config(), &all);
    let before = state(&world);
    let prober = Prober::start(
        &world.client,
        Call::new(Proto::Tcp, SocketAddr::new(service.cluster_ip, SERVICE_PORT)),
        std::time::Duration::from_millis(3),
    );
    proxy.terminate();
    assert_eq!(state(&world), before, "an end changes nothing");
    std::fs::write(world.log_path(), "").unwrap();
    let proxy = Proxy::launch(&world, &config());
    let said = |what: &str| std::fs::read_to_string(world.log_path()).unwrap().contains(what);
    eventually(LONG, "a start finds everything right", || said("all rules are in the kernel").then_some(()));
    assert_eq!(state(&world), before);
    let log = std::fs::read_to_string(world.log_path()).unwrap();
    let synced = log.lines().find(|line| line.contains("\"synced\"")).unwrap_or_else(|| panic!("{log}"));
    // One run of ipset says that sets are to be there.
    assert!(synced.contains("written=0 restores=0"), "nothing is written: {synced}");
    prober.go_on(10);
    prober.finish_unharmed();
    proxy.terminate();
}

fn what_others_remove_comes_back(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let (service, all) = objects(&world);
    let _proxy = Proxy::start(&world, &config(), &all);
    let before = state(&world);
    let at = |ip| SocketAddr::new(ip, SERVICE_PORT).to_string();
    let (cluster, lb) = (at(service.cluster_ip), at(service.load_balancers[0]));
    let pod = world.pod("a0").address(world.family()).to_string();
    let address = format!("{}/{}", service.cluster_ip, world.family().host_bits());
    let tables = world.tools.real(world.family(), "");
    let (set, sources) = match world.family() {
        crate::world::Family::V4 => ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR"),
        crate::world::Family::V6 => ("KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID"),
    };
    let deeds: [(&str, Vec<&str>); 9] = [
        ("ipvsadm", vec!["-D", "-t", &cluster]),
        ("ipvsadm", vec!["-d", "-u", &lb, "-r", &pod]),
        ("ipvsadm", vec!["-a", "-t", &lb, "-r", "[fd00::9]:9"]),
        ("ipvsadm", vec!["-C"]),
        ("ip", vec!["addr", "del", &address, "dev", "kube-ipvs0"]),
        ("ip", vec!["link", "del", "kube-ipvs0"]),
        ("ipset", vec!["flush", set]),
        ("ipset", vec!["flush", sources]),
        (&tables, vec!["-t", "nat", "-F", "KUBE-SERVICES"]),
    ];
    for (program, args) in deeds {
        let mut args: Vec<&str> = args;
        if let Some(last) = args.last_mut().filter(|last| **last == "[fd00::9]:9")
            && world.family() == crate::world::Family::V4
        {
            *last = "192.0.2.9:9";
        }
        world.node.exec(program, &[&args[..1], &args[1..]].concat(), "");
        assert_ne!(state(&world), before, "{program} {args:?} did something");
        eventually(LONG, &format!("all is right again after {program} {args:?}"), || {
            (state(&world) == before).then_some(())
        });
    }
}

fn what_belongs_to_others_stays(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let (service, all) = objects(&world);
    let foreign = SocketAddr::new(world.family().client(77), 443).to_string();
    let real = world.pod("a0").address(world.family()).to_string();
    // An address that looks like one of ours, in a network that is not ours to touch.
    let excluded = SocketAddr::new(world.family().cluster_ip(900), 1).to_string();
    let network = match world.family() {
        crate::world::Family::V4 => "10.96.3.0/24",
        crate::world::Family::V6 => "fd00:10:96::384/126",
    };
    let mode = Mode::Ipvs { scheduler: "", excluded: vec![network] };
    let config = Config { mode, ..config() };
    world.node.exec("ipvsadm", &["-A", "-t", &foreign, "-s", "wlc"], "");
    world.node.exec("ipvsadm", &["-a", "-t", &foreign, "-r", &real, "-m", "-w", "7"], "");
    let of_others = |world: &World| {
        let mut table = table(world);
        (table.remove(&format!("TCP {foreign}")), table.remove(&format!("TCP {excluded}")))
    };
    let proxy = Proxy::start(&world, &config, &all);
    world.node.exec("ipvsadm", &["-A", "-t", &excluded, "-s", "wlc"], "");
    let address = format!("{}/{}", world.family().cluster_ip(900), world.family().host_bits());
    world.node.exec("ip", &["addr", "add", &address, "dev", "kube-ipvs0"], "");
    let before = of_others(&world);
    assert!(before.0.is_some() && before.1.is_some(), "{before:?}");
    eventually(LONG, "the address is nobody's", || {
        (!link(&world).contains(&world.family().cluster_ip(900))).then_some(())
    });
    proxy.terminate();
    let proxy = Proxy::start(&world, &config, &all);
    proxy.apply(&Objects::new([service]));
    assert_eq!(of_others(&world), before);
    let log = std::fs::read_to_string(world.log_path()).unwrap();
    assert!(log.contains("virtual servers of others are left alone"), "{log}");
}

/// While nobody was there to notice, or because a proxy ended in the middle.
fn what_is_left_of_a_deleted_service_goes(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let (service, all) = objects(&world);
    Proxy::start(&world, &config(), &all).crash();
    let of_marker = format!("{}", world.family().cluster_ip(9_999));
    let marker = |key: &String| key.contains(&of_marker);
    let keys = |world: &World| table(world).into_keys().filter(|key| !marker(key)).collect::<Vec<_>>();
    assert!(keys(&world).iter().any(|at| *at == key("TCP", service.cluster_ip, SERVICE_PORT)));
    let proxy = Proxy::start(&world, &config(), &Objects::default());
    assert_eq!(keys(&world), Vec::<String>::new());
    let addresses = link(&world);
    assert_eq!(addresses.len(), 1, "that of the marker: {addresses:?}");
    proxy.terminate();
}

/// What a set does not take is told, with the Service; others go on, and it comes as soon as there is room.
fn a_full_set_is_the_matter_of_one_service(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let (service, all) = objects(&world);
    let (set, family) = match world.family() {
        crate::world::Family::V4 => ("KUBE-LOAD-BALANCER", "inet"),
        crate::world::Family::V6 => ("KUBE-6-LOAD-BALANCER", "inet6"),
    };
    // As big as the two Services before need: kube-proxy's has room for 65,536.
    let create = format!("create {set} hash:ip,port family {family} hashsize 64 maxelem 4\n");
    world.node.exec("ipset", &["restore"], &create);
    let proxy = Proxy::start(&world, &config(), &all);
    let mut more = all.clone();
    let third = Service::new(&world, "three", 3, &["a1"]).outside(3);
    let fourth = Service::new(&world, "four", 4, &["a1"]);
    more.services.extend([third.clone(), fourth.clone()]);
    proxy.apply(&more);
    let said = |what: &str| std::fs::read_to_string(world.log_path()).unwrap().contains(what);
    eventually(LONG, "the Service is named", || said("ns/three:tcp").then_some(()));
    assert!(said(set) && said("full"), "with the set and the reason");
    let works = |service: &Service, ip| {
        let _ = service;
        let outcome = Call::new(Proto::Tcp, SocketAddr::new(ip, SERVICE_PORT)).impatient().make_in(&world.client);
        outcome.endpoint().is_some()
    };
    assert!(works(&fourth, fourth.cluster_ip), "another new one");
    assert!(works(&service, service.load_balancers[0]), "an old one");
    let mut fewer = more.clone();
    fewer.services.retain(|service| service.name != "two");
    proxy.apply(&fewer);
    eventually(LONG, "there is room now", || works(&third, third.load_balancers[0]).then_some(()));
}

fn node_ports_follow_the_addresses_of_the_node(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let (service, all) = objects(&world);
    let _proxy = Proxy::start(&world, &config(), &all);
    let port = service.node_port.unwrap();
    let new = world.family().client(88);
    let at = key("UDP", new, port);
    assert!(!table(&world).contains_key(&at));
    let address = format!("{new}/{}", world.family().host_bits());
    world.node.exec("ip", &["addr", "add", &address, "dev", "outer"], "");
    eventually(LONG, "a virtual server on a new address", || table(&world).contains_key(&at).then_some(()));
    world.node.exec("ip", &["addr", "del", &address, "dev", "outer"], "");
    eventually(LONG, "and none on one that went", || (!table(&world).contains_key(&at)).then_some(()));
    // An address of a load balancer that the node has anyway is not one of the link's.
    let lb = service.load_balancers[0];
    assert!(link(&world).contains(&lb));
    world.node.exec("ip", &["addr", "add", &format!("{lb}/{}", world.family().host_bits()), "dev", "outer"], "");
    eventually(LONG, "it is the node's own now", || (!link(&world).contains(&lb)).then_some(()));
    assert!(table(&world).contains_key(&key("TCP", lb, SERVICE_PORT)));
}
