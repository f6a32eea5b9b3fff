//! What the kernel is taken to hold, what goes to it together, and what to make of a refusal. Pure:
//! [`super::apply`] does the writing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::{self, BaseRules, Style};
use super::diff::{self, Changes};
use super::restore::Input;
use super::snapshot::Snapshot;
use crate::backend::{ApplyError, Report, RuleCount};
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

/// One sync under way.
pub(super) struct Turn<'a> {
    pub(super) plan: &'a Plan,
    pub(super) style: Arc<Style>,
    pub(super) base: BaseRules,
    /// Present while something must be learnt from the kernel.
    pub(super) snapshot: Option<Snapshot>,
    /// Whether all chains were read in this sync.
    pub(super) has_read: bool,
    /// Whether, after a refusal, the kernel was found to hold what it is taken to hold.
    pub(super) verified: bool,
    /// Service ports of which the kernel refuses the previous rules as well, or the removal.
    pub(super) left_alone: BTreeSet<ServicePortName>,
    pub(super) report: Report,
}

/// Changes that go to the kernel together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) base: Option<(BaseRules, Changes)>,
    pub(super) services: Vec<(ServicePortName, Option<Arc<ServicePlan>>, Changes)>,
    pub(super) lines: usize,
}

/// Why a pass over the plan ended early.
pub(super) enum Interrupted {
    /// These Service ports went to the kernel together and were refused.
    Refused { together: Vec<ServicePortName>, suspect: Option<ServicePortName>, reason: String },
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
    pub(super) fn passing_base(&self, turn: &Turn<'_>) -> BaseRules {
        let read = turn.snapshot.as_ref().filter(|snapshot| snapshot.has_chains()).map(Snapshot::layout);
        let before = read.or(self.base.as_ref().map(|base| base.layout)).unwrap_or_default();
        let layout = turn.style.layout.or(before);
        match layout == turn.base.layout {
            true => turn.base.clone(),
            false => compile::base(&turn.plan.node, &Style { layout, ..(*turn.style).clone() }),
        }
    }

    pub(super) fn stage_base(&self, base: &BaseRules, turn: &mut Turn<'_>) -> Changes {
        match (&mut turn.snapshot, &self.base) {
            (Some(snapshot), _) if snapshot.has_chains() => diff::base_from_snapshot(base, snapshot),
            (Some(snapshot), old) => diff::base_beside_snapshot(old.as_ref(), base, snapshot),
            (None, Some(old)) => diff::base(old, base),
            (None, None) => Changes::default(),
        }
    }

    /// From [`Applied::passing_base`] to the base, when all Services are written. `None` if there is nothing
    /// to do, or if rules that must stay may need it as it is.
    pub(super) fn stage_last_base(&self, turn: &mut Turn<'_>) -> Option<Changes> {
        let passing = self.base.as_ref().filter(|base| base.layout != turn.base.layout)?;
        let mut changes = diff::base(passing, &turn.base);
        if let Some(snapshot) = &mut turn.snapshot {
            let spared = self.spared(&turn.left_alone);
            if snapshot.left_rules().any(|(_, rule, _)| is_spared(rule, &spared)) {
                return None;
            }
            // As leftovers: one that somebody else holds on to must not hold the others up.
            changes.remove.drain(..).for_each(|(table, chain)| snapshot.release(table, chain));
        }
        Some(changes)
    }

    /// Service ports whose rules must stay although nobody knows them. (Where the previous rules are known,
    /// those are claimed, and the rest may go.)
    pub(super) fn spared(&self, left_alone: &BTreeSet<ServicePortName>) -> Vec<String> {
        let unknown = self.refused.keys().filter(|name| !self.services.contains_key(name));
        unknown.chain(left_alone).map(ToString::to_string).collect()
    }

    /// Adds what one Service port needs to a batch.
    pub(super) fn stage(&self, name: &ServicePortName, turn: &mut Turn<'_>, batch: &mut Batch) {
        if turn.left_alone.contains(name) {
            return;
        }
        let new = turn.plan.services().get(name);
        let old = self.services.get(name);
        let plan = match (self.refused.get(name), new) {
            // Still what was refused: what there was before stays.
            (Some(refused), Some(new)) if refused == new => old.map(|old| &old.plan),
            _ => new,
        };
        let certain = old.is_none_or(|old| old.certain);
        let before = old.map(|old| (&*old.plan, &*old.style));
        let same = |old: &AppliedService| {
            let same_plan = plan.is_some_and(|plan| Arc::ptr_eq(plan, &old.plan) || **plan == *old.plan);
            same_plan && (Arc::ptr_eq(&old.style, &turn.style) || *old.style == *turn.style) && old.certain
        };
        let changes = match &mut turn.snapshot {
            Some(snapshot) => {
                diff::service_from_snapshot(name, before, plan.map(|p| &**p), &turn.style, certain, snapshot)
            }
            None if old.is_some_and(same) || (old.is_none() && plan.is_none()) => return,
            None => diff::service(name, before, plan.map(|p| &**p), &turn.style, certain),
        };
        batch.lines += changes.lines();
        batch.services.push((name.clone(), plan.cloned(), changes));
    }

    /// Before a batch is written: from now on nobody knows. Returns the trust to go back to.
    pub(super) fn doubt(&mut self, batch: &Batch) -> Trust {
        let before = self.trust;
        self.trust = match (&batch.base, before) {
            (Some((_, changes)), _) if !changes.is_empty() => Trust::Nothing,
            (_, trust) => trust.min(Trust::OwnChains),
        };
        for (name, ..) in &batch.services {
            if let Some(old) = self.services.get_mut(name) {
                old.certain = false;
            }
        }
        before
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
        if let Some((base, changes)) = batch.base {
            turn.report.rules += changes.rules();
            self.base = Some(base);
            self.rules -= std::mem::replace(&mut self.base_rules, changes.holds);
            self.rules += changes.holds;
        }
        for (name, plan, changes) in batch.services {
            turn.report.written += usize::from(!changes.is_empty());
            turn.report.rules += changes.rules();
            if self.refused.get(&name).is_some_and(|refused| turn.plan.services().get(&name) != Some(refused)) {
                self.refused.remove(&name);
            }
            let before = match plan {
                None => self.services.remove(&name),
                Some(plan) => {
                    let (style, rules) = (turn.style.clone(), changes.holds);
                    self.rules += rules;
                    self.services.insert(name, AppliedService { plan, style, certain: true, rules })
                }
            };
            self.rules -= before.map(|before| before.rules).unwrap_or_default();
        }
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

// === impl Turn ===

impl Turn<'_> {
    /// Leaves what a Service port has in the kernel as it is, or this sync would never end.
    pub(super) fn leave_alone(&mut self, name: &ServicePortName, reason: String) {
        self.left_alone.insert(name.clone());
        // Of one with a plan it was said already.
        if !self.plan.services().contains_key(name) {
            self.report.refused.push((name.clone(), reason));
        }
    }
}

// === impl Batch ===

impl Batch {
    /// What to do about it when `input`, made from this batch, was refused.
    pub(super) fn refused(self, input: &Input, reason: String, line: Option<usize>) -> Interrupted {
        let owner = line.and_then(|line| input.owner_of_line(line));
        let at = owner.and_then(|owner| owner.checked_sub(usize::from(self.base.is_some())));
        let suspect = at.and_then(|at| self.services.get(at)).map(|(name, ..)| name.clone());
        let written = self.services.into_iter().filter(|(.., changes)| !changes.is_empty());
        let together: Vec<ServicePortName> = written.map(|(name, ..)| name).collect();
        match together.is_empty() {
            true => refused_outside("rules that belong to no Service", reason),
            false => Interrupted::Refused { together, suspect, reason },
        }
    }

    pub(super) fn set_base(&mut self, changes: Changes, base: BaseRules) {
        self.lines += changes.lines();
        self.base = Some((base, changes));
    }
}

pub(super) fn refused_outside(what: &str, detail: String) -> Interrupted {
    Interrupted::Failed(ApplyError::Failed { program: format!("iptables-restore ({what})"), detail })
}

/// Rank of Services whose loss would stop everything else: the API server's, and DNS.
pub(super) const IMPORTANT: u8 = 1;

/// Rank of a Service port: lower ones are written first.
pub(super) fn importance(name: &ServicePortName) -> u8 {
    match (&*name.service.namespace, &*name.service.name, &*name.port) {
        ("default", "kubernetes", _) => 0,
        ("kube-system", service, _) if service.contains("dns") => 1,
        (_, _, "dns" | "dns-tcp") => 1,
        _ => 2,
    }
}

pub(super) fn in_order<'a>(names: impl Iterator<Item = &'a ServicePortName>) -> Vec<ServicePortName> {
    let mut names: Vec<ServicePortName> = names.cloned().collect();
    names.sort_by_key(importance);
    names
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
