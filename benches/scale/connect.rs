//! What rules add to the first packet of a connection: it is the one that looks for its Service.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

/// Connections to Services, each followed by one straight to an endpoint. In seconds.
#[derive(Default)]
pub struct Connects {
    pub services: Vec<f64>,
    pub endpoints: Vec<f64>,
    /// By how much those to a Service took longer than what came after them.
    pub added: Vec<f64>,
    pub failed: usize,
}

// === impl Connects ===

impl Connects {
    /// Makes one of each.
    pub fn add(&mut self, service: (Ipv4Addr, u16), endpoint: (Ipv4Addr, u16)) {
        let (Some(service), Some(endpoint)) = (connect(service), connect(endpoint)) else {
            self.failed += 1;
            return;
        };
        self.services.push(service);
        self.endpoints.push(endpoint);
        self.added.push(service - endpoint);
    }
}

/// Sorts; the one that so many of 100 do not exceed.
pub fn percentile(times: &mut [f64], of_100: usize) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * of_100 / 100).copied()
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
