//! Lists of what is in the tables of nf_tables. (Kernel: `include/uapi/linux/netfilter/nf_tables.h`.)

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{DefaultNla, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};

use super::{Connection, End, Message};
use crate::net::IpFamily;

/// `NFT_MSG_GETCHAIN`
pub const GET_CHAIN: u8 = 4;
/// `NFT_MSG_GETRULE`
pub const GET_RULE: u8 = 7;
/// `NFT_MSG_GETSET`
pub const GET_SET: u8 = 10;
/// `NFT_MSG_GETSETELEM`
pub const GET_SET_ELEM: u8 = 13;

/// The table's name in messages about it, chains, rules, sets and elements alike.
pub const OF_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`: the chain's name in messages about rules.
pub const OF_CHAIN: u16 = 2;
/// `NFTA_SET_NAME`, `NFTA_SET_ELEM_LIST_SET`: the set's name in messages about it and its elements.
pub const OF_SET: u16 = 2;

/// How often a list during which the tables changed is begun anew.
const ATTEMPTS: usize = 5;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;

/// Asks for a list of what has these names, again if what is listed changed meanwhile: `begin` then forgets what `take` was
/// given, the payloads of messages. What is not there is an empty list. Blocks.
///
/// # Errors
///
/// The kernel's; `EINTR` if the tables change time and again while they are listed.
pub fn list<T>(
    connection: &mut Connection,
    family: IpFamily,
    message_type: u8,
    names: &[(u16, &str)],
    found: &mut T,
    begin: impl Fn(&mut T),
    mut take: impl FnMut(&mut T, &[u8]),
) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        begin(found);
        let request = request(family, message_type, names);
        let end = connection.exchange(request, NLM_F_REQUEST | NLM_F_DUMP, |Message { payload, .. }| {
            match payload {
                // Netfilter's header: the family, and a version that there is only one of.
                [of, 0, ..] if *of == number(family) => take(found, payload),
                _ => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        });
        match end {
            Ok(End::Complete) => return Ok(()),
            Ok(End::Interrupted) => {}
            Ok(End::Stopped) => return Err(io::Error::other("nf_tables gave an answer that was not asked for")),
            Err(error) => match error.raw_os_error() {
                Some(ENOENT) => {
                    begin(found);
                    return Ok(());
                }
                Some(EINTR) => {}
                _ => return Err(error),
            },
        }
    }
    Err(io::Error::from_raw_os_error(EINTR))
}

/// A family in netfilter's header. (Kernel: `NFPROTO_IPV4`, `NFPROTO_IPV6`.)
pub fn number(family: IpFamily) -> u8 {
    protocol_family(family).into()
}

fn protocol_family(family: IpFamily) -> NetfilterProtoFamily {
    match family {
        IpFamily::V4 => NetfilterProtoFamily::IPv4,
        IpFamily::V6 => NetfilterProtoFamily::IPv6,
    }
}

fn request(family: IpFamily, message_type: u8, names: &[(u16, &str)]) -> NetfilterMessage {
    let attribute = |(kind, name): &(u16, &str)| DefaultNla::new(*kind, [name.as_bytes(), &[0]].concat());
    let inner = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::NfTables,
        message_type,
        attributes: names.iter().map(attribute).collect(),
    };
    NetfilterMessage::new(NetfilterHeader::new(protocol_family(family), 0, 0), inner)
}
