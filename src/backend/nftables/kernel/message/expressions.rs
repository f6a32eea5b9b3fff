//! Rules as the kernel has them: expressions that load and look things up in registers. Only for rules that `nft` cannot
//! read ([`crate::backend::nftables::compile::base`]).

use netlink_packet_core::{DefaultNla, Emitable, NlasIterator};

use crate::backend::nftables::ruleset::{Action, Match, Of, Rule, Set};
use crate::net::IpFamily;
use crate::netlink::{NESTED, nested, nf_tables};

/// `NFTA_RULE_EXPRESSIONS`, `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const EXPRESSIONS: u16 = 4;
const ONE: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFT_REG_1`: the first of the registers of sixteen bytes each.
const WHOLE: u32 = 1;
/// `NFT_REG32_00`: the first of the registers of four bytes each, which are the same bytes.
const PART: u32 = 8;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// `NFT_META_L4PROTO`, `NFT_CT_LABELS`
const META_PROTOCOL: u32 = 16;
const CT_LABELS: u32 = 13;
/// `NFT_NAT_DNAT`, `NFT_DYNSET_OP_UPDATE`
const DNAT: u32 = 1;
const UPDATE: u32 = 1;
/// `NFT_NG_RANDOM`
const RANDOM: u32 = 1;

/// An expression: its name, and attributes with their values.
type Expression = (&'static str, Vec<(u16, Vec<u8>)>);

/// Expressions one after the other.
struct Writer {
    family: IpFamily,
    expressions: Vec<Expression>,
}

/// The expressions of a rule, as an attribute of a message about it.
pub(super) fn rule(rule: &Rule, family: IpFamily) -> Vec<u8> {
    let one = |(name, attributes): Expression| {
        let attributes: Vec<DefaultNla> =
            attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value)).collect();
        nested(ONE, &[DefaultNla::new(NAME, zero_ended(name)), nested(DATA, &attributes)])
    };
    let list = nested(EXPRESSIONS, &expressions(rule, family).into_iter().map(one).collect::<Vec<_>>());
    let mut bytes = vec![0; list.buffer_len()];
    list.emit(&mut bytes);
    bytes
}

/// Whether expressions that the kernel tells of, the value of such an attribute, are those of a rule. It may tell more of them
/// than it was told.
pub(super) fn is_rule(rule: &Rule, family: IpFamily, told: &[u8]) -> bool {
    let expected = expressions(rule, family);
    let mut told = NlasIterator::new(told).flatten();
    let same = |(name, attributes): &Expression| {
        let Some(one) = told.next() else { return false };
        let (mut is_named, mut missing) = (false, attributes.clone());
        for part in NlasIterator::new(one.value()).flatten() {
            match part.kind() & !NESTED {
                NAME => is_named = part.value() == zero_ended(name),
                DATA => {
                    for attribute in NlasIterator::new(part.value()).flatten() {
                        missing.retain(|(kind, value)| {
                            (*kind, &**value) != (attribute.kind() & !NESTED, attribute.value())
                        });
                    }
                }
                _ => {}
            }
        }
        is_named && missing.is_empty()
    };
    expected.iter().all(same) && told.next().is_none()
}

fn expressions(rule: &Rule, family: IpFamily) -> Vec<Expression> {
    let mut writer = Writer { family, expressions: Vec::new() };
    for condition in &rule.matches {
        if let Match::In { key, set, not: false } = condition {
            writer.load(key, 0);
            writer.look_up(*set, 0, None);
        }
    }
    match &rule.action {
        Action::Label(key, map) => {
            writer.load(key, 0);
            writer.look_up(*map, 0, Some(0));
            // `NFTA_CT_KEY`, `NFTA_CT_SREG`
            writer.add("ct", vec![number(2, CT_LABELS), register(4, 0)]);
        }
        Action::Translate { key, below, map } => {
            let next = writer.load(key, 0);
            if let Some(below) = below {
                // `NFTA_NG_DREG`, `_MODULUS`, `_TYPE`
                writer.add("numgen", vec![register(1, next), number(2, *below), number(3, RANDOM)]);
            }
            writer.look_up(*map, 0, Some(0));
            let family = nf_tables::number(family).into();
            // `NFTA_NAT_TYPE`, `_FAMILY`, `_REG_ADDR_MIN`, `_REG_PROTO_MIN`
            let port = writer.address_words();
            writer.add("nat", vec![number(1, DNAT), number(2, family), register(3, 0), register(5, port)]);
        }
        Action::Remember(seconds) => {
            let value = writer.load(&[Of::Label, Of::Source], 0);
            writer.load(&[Of::Destination, Of::Port], value);
            let milliseconds = u64::from(*seconds) * 1_000;
            // `NFTA_DYNSET_SET_NAME`, `_OP`, `_SREG_KEY`, `_SREG_DATA`, `_TIMEOUT`
            let timeout = (6, milliseconds.to_be_bytes().to_vec());
            let name = (1, zero_ended(&Set::Clients.name()));
            writer.add("dynset", vec![name, number(3, UPDATE), register(4, 0), register(5, value), timeout]);
        }
        _ => {}
    }
    writer.expressions
}

fn number(kind: u16, value: u32) -> (u16, Vec<u8>) {
    (kind, value.to_be_bytes().to_vec())
}

/// A register by the number of words before it, as the kernel tells of it. (`nft_dump_register`)
fn register(kind: u16, words: u32) -> (u16, Vec<u8>) {
    number(kind, if words.is_multiple_of(4) { WHOLE + words / 4 } else { PART + words })
}

fn zero_ended(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

// === impl Writer ===

impl Writer {
    /// How many words an address takes.
    fn address_words(&self) -> u32 {
        match self.family {
            IpFamily::V4 => 1,
            IpFamily::V6 => 4,
        }
    }

    /// Loads these behind so many words; gives how many words there are then.
    fn load(&mut self, key: &[Of], after: u32) -> u32 {
        let mut words = after;
        // `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`
        let payload =
            |to, base, offset, length| vec![register(1, to), number(2, base), number(3, offset), number(4, length)];
        let (source, destination) = match self.family {
            IpFamily::V4 => (12, 16),
            IpFamily::V6 => (8, 24),
        };
        let address = self.address_words();
        for of in key {
            let length = match of {
                Of::Source | Of::Destination => {
                    let offset = if *of == Of::Source { source } else { destination };
                    self.add("payload", payload(words, NETWORK, offset, 4 * address));
                    address
                }
                Of::Port => {
                    self.add("payload", payload(words, TRANSPORT, 2, 2));
                    1
                }
                // `NFTA_META_DREG`, `NFTA_META_KEY`
                Of::Protocol => {
                    self.add("meta", vec![register(1, words), number(2, META_PROTOCOL)]);
                    1
                }
                // `NFTA_CT_DREG`, `NFTA_CT_KEY`
                Of::Label => {
                    self.add("ct", vec![register(1, words), number(2, CT_LABELS)]);
                    4
                }
            };
            words += length;
        }
        words
    }

    /// Looks up what is behind so many words; what is found goes behind others.
    fn look_up(&mut self, set: Set, from: u32, to: Option<u32>) {
        // `NFTA_LOOKUP_SET`, `_SREG`, `_DREG`
        let mut attributes = vec![(1, zero_ended(&set.name())), register(2, from)];
        attributes.extend(to.map(|to| register(3, to)));
        self.add("lookup", attributes);
    }

    fn add(&mut self, name: &'static str, attributes: Vec<(u16, Vec<u8>)>) {
        self.expressions.push((name, attributes));
    }
}
