//! What rules add to the first packet of a connection: it is the one that looks for its Service.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

/// Connections one by one, in seconds.
#[derive(Default)]
pub struct Connects {
    times: Vec<f64>,
    pub failed: usize,
}

// === impl Connects ===

impl Connects {
    /// Makes one more.
    pub fn add(&mut self, to: (Ipv4Addr, u16)) {
        match connect(to) {
            Some(time) => self.times.push(time),
            None => self.failed += 1,
        }
    }

    /// The one that so many of 100 do not exceed.
    pub fn percentile(&mut self, of_100: usize) -> Option<f64> {
        self.times.sort_by(f64::total_cmp);
        self.times.get(self.times.len() * of_100 / 100).copied()
    }
}

/// How long it took until a connection stood.
fn connect((ip, port): (Ipv4Addr, u16)) -> Option<f64> {
    let began = Instant::now();
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(ip), port), Duration::from_millis(500)).ok()?;
    let took = began.elapsed();
    // Until it is answered, so that no connections wait to be accepted; then broken off, so that none are left.
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.read_exact(&mut [0; 4]).ok()?;
    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
    Some(took.as_secs_f64())
}
