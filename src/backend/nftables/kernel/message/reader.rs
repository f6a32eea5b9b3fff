//! Keys and values of elements as the kernel tells of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::backend::nftables::ruleset::{Frontend, Label, Site};
use crate::net::{IpFamily, Protocol};

/// Fields one after the other, each in whole words.
pub(super) struct Reader<'a> {
    pub(super) family: IpFamily,
    pub(super) bytes: &'a [u8],
}

// === impl Reader ===

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*taken)
    }

    pub(super) fn ip(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
        })
    }

    pub(super) fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        Protocol::from_number(number)
    }

    pub(super) fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take::<4>()?))
    }

    pub(super) fn label(&mut self) -> Option<Label> {
        Some(Label(u128::from_be_bytes(self.take::<16>()?)))
    }

    pub(super) fn frontend(&mut self, site: Site) -> Option<Frontend> {
        Some(match site {
            Site::Address => Frontend::Address(self.ip()?, self.protocol()?, self.port()?),
            Site::NodePort => Frontend::NodePort(self.protocol()?, self.port()?),
        })
    }
}
