//! What a kernel with these rules does with a packet.
//!
//! Follows the first packet of a connection through the hooks as the kernel does: address
//! translation before routing, filters, source translation after routing; a packet that a node sends
//! to itself passes the loopback interface on its way. Where a rule decides at random, every branch
//! is followed. Knows rules only: nothing of Services, nor of how rules come about.

mod walk;

use std::net::IpAddr;

use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::ruleset::Table;
use ferrule::command::fake::Tables;
use ferrule::plan::Backend;

use self::walk::{End, Walk};
use crate::world::{Packet, Verdict, Verdicts, World};

/// What rules can see of a packet, and what they did to it so far.
#[derive(Clone, Debug)]
struct State<'a> {
    packet: &'a Packet,
    /// In the hook it is in: none for packets that go out.
    interface: Option<&'a str>,
    destination: IpAddr,
    port: u16,
    mark: u32,
    /// Where its destination was translated to.
    translated: Option<Backend>,
    masqueraded: bool,
    /// Lists its source was put on.
    remembered: Vec<ChainName>,
}

/// The hooks a packet passes after its destination is decided, with the table asked there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Input,
    Forward,
    Output,
    Postrouting,
    /// The interface by which a node talks to itself.
    Loopback,
}

/// Every verdict the rules can come to. `list_of` names the list on which the clients of an
/// endpoint are remembered.
pub(crate) fn trace(
    tables: &Tables,
    world: &World,
    packet: &Packet,
    list_of: &dyn Fn(&Backend) -> Option<ChainName>,
) -> Verdicts {
    assert_eq!(tables.family(), packet.family());
    let seen = packet.remembered.iter().filter_map(|(backend, age)| Some((list_of(backend)?, *age))).collect();
    let walk = Walk { tables, world, seen };
    let state = State {
        packet,
        interface: packet.interface.as_deref(),
        destination: packet.destination,
        port: packet.port,
        mark: 0,
        translated: None,
        masqueraded: false,
        remembered: Vec::new(),
    };
    let mut verdicts = Verdicts::default();
    let first = if packet.interface.is_some() { "PREROUTING" } else { "OUTPUT" };
    for (end, state, chance) in walk.built_in(Table::Nat, first, state) {
        match end {
            End::Accept => {
                let hooks = match (packet.interface.is_some(), world.is_local(state.destination)) {
                    (true, true) => &[Hook::Input][..],
                    (true, false) => &[Hook::Forward, Hook::Postrouting],
                    (false, true) => &[Hook::Output, Hook::Postrouting, Hook::Loopback, Hook::Input],
                    (false, false) => &[Hook::Output, Hook::Postrouting],
                };
                pass(&walk, hooks, state, chance, &mut verdicts);
            }
            other => panic!("{other:?} in nat {first}"),
        }
    }
    assert!((verdicts.total() - 1.0).abs() < 1e-9, "{verdicts}");
    verdicts
}

fn pass<'a>(walk: &Walk<'a>, hooks: &[Hook], mut state: State<'a>, chance: f64, verdicts: &mut Verdicts) {
    let Some((hook, rest)) = hooks.split_first() else {
        return verdicts.add(verdict(&state), chance);
    };
    let (table, chain) = match hook {
        Hook::Input => (Table::Filter, "INPUT"),
        Hook::Forward => (Table::Filter, "FORWARD"),
        Hook::Output => (Table::Filter, "OUTPUT"),
        Hook::Postrouting => {
            state.interface = None;
            (Table::Nat, "POSTROUTING")
        }
        Hook::Loopback => {
            state.interface = Some("lo");
            return pass(walk, rest, state, chance, verdicts);
        }
    };
    for (end, state, part) in walk.built_in(table, chain, state) {
        match end {
            End::Accept => pass(walk, rest, state, chance * part, verdicts),
            End::Drop => verdicts.add(Verdict::Dropped, chance * part),
            End::Reject => verdicts.add(Verdict::Rejected, chance * part),
            End::Return => panic!("a built-in chain does not return"),
        }
    }
}

fn verdict(state: &State<'_>) -> Verdict {
    match state.translated {
        None => Verdict::Untouched { masqueraded: state.masqueraded },
        Some(backend) => {
            Verdict::Delivered { backend, masqueraded: state.masqueraded, remembers: !state.remembered.is_empty() }
        }
    }
}
