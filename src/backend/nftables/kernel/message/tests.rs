use super::*;
use crate::backend::nftables::ruleset::Way;
use crate::model::ServiceName;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One element of each kind of key.
fn samples(family: IpFamily) -> Vec<Element> {
    let (a, b, net) = match family {
        IpFamily::V4 => (ip("10.96.0.10"), ip("10.244.1.5"), "192.168.0.0/22".parse().unwrap()),
        IpFamily::V6 => (ip("fd00::10"), ip("fd01::5"), "fd02::/61".parse().unwrap()),
    };
    let frontend = Frontend::Address(a, Protocol::Sctp, 53);
    let node_port = Frontend::NodePort(Protocol::Udp, 30_080);
    let (label, value) =
        (Label(0x1234_5678_9abc_def0_0fed_cba9_8765_4321), Some(Value::Endpoint(Backend { ip: b, port: 8_080 })));
    let element = |set, key| Element { set, key, value: None };
    vec![
        element(Set::ClusterIps, Key::Ip(a)),
        element(Set::Hairpins, Key::Hairpin(b, Protocol::Tcp, 80)),
        element(Set::Sized(Site::Address, Way::Inside, 3), Key::Frontend(frontend)),
        element(Set::Drop(Site::NodePort), Key::Frontend(node_port)),
        Element { value, ..element(Set::Endpoints(Site::Address, Way::Usual), Key::Slot(frontend, 7)) },
        Element { value, ..element(Set::Endpoints(Site::NodePort, Way::Inside), Key::Slot(node_port, 70_000)) },
        element(Set::AllowedSources, Key::Allowed(frontend, net)),
        Element { value, ..element(Set::Clients, Key::Client(label, a)) },
        element(Set::Kept(10_800), Key::Label(label)),
        Element {
            value: Some(Value::Label(label)),
            ..element(Set::Labels(Site::NodePort, Way::Usual), Key::Frontend(node_port))
        },
    ]
}

/// The messages of a transaction, without brackets: type, number, and what follows their header.
fn messages(bytes: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let number = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
        found.push((kind, number, &rest[NETLINK_HEADER..length]));
        rest = &rest[length.next_multiple_of(4)..];
    }
    let last = found.len() - 1;
    assert_eq!((found[0].0, found[last].0), (BATCH_BEGIN, BATCH_END));
    found[1..last].to_vec()
}

#[test]
fn what_is_written_can_be_read() {
    for family in IpFamily::BOTH {
        let name = ServicePortName {
            service: ServiceName::new("default", "web"),
            port: "http".into(),
            protocol: Protocol::Tcp,
        };
        for element in samples(family) {
            let mut transaction = Transaction::new(family);
            transaction.elements_of(Command::Add, &[element], Some(&name), 4);
            let (bytes, owners) = transaction.finish();
            assert_eq!(owners, [4]);
            let messages = messages(&bytes);
            let [(kind, 1, message)] = messages.as_slice() else { panic!("{messages:?}") };
            assert_eq!(*kind, u16::from(SUBSYSTEM) << 8 | u16::from(NEW_SET_ELEM));
            assert_eq!(table_name(message).as_deref(), Some("kube-proxy"));
            let mut read = Vec::new();
            elements(message, family, element.set, |element| read.push(element));
            let comment = (!element.set.is_shared()).then(|| "default/web:http".into());
            assert_eq!(read, [(element, comment)]);
        }
    }
}

#[test]
fn long_lists_are_several_messages() {
    let set = Set::Endpoints(Site::NodePort, Way::Usual);
    let value = Some(Value::Endpoint(Backend { ip: ip("10.0.0.1"), port: 1 }));
    let slot = |n| Element { set, key: Key::Slot(Frontend::NodePort(Protocol::Tcp, 30_000), n), value };
    let all: Vec<Element> = (0..5_000).map(slot).collect();
    let mut transaction = Transaction::new(IpFamily::V4);
    transaction.elements_of(Command::Remove, &all, None, 0);
    transaction.elements_of(Command::Add, &all, None, 1);
    assert_eq!(transaction.elements(), 10_000);
    let (bytes, owners) = transaction.finish();
    let mut read = Vec::new();
    let messages = messages(&bytes);
    assert!(messages.len() > 6 && messages.len() == owners.len(), "{}", messages.len());
    for ((kind, number, message), owner) in messages.iter().zip(&owners) {
        assert!(message.len() < usize::from(u16::MAX));
        assert_eq!(owners.get(*number as usize - 1), Some(owner));
        if kind & 0xff == u16::from(NEW_SET_ELEM) {
            elements(message, IpFamily::V4, set, |(element, _)| read.push(element));
        }
    }
    assert_eq!(read, all);
}

#[test]
fn networks_from_their_ends() {
    assert_eq!(net(ip("10.0.0.0"), ip("10.255.255.255")), Some("10.0.0.0/8".parse().unwrap()));
    assert_eq!(net(ip("10.0.0.1"), ip("10.0.0.1")), Some("10.0.0.1/32".parse().unwrap()));
    assert_eq!(net(ip("::"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")), Some("::/0".parse().unwrap()));
    assert_eq!(net(ip("10.0.0.1"), ip("10.0.0.2")), None);
    assert_eq!(net(ip("10.0.0.1"), ip("::")), None);
}

#[test]
fn a_trial_has_no_end_and_a_table_of_its_own() {
    let (brackets, _) = Transaction::new(IpFamily::V4).finish();
    let end = &brackets[NETLINK_HEADER + HEADER..];
    for family in IpFamily::BOTH {
        for set in Set::constant().into_iter().filter(|set| !set.shape().interval) {
            let mut transaction = Transaction::trial(family);
            transaction.add_set(set, 7);
            let (bytes, owners) = transaction.finish_without_end();
            assert_eq!(owners, [0, 7]);
            let bytes = [&bytes, end].concat();
            let messages = messages(&bytes);
            assert_eq!(messages.iter().map(|(_, number, _)| *number).collect::<Vec<_>>(), [1, 2]);
            for (_, _, message) in &messages {
                assert_eq!(table_name(message).as_deref(), Some("kube-proxy-trial"));
            }
            let header = set_header(messages[1].2, family).unwrap();
            assert_eq!(header, SetHeader { name: set.name(), is_ours: Some(set) }, "it is made as nft makes it");
        }
    }
}
