//! A sync in pieces: what is still to be looked at, and what was learnt of the kernel.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::compile::{BaseRules, Style};
use super::names::ChainName;
use super::snapshot::Snapshot;
use crate::backend::Report;
use crate::backend::importance::importance;
use crate::model::{ServiceName, ServicePortName};
use crate::plan::Plan;

/// One sync under way, or one piece of it.
pub(super) struct Turn<'a> {
    pub(super) plan: &'a Plan,
    pub(super) round: &'a mut Round,
    pub(super) report: Report,
}

/// What is being brought to a plan, piece by piece. While it lasts, the plan of a Service may change: one
/// that was looked at is known from then on, another one waits or is looked at now.
pub(super) struct Round {
    pub(super) style: Arc<Style>,
    pub(super) base: BaseRules,
    /// Services that changed last.
    recent: Arc<BTreeSet<ServiceName>>,
    /// Whether what must be learnt from the kernel first was learnt, and the base is written.
    pub(super) begun: bool,
    /// Whether all Service ports are written, so that the base need no longer serve what they were before.
    pub(super) settled: bool,
    /// Present if something must be learnt from the kernel: what was there at the beginning, less what has
    /// found its owner.
    pub(super) snapshot: Option<Snapshot>,
    /// Where the chains of Service ports are in it.
    pub(super) listing: Listing,
    /// Whether all chains were read in this sync.
    pub(super) has_read: bool,
    /// Whether the kernel could not be asked for its chains directly.
    pub(super) is_listed_by_programs: bool,
    /// Whether, after a refusal, the kernel was found to hold what it is taken to hold.
    pub(super) verified: bool,
    /// Service ports of which the kernel refuses the previous rules as well, or the removal.
    pub(super) left_alone: BTreeSet<ServicePortName>,
    /// Service ports that were not looked at yet, the most important ones first.
    pending: BTreeSet<(u8, ServicePortName)>,
    /// Groups of Service ports that must go to the kernel apart from all others, because some of them
    /// was refused. Every refusal makes a group smaller, so this ends.
    pub(super) apart: Vec<Vec<ServicePortName>>,
    /// Service ports whose chains are written while no rule leads there yet.
    pub(super) unhooked: Vec<ServicePortName>,
    /// Chains that belong to nobody, once all others are known; those that may refer to others come last.
    pub(super) left_chains: Option<Vec<ChainName>>,
}

/// Where chains of Service ports are known from.
pub(super) enum Listing {
    /// All that is to be known is in the snapshot.
    Read,
    /// Their names are being listed; their rules are read when they are to be compared.
    Running,
    /// These are all there were, in order.
    Known(Vec<ChainName>),
}

// === impl Turn ===

impl Turn<'_> {
    /// Leaves what a Service port has in the kernel as it is, or this sync would never end.
    pub(super) fn leave_alone(&mut self, name: &ServicePortName, reason: String) {
        self.round.left_alone.insert(name.clone());
        // Of one with a plan it was said already.
        if !self.plan.services().contains_key(name) {
            self.report.refused.push((name.clone(), reason));
        }
    }
}

// === impl Round ===

impl Round {
    /// Nothing to look at yet.
    pub(super) fn new(style: Arc<Style>, base: BaseRules, recent: Arc<BTreeSet<ServiceName>>) -> Round {
        Round {
            style,
            base,
            recent,
            begun: false,
            settled: false,
            snapshot: None,
            listing: Listing::Read,
            has_read: false,
            is_listed_by_programs: false,
            verified: false,
            left_alone: BTreeSet::new(),
            pending: BTreeSet::new(),
            apart: Vec::new(),
            unhooked: Vec::new(),
            left_chains: None,
        }
    }

    /// From the beginning: these are to be looked at, but for those that go apart.
    pub(super) fn restart<'a>(&mut self, names: impl Iterator<Item = &'a ServicePortName>) {
        let apart: BTreeSet<&ServicePortName> = self.apart.iter().flatten().collect();
        let names = names.filter(|name| !apart.contains(name));
        self.pending = names.map(|name| (self.importance(name), name.clone())).collect();
        (self.begun, self.settled, self.snapshot, self.listing) = (false, false, None, Listing::Read);
        self.unhooked.clear();
        self.left_chains = None;
    }

    /// Whether all Service ports were looked at, but for those that go apart.
    pub(super) fn has_seen_all(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many Service ports are not written yet.
    pub(super) fn remaining(&self) -> usize {
        self.pending.len() + self.unhooked.len() + self.apart.iter().map(Vec::len).sum::<usize>()
    }

    /// The pending ones of this rank or a lower one.
    pub(super) fn up_to(&self, rank: u8) -> Vec<ServicePortName> {
        let ranked = self.pending.iter().take_while(|(importance, _)| *importance <= rank);
        ranked.map(|(_, name)| name.clone()).collect()
    }

    /// The first pending ones, with about so many chains.
    pub(super) fn next(&self, plan: &Plan, chains: usize) -> Vec<ServicePortName> {
        let mut before = 0;
        let next = self.pending.iter().take_while(|(_, name)| {
            let is_next = before < chains;
            before += 2 + plan.services().get(name).map_or(0, |plan| plan.backends().len());
            is_next
        });
        next.map(|(_, name)| name.clone()).collect()
    }

    /// All pending ones, which are looked at now.
    pub(super) fn take_pending(&mut self) -> Vec<ServicePortName> {
        std::mem::take(&mut self.pending).into_iter().map(|(_, name)| name).collect()
    }

    fn importance(&self, name: &ServicePortName) -> u8 {
        importance(name, &self.recent)
    }

    /// Whether this Service port is looked at for the first time, as it is now.
    pub(super) fn looks_at(&mut self, name: &ServicePortName) -> bool {
        let mut fresh = self.pending.remove(&(self.importance(name), name.clone()));
        for group in &mut self.apart {
            let before = group.len();
            group.retain(|known| known != name);
            fresh |= group.len() < before;
        }
        fresh
    }
}
