//! Names of chains, fixed and per Service port.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use data_encoding::BASE32;
use sha2::{Digest, Sha256};

use super::render;
use crate::model::ServicePortName;
use crate::plan::Backend;

/// nat: dispatch by Service address. filter: refusal of cluster IPs.
pub const SERVICES: ChainName = ChainName::fixed("KUBE-SERVICES");
/// filter: refusal of external addresses and node ports.
pub const EXTERNAL_SERVICES: ChainName = ChainName::fixed("KUBE-EXTERNAL-SERVICES");
/// nat: dispatch by node port. filter: acceptance of health check node ports.
pub const NODE_PORTS: ChainName = ChainName::fixed("KUBE-NODEPORTS");
/// nat: source translation of marked packets.
pub const POSTROUTING: ChainName = ChainName::fixed("KUBE-POSTROUTING");
/// nat: marks a packet for source translation.
pub const MARK_MASQ: ChainName = ChainName::fixed("KUBE-MARK-MASQ");
/// filter: forwarding of marked and established traffic.
pub const FORWARD: ChainName = ChainName::fixed("KUBE-FORWARD");
/// filter: drops load balancer traffic that source ranges exclude.
pub const PROXY_FIREWALL: ChainName = ChainName::fixed("KUBE-PROXY-FIREWALL");
/// filter: shared with the kubelet; keeps others from loopback addresses.
pub const FIREWALL: ChainName = ChainName::fixed("KUBE-FIREWALL");
/// In every table: missing when somebody flushed the table.
pub const CANARY: ChainName = ChainName::fixed("KUBE-PROXY-CANARY");

/// Prefixes of nat chains that belong to a Service port. A chain with one of them that no Service
/// port owns is a leftover. In the order in which a packet may pass them.
pub const SERVICE_PREFIXES: [&str; 5] = ["KUBE-FW-", "KUBE-EXT-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-"];

/// What names of chains begin with that split nat KUBE-SERVICES by the destination's last digits. This
/// is how chains of Service ports begin: so kube-proxy, which knows nothing of these, removes them when it
/// takes over, before they could hold on to chains that it wants to remove. The dash that follows is in no
/// hash.
const ADDRESSES: &str = "KUBE-SVC-ADDR-";

/// Name of a chain. Those of the tools' own length are held without an allocation: a big cluster has a
/// hundred thousand of them.
#[derive(Clone)]
pub struct ChainName(Name);

/// Longest name the tools take. (iptables: `XT_EXTENSION_MAXNAMELEN`, less the final zero.)
const LONGEST: usize = 28;

#[derive(Clone)]
enum Name {
    Short {
        length: u8,
        bytes: [u8; LONGEST],
    },
    /// Made by others.
    Long(Arc<str>),
}

/// Names of the chains of one Service port. (kube-proxy: `servicePortPolicyClusterChain` and its
/// like; the hash is that of `namespace/name:port` and the protocol.)
#[derive(Clone, Debug)]
pub struct ServiceChains {
    /// What an endpoint's hash begins with.
    seed: String,
    hash: Hashed,
}

/// Characters of a chain name that are a hash.
type Hashed = [u8; HASHED];
const HASHED: usize = 16;

/// nat: dispatch of addresses whose last hexadecimal digit is this one.
pub fn addresses_by_digit(digit: u8) -> ChainName {
    format!("{ADDRESSES}{digit:X}").into()
}

/// nat: dispatch of addresses whose last byte is this one.
pub fn addresses_by_byte(byte: u8) -> ChainName {
    format!("{ADDRESSES}{byte:02X}").into()
}

/// The byte of a name that [`addresses_by_byte`] gives.
pub fn byte_of_addresses(name: &str) -> Option<u8> {
    let digits = name.strip_prefix(ADDRESSES).filter(|digits| digits.len() == 2)?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (addresses_by_byte(byte).as_str() == name).then_some(byte)
}

/// Whether a chain splits nat KUBE-SERVICES by address.
pub fn splits_addresses(name: &str) -> bool {
    name.starts_with(ADDRESSES)
}

// === impl ChainName ===

impl ChainName {
    /// A name known at compile time, of at most 28 bytes.
    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "evaluated by the compiler")]
    pub const fn fixed(name: &'static str) -> ChainName {
        let mut bytes = [0; LONGEST];
        let mut at = 0;
        while at < name.len() {
            bytes[at] = name.as_bytes()[at];
            at += 1;
        }
        ChainName(Name::Short { length: name.len() as u8, bytes })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Name::Short { length, bytes } => {
                bytes.get(..usize::from(*length)).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default()
            }
            Name::Long(name) => name,
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Name::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Name::Long(name) => name.as_bytes(),
        }
    }

    /// How far from KUBE-SERVICES a chain of a Service port, or one that leads there, stands by its name:
    /// such chains refer to those only that stand further.
    pub fn depth(&self) -> usize {
        if splits_addresses(self.as_str()) {
            return usize::from(byte_of_addresses(self.as_str()).is_some());
        }
        2 + self.service_prefix().unwrap_or(SERVICE_PREFIXES.len())
    }

    /// Which of [`SERVICE_PREFIXES`] it has.
    fn service_prefix(&self) -> Option<usize> {
        SERVICE_PREFIXES.iter().position(|prefix| self.as_bytes().starts_with(prefix.as_bytes()))
    }

    /// Whether the chain belongs to some Service port, going by its name.
    pub fn is_per_service(&self) -> bool {
        self.service_prefix().is_some()
    }
}

impl From<&str> for ChainName {
    fn from(name: &str) -> ChainName {
        let mut bytes = [0; LONGEST];
        match (bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(start), Ok(length)) => {
                start.copy_from_slice(name.as_bytes());
                ChainName(Name::Short { length, bytes })
            }
            _ => ChainName(Name::Long(name.into())),
        }
    }
}

impl From<String> for ChainName {
    fn from(name: String) -> ChainName {
        name.as_str().into()
    }
}

impl PartialEq for ChainName {
    fn eq(&self, other: &ChainName) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ChainName {}

impl PartialOrd for ChainName {
    fn partial_cmp(&self, other: &ChainName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ChainName {
    fn cmp(&self, other: &ChainName) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for ChainName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl ServiceChains ===

impl ServiceChains {
    /// The names of a Service port.
    pub fn new(name: &ServicePortName) -> ServiceChains {
        let seed = format!("{name}{}", name.protocol.lower());
        let hash = hash(&seed);
        ServiceChains { seed, hash }
    }

    /// Balances over the endpoints of the whole cluster.
    pub fn cluster(&self) -> ChainName {
        hashed("KUBE-SVC-", &self.hash)
    }

    /// Balances over the endpoints on this node.
    pub fn local(&self) -> ChainName {
        hashed("KUBE-SVL-", &self.hash)
    }

    /// Takes traffic to external addresses.
    pub fn external(&self) -> ChainName {
        hashed("KUBE-EXT-", &self.hash)
    }

    /// Lets allowed sources through to [`ServiceChains::external`].
    pub fn firewall(&self) -> ChainName {
        hashed("KUBE-FW-", &self.hash)
    }

    /// Translates to one endpoint.
    pub fn endpoint(&self, backend: &Backend) -> ChainName {
        let mut text = String::with_capacity(self.seed.len() + 50);
        text.push_str(&self.seed);
        render::backend(&mut text, backend);
        hashed("KUBE-SEP-", &hash(&text))
    }
}

/// The first 16 characters of the base32 text of the SHA-256 of `text`.
fn hash(text: &str) -> Hashed {
    // Five bytes are eight characters.
    let digest = Sha256::digest(text);
    let mut hashed = [0; HASHED];
    BASE32.encode_mut(digest.get(..HASHED / 8 * 5).unwrap_or_default(), &mut hashed);
    hashed
}

fn hashed(prefix: &str, hash: &Hashed) -> ChainName {
    let mut bytes = [0; LONGEST];
    let parts = prefix.bytes().chain(hash.iter().copied());
    let length = bytes.iter_mut().zip(parts).map(|(byte, part)| *byte = part).count();
    ChainName(Name::Short { length: length.to_le_bytes()[0], bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;
    use crate::net::Protocol;

    fn chains(namespace: &str, name: &str) -> ServiceChains {
        let service = ServiceName::new(namespace, name);
        ServiceChains::new(&ServicePortName { service, port: "p80".into(), protocol: Protocol::Tcp })
    }

    #[test]
    fn the_names_are_those_of_kube_proxy() {
        assert_eq!(chains("ns1", "svc1").cluster().as_str(), "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(chains("ns1", "svc1").firewall().as_str(), "KUBE-FW-XPGD46QRK7WJZT7O");
        assert_eq!(chains("ns5", "svc5").external().as_str(), "KUBE-EXT-NUKIZ6OKUXPJNT4C");
        let backend = Backend { ip: [10, 180, 0, 3].into(), port: 80 };
        assert_eq!(chains("ns3", "svc3").endpoint(&backend).as_str(), "KUBE-SEP-OYPFS5VJICHGATKP");
        let v6 = Backend { ip: "fd00:10:244:1::7".parse().unwrap(), port: 8080 };
        assert_eq!(chains("ns1", "svc1").endpoint(&v6).as_str(), "KUBE-SEP-YFUCVK7TH5V5KAA2");
    }

    #[test]
    fn chains_of_service_ports_are_known_by_their_prefix() {
        assert!(chains("a", "b").local().is_per_service());
        for other in [SERVICES, EXTERNAL_SERVICES, NODE_PORTS, FIREWALL, CANARY] {
            assert!(!other.is_per_service(), "{other}");
        }
        // For kube-proxy as well, which goes by prefixes alone.
        assert!(addresses_by_digit(0).is_per_service() && addresses_by_byte(0xff).is_per_service());
    }

    #[test]
    fn chains_of_addresses_are_known_by_their_names() {
        assert_eq!(addresses_by_digit(0xa).as_str(), "KUBE-SVC-ADDR-A");
        assert_eq!(addresses_by_byte(0xa).as_str(), "KUBE-SVC-ADDR-0A");
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of_addresses(addresses_by_byte(byte).as_str()), Some(byte));
        }
        for other in ["KUBE-SVC-ADDR-A", "KUBE-SVC-ADDR-0a", "KUBE-SVC-ADDR-+5", "KUBE-SVC-ADDR-0AB", "KUBE-SERVICES"] {
            assert_eq!(byte_of_addresses(other), None, "{other}");
        }
    }
}
