//! Connections: servers in pods that tell who they are and whom they see, and clients that ask them.

mod call;
mod datagrams;
mod prober;
mod sctp;
mod servers;
mod stream;

use std::fmt;
use std::net::IpAddr;

pub use call::Call;
pub use datagrams::{Datagrams, Tracked, tracked};
pub use prober::{Prober, Probers};
pub use servers::Servers;
pub use stream::Stream;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    /// TCP: a connection is made, answered and closed.
    Tcp,
    /// UDP: one datagram each way, always from a new port.
    Udp,
    /// SCTP as far as it goes without SCTP in the kernel: an INIT packet and its answer.
    Sctp,
}

/// What a client that asked has learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody answered.
    Answer(Answer),
    /// The connection was refused at once.
    Refused,
    /// Nothing came back.
    Silence,
    /// Something else.
    Failed(String),
}

/// Who answered, and what it saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name of the pod.
    pub endpoint: String,
    /// The address from which the request came, as the pod saw it.
    pub seen: IpAddr,
    /// The address from which the client sent it.
    pub source: IpAddr,
}

// === impl Proto ===

impl Proto {
    /// Those that the kernel has sockets for.
    pub const SOCKETS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

    /// As in Kubernetes objects.
    pub fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
            Proto::Sctp => "SCTP",
        }
    }

    /// As in port names and rules.
    pub fn lower(self) -> String {
        self.name().to_lowercase()
    }
}

// === impl Outcome ===

impl Outcome {
    /// The name of the pod that answered.
    pub fn endpoint(&self) -> Option<&str> {
        match self {
            Outcome::Answer(answer) => Some(&answer.endpoint),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answer(Answer { endpoint, seen, source }) => write!(f, "{endpoint} saw {seen} (sent by {source})"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Silence => f.write_str("silence"),
            Outcome::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}
