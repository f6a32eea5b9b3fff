//! This node, as far as rules depend on it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::wire;
use crate::net::{IpFamily, parse_cidr, parse_ip};

/// Label with the zone a node is in.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The Node object of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its zone, if labelled.
    pub zone: Option<Arc<str>>,
    /// Host addresses: internal ones first, then external ones, as listed.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
}

impl Node {
    /// Keeps what rules depend on; what cannot be parsed is left out.
    pub fn from_wire(object: &wire::Node) -> Node {
        let listed = |kind: &'static str| {
            object
                .status
                .addresses
                .iter()
                .filter(move |a| a.kind.as_deref() == Some(kind))
                .filter_map(|a| parse_ip(a.address.as_deref()?))
        };
        Node {
            name: object.metadata.name.as_deref().unwrap_or_default().into(),
            zone: object.metadata.label(ZONE_LABEL).filter(|zone| !zone.is_empty()).map(Into::into),
            addresses: listed("InternalIP").chain(listed("ExternalIP")).collect(),
            pod_cidrs: object.spec.pod_cidrs.iter().filter_map(|text| parse_cidr(text)).collect(),
        }
    }

    /// The node's address in a family: the first listed one.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| IpFamily::of(*ip) == family)
    }

    /// The pod CIDR of a family: the first listed one.
    pub fn pod_cidr(&self, family: IpFamily) -> Option<IpNet> {
        self.pod_cidrs.iter().copied().find(|net| IpFamily::of_net(*net) == family)
    }
}
