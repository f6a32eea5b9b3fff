//! Netlink: requests to the kernel and its answers. What they say is the affair of those who ask.

pub mod nf_tables;

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};

/// A socket to the kernel of the network namespace it was opened in. One request at a time.
pub struct Connection {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    complaint: Option<String>,
    /// How much may be sent at once.
    room: usize,
}

/// A message that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{}{error}", words.as_ref().map(|words| format!("{words}: ")).unwrap_or_default())]
pub struct Refusal {
    /// Its number.
    pub number: u32,
    /// Why.
    pub error: io::Error,
    /// The kernel's words about it.
    pub words: Option<String>,
}

/// Whom in the kernel a connection leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// Netfilter: flows, rules, counters.
    Netfilter,
    /// Whoever has a name: families of generic netlink ([`Connection::family`]).
    Generic,
}

/// A message of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its netlink header.
    pub header: NetlinkHeader,
    /// What follows that: a header of [`HEADER`] bytes, netfilter's own or that of generic netlink, and attributes.
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

/// Length of the header that comes before a message's attributes. (Kernel: `struct nfgenmsg`, `struct genlmsghdr`.)
pub const HEADER: usize = 4;

/// More than the kernel puts into one datagram of a dump (32 KiB).
const BUFFER: usize = 64 * 1024;
/// Longest wait for an answer, which the kernel gives at once if it works as it should.
const PATIENCE: Duration = Duration::from_secs(10);
/// The least that may be sent at once.
const SEND_MIN: usize = 256 * 1024;
/// Messages of netlink itself: `NLMSG_NOOP`, `NLMSG_ERROR`, `NLMSG_DONE`, `NLMSG_OVERRUN`.
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// Length of netlink's header, all of a request that the kernel repeats in its verdict.
const REQUEST_HEADER: usize = 16;
/// Flags of a verdict: attributes with an explanation follow (`NLM_F_ACK_TLVS`), after no more of the request than its
/// header (`NLM_F_CAPPED`).
const EXPLAINED: u16 = 0x200;
const CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG`
const WORDS: u16 = 1;
/// `NLA_F_NESTED`: in the type of an attribute that consists of attributes.
pub const NESTED: u16 = 1 << 15;
/// `MSG_TRUNC`: tell the true length of a datagram that does not fit.
const MSG_TRUNC: i32 = 0x20;
/// `MSG_DONTWAIT`
const MSG_DONTWAIT: i32 = 0x40;
/// Answers were lost.
const ENOBUFS: i32 = 105;

// === impl Connection ===

impl Connection {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn open(bus: Bus) -> io::Result<Connection> {
        let mut socket = Socket::new(match bus {
            Bus::Netfilter => NETLINK_NETFILTER,
            Bus::Generic => NETLINK_GENERIC,
        })?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        // Kernels before 4.12 have no words.
        _ = socket.set_ext_ack(true);
        _ = socket.set_cap_ack(true);
        Ok(Connection { socket, buffer: Vec::with_capacity(BUFFER), sequence: 0, complaint: None, room: 0 })
    }

    /// The number of a family of generic netlink, which the kernel gives it when its module is loaded. Blocks.
    ///
    /// # Errors
    ///
    /// `ENOENT` if this kernel has no such family, or not yet; what goes wrong on the socket.
    pub fn family(&mut self, name: &str) -> io::Result<u16> {
        let nlas = vec![GenlCtrlAttrs::FamilyName(name.to_owned())];
        let request = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas });
        let mut found = None;
        self.exchange(request, NLM_F_REQUEST, |Message { header, payload }| {
            if let Ok(answer) = GenlMessage::<GenlCtrl>::deserialize(&header, payload) {
                found = answer.payload.nlas.iter().find_map(|attribute| match attribute {
                    GenlCtrlAttrs::FamilyId(id) => Some(*id),
                    _ => None,
                });
            }
            ControlFlow::Continue(())
        })?;
        found.ok_or_else(|| io::Error::other("the kernel told no number of a netlink family"))
    }

    /// What the kernel said in words about the last request, if it refused it and did.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Sends a request and hands over the messages of the answer, until `take` has enough. The answer
    /// is a list with `NLM_F_DUMP` among the flags, empty with `NLM_F_ACK`, else one message. Blocks.
    ///
    /// # Errors
    ///
    /// The kernel's refusal, with its error number; what goes wrong on the socket; no answer for ten
    /// seconds. Parts of an answer may have been handed over before.
    pub fn exchange<R: NetlinkSerializable>(
        &mut self,
        request: R,
        flags: u16,
        mut take: impl FnMut(Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<End> {
        self.sequence = self.sequence.wrapping_add(1);
        self.complaint = None;
        self.socket.send(&encode(request, flags, self.sequence), 0)?;
        let is_list = flags & NLM_F_DUMP == NLM_F_DUMP;
        let is_one = !is_list && flags & NLM_F_ACK == 0;
        let mut end = End::Complete;
        loop {
            for message in messages(datagram(&self.socket, &mut self.buffer, 0)?) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    end = End::Interrupted;
                }
                match message.header.message_type {
                    NOOP | OVERRUN => {}
                    ERROR | DONE => {
                        self.complaint = message.complaint();
                        return message.verdict().map(|()| end);
                    }
                    _ if take(message).is_break() => return Ok(End::Stopped),
                    _ if is_one => return Ok(end),
                    _ => {}
                }
            }
        }
    }
}

impl Connection {
    /// Sends messages that happen together or not at all, the last one of which asks for an answer and has this number,
    /// and gives those that the kernel refused: their numbers, and why. If there is any, nothing happened. Blocks.
    /// (Kernel: batches of nfnetlink.)
    ///
    /// # Errors
    ///
    /// The kernel takes no part of it; what goes wrong on the socket.
    ///
    /// If it refuses more than the socket has room for answers, not all of the refusals are given.
    pub fn transact(&mut self, batch: &[u8], last: u32) -> io::Result<Vec<Refusal>> {
        // What is to be sent must fit; root may have more than others.
        let room = batch.len().saturating_mul(2).max(SEND_MIN);
        if room > self.room {
            set_socket_send_buffer_size_force(&self.socket, room)?;
            self.room = room;
        }
        self.socket.send(batch, 0)?;
        let (mut refused, mut overrun) = (Vec::new(), false);
        loop {
            // The kernel answers while it takes the batch, so what has not been lost is there.
            let flags = if overrun { MSG_DONTWAIT } else { 0 };
            let answers = match datagram(&self.socket, &mut self.buffer, flags) {
                Err(error) if error.raw_os_error() == Some(ENOBUFS) && !overrun => {
                    overrun = true;
                    continue;
                }
                Err(error) if overrun && error.kind() == io::ErrorKind::WouldBlock && !refused.is_empty() => {
                    return Ok(refused);
                }
                other => other?,
            };
            for message in messages(answers) {
                let message = message?;
                if message.header.message_type != ERROR {
                    continue;
                }
                let number = message.header.sequence_number;
                match message.verdict() {
                    Err(error) if number == 0 => return Err(error),
                    Err(error) => refused.push(Refusal { number, error, words: message.complaint() }),
                    Ok(()) => {}
                }
                if number == last {
                    return Ok(refused);
                }
            }
        }
    }

    /// The connection's own address, by which others see who changed something.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }
}

fn datagram<'a>(socket: &Socket, buffer: &'a mut Vec<u8>, flags: i32) -> io::Result<&'a [u8]> {
    buffer.clear();
    let length = loop {
        match socket.recv(buffer, MSG_TRUNC | flags) {
            // Signals end a wait with a time limit, whoever they are for.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    buffer.get(..length).ok_or_else(|| io::Error::other("an answer of the kernel is too long"))
}

/// The messages of a datagram.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = Message::first(rest);
        let length = message.as_ref().map_or(usize::MAX, |message| message.header.length as usize);
        rest = rest.get(length.checked_next_multiple_of(4).unwrap_or(length)..).unwrap_or_default();
        Some(message)
    })
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

    /// What else it says, in words. (Kernel: extended acknowledgements, `NL_SET_ERR_MSG`.)
    fn complaint(&self) -> Option<String> {
        if self.header.message_type != ERROR || self.header.flags & EXPLAINED == 0 {
            return None;
        }
        let after_code = self.payload.get(4..)?;
        let repeated = match self.header.flags & CAPPED {
            0 => usize::try_from(u32::from_ne_bytes(*after_code.first_chunk()?)).ok()?.next_multiple_of(4),
            _ => REQUEST_HEADER,
        };
        let attributes = NlasIterator::new(after_code.get(repeated..)?);
        let words = attributes.flatten().find(|attribute| attribute.kind() == WORDS)?;
        let words = String::from_utf8_lossy(words.value()).trim_end_matches('\0').to_owned();
        (!words.is_empty()).then_some(words)
    }
}

/// An attribute that consists of attributes.
pub fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NESTED, value)
}

/// A request as bytes.
pub fn encode<R: NetlinkSerializable>(request: R, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    (header.flags, header.sequence_number) = (flags, sequence);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes as tests write down what was captured: two hexadecimal digits are one; `00*4` are four.
    pub(crate) fn bytes(text: &str) -> Vec<u8> {
        let word = |word: &str| {
            let (byte, times) = word.split_once('*').unwrap_or((word, "1"));
            vec![u8::from_str_radix(byte, 16).unwrap(); times.parse().unwrap()]
        };
        text.split_whitespace().flat_map(word).collect()
    }

    /// What a kernel says to a request it refuses with `EINVAL`: how much of it is repeated, and then `attributes`.
    #[track_caller]
    fn check(flags: u16, repeated: &[u8], attributes: &[u8], words: Option<&str>) {
        let mut header = NetlinkHeader::default();
        (header.message_type, header.flags) = (ERROR, flags);
        let payload = [(-22_i32).to_ne_bytes().as_slice(), repeated, attributes].concat();
        let message = Message { header, payload: &payload };
        assert_eq!(message.verdict().unwrap_err().raw_os_error(), Some(22));
        assert_eq!(message.complaint().as_deref(), words);
    }

    #[test]
    fn the_kernels_words_are_found() {
        // `NLMSGERR_ATTR_OFFS`, then `NLMSGERR_ATTR_MSG`.
        let attributes = b"\x08\0\x02\0\x14\0\0\0\x0d\0\x01\0no thing\0\0\0\0";
        let (mut whole, mut header) = ([0; 24], [0; 16]);
        whole[0] = 22;
        header[0] = 22;
        check(EXPLAINED | CAPPED, &header, attributes, Some("no thing"));
        check(EXPLAINED, &whole, attributes, Some("no thing"));
        check(CAPPED, &header, attributes, None);
        check(EXPLAINED | CAPPED, &header, &attributes[..8], None);
        check(EXPLAINED | CAPPED, &header, &[], None);
        check(EXPLAINED | CAPPED, &header[..8], &[], None);
        check(EXPLAINED, &[255; 4], &[], None);
        check(EXPLAINED | CAPPED, &header, &attributes[..15], None);
    }
}
