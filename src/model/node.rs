//! This node, as far as rules depend on it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::wire;
use crate::net::{IpFamily, parse_cidr, parse_ip};

/// Label with the zone a node is in.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Taint of a node that the cluster autoscaler is about to remove.
const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

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
    /// Whether it is about to go: being deleted, or tainted so by the cluster autoscaler, whatever the
    /// effect. Load balancers are then to choose other nodes; no rule depends on it. (kube-proxy:
    /// `NodeEligible`.)
    pub draining: bool,
}

impl Node {
    /// Keeps what rules and probes depend on; what cannot be parsed is left out.
    pub fn from_wire(object: &wire::Node<'_>) -> Node {
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
            draining: object.metadata.deletion_timestamp.is_some()
                || object.spec.taints.iter().any(|taint| taint.key.as_deref() == Some(REMOVAL_TAINT)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(object: &str, draining: bool) {
        let object: wire::Node = serde_json::from_str(object).unwrap();
        assert_eq!(Node::from_wire(&object).draining, draining);
    }

    #[test]
    fn nodes_about_to_go() {
        check("{}", false);
        check(r#"{"spec": {"taints": null}, "metadata": {"deletionTimestamp": null}}"#, false);
        check(r#"{"spec": {"taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}}"#, false);
        check(r#"{"spec": {"taints": [{"key": "a"}, {"key": "ToBeDeletedByClusterAutoscaler"}]}}"#, true);
        for effect in ["NoSchedule", "PreferNoSchedule", "NoExecute"] {
            let taint = format!(r#"{{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "{effect}"}}"#);
            check(&format!(r#"{{"spec": {{"taints": [{taint}]}}}}"#), true);
        }
        check(r#"{"metadata": {"deletionTimestamp": "2026-05-01T10:00:00Z"}}"#, true);
    }
}
