//! `ferrule render`: the rules a first full sync would give to the kernel, without touching it.

use std::process::ExitCode;
use std::sync::Arc;

use super::{fail, print, say};

use crate::backend::iptables::apply::{self, first_input};
use crate::backend::iptables::compile::Layout;
use crate::backend::iptables::netlink::Counters;
use crate::backend::ipvs::compile::Style;
use crate::backend::ipvs::render::Whole;
use crate::backend::nftables::{self, render::whole};
use crate::cluster::{ClusterState, Event};
use crate::config::flags::Flags;
use crate::config::{self, ProxyMode, Remark};
use crate::model::Node;
use crate::net::IpFamily;
use crate::plan::Plan;
use crate::plan::build::{self, Settings};
use crate::source::manifests;

/// Prints the rules of the given family, or of both. Files that cannot be used are named on
/// standard error and make the exit code 1, while the rules of all others are still printed.
pub fn main(flags: &Flags, family: Option<IpFamily>) -> ExitCode {
    let loaded = config::load(flags);
    for remark in &loaded.completing {
        match remark {
            Remark::UnknownGate(name) => say(&format!("Warning: unrecognized feature gate: {name} (ignored)")),
            Remark::LenientDecoding { complaint, .. } => say(&format!("Warning: {complaint} (ignored)")),
            Remark::ModeChosen | Remark::GateSet { .. } | Remark::GatesUpdated(_) => {}
        }
    }
    let config = match loaded.config {
        Ok(config) => config,
        Err(error) => return fail(&format!("Error: {error}")),
    };
    if config.manifests.is_empty() {
        return fail(
            &"Error: render needs --manifests PATH: a file or directory of Services, EndpointSlices and the Node",
        );
    }
    let manifests = manifests::load(&config.manifests, &config.planning.node_name);
    manifests.duplicates.iter().for_each(|duplicate| say(&format!("Warning: {duplicate}")));
    manifests.broken.iter().for_each(|error| say(&format!("Error: {error}")));
    let problems = manifests.events.iter().filter_map(|event| match event {
        Event::Problem(problem) => Some(problem),
        _ => None,
    });
    problems.for_each(|problem| say(&format!("Warning: {problem}")));
    let iptables = apply::Settings {
        mark: config.masquerade_mark,
        drop_invalid: !config.conntrack.tcp_be_liberal,
        layout: Layout {
            bucketed_services: config.layout.bucketed_services,
            compact_endpoints: config.layout.compact_endpoints,
        },
    };
    let virtual_servers = match config.mode {
        ProxyMode::Ipvs => match config.ipvs.scheduler.parse() {
            Ok(scheduler) => Some(Style { scheduler, mark: config.masquerade_mark, random_fully: true }),
            Err(error) => return fail(&format!("Error: ipvs.scheduler: {error}")),
        },
        ProxyMode::Iptables | ProxyMode::Nftables => None,
    };
    for family in IpFamily::BOTH.into_iter().filter(|each| family.is_none_or(|only| only == *each)) {
        print(&format!("# {family}\n"));
        let events = manifests.events.iter().cloned();
        print(&match (config.mode, &virtual_servers) {
            (ProxyMode::Nftables, _) => nftables(events, &config.planning, config.masquerade_mark, family),
            (_, Some(style)) => ipvs(events, &config.planning, style, family),
            (_, None) => self::iptables(events, &config.planning, &iptables, family),
        });
    }
    match manifests.broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Input of `iptables-restore --noflush` (`ip6tables-restore` for IPv6) that programs all Services
/// into an empty kernel. Assumes a node whose interfaces hold the addresses of its Node object, and
/// a kernel with named counters, as kube-proxy's usual nodes are.
pub fn iptables(
    events: impl IntoIterator<Item = Event>,
    settings: &Settings,
    iptables: &apply::Settings,
    family: IpFamily,
) -> String {
    let plan = plan(events, settings, family);
    first_input(&plan, iptables, true, Counters { invalid_dropped: true, localhost_accepted: true })
}

/// Everything that ipvs mode programs into an empty kernel, in the words of the tools that can load it. Assumes a node as
/// above.
pub fn ipvs(events: impl IntoIterator<Item = Event>, settings: &Settings, style: &Style, family: IpFamily) -> String {
    Whole::compile(&plan(events, settings, family), style).render()
}

/// Input of `nft -f` that programs everything into an empty kernel, as nftables mode does, though that writes elements without
/// `nft`. Assumes a node as above.
pub fn nftables(events: impl IntoIterator<Item = Event>, settings: &Settings, mark: u32, family: IpFamily) -> String {
    whole(&plan(events, settings, family), &nftables::compile::Style { mark })
}

/// The Plan of a cluster, on a node whose interfaces hold the addresses of its Node object.
fn plan(events: impl IntoIterator<Item = Event>, settings: &Settings, family: IpFamily) -> Plan {
    let mut state = ClusterState::new();
    for event in events {
        state.apply(event);
    }
    let unknown = Arc::new(Node::default());
    let node = state.node().unwrap_or(&unknown);
    build::plan(&state, family, settings, node, &node.addresses)
}
