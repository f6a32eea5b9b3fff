//! From objects to the rules of a whole node, without a kernel: what a first full sync would write.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ferrule::backend::iptables::compile::{self, Layout, ServiceRules, Shared, Style};
use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::ruleset::{Rule, Table};
use ferrule::cluster::{ClusterState, Event};
use ferrule::fixtures;
use ferrule::model::{EndpointSlice, Kind, Node, Service};
use ferrule::net::IpFamily;
use ferrule::plan::Plan;
use ferrule::plan::build::Settings;

/// The rules of every chain.
pub(crate) type Chains = BTreeMap<(Table, ChainName), Vec<Rule>>;

/// A cluster from its objects. `addresses` are those of the node's interfaces.
pub(crate) fn cluster(
    node: &Node,
    addresses: &[IpAddr],
    services: impl IntoIterator<Item = Service>,
    slices: impl IntoIterator<Item = EndpointSlice>,
) -> ClusterState {
    let mut state = ClusterState::new();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        state.apply(Event::Listing(kind));
    }
    state.apply(Event::Addresses(addresses.into()));
    state.apply(Event::Node(Arc::new(node.clone())));
    for service in services {
        state.apply(Event::Service(Arc::new(service)));
    }
    for slice in slices {
        state.apply(Event::EndpointSlice(Arc::new(slice)));
    }
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        state.apply(Event::Synced(kind));
    }
    assert!(state.is_synced());
    state
}

/// The Plan of one family.
pub(crate) fn plan(state: &ClusterState, settings: &Settings, family: IpFamily) -> Plan {
    assert!(state.addresses().is_some(), "the cluster has its node's addresses");
    fixtures::plan(state, settings, family)
}

/// How rules are written for a Plan on a kernel that has everything.
pub(crate) fn style(plan: &Plan, mark: u32, layout: Layout) -> Style {
    Style {
        family: plan.node.family,
        pod_traffic: plan.node.pod_traffic.clone(),
        localhost_node_ports: plan.node.localhost_node_ports,
        mark,
        random_fully: true,
        drop_invalid: true,
        count_invalid: true,
        count_localhost: true,
        large_cluster: plan.endpoints() > 1000,
        layout,
    }
}

/// Everything that is compiled from a Plan, put together. Shared chains are there even if empty.
pub(crate) fn compile(plan: &Plan, style: &Style) -> Chains {
    let mut chains: Chains =
        Shared::of(style.layout).map(|shared| ((shared.table(), shared.chain()), Vec::new())).collect();
    let base = compile::base(&plan.node, style);
    let (head, dispatch) = (base.head(), base.dispatch());
    for (table, chain, rules) in base.chains.into_iter().chain(dispatch) {
        assert!(chains.insert((table, chain.clone()), rules).is_none(), "{chain} twice");
    }
    for (name, service) in plan.services() {
        let ServiceRules { chains: own, shared } = compile::service(name, service, style);
        for (chain, rules) in own {
            assert!(chains.insert((Table::Nat, chain.clone()), rules).is_none(), "{chain} twice");
        }
        for (shared, rule) in shared {
            chains.entry((shared.table(), shared.chain())).or_default().push(rule);
        }
    }
    let services = Shared::NatServices;
    chains.entry((services.table(), services.chain())).or_default().extend(head.into_iter().chain(base.tail));
    chains
}
