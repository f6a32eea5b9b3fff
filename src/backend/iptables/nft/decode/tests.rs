mod captured;

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::netlink::tests::bytes;

const CHAIN: &str = "KUBE-SEP-AAAAAAAAAAAAAAAA";

fn captured() -> impl Iterator<Item = (IpFamily, &'static str, Vec<u8>)> {
    let of = |family, all: &'static [(&str, &str)]| all.iter().map(move |(text, hex)| (family, *text, bytes(hex)));
    of(IpFamily::V4, captured::V4).chain(of(IpFamily::V6, captured::V6))
}

fn read(message: &[u8], family: IpFamily) -> Option<String> {
    match rule(message, family, CHAIN) {
        Told::Rule(rule) => Some(rule.to_string()),
        Told::Foreign => None,
        Told::Elsewhere => Some("elsewhere".to_owned()),
    }
}

/// Where in a message there are bytes that may be anything: what names a rule, and its counters.
fn of_no_account(message: &[u8]) -> Vec<bool> {
    let mut free = vec![false; message.len()];
    // `NFTA_RULE_HANDLE`, `NFTA_RULE_POSITION`; in a counter `NFTA_COUNTER_BYTES`, `_PACKETS`.
    let counter = message.windows(8).position(|bytes| bytes == b"counter\0").unwrap();
    let after_name = |header: &[u8]| message.windows(4).position(|bytes| bytes == header);
    let handle = after_name(&[12, 0, 3, 0]).map(|at| at + 4);
    let position = after_name(&[12, 0, 6, 0]).map(|at| at + 4).filter(|at| *at < 80);
    for at in handle.into_iter().chain(position).chain([counter + 16, counter + 28]) {
        free[at..at + 8].fill(true);
    }
    free
}

#[test]
fn captured_rules_are_read() {
    for (family, text, message) in captured() {
        assert_eq!(read(&message, family).as_deref(), Some(text));
    }
}

#[test]
fn every_bit_counts() {
    for (family, text, message) in captured() {
        let free = of_no_account(&message);
        for at in 0..message.len() {
            for bit in 0..8 {
                let mut changed = message.clone();
                changed[at] ^= 1 << bit;
                let same = read(&changed, family).as_deref() == Some(text);
                // The flag that says of an attribute that it is nested means nothing.
                let flag = at % 4 == 3 && bit == 7;
                if same != free[at] {
                    assert!(same && flag, "{text}: byte {at}, bit {bit}: {same}");
                }
            }
        }
        for length in 0..message.len() {
            assert_ne!(read(&message[..length], family).as_deref(), Some(text), "cut to {length}");
        }
        let longer = [&message[..], &[4, 0, 7, 0]].concat();
        assert_eq!(read(&longer, family), None, "{text}: with user data");
    }
}

/// A rule's expressions, one after the other.
fn expressions(message: &[u8]) -> Vec<Vec<u8>> {
    let list = Attributes::of(message).flatten().find(|attribute| attribute.kind == 4).unwrap().value;
    Attributes::of(list).map(|element| attribute(ELEMENT, element.unwrap().value)).collect()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(expressions: &[Vec<u8>]) -> Vec<u8> {
    let name = format!("{CHAIN}\0");
    [attribute(1, b"nat\0"), attribute(2, name.as_bytes()), attribute(3, &[0; 8]), attribute(4, &expressions.concat())]
        .concat()
}

#[test]
fn an_expression_too_many_too_few_or_elsewhere_is_noticed() {
    for (family, text, captured) in captured() {
        let expressions = expressions(&captured);
        assert_eq!(read(&message(&expressions), family).as_deref(), Some(text));
        for at in 0..expressions.len() {
            let mut fewer = expressions.clone();
            let one = fewer.remove(at);
            assert_ne!(read(&message(&fewer), family).as_deref(), Some(text), "without {at}");
            let mut twice = expressions.clone();
            twice.insert(at, one);
            assert_ne!(read(&message(&twice), family).as_deref(), Some(text), "twice {at}");
        }
    }
}

/// A condition that the text shows first, after one that remembers whoever comes to it.
#[test]
fn what_is_remembered_first_is_noticed() {
    let (_, text, captured) = captured().find(|(_, text, _)| text.contains("--set")).unwrap();
    let mut expressions = expressions(&captured);
    let moved: Vec<Vec<u8>> = expressions.drain(..2).collect();
    let matches = expressions.len() - 2;
    expressions.splice(matches..matches, moved);
    assert!(text.starts_with("-p tcp"));
    assert_eq!(read(&message(&expressions), IpFamily::V4), None);
}

#[test]
fn rules_of_other_chains_are_told_apart() {
    for (family, _, message) in captured() {
        assert_eq!(rule(&message, family, "KUBE-SEP-AAAAAAAAAAAAAAAB"), Told::Elsewhere);
    }
}

#[test]
fn chains_have_names() {
    let named = |table: &[u8], name: &[u8]| [attribute(1, table), attribute(3, name), attribute(6, &[0; 4])].concat();
    assert_eq!(chain(&named(b"nat\0", b"KUBE-SVC-A\0")), Some("KUBE-SVC-A"));
    assert_eq!(chain(&named(b"filter\0", b"KUBE-SVC-A\0")), None);
    assert_eq!(chain(&named(b"nat\0", b"\xff\0")), None);
    assert_eq!(chain(&[]), None);
}

fn check_anything(message: &[u8]) {
    for family in IpFamily::BOTH {
        let _ = (rule(message, family, CHAIN), chain(message));
    }
}

static EXPRESSIONS: LazyLock<Vec<Vec<Vec<u8>>>> =
    LazyLock::new(|| captured().map(|(_, _, message)| expressions(&message)).collect());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn anything_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        check_anything(&bytes);
    }

    #[test]
    fn expressions_in_any_order_can_be_looked_at(
        picked in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..12),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let expressions: Vec<Vec<u8>> = picked.iter().map(|(rule, at)| at.get(&rule.get(&EXPRESSIONS[..])[..]).clone()).collect();
        let mut message = message(&expressions);
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        check_anything(&message);
    }
}
