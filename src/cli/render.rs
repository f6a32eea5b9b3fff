//! `ferrule render`: the rules a first full sync would give to the kernel, without touching it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::iptables::apply::{self, first_input};
use crate::backend::iptables::netlink::Counters;
use crate::cluster::{ClusterState, Event};
use crate::model::Node;
use crate::net::IpFamily;
use crate::plan::Plan;
use crate::plan::build::{PlanContext, Settings, node_plan};

/// Input of `iptables-restore --noflush` (`ip6tables-restore` for IPv6) that programs all Services
/// into an empty kernel. Assumes a node whose interfaces hold the addresses of its Node object, and
/// a kernel with named counters, as kube-proxy's usual nodes are.
pub fn iptables(
    events: impl IntoIterator<Item = Event>,
    settings: &Settings,
    iptables: &apply::Settings,
    family: IpFamily,
) -> String {
    let mut state = ClusterState::new();
    for event in events {
        state.apply(event);
    }
    let unknown = Arc::new(Node::default());
    let node = state.node().unwrap_or(&unknown);
    let context = PlanContext::new(family, settings, node);
    let services: BTreeMap<_, _> = state
        .services()
        .flat_map(|(service, slices)| context.plan(service, slices))
        .map(|(name, plan)| (name, Arc::new(plan)))
        .collect();
    let plan = Plan { node: Arc::new(node_plan(family, settings, node, &node.addresses)), services };
    first_input(&plan, iptables, true, Counters { invalid_dropped: true, localhost_accepted: true })
}
