//! Named packet counters of the kernel (nfacct), over netlink.
//!
//! A rule may only name a counter that exists, and kernels without the feature have none: this
//! makes them where possible, and says which rules may use. (kube-proxy: `util/nfacct`; kernel:
//! `nfnetlink_acct`.)

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkDeserializable, Nla};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};

use super::compile::{NFACCT_INVALID_DROPPED, NFACCT_LOCALHOST_ACCEPTED};
use crate::netlink::{Bus, Connection};

/// Which counters there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// [`NFACCT_INVALID_DROPPED`]
    pub invalid_dropped: bool,
    /// [`NFACCT_LOCALHOST_ACCEPTED`]
    pub localhost_accepted: bool,
}

/// `NFNL_SUBSYS_ACCT`
const SUBSYSTEM: u8 = 7;
/// `NFNL_MSG_ACCT_NEW`
const NEW: u8 = 0;
/// `NFNL_MSG_ACCT_GET`
const GET: u8 = 1;
/// `NFACCT_NAME`
const NAME: u16 = 1;
/// `NFACCT_PKTS`, a big-endian 64-bit number.
const PACKETS: u16 = 2;
const ENOENT: i32 = 2;

// === impl Counters ===

impl Counters {
    /// Makes sure of each counter; those that cannot be had are left out. Blocks for a few system
    /// calls.
    pub fn ensure() -> Counters {
        let ensure = |name| ensure(name).unwrap_or(false);
        Counters {
            invalid_dropped: ensure(NFACCT_INVALID_DROPPED),
            localhost_accepted: ensure(NFACCT_LOCALHOST_ACCEPTED),
        }
    }
}

fn ensure(name: &str) -> io::Result<bool> {
    let mut connection = Connection::open(Bus::Netfilter)?;
    let mut succeeds = |message_type, flags| exchange(&mut connection, message_type, flags, name).map(drop);
    match succeeds(GET, NLM_F_REQUEST) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(ENOENT) => {
            let made = succeeds(NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK).is_ok();
            // Counters know no family: the other one's pipeline may have been quicker.
            Ok(made || succeeds(GET, NLM_F_REQUEST).is_ok())
        }
        Err(_) => Ok(false),
    }
}

/// How many packets a counter has seen; `None` if there is no such counter. Blocks for a few system
/// calls.
///
/// # Errors
///
/// The kernel cannot be asked, or has no such counters at all.
pub fn packets(name: &str) -> io::Result<Option<u64>> {
    let attributes = match exchange(&mut Connection::open(Bus::Netfilter)?, GET, NLM_F_REQUEST, name) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => return Ok(None),
        answer => answer?,
    };
    let value = attributes.iter().find(|attribute| attribute.kind() == PACKETS).map(|attribute| {
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        value
    });
    Ok(value.and_then(|value| Some(u64::from_be_bytes(value.try_into().ok()?))))
}

/// Sends one request and returns the attributes of the kernel's answer.
fn exchange(connection: &mut Connection, message_type: u8, flags: u16, name: &str) -> io::Result<Vec<DefaultNla>> {
    let mut value = name.as_bytes().to_vec();
    value.push(0);
    let inner = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::Other(SUBSYSTEM),
        message_type,
        attributes: vec![DefaultNla::new(NAME, value)],
    };
    let request = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), inner);
    let mut found = Vec::new();
    connection.exchange(request, flags, |message| {
        let message = NetfilterMessage::deserialize(&message.header, message.payload);
        if let Ok(NetfilterMessageInner::Other { attributes, .. }) = message.map(|message| message.inner) {
            found = attributes;
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
