//! Rules as the kernel has them: expressions that load and look things up in registers. Only for rules that `nft` cannot
//! read ([`crate::backend::nftables::compile::base`]).

use netlink_packet_core::{DefaultNla, Emitable};

use crate::backend::nftables::ruleset::{Action, Match, Of, Rule, Set};
use crate::net::IpFamily;
use crate::netlink::nested;

/// `NFTA_RULE_EXPRESSIONS`, `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const EXPRESSIONS: u16 = 4;
const ONE: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFT_REG32_00`: the first of the registers of four bytes each.
const FIRST: u32 = 8;
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
/// Numbers of families. (`NFPROTO_IPV4`, `NFPROTO_IPV6`.)
const IPV4: u32 = 2;
const IPV6: u32 = 10;

/// Expressions one after the other, and the next register.
struct Writer {
    family: IpFamily,
    expressions: Vec<DefaultNla>,
}

/// The expressions of a rule, as an attribute of a message about it.
pub(super) fn rule(rule: &Rule, family: IpFamily) -> Vec<u8> {
    let mut writer = Writer { family, expressions: Vec::new() };
    for condition in &rule.matches {
        if let Match::In { key, set, not: false } = condition {
            writer.load(key, FIRST);
            writer.look_up(*set, FIRST, None);
        }
    }
    match &rule.action {
        Action::Label(key, map) => {
            writer.load(key, FIRST);
            writer.look_up(*map, FIRST, Some(FIRST));
            // `NFTA_CT_KEY`, `NFTA_CT_SREG`
            writer.add("ct", vec![number(2, CT_LABELS), number(4, FIRST)]);
        }
        Action::Translate { key, below, map } => {
            let next = writer.load(key, FIRST);
            if let Some(below) = below {
                // `NFTA_NG_DREG`, `_MODULUS`, `_TYPE`
                writer.add("numgen", vec![number(1, next), number(2, *below), number(3, RANDOM)]);
            }
            writer.look_up(*map, FIRST, Some(FIRST));
            let family = match family {
                IpFamily::V4 => IPV4,
                IpFamily::V6 => IPV6,
            };
            // `NFTA_NAT_TYPE`, `_FAMILY`, `_REG_ADDR_MIN`, `_REG_PROTO_MIN`
            let port = FIRST + writer.address_words();
            writer.add("nat", vec![number(1, DNAT), number(2, family), number(3, FIRST), number(5, port)]);
        }
        Action::Remember(seconds) => {
            let value = writer.load(&[Of::Label, Of::Source], FIRST);
            writer.load(&[Of::Destination, Of::Port], value);
            let milliseconds = u64::from(*seconds) * 1_000;
            // `NFTA_DYNSET_SET_NAME`, `_OP`, `_SREG_KEY`, `_SREG_DATA`, `_TIMEOUT`
            let timeout = DefaultNla::new(6, milliseconds.to_be_bytes().to_vec());
            let name = text(1, &Set::Clients.name());
            writer.add("dynset", vec![name, number(3, UPDATE), number(4, FIRST), number(5, value), timeout]);
        }
        _ => {}
    }
    let list = nested(EXPRESSIONS, &writer.expressions);
    let mut bytes = vec![0; list.buffer_len()];
    list.emit(&mut bytes);
    bytes
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

// === impl Writer ===

impl Writer {
    /// How many registers an address takes.
    fn address_words(&self) -> u32 {
        match self.family {
            IpFamily::V4 => 1,
            IpFamily::V6 => 4,
        }
    }

    /// Loads these from a register on; gives the next one.
    fn load(&mut self, key: &[Of], from: u32) -> u32 {
        let mut register = from;
        // `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`
        let payload = |register, base, offset, length| {
            vec![number(1, register), number(2, base), number(3, offset), number(4, length)]
        };
        let (source, destination) = match self.family {
            IpFamily::V4 => (12, 16),
            IpFamily::V6 => (8, 24),
        };
        let words = self.address_words();
        for of in key {
            let length = match of {
                Of::Source | Of::Destination => {
                    let offset = if *of == Of::Source { source } else { destination };
                    self.add("payload", payload(register, NETWORK, offset, 4 * words));
                    words
                }
                Of::Port => {
                    self.add("payload", payload(register, TRANSPORT, 2, 2));
                    1
                }
                // `NFTA_META_DREG`, `NFTA_META_KEY`
                Of::Protocol => {
                    self.add("meta", vec![number(1, register), number(2, META_PROTOCOL)]);
                    1
                }
                // `NFTA_CT_DREG`, `NFTA_CT_KEY`
                Of::Label => {
                    self.add("ct", vec![number(1, register), number(2, CT_LABELS)]);
                    4
                }
            };
            register += length;
        }
        register
    }

    /// Looks up what is in registers; what is found goes into others.
    fn look_up(&mut self, set: Set, from: u32, to: Option<u32>) {
        // `NFTA_LOOKUP_SET`, `_SREG`, `_DREG`
        let mut attributes = vec![text(1, &set.name()), number(2, from)];
        attributes.extend(to.map(|to| number(3, to)));
        self.add("lookup", attributes);
    }

    fn add(&mut self, name: &str, attributes: Vec<DefaultNla>) {
        self.expressions.push(nested(ONE, &[text(NAME, name), nested(DATA, &attributes)]));
    }
}
