//! What a Plan says a node does with a packet, read from its own words and not from any rules.
//!
//! Three things no Plan says, because they are the kernel's or the mode's own:
//!
//! - A packet that comes in from outside and stays on this node keeps its source: source
//!   translation happens on the way out only.
//! - iptables mode refuses traffic where it comes in or passes through. What a process of this node
//!   sends to an address outside it is refused for cluster IPs and by source ranges, but not for
//!   other addresses of a Service without endpoints: that packet leaves.
//! - iptables mode refuses node ports of Services without endpoints on every address of the node,
//!   also on those that serve no node ports.

use std::collections::BTreeMap;

use ferrule::model::ServicePortName;
use ferrule::plan::{
    Action, Backend, Frontend, Listen, NodePlan, NodePortAddresses, Plan, PodTraffic, ServicePlan, Source,
};

use crate::tracer::{Packet, Verdict, World};
use crate::verdicts::Verdicts;

/// Endpoints of a Service that the sender of a packet was sent to before, and how many seconds ago.
pub(crate) type Remembered = BTreeMap<Backend, u32>;

/// What becomes of a packet.
pub(crate) fn judge(plan: &Plan, world: &World, packet: &Packet, remembered: &Remembered) -> Verdicts {
    let destination = packet.destination;
    let untouched = Verdicts::always(Verdict::Untouched { masqueraded: false });

    // Where node ports answer on loopback addresses, those must be kept from everybody else; where
    // they do not, the kernel does that by itself.
    let guarded = plan.node.localhost_node_ports && destination.is_loopback() && !packet.source.is_loopback();
    let unserved = || if guarded { Verdicts::always(Verdict::Dropped) } else { untouched.clone() };
    // A refusal is heard where packets come in, and those the node sends to itself come in too.
    let refusal = |listen: Listen, verdict: Verdict| {
        let comes_by = packet.interface.is_some() || world.is_local(destination);
        match listen {
            _ if guarded => Verdicts::always(Verdict::Dropped),
            Listen::ClusterIp(..) => Verdicts::always(verdict),
            _ if comes_by => Verdicts::always(verdict),
            _ => untouched.clone(),
        }
    };

    let Some((service, frontend)) = find(plan, world, packet) else {
        return match refused_node_port(plan, world, packet) {
            Some((listen, verdict)) => refusal(listen, verdict),
            None => unserved(),
        };
    };
    if let Some(allowed) = &frontend.allow_from
        && !allowed.iter().any(|net| net.contains(&packet.source))
    {
        return Verdicts::always(Verdict::Dropped);
    }
    let from = |source: Source| match source {
        Source::Pod => is_pod(&plan.node, packet),
        Source::Node => world.is_local(packet.source),
        Source::Any => true,
    };
    let (_, action) =
        frontend.routes.iter().find(|(source, _)| from(*source)).expect("the last route takes any source");
    match *action {
        Action::Reject => refusal(frontend.listen, Verdict::Rejected),
        Action::Drop => refusal(frontend.listen, Verdict::Dropped),
        Action::Balance { pool, masquerade } => {
            let remembered = service.affinity_seconds.and_then(|seconds| {
                // Clients stay with their endpoint for a while; of several, the first.
                let fresh = |backend: &Backend| remembered.get(backend).is_some_and(|age| *age <= seconds);
                service.pool(pool).into_iter().find(fresh)
            });
            let chosen = remembered.map_or_else(|| service.pool(pool), |backend| vec![backend]);
            balance(service, &chosen, masquerade, world, packet)
        }
    }
}

/// The frontend that takes a packet. Addresses of Services go before node ports.
fn find<'a>(plan: &'a Plan, world: &World, packet: &Packet) -> Option<(&'a ServicePlan, &'a Frontend)> {
    let to = (packet.destination, packet.port);
    let is_address = |listen: Listen| match listen {
        Listen::ClusterIp(ip, port) | Listen::ExternalIp(ip, port) | Listen::LoadBalancerIp(ip, port) => {
            (ip, port) == to
        }
        Listen::NodePort(_) => false,
    };
    let is_node_port = |listen| listen == Listen::NodePort(packet.port) && serves_node_ports(&plan.node, world, packet);
    let of_protocol = |(name, _): &(&ServicePortName, _)| name.protocol == packet.protocol;
    let frontends = || {
        let services = plan.services().iter().filter(of_protocol);
        services.flat_map(|(_, service)| service.frontends.iter().map(move |frontend| (&**service, frontend)))
    };
    frontends()
        .find(|(_, frontend)| is_address(frontend.listen))
        .or_else(|| frontends().find(|(_, frontend)| is_node_port(frontend.listen)))
}

fn serves_node_ports(node: &NodePlan, world: &World, packet: &Packet) -> bool {
    match &node.node_port_addresses {
        NodePortAddresses::All => {
            world.is_local(packet.destination) && (node.localhost_node_ports || !packet.destination.is_loopback())
        }
        NodePortAddresses::Only(addresses) => addresses.contains(&packet.destination),
    }
}

/// A node port without endpoints, asked for on an address that serves none.
fn refused_node_port(plan: &Plan, world: &World, packet: &Packet) -> Option<(Listen, Verdict)> {
    if !world.is_local(packet.destination) {
        return None;
    }
    let mut services = plan.services().iter().filter(|(name, _)| name.protocol == packet.protocol);
    services.find_map(|(_, service)| {
        let frontend = service.frontends.iter().find(|frontend| frontend.listen == Listen::NodePort(packet.port))?;
        match frontend.routes.last()? {
            (_, Action::Reject) => Some((frontend.listen, Verdict::Rejected)),
            (_, Action::Drop) => Some((frontend.listen, Verdict::Dropped)),
            (_, Action::Balance { .. }) => None,
        }
    })
}

fn is_pod(node: &NodePlan, packet: &Packet) -> bool {
    let interface = packet.interface.as_deref();
    match node.pod_traffic.as_ref().expect("no route asks for pods where they are not known") {
        PodTraffic::Source(net) => net.contains(&packet.source),
        PodTraffic::Interface(name) => interface == Some(name),
        PodTraffic::InterfacePrefix(prefix) => interface.is_some_and(|name| name.starts_with(prefix)),
    }
}

fn balance(service: &ServicePlan, chosen: &[Backend], masquerade: bool, world: &World, packet: &Packet) -> Verdicts {
    assert!(!chosen.is_empty(), "a pool that is balanced over has endpoints");
    let mut verdicts = Verdicts::default();
    for backend in chosen {
        let goes_out = packet.interface.is_none() || !world.is_local(backend.ip);
        let verdict = Verdict::Delivered {
            backend: *backend,
            masqueraded: goes_out && (masquerade || packet.source == backend.ip),
            remembers: service.affinity_seconds.is_some(),
        };
        verdicts.add(verdict, 1.0 / f64::from(u32::try_from(chosen.len()).unwrap()));
    }
    verdicts
}
