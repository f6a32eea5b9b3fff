//! A client that keeps its source port, and what connection tracking remembers of it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::SocketType;

use super::{Call, Outcome, Proto, call};
use crate::world::Namespace;

/// A UDP socket with one port, which sends to one address only: one flow, as the kernel sees it.
pub struct Datagrams {
    /// Where it sends to.
    pub to: SocketAddr,
    port: u16,
    socket: UdpSocket,
}

/// What connection tracking remembers of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Where its answers come from.
    pub endpoint: SocketAddr,
    /// Packets counted in the direction of the first one. A flow that was forgotten begins anew.
    pub packets: u64,
}

// === impl Datagrams ===

impl Datagrams {
    /// A socket in a namespace.
    pub fn open(netns: &Namespace, to: SocketAddr) -> Datagrams {
        let call = Call::new(Proto::Udp, to);
        let socket = netns.run(|| call.connected(SocketType::DGRAM)).unwrap_or_else(|error| panic!("{to}: {error}"));
        let socket = UdpSocket::from(socket);
        Datagrams { to, port: socket.local_addr().unwrap().port(), socket }
    }

    /// Sends a datagram and waits for what comes of it.
    pub fn ask(&self) -> Outcome {
        self.ask_for(Duration::from_secs(4))
    }

    /// Sends a datagram for which no answer is expected, and waits a short time for one.
    pub fn knock(&self) -> Outcome {
        self.ask_for(Duration::from_millis(300))
    }

    /// What the node in whose namespace it is asked remembers of this flow.
    pub fn tracked(&self, node: &Namespace) -> Option<Tracked> {
        tracked(node, Proto::Udp, self.to, Some(self.port))
    }

    fn ask_for(&self, patience: Duration) -> Outcome {
        // What came late is no answer to this one.
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        while !matches!(self.socket.recv(&mut buffer), Err(error) if error.kind() == ErrorKind::WouldBlock) {}
        self.socket.set_nonblocking(false).unwrap();
        let deadline = Instant::now() + patience;
        let answer = call::lenient(self.socket.send(b"who are you?")).and_then(|()| {
            let length = loop {
                let left = deadline.saturating_duration_since(Instant::now());
                self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                match self.socket.recv(&mut buffer) {
                    // Signals end a wait with a time limit, whoever they are for.
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            call::answer(&buffer[..length], self.socket.local_addr()?.ip())
        });
        match answer {
            Ok(answer) => Outcome::Answer(answer),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Outcome::Silence,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }
}

/// What a node remembers of the one flow to this address, or of that from this port.
pub fn tracked(node: &Namespace, proto: Proto, to: SocketAddr, from_port: Option<u16>) -> Option<Tracked> {
    let table = node.proc_net("nf_conntrack");
    let mut found = table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(2);
        (words.next()? == proto.lower()).then_some(())?;
        // All but the packets come twice: as they were sent, then as answers are.
        let values = |name: &str| {
            let words: Vec<&str> = line.split_whitespace().filter_map(|word| word.strip_prefix(name)).collect();
            <[&str; 2]>::try_from(words).ok()
        };
        let address = |ip: &str, port: &str| Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, port.parse().ok()?));
        let ([from, endpoint_port], [port, _]) = (values("sport=")?, values("dport=")?);
        let is_it = address(values("dst=")?[0], port)? == to && from_port.is_none_or(|port| port.to_string() == from);
        is_it.then_some(())?;
        let endpoint = address(values("src=")?[1], endpoint_port)?;
        Some(Tracked { endpoint, packets: values("packets=")?[0].parse().ok()? })
    });
    let first = found.next();
    assert!(found.next().is_none(), "several flows to {to} ({proto:?}):\n{table}");
    first
}
