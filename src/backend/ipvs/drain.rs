//! Real servers on their way out: they get no new connections, keep those they have, and go with the last one.
//!
//! (kube-proxy: `graceful_termination.go`, which has no longest time, and takes the associations of SCTP away at once.)

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::netlink::{Address, Connections, RealServer};
use crate::net::Protocol;

/// Points in time: the span since some fixed moment.
pub type Instant = Duration;

/// The longest time that a real server stays for its connections. Whoever is connected to a pod that is no longer ready
/// may well be served to the end, however long that takes; what is left after a day is nobody's.
pub const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// Which real servers are on their way out, and since when.
#[derive(Clone, Debug)]
pub struct Draining {
    longest: Duration,
    since: BTreeMap<Address, BTreeMap<SocketAddr, Instant>>,
}

/// What to do about a real server on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has connections.
    Wait,
    /// It has none, or its time is up.
    Remove,
}

/// Whether connections of a protocol are worth waiting for. A flow of UDP has no end, and finds another real server with
/// its next packet.
pub fn has_connections(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp | Protocol::Sctp => true,
        Protocol::Udp => false,
    }
}

// === impl Draining ===

impl Draining {
    /// Nobody, so far.
    pub fn new(longest: Duration) -> Draining {
        Draining { longest, since: BTreeMap::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.since.values().map(BTreeMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Whether a real server is one of them.
    pub fn contains(&self, of: Address, server: &RealServer) -> bool {
        self.since.get(&of).is_some_and(|servers| servers.contains_key(&server.at()))
    }

    /// Virtual servers with such real ones.
    pub fn addresses(&self) -> Vec<Address> {
        self.since.keys().copied().collect()
    }

    /// A real server that gets no new connections any more has these. It is remembered if it is to wait.
    pub fn step(&mut self, of: Address, server: &RealServer, connections: Connections, now: Instant) -> Step {
        let servers = self.since.entry(of).or_default();
        let since = *servers.entry(server.at()).or_insert(now);
        let is_over = now.saturating_sub(since) >= self.longest;
        if is_over || connections.active == 0 && connections.inactive == 0 {
            self.forget(of, server);
            return Step::Remove;
        }
        Step::Wait
    }

    /// It is gone, or back.
    pub fn forget(&mut self, of: Address, server: &RealServer) {
        if let Some(servers) = self.since.get_mut(&of) {
            servers.remove(&server.at());
            if servers.is_empty() {
                self.since.remove(&of);
            }
        }
    }

    /// Of this virtual server, these are all that is left; others are gone.
    pub fn keep(&mut self, of: Address, left: &[RealServer]) {
        if let Some(servers) = self.since.get_mut(&of) {
            servers.retain(|known, _| left.iter().any(|server| server.at() == *known));
            if servers.is_empty() {
                self.since.remove(&of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ipvs::netlink::Forwarding;

    const BUSY: Connections = Connections { active: 1, inactive: 0, persistent: 0 };
    const ENDING: Connections = Connections { active: 0, inactive: 1, persistent: 0 };
    const IDLE: Connections = Connections { active: 0, inactive: 0, persistent: 3 };

    fn of() -> Address {
        Address { protocol: Protocol::Tcp, ip: "10.96.0.1".parse().unwrap(), port: 80 }
    }

    fn server(last: u8) -> RealServer {
        RealServer { ip: [10, 244, 1, last].into(), port: 8080, weight: 0, forwarding: Forwarding::Masquerade }
    }

    fn s(seconds: u64) -> Instant {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_goes_with_its_last_connection() {
        let mut draining = Draining::new(LONGEST);
        assert_eq!(draining.step(of(), &server(1), BUSY, s(0)), Step::Wait);
        assert!(draining.contains(of(), &server(1)) && !draining.contains(of(), &server(2)));
        assert_eq!(draining.step(of(), &server(1), ENDING, s(30)), Step::Wait);
        assert_eq!(
            draining.step(of(), &server(1), IDLE, s(60)),
            Step::Remove,
            "clients that may come back do not count"
        );
        assert!(draining.is_empty());
    }

    #[test]
    fn one_without_connections_goes_at_once() {
        let mut draining = Draining::new(LONGEST);
        assert_eq!(draining.step(of(), &server(1), IDLE, s(0)), Step::Remove);
        assert!(draining.is_empty());
    }

    #[test]
    fn its_time_counts_from_its_first_step() {
        let mut draining = Draining::new(s(100));
        assert_eq!(draining.step(of(), &server(1), BUSY, s(5)), Step::Wait);
        assert_eq!(draining.step(of(), &server(1), BUSY, s(104)), Step::Wait);
        assert_eq!(draining.step(of(), &server(1), BUSY, s(105)), Step::Remove);
        // It came back meanwhile: then the time begins anew.
        assert_eq!(draining.step(of(), &server(1), BUSY, s(106)), Step::Wait);
        draining.forget(of(), &server(1));
        assert_eq!(draining.step(of(), &server(1), BUSY, s(300)), Step::Wait);
    }

    #[test]
    fn those_that_somebody_else_removed_are_forgotten() {
        let mut draining = Draining::new(LONGEST);
        draining.step(of(), &server(1), BUSY, s(0));
        draining.step(of(), &server(2), BUSY, s(0));
        draining.keep(of(), &[server(2)]);
        assert_eq!((draining.len(), draining.addresses()), (1, vec![of()]));
        draining.keep(of(), &[]);
        assert!(draining.is_empty());
    }

    #[test]
    fn flows_are_not_waited_for() {
        assert_eq!(Protocol::ALL.map(has_connections).iter().filter(|waits| **waits).count(), 2);
        assert!(!has_connections(Protocol::Udp));
    }
}
