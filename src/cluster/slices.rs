//! The EndpointSlices of one Service, and what they say together about one of its ports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::Families;
use crate::model::{Conditions, EndpointSlice, Hints};
use crate::net::{IpFamily, Protocol};

/// The slices of one Service, of both families, in order of their names.
#[derive(Debug, Default)]
pub struct Slices(SmallVec<[Filed; 1]>);

#[derive(Debug)]
struct Filed {
    slice: Arc<EndpointSlice>,
    /// Listing in which the slice was last mentioned.
    seen: u32,
    /// Fingerprint of its trigger time: a slice that says anew when it changed has changed, though none of
    /// its endpoints have. If two times are taken for the same, no more than a latency is not measured.
    trigger: u32,
    /// [`EndpointSlice::version`]
    version: u64,
}

/// An endpoint of one Service port, merged from all slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its state.
    pub conditions: Conditions,
    /// Whether it runs on this node.
    pub local: bool,
    /// Where its traffic should come from, if the controller said.
    pub hints: Option<Arc<Hints>>,
}

// === impl Slices ===

impl Slices {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slices of a family, in order of their names.
    pub fn of_family(&self, family: IpFamily) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.0.iter().map(|filed| &filed.slice).filter(move |slice| slice.family == family)
    }

    /// The greatest version of its slices.
    pub(super) fn version(&self) -> u64 {
        self.0.iter().map(|filed| filed.version).max().unwrap_or_default()
    }

    /// Files a slice; says which families that changes, `None` if the same was there already.
    pub(super) fn put(&mut self, mut slice: EndpointSlice, trigger: u32, seen: u32) -> Option<Families> {
        let family = slice.family;
        // A version alone is no change.
        let version = std::mem::take(&mut slice.version);
        match self.0.binary_search_by(|filed| filed.slice.name.cmp(&slice.name)) {
            Err(at) => {
                self.0.insert(at, Filed { slice: Arc::new(slice), seen, trigger, version });
                Some(Families::Only(family))
            }
            Ok(at) => match self.0.get_mut(at) {
                None => None,
                Some(filed) => {
                    (filed.seen, filed.version) = (seen, version);
                    let same_trigger = std::mem::replace(&mut filed.trigger, trigger) == trigger;
                    if same_trigger && *filed.slice == slice {
                        return None;
                    }
                    let before = std::mem::replace(&mut filed.slice, Arc::new(slice)).family;
                    // One that was deleted and made anew meanwhile may be of the other family.
                    Some(if before == family { Families::Only(family) } else { Families::Both })
                }
            },
        }
    }

    /// Marks a slice as mentioned by the listing `seen`.
    pub(super) fn keep(&mut self, name: &str, seen: u32) {
        if let Some(filed) = self.0.iter_mut().find(|filed| &*filed.slice.name == name) {
            filed.seen = seen;
        }
    }

    /// Removes a slice and says of which family it was.
    pub(super) fn remove(&mut self, name: &str) -> Option<IpFamily> {
        let at = self.0.iter().position(|filed| &*filed.slice.name == name)?;
        Some(self.0.remove(at).slice.family)
    }

    /// Removes what listing number `seen` did not mention; returns the names.
    pub(super) fn sweep(&mut self, seen: u32) -> Vec<Arc<str>> {
        let mut gone = Vec::new();
        self.0.retain(|filed| {
            let stays = filed.seen == seen;
            if !stays {
                gone.push(filed.slice.name.clone());
            }
            stays
        });
        gone
    }
}

/// The endpoints of one Service port: all slices together, each `ip:port` once, sorted by its
/// text as a byte string (`10.0.0.10:80` before `10.0.0.2:80`). Where an address occurs twice, a
/// terminating endpoint never replaces another one; otherwise the later slice wins. (kube-proxy:
/// `endpointslicecache.go`; the sort order is visible in rules.)
pub fn endpoints_of<'a>(
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
    port_name: &str,
    protocol: Protocol,
) -> Vec<PortEndpoint> {
    let mut merged: BTreeMap<SortKey, PortEndpoint> = BTreeMap::new();
    for slice in slices {
        for port in slice.ports.iter().filter(|p| *p.name == *port_name && p.protocol == protocol) {
            for endpoint in slice.endpoints.iter() {
                let key = SortKey::new(SocketAddr::new(endpoint.ip, port.port));
                if endpoint.conditions.terminating && merged.contains_key(&key) {
                    continue;
                }
                merged.insert(
                    key,
                    PortEndpoint {
                        ip: endpoint.ip,
                        port: port.port,
                        conditions: endpoint.conditions,
                        local: endpoint.local,
                        hints: endpoint.hints,
                    },
                );
            }
        }
    }
    merged.into_values().collect()
}

/// `ip:port` as text, without an allocation for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SortKey([u8; 48]);

impl SortKey {
    fn new(address: SocketAddr) -> SortKey {
        struct Fill<'a>(&'a mut [u8], usize);
        impl std::fmt::Write for Fill<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                let end = self.1 + text.len();
                self.0.get_mut(self.1..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
                self.1 = end;
                Ok(())
            }
        }
        // The longest text, an IPv6 address in brackets with a port, has 47 bytes.
        let mut bytes = [0; 48];
        let _ = write!(Fill(&mut bytes, 0), "{address}");
        SortKey(bytes)
    }
}
