//! Lists of addresses in as little memory as can be.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// Length of an IPv4 address.
const SHORT: usize = 4;
/// Length of an IPv6 address.
const LONG: usize = 16;

/// A list of addresses, each with `N` bytes that belong to it: one piece of memory, which clones share.
/// An IPv4 address takes 4 bytes, unless IPv6 addresses are in the same list. (An IPv4-mapped IPv6
/// address comes out as the IPv4 address it stands for; see [`parse_ip`](super::parse_ip).)
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct PackedIps<const N: usize> {
    records: Arc<[u8]>,
    is_long: bool,
}

// === impl PackedIps ===

impl<const N: usize> PackedIps<N> {
    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.records.len() / self.record()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The addresses, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (IpAddr, [u8; N])> {
        self.records.chunks_exact(self.record()).map(|record| {
            let (rest, ip) = match record.split_first_chunk::<SHORT>() {
                Some((ip, rest)) if !self.is_long => (rest, IpAddr::from(*ip)),
                _ => match record.split_first_chunk::<LONG>() {
                    Some((ip, rest)) => (rest, IpAddr::from(*ip).to_canonical()),
                    None => (record, Ipv6Addr::UNSPECIFIED.into()),
                },
            };
            (ip, rest.try_into().unwrap_or([0; N]))
        })
    }

    /// Length of a record.
    fn record(&self) -> usize {
        N + if self.is_long { LONG } else { SHORT }
    }
}

impl<const N: usize> FromIterator<(IpAddr, [u8; N])> for PackedIps<N> {
    fn from_iter<I: IntoIterator<Item = (IpAddr, [u8; N])>>(items: I) -> PackedIps<N> {
        let items: Vec<_> = items.into_iter().collect();
        if items.is_empty() {
            // One that takes no memory.
            return PackedIps { records: Arc::default(), is_long: false };
        }
        let is_long = items.iter().any(|(ip, _)| ip.is_ipv6());
        let mut records = Vec::with_capacity(items.len() * (N + LONG));
        for (ip, rest) in items {
            match ip {
                IpAddr::V4(ip) if is_long => records.extend(ip.to_ipv6_mapped().octets()),
                IpAddr::V4(ip) => records.extend(ip.octets()),
                IpAddr::V6(ip) => records.extend(ip.octets()),
            }
            records.extend(rest);
        }
        PackedIps { records: records.into(), is_long }
    }
}

impl<const N: usize> fmt::Debug for PackedIps<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ips: &[&str], bytes: usize) {
        let items = ips.iter().zip(0_u8..).map(|(ip, i)| (ip.parse::<IpAddr>().unwrap(), [i, 7]));
        let packed: PackedIps<2> = items.clone().collect();
        assert_eq!(packed.iter().collect::<Vec<_>>(), items.collect::<Vec<_>>());
        assert_eq!((packed.len(), packed.is_empty()), (ips.len(), ips.is_empty()));
        assert_eq!(packed.records.len(), bytes);
    }

    #[test]
    fn what_goes_in_comes_out() {
        check(&[], 0);
        check(&["10.0.0.1", "0.0.0.0", "255.255.255.255"], 18);
        check(&["fd00::1", "::", "::1"], 54);
        check(&["10.0.0.1", "fd00::1"], 36);
    }
}
