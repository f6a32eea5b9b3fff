//! IP families, transport protocols and the address syntax Kubernetes accepts.

mod packed;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use packed::PackedIps;

/// An IP family. Every family has a pipeline of its own, from endpoint selection to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4, programmed with `iptables`.
    V4,
    /// IPv6, programmed with `ip6tables`.
    V6,
}

impl IpFamily {
    /// Both families, in the order kube-proxy serves them.
    pub const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> IpFamily {
        match ip {
            IpAddr::V4(_) => IpFamily::V4,
            IpAddr::V6(_) => IpFamily::V6,
        }
    }

    /// The family of a network.
    pub fn of_net(net: IpNet) -> IpFamily {
        IpFamily::of(net.addr())
    }

    /// The other family.
    pub fn other(self) -> IpFamily {
        match self {
            IpFamily::V4 => IpFamily::V6,
            IpFamily::V6 => IpFamily::V4,
        }
    }

    /// The name used by the Kubernetes API, logs and metrics: `IPv4` or `IPv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        }
    }

    /// The network of addresses with which a node talks to itself.
    pub fn loopback(self) -> IpNet {
        match self {
            IpFamily::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            IpFamily::V6 => host_net(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// The network that holds every address of the family.
    pub fn everything(self) -> IpNet {
        match self {
            IpFamily::V4 => IpNet::V4(Ipv4Net::default()),
            IpFamily::V6 => IpNet::V6(Ipv6Net::default()),
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A transport protocol a Service port can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, also what an absent `protocol` means.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The number that IP headers have for it (`IPPROTO_…`).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol with this number.
    pub fn from_number(number: u8) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// The API's spelling (`TCP`, `UDP`, `SCTP`), or `None` for anything else.
    pub fn parse(text: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// The kernel tools' spelling: `tcp`, `udp`, `sctp`.
    pub fn lower(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// Parses an address as kube-proxy does: leading zeros in IPv4 octets are decimal, not octal
/// (`172.30.0.041` is `172.30.0.41`), and an IPv4-mapped IPv6 address is an IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let v6: Ipv6Addr = text.parse().ok()?;
        return Some(match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(v6),
        });
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    match parts.next() {
        Some(_) => None,
        None => Some(IpAddr::V4(Ipv4Addr::from(octets))),
    }
}

/// Parses `address/length` and masks it: `203.0.113.7/25` is `203.0.113.0/25`.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let net = IpNet::new(parse_ip(address)?, length.parse().ok()?).ok()?;
    Some(net.trunc())
}

/// The network that holds exactly one address.
pub fn host_net(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_ip(text: &str, expected: Option<&str>) {
        assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), expected, "{text}");
    }

    #[test]
    fn addresses() {
        check_ip("172.30.0.41", Some("172.30.0.41"));
        check_ip("172.30.0.041", Some("172.30.0.41"));
        check_ip("010.000.0.008", Some("10.0.0.8"));
        check_ip("FD00:0::1", Some("fd00::1"));
        check_ip("::ffff:1.2.3.4", Some("1.2.3.4"));
        for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.+4", " 1.2.3.4", "1.2.3.a", "fd00::/64", "x"] {
            check_ip(bad, None);
        }
    }

    #[track_caller]
    fn check_cidr(text: &str, expected: Option<&str>) {
        assert_eq!(parse_cidr(text).map(|net| net.to_string()).as_deref(), expected, "{text}");
    }

    #[test]
    fn networks() {
        check_cidr("203.0.113.7/25", Some("203.0.113.0/25"));
        check_cidr("010.0.0.1/8", Some("10.0.0.0/8"));
        check_cidr("0.0.0.0/0", Some("0.0.0.0/0"));
        check_cidr("fd00:10::1/32", Some("fd00:10::/32"));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/", "fd00::/129", "/8"] {
            check_cidr(bad, None);
        }
    }
}
