//! All that may become of a packet: the oracle's answer, and the tracer's.

use std::collections::BTreeMap;
use std::fmt;

use ferrule::command::fake::Tables;
use ferrule::plan::Backend;

use crate::maps::Way;
use crate::tracer::{self, Packet, Seen, Verdict, VirtualServers, World};

/// What may become of a packet, each with its chance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(BTreeMap<Verdict, f64>);

/// Every verdict that rules can come to.
///
/// # Panics
///
/// If the packet comes to a rule that cannot be read.
pub(crate) fn trace(tables: &Tables, world: &World, packet: &Packet, seen: &Seen) -> Verdicts {
    let mut verdicts = Verdicts::default();
    for way in tracer::ways(tables, world, packet, seen).unwrap_or_else(|error| panic!("{error}")) {
        verdicts.add(way.verdict, way.chance);
    }
    verdicts
}

/// The same where virtual servers balance.
pub(crate) fn trace_with(tables: &Tables, balancer: &VirtualServers, world: &World, packet: &Packet) -> Verdicts {
    let mut verdicts = Verdicts::default();
    let ways = tracer::ways_with(tables, Some(balancer), world, packet, &Seen::new());
    for way in ways.unwrap_or_else(|error| panic!("{error}")) {
        verdicts.add(way.verdict, way.chance);
    }
    verdicts
}

/// Where these ways end.
pub(crate) fn of_ways(ways: &[Way]) -> Verdicts {
    let mut verdicts = Verdicts::default();
    for way in ways {
        verdicts.add(way.verdict, way.chance);
    }
    verdicts
}

// === impl Verdicts ===

impl Verdicts {
    pub(crate) fn add(&mut self, verdict: Verdict, chance: f64) {
        *self.0.entry(verdict).or_default() += chance;
    }

    /// A verdict that is certain.
    pub(crate) fn always(verdict: Verdict) -> Verdicts {
        Verdicts([(verdict, 1.0)].into())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Verdict, f64)> {
        self.0.iter().map(|(verdict, chance)| (*verdict, *chance))
    }

    /// Whether both are the same, and their chances by so much of them.
    pub(crate) fn is_within(&self, tolerance: f64, other: &Verdicts) -> bool {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < tolerance * b;
        self.0.keys().eq(other.0.keys()) && self.0.values().zip(other.0.values()).all(near)
    }

    /// Whether the packet reaches an endpoint, whichever.
    pub(crate) fn delivers(&self) -> bool {
        self.0.keys().all(|verdict| matches!(verdict, Verdict::Delivered { .. }))
    }

    /// The endpoints it can reach.
    pub(crate) fn backends(&self) -> impl Iterator<Item = Backend> {
        self.0.keys().filter_map(|verdict| match verdict {
            Verdict::Delivered { backend, .. } => Some(*backend),
            _ => None,
        })
    }

    /// Whether the packet goes nowhere.
    pub(crate) fn refuses(&self) -> bool {
        self.0.keys().all(|verdict| matches!(verdict, Verdict::Rejected | Verdict::Dropped))
    }
}

/// Chances are equal if they differ by less than any weight a rule could have.
impl PartialEq for Verdicts {
    fn eq(&self, other: &Verdicts) -> bool {
        self.0.keys().eq(other.0.keys()) && self.0.values().zip(other.0.values()).all(|(a, b)| (a - b).abs() < 1e-9)
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(verdict, chance)| writeln!(f, "    {chance:.6} {verdict:?}"))
    }
}
