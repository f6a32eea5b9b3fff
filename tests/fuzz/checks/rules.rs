//! Rules and their text: what is read can be written and read again, and is the same.

use std::net::IpAddr;

use arbitrary::{Result, Unstructured};
use ferrule::backend::iptables::parse;
use ferrule::backend::iptables::ruleset::{Addresses, ConnStates, Is, Marking, Match, Rule, Target};
use ferrule::net::{IpFamily, Protocol};
use ferrule::plan::Backend;
use ipnet::IpNet;

/// Any text is read or refused, in both families.
pub(super) fn text(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let words: Vec<String> = parse::words(&text).collect();
    for family in IpFamily::BOTH {
        let read = Rule::parse(&text, family);
        assert_eq!(read, Rule::parse_args(&words, family), "as a text and as arguments");
        if let Ok(rule) = read {
            reads_back(&rule, family);
            let written = rule.to_string();
            assert!(text.contains('\n') || !written.contains('\n'), "{text:?} became lines: {written:?}");
        }
    }
}

/// Any rule that a kernel can hold is written so that it reads back.
pub(super) fn made(input: &[u8]) {
    let mut seed = Unstructured::new(input);
    let Ok(family) = family(&mut seed) else { return };
    if let Ok(rule) = rule(&mut seed, family) {
        reads_back(&rule, family);
    }
}

#[track_caller]
pub(super) fn reads_back(rule: &Rule, family: IpFamily) {
    let text = rule.to_string();
    assert_eq!(Rule::parse(&text, family).as_ref(), Ok(rule), "{text}");
}

fn rule(seed: &mut Unstructured<'_>, family: IpFamily) -> Result<Rule> {
    let mut rule = Rule {
        source: side(seed, family)?,
        destination: side(seed, family)?.map(|Is { not, value }| Is { not, value: Addresses::Net(value) }),
        in_interface: optional(seed, |seed| is(seed, |seed| word(seed, 15)))?,
        protocol: optional(seed, protocol)?,
        matches: Vec::new(),
        target: optional(seed, |seed| target(seed, family))?,
    };
    for _ in 0..seed.int_in_range(0..=4)? {
        rule.matches.push(condition(seed, family, rule.protocol)?);
    }
    if seed.arbitrary()? {
        rule.matches.push(Match::ToItself(family));
    }
    if seed.arbitrary()? {
        let addresses = Addresses::under_mask(address(seed, family)?, address(seed, family)?);
        let addresses = addresses.expect("of one family");
        let everything = Addresses::Net(family.everything());
        rule.destination = Some(Is::so(addresses)).filter(|is| is.value != everything);
    }
    Ok(rule)
}

/// Not a network that holds everything: the tools do not keep it.
fn side(seed: &mut Unstructured<'_>, family: IpFamily) -> Result<Option<Is<IpNet>>> {
    optional(seed, |seed| {
        is(seed, |seed| {
            let ip = address(seed, family)?;
            let longest = if family == IpFamily::V4 { 32 } else { 128 };
            Ok(IpNet::new(ip, seed.int_in_range(1..=longest)?).expect("the length is one").trunc())
        })
    })
}

fn condition(seed: &mut Unstructured<'_>, family: IpFamily, protocol: Option<Protocol>) -> Result<Match> {
    Ok(match (seed.int_in_range(0..=12)?, protocol) {
        (0, _) => Match::Comment(seed.arbitrary::<String>()?.into()),
        (1, _) => Match::ConnState(is(seed, states)?),
        (2, _) => Match::Nfacct(word(seed, 31)?.into()),
        (3, _) => Match::Mark(is(seed, marking)?),
        (4, _) => Match::SourceIsLocal,
        (5, _) => Match::DestinationIsLocal,
        // Beyond, several numbers share the kernel's nearest value.
        (6, _) => Match::OneIn(seed.int_in_range(1..=40_000)?),
        (7, _) => Match::RecentlySeen { list: word(seed, 28)?.into(), seconds: seed.arbitrary()?, family },
        (9, _) => Match::InSet { set: word(seed, 31)?.into(), sides: word(seed, 11)?.into() },
        (10, _) => Match::ThroughVirtualServer {
            ip: address(seed, family)?,
            protocol: *seed.choose(&Protocol::ALL)?,
            port: seed.arbitrary()?,
        },
        (11, _) => match seed.arbitrary()? {
            true => Match::SourceIsNotLocal,
            false => Match::NotFromBridge,
        },
        (8, _) | (_, None) => Match::Remember { list: word(seed, 28)?.into(), family },
        (_, Some(protocol)) => Match::Transport(protocol, seed.arbitrary()?),
    })
}

fn target(seed: &mut Unstructured<'_>, family: IpFamily) -> Result<Target> {
    Ok(match seed.int_in_range(0..=7)? {
        0 => Target::Accept,
        1 => Target::Drop,
        2 => Target::Return,
        3 => Target::Reject(family),
        4 => Target::SetMark(marking(seed)?),
        5 => Target::Masquerade { random_fully: seed.arbitrary()? },
        6 => Target::Dnat(Backend { ip: address(seed, family)?, port: seed.arbitrary()? }),
        _ => Target::Jump(format!("KUBE-{}", word(seed, 23)?).into()),
    })
}

fn states(seed: &mut Unstructured<'_>) -> Result<ConnStates> {
    let all = [ConnStates::NEW, ConnStates::INVALID, ConnStates::RELATED, ConnStates::ESTABLISHED, ConnStates::DNAT];
    let mut states = *seed.choose(&all)?;
    for state in all {
        if seed.arbitrary()? {
            states = states.or(state);
        }
    }
    Ok(states)
}

fn marking(seed: &mut Unstructured<'_>) -> Result<Marking> {
    Ok(Marking { value: seed.arbitrary()?, mask: seed.arbitrary()? })
}

/// A name that needs no quotes.
fn word(seed: &mut Unstructured<'_>, longest: usize) -> Result<String> {
    let length = seed.int_in_range(1..=longest)?;
    (0..length)
        .map(|_| Ok(char::from(seed.int_in_range(b'+'..=b'z')?)))
        .map(|c| Ok(c?.to_string().replace('\\', "x")))
        .collect()
}

fn is<T>(seed: &mut Unstructured<'_>, value: impl FnOnce(&mut Unstructured<'_>) -> Result<T>) -> Result<Is<T>> {
    Ok(Is { not: seed.arbitrary()?, value: value(seed)? })
}

fn optional<T>(
    seed: &mut Unstructured<'_>,
    value: impl FnOnce(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    seed.arbitrary::<bool>()?.then(|| value(seed)).transpose()
}

pub(super) fn family(seed: &mut Unstructured<'_>) -> Result<IpFamily> {
    seed.choose(&IpFamily::BOTH).copied()
}

pub(super) fn protocol(seed: &mut Unstructured<'_>) -> Result<Protocol> {
    seed.choose(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]).copied()
}

pub(super) fn address(seed: &mut Unstructured<'_>, family: IpFamily) -> Result<IpAddr> {
    Ok(match family {
        IpFamily::V4 => IpAddr::from(seed.arbitrary::<[u8; 4]>()?),
        IpFamily::V6 => IpAddr::from(seed.arbitrary::<[u8; 16]>()?),
    })
}
