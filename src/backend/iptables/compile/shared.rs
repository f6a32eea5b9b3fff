//! Chains that hold rules of many Service ports.

use std::net::IpAddr;

use super::Layout;
use crate::backend::iptables::names::{self, ChainName};
use crate::backend::iptables::ruleset::Table;

/// A chain that holds rules of many Service ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// nat KUBE-SERVICES
    NatServices,
    /// nat KUBE-NODEPORTS
    NatNodePorts,
    /// filter KUBE-SERVICES
    FilterServices,
    /// filter KUBE-EXTERNAL-SERVICES
    FilterExternalServices,
    /// filter KUBE-NODEPORTS
    FilterNodePorts,
    /// filter KUBE-PROXY-FIREWALL
    FilterProxyFirewall,
    /// nat KUBE-SVC-ADDR-xx: what KUBE-SERVICES would hold for addresses that end in this byte. Only with
    /// [`Layout::bucketed_services`].
    NatBucket(u8),
}

// === impl Shared ===

impl Shared {
    /// Those that are there in every layout.
    pub const ALWAYS: [Shared; 6] = [
        Shared::NatServices,
        Shared::NatNodePorts,
        Shared::FilterServices,
        Shared::FilterExternalServices,
        Shared::FilterNodePorts,
        Shared::FilterProxyFirewall,
    ];

    /// The table the chain is in.
    pub fn table(self) -> Table {
        match self {
            Shared::NatServices | Shared::NatNodePorts | Shared::NatBucket(_) => Table::Nat,
            _ => Table::Filter,
        }
    }

    /// The name of the chain.
    pub fn chain(self) -> ChainName {
        match self {
            Shared::NatServices | Shared::FilterServices => names::SERVICES,
            Shared::NatNodePorts | Shared::FilterNodePorts => names::NODE_PORTS,
            Shared::FilterExternalServices => names::EXTERNAL_SERVICES,
            Shared::FilterProxyFirewall => names::PROXY_FIREWALL,
            Shared::NatBucket(byte) => names::addresses_by_byte(byte),
        }
    }

    /// Those of a layout.
    pub fn of(layout: Layout) -> impl Iterator<Item = Shared> {
        let buckets = (0..=u8::MAX).map(Shared::NatBucket).filter(move |_| layout.bucketed_services);
        Shared::ALWAYS.into_iter().chain(buckets)
    }

    /// Whether there is such a chain in a layout.
    pub fn is_of(self, layout: Layout) -> bool {
        layout.bucketed_services || !matches!(self, Shared::NatBucket(_))
    }

    /// The bucket of an address.
    pub fn of_address(ip: IpAddr) -> Shared {
        let last = match ip {
            IpAddr::V4(ip) => ip.octets().last().copied(),
            IpAddr::V6(ip) => ip.octets().last().copied(),
        };
        Shared::NatBucket(last.unwrap_or_default())
    }

    /// The chain of a name, in any layout.
    pub fn named(table: Table, name: &str) -> Option<Shared> {
        let bucket = || names::byte_of_addresses(name).filter(|_| table == Table::Nat).map(Shared::NatBucket);
        Shared::ALWAYS.into_iter().find(|s| s.table() == table && s.chain().as_str() == name).or_else(bucket)
    }
}
