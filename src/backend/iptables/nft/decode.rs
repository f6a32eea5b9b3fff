//! From the kernel's nf_tables expressions, as the iptables programs of nf_tables write them, back to
//! rules. Pure.
//!
//! Strict on purpose. A rule that is not read costs a needless rewrite of its chain; a rule that is
//! read as another one is never mended. So every attribute has to be known and to be what these
//! programs write for a [`Rule`], every byte of their extensions too; all else is `None`. Left out are
//! only what a rule has counted and what names it to the kernel.
//!
//! (iptables 1.8.9: `nft_rule_to_iptables_command_state`; kernel: `uapi/linux/netfilter/nf_tables.h`.)

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use super::attributes::{Attributes, fields, is_zero, number, only, own_chain, plain, text};
use super::extensions;
use crate::backend::iptables::ruleset::{Addresses, Is, Marking, Match, Rule, Target};
use crate::net::{IpFamily, Protocol};
use crate::netlink::nf_tables::{OF_CHAIN, OF_TABLE};

/// What a message about a rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The rule is in another table or chain.
    Elsewhere,
    /// The chain has a rule that cannot be read.
    Foreign,
    /// The chain has this rule.
    Rule(Rule),
}

/// The only table that is read.
pub(super) const TABLE: &str = "nat";

/// `NFTA_CHAIN_NAME`
const CHAIN_NAME: u16 = 3;
/// `NFTA_LIST_ELEM`
const ELEMENT: u16 = 1;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFT_META_IIFNAME`, `NFT_META_L4PROTO`, `NFT_META_MARK`
const META_MARK: u32 = 3;
const META_INTERFACE: u32 = 6;
const META_PROTOCOL: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_JUMP`, `NFT_RETURN`: below zero.
const JUMP: u32 = 3_u32.wrapping_neg();
const RETURN: u32 = 5_u32.wrapping_neg();
/// `IFNAMSIZ`
const INTERFACE_NAME: usize = 16;

/// The name of the chain that a message tells of (`NFT_MSG_NEWCHAIN`, after netfilter's header), if it
/// is one of the table.
pub(super) fn chain(message: &[u8]) -> Option<&str> {
    let (mut table, mut name) = (None, None);
    for attribute in Attributes::of(message) {
        let attribute = attribute?;
        match attribute.kind {
            OF_TABLE => table = text(Some(attribute.value)),
            CHAIN_NAME => name = text(Some(attribute.value)),
            _ => {}
        }
    }
    std::str::from_utf8(name.filter(|_| table == Some(TABLE.as_bytes()))?).ok()
}

/// What a message (`NFT_MSG_NEWRULE`, after netfilter's header) says about a chain.
pub(super) fn rule(message: &[u8], family: IpFamily, chain: &str) -> Told {
    let is_elsewhere = Attributes::of(message).flatten().any(|attribute| {
        let here = match attribute.kind {
            OF_TABLE => TABLE,
            OF_CHAIN => chain,
            _ => return false,
        };
        text(Some(attribute.value)).is_some_and(|name| name != here.as_bytes())
    });
    if is_elsewhere {
        return Told::Elsewhere;
    }
    here(message, family).map_or(Told::Foreign, Told::Rule)
}

fn here(message: &[u8], family: IpFamily) -> Option<Rule> {
    let [_, table, chain, handle, expressions, compat, _position, user_data, padding] = fields(message)?;
    // That these are the right ones has been seen to.
    text(table)?;
    text(chain)?;
    handle?;
    if compat.is_some() || user_data.is_some() || padding.is_some_and(|padding| !padding.is_empty()) {
        return None;
    }
    let mut reader = Reader { family, rule: Rule::default(), loaded: None, counted: false, ended: false };
    for element in Attributes::of(expressions?) {
        let element = element?;
        let [_, name, data] = fields(Some(element).filter(|element| element.kind == ELEMENT)?.value)?;
        reader.expression(text(name)?, data?)?;
    }
    reader.finish()
}

/// A rule being read.
struct Reader<'a> {
    family: IpFamily,
    rule: Rule,
    /// What the next expression compares or masks.
    loaded: Option<Loaded<'a>>,
    /// The counter was there: matches are over.
    counted: bool,
    /// The target was there.
    ended: bool,
}

/// Something of a packet in a register.
struct Loaded<'a> {
    register: u32,
    field: Field,
    /// How many bytes of it; for names, the most there can be.
    length: usize,
    mask: Option<&'a [u8]>,
}

#[derive(Clone, Copy)]
enum Field {
    Interface,
    Protocol,
    Mark,
    Source,
    Destination,
    DestinationPort,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn expression(&mut self, name: &[u8], data: &'a [u8]) -> Option<()> {
        match (name, self.loaded.take(), self.counted) {
            (b"meta", None, false) => self.loaded = Some(meta(data)?),
            (b"payload", None, false) => self.loaded = Some(self.payload(data)?),
            (b"bitwise", Some(loaded), _) => self.loaded = Some(loaded.masked(data)?),
            (b"cmp", Some(loaded), _) => self.compare(&loaded, data)?,
            (b"match", None, false) => {
                let [_, name, revision, info] = fields(data)?;
                let condition = extensions::condition(text(name)?, number(revision)?, info?, self.family)?;
                self.rule.matches.push(condition);
            }
            (b"counter", None, false) => {
                let [_, bytes, packets, padding] = fields(data)?;
                bytes?;
                packets?;
                self.counted = padding.is_none_or(<[u8]>::is_empty);
            }
            (b"immediate", None, true) if !self.ended => {
                self.rule.target = Some(verdict(data)?);
                self.ended = true;
            }
            (b"target", None, true) if !self.ended => {
                let [_, name, revision, info] = fields(data)?;
                self.rule.target = Some(extensions::target(text(name)?, number(revision)?, info?, self.family)?);
                self.ended = true;
            }
            _ => return None,
        }
        Some(())
    }

    fn finish(self) -> Option<Rule> {
        (self.loaded.is_none() && self.counted).then_some(self.rule)
    }

    /// `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`
    fn payload(&self, data: &[u8]) -> Option<Loaded<'a>> {
        let [_, register, base, offset, length] = fields(data)?;
        let (base, offset, length) = (number(base)?, number(offset)?, number(length)? as usize);
        let field = match (self.family, base, offset, length) {
            (IpFamily::V4, NETWORK_HEADER, 9, 1) => Field::Protocol,
            (IpFamily::V4, NETWORK_HEADER, 12, 1..=4) | (IpFamily::V6, NETWORK_HEADER, 8, 1..=16) => Field::Source,
            (IpFamily::V4, NETWORK_HEADER, 16, 1..=4) | (IpFamily::V6, NETWORK_HEADER, 24, 1..=16) => {
                Field::Destination
            }
            (_, TRANSPORT_HEADER, 2, 2) => Field::DestinationPort,
            _ => return None,
        };
        Some(Loaded { register: number(register)?, field, length, mask: None })
    }

    /// `NFTA_CMP_SREG`, `_OP`, `_DATA`
    fn compare(&mut self, loaded: &Loaded<'_>, data: &[u8]) -> Option<()> {
        let [_, register, operation, value] = fields(data)?;
        let value = only(value, DATA_VALUE)?;
        let not = match number(operation)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        if number(register)? != loaded.register {
            return None;
        }
        // What stands first in the text has to come first here as well: a match may remember things.
        let is_head = self.rule.matches.is_empty();
        match (loaded.field, loaded.mask) {
            (Field::Interface, None) if is_head => {
                put(&mut self.rule.in_interface, Is { not, value: interface(value)? })
            }
            (Field::Protocol, None) if is_head && !not => put(&mut self.rule.protocol, protocol(value)?),
            (Field::Source, mask) if is_head => match addresses(self.family, loaded.length, mask, value)? {
                Addresses::Net(value) => put(&mut self.rule.source, Is { not, value }),
                Addresses::Bits { .. } => None,
            },
            (Field::Destination, mask) if is_head => {
                let value = addresses(self.family, loaded.length, mask, value)?;
                put(&mut self.rule.destination, Is { not, value })
            }
            (Field::DestinationPort, None) if !not => {
                let protocol = self.rule.protocol.filter(|protocol| *protocol != Protocol::Sctp)?;
                let port = u16::from_be_bytes(value.try_into().ok()?);
                self.rule.matches.push(Match::Transport(protocol, Some(port)));
                Some(())
            }
            (Field::Mark, mask) => {
                let mask = mask.map_or(Some([0xff; 4]), |mask| mask.try_into().ok())?;
                let value = u32::from_ne_bytes(value.try_into().ok()?);
                let marking = Marking { value, mask: u32::from_ne_bytes(mask) };
                self.rule.matches.push(Match::Mark(Is { not, value: marking }));
                Some(())
            }
            _ => None,
        }
    }
}

// === impl Loaded ===

impl<'a> Loaded<'a> {
    /// `NFTA_BITWISE_SREG`, `_DREG`, `_LEN`, `_MASK`, `_XOR`, `_OP`: masked where it is.
    fn masked(self, data: &'a [u8]) -> Option<Loaded<'a>> {
        let [_, from, to, length, mask, xor, operation] = fields(data)?;
        let (mask, xor) = (only(mask, DATA_VALUE)?, only(xor, DATA_VALUE)?);
        let in_place = number(from)? == self.register && number(to)? == self.register;
        let whole = number(length)? as usize == self.length && mask.len() == self.length && xor.len() == self.length;
        // Kernels before 5.6 know no other operation than this one, `NFT_BITWISE_MASK_XOR`.
        let masks = operation.is_none_or(|operation| number(Some(operation)) == Some(0)) && is_zero(xor);
        (in_place && whole && masks && self.mask.is_none()).then_some(Loaded { mask: Some(mask), ..self })
    }
}

/// `NFTA_META_DREG`, `_KEY`
fn meta<'a>(data: &[u8]) -> Option<Loaded<'a>> {
    let [_, register, key] = fields(data)?;
    let (field, length) = match number(key)? {
        META_INTERFACE => (Field::Interface, INTERFACE_NAME),
        META_PROTOCOL => (Field::Protocol, 1),
        META_MARK => (Field::Mark, 4),
        _ => return None,
    };
    Some(Loaded { register: number(register)?, field, length, mask: None })
}

fn put<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}

/// The whole name ends with a zero; the beginning of one does not.
fn interface(value: &[u8]) -> Option<String> {
    let is_plain = |name: &&str| !name.contains('+') && name.len() < INTERFACE_NAME;
    match value.strip_suffix(&[0]) {
        Some(name) => plain(name).filter(is_plain).map(str::to_owned),
        // Together with its `+` it is a name in the tools' eyes.
        None => {
            plain(value).filter(|name| is_plain(name) && name.len() + 1 < INTERFACE_NAME).map(|name| format!("{name}+"))
        }
    }
}

fn protocol(value: &[u8]) -> Option<Protocol> {
    match value {
        [number] => Protocol::from_number(*number),
        _ => None,
    }
}

/// Addresses: a network by as many bytes of the address as it has, or whole addresses under any mask.
fn addresses(family: IpFamily, length: usize, mask: Option<&[u8]>, value: &[u8]) -> Option<Addresses> {
    const ALL: [u8; 16] = [0xff; 16];
    let size = match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 16,
    };
    let mask = match mask {
        None => ALL.get(..length)?,
        Some(mask) => Some(mask).filter(|mask| mask.len() == size)?,
    };
    // With zeros up to its end.
    let whole = |bytes: &[u8]| {
        let mut address = [0; 16];
        address.get_mut(..length).filter(|_| bytes.len() == length)?.copy_from_slice(bytes);
        Some(match family {
            IpFamily::V4 => IpAddr::from(*address.first_chunk::<4>()?),
            IpFamily::V6 => address.into(),
        })
    };
    let (value, mask) = (whole(value)?, whole(mask)?);
    let addresses = Addresses::under_mask(value, mask)?;
    let kept = match addresses {
        Addresses::Net(net) => net.addr(),
        Addresses::Bits { value, .. } => value,
    };
    // The text leaves out a network that holds everything, and bits that do not count.
    (!mask.is_unspecified() && kept == value).then_some(addresses)
}

/// `NFTA_IMMEDIATE_DREG`, `_DATA`; in that `NFTA_VERDICT_CODE`, `_CHAIN`.
fn verdict(data: &[u8]) -> Option<Target> {
    let [_, register, data] = fields(data)?;
    let [_, code, chain] = fields(only(data, DATA_VERDICT)?)?;
    // `NFT_REG_VERDICT`
    if number(register)? != 0 {
        return None;
    }
    match (number(code)?, chain) {
        // Any other name could be that of a target.
        (JUMP, Some(_)) => Some(Target::Jump(own_chain(text(chain)?)?.into())),
        (RETURN, None) => Some(Target::Return),
        _ => None,
    }
}
