//! Bringing the kernel to a Plan: the only part of iptables mode that does IO.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::applied::{
    Applied, Batch, IMPORTANT, Interrupted, Trust, Turn, importance, in_order, is_spared, refused_outside, split,
};
use super::compile::{self, Layout, Shared, Style};
use super::diff::{self, Changes, JUMPS};
use super::names::{self, ChainName};
use super::netlink::Counters;
use super::nft::Chains;
use super::restore::Input;
use super::ruleset::Table;
use super::snapshot::Snapshot;
use super::tools::{RestoreError, Tools, Variant};
use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::command::Run;
use crate::model::ServicePortName;
use crate::plan::{NodePlan, Plan};

/// More endpoints than this in the cluster, and rules of endpoints carry no comments.
/// (kube-proxy: `largeClusterEndpointsThreshold`.)
const LARGE_CLUSTER_ENDPOINTS: usize = 1_000;
/// So many or fewer again, and they do. Fewer than above, or a cluster of about that size would have
/// all its rules written with every endpoint that comes or goes.
const SMALL_CLUSTER_ENDPOINTS: usize = 900;

/// Built-in chains with jumps of ours, by table. Each look at the kernel goes through one chain of
/// each table, so that a flushed table shows at once, and a single chain with the third look.
/// (Listing costs the legacy tools a copy of the whole table.)
const JUMPED_FROM: [(Table, [&str; 3]); 2] =
    [(Table::Nat, ["PREROUTING", "OUTPUT", "POSTROUTING"]), (Table::Filter, ["FORWARD", "INPUT", "OUTPUT"])];

/// Settings of iptables mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bit of the packet mark that asks for masquerading, as a mask.
    pub mark: u32,
    /// Drop packets of no known connection. (kube-proxy: unless `nf_conntrack_tcp_be_liberal`.)
    pub drop_invalid: bool,
    /// Where rules stand. The kernel must have what they need: [`Tools::recognises_own_source`].
    pub layout: Layout,
}

/// iptables mode in one IP family.
pub struct Iptables<R> {
    tools: Tools<R>,
    settings: Settings,
    counters: Box<dyn Fn() -> Counters + Send + Sync>,
    counted: Counters,
    /// Whether rules of endpoints carry no comments.
    large: bool,
    /// Looks at the kernel so far.
    looks: usize,
    applied: Applied,
    /// How to read chains of Service ports where the programs take too long for it.
    chains: Option<Arc<dyn Chains>>,
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
        let (counted, applied) = (Counters::default(), Applied::default());
        Iptables { tools, settings, counters, counted, large: false, looks: 0, applied, chains: None }
    }

    /// The same, where the nat table can be read chain by chain without the programs.
    pub fn with_chains(self, chains: impl Chains + 'static) -> Iptables<R> {
        Iptables { chains: Some(Arc::new(chains)), ..self }
    }

    /// Reads all chains of the nat and filter tables. The nft programs' listing takes minutes where there
    /// are many, so that those of Service ports are read from the kernel directly, if that is possible.
    async fn read_all(&self) -> Result<Snapshot, ApplyError> {
        let Some(chains) = self.chains.clone() else { return self.tools.read_all().await };
        let fixed = self.tools.read_fixed().await?;
        match self.read_also(fixed, chains, ChainName::is_per_service).await? {
            Some(snapshot) => Ok(snapshot),
            None => self.tools.read_all().await,
        }
    }

    async fn read_shared(&self, layout: Layout) -> Result<Snapshot, ApplyError> {
        let buckets = self.chains.clone().filter(|_| layout.bucketed_services);
        let read = match buckets {
            None => self.tools.read_shared(layout).await?,
            Some(chains) => self.read_shared_with_buckets(chains, layout).await?,
        };
        match read {
            Some(snapshot) => Ok(snapshot),
            // Then nothing there can be trusted.
            None => self.read_all().await,
        }
    }

    /// Reads the shared chains, those for parts of addresses from the kernel directly: the programs would
    /// have to be run for each. `None` if one is missing.
    async fn read_shared_with_buckets(
        &self,
        chains: Arc<dyn Chains>,
        layout: Layout,
    ) -> Result<Option<Snapshot>, ApplyError> {
        let others = Layout { bucketed_services: false, ..layout };
        let Some(snapshot) = self.tools.read_shared(others).await? else { return Ok(None) };
        let is_bucket = |chain: &ChainName| names::byte_of_addresses(chain.as_str()).is_some();
        match self.read_also(snapshot, chains, is_bucket).await? {
            Some(snapshot) => {
                let is_there = |shared: Shared| snapshot.has_chain(shared.table(), &shared.chain());
                Ok(Shared::of(layout).all(is_there).then_some(snapshot))
            }
            None => self.tools.read_shared(layout).await,
        }
    }

    /// Adds chains of the nat table to what was read of others; `None` if the kernel does not tell.
    async fn read_also(
        &self,
        snapshot: Snapshot,
        chains: Arc<dyn Chains>,
        which: fn(&ChainName) -> bool,
    ) -> Result<Option<Snapshot>, ApplyError> {
        let read = tokio::task::spawn_blocking(move || with_chains(snapshot, &*chains, which)).await;
        let (mut snapshot, unclear) = match read.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "cannot read chains over netlink; asking the iptables programs");
                return Ok(None);
            }
        };
        // A rule is taken out of a shared chain by its text.
        for shared in unclear {
            snapshot.forget(shared);
            snapshot.begin(shared.table());
            self.tools.list(shared.table(), shared.chain().as_str(), &mut |line| snapshot.line(line)).await?;
        }
        Ok(Some(snapshot))
    }

    /// How many lines go into one restore at most. The legacy kernel swaps the whole table each
    /// time, so few big ones; with nftables a big input takes more than its share.
    fn lines_per_restore(&self) -> usize {
        match self.tools.features.variant {
            Variant::Legacy => usize::MAX,
            Variant::Nft => 3_000,
        }
    }

    fn style(&mut self, plan: &Plan) -> Style {
        let limit = if self.large { SMALL_CLUSTER_ENDPOINTS } else { LARGE_CLUSTER_ENDPOINTS };
        self.large = plan.endpoints() > limit;
        style(&plan.node, self.large, &self.settings, self.tools.features.random_fully, self.counted)
    }

    /// Whether reading all chains costs little against writing them: by the nft programs, the time
    /// to list them grows faster than their number. (kube-proxy has no hourly full sync at that size.)
    fn can_audit(&self) -> bool {
        self.tools.features.variant == Variant::Legacy || !self.large || self.chains.is_some()
    }

    /// Whether shared chains lack what they are taken to hold: then somebody else was there, and a
    /// refusal may be no fault of the Service. Chains of Service ports cannot be removed, nor all be
    /// flushed, without a trace there.
    async fn has_drifted(&self) -> Result<bool, ApplyError> {
        let mut snapshot = self.read_shared(self.settings.layout).await?;
        if snapshot.has_chains() {
            return Ok(true);
        }
        let fixed = self.applied.base.iter().flat_map(|base| base.head().into_iter().chain(base.tail.iter().cloned()));
        let has_fixed = fixed.map(|rule| rule.to_string()).all(|rule| snapshot.tick_off(Shared::NatServices, &rule));
        let mut services = self.applied.services.iter();
        Ok(!has_fixed || !services.all(|(name, at)| diff::shares(name, &at.plan, &at.style, &mut snapshot)))
    }

    async fn pass(
        &mut self,
        turn: &mut Turn<'_>,
        names: &[ServicePortName],
        apart: &[Vec<ServicePortName>],
    ) -> Result<(), Interrupted> {
        turn.snapshot = match self.applied.trust {
            Trust::Everything => None,
            Trust::OwnChains => Some(self.read_shared(turn.style.layout).await?),
            Trust::Nothing => Some(self.read_all().await?),
        };
        turn.has_read |= turn.snapshot.as_ref().is_some_and(Snapshot::has_chains);
        let alone: BTreeSet<&ServicePortName> = apart.iter().flatten().collect();
        let mut batch = Batch::default();
        let mut began = Instant::now();
        let base = self.applied.passing_base(turn);
        batch.set_base(self.applied.stage_base(&base, turn), base);
        for name in names.iter().filter(|name| !alone.contains(name)) {
            // The most important Services do not wait for the many others.
            let important_done = turn.snapshot.is_some() && batch.base.is_some() && importance(name) > IMPORTANT;
            if important_done || batch.lines >= self.lines_per_restore() {
                turn.report.diffing += began.elapsed();
                self.write(std::mem::take(&mut batch), turn).await?;
                began = Instant::now();
            }
            self.applied.stage(name, turn, &mut batch);
        }
        turn.report.diffing += began.elapsed();
        self.write(batch, turn).await?;
        for group in apart {
            let mut batch = Batch::default();
            for name in group {
                self.applied.stage(name, turn, &mut batch);
            }
            self.write(batch, turn).await?;
        }
        if let Some(changes) = self.applied.stage_last_base(turn) {
            let mut batch = Batch::default();
            batch.set_base(changes, turn.base.clone());
            self.write(batch, turn).await?;
        }
        self.remove_leftovers(turn).await?;
        self.applied.trust = Trust::Everything;
        Ok(())
    }

    /// Whether a built-in chain has all of our jumps.
    async fn has_jumps(&self, table: Table, from: &str) -> Result<bool, ApplyError> {
        let jumps = JUMPS.iter().filter(|jump| (jump.table, jump.from) == (table, from));
        let mut missing: BTreeSet<String> = jumps.map(|jump| format!("-A {from} {}", jump.rule())).collect();
        self.tools.list(table, from, &mut |line| _ = missing.remove(line)).await?;
        Ok(missing.is_empty())
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
                Err(RestoreError::Refused { detail, line }) => {
                    turn.report.refusals += 1;
                    return Err(batch.refused(&input, detail, line));
                }
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
        let spared = self.applied.spared(&turn.left_alone);
        let are_spared = snapshot.left_rules().any(|(_, rule, _)| is_spared(rule, &spared));
        let limit = self.lines_per_restore();
        let mut steps: Vec<Changes> = Vec::new();
        let mut deletes = Changes::default();
        let base = self.applied.base.as_ref().filter(|_| !are_spared);
        // Rules that are taken out one by one are looked for one by one.
        let goes_with_its_chain = |shared: Shared| base.is_some_and(|base| !shared.is_of(base.layout));
        let all_fixed = base.filter(|base| base.layout.bucketed_services);
        for (shared, rule, count) in snapshot.left_rules().filter(|(_, rule, _)| !is_spared(rule, &spared)) {
            let rewritten = shared == Shared::NatServices && all_fixed.is_some();
            if rewritten || goes_with_its_chain(shared) {
                continue;
            }
            let rule = (shared.table(), shared.chain(), rule.to_owned());
            deletes.delete.extend(std::iter::repeat_n(rule, count));
            if deletes.delete.len() >= limit {
                steps.push(std::mem::take(&mut deletes));
            }
        }
        if let Some(base) = all_fixed
            && snapshot.left_rules().any(|(shared, ..)| shared == Shared::NatServices)
        {
            let rules = base.head().iter().chain(&base.tail).map(ToString::to_string).collect();
            deletes.replace.push((Table::Nat, names::SERVICES, rules));
        }
        steps.push(deletes);
        // Which chains the spared rules lead to is not known: then all stay.
        if !are_spared {
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
                    turn.report.refusals += 1;
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
        let whole = !matches!(scope, Scope::Services(_));
        if whole || self.applied.trust == Trust::Nothing {
            self.counted = (self.counters)();
        }
        let style = Arc::new(self.style(plan));
        if *scope == Scope::Audit && self.can_audit() {
            self.applied.trust = Trust::Nothing;
        }
        let restyled = self.applied.services.values().next().is_some_and(|applied| *applied.style != *style);
        let mut turn = Turn {
            plan,
            base: compile::base(&plan.node, &style),
            style,
            snapshot: None,
            has_read: false,
            verified: false,
            left_alone: BTreeSet::new(),
            report: Report::default(),
        };
        self.applied.forget_refused_without_plan(plan);
        // Groups of Service ports that must go to the kernel apart from all others, because some of
        // them was refused. Every refusal makes a group smaller, so this ends.
        let mut apart: Vec<Vec<ServicePortName>> = Vec::new();
        if whole {
            apart.extend(std::mem::take(&mut self.applied.refused).into_keys().map(|name| vec![name]));
        }
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
                        // What seems wrong with one may be that the kernel does not hold what it is
                        // taken to hold.
                        [_] if !turn.has_read && !turn.verified => {
                            turn.verified = true;
                            if self.has_drifted().await? {
                                self.applied.trust = Trust::Nothing;
                            }
                            apart.push(together);
                        }
                        [culprit] if self.applied.set_aside(culprit, &reason, &mut turn) => {}
                        // To remove it, or to leave it as it was, is refused as well.
                        [_] if !turn.has_read => {
                            self.applied.trust = Trust::Nothing;
                            apart.push(together);
                        }
                        [culprit] => turn.leave_alone(culprit, reason),
                        _ => apart.extend(split(together, suspect)),
                    }
                }
            }
        }
        turn.report.set_aside = self.applied.refused.len();
        turn.report.holds = self.applied.rules;
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
        // A mere flush of rules leaves the canary, but no jump.
        for (table, chains) in JUMPED_FROM {
            let chain = chains.into_iter().nth(self.looks % chains.len()).unwrap_or_default();
            intact = intact && self.has_jumps(table, chain).await?;
        }
        self.looks = self.looks.wrapping_add(1);
        if intact {
            return Ok(Intact::Yes);
        }
        self.applied.trust = Trust::Nothing;
        Ok(Intact::No)
    }
}

/// Adds chains of the nat table to what was read of others, and says which shared ones among them have a
/// rule that only the programs can put into words. Blocks.
fn with_chains(
    mut snapshot: Snapshot,
    chains: &dyn Chains,
    which: fn(&ChainName) -> bool,
) -> io::Result<(Snapshot, BTreeSet<Shared>)> {
    let mut found = Vec::new();
    chains.names(&mut |name| found.extend(Some(ChainName::from(name)).filter(which)))?;
    found.iter().for_each(|chain| snapshot.declare(Table::Nat, chain.clone()));
    let mut unclear = BTreeSet::new();
    chains.rules(&found, &mut |chain, rule| match (names::byte_of_addresses(chain.as_str()), rule) {
        (Some(_), Some(rule)) => snapshot.rule(Table::Nat, chain.as_str(), rule),
        (Some(byte), None) => _ = unclear.insert(Shared::NatBucket(byte)),
        (None, rule) => snapshot.add_own(Table::Nat, chain.clone(), rule),
    })?;
    Ok((snapshot, unclear))
}

/// What the first restore into an empty kernel would be, all in one.
pub fn first_input(plan: &Plan, settings: &Settings, random_fully: bool, counters: Counters) -> String {
    let style = style(&plan.node, plan.endpoints() > LARGE_CLUSTER_ENDPOINTS, settings, random_fully, counters);
    let base = diff::base_from_snapshot(&compile::base(&plan.node, &style), &mut Snapshot::new(true));
    let services = plan.services().iter().map(|(name, plan)| diff::service(name, None, Some(plan), &style, true));
    let changes: Vec<Changes> = std::iter::once(base).chain(services).collect();
    Input::render(changes.iter()).text
}

/// The style of rules on a node of a cluster that is `large` or not.
pub fn style(node: &NodePlan, large: bool, settings: &Settings, random_fully: bool, counters: Counters) -> Style {
    Style {
        family: node.family,
        pod_traffic: node.pod_traffic.clone(),
        localhost_node_ports: node.localhost_node_ports,
        mark: settings.mark,
        random_fully,
        drop_invalid: settings.drop_invalid,
        count_invalid: counters.invalid_dropped,
        count_localhost: counters.localhost_accepted,
        large_cluster: large,
        layout: settings.layout,
    }
}
