//! nftables mode: elements that come and go lead from any cluster to any other, and are drawn with equal chances.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ferrule::backend::nftables::compile::{Base, base, label};
use ferrule::backend::nftables::diff::{Change, Held, comment};
use ferrule::backend::nftables::render;
use ferrule::backend::nftables::ruleset::{Action, Chain, Element, Key, Match, Set, Value};
use ferrule::fixtures;
use ferrule::model::{Endpoint, Hints, Node, ServicePortName};
use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::build::{Balancing, Settings};
use ferrule::plan::{NodePlan, NodePortAddresses, Plan, PoolKind};
use proptest::prelude::*;

use crate::clusters::{self, Input};
use crate::mapped::{self, STYLE};
use crate::maps::Table;
use crate::tracer::Packet;
use crate::{equivalence, pipeline, verdicts};

/// What the kernel has, with comments.
type Elements = BTreeMap<(Set, Key), (Option<Value>, Option<Box<str>>)>;

fn elements(held: &Held) -> Elements {
    let mut elements = Elements::new();
    held.elements().for_each(|(element, owner)| insert(&mut elements, element, owner));
    elements
}

/// Does a transaction as the kernel would.
fn apply(elements: &mut Elements, changes: &[Change]) {
    changes.iter().flat_map(|change| &change.remove).for_each(|element| remove(elements, element));
    for change in changes {
        for element in &change.add {
            insert(elements, *element, Some(&change.name).filter(|_| !element.set.is_shared()));
        }
    }
}

fn remove(elements: &mut Elements, element: &Element) {
    let was = elements.remove(&(element.set, element.key)).map(|(value, _)| value);
    assert_eq!(was, Some(element.value), "{element:?} is not there");
}

fn insert(elements: &mut Elements, Element { set, key, value }: Element, owner: Option<&ServicePortName>) {
    // Ranges that overlap are refused as well.
    if let Key::Allowed(at, net) = key {
        let overlaps = elements.keys().any(|(_, other)| match other {
            Key::Allowed(frontend, other) => *frontend == at && (other.contains(&net) || net.contains(other)),
            _ => false,
        });
        assert!(!overlaps, "{key:?} overlaps another");
    }
    let said = owner.map(|owner| comment(owner).into());
    assert_eq!(elements.insert((set, key), (value, said)), None, "{key:?} is in {set:?} already");
}

/// Makes it what a Plan says, so many Service ports at once, in an order that `seed` chooses.
fn lead(held: &mut Held, table: &mut Elements, plan: &Plan, at_once: usize, seed: u64) {
    let mut names: Vec<_> = everything(held, plan).into_iter().collect();
    let mut seed = seed;
    for last in (1..names.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        names.swap(last, usize::try_from(seed >> 33).unwrap() % (last + 1));
    }
    for names in names.chunks(at_once) {
        apply(table, &held.set(names.iter().map(|name| (name, plan.services().get(name)))));
    }
}

/// Service ports that are there, or shall be.
fn everything(held: &Held, plan: &Plan) -> BTreeSet<ServicePortName> {
    held.names().chain(plan.services().keys()).cloned().collect()
}

/// A client of every pool that keeps them, with each endpoint; and whose pool it is.
fn clients(plan: &Plan) -> Vec<(&ServicePortName, Element)> {
    let somebody: IpAddr = if plan.node.family == IpFamily::V4 { "192.0.2.7" } else { "fd00:2::7" }.parse().unwrap();
    let services = plan.services().iter().filter(|(_, service)| service.affinity_seconds.is_some());
    let pools = services.flat_map(|(name, service)| PoolKind::ALL.map(|pool| (name, pool, service.pool(pool))));
    let clients = pools.flat_map(|(name, pool, endpoints)| {
        let key = Key::Client(label(name, pool), somebody);
        let with = move |endpoint| Element { set: Set::Clients, key, value: Some(Value::Endpoint(endpoint)) };
        endpoints.into_iter().map(move |endpoint| (name, with(endpoint)))
    });
    clients.collect()
}

fn remove_leftovers(held: &mut Held, table: &mut Elements) {
    held.take_leftovers().iter().for_each(|element| remove(table, element));
}

fn adopted(table: &Elements) -> Held {
    let found = table.iter();
    Held::of(found.map(|((set, key), (value, said))| (Element { set: *set, key: *key, value: *value }, said.clone())))
}

fn plans(inputs: &[Input], family: IpFamily) -> Vec<Plan> {
    inputs.iter().map(|input| equivalence::plan(input, family)).collect()
}

fn pieces() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(2), Just(100)]
}

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn changes_lead_from_one_cluster_to_the_next(
        inputs in prop::collection::vec(mapped::input(3), 1..4), at_once in pieces(), seed in any::<u64>(),
    ) {
        for family in IpFamily::BOTH {
            let (mut held, mut table) = (Held::default(), Elements::new());
            for plan in plans(&inputs, family) {
                lead(&mut held, &mut table, &plan, at_once, seed);
                let fresh = mapped::held(&plan);
                prop_assert_eq!(&table, &elements(&fresh));
                prop_assert_eq!(&table, &elements(&held));
                prop_assert_eq!(held.timeouts(), fresh.timeouts());
            }
        }
    }

    #[test]
    fn who_loses_clients_is_told(a in mapped::input(3), b in mapped::input(3)) {
        for family in IpFamily::BOTH {
            let (a, b) = (equivalence::plan(&a, family), equivalence::plan(&b, family));
            let mut held = mapped::held(&a);
            let changes = held.set(everything(&held, &b).iter().map(|name| (name, b.services().get(name))));
            let unsettled = changes.into_iter().filter(|change| change.is_unsettled);
            let told: BTreeSet<ServicePortName> = unsettled.map(|change| change.name).collect();
            for (name, client) in clients(&a) {
                let stays = mapped::stays(&b, &client);
                prop_assert!(stays || told.contains(name), "{client:?}\n{a:#?}\n{b:#?}");
            }
        }
    }

    #[test]
    fn what_is_found_becomes_what_shall_be(
        inputs in [mapped::input(3), mapped::input(3)], at_once in pieces(), seed in any::<u64>(),
        said in prop::collection::vec(prop_oneof![3 => Just(None), 1 => Just(Some(None)), 1 => Just(Some(Some("x")))], 5),
    ) {
        for family in IpFamily::BOTH {
            let plans = plans(&inputs, family);
            let mut table = elements(&mapped::held(&plans[0]));
            // Comments may have been others.
            for ((_, found), said) in table.values_mut().zip(said.iter().cycle()) {
                if let Some(said) = said {
                    *found = said.map(Into::into);
                }
            }
            let mut held = adopted(&table);
            lead(&mut held, &mut table, &plans[1], at_once, seed);
            remove_leftovers(&mut held, &mut table);
            prop_assert_eq!(&table, &elements(&mapped::held(&plans[1])));
            prop_assert_eq!(&table, &elements(&held));
        }
    }

    #[test]
    fn what_is_found_as_it_shall_be_stays(input in mapped::input(3)) {
        for family in IpFamily::BOTH {
            let plan = equivalence::plan(&input, family);
            let mut held = adopted(&elements(&mapped::held(&plan)));
            let changes = held.set(plan.services().iter().map(|(name, plan)| (name, Some(plan))));
            prop_assert_eq!(changes, []);
            prop_assert_eq!(held.take_leftovers(), []);
        }
    }

    #[test]
    fn another_endpoint_is_elements_of_its_service(input in mapped::input(3), at in any::<prop::sample::Index>()) {
        let endpoints = |input: &Input| input.slices.iter().map(|slice| slice.endpoints.len()).sum::<usize>();
        prop_assume!(endpoints(&input) > 0);
        let mut other = input.clone();
        let full: Vec<usize> = (0..input.slices.len()).filter(|i| !input.slices[*i].endpoints.is_empty()).collect();
        let slice = &mut other.slices[full[at.index(full.len())]];
        let mut endpoints = slice.endpoints.iter().collect::<Vec<_>>();
        endpoints.remove(at.index(endpoints.len()));
        slice.endpoints = endpoints.into_iter().collect();
        let service = slice.service.clone();
        for family in IpFamily::BOTH {
            let (one, other) = (equivalence::plan(&input, family), equivalence::plan(&other, family));
            let mut held = mapped::held(&one);
            let before = rules(&one, &held);
            let changes = held.set(other.services().iter().map(|(name, plan)| (name, Some(plan))));
            prop_assert_eq!(before, rules(&other, &held));
            prop_assert!(changes.iter().all(|change| change.name.service == service), "{:#?}", changes);
        }
    }

    #[test]
    fn text_names_nothing_that_is_not_there(input in mapped::input(3)) {
        for family in IpFamily::BOTH {
            let text = render::whole(&equivalence::plan(&input, family), &STYLE);
            let complaints = unknown(&text);
            prop_assert!(complaints.is_empty(), "{complaints:#?}");
        }
    }
}

fn rules(plan: &Plan, held: &Held) -> Base {
    base(&plan.node, &STYLE, &held.timeouts())
}

/// Lines that name what no line before them has made.
fn unknown(text: &str) -> Vec<&str> {
    let (mut sets, mut chains) = (BTreeSet::new(), BTreeSet::new());
    let mut complaints = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.trim_start_matches("# written over netlink: ").split(' ').collect();
        let known = match words.as_slice() {
            ["add", "table", ..] => true,
            ["add", "set" | "map", _, _, name, ..] => sets.insert(*name),
            ["add", "chain", _, _, name, ..] => chains.insert(*name),
            ["flush", "chain", _, _, name] => chains.contains(name),
            ["flush", "set", _, _, name] | ["add", "element", _, _, name, ..] => sets.contains(name),
            ["add", "rule", _, _, name, rule @ ..] => {
                let mut asked = rule.iter().filter_map(|word| word.strip_prefix('@'));
                chains.contains(name)
                    && asked.all(|set| sets.contains(set))
                    && called(rule).all(|chain| chains.contains(chain))
            }
            _ => false,
        };
        if !known {
            complaints.push(line);
        }
    }
    complaints
}

/// Chains that a rule leads to.
fn called<'a>(rule: &[&'a str]) -> impl Iterator<Item = &'a str> {
    rule.windows(2).filter(|words| ["jump", "goto"].contains(&words[0])).map(|words| words[1])
}

#[test]
fn what_is_named_and_not_there_is_found() {
    let text =
        "add table ip t\nadd set ip t s { type mark ; }\nadd chain ip t a\nadd rule ip t a meta mark @s jump a\n";
    assert_eq!(unknown(text), Vec::<&str>::new());
    let more = ["add rule ip t a jump b", "add rule ip t a meta mark @m drop", "add element ip t m { 1 }"];
    assert_eq!(unknown(&format!("{text}{}", more.join("\n"))), more);
}

/// Chains come after those they lead to, and no set is there for nothing.
#[test]
fn rules_lead_to_earlier_chains_and_ask_every_set() {
    let node = NodePlan { node_port_addresses: NodePortAddresses::Only(Vec::new()), ..NodePlan::unknown(IpFamily::V4) };
    let base = base(&node, &STYLE, &[10, 10_800].into());
    let mut script = render::Script::new(IpFamily::V4);
    script.base(&base);
    let text = script.into_text();
    let mut before = BTreeSet::new();
    for chain in base.netlink_chains.iter().chain(&base.chains) {
        assert!(called_by(chain).all(|name| before.contains(name)), "{chain:?}");
        for rule in text.lines().filter(|line| line.starts_with(&format!("add rule ip kube-proxy {} ", chain.name))) {
            let words: Vec<&str> = rule.split(' ').collect();
            assert!(called(&words).all(|name| before.contains(name)), "{rule}");
        }
        before.insert(chain.name.as_str());
    }
    let asked: BTreeSet<&str> = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix('@')).collect();
    let names = |sets: &BTreeSet<Set>| sets.iter().map(|set| set.name()).collect::<BTreeSet<_>>();
    let by_text = asked_by(&base.chains);
    assert_eq!(asked, names(&by_text).iter().map(String::as_str).collect());
    let by_all: BTreeSet<Set> = by_text.into_iter().chain(asked_by(&base.netlink_chains)).collect();
    assert_eq!(by_all, base.sets.into_iter().collect());
}

/// Chains that rules of this one lead to.
fn called_by(chain: &Chain) -> impl Iterator<Item = &str> {
    chain.rules.iter().filter_map(|rule| match &rule.action {
        Action::Jump(to) | Action::Goto(to) => Some(to.as_str()),
        _ => None,
    })
}

/// Sets that rules ask, or add to.
fn asked_by(chains: &[Chain]) -> BTreeSet<Set> {
    let mut sets = BTreeSet::new();
    for rule in chains.iter().flat_map(|chain| &chain.rules) {
        sets.extend(rule.matches.iter().filter_map(|condition| match condition {
            Match::In { set, .. } => Some(*set),
            _ => None,
        }));
        sets.extend(match rule.action {
            Action::Translate { map, .. } | Action::Label(_, map) => Some(map),
            Action::Remember(_) => Some(Set::Clients),
            _ => None,
        });
    }
    sets
}

/// Only those of a Service port have a comment, which says whose they are; one with another comment is replaced.
#[test]
fn what_is_found_with_another_comment_is_replaced() {
    let (service, slice) = clusters::plain_service(0, 2);
    let settings = Settings { balancing: Balancing::Maps, ..fixtures::settings("n0", "10.128.0.0/16") };
    let addresses = clusters::interface_addresses();
    let state = pipeline::cluster(&Node::default(), &addresses, vec![service], vec![slice]);
    let plan = pipeline::plan(&state, &settings, IpFamily::V4);
    let whole = elements(&mapped::held(&plan));
    assert!(whole.iter().all(|((set, _), (_, said))| set.is_shared() != said.is_some()), "{whole:#?}");
    for at in whole.keys() {
        for said in [None, Some("other")] {
            let mut table = whole.clone();
            let found = &mut table.get_mut(at).unwrap().1;
            let same = found.as_deref() == said;
            *found = said.map(Into::into);
            let mut held = adopted(&table);
            let changes = held.set(plan.services().iter().map(|(name, plan)| (name, Some(plan))));
            let places = |elements: &[Element]| elements.iter().map(|element| (element.set, element.key)).collect();
            let changed: Vec<(Vec<_>, Vec<_>)> =
                changes.iter().map(|change| (places(&change.remove), places(&change.add))).collect();
            let expected = if same { Vec::new() } else { vec![(vec![*at], vec![*at])] };
            assert_eq!(changed, expected);
            apply(&mut table, &changes);
            assert_eq!(table, whole);
        }
    }
}

/// The Cluster pool loses an endpoint, as hints are for other zones now, while it gets another number in the Local pool.
#[test]
fn clients_that_one_pool_loses_are_told_though_the_other_has_their_endpoint() {
    let (mut service, mut slice) = clusters::plain_service(0, 3);
    service.external_ips = ["198.51.100.7".parse().unwrap()].into();
    (service.external_policy_local, service.affinity_seconds) = (true, Some(10));
    let settings = Settings { balancing: Balancing::Maps, ..fixtures::settings("n0", "10.128.0.0/16") };
    let node = Node { zone: Some("z0".into()), ..Node::default() };
    let all: Vec<Endpoint> = slice.endpoints.iter().collect();
    let mut plan = |zones: &[(usize, &str)]| {
        let endpoint = |&(n, zone): &(usize, &str)| {
            let hints = Hints { zones: [zone.into()].into(), nodes: Box::default() };
            Endpoint { local: n < 2, hints: Some(Arc::new(hints)), ..all[n].clone() }
        };
        slice.endpoints = zones.iter().map(endpoint).collect();
        let addresses = clusters::interface_addresses();
        let state = pipeline::cluster(&node, &addresses, vec![service.clone()], vec![slice.clone()]);
        pipeline::plan(&state, &settings, IpFamily::V4)
    };
    let before = plan(&[(1, "z0"), (2, "z0")]);
    let after = plan(&[(0, "z0"), (1, "z1"), (2, "z0")]);
    let lost: Vec<Element> = clients(&before)
        .into_iter()
        .map(|(_, client)| client)
        .filter(|client| !mapped::stays(&after, client))
        .collect();
    let (name, _) = before.services().iter().next().unwrap();
    assert!(lost.len() == 1 && matches!(lost[0].key, Key::Client(of, _) if of == label(name, PoolKind::Cluster)));
    let mut held = mapped::held(&before);
    let changes = held.set(after.services().iter().map(|(name, plan)| (name, Some(plan))));
    assert_eq!(held.stale_clients(lost.clone()), lost);
    assert!(changes.iter().any(|change| change.is_unsettled), "{changes:#?}");
}

/// At a cluster IP, at a node port, and at one that only asks endpoints elsewhere for what comes from this node.
#[test]
fn every_endpoint_is_drawn_as_often_as_the_others() {
    let node: IpAddr = "172.31.99.2".parse().unwrap();
    let outside = |destination: &str, port| Packet {
        protocol: Protocol::Tcp,
        interface: Some("eth0".to_owned()),
        source: "192.0.2.7".parse().unwrap(),
        destination: destination.parse().unwrap(),
        port,
    };
    let inside = Packet { interface: None, source: node, ..outside("172.31.99.2", 30_001) };
    let settings = Settings { balancing: Balancing::Maps, ..fixtures::settings("n0", "10.128.0.0/16") };
    let cases = [outside("10.96.0.1", 80), outside("172.31.99.2", 30_000), inside];
    for endpoints in 1..=130_u16 {
        let made = [(0, 30_000), (1, 30_001)].map(|(i, node_port)| {
            let (mut service, slice) = clusters::plain_service(i, endpoints);
            let mut ports = service.ports.to_vec();
            ports[0].node_port = Some(node_port);
            service.ports = ports.into();
            service.external_policy_local = i == 1;
            (service, slice)
        });
        let (services, slices): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let state = pipeline::cluster(&Node::default(), &clusters::interface_addresses(), services, slices);
        let plan = pipeline::plan(&state, &settings, IpFamily::V4);
        let held = mapped::held(&plan);
        let base = rules(&plan, &held);
        let table = Table::new(&base, held.elements().map(|(element, _)| element));
        for packet in &cases {
            let ends = verdicts::of_ways(&table.ways(&clusters::world(), packet));
            assert!(ends.delivers() && ends.iter().count() == usize::from(endpoints), "{packet:?}\n{ends}");
            let fair = 1.0 / f64::from(endpoints);
            let worst = ends.iter().map(|(_, chance)| (chance / fair - 1.0).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-4, "{endpoints} endpoints, {packet:?}: {worst}\n{ends}");
        }
    }
}
