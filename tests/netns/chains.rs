//! Chains of the nat table read over netlink: what the programs of nf_tables wrote, and what they print.

use std::collections::{BTreeMap, BTreeSet};

use ferrule::backend::iptables::apply::{self, first_input};
use ferrule::backend::iptables::compile::Layout;
use ferrule::backend::iptables::names::{ChainName, byte_of_addresses};
use ferrule::backend::iptables::netlink::Counters;
use ferrule::backend::iptables::nft::{Chains, Kernel};
use ferrule::cluster::{ClusterState, Event};
use ferrule::fixtures::{self, NodeFixture, ServiceFixture, SliceFixture, node, service, slice};
use ferrule::model::Kind;
use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::Plan;
use ferrule::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings};
use tempfile::TempDir;

use crate::tools::{Tools, Variant};
use crate::world::{Family, Namespace};

const NODE: &str = "node-a";
const SEP: &str = "KUBE-SEP-AAAAAAAAAAAAAAAA";
const MARK: u32 = 1 << 14;
/// All that is not where kube-proxy has it.
const ELSEWHERE: Layout = Layout { bucketed_services: true, compact_endpoints: true };

/// A network namespace with nothing in it.
struct Empty {
    family: Family,
    netns: Namespace,
    tools: Tools,
    _dir: TempDir,
}

/// Rules by chain.
type Rules = BTreeMap<String, Vec<String>>;

// === impl Empty ===

impl Empty {
    fn new(family: Family) -> Empty {
        let dir = tempfile::tempdir().unwrap();
        let tools = Tools::install(Variant::Nft, dir.path());
        Empty { family, netns: Namespace::create("empty"), tools, _dir: dir }
    }

    fn kernel(&self) -> Kernel {
        Kernel::new(ip_family(self.family))
    }

    fn restore(&self, text: &str) {
        self.netns.exec(&self.tools.real(self.family, "-restore"), &["-w", "5", "--noflush"], text);
    }

    /// What the programs print of a chain.
    fn printed(&self, chain: &str) -> Vec<String> {
        let text = self.netns.exec(&self.tools.real(self.family, ""), &["-t", "nat", "-S", chain], "");
        let prefix = format!("-A {chain} ");
        text.lines().filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned)).collect()
    }

    /// What is read over netlink.
    fn read(&self, chain: &str) -> Vec<Option<String>> {
        let mut found = Vec::new();
        self.netns.run(|| {
            self.kernel().rules(&[chain.into()], &mut |_, rule| found.push(rule.map(str::to_owned))).unwrap();
        });
        found
    }

    fn names(&self) -> BTreeSet<String> {
        let mut names = Vec::new();
        self.netns.run(|| self.kernel().names(&mut |name| names.push(name.to_owned())).unwrap());
        let found: BTreeSet<String> = names.iter().cloned().collect();
        assert_eq!(found.len(), names.len(), "a name twice");
        found
    }
}

fn ip_family(family: Family) -> IpFamily {
    match family {
        Family::V4 => IpFamily::V4,
        Family::V6 => IpFamily::V6,
    }
}

/// Addresses of both families in one text: `a|b`.
fn of(family: Family, both: &str) -> &str {
    let (v4, v6) = both.split_once('|').unwrap();
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

// === what ferrule writes ===

/// A Service with all protocols and kinds of addresses, the n-th.
fn everything(family: Family, n: u16) -> ServiceFixture {
    let ip = |both: &str| format!("{}{}", of(family, both), n + 1);
    let named = service(&format!("svc-{n}")).at(&ip("10.96.0.|fd00:96::"));
    let with_ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .fold(named, |service, protocol| service.port_of(protocol, protocol.lower(), 80).node_port(30_000 + n));
    with_ports.load_balanced_at(&ip("203.0.113.|fd00:113::")).external_ip(&ip("198.18.0.|fd00:18::"))
}

/// Its endpoints, so many on this node and so many on another.
fn endpoints(family: Family, n: u16, here: u16, there: u16) -> SliceFixture {
    let ip = |number: u16| match family {
        Family::V4 => format!("10.{}.{}.{}", 128 + n, number / 250, number % 250 + 1),
        Family::V6 => format!("fd00:128:{n}::{number:x}"),
    };
    let empty = slice(&format!("svc-{n}-0"), &format!("svc-{n}"));
    let with_ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .fold(empty, |slice, protocol| slice.port_of(protocol, protocol.lower(), 8080));
    (0..here + there)
        .fold(with_ports, |slice, number| slice.ready_on(&ip(number), if number < here { NODE } else { "node-b" }))
}

fn this_node(family: Family) -> NodeFixture {
    node(NODE).at(of(family, "192.0.2.10|2001:db8::10")).with_pods_in(of(family, "10.128.0.0/24|fd00:128::/64"))
}

/// Services of all kinds.
fn services(family: Family) -> Vec<(ServiceFixture, SliceFixture)> {
    let narrow = |service: ServiceFixture| {
        let nets = ["192.0.2.0/24|2001:db8::/64", "172.16.0.0/12|fd00::/12", "203.0.113.7/32|fd00:113::7/128"];
        nets.iter().fold(service, |service, both| service.only_from(of(family, both)))
    };
    vec![
        (everything(family, 0), endpoints(family, 0, 2, 3)),
        (everything(family, 1).external_traffic_local().health_checked_at(32_001), endpoints(family, 1, 2, 3)),
        (everything(family, 2).internal_traffic_local(), endpoints(family, 2, 1, 1)),
        (everything(family, 3).affinity(10_800), endpoints(family, 3, 2, 2)),
        (narrow(everything(family, 4)), endpoints(family, 4, 1, 0)),
        (
            narrow(everything(family, 5))
                .external_traffic_local()
                .internal_traffic_local()
                .health_checked_at(32_002)
                .affinity(1),
            endpoints(family, 5, 2, 1),
        ),
        (everything(family, 6), endpoints(family, 6, 0, 0)),
    ]
}

fn settings(detect_local: DetectLocal, masquerade_all: bool) -> Settings {
    Settings {
        node_name: NODE.into(),
        bind_address: None,
        masquerade_all,
        localhost_node_ports: true,
        node_port_addresses: NodePortSetting::Cidrs(Vec::new()),
        detect_local,
        external_ips: true,
        balancing: Balancing::Rules,
    }
}

fn plan(family: Family, settings: &Settings, services: &[(ServiceFixture, SliceFixture)]) -> Plan {
    let (family, this_node) = (ip_family(family), this_node(family));
    let mut state = ClusterState::new();
    let mut tell = |event| _ = state.apply(event);
    tell(Event::Addresses(this_node.model().addresses.into()));
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        tell(Event::Listing(kind));
    }
    tell(this_node.event());
    for (service, slice) in services {
        tell(service.event());
        tell(slice.event(NODE));
    }
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        tell(Event::Synced(kind));
    }
    fixtures::plan(&state, settings, family)
}

/// The rules of the nat table in the input of a restore.
fn written(text: &str) -> Rules {
    let table = text.split("*nat\n").nth(1).unwrap().split("COMMIT").next().unwrap();
    let mut rules = Rules::new();
    for line in table.lines() {
        if let Some(chain) = line.strip_prefix(':') {
            rules.entry(chain.split(' ').next().unwrap().to_owned()).or_default();
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            rules.entry(chain.to_owned()).or_default().push(rule.to_owned());
        }
    }
    rules
}

fn what_is_written_is_read(
    family: Family,
    settings: &Settings,
    layout: Layout,
    services: &[(ServiceFixture, SliceFixture)],
) {
    let empty = Empty::new(family);
    let text = first_input(
        &plan(family, settings, services),
        &apply::Settings { mark: MARK, drop_invalid: true, layout },
        true,
        Counters::default(),
    );
    empty.restore(&text);
    let written = written(&text);
    let prefixes: &[&str] = match layout == ELSEWHERE {
        false => &["KUBE-SVC-", "KUBE-SEP-"],
        true => &["KUBE-SVC-", "KUBE-SVC-ADDR-"],
    };
    for prefix in prefixes {
        assert!(written.keys().any(|chain| chain.starts_with(*prefix)), "no {prefix}");
    }
    let names = empty.names();
    assert!(written.keys().all(|chain| names.contains(chain)), "{names:?}");

    // All of them in one call.
    let chains: Vec<ChainName> = written.keys().map(|chain| chain.as_str().into()).collect();
    let mut read: BTreeMap<String, Vec<Option<String>>> =
        written.keys().map(|chain| (chain.clone(), Vec::new())).collect();
    let mut order = Vec::new();
    empty.netns.run(|| {
        let take = &mut |chain: &ChainName, rule: Option<&str>| {
            read.get_mut(chain.as_str()).unwrap().push(rule.map(str::to_owned));
            order.push(chain.clone());
        };
        empty.kernel().rules(&chains, take).unwrap();
    });
    order.dedup();
    assert!(order.is_sorted(), "chain by chain");
    for (chain, rules) in &written {
        let printed = empty.printed(chain);
        let wanted: Vec<Option<String>> = printed.iter().cloned().map(Some).collect();
        // The chain has a match that is not read, and is none of those that are asked for.
        if chain != "KUBE-POSTROUTING" || !layout.compact_endpoints {
            assert_eq!(read[chain], wanted, "{chain}: read, printed");
        }
        // Rules of shared chains are inserted each by itself.
        if ChainName::from(chain.as_str()).is_per_service() && byte_of_addresses(chain).is_none() {
            assert_eq!(&printed, rules, "{chain}: printed, written");
        }
    }
}

fn everything_written_is_read(family: Family) {
    let cluster_cidr = DetectLocal::ClusterCidr(vec![of(family, "10.128.0.0/9|fd00:128::/44").parse().unwrap()]);
    let detectors = [
        (cluster_cidr, false),
        (DetectLocal::NodeCidr, true),
        (DetectLocal::BridgeInterface("cni0".into()), false),
        (DetectLocal::InterfaceNamePrefix("veth-".into()), false),
        (DetectLocal::ClusterCidr(Vec::new()), true),
    ];
    for (detector, masquerade_all) in detectors {
        let settings = settings(detector, masquerade_all);
        for layout in [Layout::default(), ELSEWHERE] {
            what_is_written_is_read(family, &settings, layout, &services(family));
        }
    }
    // A large cluster, whose rules have no comments and whose chains no datagram holds.
    let large = [(everything(family, 0), endpoints(family, 0, 1, 400))];
    for layout in [Layout::default(), ELSEWHERE] {
        what_is_written_is_read(family, &settings(DetectLocal::NodeCidr, false), layout, &large);
    }
}

#[test]
fn everything_written_is_read_ipv4() {
    everything_written_is_read(Family::V4);
}

#[test]
fn everything_written_is_read_ipv6() {
    everything_written_is_read(Family::V6);
}

// === what others write ===

/// Rules that ferrule writes, each with changes to it: parts of its text and what takes their place.
/// `SRC`, `DST` and `MASK` stand for addresses of the family, `DIGIT` and its like for parts of them.
const CHANGES: [(&str, &[(&str, &str)]); 7] = [
    (
        "-p tcp -m comment --comment \"default/web:http\" -m tcp -j DNAT --to-destination DST:8080",
        &[
            (":8080", ":8080 --random"),
            (":8080", ":8080 --persistent"),
            (":8080", ":8080 --random --persistent"),
            (":8080", ""),
            (":8080", ":8080-8081"),
            (":8080", ":8080-8090/9000"),
            (":8080", ":8081"),
            ("tcp", "udp"),
            ("-m tcp", "-m tcp --sport 5"),
            ("-m tcp", "-m tcp --dport 5"),
            ("-m tcp", "-m tcp --dport 5:7"),
            ("-m tcp", "-m tcp ! --dport 5"),
            ("-m tcp", "-m tcp --syn"),
            ("-m tcp", "-m tcp --tcp-flags ALL NONE"),
            ("-m tcp", "-m tcp --tcp-option 5"),
            ("-m tcp", ""),
            ("-m tcp", "-m multiport --dports 5,6"),
            ("-p tcp", "-p tcp -o eth0"),
            ("-p tcp", "-p tcp -i eth0"),
            ("-p tcp", "-p tcp -s SRC"),
            ("-p tcp", "-p tcp ! -s SRC"),
            ("-p tcp -m comment --comment \"default/web:http\" -m tcp", "-p udplite"),
            ("-p tcp -m comment --comment \"default/web:http\" -m tcp", "! -p tcp"),
            ("default/web:http", "default/web:httq"),
            ("default/web:http", "default\\\\web:http"),
            ("-m comment --comment \"default/web:http\"", ""),
            ("-m comment", "-m limit --limit 5/sec -m comment"),
            ("-m comment", "-m mark --mark 0x1 -m comment"),
            ("-m comment", "-m conntrack --ctstate NEW -m comment"),
            ("-m comment", "-m addrtype --dst-type LOCAL -m comment"),
            ("-m comment", "-m comment --comment default -m comment"),
        ],
    ),
    (
        "-s SRC -m comment --comment \"default/web:http\" -j KUBE-MARK-MASQ",
        &[
            ("-j", "-g"),
            ("-j KUBE-MARK-MASQ", "-j KUBE-MARK-DROP"),
            ("-j KUBE-MARK-MASQ", "-j RETURN"),
            ("-j KUBE-MARK-MASQ", "-j ACCEPT"),
            ("-j KUBE-MARK-MASQ", ""),
            ("-j KUBE-MARK-MASQ", "-j LOG"),
            ("-j KUBE-MARK-MASQ", "-j REDIRECT"),
            ("-s SRC", "-d SRC"),
            ("-s SRC", "! -s SRC"),
            ("-s SRC", "-s SRC/31"),
            ("-s SRC", "-s SRC/24"),
            ("-s SRC", "-s SRC/8"),
            ("-s SRC", "-s SRC/9"),
            ("-s SRC", ""),
            ("-s SRC", "-s SRC -i eth0"),
            ("-s SRC", "-s SRC -i eth+"),
            ("-s SRC", "-s SRC ! -i eth+"),
            ("-s SRC", "-s SRC -o eth+"),
        ],
    ),
    (
        "-m statistic --mode random --probability 0.3333333333 -j KUBE-SVC-AAAAAAAAAAAAAAAA",
        &[
            ("0.3333333333", "0.3333333338"),
            ("0.3333333333", "0.5"),
            ("--mode random", "--mode random !"),
            ("--mode random --probability 0.3333333333", "--mode nth --every 3"),
            ("--mode random --probability 0.3333333333", "--mode nth --every 3 --packet 1"),
        ],
    ),
    (
        "-m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-AAAAAAAAAAAAAAAA --mask MASK --rsource -j \
         KUBE-SVC-AAAAAAAAAAAAAAAA",
        &[
            ("--seconds 10800 --reap", "--seconds 10800"),
            ("--seconds 10800 --reap", "--seconds 10801 --reap"),
            ("--seconds 10800 --reap", "--seconds 10800 --reap --hitcount 2"),
            ("--seconds 10800 --reap", "--seconds 10800 --reap --rttl"),
            ("--seconds 10800 --reap", ""),
            ("--rcheck", "--update"),
            ("--rcheck", "! --rcheck"),
            ("--rsource", "--rdest"),
            ("MASK", "SRC"),
            ("AAAA --mask", "AAAB --mask"),
            ("--rcheck --seconds 10800 --reap", "--set"),
            ("--rcheck --seconds 10800 --reap", "! --set"),
            ("--rcheck --seconds 10800 --reap", "--remove"),
        ],
    ),
    (
        "-d DIGIT -j KUBE-SVC-AAAAAAAAAAAAAAAA",
        &[
            ("-d DIGIT", "-s DIGIT"),
            ("-d DIGIT", "! -d DIGIT"),
            ("-d DIGIT", "-d SRC"),
            ("-d DIGIT", ""),
            ("DIGIT", "OTHER"),
            ("DIGIT", "UPPER"),
            ("DIGIT", "THREE"),
            ("DIGIT", "SPLIT"),
        ],
    ),
    (
        "-m addrtype --src-type LOCAL -j KUBE-SVC-AAAAAAAAAAAAAAAA",
        &[
            ("--src-type", "--dst-type"),
            ("--src-type", "! --src-type"),
            ("LOCAL", "UNICAST"),
            ("LOCAL", "LOCAL,UNICAST"),
            ("LOCAL", "LOCAL --limit-iface-in"),
            ("LOCAL", "LOCAL --dst-type LOCAL"),
        ],
    ),
    (
        "-j MARK --set-xmark 0x4000/0x4000",
        &[
            ("0x4000/0x4000", "0x4000/0x0"),
            ("0x4000/0x4000", "0x8000/0x4000"),
            ("0x4000/0x4000", "0x4000/0xffffffff"),
            ("MARK --set-xmark", "CONNMARK --set-xmark"),
            ("-j", "-m mark --mark 0x4000 -j"),
            ("-j", "-m mark ! --mark 0x4000/0x4000 -j"),
        ],
    ),
];

fn changed_rules_are_not_taken_for_others(family: Family) {
    let empty = Empty::new(family);
    let in_family = |text: &str| {
        text.replace("DST", of(family, "10.128.0.5|[fd00:128::5]"))
            .replace("SRC", of(family, "10.128.0.5|fd00:128::5"))
            .replace("DIGIT", of(family, "0.0.0.5/0.0.0.15|::5/::f"))
            .replace("OTHER", of(family, "0.0.0.6/0.0.0.15|::6/::f"))
            .replace("UPPER", of(family, "0.0.0.80/0.0.0.240|::50/::f0"))
            .replace("THREE", of(family, "0.0.0.5/0.0.0.7|::5/::7"))
            .replace("SPLIT", of(family, "10.0.0.5/255.0.0.15|fd00::5/ffff::f"))
            .replace("MASK", of(family, "255.255.255.255|ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
    };
    let (mut taken, mut read) = (0, 0);
    for (original, changes) in CHANGES {
        let texts = changes.iter().map(|(part, other)| {
            assert!(original.contains(part), "{original}: {part}");
            original.replacen(part, other, 1)
        });
        let mut unchanged = String::new();
        for (place, text) in std::iter::once(original.to_owned()).chain(texts).enumerate() {
            let text = in_family(&text);
            let input = format!(
                "*nat\n:{SEP} - [0:0]\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
                 :KUBE-MARK-DROP - [0:0]\n-A {SEP} {text}\nCOMMIT\n"
            );
            let restore = empty.tools.real(empty.family, "-restore");
            let done = empty.netns.try_exec(&restore, &["-w", "5", "--noflush"], &input).status.success();
            if !done {
                assert_ne!(place, 0, "{text}: the kernel does not take it");
                continue;
            }
            let (found, printed) = (empty.read(SEP), empty.printed(SEP));
            assert_eq!((found.len(), printed.len()), (1, 1), "{text}");
            let (found, printed) = (found[0].as_deref(), printed[0].as_str());
            if place == 0 {
                assert_eq!(found, Some(printed));
                printed.clone_into(&mut unchanged);
                continue;
            }
            taken += 1;
            assert_ne!(found, Some(unchanged.as_str()), "{text}");
            assert_ne!(printed, unchanged, "{text}");
            if let Some(found) = found {
                read += 1;
                assert_eq!(found, printed, "{text}");
            }
        }
    }
    // Not every kernel has all extensions; some changes make another rule of ferrule's.
    assert!(taken > 50 && read > 15, "{taken} taken, {read} read");
}

#[test]
fn changed_rules_are_not_taken_for_others_ipv4() {
    changed_rules_are_not_taken_for_others(Family::V4);
}

#[test]
fn changed_rules_are_not_taken_for_others_ipv6() {
    changed_rules_are_not_taken_for_others(Family::V6);
}

/// What nft itself writes has other expressions, and can do more.
#[test]
fn rules_of_nft_are_not_read() {
    let empty = Empty::new(Family::V4);
    let chains = ["KUBE-MARK-MASQ", "MASQUERADE", "RETURN", "ACCEPT"];
    let declared: String = chains.iter().map(|chain| format!("chain {chain} {{}}\n")).collect();
    empty.restore(&format!("*nat\n:{SEP} - [0:0]\nCOMMIT\n"));
    empty.netns.exec("nft", &["-f", "-"], &format!("table ip nat {{\n{declared}}}\n"));
    let rules = [
        "counter jump MASQUERADE",
        "counter jump RETURN",
        "counter jump ACCEPT",
        "counter goto KUBE-MARK-MASQ",
        "jump KUBE-MARK-MASQ",
        "counter jump KUBE-MARK-MASQ comment \"x\"",
        "counter counter jump KUBE-MARK-MASQ",
        "ip saddr { 10.0.0.1, 10.0.0.2 } counter jump KUBE-MARK-MASQ",
        "ip saddr 10.0.0.1-10.0.0.9 counter jump KUBE-MARK-MASQ",
        "ip saddr > 10.0.0.1 counter jump KUBE-MARK-MASQ",
        "ip ttl 5 counter jump KUBE-MARK-MASQ",
        "iifname \"eth0 -p tcp\" counter jump KUBE-MARK-MASQ",
        "iifname \"eth\\*\" counter jump KUBE-MARK-MASQ",
        "iif lo counter jump KUBE-MARK-MASQ",
        "meta mark set 0x4000",
        "counter meta mark set meta mark or 0x4000",
        "meta l4proto tcp counter dnat to 10.0.0.1:80",
        "numgen random mod 3 0 counter jump KUBE-MARK-MASQ",
        "fib saddr type local counter jump KUBE-MARK-MASQ",
        "ct state new counter jump KUBE-MARK-MASQ",
    ];
    for rule in rules {
        empty.netns.exec("nft", &["flush", "chain", "ip", "nat", SEP], "");
        empty.netns.exec("nft", &["-f", "-"], &format!("add rule ip nat {SEP} {rule}\n"));
        assert_eq!(empty.read(SEP), [None], "{rule}");
    }
}

/// What is not there has nothing in it.
#[test]
fn what_is_not_there_is_empty() {
    let empty = Empty::new(Family::V6);
    assert_eq!(empty.names(), BTreeSet::new());
    assert_eq!(empty.read(SEP), []);
    empty.restore("*nat\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n*filter\n:KUBE-FORWARD - [0:0]\nCOMMIT\n");
    assert_eq!(empty.read(SEP), []);
    assert_eq!(empty.read("KUBE-MARK-MASQ"), []);
    assert!(empty.names().contains("KUBE-MARK-MASQ") && !empty.names().contains("KUBE-FORWARD"));
    let other = Kernel::new(IpFamily::V4);
    empty.netns.run(|| other.names(&mut |name| panic!("{name}")).unwrap());
}
