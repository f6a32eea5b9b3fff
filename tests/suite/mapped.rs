//! nftables mode: for any cluster and any packet, what chains, sets and maps do together is what the Plan says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ferrule::backend::nftables::compile::{Base, Style, base, label};
use ferrule::backend::nftables::diff::Held;
use ferrule::backend::nftables::ruleset::{Element, Key, Label, Set, Value};
use ferrule::cluster::Event;
use ferrule::fixtures;
use ferrule::model::{Node, Service, ServiceCidr};
use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::build::{Balancing, Settings};
use ferrule::plan::{Backend, Plan, PoolKind};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::clusters::{self, Input, PacketSeed};
use crate::maps::Table;
use crate::tracer::{Packet, Verdict, World};
use crate::{oracle, pipeline, verdicts};

pub(crate) const STYLE: Style = Style { mark: 0x4000 };

/// What connections have that no pool has.
const NO_POOL: Label = Label(0);

/// How much chances may differ: what is left when luck was never found.
const BIAS: f64 = 1e-4;

/// A cluster, and what is special about it.
#[derive(Clone, Debug)]
struct Made {
    input: Input,
    /// The node has the cluster IPs of the first Service.
    owns: bool,
    /// Where Services get their addresses from, as far as one is told.
    service_cidrs: Vec<IpNet>,
}

/// A packet, and what is special about it.
#[derive(Clone, Debug)]
struct Shot {
    seed: PacketSeed,
    /// It goes to the first Service's cluster IP, whatever its port is.
    astray: bool,
    /// Its client is said to have been with an endpoint that the Service does not have.
    stale: bool,
    /// Its client got its first endpoint from the pool that this packet does not come to, and the second one from this.
    crossed: bool,
}

/// What there is in a kernel.
struct Kernel {
    plan: Plan,
    world: World,
    held: Held,
    base: Base,
}

/// Services of which some want the same addresses: the first one has them.
pub(crate) fn input(services: usize) -> impl Strategy<Value = Input> {
    (clusters::input(services), prop::bool::weighted(0.3)).prop_map(|(mut input, share)| {
        input.settings.balancing = Balancing::Maps;
        if let Some((first, others)) = input.services.split_first_mut().filter(|_| share) {
            others.iter_mut().for_each(|other| claim(other, first));
        }
        input
    })
}

fn claim(service: &mut Service, of: &Service) {
    let both = |own: &[IpAddr], others: &[IpAddr]| [own, others].concat();
    service.external_ips = both(&service.external_ips, &of.external_ips).into();
    service.load_balancer_ips = both(&service.load_balancer_ips, &of.load_balancer_ips).into();
}

fn made() -> impl Strategy<Value = Made> {
    let service_cidrs =
        ["10.96.0.0/16", "198.18.0.0/15", "fd00:96::/108", "fd00:18::/64"].map(|net| net.parse().unwrap()).to_vec();
    (input(3), prop::bool::weighted(0.2), subsequence(service_cidrs, 0..=4))
        .prop_map(|(input, owns, service_cidrs)| Made { input, owns, service_cidrs })
}

fn shots() -> impl Strategy<Value = Vec<Shot>> {
    let rarely = || prop::bool::weighted(0.1);
    let shot = (clusters::packet_seed(), rarely(), rarely(), prop::bool::weighted(0.2));
    prop::collection::vec(shot.prop_map(|(seed, astray, stale, crossed)| Shot { seed, astray, stale, crossed }), 24)
}

// === impl Kernel ===

impl Kernel {
    fn new(made: &Made, family: IpFamily) -> Kernel {
        let (mut world, mut addresses) = (clusters::world(), clusters::interface_addresses());
        if made.owns {
            for ip in first_cluster_ips() {
                world.addresses.push(ip);
                addresses.push(ip);
            }
        }
        let Input { settings, node, services, slices } = &made.input;
        let mut state = pipeline::cluster(node, &addresses, services.clone(), slices.clone());
        let service_cidr = ServiceCidr { name: "kubernetes".into(), cidrs: made.service_cidrs.clone() };
        state.apply(Event::ServiceCidr(Arc::new(service_cidr)));
        let plan = pipeline::plan(&state, settings, family);
        let held = held(&plan);
        let base = base(&plan.node, &STYLE, &held.timeouts());
        Kernel { plan, world, held, base }
    }

    /// The packets, and with which endpoints their clients are said to be.
    fn grow(&self, shots: &[Shot]) -> (Vec<Packet>, Vec<Element>) {
        let mut clients = BTreeMap::new();
        let packets = shots.iter().map(|shot| {
            let sent = shot.seed.grow(&self.plan);
            let mut packet = sent.packet;
            if shot.astray {
                let of_family = |ip: &IpAddr| IpFamily::of(*ip) == packet.family();
                packet.destination = first_cluster_ips().into_iter().find(of_family).unwrap();
            }
            let stale = Backend { ip: packet.source, port: 1 };
            let endpoints = shot.stale.then_some(stale).into_iter().chain(sent.remembered.keys().copied());
            let pool = oracle::pool(&self.plan, &self.world, &packet);
            let labels = pool.map_or([NO_POOL; 2], |(name, _, pool)| [pool, other(pool)].map(|pool| label(name, pool)));
            let order = if shot.crossed { [labels[1], labels[0]] } else { labels };
            clients.extend(order.map(|label| client(label, &packet)).into_iter().zip(endpoints));
            packet
        });
        let packets = packets.collect();
        let element = |(key, endpoint)| Element { set: Set::Clients, key, value: Some(Value::Endpoint(endpoint)) };
        (packets, clients.into_iter().map(element).collect())
    }

    /// What of these is the packet's client in the pool it comes to.
    fn known(&self, clients: &[Element], packet: &Packet) -> Option<Backend> {
        let (name, _, pool) = oracle::pool(&self.plan, &self.world, packet)?;
        let key = client(label(name, pool), packet);
        clients.iter().find(|element| element.key == key)?.value?.endpoint()
    }

    /// With clients that are with endpoints of theirs.
    fn table(&self, clients: &[Element]) -> Table<'_> {
        Table::new(&self.base, self.held.elements().map(|(element, _)| element).chain(clients.iter().copied()))
    }
}

fn first_cluster_ips() -> [IpAddr; 2] {
    ["10.96.0.1", "fd00:96::1"].map(|ip| ip.parse().unwrap())
}

fn client(label: Label, packet: &Packet) -> Key {
    Key::Client(label, packet.source)
}

fn remembered(label: Label, packet: &Packet, endpoint: Backend) -> Element {
    Element { set: Set::Clients, key: client(label, packet), value: Some(Value::Endpoint(endpoint)) }
}

pub(crate) fn held(plan: &Plan) -> Held {
    let mut held = Held::default();
    held.set(plan.services().iter().map(|(name, plan)| (name, Some(plan))));
    held
}

/// Whether a client stays with its endpoint: its Service port keeps clients, and has that endpoint in the same pool.
pub(crate) fn stays(plan: &Plan, element: &Element) -> bool {
    let (Key::Client(of, _), Some(Value::Endpoint(endpoint))) = (element.key, element.value) else {
        panic!("{element:?} is no client")
    };
    plan.services().iter().filter(|(_, service)| service.affinity_seconds.is_some()).any(|(name, service)| {
        PoolKind::ALL.iter().any(|pool| label(name, *pool) == of && service.pool(*pool).contains(&endpoint))
    })
}

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn maps_do_what_the_plan_says(made in made(), shots in shots()) {
        for family in IpFamily::BOTH {
            let kernel = Kernel::new(&made, family);
            let (plan, world) = (&kernel.plan, &kernel.world);
            let (packets, mut clients) = kernel.grow(&shots);
            let gone = kernel.held.stale_clients(clients.iter().copied());
            for client in &clients {
                prop_assert_eq!(stays(plan, client), !gone.contains(client), "{:?}\n{:#?}", client, plan);
            }
            clients.retain(|client| !gone.contains(client));
            let table = kernel.table(&clients);
            for packet in &packets {
                let ways = table.ways(world, packet);
                let known = kernel.known(&clients, packet);
                let does = verdicts::of_ways(&ways);
                let says = oracle::judge_mapped(plan, world, packet, known);
                prop_assert!(
                    does.is_within(BIAS, &says),
                    "{packet:?} {known:?}\nmaps:\n{does}plan:\n{says}{plan:#?}\n{:#?}",
                    kernel.held.elements().collect::<Vec<_>>()
                );
                let pool = oracle::pool(plan, world, packet);
                let keeps = pool.and_then(|(name, service, pool)| Some((label(name, pool), service.affinity_seconds?)));
                let wrong = ways.iter().find(|way| way.remembered.is_some() && way.remembered != keeps);
                prop_assert!(wrong.is_none(), "{packet:?} {wrong:?}");
            }
        }
    }

    #[test]
    fn clients_come_back_to_a_pool_and_are_strangers_to_the_other(made in made(), shots in shots()) {
        for family in IpFamily::BOTH {
            let kernel = Kernel::new(&made, family);
            let (packets, _) = kernel.grow(&shots[..6]);
            let empty = kernel.table(&[]);
            for packet in &packets {
                let anew = empty.ways(&kernel.world, packet);
                let with = |client| verdicts::of_ways(&kernel.table(&[client]).ways(&kernel.world, packet));
                for way in anew.iter().take(2) {
                    let (Some((label, _)), Verdict::Delivered { backend, .. }) = (way.remembered, way.verdict) else {
                        continue;
                    };
                    let again = with(remembered(label, packet, backend));
                    prop_assert!(again.delivers() && again.backends().eq([backend]), "{packet:?} {way:?}\n{again}");
                }
                let Some((name, service, pool)) = oracle::pool(&kernel.plan, &kernel.world, packet) else { continue };
                let other = other(pool);
                if let Some(endpoint) = service.pool(other).last() {
                    let ends = with(remembered(label(name, other), packet, *endpoint));
                    prop_assert_eq!(&ends, &verdicts::of_ways(&anew), "{:?} {:?}", packet, endpoint);
                }
            }
        }
    }
}

fn other(pool: PoolKind) -> PoolKind {
    match pool {
        PoolKind::Cluster => PoolKind::Local,
        PoolKind::Local => PoolKind::Cluster,
    }
}

/// A client of the cluster IP may be with an endpoint elsewhere. From outside it is led to endpoints of this node.
#[test]
fn a_client_of_the_cluster_pool_is_none_of_the_local_one() {
    let (mut service, mut slice) = clusters::plain_service(0, 4);
    let mut ports = service.ports.to_vec();
    ports[0].node_port = Some(30_000);
    let external_ips: Vec<IpAddr> = vec!["198.51.100.7".parse().unwrap()];
    service = Service {
        ports: ports.into(),
        external_ips: external_ips.into(),
        external_policy_local: true,
        affinity_seconds: Some(10),
        ..service
    };
    let mut endpoints = slice.endpoints.iter().collect::<Vec<_>>();
    endpoints[..2].iter_mut().for_each(|endpoint| endpoint.local = true);
    slice.endpoints = endpoints.into_iter().collect();
    let settings = Settings { balancing: Balancing::Maps, ..fixtures::settings("n0", "10.128.0.0/16") };
    let state = pipeline::cluster(&Node::default(), &clusters::interface_addresses(), vec![service], vec![slice]);
    let plan = pipeline::plan(&state, &settings, IpFamily::V4);
    let held = held(&plan);
    let base = base(&plan.node, &STYLE, &held.timeouts());
    let (name, service) = plan.services().iter().next().unwrap();
    let here = service.pool(PoolKind::Local);
    assert_eq!((service.pool(PoolKind::Cluster).len(), here.len()), (4, 2));
    let elsewhere = service.pool(PoolKind::Cluster).into_iter().find(|endpoint| !here.contains(endpoint)).unwrap();
    let packet = |source: &str, destination: &str, port| Packet {
        protocol: Protocol::Tcp,
        interface: Some("eth0".to_owned()),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        port,
    };
    let goes = |packet: &Packet, pool| {
        let client = remembered(label(name, pool), packet, elsewhere);
        assert_eq!(held.stale_clients([client]).is_empty(), pool == PoolKind::Cluster);
        let elements = held.elements().map(|(element, _)| element).chain([client]);
        let ends = verdicts::of_ways(&Table::new(&base, elements).ways(&clusters::world(), packet));
        assert!(ends.delivers(), "{packet:?}\n{ends}");
        ends.backends().collect::<Vec<_>>()
    };
    for port in [("172.31.99.2", 30_000), ("198.51.100.7", 80)] {
        let outside = packet("192.0.2.7", port.0, port.1);
        assert_eq!(goes(&outside, PoolKind::Cluster), here, "it is none of this pool's");
        assert_eq!(goes(&outside, PoolKind::Local), [elsewhere], "the test shows what it is looked up by");
        let pod = packet("10.128.7.7", port.0, port.1);
        assert_eq!(goes(&pod, PoolKind::Cluster), [elsewhere], "pods may go anywhere");
    }
    let at_cluster_ip = packet("192.0.2.7", "10.96.0.1", 80);
    assert_eq!(goes(&at_cluster_ip, PoolKind::Cluster), [elsewhere]);
    assert_eq!(goes(&at_cluster_ip, PoolKind::Local).len(), 4);
}

/// What is made up covers what can happen.
#[test]
fn packets_meet_every_fate() {
    let mut runner = TestRunner::deterministic();
    let strategy = (made(), shots());
    let mut fates: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..2000 {
        let (made, shots) = strategy.new_tree(&mut runner).unwrap().current();
        let kernel = Kernel::new(&made, IpFamily::V4);
        let (plan, world) = (&kernel.plan, &kernel.world);
        let (packets, mut clients) = kernel.grow(&shots);
        clients.retain(|client| stays(plan, client));
        for packet in &packets {
            let known = kernel.known(&clients, packet);
            for (verdict, _) in oracle::judge_mapped(plan, world, packet, known).iter() {
                let from = if packet.interface.is_some() { "from outside" } else { "from here" };
                let to = match made.owns && first_cluster_ips().contains(&packet.destination) {
                    true => "to an own cluster IP",
                    false => "elsewhere",
                };
                let fate = match verdict {
                    Verdict::Delivered { backend, masqueraded, remembers } => {
                        let hairpin = backend.ip == packet.source;
                        format!(
                            "delivered {from}, masqueraded: {masqueraded}, remembers: {remembers}, hairpin: {hairpin}, \
                             known: {}",
                            known.is_some()
                        )
                    }
                    other => format!("{other:?} {from} {to}"),
                };
                *fates.entry(fate).or_default() += 1;
            }
        }
    }
    let met = fates.values().filter(|count| **count >= 3).count();
    assert!(met >= 32, "{fates:#?}");
}
