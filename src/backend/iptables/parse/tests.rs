use proptest::prelude::*;

use super::*;
use crate::backend::iptables::ruleset::Table;

/// `written` means what `saved` is the text of.
#[track_caller]
fn check(family: IpFamily, written: &str, saved: &str) {
    let rule = Rule::parse(written, family).unwrap_or_else(|error| panic!("{written}: {error}"));
    assert_eq!(rule.to_string(), saved);
    assert_eq!(Rule::parse(saved, family).as_ref(), Ok(&rule), "{saved}");
}

#[test]
fn every_way_of_writing_a_rule_gives_the_saved_one() {
    let v4 = |written, saved| check(IpFamily::V4, written, saved);
    let v6 = |written, saved| check(IpFamily::V6, written, saved);
    v4("-j ACCEPT", "-j ACCEPT");
    v4("", "");
    v4(
        r#"-m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ"#,
        r#"! -s 10.244.0.0/16 -d 172.30.0.41/32 -p tcp -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ"#,
    );
    v6(
        "-m comment --comment ns1/svc1:p80 -s fd00:10:244::15 -j KUBE-MARK-MASQ",
        r#"-s fd00:10:244::15/128 -m comment --comment "ns1/svc1:p80" -j KUBE-MARK-MASQ"#,
    );
    v4("-m comment --comment word -j DROP", "-m comment --comment word -j DROP");
    v4(r#"-m comment --comment "a \"b\" \\ c" -j DROP"#, r#"-m comment --comment "a \"b\" \\ c" -j DROP"#);
    v4("-j MARK --or-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x4000");
    v4("-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0");
    v4("-j MARK --and-mark 0xf", "-j MARK --set-xmark 0x0/0xfffffff0");
    v4("-j MARK --set-mark 0x30/0x10", "-j MARK --set-xmark 0x30/0x30");
    v4("-j MARK --set-mark 16", "-j MARK --set-xmark 0x10/0xffffffff");
    v4("-m mark ! --mark 0x00004000/0x00004000 -j RETURN", "-m mark ! --mark 0x4000/0x4000 -j RETURN");
    v4("-m mark --mark 5 -j RETURN", "-m mark --mark 0x5 -j RETURN");
    v4("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable");
    v6("-j REJECT", "-j REJECT --reject-with icmp6-port-unreachable");
    v4(
        "-m statistic --mode random --probability 0.3333333333 -j A",
        "-m statistic --mode random --probability 0.33333333349 -j A",
    );
    v4(
        "-m recent --name L --rcheck --seconds 10800 --reap -j A",
        "-m recent --rcheck --seconds 10800 --reap --name L --mask 255.255.255.255 --rsource -j A",
    );
    v6(
        "-m recent --name L --set -m tcp -p tcp -j DNAT --to-destination [fd00::1]:80",
        "-p tcp -m recent --set --name L --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -m tcp -j DNAT --to-destination [fd00::1]:80",
    );
    v4("-m nfacct --nfacct-name c -j DROP", "-m nfacct --nfacct-name  c -j DROP");
    v4("-j MASQUERADE --random-fully", "-j MASQUERADE --random-fully");
    v4("--source 10.1.2.3/8 --jump X", "-s 10.0.0.0/8 -j X");
    v4("-s 0.0.0.0/0 -j X", "-j X");
    v6("! -s ::/0 -j X", "! -s ::/0 -j X");
    v4("-i veth+ -j X", "-i veth+ -j X");
    v4("-d 10.1.2.197/0.0.0.15 -j X", "-d 0.0.0.5/0.0.0.15 -j X");
    v4("-d 10.1.2.3/255.255.0.0 -j X", "-d 10.1.0.0/16 -j X");
    v4("! -d 1.2.3.4/0.0.0.0 -j X", "! -d 0.0.0.0/0 -j X");
    v4("-d 1.2.3.4/0.0.0.0 -j X", "-j X");
    v6("-d fd00::1:c5/::f0 -j X", "-d ::c0/::f0 -j X");
    v4(
        "-m bpf --bytecode \"6,32 0 0 16,7 0 0 0,32 0 0 12,29 0 1 0,6 0 0 65535,6 0 0 0\" -j X",
        "-m bpf --bytecode \"6,32 0 0 16,7 0 0 0,32 0 0 12,29 0 1 0,6 0 0 65535,6 0 0 0\" -j X",
    );
    v4("-p udp --dport 53 -j X", "-p udp -m udp --dport 53 -j X");
    v4("-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8 -j X", "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j X");
    v4(
        "-m conntrack ! --ctstate DNAT,ESTABLISHED,RELATED -j DROP",
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    );
}

#[test]
fn rules_of_others_are_errors() {
    for text in [
        "-j LOG",
        "-j SNAT --to-source 1.2.3.4",
        "-m multiport --dports 80,81 -j A",
        "-o eth0 -j A",
        "! -p tcp -j A",
        "-p icmp -j A",
        "-s 1.2.3.4,5.6.7.8 -j A",
        "-s fd00::1 -j A",
        "-s 1.2.3.4 -s 1.2.3.4 -j A",
        "-s 1.2.3.4/33 -j A",
        "-s 1.2.3.4/0.0.0.255 -j A",
        "-d 1.2.3.4/::ff -j A",
        "-m bpf --bytecode 1,6 -j A",
        "-m bpf -j A",
        "-g A",
        "-j A -j B",
        "-j",
        "!",
        "! -j A",
        "! ! -s 1.2.3.4 -j A",
        "-m comment -j A",
        "--comment x -j A",
        "-m tcp --dport 80 -j A",
        "-p udp -m tcp --dport 80 -j A",
        "-p tcp -m tcp --dport 80:90 -j A",
        "-p tcp -m tcp ! --dport 80 -j A",
        "-p tcp -m tcp --sport 80 -j A",
        "-m statistic --mode nth --every 2 -j A",
        "-m statistic --probability 0.5 -j A",
        "-m statistic --mode random --probability 0.4 -j A",
        "-m statistic --mode random --probability 0 -j A",
        "-m statistic --mode random --probability nan -j A",
        "-m recent --name L -j A",
        "-m recent --name L --set --rcheck -j A",
        "-m recent --name L --update --seconds 5 -j A",
        "-m recent --name L --set --rdest -j A",
        "-m recent --name L --set --mask 255.255.255.0 -j A",
        "-m conntrack --ctstate UNTRACKED -j A",
        "-m addrtype --src-type UNICAST -j A",
        "-j REJECT --reject-with icmp-host-unreachable",
        "-j DNAT --to-destination 1.2.3.4",
        "-j DNAT --to-destination [fd00::1]:80",
        "-j DNAT",
        "-j MARK",
        "-j MARK --set-xmark 0x1/0x1 --random-fully",
        "-j ACCEPT extra",
        "extra",
    ] {
        assert!(Rule::parse(text, IpFamily::V4).is_err(), "{text}");
    }
}

#[test]
fn saved_output_is_read_line_by_line() {
    let text = "# Generated\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j CT\nCOMMIT\n*nat\n\
        :OUTPUT ACCEPT [1:2]\n:KUBE-SERVICES - [0:0]\n[3:4] -A OUTPUT -j KUBE-SERVICES\n-A KUBE-SERVICES\nCOMMIT\n";
    let mut reader = SaveReader::default();
    let read: Vec<Saved<'_>> = text.lines().filter_map(|line| reader.line(line).unwrap()).collect();
    let table = Table::Nat;
    let expected = [
        Saved::Chain { table, name: "OUTPUT", default: Some("ACCEPT") },
        Saved::Chain { table, name: "KUBE-SERVICES", default: None },
        Saved::Rule { table, chain: "OUTPUT", text: "-j KUBE-SERVICES" },
        Saved::Rule { table, chain: "KUBE-SERVICES", text: "" },
        Saved::Commit(table),
    ];
    assert_eq!(read, expected);
    assert_eq!(reader.finish(), Ok(()));

    let mut reader = SaveReader::default();
    assert_eq!(reader.line("*filter"), Ok(None));
    assert!(reader.line("*nat").is_err());
    assert!(reader.line(":X").is_err());
    assert!(reader.line("-X KUBE").is_err());
    assert!(reader.finish().is_err(), "broken off");
    assert!(SaveReader::default().line("-A X -j Y").is_err());
}

#[test]
fn words_are_split_like_the_tools_do() {
    let split = |text| words(text).collect::<Vec<_>>();
    assert_eq!(split("  a  b\tc "), ["a", "b", "c"]);
    assert_eq!(split(r#"-m "x y" "" z"#), ["-m", "x y", "", "z"]);
    assert_eq!(split(r#""a \" b\\" c\d"#), [r#"a " b\"#, r"c\d"]);
    assert_eq!(split(r#""open"#), ["open"]);
    assert_eq!(split(""), [""; 0]);
}

// What is generated is what a kernel can keep: no network that holds everything, no chance in so
// many that several numbers share it.

fn is<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Is<T>> {
    (any::<bool>(), value).prop_map(|(not, value)| Is { not, value })
}

fn network(family: IpFamily) -> impl Strategy<Value = IpNet> {
    (address(family), 1..=128u8).prop_map(move |(ip, length)| {
        let most = if family == IpFamily::V4 { 32 } else { 128 };
        IpNet::new(ip, length.min(most)).unwrap().trunc()
    })
}

fn addresses(family: IpFamily) -> impl Strategy<Value = Addresses> {
    let under_mask =
        (address(family), address(family)).prop_map(|(value, mask)| Addresses::under_mask(value, mask).unwrap());
    let bits = under_mask.prop_filter("all of them", move |of| *of != Addresses::Net(family.everything()));
    prop_oneof![3 => network(family).prop_map(Addresses::Net), 1 => bits]
}

fn address(family: IpFamily) -> BoxedStrategy<IpAddr> {
    match family {
        IpFamily::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        IpFamily::V6 => any::<[u16; 8]>().prop_map(IpAddr::from).boxed(),
    }
}

fn name() -> impl Strategy<Value = String> {
    "KUBE-[A-Z0-9]{1,20}"
}

fn marking_() -> impl Strategy<Value = Marking> {
    (any::<u32>(), any::<u32>()).prop_map(|(value, mask)| Marking { value, mask })
}

fn protocol_() -> impl Strategy<Value = Protocol> {
    prop::sample::select(Protocol::ALL.to_vec())
}

fn states() -> impl Strategy<Value = ConnStates> {
    let all = [ConnStates::NEW, ConnStates::INVALID, ConnStates::RELATED, ConnStates::ESTABLISHED, ConnStates::DNAT];
    prop::sample::subsequence(all.to_vec(), 1..=5).prop_map(|states| states.into_iter().reduce(ConnStates::or).unwrap())
}

fn one_match(family: IpFamily, protocol: Option<Protocol>) -> BoxedStrategy<Match> {
    let any_match = prop_oneof![
        "[ -~äß日]{0,40}".prop_map(|text| Match::Comment(text.into())),
        is(states()).prop_map(Match::ConnState),
        "[a-z_]{1,31}".prop_map(|name| Match::Nfacct(name.into())),
        is(marking_()).prop_map(Match::Mark),
        Just(Match::SourceIsLocal),
        Just(Match::SourceIsNotLocal),
        Just(Match::DestinationIsLocal),
        Just(Match::NotFromBridge),
        ("[A-Z0-9-]{1,31}", "(src|dst)(,(src|dst)){0,2}")
            .prop_map(|(set, sides)| Match::InSet { set: set.into(), sides: sides.into() }),
        (protocol_(), any::<u16>()).prop_map(move |(protocol, port)| Match::ThroughVirtualServer {
            ip: family.everything().addr(),
            protocol,
            port
        }),
        Just(Match::ToItself(family)),
        (1..40_000u32).prop_map(Match::OneIn),
        (name(), 1..=86_400u32).prop_map(move |(list, seconds)| Match::RecentlySeen {
            list: list.into(),
            seconds,
            family
        }),
        name().prop_map(move |list| Match::Remember { list: list.into(), family }),
    ];
    match protocol {
        None => any_match.boxed(),
        Some(protocol) => {
            prop_oneof![4 => any_match, 1 => any::<Option<u16>>().prop_map(move |port| Match::Transport(protocol, port))]
                .boxed()
        }
    }
}

fn target(family: IpFamily) -> impl Strategy<Value = Target> {
    prop_oneof![
        name().prop_map(|chain| Target::Jump(chain.into())),
        Just(Target::Accept),
        Just(Target::Drop),
        Just(Target::Return),
        Just(Target::Reject(family)),
        marking_().prop_map(Target::SetMark),
        any::<bool>().prop_map(|random_fully| Target::Masquerade { random_fully }),
        (address(family), any::<u16>()).prop_map(|(ip, port)| Target::Dnat(Backend { ip, port })),
    ]
}

fn rule(family: IpFamily) -> impl Strategy<Value = Rule> {
    let side = || prop::option::of(is(network(family)));
    let destination = prop::option::of(is(addresses(family)));
    let interface = prop::option::of(is("[a-z0-9.]{1,14}\\+?"));
    let head = (side(), destination, interface, prop::option::of(protocol_()), prop::option::of(target(family)));
    head.prop_flat_map(move |(source, destination, in_interface, protocol, target)| {
        prop::collection::vec(one_match(family, protocol), 0..5).prop_map(move |matches| Rule {
            source: source.clone(),
            destination: destination.clone(),
            in_interface: in_interface.clone(),
            protocol,
            matches,
            target: target.clone(),
        })
    })
}

fn family() -> impl Strategy<Value = IpFamily> {
    prop::sample::select(IpFamily::BOTH.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn parsing_undoes_rendering((family, rule) in family().prop_flat_map(|f| (Just(f), rule(f)))) {
        let text = rule.to_string();
        prop_assert_eq!(Rule::parse(&text, family), Ok(rule), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), family in family()) {
        if let Ok(rule) = Rule::parse(&text, family) {
            prop_assert_eq!(Rule::parse(&rule.to_string(), family), Ok(rule));
        }
        let mut reader = SaveReader::default();
        for line in text.lines() {
            let _ = reader.line(line);
        }
    }

    #[test]
    fn almost_rules_are_read_or_refused(
        words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..14),
        family in family(),
    ) {
        let text = words.join(" ");
        if let Ok(rule) = Rule::parse(&text, family) {
            prop_assert_eq!(Rule::parse(&rule.to_string(), family), Ok(rule), "{}", text);
        }
    }
}

/// Of these, texts are made that are nearly rules.
const WORDS: [&str; 48] = [
    "!",
    "-s",
    "-d",
    "-i",
    "-p",
    "-m",
    "-j",
    "tcp",
    "udp",
    "comment",
    "conntrack",
    "mark",
    "addrtype",
    "recent",
    "statistic",
    "nfacct",
    "--comment",
    "--ctstate",
    "--mark",
    "--src-type",
    "--dst-type",
    "LOCAL",
    "--dport",
    "80",
    "--name",
    "--set",
    "--rcheck",
    "--reap",
    "--seconds",
    "--mask",
    "--rsource",
    "--mode",
    "random",
    "--probability",
    "0.00001",
    "0.5",
    "1.2.3.4",
    "fd00::/8",
    "0.0.0.0/0",
    "DNAT",
    "--to-destination",
    "1.2.3.4:80",
    "MARK",
    "--or-mark",
    "0x4000",
    "0x1/0x1",
    "\"a b\"",
    "MASQUERADE",
];

#[test]
fn chances_that_share_a_value_are_the_same_rule() {
    for one_in in [46_340, 46_342, 50_001, 100_001, 2_000_000, u32::MAX] {
        let rule = Rule::jump("A".into()).with(Match::OneIn(one_in));
        match Rule::parse(&rule.to_string(), IpFamily::V4) {
            Ok(read) => assert_eq!(read.to_string(), rule.to_string()),
            // So rare that the tools' text says never.
            Err(_) => assert_eq!(one_in, u32::MAX),
        }
    }
}
