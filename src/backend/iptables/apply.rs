//! Bringing the kernel to a Plan: the only part of iptables mode that does IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::compile::{self, BaseRules, Style};
use super::diff::{self, Changes, JUMPS, Jump};
use super::netlink::Counters;
use super::restore::Input;
use super::ruleset::Table;
use super::snapshot::Snapshot;
use super::tools::{RestoreError, Tools, Variant};
use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::command::Run;
use crate::model::ServicePortName;
use crate::plan::{NodePlan, Plan, ServicePlan};

/// More endpoints than this in the cluster, and rules of endpoints carry no comments.
/// (kube-proxy: `largeClusterEndpointsThreshold`.)
const LARGE_CLUSTER_ENDPOINTS: usize = 1_000;

/// Jumps whose absence shows that a table was flushed.
const CHECKED_JUMPS: [(Table, &str, &str); 2] =
    [(Table::Nat, "PREROUTING", "KUBE-SERVICES"), (Table::Filter, "FORWARD", "KUBE-FORWARD")];

/// Settings of iptables mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bit of the packet mark that asks for masquerading, as a mask.
    pub mark: u32,
    /// Drop packets of no known connection. (kube-proxy: unless `nf_conntrack_tcp_be_liberal`.)
    pub drop_invalid: bool,
}

/// iptables mode in one IP family.
pub struct Iptables<R> {
    tools: Tools<R>,
    settings: Settings,
    counters: Box<dyn Fn() -> Counters + Send + Sync>,
    counted: Counters,
    applied: Applied,
}

/// What the kernel is taken to hold: only what it accepted.
#[derive(Default)]
struct Applied {
    trust: Trust,
    base: Option<BaseRules>,
    services: BTreeMap<ServicePortName, AppliedService>,
    /// Service ports whose plan the kernel refused, until that plan changes.
    refused: BTreeMap<ServicePortName, Arc<ServicePlan>>,
}

struct AppliedService {
    plan: Arc<ServicePlan>,
    style: Arc<Style>,
    /// Whether a failed restore may have left its chains otherwise.
    certain: bool,
}

/// How much of [`Applied`] can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    /// Nothing: read the kernel's chains before writing.
    #[default]
    Nothing,
    /// Chains of Service ports; shared chains must be read.
    OwnChains,
    /// All of it.
    Everything,
}

/// One sync under way.
struct Turn<'a> {
    plan: &'a Plan,
    style: Arc<Style>,
    base: BaseRules,
    /// Present while something must be learnt from the kernel.
    snapshot: Option<Snapshot>,
    /// Service ports of which the kernel refuses the previous rules as well, or the removal.
    left_alone: BTreeSet<ServicePortName>,
    report: Report,
}

/// Changes that go to the kernel together.
#[derive(Default)]
struct Batch {
    base: Option<(BaseRules, Changes)>,
    services: Vec<(ServicePortName, Option<Arc<ServicePlan>>, Changes)>,
    lines: usize,
}

/// Why a pass over the plan ended early.
enum Interrupted {
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

// === impl Iptables ===

impl<R: Run> Iptables<R> {
    /// iptables mode with what `tools` found. `counters` sees to the kernel's named counters and
    /// says which there are; it may block.
    pub fn new(
        tools: Tools<R>,
        settings: Settings,
        counters: impl Fn() -> Counters + Send + Sync + 'static,
    ) -> Iptables<R> {
        let counters = Box::new(counters);
        Iptables { tools, settings, counters, counted: Counters::default(), applied: Applied::default() }
    }

    /// How many lines go into one restore at most. The legacy kernel swaps the whole table each
    /// time, so few big ones; with nftables a big input takes more than its share.
    fn lines_per_restore(&self) -> usize {
        match self.tools.features.variant {
            Variant::Legacy => usize::MAX,
            Variant::Nft => 3_000,
        }
    }

    fn style(&self, node: &NodePlan, endpoints: usize) -> Style {
        style(node, endpoints, &self.settings, self.tools.features.random_fully, self.counted)
    }

    async fn pass(
        &mut self,
        turn: &mut Turn<'_>,
        names: &[ServicePortName],
        apart: &[Vec<ServicePortName>],
    ) -> Result<(), Interrupted> {
        turn.snapshot = match self.applied.trust {
            Trust::Everything => None,
            Trust::OwnChains => Some(self.tools.read_shared().await?),
            Trust::Nothing => Some(self.tools.read_all().await?),
        };
        let alone: BTreeSet<&ServicePortName> = apart.iter().flatten().collect();
        let mut batch = Batch::default();
        batch.set_base(self.applied.stage_base(turn), turn.base.clone());
        for name in names.iter().filter(|name| !alone.contains(name)) {
            // The most important Services do not wait for the many others.
            let important_done = turn.snapshot.is_some() && batch.base.is_some() && importance(name) > IMPORTANT;
            if important_done || batch.lines >= self.lines_per_restore() {
                self.write(std::mem::take(&mut batch), turn).await?;
            }
            self.applied.stage(name, turn, &mut batch);
        }
        self.write(batch, turn).await?;
        for group in apart {
            let mut batch = Batch::default();
            for name in group {
                self.applied.stage(name, turn, &mut batch);
            }
            self.write(batch, turn).await?;
        }
        self.remove_leftovers(turn).await?;
        self.applied.trust = Trust::Everything;
        Ok(())
    }

    async fn has_jump(&self, jump: &Jump) -> Result<bool, ApplyError> {
        let expected = format!("-A {} {}", jump.from, jump.rule());
        let mut found = false;
        self.tools.list(jump.table, jump.from, &mut |line| found |= line == expected).await?;
        Ok(found)
    }

    /// Somebody is removing chains, table by table: waits until the other canaries are gone too,
    /// so that what is written next is not swept away. (kube-proxy: 100 ms steps, at most 5 s.)
    async fn await_end_of_flush(&self) -> Result<(), ApplyError> {
        for _ in 0..50 {
            if !self.tools.has_canary(Table::Nat).await? && !self.tools.has_canary(Table::Filter).await? {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn write(&mut self, batch: Batch, turn: &mut Turn<'_>) -> Result<(), Interrupted> {
        let base = batch.base.as_ref().map(|(_, changes)| changes);
        let changes = base.into_iter().chain(batch.services.iter().map(|(.., changes)| changes));
        let input = Input::render(changes);
        if !input.is_empty() {
            let before = self.applied.doubt(&batch);
            turn.report.restores += 1;
            turn.report.bytes += input.text.len();
            match self.tools.restore(&input.text).await {
                Ok(()) => self.applied.trust = before,
                Err(RestoreError::Other(error)) => return Err(self.applied.lost(error)),
                Err(RestoreError::Refused { detail, line }) => return Err(batch.refused(&input, detail, line)),
            }
        }
        self.applied.accept(batch, turn);
        Ok(())
    }

    /// Removes what the snapshot holds and nobody claimed: rules of shared chains first, then
    /// chains of Service ports, which are emptied before any is removed, because they refer to
    /// each other.
    async fn remove_leftovers(&mut self, turn: &mut Turn<'_>) -> Result<(), Interrupted> {
        let Some(snapshot) = turn.snapshot.take() else { return Ok(()) };
        // Where the previous rules are known, those are claimed, and the rest may go.
        let unknown = self.applied.refused.keys().filter(|name| !self.applied.services.contains_key(name));
        let spared = unknown.chain(&turn.left_alone);
        let spared: Vec<String> = spared.map(ToString::to_string).collect();
        let is_spared = |rule: &str| spared.iter().any(|spn| is_commented_for(rule, spn));
        let limit = self.lines_per_restore();
        let mut steps: Vec<Changes> = Vec::new();
        let mut deletes = Changes::default();
        for (shared, rule, count) in snapshot.left_rules().filter(|(_, rule, _)| !is_spared(rule)) {
            let rule = (shared.table(), shared.chain(), rule.to_owned());
            deletes.delete.extend(std::iter::repeat_n(rule, count));
            if deletes.delete.len() >= limit {
                steps.push(std::mem::take(&mut deletes));
            }
        }
        steps.push(deletes);
        // Which chains the spared rules lead to is not known: then all stay.
        if !snapshot.left_rules().any(|(_, rule, _)| is_spared(rule)) {
            let mut chains: Vec<_> = snapshot.left_chains().cloned().collect();
            chains.sort();
            let size = limit.min(chains.len().max(1));
            let pieces = || chains.chunks(size);
            steps.extend(pieces().map(|piece| Changes {
                replace: piece.iter().map(|chain| (Table::Nat, chain.clone(), Vec::new())).collect(),
                ..Changes::default()
            }));
            steps.extend(pieces().map(|piece| Changes {
                remove: piece.iter().map(|chain| (Table::Nat, chain.clone())).collect(),
                ..Changes::default()
            }));
        }
        steps.reverse();
        while let Some(step) = steps.pop() {
            if step.is_empty() {
                continue;
            }
            let input = Input::render(std::iter::once(&step));
            turn.report.restores += 1;
            turn.report.bytes += input.text.len();
            let trust = std::mem::take(&mut self.applied.trust);
            match self.tools.restore(&input.text).await {
                Ok(()) => {}
                Err(RestoreError::Other(error)) => return Err(self.applied.lost(error)),
                // Somebody else's rule leads to one of these chains: it stays, empty, and the
                // others go.
                Err(RestoreError::Refused { .. }) if !step.remove.is_empty() => {
                    steps.extend(step.halved_removal().into_iter().flatten());
                }
                Err(RestoreError::Refused { detail, .. }) => {
                    return Err(refused_outside("removal of leftovers", detail));
                }
            }
            self.applied.trust = trust;
        }
        Ok(())
    }
}

impl<R: Run> Backend for Iptables<R> {
    async fn sync(&mut self, plan: &Plan, scope: &Scope) -> Result<Report, ApplyError> {
        if *scope == Scope::Everything || self.applied.trust == Trust::Nothing {
            self.counted = (self.counters)();
        }
        let style = Arc::new(self.style(&plan.node, plan.endpoints()));
        let restyled = self.applied.services.values().next().is_some_and(|applied| *applied.style != *style);
        let mut turn = Turn {
            plan,
            base: compile::base(&plan.node, &style),
            style,
            snapshot: None,
            left_alone: BTreeSet::new(),
            report: Report::default(),
        };
        // Groups of Service ports that must go to the kernel apart from all others, because some of
        // them was refused. Every refusal makes a group smaller, so this ends.
        let mut apart: Vec<Vec<ServicePortName>> = Vec::new();
        let mut aside: BTreeSet<ServicePortName> = BTreeSet::new();
        let mut read_again = false;
        loop {
            let names = match scope {
                Scope::Services(names) if self.applied.trust == Trust::Everything && !restyled && apart.is_empty() => {
                    in_order(names.iter())
                }
                _ => in_order(
                    plan.services().keys().chain(self.applied.services.keys()).collect::<BTreeSet<_>>().into_iter(),
                ),
            };
            match self.pass(&mut turn, &names, &apart).await {
                Ok(()) => break,
                Err(Interrupted::Failed(error)) => return Err(error),
                Err(Interrupted::Refused { together, suspect, reason }) => {
                    apart.retain(|group| *group != together);
                    match together.as_slice() {
                        [culprit] if plan.services().contains_key(culprit) && aside.insert(culprit.clone()) => {
                            self.applied.set_aside(culprit, reason, &mut turn);
                        }
                        // To remove it, or to leave it as it was, is refused as well: the kernel
                        // does not hold what it is taken to hold.
                        [_] if !read_again => {
                            read_again = true;
                            self.applied.trust = Trust::Nothing;
                        }
                        [culprit] => self.applied.set_aside(culprit, reason, &mut turn),
                        _ => apart.extend(split(together, suspect)),
                    }
                }
            }
        }
        Ok(turn.report)
    }

    async fn check(&mut self) -> Result<Intact, ApplyError> {
        if self.applied.base.is_none() {
            return Ok(Intact::No);
        }
        let mut intact = self.tools.has_canary(Table::Mangle).await?;
        if !intact {
            self.await_end_of_flush().await?;
        }
        // A mere flush of rules leaves the canary, but no jump: one of each table tells. (Listing
        // costs the legacy tools a copy of the whole table, so no more than one.)
        for jump in JUMPS.iter().filter(|jump| CHECKED_JUMPS.contains(&(jump.table, jump.from, jump.to))) {
            intact = intact && self.has_jump(jump).await?;
        }
        if intact {
            return Ok(Intact::Yes);
        }
        self.applied.trust = Trust::Nothing;
        Ok(Intact::No)
    }
}

// === impl Applied ===

impl Applied {
    fn stage_base(&self, turn: &mut Turn<'_>) -> Changes {
        match (&mut turn.snapshot, &self.base) {
            (Some(snapshot), _) if snapshot.has_chains() => diff::base_from_snapshot(&turn.base, snapshot),
            (Some(snapshot), old) => diff::base_beside_snapshot(old.as_ref(), &turn.base, snapshot),
            (None, Some(old)) => diff::base(old, &turn.base),
            (None, None) => Changes::default(),
        }
    }

    /// Adds what one Service port needs to a batch.
    fn stage(&self, name: &ServicePortName, turn: &mut Turn<'_>, batch: &mut Batch) {
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
    fn doubt(&mut self, batch: &Batch) -> Trust {
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
    fn lost(&mut self, error: ApplyError) -> Interrupted {
        if !matches!(error, ApplyError::Busy { .. }) {
            self.trust = Trust::Nothing;
        }
        Interrupted::Failed(error)
    }

    /// After a batch was written: the kernel has it.
    fn accept(&mut self, batch: Batch, turn: &mut Turn<'_>) {
        if let Some((base, _)) = batch.base {
            self.base = Some(base);
        }
        for (name, plan, changes) in batch.services {
            turn.report.written += usize::from(!changes.is_empty());
            if self.refused.get(&name).is_some_and(|refused| turn.plan.services().get(&name) != Some(refused)) {
                self.refused.remove(&name);
            }
            match plan {
                None => drop(self.services.remove(&name)),
                Some(plan) => {
                    let style = turn.style.clone();
                    self.services.insert(name, AppliedService { plan, style, certain: true });
                }
            }
        }
    }

    /// What a Service port had before is kept. If that is refused as well (or there was nothing to
    /// be written, but to be removed), it is left as it is, or this sync would never end.
    fn set_aside(&mut self, name: &ServicePortName, reason: String, turn: &mut Turn<'_>) {
        match turn.plan.services().get(name) {
            Some(plan) if self.refused.get(name) != Some(plan) => {
                self.refused.insert(name.clone(), plan.clone());
                turn.report.refused.push((name.clone(), reason));
            }
            Some(_) => drop(turn.left_alone.insert(name.clone())),
            None => {
                turn.left_alone.insert(name.clone());
                turn.report.refused.push((name.clone(), reason));
            }
        }
    }
}

// === impl Batch ===

impl Batch {
    /// What to do about it when `input`, made from this batch, was refused.
    fn refused(self, input: &Input, reason: String, line: Option<usize>) -> Interrupted {
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

    fn set_base(&mut self, changes: Changes, base: BaseRules) {
        self.lines += changes.lines();
        self.base = Some((base, changes));
    }
}

/// What the first restore into an empty kernel would be, all in one.
pub fn first_input(plan: &Plan, settings: &Settings, random_fully: bool, counters: Counters) -> String {
    let style = style(&plan.node, plan.endpoints(), settings, random_fully, counters);
    let base = diff::base_from_snapshot(&compile::base(&plan.node, &style), &mut Snapshot::new(true));
    let services = plan.services().iter().map(|(name, plan)| diff::service(name, None, Some(plan), &style, true));
    let changes: Vec<Changes> = std::iter::once(base).chain(services).collect();
    Input::render(changes.iter()).text
}

/// The style of rules for a node with so many endpoints in its cluster.
pub fn style(node: &NodePlan, endpoints: usize, settings: &Settings, random_fully: bool, counters: Counters) -> Style {
    Style {
        family: node.family,
        pod_traffic: node.pod_traffic.clone(),
        localhost_node_ports: node.localhost_node_ports,
        mark: settings.mark,
        random_fully,
        drop_invalid: settings.drop_invalid,
        count_invalid: counters.invalid_dropped,
        count_localhost: counters.localhost_accepted,
        large_cluster: endpoints > LARGE_CLUSTER_ENDPOINTS,
    }
}

fn refused_outside(what: &str, detail: String) -> Interrupted {
    Interrupted::Failed(ApplyError::Failed { program: format!("iptables-restore ({what})"), detail })
}

/// Rank of Services whose loss would stop everything else: the API server's, and DNS.
const IMPORTANT: u8 = 1;

/// Rank of a Service port: lower ones are written first.
fn importance(name: &ServicePortName) -> u8 {
    match (&*name.service.namespace, &*name.service.name, &*name.port) {
        ("default", "kubernetes", _) => 0,
        ("kube-system", service, _) if service.contains("dns") => 1,
        (_, _, "dns" | "dns-tcp") => 1,
        _ => 2,
    }
}

fn in_order<'a>(names: impl Iterator<Item = &'a ServicePortName>) -> Vec<ServicePortName> {
    let mut names: Vec<ServicePortName> = names.cloned().collect();
    names.sort_by_key(importance);
    names
}

/// Splits a refused group: the suspect from the others, or in halves.
fn split(mut together: Vec<ServicePortName>, suspect: Option<ServicePortName>) -> Vec<Vec<ServicePortName>> {
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

/// Whether a rule is commented as one of a Service port.
fn is_commented_for(rule: &str, spn: &str) -> bool {
    let Some((_, comment)) = rule.split_once("--comment \"") else { return false };
    comment.strip_prefix(spn).is_some_and(|rest| rest.starts_with([' ', '"']))
}
