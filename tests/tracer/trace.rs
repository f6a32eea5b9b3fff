//! What a kernel with these rules does with a packet.
//!
//! Follows the first packet of a connection through the hooks as the kernel does: marks, address
//! translation before routing, filters, source translation after routing; a packet that a node sends
//! to itself passes the loopback interface on its way. Where a rule decides at random, every way is
//! followed. Knows rules only: nothing of Services, nor of how rules come about, nor of what happens
//! to packets besides.
//!
//! A rule that cannot be read is an error if the packet comes to it, and nothing to worry about if
//! not.

mod balancer;
mod packet;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::ruleset::Table;
use ferrule::command::fake::Tables;

use self::Step::{Balance, Chain, Loopback, Route};
use self::walk::{End, Interface, State, Walk};

pub(crate) use self::balancer::VirtualServers;
pub(crate) use self::packet::{Packet, Verdict, World};

/// The lists that a packet's source is on, and how many seconds ago it was put there.
pub(crate) type Seen = BTreeMap<ChainName, u32>;

/// One way a packet can go.
#[derive(Clone, Debug)]
pub(crate) struct Way<'a> {
    /// Where it ends.
    pub(crate) verdict: Verdict,
    /// How likely the packet is to go this way.
    pub(crate) chance: f64,
    /// The rules that applied to it.
    pub(crate) rules: BTreeSet<Place<'a>>,
    /// The lists that its source was put on.
    pub(crate) lists: BTreeSet<ChainName>,
}

/// Where a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place<'a> {
    pub(crate) table: Table,
    pub(crate) chain: &'a str,
    /// Counted from 0.
    pub(crate) number: usize,
}

/// A stretch of a packet's way.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A built-in chain.
    Chain(Table, &'static str),
    /// Where the destination is settled, it is decided where the packet goes.
    Route,
    /// The interface by which a node talks to itself.
    Loopback,
    /// Virtual servers, if there are any. (kernel: `ip_vs_in_hook`, after the filters of what stays and before those of
    /// what leaves.)
    Balance,
}

/// What comes in.
const ENTERS: &[Step] = &[Chain(Table::Mangle, "PREROUTING"), Chain(Table::Nat, "PREROUTING"), Route];

/// And is for the node.
const STAYS: &[Step] =
    &[Chain(Table::Mangle, "INPUT"), Chain(Table::Filter, "INPUT"), Balance, Chain(Table::Nat, "INPUT")];

/// And is for somebody else.
const PASSES: &[Step] = &[
    Chain(Table::Mangle, "FORWARD"),
    Chain(Table::Filter, "FORWARD"),
    Chain(Table::Mangle, "POSTROUTING"),
    Chain(Table::Nat, "POSTROUTING"),
];

/// What the node sends.
const LEAVES: &[Step] = &[
    Chain(Table::Mangle, "OUTPUT"),
    Chain(Table::Nat, "OUTPUT"),
    Balance,
    Chain(Table::Filter, "OUTPUT"),
    Chain(Table::Mangle, "POSTROUTING"),
    Chain(Table::Nat, "POSTROUTING"),
    Route,
];

/// What a virtual server sends on. Its destination was settled before, so that nothing is asked about it again.
const BALANCED: &[Step] = &[
    Chain(Table::Mangle, "OUTPUT"),
    Chain(Table::Filter, "OUTPUT"),
    Chain(Table::Mangle, "POSTROUTING"),
    Chain(Table::Nat, "POSTROUTING"),
];

/// And is for itself. Addresses are translated only once, so the nat table is not asked again.
const RETURNS: &[Step] =
    &[Loopback, Chain(Table::Mangle, "PREROUTING"), Chain(Table::Mangle, "INPUT"), Chain(Table::Filter, "INPUT")];

/// Every way the rules can send the packet. Fails, with its text, at a rule that cannot be read.
pub(crate) fn ways<'a>(
    tables: &'a Tables,
    world: &World,
    packet: &Packet,
    seen: &Seen,
) -> Result<Vec<Way<'a>>, String> {
    ways_with(tables, None, world, packet, seen)
}

/// The same where virtual servers balance. Their addresses are the node's own, and `world` has to say so.
pub(crate) fn ways_with<'a>(
    tables: &'a Tables,
    balancer: Option<&VirtualServers>,
    world: &World,
    packet: &Packet,
    seen: &Seen,
) -> Result<Vec<Way<'a>>, String> {
    assert_eq!(tables.family(), packet.family());
    let walk = Walk { tables, balancer, world, packet, seen };
    let mut ways = Vec::new();
    let first = if packet.interface.is_some() { ENTERS } else { LEAVES };
    follow(&walk, first, State::of(packet), 1.0, &mut ways)?;
    let total: f64 = ways.iter().map(|way| way.chance).sum();
    assert!((total - 1.0).abs() < 1e-9, "the chances of all ways add up to {total}");
    Ok(ways)
}

fn follow<'a>(
    walk: &Walk<'a, '_>,
    steps: &[Step],
    mut state: State<'a>,
    chance: f64,
    ways: &mut Vec<Way<'a>>,
) -> Result<(), String> {
    let comes_in = walk.packet.interface.is_some();
    let Some((step, rest)) = steps.split_first() else {
        ways.push(state.arrives(chance));
        return Ok(());
    };
    let (table, chain) = match *step {
        Chain(table, chain) => (table, chain),
        Route => {
            let next = match (comes_in, walk.world.is_local(state.destination)) {
                (true, true) => STAYS,
                (true, false) => PASSES,
                (false, true) => RETURNS,
                (false, false) => &[],
            };
            return follow(walk, next, state, chance, ways);
        }
        Balance => {
            let server = (walk.packet.protocol, state.destination, state.destination_port());
            let Some(pool) = walk.balancer.and_then(|balancer| balancer.servers.get(&server)) else {
                return follow(walk, rest, state, chance, ways);
            };
            if pool.is_empty() {
                ways.push(state.ends(Verdict::Rejected, chance));
                return Ok(());
            }
            for backend in pool {
                let state = state.balanced(walk.packet.protocol, *backend);
                follow(walk, BALANCED, state, chance / pool.len() as f64, ways)?;
            }
            return Ok(());
        }
        Loopback => {
            state.interface = Interface::Loopback;
            return follow(walk, rest, state, chance, ways);
        }
    };
    if chain == "POSTROUTING" {
        state.interface = Interface::None;
    }
    for (end, state, part) in walk.built_in(table, chain, state)? {
        let chance = chance * part;
        match end {
            End::Accept => follow(walk, rest, state, chance, ways)?,
            End::Drop => ways.push(state.ends(Verdict::Dropped, chance)),
            End::Reject => ways.push(state.ends(Verdict::Rejected, chance)),
            End::Return => panic!("a built-in chain does not return"),
        }
    }
    Ok(())
}
