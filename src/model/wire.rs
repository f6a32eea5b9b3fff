//! Services, EndpointSlices and Nodes as the API writes them (JSON, or YAML in manifests), trimmed
//! to what ferrule reads: managed fields, owner references, selectors and the like are skipped by
//! the parser and never allocated. Types are as tolerant as the API's own decoding (everything may
//! be absent or null, numbers are wide); values are judged in `from_wire`, not here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// `null` means the default, as in Go.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(de: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(de)?.unwrap_or_default())
}

/// Object metadata.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// Name.
    pub name: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Opaque version, for watches.
    pub resource_version: Option<String>,
    /// Set while the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Annotations.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, Option<String>>,
}

impl Meta {
    /// The value of a label, if it is set.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)?.as_deref()
    }
}

/// `v1/Service`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    /// `metadata`
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    /// `spec`
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    /// `status`
    #[serde(deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

/// `Service.spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    pub external_traffic_policy: Option<String>,
    pub internal_traffic_policy: Option<String>,
    pub session_affinity: Option<String>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    pub health_check_node_port: Option<i64>,
}

/// `Service.spec.ports[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
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
pub struct ServiceStatus {
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

/// `Service.status.loadBalancer`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// `Service.status.loadBalancer.ingress[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct LoadBalancerIngress {
    pub ip: Option<String>,
    pub ip_mode: Option<String>,
}

/// `discovery.k8s.io/v1/EndpointSlice`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    pub address_type: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<SlicePort>,
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
}

/// `EndpointSlice.ports[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct SlicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i64>,
}

/// `EndpointSlice.endpoints[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Endpoint {
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
    pub node_name: Option<String>,
    pub hints: Option<Hints>,
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
pub struct Hints {
    #[serde(deserialize_with = "nullable")]
    pub for_zones: Vec<ForName>,
    #[serde(deserialize_with = "nullable")]
    pub for_nodes: Vec<ForName>,
}

/// `EndpointSlice.endpoints[].hints.{forZones,forNodes}[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct ForName {
    pub name: Option<String>,
}

/// `v1/Node`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Node {
    #[serde(deserialize_with = "nullable")]
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: NodeStatus,
}

/// `Node.spec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct NodeSpec {
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

/// `Node.spec.taints[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct Taint {
    pub key: Option<String>,
}

/// `Node.status`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
}

/// `Node.status.addresses[]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs, reason = "field names are the API's own")]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub address: Option<String>,
}
