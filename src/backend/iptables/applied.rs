//! What the kernel is taken to hold, and what to make of a refusal. Pure:
//! [`super::apply`] does the writing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::batch::{Batch, Staged, StagedBase};
use super::compile::{self, BaseRules, Shared, Style};
use super::diff::{self, Changes, Held, Part};
use super::names::ChainName;
use super::round::{Listing, Round, Turn};
use super::snapshot::Snapshot;
use crate::backend::{ApplyError, RuleCount};
use crate::model::ServicePortName;
use crate::plan::{Plan, ServicePlan};

/// What the kernel is taken to hold: only what it accepted.
#[derive(Default)]
pub(super) struct Applied {
    pub(super) trust: Trust,
    pub(super) base: Option<BaseRules>,
    pub(super) services: BTreeMap<ServicePortName, AppliedService>,
    /// Rules of all of these together.
    pub(super) rules: RuleCount,
    /// Rules of `base`.
    pub(super) base_rules: RuleCount,
    /// Service ports whose plan the kernel refused, until that plan changes or is tried again.
    pub(super) refused: BTreeMap<ServicePortName, Arc<ServicePlan>>,
}

pub(super) struct AppliedService {
    pub(super) plan: Arc<ServicePlan>,
    pub(super) style: Arc<Style>,
    /// Whether a failed restore may have left its chains otherwise.
    pub(super) certain: bool,
    /// Whether rules in shared chains lead to its chains.
    pub(super) hooked: bool,
    /// How many rules it has.
    pub(super) rules: RuleCount,
}

/// How much of [`Applied`] can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trust {
    /// Nothing: read the kernel's chains before writing.
    #[default]
    Nothing,
    /// Chains of Service ports; shared chains must be read.
    OwnChains,
    /// All of it.
    Everything,
}

/// Why a pass over the plan ended early.
pub(super) enum Interrupted {
    /// These Service ports went to the kernel together and were refused.
    Refused { together: Vec<ServicePortName>, suspect: Option<ServicePortName>, reason: String },
    /// Chains of Service ports cannot be listed over netlink.
    Unlisted(String),
    /// Everything else.
    Failed(ApplyError),
}

impl From<ApplyError> for Interrupted {
    fn from(error: ApplyError) -> Interrupted {
        Interrupted::Failed(error)
    }
}

// === impl Applied ===

impl Applied {
    /// The base while Services are being written: with what those need that are still in another layout.
    /// What is not needed in the end goes when all of them are written.
    fn passing_base(&self, turn: &Turn<'_>) -> BaseRules {
        let Round { style, base, snapshot, settled, .. } = &*turn.round;
        if *settled {
            return base.clone();
        }
        let read = snapshot.as_ref().filter(|snapshot| snapshot.has_chains()).map(Snapshot::layout);
        let before = read.or(self.base.as_ref().map(|base| base.layout)).unwrap_or_default();
        let layout = style.layout.or(before);
        match layout == base.layout {
            true => base.clone(),
            false => compile::base(&turn.plan.node, &Style { layout, ..(**style).clone() }),
        }
    }

    pub(super) fn stage_base(&self, turn: &mut Turn<'_>, batch: &mut Batch) {
        let base = self.passing_base(turn);
        let Round { snapshot, begun, .. } = &mut *turn.round;
        let changes = match (snapshot.as_mut().filter(|_| !*begun), &self.base) {
            (Some(snapshot), _) if snapshot.has_chains() => diff::base_from_snapshot(&base, snapshot),
            (Some(snapshot), old) => diff::base_beside_snapshot(old.as_ref(), &base, snapshot),
            (None, Some(old)) => diff::base(old, &base),
            (None, None) => Changes::default(),
        };
        batch.set_base(&changes, base);
    }

    /// From the base while Services are being written to the base, when all are. Nothing if rules that must
    /// stay may need it as it is.
    pub(super) fn stage_last_base(&self, turn: &mut Turn<'_>, batch: &mut Batch) {
        let Round { base, snapshot, left_alone, .. } = &mut *turn.round;
        let Some(passing) = self.base.as_ref().filter(|passing| passing.layout != base.layout) else { return };
        let mut changes = diff::base(passing, base);
        if let Some(snapshot) = snapshot {
            let spared = self.spared(left_alone);
            if snapshot.left_rules().any(|(_, rule, _)| is_spared(rule, &spared)) {
                return;
            }
            // As leftovers: one that somebody else holds on to must not hold the others up.
            changes.remove.drain(..).for_each(|(table, chain)| snapshot.release(table, chain));
        }
        turn.round.settled = true;
        batch.set_base(&changes, turn.round.base.clone());
    }

    /// Service ports whose rules must stay although nobody knows them. (Where the previous rules are known,
    /// those are claimed, and the rest may go.)
    pub(super) fn spared(&self, left_alone: &BTreeSet<ServicePortName>) -> Vec<String> {
        let unknown = self.refused.keys().filter(|name| !self.services.contains_key(name));
        unknown.chain(left_alone).map(ToString::to_string).collect()
    }

    /// The plan that a Service port shall have in the kernel.
    pub(super) fn wanted<'a>(&'a self, name: &ServicePortName, plan: &'a Plan) -> Option<&'a Arc<ServicePlan>> {
        let new = plan.services().get(name);
        match (self.refused.get(name), new) {
            // Still what was refused: what there was before stays.
            (Some(refused), Some(new)) if refused == new => self.services.get(name).map(|old| &old.plan),
            _ => new,
        }
    }

    /// What one Service port needs; `None` if nothing. `fresh` says that it was not looked at in this round.
    pub(super) fn changes(
        &self,
        name: &ServicePortName,
        turn: &mut Turn<'_>,
        fresh: bool,
        part: Part,
    ) -> Option<Changes> {
        if turn.round.left_alone.contains(name) {
            return None;
        }
        let plan = self.wanted(name, turn.plan);
        let old = self.services.get(name);
        let Round { style, snapshot, left_chains, .. } = &mut *turn.round;
        let same = |old: &AppliedService| {
            let same_plan = plan.is_some_and(|plan| Arc::ptr_eq(plan, &old.plan) || **plan == *old.plan);
            let same_style = Arc::ptr_eq(&old.style, style) || *old.style == **style;
            same_plan && same_style && old.certain && old.hooked
        };
        let held = old.map(AppliedService::held);
        let plan = plan.map(|plan| &**plan);
        match snapshot.as_mut().filter(|_| fresh) {
            Some(snapshot) => Some(diff::service_from_snapshot(name, held.as_ref(), plan, style, part, snapshot)),
            None if old.is_some_and(same) || (old.is_none() && plan.is_none()) => None,
            None => {
                let mut changes = diff::service(name, held.as_ref(), plan, style, part);
                // What belongs to nobody may still lead to chains that go: they go with it, in the end.
                if let Some(snapshot) = snapshot.as_mut().filter(|snapshot| snapshot.has_chains()) {
                    for (table, chain) in changes.empty_instead_of_remove() {
                        left_chains.iter_mut().for_each(|left| left.push(chain.clone()));
                        snapshot.release(table, chain);
                    }
                    left_chains.iter_mut().for_each(|left| in_order_of_removal(left));
                }
                Some(changes)
            }
        }
    }

    /// Adds what one Service port needs to a batch. With `chains_first`, one of which the kernel has no rule
    /// gets its chains only: rules that lead there follow at the end of the round.
    pub(super) fn stage(&self, name: &ServicePortName, turn: &mut Turn<'_>, batch: &mut Batch, chains_first: bool) {
        let fresh = turn.round.looks_at(name);
        let Some(mut changes) = self.changes(name, turn, fresh, Part::Whole) else { return };
        let mut hooked = true;
        if chains_first && changes.is_all_new() {
            hooked = false;
            changes.insert.clear();
            turn.round.unhooked.push(name.clone());
        }
        let plan = self.wanted(name, turn.plan).cloned();
        batch.add(name.clone(), plan, hooked, &changes);
    }

    /// Before a batch is written: from now on nobody knows. Returns the trust to go back to.
    pub(super) fn doubt(&mut self, batch: &Batch) -> Trust {
        let before = self.trust;
        self.trust = match &batch.base {
            Some(base) if base.is_changed => Trust::Nothing,
            _ => before.min(Trust::OwnChains),
        };
        batch.services.iter().filter(|staged| staged.is_changed).for_each(|staged| self.doubt_one(&staged.name));
        before
    }

    pub(super) fn doubt_one(&mut self, name: &ServicePortName) {
        if let Some(old) = self.services.get_mut(name) {
            old.certain = false;
        }
    }

    /// After a restore that neither succeeded nor was refused: how far it came is unknown.
    pub(super) fn lost(&mut self, error: ApplyError) -> Interrupted {
        if !matches!(error, ApplyError::Busy { .. }) {
            self.trust = Trust::Nothing;
        }
        Interrupted::Failed(error)
    }

    /// After a batch was written: the kernel has it.
    pub(super) fn accept(&mut self, batch: Batch, turn: &mut Turn<'_>) {
        if let Some(StagedBase { base, holds, rules, .. }) = batch.base {
            turn.report.rules += rules;
            self.base = Some(base);
            self.rules -= std::mem::replace(&mut self.base_rules, holds);
            self.rules += holds;
        }
        for Staged { name, plan, hooked, holds, rules, is_changed } in batch.services {
            turn.report.written += usize::from(is_changed);
            turn.report.rules += rules;
            if self.refused.get(&name).is_some_and(|refused| turn.plan.services().get(&name) != Some(refused)) {
                self.refused.remove(&name);
            }
            let before = match plan {
                None => self.services.remove(&name),
                Some(plan) => {
                    self.rules += holds;
                    let style = turn.round.style.clone();
                    self.services.insert(name, AppliedService { plan, style, certain: true, hooked, rules: holds })
                }
            };
            self.rules -= before.map(|before| before.rules).unwrap_or_default();
        }
    }

    /// The chains of Service ports that belong to nobody.
    pub(super) fn left_chains(&self, round: &Round) -> Vec<ChainName> {
        let mut left: BTreeSet<ChainName> = round.snapshot.iter().flat_map(Snapshot::left_chains).cloned().collect();
        if let Listing::Known(names) = &round.listing {
            left.extend(names.iter().cloned());
        }
        // Whatever it was when it was read: it may have found its owner since.
        if !left.is_empty() {
            for (name, at) in &self.services {
                compile::chain_names(name, &at.plan, &at.style).for_each(|chain| _ = left.remove(&chain));
            }
            if let Some(base) = &self.base {
                base.dispatch().iter().for_each(|(_, chain, _)| _ = left.remove(chain));
                Shared::of(base.layout).for_each(|shared| _ = left.remove(&shared.chain()));
            }
        }
        let mut left: Vec<ChainName> = left.into_iter().collect();
        in_order_of_removal(&mut left);
        left
    }

    /// Sets the plan of a Service port aside: what it had before is kept. False if that is so
    /// already, or if there is no plan.
    pub(super) fn set_aside(&mut self, name: &ServicePortName, reason: &str, turn: &mut Turn<'_>) -> bool {
        let Some(plan) = turn.plan.services().get(name).filter(|plan| self.refused.get(name) != Some(plan)) else {
            return false;
        };
        self.refused.insert(name.clone(), plan.clone());
        turn.report.refused.push((name.clone(), reason.to_owned()));
        true
    }

    /// Refusals end with their Service. If nothing is known of what the kernel held of it before, that
    /// has to be looked up, and removed.
    pub(super) fn forget_refused_without_plan(&mut self, plan: &Plan) {
        let (services, trust) = (&self.services, &mut self.trust);
        self.refused.retain(|name, _| {
            let stays = plan.services().contains_key(name);
            if !stays && !services.contains_key(name) {
                *trust = Trust::Nothing;
            }
            stays
        });
    }
}

// === impl AppliedService ===

impl AppliedService {
    fn held(&self) -> Held<'_> {
        Held { plan: &self.plan, style: &self.style, certain: self.certain, hooked: self.hooked }
    }
}

pub(super) fn refused_outside(what: &str, detail: String) -> Interrupted {
    Interrupted::Failed(ApplyError::Failed { program: format!("iptables-restore ({what})"), detail })
}

/// Sorts chains so that those come last that may refer to others: they are removed from the end.
fn in_order_of_removal(chains: &mut [ChainName]) {
    chains.sort_by_cached_key(|chain| (std::cmp::Reverse(chain.depth()), chain.clone()));
}

/// Splits a refused group: the suspect from the others, or in halves.
pub(super) fn split(mut together: Vec<ServicePortName>, suspect: Option<ServicePortName>) -> Vec<Vec<ServicePortName>> {
    match suspect {
        Some(suspect) => {
            together.retain(|name| *name != suspect);
            vec![together, vec![suspect]]
        }
        None => {
            let rest = together.split_off(together.len() / 2);
            vec![together, rest]
        }
    }
}

/// Whether a rule is commented as one of these Service ports.
pub(super) fn is_spared(rule: &str, spared: &[String]) -> bool {
    spared.iter().any(|spn| is_commented_for(rule, spn))
}

fn is_commented_for(rule: &str, spn: &str) -> bool {
    let Some((_, comment)) = rule.split_once("--comment \"") else { return false };
    comment.strip_prefix(spn).is_some_and(|rest| rest.starts_with([' ', '"']))
}
