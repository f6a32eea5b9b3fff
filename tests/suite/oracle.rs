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
use std::net::IpAddr;

use ferrule::model::ServicePortName;
use ferrule::net::{Protocol, host_net};
use ferrule::plan::{
    Action, Backend, Frontend, Listen, NodePlan, NodePortAddresses, Plan, PodTraffic, PoolKind, ServicePlan, Source,
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

    let Some((_, service, frontend)) = find(plan, world, packet) else {
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
    match action(plan, world, packet, frontend) {
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

/// What becomes of a packet where virtual servers balance. `world` has their addresses as well. What a virtual server
/// does not serve and is sent to its address is refused, because only the node itself could be meant.
///
/// Other than where rules balance: loopback sources are never masqueraded, and whether what is sent to a cluster IP is,
/// without a way to tell pods, depends on whether its sender has that very address.
pub(crate) fn judge_balanced(plan: &Plan, world: &World, links: &[IpAddr], packet: &Packet) -> Verdicts {
    let Some((_, service, frontend)) = find(plan, world, packet) else {
        let is_virtual = links.contains(&packet.destination) && !health_checked(plan, packet);
        return Verdicts::always(match is_virtual && comes_in(world, packet) {
            true => Verdict::Rejected,
            // Which makes no difference: the node gets one of its own addresses, an endpoint that of its gateway.
            false => {
                let masqueraded = reaches_itself(plan, packet) || is_taken_for_node_port(plan, world, packet);
                Verdict::Untouched { masqueraded }
            }
        });
    };
    let Some(Action::Balance { pool, masquerade }) = frontend.default_action() else {
        panic!("virtual servers balance whatever comes")
    };
    let pool = service.pool(pool);
    // The same address may be an external IP as well, which nothing restricts.
    let at = Listen::LoadBalancerIp(packet.destination, packet.port);
    let restricted = service.frontends.iter().find(|frontend| frontend.listen == at);
    if let Some(allowed) = restricted.and_then(|frontend| frontend.allow_from.as_ref()) {
        // A process here is only stopped if it has the load balancer's address, which says that the node may or may not
        // use it, and when an endpoint was found for it.
        let own = packet.source == packet.destination && !pool.is_empty();
        let stopped = match packet.interface {
            Some(_) => !allowed.iter().any(|net| net.contains(&packet.source)),
            None => own && !allowed.contains(&host_net(packet.destination)),
        };
        if stopped {
            return Verdicts::always(Verdict::Dropped);
        }
    }
    let masquerade = match frontend.listen {
        _ if packet.source.is_loopback() => false,
        Listen::ClusterIp(..) if plan.node.masquerade_all => true,
        Listen::ClusterIp(ip, _) => match &plan.node.pod_traffic {
            Some(_) => !is_pod(&plan.node, packet),
            None => packet.source == ip,
        },
        _ => masquerade,
    };
    let mut verdicts = Verdicts::default();
    if pool.is_empty() {
        verdicts.add(Verdict::Rejected, 1.0);
    }
    for backend in &pool {
        let hairpin = backend.ip == packet.source && is_here(plan, packet.protocol, *backend);
        let verdict = Verdict::Delivered { backend: *backend, masqueraded: masquerade || hairpin, remembers: false };
        verdicts.add(verdict, 1.0 / pool.len() as f64);
    }
    verdicts
}

/// What becomes of a packet where maps balance. `client` is the endpoint that its sender is remembered to have got from
/// the pool that this packet comes to, if that pool still has it.
///
/// Other than where rules balance:
///
/// - Who may use an address is asked of every packet, before anything else.
/// - A refusal is heard by all who send there, also by processes of this node; but of node ports only by those who ask for
///   one that is served, or would be.
/// - A port of a cluster IP that no Service has is refused, unless packets from outside come to it on this node: no node
///   has such an address, or it is its own business. So is an address where only Services have addresses, if none has it;
///   it is dropped.
/// - What is sent to a cluster IP is masqueraded as such, also if it finds a node port there.
/// - A packet that comes back to where it came from is known by the endpoints of this node, of whatever Service.
/// - A client stays with its endpoint of a pool, by whichever of the Service port's frontends its packets come to that pool.
/// - Node ports of loopback addresses are asked for by themselves, whatever other addresses serve node ports.
pub(crate) fn judge_mapped(plan: &Plan, world: &World, packet: &Packet, client: Option<Backend>) -> Verdicts {
    let found = find_mapped(plan, world, packet);
    if found.is_some_and(|(_, service, _)| is_stranger(service, packet)) {
        return Verdicts::always(Verdict::Dropped);
    }
    let destination = packet.destination;
    let is_cluster_ip = plan.services().values().any(|service| {
        let is_it = |listen| matches!(listen, Listen::ClusterIp(ip, _) if ip == destination);
        service.frontends.iter().any(|frontend| is_it(frontend.listen))
    });
    let passes = !(packet.interface.is_some() && world.is_local(destination));
    let is_unknown_port = is_cluster_ip && passes;
    let is_unallocated = passes && plan.node.service_cidrs.iter().any(|net| net.contains(&destination));
    let is_guarded = plan.node.localhost_node_ports && destination.is_loopback() && !packet.source.is_loopback();
    let unless_stopped = |verdict| match verdict {
        _ if is_unknown_port => Verdict::Rejected,
        _ if is_unallocated => Verdict::Dropped,
        _ if is_guarded => Verdict::Dropped,
        verdict => verdict,
    };
    let Some((_, service, frontend)) = found else {
        return Verdicts::always(unless_stopped(Verdict::Untouched { masqueraded: false }));
    };
    let refusal = |verdict| {
        // Node ports are looked at last.
        let is_last = matches!(frontend.listen, Listen::NodePort(_));
        Verdicts::always(if is_last { unless_stopped(verdict) } else { verdict })
    };
    let (pool, masquerade) = match action(plan, world, packet, frontend) {
        Action::Balance { pool, masquerade } => (service.pool(pool), masquerade),
        Action::Drop => return refusal(Verdict::Dropped),
        Action::Reject => return refusal(Verdict::Rejected),
    };
    let pool = client.map_or(pool, |client| vec![client]);
    let node = &plan.node;
    let masquerade =
        masquerade || is_cluster_ip && (node.masquerade_all || node.pod_traffic.is_some() && !is_pod(node, packet));
    let mut verdicts = Verdicts::default();
    for backend in &pool {
        let goes_out = packet.interface.is_none() || !world.is_local(backend.ip);
        let hairpin = backend.ip == packet.source && is_here(plan, packet.protocol, *backend);
        let verdict = Verdict::Delivered {
            backend: *backend,
            masqueraded: goes_out && (masquerade || hairpin),
            remembers: service.affinity_seconds.is_some(),
        };
        verdicts.add(verdict, 1.0 / pool.len() as f64);
    }
    verdicts
}

/// The pool that a packet comes to where maps balance, and whose it is.
pub(crate) fn pool<'a>(
    plan: &'a Plan,
    world: &World,
    packet: &Packet,
) -> Option<(&'a ServicePortName, &'a ServicePlan, PoolKind)> {
    let (name, service, frontend) = find_mapped(plan, world, packet)?;
    match action(plan, world, packet, frontend) {
        Action::Balance { pool, .. } => Some((name, service, pool)),
        Action::Reject | Action::Drop => None,
    }
}

/// Whether the address a packet is sent to is not for its source. (The same address may be an external IP as well, which
/// alone restricts nobody.)
fn is_stranger(service: &ServicePlan, packet: &Packet) -> bool {
    let at = Listen::LoadBalancerIp(packet.destination, packet.port);
    let restricted = service.frontends.iter().find(|frontend| frontend.listen == at);
    let allowed = restricted.and_then(|frontend| frontend.allow_from.as_ref());
    allowed.is_some_and(|allowed| !allowed.iter().any(|net| net.contains(&packet.source)))
}

/// What a frontend does with a packet.
fn action(plan: &Plan, world: &World, packet: &Packet, frontend: &Frontend) -> Action {
    let from = |source: Source| match source {
        Source::Pod => is_pod(&plan.node, packet),
        Source::Node => world.is_local(packet.source),
        Source::Any => true,
    };
    let mut routes = frontend.routes.iter();
    let (_, action) = routes.find(|(source, _)| from(*source)).expect("the last route takes any source");
    *action
}

/// Whether an endpoint of this node sends to itself.
fn reaches_itself(plan: &Plan, packet: &Packet) -> bool {
    let to = Backend { ip: packet.destination, port: packet.port };
    packet.source == packet.destination && is_here(plan, packet.protocol, to)
}

/// Whether this is an endpoint of any Service, on this node.
fn is_here(plan: &Plan, protocol: Protocol, backend: Backend) -> bool {
    let mut services = plan.services().iter().filter(|(name, _)| name.protocol == protocol);
    services.any(|(_, service)| service.here.iter().any(|here| here == backend))
}

/// Whether a process of this node asks one of its addresses for a node port that is not served there. (The sets of TCP
/// and UDP know no addresses.)
fn is_taken_for_node_port(plan: &Plan, world: &World, packet: &Packet) -> bool {
    let is_masqueraded = |frontend: &Frontend| {
        let action = frontend.default_action();
        frontend.listen == Listen::NodePort(packet.port)
            && matches!(action, Some(Action::Balance { masquerade: true, .. }))
    };
    let mut services = plan.services().iter().filter(|(name, _)| name.protocol == packet.protocol);
    let serves = plan.node.node_port_addresses != NodePortAddresses::Only(Vec::new());
    let is_own = packet.interface.is_none() && world.is_local(packet.destination) && !packet.source.is_loopback();
    let has_port = services.any(|(_, service)| service.frontends.iter().any(is_masqueraded));
    is_own && serves && has_port && packet.protocol != Protocol::Sctp
}

/// Whether packets pass the rules for what comes in: not so what a process sends elsewhere.
fn comes_in(world: &World, packet: &Packet) -> bool {
    packet.interface.is_some() || world.is_local(packet.destination)
}

/// Whether a packet is for a port on which load balancers ask for the node's health. (The set knows no protocols. A
/// Service port with a node port and no address to serve it on is left out from there on.)
fn health_checked(plan: &Plan, packet: &Packet) -> bool {
    let has_addresses = plan.node.node_port_addresses != NodePortAddresses::Only(Vec::new());
    plan.services().values().any(|service| {
        let is_node_port = |frontend: &Frontend| matches!(frontend.listen, Listen::NodePort(_));
        let is_served = has_addresses || !service.frontends.iter().any(is_node_port);
        is_served && service.health_check.as_ref().is_some_and(|check| check.node_port == packet.port)
    })
}

/// A frontend, and the Service port that has it.
type Found<'a> = (&'a ServicePortName, &'a ServicePlan, &'a Frontend);

/// The frontend that takes a packet.
fn find<'a>(plan: &'a Plan, world: &World, packet: &Packet) -> Option<Found<'a>> {
    find_where(plan, packet, serves_node_ports(&plan.node, world, packet))
}

/// The same where maps balance.
fn find_mapped<'a>(plan: &'a Plan, world: &World, packet: &Packet) -> Option<Found<'a>> {
    let by_loopback = plan.node.localhost_node_ports && packet.destination.is_loopback();
    find_where(plan, packet, by_loopback || serves_node_ports(&plan.node, world, packet))
}

/// Addresses of Services go before node ports, if the packet's destination serves these.
fn find_where<'a>(plan: &'a Plan, packet: &Packet, serves_node_ports: bool) -> Option<Found<'a>> {
    let to = (packet.destination, packet.port);
    let is_address = |listen: Listen| match listen {
        Listen::ClusterIp(ip, port) | Listen::ExternalIp(ip, port) | Listen::LoadBalancerIp(ip, port) => {
            (ip, port) == to
        }
        Listen::NodePort(_) => false,
    };
    let is_node_port = |listen| serves_node_ports && listen == Listen::NodePort(packet.port);
    let of_protocol = |(name, _): &(&ServicePortName, _)| name.protocol == packet.protocol;
    let frontends = || {
        let services = plan.services().iter().filter(of_protocol);
        services.flat_map(|(name, service)| service.frontends.iter().map(move |frontend| (name, &**service, frontend)))
    };
    frontends()
        .find(|(.., frontend)| is_address(frontend.listen))
        .or_else(|| frontends().find(|(.., frontend)| is_node_port(frontend.listen)))
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
