//! Reading and deleting flows over netlink (ctnetlink), for one family at a time.
//!
//! A request to delete that names no flow would empty the whole table; [`Entry`] exists only with
//! the tuple that names it, and a deletion is made from an [`Entry`] only.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, Nla};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::Flow;
use crate::net::{self, IpFamily};
use crate::netlink::{self, Bus, Connection, nested};
use crate::plan::Backend;

/// The kernel's table of flows.
pub trait Table: Send + 'static {
    /// Lists the UDP flows of a family that `wanted` picks, `limit` at most. Blocks.
    fn list(&mut self, family: IpFamily, wanted: &mut dyn FnMut(&Flow) -> bool, limit: usize) -> io::Result<Listing>;

    /// Deletes flows; those that are gone already count as deleted. Blocks.
    fn delete(&mut self, family: IpFamily, entries: &[Entry]) -> Deletion;
}

/// The table of the network namespace the program runs in.
#[derive(Debug)]
pub struct Kernel {
    /// Whether it can be asked for UDP alone.
    filters: bool,
}

/// Flows found.
#[derive(Debug)]
pub struct Listing {
    /// The flows.
    pub entries: Vec<Entry>,
    /// Whether these are all.
    pub end: End,
}

/// How far a listing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// To the end.
    All,
    /// To the limit.
    Limit,
    /// The table changed so much meanwhile, time and again, that some may be missing.
    Interrupted,
}

/// What became of flows that were to be deleted.
#[derive(Debug, Default)]
pub struct Deletion {
    /// How many are gone.
    pub deleted: usize,
    /// Why the first of the others is not.
    pub error: Option<io::Error>,
}

/// A UDP flow, with what names it to the kernel.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What decides about it.
    pub flow: Flow,
    /// `CTA_TUPLE_ORIG`
    tuple: Vec<Tuple>,
    /// `CTA_ZONE` and `CTA_ID`: without them, a flow that began meanwhile between the same addresses
    /// could be deleted in its place.
    identity: Vec<ConntrackAttribute>,
}

/// How often an interrupted listing is begun anew. (kube-proxy: `maxRetries`.)
const ATTEMPTS: usize = 5;

/// `IPCTNL_MSG_CT_GET`
const GET: u8 = 1;
/// Attributes: `CTA_TUPLE_ORIG`, `CTA_ID`, `CTA_ZONE`, `CTA_FILTER`; within a tuple `CTA_TUPLE_PROTO`,
/// within that `CTA_PROTO_NUM`; within a filter `CTA_FILTER_ORIG_FLAGS` and `CTA_FILTER_REPLY_FLAGS`.
const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_FLAG(CTA_PROTO_NUM)`: of the tuple, compare the protocol.
const FILTER_BY_PROTOCOL: u32 = 1 << 3;

const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const ENOBUFS: i32 = 105;

// === impl Kernel ===

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel { filters: true }
    }
}

impl Table for Kernel {
    fn list(&mut self, family: IpFamily, wanted: &mut dyn FnMut(&Flow) -> bool, limit: usize) -> io::Result<Listing> {
        let mut attempt = 1;
        loop {
            match list_once(family, self.filters, wanted, limit) {
                Ok(Listing { end: End::Interrupted, .. }) if attempt < ATTEMPTS => {}
                Ok(listing) => return Ok(listing),
                Err(error) => match error.raw_os_error() {
                    // Filters are newer (Linux 5.8) than the rest.
                    Some(EINVAL | EOPNOTSUPP) if self.filters => {
                        tracing::debug!(%family, %error, "this kernel lists flows of all protocols only");
                        self.filters = false;
                        continue;
                    }
                    Some(EINTR | ENOBUFS) if attempt < ATTEMPTS => {}
                    _ => return Err(error),
                },
            }
            attempt += 1;
        }
    }

    fn delete(&mut self, family: IpFamily, entries: &[Entry]) -> Deletion {
        let mut deletion = Deletion::default();
        if entries.is_empty() {
            return deletion;
        }
        let mut connection = match Connection::open(Bus::Netfilter) {
            Ok(connection) => connection,
            Err(error) => return Deletion { deleted: 0, error: Some(error) },
        };
        for entry in entries {
            match connection.exchange(delete_request(family, entry), NLM_F_REQUEST | NLM_F_ACK, |_| CONTINUE) {
                Ok(_) => deletion.deleted += 1,
                Err(error) if error.raw_os_error() == Some(ENOENT) => deletion.deleted += 1,
                Err(error) => _ = deletion.error.get_or_insert(error),
            }
        }
        deletion
    }
}

fn list_once(
    family: IpFamily,
    filters: bool,
    wanted: &mut dyn FnMut(&Flow) -> bool,
    limit: usize,
) -> io::Result<Listing> {
    let mut connection = Connection::open(Bus::Netfilter)?;
    let (mut entries, mut end) = (Vec::new(), End::All);
    let ended = connection.exchange(list_request(family, filters), NLM_F_REQUEST | NLM_F_DUMP, |message| {
        // What cannot be read is not UDP over IP, or not for us to judge.
        let entry = NetfilterMessage::deserialize(&message.header, message.payload).ok().and_then(Entry::of);
        match entry.filter(|entry| wanted(&entry.flow)) {
            Some(_) if entries.len() >= limit => {
                end = End::Limit;
                return ControlFlow::Break(());
            }
            entry => entries.extend(entry),
        }
        CONTINUE
    })?;
    if ended == netlink::End::Interrupted {
        end = End::Interrupted;
    }
    // If it is not the end of the dump, closing the socket ends it.
    Ok(Listing { entries, end })
}

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn message(family: IpFamily, inner: ConntrackMessage) -> NetfilterMessage {
    let family = match family {
        IpFamily::V4 => NetfilterProtoFamily::IPv4,
        IpFamily::V6 => NetfilterProtoFamily::IPv6,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn list_request(family: IpFamily, filters: bool) -> NetfilterMessage {
    let attributes = match filters {
        false => Vec::new(),
        true => vec![
            nested(
                TUPLE_ORIG,
                &[nested(TUPLE_PROTO, &[DefaultNla::new(PROTO_NUM, vec![net::Protocol::Udp.number()])])],
            ),
            nested(
                FILTER,
                &[
                    DefaultNla::new(FILTER_ORIG_FLAGS, FILTER_BY_PROTOCOL.to_ne_bytes().to_vec()),
                    DefaultNla::new(FILTER_REPLY_FLAGS, 0_u32.to_ne_bytes().to_vec()),
                ],
            ),
        ],
    };
    // Not `ConntrackMessage::Get`: its attributes lose the flag for nesting on the way.
    message(family, ConntrackMessage::Other { message_type: GET, attributes })
}

fn delete_request(family: IpFamily, entry: &Entry) -> NetfilterMessage {
    let tuple = ConntrackAttribute::CtaTupleOrig(entry.tuple.clone());
    message(family, ConntrackMessage::Delete([tuple].into_iter().chain(entry.identity.iter().cloned()).collect()))
}

// === impl Entry ===

impl Entry {
    /// The flow that a message tells of; `None` if it is not UDP or not complete.
    fn of(message: NetfilterMessage) -> Option<Entry> {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
        let (mut original, mut reply, mut identity) = (None, None, Vec::new());
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple),
                ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(tuple),
                other if [ID, ZONE].contains(&other.kind()) => identity.push(other),
                _ => {}
            }
        }
        let tuple = original?;
        let (_, destination) = ends(&tuple)?;
        let (source, _) = ends(&reply?)?;
        let endpoint = Backend { ip: source.ip(), port: source.port() };
        Some(Entry { flow: Flow { destination, endpoint }, tuple, identity })
    }

    /// A flow without a kernel.
    #[cfg(test)]
    pub(super) fn made_up(flow: Flow) -> Entry {
        Entry { flow, tuple: Vec::new(), identity: Vec::new() }
    }
}

/// Source and destination of a tuple, if it is a complete one of UDP.
fn ends(tuple: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut from, mut to, mut protocol, mut from_port, mut to_port) = (None, None, None, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(ip) => from = Some(*ip),
                        IPTuple::DestinationAddress(ip) => to = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Some(*number),
                        ProtoTuple::SourcePort(port) => from_port = Some(*port),
                        ProtoTuple::DestinationPort(port) => to_port = Some(*port),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (protocol? == Protocol::Udp).then_some(())?;
    Some((SocketAddr::new(from?, from_port?), SocketAddr::new(to?, to_port?)))
}

#[cfg(test)]
mod tests;
