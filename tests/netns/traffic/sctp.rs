//! SCTP without SCTP in the kernel: INIT packets and their answers, built by hand on raw sockets.
//!
//! Connection tracking and NAT treat them as they treat real ones: they check the checksum and the
//! verification tag, follow the association's state, and rewrite addresses.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, socket_with};

use super::{Answer, Call, Outcome, call, servers};
use crate::world::Family;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// The parameter of an INIT ACK whose content is the server's own affair.
const STATE_COOKIE: u16 = 7;

/// The fields of a packet that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    from_port: u16,
    to_port: u16,
    /// Tells the receiver that the sender means it: the tag that the receiver has chosen, 0 in an INIT.
    verification_tag: u32,
    kind: u8,
    /// The tag that the sender of an INIT or INIT ACK has chosen.
    initiate_tag: u32,
    cookie: Vec<u8>,
}

/// A socket for all SCTP packets of the thread's namespace.
///
/// The standard library's UDP type serves as "any socket with datagrams".
pub(super) fn raw_socket(family: Family) -> UdpSocket {
    let domain = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let protocol: Protocol = ipproto::SCTP;
    let socket = socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol));
    UdpSocket::from(socket.expect("raw sockets need root (CAP_NET_RAW)"))
}

/// Answers INITs to a port until told to stop.
pub(super) fn serve(name: &str, family: Family, socket: &UdpSocket, port: u16, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let Some(init) = Packet::read(payload(family, &buffer[..length])) else { continue };
        if init.kind != INIT || init.to_port != port {
            continue;
        }
        let greeting = servers::greeting(name, peer);
        let answer = Packet {
            from_port: port,
            to_port: init.from_port,
            verification_tag: init.initiate_tag,
            kind: INIT_ACK,
            initiate_tag: 0x5e7e_0001,
            cookie: greeting.into_bytes(),
        };
        let _ = socket.send_to(&answer.write(), SocketAddr::new(peer.ip(), 0));
    }
}

/// Sends one INIT and waits for the answer.
pub(super) fn ask(request: &Call) -> std::io::Result<Outcome> {
    let (family, any) = match request.to.ip() {
        IpAddr::V4(_) => (Family::V4, IpAddr::from([0; 4])),
        IpAddr::V6(_) => (Family::V6, IpAddr::from([0; 16])),
    };
    let socket = raw_socket(family);
    // Binding is not possible twice, and connecting without it picks the address.
    if let Some(from) = request.from.filter(|from| *from != any) {
        rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    }
    socket.connect(SocketAddr::new(request.to.ip(), 0))?;
    let init = Packet {
        from_port: call::new_port(),
        to_port: request.to.port(),
        verification_tag: 0,
        kind: INIT,
        initiate_tag: fastrand::u32(1..),
        cookie: Vec::new(),
    };
    call::lenient(socket.send(&init.write()))?;
    let deadline = Instant::now() + request.patience;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        let Some(packet) = Packet::read(payload(family, &buffer[..length])) else { continue };
        let mine = packet.to_port == init.from_port && packet.from_port == init.to_port;
        if mine && packet.kind == INIT_ACK && packet.verification_tag == init.initiate_tag {
            let answer: Answer = call::answer(&packet.cookie, socket.local_addr()?.ip())?;
            return Ok(Outcome::Answer(answer));
        }
    }
}

/// IPv4 raw sockets give the IP header as well, IPv6 ones do not.
fn payload(family: Family, packet: &[u8]) -> &[u8] {
    match (family, packet.first()) {
        (Family::V4, Some(first)) => packet.get(usize::from(first & 15) * 4..).unwrap_or_default(),
        _ => packet,
    }
}

// === impl Packet ===

impl Packet {
    fn write(&self) -> Vec<u8> {
        let mut parameters = Vec::new();
        if !self.cookie.is_empty() {
            parameters.extend(STATE_COOKIE.to_be_bytes());
            parameters.extend(u16::try_from(4 + self.cookie.len()).unwrap().to_be_bytes());
            parameters.extend(&self.cookie);
        }
        let chunk_length = u16::try_from(20 + parameters.len()).unwrap();
        let mut packet = Vec::new();
        packet.extend(self.from_port.to_be_bytes());
        packet.extend(self.to_port.to_be_bytes());
        packet.extend(self.verification_tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([self.kind, 0]);
        packet.extend(chunk_length.to_be_bytes());
        packet.extend(self.initiate_tag.to_be_bytes());
        // Window, streams out and in, first sequence number.
        packet.extend(65_536_u32.to_be_bytes());
        packet.extend([0, 1, 0, 1]);
        packet.extend(1_u32.to_be_bytes());
        packet.extend(parameters);
        packet.resize(packet.len().next_multiple_of(4), 0);
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        packet
    }

    /// None if it is not an INIT or INIT ACK, or broken.
    fn read(bytes: &[u8]) -> Option<Packet> {
        let mut copy = bytes.to_vec();
        let sum = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
        copy.get_mut(8..12)?.fill(0);
        let kind = *bytes.get(12)?;
        if crc32c(&copy) != sum || ![INIT, INIT_ACK].contains(&kind) {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let cookie = match u16_at(32) {
            Some(STATE_COOKIE) => bytes.get(36..32 + usize::from(u16_at(34)?))?.to_vec(),
            _ => Vec::new(),
        };
        Some(Packet {
            from_port: u16_at(0)?,
            to_port: u16_at(2)?,
            verification_tag: u32_at(4)?,
            kind,
            initiate_tag: u32_at(16)?,
            cookie,
        })
    }
}

/// The checksum of SCTP (Castagnoli's polynomial, bits reversed).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}

#[test]
fn packets_read_back() {
    // The check value of the polynomial.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let packet = Packet {
        from_port: 4711,
        to_port: 80,
        verification_tag: 7,
        kind: INIT_ACK,
        initiate_tag: 8,
        cookie: b"who 192.0.2.1\n".to_vec(),
    };
    let mut bytes = packet.write();
    assert_eq!(Packet::read(&bytes), Some(packet));
    bytes[0] ^= 1;
    assert_eq!(Packet::read(&bytes), None, "a wrong checksum must not pass");
}
