//! Which endpoints of a Service port this node uses: traffic policies, terminating fallback, and
//! zone and node hints. (kube-proxy: `CategorizeEndpoints` in `topology.go`.)

use crate::cluster::PortEndpoint;

/// What selection depends on besides the endpoints.
#[derive(Clone, Debug)]
pub struct Policy<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// Zone of this node, if labelled.
    pub zone: Option<&'a str>,
    /// Some traffic of the port may go to any endpoint in the cluster.
    pub uses_cluster: bool,
    /// Some traffic of the port must stay on this node.
    pub uses_local: bool,
}

/// The endpoints a Service port uses on this node. Both lists keep the order of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectedEndpoints<'a> {
    /// For traffic that may go anywhere; empty if the port has no such traffic.
    pub cluster: Vec<&'a PortEndpoint>,
    /// For traffic that must stay on this node; empty if the port has no such traffic.
    pub local: Vec<&'a PortEndpoint>,
    /// Whether the port has a usable endpoint anywhere. Decides between rejecting (nowhere) and
    /// dropping (not here).
    pub any: bool,
}

/// Which hints hold for the cluster list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hinted {
    Nobody,
    Node,
    Zone,
}

/// Selects the endpoints of one Service port.
pub fn categorize<'a>(endpoints: &'a [PortEndpoint], policy: &Policy<'_>) -> SelectedEndpoints<'a> {
    let ready = |e: &&PortEndpoint| e.conditions.ready;
    let draining = |e: &&PortEndpoint| !e.conditions.ready && e.conditions.serving && e.conditions.terminating;
    let mut selected = SelectedEndpoints::default();
    if policy.uses_cluster {
        let hinted = hinted(endpoints, policy);
        selected.cluster = endpoints.iter().filter(ready).filter(|e| is_hinted(e, hinted, policy)).collect();
        if selected.cluster.is_empty() {
            selected.cluster = endpoints.iter().filter(draining).collect();
        }
        selected.any = !selected.cluster.is_empty();
    }
    if policy.uses_local {
        selected.any |= endpoints.iter().any(|e| ready(&e) || draining(&e));
        selected.local = endpoints.iter().filter(ready).filter(|e| e.local).collect();
        if selected.local.is_empty() {
            selected.local = endpoints.iter().filter(draining).filter(|e| e.local).collect();
        }
    }
    selected
}

/// Hints hold only if every ready endpoint has one and at least one of them names this node (or,
/// failing that, its zone): a partial set would overload the hinted ones.
fn hinted(endpoints: &[PortEndpoint], policy: &Policy<'_>) -> Hinted {
    let mut all_have = [true; 2];
    let mut any_here = [false; 2];
    let mut any_ready = false;
    for endpoint in endpoints.iter().filter(|e| e.conditions.ready) {
        any_ready = true;
        let (nodes, zones): (&[Box<str>], &[Box<str>]) = match &endpoint.hints {
            Some(hints) => (&hints.nodes, &hints.zones),
            None => (&[], &[]),
        };
        let [nodes_all, zones_all] = &mut all_have;
        *nodes_all &= !nodes.is_empty();
        *zones_all &= !zones.is_empty();
        let [node_here, zone_here] = &mut any_here;
        *node_here |= is_hinted(endpoint, Hinted::Node, policy);
        *zone_here |= is_hinted(endpoint, Hinted::Zone, policy);
    }
    match (all_have, any_here) {
        _ if !any_ready => Hinted::Nobody,
        ([true, _], [true, _]) => Hinted::Node,
        ([_, true], [_, true]) => Hinted::Zone,
        _ => Hinted::Nobody,
    }
}

fn is_hinted(endpoint: &PortEndpoint, hinted: Hinted, policy: &Policy<'_>) -> bool {
    let Some(hints) = &endpoint.hints else { return hinted == Hinted::Nobody };
    match hinted {
        Hinted::Nobody => true,
        Hinted::Node => hints.nodes.iter().any(|node| **node == *policy.node),
        Hinted::Zone => policy.zone.is_some_and(|zone| hints.zones.iter().any(|z| **z == *zone)),
    }
}
