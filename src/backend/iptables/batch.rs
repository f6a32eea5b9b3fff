//! Changes that go to the kernel together, as text or while it is made.

use std::sync::Arc;

use super::applied::{Applied, Interrupted, refused_outside};
use super::compile::BaseRules;
use super::diff::{Changes, Part};
use super::restore::{Draft, Owners};
use super::round::Turn;
use crate::backend::RuleCount;
use crate::model::ServicePortName;
use crate::plan::ServicePlan;

/// Changes that go to the kernel together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) base: Option<StagedBase>,
    pub(super) services: Vec<Staged>,
    pub(super) draft: Draft,
    pub(super) lines: usize,
}

/// What a batch does to the base.
pub(super) struct StagedBase {
    pub(super) base: BaseRules,
    pub(super) holds: RuleCount,
    pub(super) rules: RuleCount,
    pub(super) is_changed: bool,
}

/// What a batch does to one Service port.
pub(super) struct Staged {
    pub(super) name: ServicePortName,
    pub(super) plan: Option<Arc<ServicePlan>>,
    pub(super) hooked: bool,
    pub(super) holds: RuleCount,
    pub(super) rules: RuleCount,
    pub(super) is_changed: bool,
}

/// A batch of everything that is pending, compiled while it is being written: a big cluster's rules are
/// never all in memory.
pub(super) struct Feed<'a, 'b> {
    applied: &'a mut Applied,
    turn: &'a mut Turn<'b>,
    names: Vec<ServicePortName>,
    /// The next one of the batch of which rules of the nat table are missing.
    next: usize,
    has_ended: bool,
    /// How many bytes are handed over at once, about.
    at_once: usize,
    batch: Batch,
    owners: Owners,
    bytes: usize,
}

// === impl Batch ===

impl Batch {
    /// What to do about it when it was refused.
    pub(super) fn refused(self, owners: &Owners, reason: String, line: Option<usize>) -> Interrupted {
        let owner = line.and_then(|line| owners.of_line(line)).and_then(|owner| owner.checked_sub(1));
        let suspect = owner.and_then(|at| self.services.get(at)).map(|staged| staged.name.clone());
        let changed = self.services.into_iter().filter(|staged| staged.is_changed);
        let together: Vec<ServicePortName> = changed.map(|staged| staged.name).collect();
        match together.is_empty() {
            true => refused_outside("rules that belong to no Service", reason),
            false => Interrupted::Refused { together, suspect, reason },
        }
    }

    /// Lines of the base are owned by 0.
    pub(super) fn set_base(&mut self, changes: &Changes, base: BaseRules) {
        self.lines += changes.lines();
        self.draft.add(0, changes);
        let (holds, rules, is_changed) = (changes.holds, changes.rules(), !changes.is_empty());
        self.base = Some(StagedBase { base, holds, rules, is_changed });
    }

    pub(super) fn add(
        &mut self,
        name: ServicePortName,
        plan: Option<Arc<ServicePlan>>,
        hooked: bool,
        changes: &Changes,
    ) {
        let staged =
            Staged { name, plan, hooked, holds: RuleCount::default(), rules: RuleCount::default(), is_changed: false };
        self.services.push(staged);
        self.add_to(self.services.len() - 1, changes);
    }

    /// Adds changes of the Service port at this place.
    fn add_to(&mut self, at: usize, changes: &Changes) {
        let Some(staged) = self.services.get_mut(at) else { return };
        staged.holds += changes.holds;
        staged.rules += changes.rules();
        staged.is_changed |= !changes.is_empty();
        self.lines += changes.lines();
        self.draft.add(at + 1, changes);
    }
}

// === impl Feed ===

impl<'a, 'b> Feed<'a, 'b> {
    /// All that is pending, with what `batch` has already.
    pub(super) fn new(applied: &'a mut Applied, turn: &'a mut Turn<'b>, batch: Batch, at_once: usize) -> Feed<'a, 'b> {
        let names = turn.round.take_pending();
        let (next, owners) = (batch.services.len(), Owners::default());
        Feed { applied, turn, names, next, has_ended: false, at_once, batch, owners, bytes: 0 }
    }

    /// The next part of the input.
    pub(super) fn next(&mut self) -> Option<String> {
        // Refusals come first, of all Service ports: they are few.
        for name in std::mem::take(&mut self.names) {
            if let Some(changes) = self.applied.changes(&name, self.turn, true, Part::Filter) {
                let plan = self.applied.wanted(&name, self.turn.plan).cloned();
                self.batch.add(name, plan, true, &changes);
            }
        }
        while let Some(staged) = self.batch.services.get(self.next) {
            let name = staged.name.clone();
            if let Some(changes) = self.applied.changes(&name, self.turn, true, Part::Nat) {
                self.batch.add_to(self.next, &changes);
                if !changes.is_empty() {
                    self.applied.doubt_one(&name);
                }
            }
            self.next += 1;
            if self.batch.draft.available() >= self.at_once {
                let part = self.batch.draft.take(&mut self.owners, true);
                self.bytes += part.len();
                return Some(part);
            }
        }
        if std::mem::replace(&mut self.has_ended, true) {
            return None;
        }
        let part = self.batch.draft.take(&mut self.owners, false);
        self.bytes += part.len();
        Some(part).filter(|part| !part.is_empty())
    }

    /// What was fed, and what is to be known about it.
    pub(super) fn end(self) -> (Batch, Owners, usize) {
        (self.batch, self.owners, self.bytes)
    }
}
