//! One request of a client.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::{Answer, Outcome, Proto, sctp};
use crate::world::Namespace;

/// A request to be made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The protocol.
    pub proto: Proto,
    /// Where to.
    pub to: SocketAddr,
    /// The address to send from; the kernel chooses if there is none.
    pub from: Option<IpAddr>,
    /// How long to wait for an answer before it is called silence.
    pub patience: Duration,
}

// === impl Call ===

impl Call {
    /// A request for which an answer, or a refusal, is expected.
    pub fn new(proto: Proto, to: SocketAddr) -> Call {
        Call { proto, to, from: None, patience: Duration::from_secs(4) }
    }

    /// From this address.
    pub fn from(self, from: IpAddr) -> Call {
        Call { from: Some(from), ..self }
    }

    /// One for which nothing is expected: it waits for a short time only.
    pub fn impatient(self) -> Call {
        Call { patience: Duration::from_millis(400), ..self }
    }

    /// Makes the request in a namespace.
    pub fn make_in(self, netns: &Namespace) -> Outcome {
        netns.run(|| self.make())
    }

    /// Makes it `times` times, one after the other.
    pub fn repeat_in(self, netns: &Namespace, times: usize) -> Vec<Outcome> {
        netns.run(|| (0..times).map(|_| self.make()).collect())
    }

    /// Makes the request where the calling thread is.
    pub fn make(self) -> Outcome {
        let result = match self.proto {
            Proto::Tcp => self.tcp(),
            Proto::Udp => self.udp(),
            Proto::Sctp => sctp::ask(&self),
        };
        result.unwrap_or_else(|error| match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Silence,
            _ => Outcome::Failed(error.to_string()),
        })
    }

    /// Opens a TCP connection and gives it together with the greeting it got.
    pub fn open(self) -> std::io::Result<(TcpStream, Answer)> {
        let mut stream = TcpStream::from(self.connected(SocketType::STREAM)?);
        let source = stream.local_addr()?.ip().to_canonical();
        let deadline = Instant::now() + self.patience;
        let mut text = Vec::new();
        while !text.ends_with(b"\n") {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left))?;
            let mut byte = [0; 64];
            match stream.read(&mut byte)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                length => text.extend_from_slice(&byte[..length]),
            }
        }
        Ok((stream, answer(&text, source)?))
    }

    fn tcp(self) -> std::io::Result<Outcome> {
        let (_, answer) = self.open()?;
        Ok(Outcome::Answer(answer))
    }

    fn udp(self) -> std::io::Result<Outcome> {
        let socket = UdpSocket::from(self.connected(SocketType::DGRAM)?);
        socket.set_read_timeout(Some(self.patience))?;
        lenient(socket.send(b"who are you?"))?;
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer)?;
        Ok(Outcome::Answer(answer(&buffer[..length], socket.local_addr()?.ip())?))
    }

    pub(super) fn connected(self, kind: SocketType) -> std::io::Result<OwnedFd> {
        let family = if self.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        // Not for programs that are started meanwhile: a connection ends when its owner closes it.
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(self.patience))?;
        let any = if self.to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let from = self.from.unwrap_or(any);
        match kind {
            // Connection tracking remembers a pair of ports for a while; a port that comes again would
            // be the old connection, and go to its endpoint.
            SocketType::DGRAM => bind_new_port(&socket, from)?,
            _ if self.from.is_some() => bind(&socket, &SocketAddr::new(from, 0))?,
            _ => {}
        }
        match connect(&socket, &self.to) {
            // It ran into the time limit.
            Err(Errno::INPROGRESS | Errno::AGAIN) => Err(ErrorKind::TimedOut.into()),
            other => Ok(other.map(|()| socket)?),
        }
    }
}

/// A port that this process has not used yet in any namespace (or not for a long time).
pub(super) fn new_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 10_000..60_000;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len();
    PORTS.start + u16::try_from(n).unwrap()
}

fn bind_new_port(socket: &OwnedFd, from: IpAddr) -> std::io::Result<()> {
    for _ in 0..100 {
        match bind(socket, &SocketAddr::new(from, new_port())) {
            Err(Errno::ADDRINUSE) => {}
            other => return Ok(other?),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// A rule on the way out may stop what is sent; whether it also said so shows when receiving.
pub(super) fn lenient(sent: std::io::Result<usize>) -> std::io::Result<()> {
    match sent {
        Err(error) if error.kind() != ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// Reads a greeting.
pub(super) fn answer(text: &[u8], source: IpAddr) -> std::io::Result<Answer> {
    let text = String::from_utf8_lossy(text);
    let fields = text.trim_end().split_once(' ');
    let answer = fields.and_then(|(endpoint, seen)| Some((endpoint.to_owned(), seen.parse().ok()?)));
    let (endpoint, seen) = answer.ok_or_else(|| std::io::Error::other(format!("an odd greeting: {text:?}")))?;
    Ok(Answer { endpoint, seen, source })
}
