//! What is said to nf_tables and what it answers, as bytes. (Kernel: `include/uapi/linux/netfilter/nf_tables.h`.)
//!
//! Numbers are big-endian, but for what rules calculate: `numgen` gives the machine's own order.

mod expressions;
mod reader;
mod trial;

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::NlasIterator;

use self::reader::Reader;
use crate::backend::nftables::diff::comment;
use crate::backend::nftables::names::TABLE;
use crate::backend::nftables::ruleset::{Chain, Element, Field, Frontend, Key, Label, Rule, Set, Site, Value};
use crate::model::ServicePortName;
use crate::net::{IpFamily, Protocol};
use crate::netlink::nf_tables::{OF_CHAIN, OF_SET, OF_TABLE, number};
use crate::netlink::{HEADER, NESTED};
use crate::plan::Backend;

/// Messages that happen together or not at all.
#[derive(Debug)]
pub struct Transaction {
    family: IpFamily,
    table: &'static str,
    bytes: Vec<u8>,
    /// For each message between the first and the last, whom it is for.
    owners: Vec<usize>,
    elements: usize,
}

/// What is done with elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// They come.
    Add,
    /// They go.
    Remove,
}

/// A set, as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetHeader {
    /// Its name.
    pub name: String,
    /// Whether it is made as ours of that name is.
    pub is_ours: Option<Set>,
}

// `NFT_MSG_…`
const NEW_TABLE: u8 = 0;
pub(super) const DEL_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
pub(super) const DEL_CHAIN: u8 = 5;
pub(super) const NEW_RULE: u8 = 6;
pub(super) const DEL_RULE: u8 = 8;
const NEW_SET: u8 = 9;
pub(super) const DEL_SET: u8 = 11;
pub(super) const NEW_SET_ELEM: u8 = 12;
pub(super) const DEL_SET_ELEM: u8 = 14;
/// `NFNL_SUBSYS_NFTABLES`
pub const SUBSYSTEM: u8 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// `NFTA_CHAIN_NAME`
const CHAIN_NAME: u16 = 3;
/// `NFTA_RULE_EXPRESSIONS`
const RULE_EXPRESSIONS: u16 = 4;
// `NFTA_SET_…`
const SET_FLAGS: u16 = 3;
const SET_KEY_LENGTH: u16 = 5;
const SET_VALUE_TYPE: u16 = 6;
const SET_VALUE_LENGTH: u16 = 7;
/// `NFT_SET_…`
const FLAG_INTERVAL: u32 = 0x4;
const FLAG_MAP: u32 = 0x8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_EVAL: u32 = 0x20;
/// `NFT_DATA_VERDICT`
const VERDICT: u32 = 0xffff_ff00;
// `NFTA_SET_ELEM_LIST_ELEMENTS`, `NFTA_LIST_ELEM`, `NFTA_SET_ELEM_…`, `NFTA_DATA_VALUE`
const LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const USER_DATA: u16 = 6;
const KEY_END: u16 = 10;
const VALUE: u16 = 1;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`: the type of a comment in user data, which `nft` and we alone read.
const COMMENT: u8 = 0;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`
const APPEND: u16 = 0x800;
/// Length of the header of netlink.
const NETLINK_HEADER: usize = 16;
/// An attribute tells its length in 16 bits.
const LIST_MAX: usize = 48 * 1024;

// === impl Transaction ===

impl Transaction {
    /// Nothing yet, for a family's table.
    pub fn new(family: IpFamily) -> Transaction {
        Transaction::about(family, TABLE)
    }

    fn about(family: IpFamily, table: &'static str) -> Transaction {
        let mut transaction = Transaction { family, table, bytes: Vec::new(), owners: Vec::new(), elements: 0 };
        transaction.bracket(BATCH_BEGIN);
        transaction
    }

    /// How many elements come and go.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Elements come or go. `service` is named in comments of those that are its own, `owner` is whom a refusal is about.
    pub fn elements_of(
        &mut self,
        command: Command,
        elements: &[Element],
        service: Option<&ServicePortName>,
        owner: usize,
    ) {
        let comment = service.filter(|_| command == Command::Add).map(|service| user_data(&comment(service)));
        let mut rest = elements;
        while let Some(first) = rest.first() {
            let set = first.set;
            let (kind, flags) = match command {
                Command::Add => (NEW_SET_ELEM, REQUEST | CREATE),
                Command::Remove => (DEL_SET_ELEM, REQUEST),
            };
            let message = self.begin(kind, flags, owner);
            self.name(OF_SET, &set.name());
            let comment = comment.as_deref().filter(|_| !set.is_shared());
            let list = self.open(LIST);
            while let Some((element, after)) = rest.split_first()
                && element.set == set
                && self.bytes.len() - list < LIST_MAX
            {
                self.element(command, element, comment);
                rest = after;
            }
            self.close(list);
            self.end(message);
        }
        self.elements += elements.len();
    }

    /// A chain gets these rules instead of those that it has.
    pub fn rewrite_chain(&mut self, chain: &Chain) {
        self.flush_chain(&chain.name);
        chain.rules.iter().for_each(|rule| self.add_rule(&chain.name, rule, 0));
    }

    /// A rule comes, as the last of its chain.
    pub fn add_rule(&mut self, chain: &str, rule: &Rule, owner: usize) {
        let expressions = expressions::rule(rule, self.family);
        let message = self.begin(NEW_RULE, REQUEST | CREATE | APPEND, owner);
        self.name(OF_CHAIN, chain);
        self.bytes.extend(expressions);
        self.end(message);
    }

    /// A chain loses its rules.
    pub fn flush_chain(&mut self, name: &str) {
        let message = self.begin(DEL_RULE, REQUEST, 0);
        self.name(OF_CHAIN, name);
        self.end(message);
    }

    /// A chain of others goes.
    pub fn delete_chain(&mut self, name: &str) {
        let message = self.begin(DEL_CHAIN, REQUEST, 0);
        self.name(CHAIN_NAME, name);
        self.end(message);
    }

    /// A set goes, with its elements.
    pub fn delete_set(&mut self, name: &str) {
        let message = self.begin(DEL_SET, REQUEST, 0);
        self.name(OF_SET, name);
        self.end(message);
    }

    /// The table goes, with all there is in it.
    pub fn delete_table(&mut self) {
        let message = self.begin(DEL_TABLE, REQUEST, 0);
        self.end(message);
    }

    /// All of it, to be sent at once, and for each message whom it is for. Messages are numbered from 1; brackets have the
    /// numbers of 0 and of the last message. That one is answered in any case.
    pub fn finish(mut self) -> (Vec<u8>, Vec<usize>) {
        self.ask_for_an_answer();
        self.bracket(BATCH_END);
        (self.bytes, self.owners)
    }

    /// The same for the kernel to look at: what has no end, it checks to the last and then undoes. (`nft --check` does so.)
    pub fn finish_without_end(mut self) -> (Vec<u8>, Vec<usize>) {
        self.ask_for_an_answer();
        (self.bytes, self.owners)
    }

    fn ask_for_an_answer(&mut self) {
        // The last message so far: it is what the answer is about.
        let mut at = 0;
        let mut last = 0;
        while let Some(length) = self.bytes.get(at..at + 4).and_then(|bytes| bytes.first_chunk()) {
            last = at;
            at += (u32::from_ne_bytes(*length) as usize).next_multiple_of(4).max(NETLINK_HEADER);
        }
        if let Some(flags) = self.bytes.get_mut(last + 6..last + 8) {
            let told = flags.first_chunk().map_or(REQUEST, |flags| u16::from_ne_bytes(*flags));
            flags.copy_from_slice(&(told | ACK).to_ne_bytes());
        }
    }

    fn sequence(&self) -> u32 {
        u32::try_from(self.owners.len()).unwrap_or(u32::MAX)
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence().to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        at
    }

    fn bracket(&mut self, kind: u16) {
        let at = self.header(kind, REQUEST, 0, u16::from(SUBSYSTEM));
        self.end(at);
    }

    fn begin(&mut self, kind: u8, flags: u16, owner: usize) -> usize {
        self.owners.push(owner);
        let at = self.header(u16::from(SUBSYSTEM) << 8 | u16::from(kind), flags, number(self.family), 0);
        self.name(OF_TABLE, self.table);
        at
    }

    fn end(&mut self, at: usize) {
        let length = u32::try_from(self.bytes.len() - at).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn name(&mut self, kind: u16, name: &str) {
        let at = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.close(at);
    }

    fn value(&mut self, kind: u16, value: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.close(at);
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn element(&mut self, command: Command, element: &Element, comment: Option<&[u8]>) {
        let whole = self.open(LIST_ELEMENT);
        let (first, last) = key(element.key);
        let at = self.open(KEY);
        self.value(VALUE, &first);
        self.close(at);
        if let Some(last) = last {
            let at = self.open(KEY_END);
            self.value(VALUE, &last);
            self.close(at);
        }
        if command == Command::Add {
            if let Some(value) = element.value {
                let mut bytes = Vec::with_capacity(20);
                match value {
                    Value::Endpoint(Backend { ip, port }) => {
                        field_ip(&mut bytes, ip);
                        field_port(&mut bytes, port);
                    }
                    Value::Label(Label(label)) => bytes.extend(label.to_be_bytes()),
                }
                let at = self.open(DATA);
                self.value(VALUE, &bytes);
                self.close(at);
            }
            if let Some(comment) = comment {
                self.value(USER_DATA, comment);
            }
        }
        self.close(whole);
    }
}

/// A comment as user data.
fn user_data(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[COMMENT, length], text.as_bytes(), &[0]].concat()
}

/// The comment in user data.
fn comment_of(user_data: &[u8]) -> Option<Box<str>> {
    let [COMMENT, length, rest @ ..] = user_data else { return None };
    let text = rest.get(..usize::from(*length).checked_sub(1)?)?;
    std::str::from_utf8(text).ok().map(Box::from)
}

/// A key, and where a range ends, if it is one.
fn key(key: Key) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut bytes = Vec::with_capacity(40);
    match key {
        Key::Ip(ip) => field_ip(&mut bytes, ip),
        Key::Frontend(frontend) => field_frontend(&mut bytes, frontend),
        Key::Slot(frontend, number) => {
            field_frontend(&mut bytes, frontend);
            bytes.extend(number.to_ne_bytes());
        }
        Key::Hairpin(ip, protocol, port) => {
            field_ip(&mut bytes, ip);
            field_frontend(&mut bytes, Frontend::Address(ip, protocol, port));
        }
        Key::Label(Label(label)) => bytes.extend(label.to_be_bytes()),
        Key::Client(Label(label), ip) => {
            bytes.extend(label.to_be_bytes());
            field_ip(&mut bytes, ip);
        }
        Key::Allowed(frontend, net) => {
            field_frontend(&mut bytes, frontend);
            let mut end = bytes.clone();
            field_ip(&mut bytes, net.network());
            field_ip(&mut end, net.broadcast());
            return (bytes, Some(end));
        }
    }
    (bytes, None)
}

fn field_ip(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
}

fn field_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0; 2]);
}

fn field_protocol(bytes: &mut Vec<u8>, protocol: Protocol) {
    bytes.extend([protocol.number(), 0, 0, 0]);
}

fn field_frontend(bytes: &mut Vec<u8>, frontend: Frontend) {
    let (protocol, port) = match frontend {
        Frontend::Address(ip, protocol, port) => {
            field_ip(bytes, ip);
            (protocol, port)
        }
        Frontend::NodePort(protocol, port) => (protocol, port),
    };
    field_protocol(bytes, protocol);
    field_port(bytes, port);
}

/// A message about a set: attributes after its header.
pub(super) fn set_header(message: &[u8], family: IpFamily) -> Option<SetHeader> {
    let (mut name, mut flags, mut key_length, mut value_type, mut value_length) = (None, 0, 0, 0, 0);
    for attribute in NlasIterator::new(message.get(HEADER..)?).flatten() {
        let word = || attribute.value().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        match attribute.kind() {
            OF_SET => name = text(attribute.value()),
            SET_FLAGS => flags = word(),
            SET_KEY_LENGTH => key_length = word(),
            SET_VALUE_TYPE => value_type = word(),
            SET_VALUE_LENGTH => value_length = word(),
            _ => {}
        }
    }
    let name = name?;
    let is_so = |set: &Set| {
        let shape = set.shape();
        let length = |fields| length(fields, family);
        let has = |flag| flags & flag != 0;
        key_length == length(shape.key)
            && has(FLAG_INTERVAL) == shape.interval
            && has(FLAG_MAP) == shape.value.is_some()
            && has(FLAG_TIMEOUT) == shape.dynamic
            && has(FLAG_EVAL) == shape.dynamic
            && shape.value.is_none_or(|value| value_type != VERDICT && value_length == length(value))
    };
    let is_ours = Set::named(&name).filter(is_so);
    Some(SetHeader { name, is_ours })
}

/// How many bytes fields of a key or a value take.
fn length(fields: &[Field], family: IpFamily) -> u32 {
    let length = |field: &Field| match (field, family) {
        (Field::Address, IpFamily::V6) | (Field::Label, _) => 16,
        (Field::Address, IpFamily::V4) | (Field::Protocol | Field::Port | Field::Number, _) => 4,
    };
    fields.iter().map(length).sum()
}

/// The chain of the rule that a message is about, and its expressions.
pub(super) fn rule(message: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut chain, mut expressions) = (None, Vec::new());
    for attribute in NlasIterator::new(message.get(HEADER..)?).flatten() {
        match attribute.kind() & !NESTED {
            OF_CHAIN => chain = text(attribute.value()),
            RULE_EXPRESSIONS => expressions = attribute.value().to_vec(),
            _ => {}
        }
    }
    Some((chain?, expressions))
}

/// Whether these are the rules of a chain.
pub(super) fn are_rules_of(chain: &Chain, family: IpFamily, told: &[Vec<u8>]) -> bool {
    told.len() == chain.rules.len()
        && chain.rules.iter().zip(told).all(|(rule, told)| expressions::is_rule(rule, family, told))
}

/// The name of the chain that a message is about.
pub(super) fn chain_name(message: &[u8]) -> Option<String> {
    let mut attributes = NlasIterator::new(message.get(HEADER..)?).flatten();
    attributes.find(|attribute| attribute.kind() == CHAIN_NAME).and_then(|attribute| text(attribute.value()))
}

/// The name of the table that a message is about.
pub fn table_name(message: &[u8]) -> Option<String> {
    let mut attributes = NlasIterator::new(message.get(HEADER..)?).flatten();
    attributes.find(|attribute| attribute.kind() == OF_TABLE).and_then(|attribute| text(attribute.value()))
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(text.trim_end_matches('\0').to_owned())
}

/// Hands over the elements of a message about a set, with their comments, but for those that ours cannot have.
pub(super) fn elements(message: &[u8], family: IpFamily, set: Set, mut take: impl FnMut((Element, Option<Box<str>>))) {
    let attributes = NlasIterator::new(message.get(HEADER..).unwrap_or_default()).flatten();
    for list in attributes.filter(|attribute| attribute.kind() & !NESTED == LIST) {
        let elements = NlasIterator::new(list.value()).flatten();
        elements.filter_map(|element| read_element(element.value(), family, set)).for_each(&mut take);
    }
}

fn read_element(attributes: &[u8], family: IpFamily, set: Set) -> Option<(Element, Option<Box<str>>)> {
    let (mut first, mut last, mut data, mut comment) = (None, None, None, None);
    for attribute in NlasIterator::new(attributes).flatten() {
        let place = match attribute.kind() & !NESTED {
            KEY => &mut first,
            KEY_END => &mut last,
            DATA => &mut data,
            USER_DATA => {
                comment = comment_of(attribute.value());
                continue;
            }
            _ => continue,
        };
        let value = NlasIterator::new(attribute.value()).flatten().find(|value| value.kind() & !NESTED == VALUE)?;
        *place = Some(value.value().to_vec());
    }
    let mut reader = Reader { family, bytes: first.as_deref()? };
    let key = match set {
        Set::ClusterIps | Set::ExternalIps | Set::NodePortIps => Key::Ip(reader.ip()?),
        Set::Hairpins => {
            let (ip, other) = (reader.ip()?, reader.ip()?);
            Key::Hairpin(Some(ip).filter(|ip| *ip == other)?, reader.protocol()?, reader.port()?)
        }
        Set::Clients => Key::Client(reader.label()?, reader.ip()?),
        Set::Kept(_) => Key::Label(reader.label()?),
        Set::Endpoints(site, _) => Key::Slot(reader.frontend(site)?, reader.number()?),
        Set::AllowedSources => {
            let frontend = reader.frontend(Site::Address)?;
            let start = reader.ip()?;
            let last = last.as_deref()?;
            let mut end = Reader { family, bytes: last };
            (end.frontend(Site::Address)? == frontend).then_some(())?;
            Key::Allowed(frontend, net(start, end.ip()?)?)
        }
        Set::Restricted => Key::Frontend(reader.frontend(Site::Address)?),
        Set::Sized(site, ..)
        | Set::Masquerade(site)
        | Set::Apart(site)
        | Set::Reject(site)
        | Set::Drop(site)
        | Set::Labels(site, _) => Key::Frontend(reader.frontend(site)?),
    };
    let value = match (set.shape().value, &data) {
        (Some(_), Some(data)) => {
            let mut reader = Reader { family, bytes: data };
            Some(match set {
                Set::Labels(..) => Value::Label(reader.label()?),
                _ => Value::Endpoint(Backend { ip: reader.ip()?, port: reader.port()? }),
            })
        }
        (None, None) => None,
        _ => return None,
    };
    Some((Element { set, key, value }, comment))
}

/// The network from one address to another.
fn net(start: IpAddr, end: IpAddr) -> Option<IpNet> {
    let (max, differ) = match (start, end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => (32, u128::from(u32::from(start) ^ u32::from(end))),
        (IpAddr::V6(start), IpAddr::V6(end)) => (128, u128::from(start) ^ u128::from(end)),
        _ => return None,
    };
    let prefix = max - u8::try_from(u128::BITS - differ.leading_zeros()).ok()?;
    let net = IpNet::new(start, prefix).ok()?;
    (net.network() == start && net.broadcast() == end).then_some(net)
}

#[cfg(test)]
mod tests;
