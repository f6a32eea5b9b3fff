//! Named packet counters of the kernel (nfacct), over netlink.
//!
//! A rule may only name a counter that exists, and kernels without the feature have none: this
//! makes them where possible, and says which rules may use. (kube-proxy: `util/nfacct`; kernel:
//! `nfnetlink_acct`.)

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::compile::{NFACCT_INVALID_DROPPED, NFACCT_LOCALHOST_ACCEPTED};

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

fn ensure(name: &str) -> std::io::Result<bool> {
    match request(GET, NLM_F_REQUEST, name)? {
        0 => Ok(true),
        ENOENT => {
            let made = request(NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK, name)? == 0;
            // Counters know no family: the other one's pipeline may have been quicker.
            Ok(made || request(GET, NLM_F_REQUEST, name)? == 0)
        }
        _ => Ok(false),
    }
}

/// Sends one request and returns the kernel's error number, 0 for success.
fn request(message_type: u8, flags: u16, name: &str) -> std::io::Result<i32> {
    let answer = exchange(message_type, flags, name)?;
    match answer.payload {
        NetlinkPayload::Error(error) => Ok(error.code.map_or(0, |code| -code.get())),
        _ => Ok(0),
    }
}

/// How many packets a counter has seen; `None` if there is no such counter. Blocks for a few system
/// calls.
pub fn packets(name: &str) -> std::io::Result<Option<u64>> {
    let attributes = match exchange(GET, NLM_F_REQUEST, name)?.payload {
        NetlinkPayload::InnerMessage(message) => match message.inner {
            NetfilterMessageInner::Other { attributes, .. } => attributes,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    let value = attributes.iter().find(|attribute| attribute.kind() == PACKETS).map(|attribute| {
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        value
    });
    Ok(value.and_then(|value| Some(u64::from_be_bytes(value.try_into().ok()?))))
}

/// Sends one request and returns the kernel's answer.
fn exchange(message_type: u8, flags: u16, name: &str) -> std::io::Result<NetlinkMessage<NetfilterMessage>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut value = name.as_bytes().to_vec();
    value.push(0);
    let inner = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::Other(SUBSYSTEM),
        message_type,
        attributes: vec![DefaultNla::new(NAME, value)],
    };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let payload = NetlinkPayload::InnerMessage(NetfilterMessage::new(header, inner));
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
    message.header.flags = flags;
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;

    let (answer, _) = socket.recv_from_full()?;
    NetlinkMessage::<NetfilterMessage>::deserialize(&answer).map_err(std::io::Error::other)
}
