//! Services, EndpointSlices, Nodes and ServiceCIDRs as the API writes them (JSON, or YAML in manifests), trimmed
//! to what ferrule reads: managed fields, owner references, selectors and the like are skipped by
//! the parser and never allocated, and texts are borrowed from the input where it has them as they
//! are. Types are as tolerant as the API's own decoding (everything may be absent or null, numbers are
//! wide); values are judged in `from_wire`, not here.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// `null` means the default, as in Go.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(de: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(de)?.unwrap_or_default())
}

/// A text of the input. (`Cow` alone would always be copied: within an `Option` or `Vec`, serde does not
/// borrow.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

/// Texts by key. Where a key occurs twice, the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Texts<'a>(Vec<(Text<'a>, Option<Text<'a>>)>);

/// The first one of a list. The others are read, too, and dropped.
#[derive(Clone, Debug)]
pub struct First<T>(pub Option<T>);

/// Object metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta<'a> {
    /// Name.
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    /// Namespace.
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    /// Opaque version, for watches.
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    /// Set while the object is being deleted.
    #[serde(borrow)]
    pub deletion_timestamp: Option<Text<'a>>,
    /// Labels.
    #[serde(borrow, deserialize_with = "nullable")]
    pub labels: Texts<'a>,
    /// Annotations.
    #[serde(borrow, deserialize_with = "nullable")]
    pub annotations: Texts<'a>,
}

impl Meta<'_> {
    /// The value of a label, if it is set.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)
    }
}

/// `v1/Service`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service<'a> {
    /// `metadata`
    #[serde(borrow, deserialize_with = "nullable")]
    pub metadata: Meta<'a>,
    /// `spec`
    #[serde(borrow, deserialize_with = "nullable")]
    pub spec: ServiceSpec<'a>,
    /// `status`
    #[serde(borrow, deserialize_with = "nullable")]
    pub status: ServiceStatus<'a>,
}

/// `Service.spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServiceSpec<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIP")]
    pub cluster_ip: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub ip_families: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub ports: Vec<ServicePort<'a>>,
    #[serde(borrow, rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<Text<'a>>,
    #[serde(borrow)]
    pub external_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    pub internal_traffic_policy: Option<Text<'a>>,
    #[serde(borrow)]
    pub session_affinity: Option<Text<'a>>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    pub health_check_node_port: Option<i64>,
}

/// `Service.spec.ports[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServicePort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub port: Option<i64>,
    pub node_port: Option<i64>,
}

/// `Service.spec.sessionAffinityConfig`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `Service.spec.sessionAffinityConfig.clientIP`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<i64>,
}

/// `Service.status`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServiceStatus<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus<'a>,
}

/// `Service.status.loadBalancer`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct LoadBalancerStatus<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress<'a>>,
}

/// `Service.status.loadBalancer.ingress[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct LoadBalancerIngress<'a> {
    #[serde(borrow)]
    pub ip: Option<Text<'a>>,
    #[serde(borrow)]
    pub ip_mode: Option<Text<'a>>,
}

/// `discovery.k8s.io/v1/EndpointSlice`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct EndpointSlice<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub metadata: Meta<'a>,
    #[serde(borrow)]
    pub address_type: Option<Text<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub ports: Vec<SlicePort<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint<'a>>,
}

/// `EndpointSlice.ports[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct SlicePort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
    pub port: Option<i64>,
}

/// `EndpointSlice.endpoints[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Endpoint<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub addresses: First<Text<'a>>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub hints: Option<Hints<'a>>,
}

/// `EndpointSlice.endpoints[].conditions`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

/// `EndpointSlice.endpoints[].hints`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Hints<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub for_zones: Vec<ForName<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub for_nodes: Vec<ForName<'a>>,
}

/// `EndpointSlice.endpoints[].hints.{forZones,forNodes}[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ForName<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
}

/// `networking.k8s.io/v1/ServiceCIDR`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServiceCidr<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub spec: ServiceCidrSpec<'a>,
}

/// `ServiceCIDR.spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServiceCidrSpec<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub cidrs: Vec<Text<'a>>,
}

/// `v1/Node`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Node<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub metadata: Meta<'a>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub spec: NodeSpec<'a>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub status: NodeStatus<'a>,
}

/// `Node.spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct NodeSpec<'a> {
    #[serde(borrow, rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<Text<'a>>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub taints: Vec<Taint<'a>>,
}

/// `Node.spec.taints[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Taint<'a> {
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
}

/// `Node.status`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct NodeStatus<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress<'a>>,
}

/// `Node.status.addresses[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct NodeAddress<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub address: Option<Text<'a>>,
}

// === impl Text ===

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Text<'a> {
        Text(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Text<'a>, D::Error> {
        struct Read<'a>(PhantomData<&'a str>);
        impl<'de: 'a, 'a> Visitor<'de> for Read<'a> {
            type Value = Text<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        de.deserialize_str(Read(PhantomData))
    }
}

// === impl Texts ===

impl Texts<'_> {
    /// The text of a key, if it has one.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| **known == *key)?.1.as_deref()
    }

    /// Whether the key is there, if only with `null`.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| **known == *key)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Texts<'a>, D::Error> {
        struct Read<'a>(PhantomData<&'a str>);
        impl<'de: 'a, 'a> Visitor<'de> for Read<'a> {
            type Value = Texts<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts<'a>, A::Error> {
                let mut texts = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    texts.push(entry);
                }
                Ok(Texts(texts))
            }
        }
        de.deserialize_map(Read(PhantomData))
    }
}

// === impl First ===

impl<T> Default for First<T> {
    fn default() -> First<T> {
        First(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<First<T>, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = First<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<T>()?.is_some() {}
                Ok(First(first))
            }
        }
        de.deserialize_seq(Read(PhantomData))
    }
}
