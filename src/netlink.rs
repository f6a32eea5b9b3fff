//! Netfilter's netlink: requests to the kernel and its answers. What they say is the affair of those
//! who ask.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// A socket to the kernel of the network namespace it was opened in. One request at a time.
pub struct Connection {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// A message of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its netlink header.
    pub header: NetlinkHeader,
    /// What follows that: netfilter's own header, of [`HEADER`] bytes, and attributes.
    pub payload: &'a [u8],
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the last message of the answer.
    Complete,
    /// So too, but what was listed changed meanwhile: some of it may be missing, or there twice.
    Interrupted,
    /// Whoever took the messages wanted no more. The connection has served its time.
    Stopped,
}

/// Length of netfilter's header in a message. (Kernel: `struct nfgenmsg`.)
pub const HEADER: usize = 4;

/// More than the kernel puts into one datagram of a dump (32 KiB).
const BUFFER: usize = 64 * 1024;
/// Longest wait for an answer, which the kernel gives at once if it works as it should.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages of netlink itself: `NLMSG_NOOP`, `NLMSG_ERROR`, `NLMSG_DONE`, `NLMSG_OVERRUN`.
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// `MSG_TRUNC`: tell the true length of a datagram that does not fit.
const MSG_TRUNC: i32 = 0x20;

// === impl Connection ===

impl Connection {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn open() -> io::Result<Connection> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Connection { socket, buffer: Vec::with_capacity(BUFFER), sequence: 0 })
    }

    /// Sends a request and hands over the messages of the answer, until `take` has enough. The answer
    /// is a list with `NLM_F_DUMP` among the flags, empty with `NLM_F_ACK`, else one message. Blocks.
    ///
    /// # Errors
    ///
    /// The kernel's refusal, with its error number; what goes wrong on the socket; no answer for ten
    /// seconds. Parts of an answer may have been handed over before.
    pub fn exchange(
        &mut self,
        request: NetfilterMessage,
        flags: u16,
        mut take: impl FnMut(Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<End> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&encode(request, flags, self.sequence), 0)?;
        let is_list = flags & NLM_F_DUMP == NLM_F_DUMP;
        let is_one = !is_list && flags & NLM_F_ACK == 0;
        let mut end = End::Complete;
        loop {
            let mut rest = datagram(&self.socket, &mut self.buffer)?;
            while !rest.is_empty() {
                let message = Message::first(rest)?;
                rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    end = End::Interrupted;
                }
                match message.header.message_type {
                    NOOP | OVERRUN => {}
                    ERROR | DONE => return message.verdict().map(|()| end),
                    _ if take(message).is_break() => return Ok(End::Stopped),
                    _ if is_one => return Ok(end),
                    _ => {}
                }
            }
        }
    }
}

fn datagram<'a>(socket: &Socket, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    buffer.clear();
    let length = loop {
        match socket.recv(buffer, MSG_TRUNC) {
            // Signals end a wait with a time limit, whoever they are for.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    buffer.get(..length).ok_or_else(|| io::Error::other("an answer of the kernel is too long"))
}

// === impl Message ===

impl<'a> Message<'a> {
    /// The first message of a datagram.
    fn first(datagram: &'a [u8]) -> io::Result<Message<'a>> {
        let bytes = NetlinkBuffer::new_checked(datagram).map_err(io::Error::other)?;
        let mut header = NetlinkHeader::default();
        (header.length, header.message_type, header.flags) = (bytes.length(), bytes.message_type(), bytes.flags());
        (header.sequence_number, header.port_number) = (bytes.sequence_number(), bytes.port_number());
        Ok(Message { header, payload: bytes.payload() })
    }

    /// What the last message of an answer says: zero, or an error number below it.
    fn verdict(&self) -> io::Result<()> {
        let code = self.payload.first_chunk().map(|code| i32::from_ne_bytes(*code));
        match code.ok_or_else(|| io::Error::other("an answer of the kernel is cut short"))? {
            code if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            _ => Ok(()),
        }
    }
}

/// A request as bytes.
pub fn encode(request: NetfilterMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    (header.flags, header.sequence_number) = (flags, sequence);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
