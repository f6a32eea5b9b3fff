//! What the tracer reads from rules written by hand. Its answers about ferrule's own rules are
//! compared with the oracle's, and under `tests/netns/` with what real packets met.

use ferrule::backend::iptables::names::ChainName;
use ferrule::command::fake::Tables;
use ferrule::net::{IpFamily, Protocol};

use crate::tracer::{self, Packet, Seen, World};

const NODE: &str = "192.0.2.1";
const OTHER: &str = "198.51.100.7";
const AFAR: &str = "203.0.113.9";

/// A TCP packet to port 80; a process of the node sends it if no interface is named.
fn packet(interface: &str, source: &str, destination: &str) -> Packet {
    Packet {
        protocol: Protocol::Tcp,
        interface: Some(interface.to_owned()).filter(|name| !name.is_empty()),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        port: 80,
    }
}

/// Every way with its chance, where it ends, the lists the source is put on, and the rules that
/// applied, ordered by table and chain.
fn ways(rules: &str, packet: &Packet, seen: &Seen) -> Result<Vec<String>, String> {
    let tables = Tables::parse(IpFamily::V4, rules).unwrap();
    let world = World { addresses: vec![NODE.parse().unwrap()] };
    let show = |way: &tracer::Way<'_>| {
        let rules: Vec<String> =
            way.rules.iter().map(|place| format!("{}:{}:{}", place.table, place.chain, place.number)).collect();
        let lists: Vec<&str> = way.lists.iter().map(ChainName::as_str).collect();
        format!("{} {:?} {lists:?} {}", way.chance, way.verdict, rules.join(" "))
    };
    Ok(tracer::ways(&tables, &world, packet, seen)?.iter().map(show).collect())
}

#[track_caller]
fn check(rules: &str, packet: &Packet, expected: &[&str]) {
    assert_eq!(ways(rules, packet, &Seen::new()).unwrap(), expected);
}

#[test]
fn every_hook_has_its_turn() {
    // A rule without a target in each of them.
    let rules = "*mangle\n-A PREROUTING\n-A INPUT\n-A FORWARD\n-A OUTPUT\n-A POSTROUTING\nCOMMIT\n\
                 *filter\n-A INPUT\n-A FORWARD\n-A OUTPUT\nCOMMIT\n\
                 *nat\n-A PREROUTING\n-A INPUT\n-A OUTPUT\n-A POSTROUTING\nCOMMIT\n";
    let untouched = |places: &str| format!("1 Untouched {{ masqueraded: false }} [] {places}");
    let cases = [
        (packet("eth0", OTHER, NODE), "mangle:INPUT:0 mangle:PREROUTING:0 filter:INPUT:0 nat:INPUT:0 nat:PREROUTING:0"),
        (
            packet("eth0", OTHER, AFAR),
            "mangle:FORWARD:0 mangle:POSTROUTING:0 mangle:PREROUTING:0 filter:FORWARD:0 nat:POSTROUTING:0 nat:PREROUTING:0",
        ),
        (packet("", NODE, AFAR), "mangle:OUTPUT:0 mangle:POSTROUTING:0 filter:OUTPUT:0 nat:OUTPUT:0 nat:POSTROUTING:0"),
        // What the node sends to itself comes in as well, and is not translated again.
        (
            packet("", "127.0.0.1", "127.0.0.1"),
            "mangle:INPUT:0 mangle:OUTPUT:0 mangle:POSTROUTING:0 mangle:PREROUTING:0 \
             filter:INPUT:0 filter:OUTPUT:0 nat:OUTPUT:0 nat:POSTROUTING:0",
        ),
    ];
    for (packet, places) in cases {
        check(rules, &packet, &[&untouched(places)]);
    }
}

#[test]
fn rules_see_what_those_before_did() {
    // A mark that somebody else's rule sets is seen by later tables; a translated destination
    // decides where the packet goes; on the loopback interface the source is translated already.
    let rules = "*mangle\n-A OUTPUT -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n\
                 *nat\n-A OUTPUT -m mark --mark 0x4000/0x4000 -j DNAT --to-destination 192.0.2.1:8080\n\
                 -A POSTROUTING -j MASQUERADE\nCOMMIT\n\
                 *filter\n-A INPUT -s 127.0.0.0/8 -j DROP\n\
                 -A INPUT -i lo -s 192.0.2.0/24 -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -m conntrack --ctstate DNAT -j REJECT\n\
                 COMMIT\n";
    let all = "mangle:OUTPUT:0 filter:INPUT:1 nat:OUTPUT:0 nat:POSTROUTING:0";
    check(rules, &packet("", "127.0.0.1", AFAR), &[&format!("1 Rejected [] {all}")]);
}

#[test]
fn a_policy_decides_at_the_end_of_a_built_in_chain() {
    let rules = "*filter\n:INPUT DROP [0:0]\n:MINE - [0:0]\n-A INPUT -j MINE\n\
                 -A MINE -p tcp -m tcp --dport 80 -j RETURN\n-A MINE -j ACCEPT\nCOMMIT\n";
    check(rules, &packet("eth0", OTHER, NODE), &["1 Dropped [] filter:INPUT:0 filter:MINE:0"]);
    let dns = Packet { port: 53, ..packet("eth0", OTHER, NODE) };
    check(rules, &dns, &["1 Untouched { masqueraded: false } [] filter:INPUT:0 filter:MINE:1"]);
}

#[test]
fn chance_splits_the_way_and_lists_hold_it_together() {
    let rules = "*nat\n:A - [0:0]\n:B - [0:0]\n\
                 -A PREROUTING -m recent --rcheck --seconds 10 --reap --name B --mask 255.255.255.255 --rsource -j B\n\
                 -A PREROUTING -m statistic --mode random --probability 0.25000000000 -j A\n-A PREROUTING -j B\n\
                 -A A -j DNAT --to-destination 10.0.0.1:8080\n\
                 -A B -p tcp -m recent --set --name B --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.0.0.2:8080\n\
                 COMMIT\n";
    let delivered = |ip: &str, remembers: bool| {
        format!(
            "Delivered {{ backend: Backend {{ ip: {ip}, port: 8080 }}, masqueraded: false, remembers: {remembers} }}"
        )
    };
    let request = packet("eth0", OTHER, AFAR);
    let (first, second) = (delivered("10.0.0.1", false), delivered("10.0.0.2", true));
    let anew = [
        format!("0.75 {second} [\"B\"] nat:B:0 nat:PREROUTING:2"),
        format!("0.25 {first} [] nat:A:0 nat:PREROUTING:1"),
    ];
    let again = [format!("1 {second} [\"B\"] nat:B:0 nat:PREROUTING:0")];
    for (age, expected) in [(None, &anew[..]), (Some(10), &again), (Some(11), &anew)] {
        let seen = age.map(|age| ("B".into(), age)).into_iter().collect();
        assert_eq!(ways(rules, &request, &seen).unwrap(), expected, "{age:?}");
    }
}

#[test]
fn the_kernel_notes_a_source_although_a_later_condition_fails() {
    let rules = "*nat\n-A PREROUTING -m recent --set --name L --mask 255.255.255.255 --rsource -m mark --mark 0x1 -j ACCEPT\n\
                 -A PREROUTING -m recent --rcheck --seconds 1 --reap --name L --mask 255.255.255.255 --rsource \
                 -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n";
    let delivered = "Delivered { backend: Backend { ip: 10.0.0.1, port: 80 }, masqueraded: false, remembers: true }";
    check(rules, &packet("eth0", OTHER, AFAR), &[&format!("1 {delivered} [\"L\"] nat:PREROUTING:1")]);
}

#[test]
fn a_rule_that_cannot_be_read_is_an_error_where_a_packet_comes_to_it() {
    let rules = |condition: &str| {
        format!(
            "*nat\n:MINE - [0:0]\n-A PREROUTING {condition} -j MINE\n-A MINE -p tcp -j REDIRECT --to-ports 1\nCOMMIT\n"
        )
    };
    let request = packet("eth0", OTHER, NODE);
    let untouched = |places: &str| vec![format!("1 Untouched {{ masqueraded: false }} []{places}")];
    let read = |condition: &str, packet: &Packet| ways(&rules(condition), packet, &Seen::new());

    let error = read("-p tcp -m tcp --dport 80", &request).unwrap_err();
    assert!(error.contains("nat MINE: -p tcp -j REDIRECT --to-ports 1"), "{error}");
    assert!(read("! -i eth1", &request).is_err());
    assert!(read("-o eth1 -p tcp", &request).is_err(), "by which interface it leaves is not known");
    // It does not come there.
    assert_eq!(read("-p tcp -m tcp --dport 81", &request).unwrap(), untouched(" "));
    // It comes there, and is not meant: the rule is for another protocol.
    let udp = Packet { protocol: Protocol::Udp, ..request.clone() };
    assert_eq!(read("-i eth0", &udp).unwrap(), untouched(" nat:PREROUTING:0"));
    for unclear in ["-p all -j LOG", "! -p tcp -j LOG", "-p 17 -j LOG", "-m comment --comment \"-p icmp\" -j LOG"] {
        let rules = format!("*filter\n-A INPUT {unclear}\nCOMMIT\n");
        assert!(ways(&rules, &udp, &Seen::new()).is_err(), "{unclear}");
    }
    let icmp = "*filter\n-A INPUT -p icmp -m icmp --icmp-type 8 -j DROP\nCOMMIT\n";
    assert_eq!(ways(icmp, &udp, &Seen::new()).unwrap(), untouched(" "));
}

/// The same of nftables chains.
mod maps {
    use ferrule::backend::nftables::compile::Base;
    use ferrule::backend::nftables::ruleset::{
        Action, BY_ADDRESS, Chain, Element, Frontend, Hook, Key, Label, Match, Of, Rule, Set, Site, Value, Way,
    };
    use ferrule::net::Protocol;
    use ferrule::plan::Backend;

    use super::{AFAR, NODE, OTHER, packet};
    use crate::maps::Table;
    use crate::tracer::{Packet, World};

    fn chain(name: &str, hook: Option<(&'static str, &'static str, i16)>, rules: Vec<Rule>) -> Chain {
        let hook = hook.map(|(kind, hook, priority)| Hook { kind, hook, priority });
        Chain { name: name.to_owned(), hook, rules }
    }

    #[track_caller]
    fn check(chains: Vec<Chain>, elements: &[Element], packet: &Packet, expected: &[&str]) {
        let sets = vec![
            Set::ClusterIps,
            Set::Endpoints(Site::Address, Way::Usual),
            Set::Labels(Site::Address, Way::Usual),
            Set::Labels(Site::Address, Way::Inside),
            Set::Kept(10),
            Set::Clients,
        ];
        let base = Base { sets, chains, ..Base::default() };
        let world = World { addresses: vec![NODE.parse().unwrap()] };
        let ways = Table::new(&base, elements.iter().copied()).ways(&world, packet);
        let ways: Vec<String> = ways.iter().map(|way| format!("{} {:?}", way.chance, way.verdict)).collect();
        assert_eq!(ways, expected);
    }

    #[test]
    fn every_hook_has_its_turn() {
        // Dropped where it comes to this hook, and untouched where it does not.
        let passes = |kind, hook, priority, packet: &Packet| {
            let chains = vec![chain("here", Some((kind, hook, priority)), vec![Rule::new(Action::Drop)])];
            let base = Base { chains, ..Base::default() };
            let world = World { addresses: vec![NODE.parse().unwrap()] };
            let ways = Table::new(&base, []).ways(&world, packet);
            format!("{:?}", ways[0].verdict) == "Dropped"
        };
        let hooks = ["prerouting", "input", "forward", "output", "postrouting"];
        let cases = [
            (packet("eth0", OTHER, NODE), &["prerouting", "input"][..]),
            (packet("eth0", OTHER, AFAR), &["prerouting", "forward", "postrouting"]),
            (packet("", NODE, AFAR), &["output", "postrouting"]),
            // What the node sends to itself comes in as well, and is not translated again.
            (packet("", NODE, NODE), &["prerouting", "input", "output", "postrouting"]),
        ];
        for (packet, expected) in cases {
            let at = |kind| hooks.into_iter().filter(|hook| passes(kind, hook, 0, &packet)).collect::<Vec<_>>();
            assert_eq!(at("filter"), expected, "{packet:?}");
            let returns = packet.interface.is_none();
            let nat: Vec<&str> =
                expected.iter().copied().filter(|hook| !returns || !["prerouting", "input"].contains(hook)).collect();
            assert_eq!(at("nat"), nat, "{packet:?}");
        }
    }

    #[test]
    fn a_chain_gone_to_does_not_come_back_and_one_jumped_to_does() {
        let first = |action| vec![Rule::new(action), Rule::new(Action::Drop)];
        let goto = |name: &str| Action::Goto(name.to_owned());
        let jump = |name: &str| Action::Jump(name.to_owned());
        let hook = Some(("filter", "input", 0));
        let request = packet("eth0", OTHER, NODE);
        let both = |action| vec![chain("empty", None, Vec::new()), chain("in", hook, first(action))];
        check(both(jump("empty")), &[], &request, &["1 Dropped"]);
        check(both(goto("empty")), &[], &request, &["1 Untouched { masqueraded: false }"]);
        // It ends where the last jump was.
        let chains = vec![
            chain("empty", None, Vec::new()),
            chain("between", None, first(goto("empty"))),
            chain("in", hook, vec![Rule::new(jump("between")), Rule::new(Action::Reject)]),
        ];
        check(chains, &[], &request, &["1 Rejected"]);
    }

    #[test]
    fn chains_come_by_priority_and_translation_ends_but_its_own() {
        let map = Set::Endpoints(Site::Address, Way::Usual);
        let at = Frontend::Address(AFAR.parse().unwrap(), Protocol::Tcp, 80);
        let element = |number, last| {
            let endpoint = Backend { ip: [10, 0, 0, last].into(), port: 8080 };
            Element { set: map, key: Key::Slot(at, number), value: Some(Value::Endpoint(endpoint)) }
        };
        let draw = || Rule::new(Action::Translate { key: BY_ADDRESS, below: Some(4), map });
        let chains = vec![
            chain("late", Some(("filter", "forward", 1)), vec![Rule::new(Action::Reject)]),
            chain("early", Some(("filter", "forward", 0)), vec![Rule::new(Action::Drop).when(Match::Translated)]),
            chain("nat", Some(("nat", "prerouting", -100)), vec![draw(), draw()]),
        ];
        let request = packet("eth0", OTHER, AFAR);
        // Of four numbers one is there, the second time as well.
        check(chains.clone(), &[element(1, 1)], &request, &["0.4375 Dropped", "0.5625 Rejected"]);
        // Numbers that are not below four are never drawn.
        check(chains.clone(), &[element(4, 1)], &request, &["1 Rejected"]);
        let delivered = |last: u8, chance: &str| {
            format!(
                "{chance} Delivered {{ backend: Backend {{ ip: 10.0.0.{last}, port: 8080 }}, masqueraded: false, \
                 remembers: false }}"
            )
        };
        // Both numbers, each time.
        let ends = [delivered(1, "0.375"), delivered(2, "0.375"), "0.25 Untouched { masqueraded: false }".to_owned()];
        check(chains[2..].to_vec(), &[element(0, 1), element(3, 2)], &request, &ends.each_ref().map(String::as_str));
    }
    #[test]
    fn a_label_is_what_clients_are_known_by() {
        let at = Frontend::Address(AFAR.parse().unwrap(), Protocol::Tcp, 80);
        let label = |number| Value::Label(Label(number));
        let endpoint = Backend { ip: [10, 0, 0, 1].into(), port: 8080 };
        let labels = |way, value| Element {
            set: Set::Labels(Site::Address, way),
            key: Key::Frontend(at),
            value: Some(label(value)),
        };
        let client = |number| Element {
            set: Set::Clients,
            key: Key::Client(Label(number), OTHER.parse().unwrap()),
            value: Some(Value::Endpoint(endpoint)),
        };
        let kept = |number| Element { set: Set::Kept(10), key: Key::Label(Label(number)), value: None };
        let name = |way| Rule::new(Action::Label(BY_ADDRESS, Set::Labels(Site::Address, way)));
        let go = Rule::new(Action::Translate { key: &[Of::Label, Of::Source], below: None, map: Set::Clients });
        let remember = Rule::new(Action::Remember(10)).when_in(&[Of::Label], Set::Kept(10));
        let chains = vec![
            chain("nat", Some(("nat", "prerouting", -100)), vec![name(Way::Usual), name(Way::Inside), go]),
            chain("remember", Some(("filter", "forward", 0)), vec![remember]),
        ];
        let request = packet("eth0", OTHER, AFAR);
        let delivered = |remembers: bool| {
            format!(
                "1 Delivered {{ backend: Backend {{ ip: 10.0.0.1, port: 8080 }}, masqueraded: false, \
                 remembers: {remembers} }}"
            )
        };
        let untouched = "1 Untouched { masqueraded: false }";
        let usual = labels(Way::Usual, 1);
        check(chains.clone(), &[usual, client(1)], &request, &[&delivered(false)]);
        check(chains.clone(), &[usual, client(1), kept(1)], &request, &[&delivered(true)]);
        check(chains.clone(), &[usual, client(1), kept(2)], &request, &[&delivered(false)]);
        check(chains.clone(), &[usual, client(2), kept(2)], &request, &[untouched]);
        // The last one that is found counts, and one that is not takes none away.
        check(chains.clone(), &[usual, labels(Way::Inside, 2), client(2), kept(2)], &request, &[&delivered(true)]);
        check(chains.clone(), &[usual, labels(Way::Inside, 2), client(1)], &request, &[untouched]);
        // Without a label it is zero.
        check(chains, &[client(0), kept(0)], &request, &[&delivered(true)]);
    }
}
