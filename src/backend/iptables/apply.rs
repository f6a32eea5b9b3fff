//! Bringing the kernel to a Plan: the only part of iptables mode that does IO.

mod leftovers;
mod reading;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::applied::{Applied, Interrupted, Trust, split};
use super::batch::{Batch, Feed};
use super::compile::{self, Layout, Style};
use super::diff::{self, Changes, JUMPS, Part};
use super::names::ChainName;
use super::netlink::Counters;
use super::nft::Chains;
use super::restore::{Input, Owners};
use super::round::{Listing, Round, Turn};
use super::ruleset::Table;
use super::snapshot::Snapshot;
use super::tools::{RestoreError, Tools, Variant};
use crate::backend::importance::{IMPORTANT, RECENT};
use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::command::Run;
use crate::model::{ServiceName, ServicePortName};
use crate::plan::{NodePlan, Plan};

/// More endpoints than this in the cluster, and rules of endpoints carry no comments.
/// (kube-proxy: `largeClusterEndpointsThreshold`.)
const LARGE_CLUSTER_ENDPOINTS: usize = 1_000;
/// So many or fewer again, and they do. Fewer than above, or a cluster of about that size would have
/// all its rules written with every endpoint that comes or goes.
const SMALL_CLUSTER_ENDPOINTS: usize = 900;

/// Built-in chains with jumps of ours, by table. Each look at the kernel goes through one chain of
/// each table, so that a flushed table shows at once, and a single chain with the third look.
const JUMPED_FROM: [(Table, [&str; 3]); 2] =
    [(Table::Nat, ["PREROUTING", "OUTPUT", "POSTROUTING"]), (Table::Filter, ["FORWARD", "INPUT", "OUTPUT"])];

/// A look at a table, to which the legacy tools copy all of it, takes no more than one part in so many of
/// the time.
const LOOK_SHARE: u32 = 100;

/// Looks at the built-in chains of one table.
#[derive(Clone, Copy, Default)]
struct Looks {
    /// How many so far.
    count: usize,
    /// None before that.
    next: Option<tokio::time::Instant>,
}

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
    /// Looks at built-in chains, as in [`JUMPED_FROM`].
    looks: [Looks; 2],
    applied: Applied,
    /// Services that changed last, as of the last sync about everything.
    recent: Arc<BTreeSet<ServiceName>>,
    piece: Piece,
    /// What is not finished.
    round: Option<Round>,
    /// How to read chains of Service ports where the programs take too long for it.
    chains: Option<Arc<dyn Chains>>,
    /// While their names are being listed.
    listing: Option<JoinHandle<io::Result<Vec<ChainName>>>>,
}

/// How much is done in one piece of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Lines in one restore, roughly; with `usize::MAX` all go in one, compiled while it is read.
    pub lines: usize,
    /// Chains that are compared.
    pub chains: usize,
    /// Lines in one restore that make chains reachable.
    pub hooks: usize,
    /// Bytes that are compiled before they are handed over.
    pub bytes: usize,
}

/// The legacy kernel swaps the whole table each time: all at once.
const WHOLE: Piece = Piece { lines: usize::MAX, chains: usize::MAX, hooks: usize::MAX, bytes: 128 * 1024 };
/// With nftables each restore takes a tenth of a second or two, whatever the size of the cluster; but
/// what makes chains reachable has the kernel walk all chains that already are.
const BOUNDED: Piece = Piece { lines: 3_000, chains: 500, hooks: 300, bytes: 128 * 1024 };

/// About how many bytes rules of one endpoint and of one Service port come to.
const BYTES_OF_ENDPOINT: usize = 400;
const BYTES_OF_SERVICE: usize = 1_000;

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
        let piece = match tools.features.variant {
            Variant::Legacy => WHOLE,
            Variant::Nft => BOUNDED,
        };
        Iptables {
            tools,
            settings,
            counters,
            counted,
            large: false,
            looks: Default::default(),
            applied,
            recent: Arc::default(),
            piece,
            round: None,
            chains: None,
            listing: None,
        }
    }

    /// Variant of the programs.
    pub fn variant(&self) -> Variant {
        self.tools.features.variant
    }

    /// The same, in pieces of another size.
    pub fn in_pieces(self, piece: Piece) -> Iptables<R> {
        Iptables { piece, ..self }
    }

    /// The same, where the nat table can be read chain by chain without the programs.
    pub fn with_chains(self, chains: impl Chains + 'static) -> Iptables<R> {
        Iptables { chains: Some(Arc::new(chains)), ..self }
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

    /// Learns from the kernel what must be known first.
    async fn begin(&mut self, turn: &mut Turn<'_>) -> Result<(), Interrupted> {
        match self.applied.trust {
            Trust::Everything => {}
            Trust::OwnChains => match self.read_shared(turn.round.style.layout).await? {
                Some(snapshot) => turn.round.snapshot = Some(snapshot),
                // Then nothing there can be trusted.
                None => self.read_all(turn.round).await?,
            },
            Trust::Nothing => self.read_all(turn.round).await?,
        }
        turn.round.has_read |= turn.round.snapshot.as_ref().is_some_and(Snapshot::has_chains);
        Ok(())
    }

    /// Does one piece of a round, with these Service ports first. The round is over when none remains.
    async fn go_on(&mut self, turn: &mut Turn<'_>, first: &[ServicePortName]) -> Result<Progress, Interrupted> {
        let piece = self.piece;
        let mut batch = Batch::default();
        let mut began = Instant::now();
        let mut names = first.to_vec();
        let is_first = !turn.round.begun;
        if is_first {
            self.begin(turn).await?;
        }
        self.applied.stage_base(turn, &mut batch);
        if is_first {
            turn.round.begun = true;
            names.extend(turn.round.up_to(IMPORTANT).into_iter().filter(|name| !first.contains(name)));
        }
        self.read_own(turn, &names).await?;
        names.iter().for_each(|name| self.applied.stage(name, turn, &mut batch, false));
        let (mut lines, mut chains) = (batch.lines, 0);
        // What has changed, and the most important Services, do not wait for the many others.
        if turn.round.snapshot.is_some() {
            self.write(std::mem::take(&mut batch), turn, began).await?;
            began = Instant::now();
            if is_first {
                let recent = turn.round.up_to(RECENT);
                self.read_own(turn, &recent).await?;
                recent.iter().for_each(|name| self.applied.stage(name, turn, &mut batch, false));
                lines += batch.lines;
                self.write(std::mem::take(&mut batch), turn, began).await?;
                began = Instant::now();
            }
        }
        if piece.lines == usize::MAX && !turn.round.has_seen_all() {
            self.feed(std::mem::take(&mut batch), turn, began).await?;
            began = Instant::now();
        }
        if !turn.round.has_seen_all() && !self.await_listing(turn).await? {
            return Ok(Progress::Unfinished);
        }
        let chains_first = self.writes_chains_first(turn);
        // Little by little: how much there is to write shows only when it is compared.
        let few = (piece.chains / 8).max(1);
        while !turn.round.has_seen_all() && lines < piece.lines && chains < piece.chains {
            let names = turn.round.next(turn.plan, few);
            self.read_own(turn, &names).await?;
            let before = batch.lines;
            names.iter().for_each(|name| self.applied.stage(name, turn, &mut batch, chains_first));
            lines += batch.lines - before;
            chains += few;
        }
        self.write(batch, turn, began).await?;
        if !turn.round.has_seen_all() {
            return Ok(Progress::Unfinished);
        }
        self.hook(turn, piece, &mut lines).await?;
        if !turn.round.unhooked.is_empty() {
            return Ok(Progress::Unfinished);
        }
        while let Some(group) = turn.round.apart.pop() {
            began = Instant::now();
            // Back, as long as they have not been looked at.
            turn.round.apart.push(group.clone());
            self.read_own(turn, &group).await?;
            let mut batch = Batch::default();
            group.iter().for_each(|name| self.applied.stage(name, turn, &mut batch, false));
            turn.round.apart.retain(|group| !group.is_empty());
            self.write(batch, turn, began).await?;
        }
        began = Instant::now();
        let mut batch = Batch::default();
        self.applied.stage_last_base(turn, &mut batch);
        self.write(batch, turn, began).await?;
        if !self.await_listing(turn).await? {
            return Ok(Progress::Unfinished);
        }
        if self.remove_left_rules(turn, piece).await? == Progress::Unfinished
            || self.remove_left_chains(turn, piece).await? == Progress::Unfinished
        {
            return Ok(Progress::Unfinished);
        }
        self.applied.trust = Trust::Everything;
        Ok(Progress::Finished)
    }

    /// Whether most of what there shall be is missing. Then chains come first and rules that lead there last:
    /// for each rule that is added, the nft kernel walks through all that packets may reach by then.
    fn writes_chains_first(&self, turn: &Turn<'_>) -> bool {
        match &turn.round.listing {
            Listing::Known(names) => {
                let wanted = turn.plan.endpoints() + turn.plan.services().len();
                wanted > self.piece.hooks && names.len() < wanted / 2
            }
            Listing::Read | Listing::Running => false,
        }
    }

    /// Makes chains reachable that are written.
    async fn hook(&mut self, turn: &mut Turn<'_>, piece: Piece, lines: &mut usize) -> Result<(), Interrupted> {
        while !turn.round.unhooked.is_empty() && *lines < piece.lines {
            let began = Instant::now();
            let mut batch = Batch::default();
            while batch.lines < piece.hooks
                && let Some(name) = turn.round.unhooked.pop()
            {
                self.applied.stage(&name, turn, &mut batch, false);
            }
            // One of these restores takes as long as one of the others.
            *lines = lines.saturating_add(piece.lines);
            self.write(batch, turn, began).await?;
        }
        Ok(())
    }

    /// Writes all that is pending, in one restore that is compiled while it is read.
    async fn feed(&mut self, batch: Batch, turn: &mut Turn<'_>, began: Instant) -> Result<(), Interrupted> {
        let before = self.applied.doubt(&batch);
        let about = turn.plan.endpoints() * BYTES_OF_ENDPOINT + turn.plan.services().len() * BYTES_OF_SERVICE;
        let mut feed = Feed::new(&mut self.applied, turn, batch, self.piece.bytes);
        let mut first = feed.next();
        let (diffing, is_empty) = (began.elapsed(), first.is_none());
        let result = match is_empty {
            true => Ok(()),
            false => self.tools.restore(about, &mut || first.take().or_else(|| feed.next())).await,
        };
        let (batch, owners, bytes) = feed.end();
        turn.report.diffing += diffing;
        turn.report.restores += usize::from(!is_empty);
        turn.report.bytes += bytes;
        self.written(batch, turn, before, result, &owners)
    }

    /// Chains that belonged to nobody may belong to a Service port that has changed since.
    fn keep_chains(&self, round: &mut Round, changed: &[ServicePortName], plan: &Plan) {
        let Some(left) = &mut round.left_chains else { return };
        for name in changed {
            for chain in
                plan.services().get(name).into_iter().flat_map(|plan| compile::chain_names(name, plan, &round.style))
            {
                left.retain(|known| *known != chain);
            }
        }
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

    async fn write(&mut self, mut batch: Batch, turn: &mut Turn<'_>, began: Instant) -> Result<(), Interrupted> {
        turn.report.diffing += began.elapsed();
        if batch.draft.is_empty() {
            self.applied.accept(batch, turn);
            return Ok(());
        }
        let before = self.applied.doubt(&batch);
        let mut owners = Owners::default();
        let text = batch.draft.take(&mut owners, false);
        turn.report.restores += 1;
        turn.report.bytes += text.len();
        let result = self.tools.restore_text(text).await;
        self.written(batch, turn, before, result, &owners)
    }

    /// What to make of it that a batch was written.
    fn written(
        &mut self,
        batch: Batch,
        turn: &mut Turn<'_>,
        before: Trust,
        result: Result<(), RestoreError>,
        owners: &Owners,
    ) -> Result<(), Interrupted> {
        match result {
            Ok(()) => self.applied.trust = before,
            Err(RestoreError::Other(error)) => return Err(self.applied.lost(error)),
            Err(RestoreError::Refused { detail, line }) => {
                turn.report.refusals += 1;
                return Err(batch.refused(owners, detail, line));
            }
        }
        self.applied.accept(batch, turn);
        Ok(())
    }
}

/// Whether a round is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Finished,
    Unfinished,
}

impl<R: Run> Backend for Iptables<R> {
    async fn sync(&mut self, plan: &Plan, scope: &Scope) -> Result<Report, ApplyError> {
        let whole = !matches!(scope, Scope::Services(_));
        if whole || (self.applied.trust == Trust::Nothing && self.round.is_none()) {
            self.counted = (self.counters)();
        }
        let style = Arc::new(self.style(plan));
        if *scope == Scope::Audit && self.can_audit() {
            self.applied.trust = Trust::Nothing;
        }
        self.applied.forget_refused_without_plan(plan);
        let base = compile::base(&plan.node, &style);
        let mut round = match self.round.take().filter(|round| !whole && round.style == style) {
            Some(mut round) => {
                round.base = base;
                round
            }
            None => {
                let restyled = self.applied.services.values().next().is_some_and(|applied| *applied.style != *style);
                let mut round = Round::new(style, base, self.recent.clone());
                if whole {
                    let refused = std::mem::take(&mut self.applied.refused);
                    round.apart.extend(refused.into_keys().map(|name| vec![name]));
                }
                if whole || restyled || self.applied.trust != Trust::Everything {
                    round.restart(plan.services().keys().chain(self.applied.services.keys()));
                }
                round
            }
        };
        let mut first = match scope {
            Scope::Services(names) => names.iter().cloned().collect(),
            Scope::Everything | Scope::Audit => Vec::new(),
        };
        self.keep_chains(&mut round, &first, plan);
        let mut turn = Turn { plan, round: &mut round, report: Report::default() };
        let progress = loop {
            let interrupted = match self.go_on(&mut turn, &first).await {
                Ok(progress) => break progress,
                Err(interrupted) => interrupted,
            };
            first.clear();
            match interrupted {
                Interrupted::Failed(error) => return Err(error),
                Interrupted::Unlisted(error) => {
                    tracing::debug!(%error, "cannot list chains over netlink; asking the iptables programs");
                    turn.round.is_listed_by_programs = true;
                }
                Interrupted::Refused { together, suspect, reason } => {
                    turn.round.apart.retain(|group| *group != together);
                    match together.as_slice() {
                        // What seems wrong with one may be that the kernel does not hold what it is
                        // taken to hold.
                        [_] if !turn.round.has_read && !turn.round.verified => {
                            turn.round.verified = true;
                            if self.has_drifted().await? {
                                self.applied.trust = Trust::Nothing;
                            }
                            turn.round.apart.push(together);
                        }
                        [culprit] if self.applied.set_aside(culprit, &reason, &mut turn) => {}
                        // To remove it, or to leave it as it was, is refused as well.
                        [_] if !turn.round.has_read => {
                            self.applied.trust = Trust::Nothing;
                            turn.round.apart.push(together);
                        }
                        [culprit] => turn.leave_alone(culprit, reason),
                        _ => turn.round.apart.extend(split(together, suspect)),
                    }
                }
            }
            turn.round.restart(plan.services().keys().chain(self.applied.services.keys()));
        };
        let mut report = turn.report;
        if progress == Progress::Unfinished {
            report.remaining = round.remaining().max(1);
            self.round = Some(round);
        }
        report.set_aside = self.applied.refused.len();
        report.holds = self.applied.rules;
        Ok(report)
    }

    fn prefer(&mut self, recent: BTreeSet<ServiceName>) {
        self.recent = Arc::new(recent);
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
        for (i, (table, chains)) in JUMPED_FROM.into_iter().enumerate() {
            let Some(Looks { count, next }) = self.looks.get(i).copied() else { continue };
            let began = tokio::time::Instant::now();
            if !intact || next.is_some_and(|next| began < next) {
                continue;
            }
            let chain = chains.into_iter().nth(count % chains.len()).unwrap_or_default();
            intact = self.has_jumps(table, chain).await?;
            let next = Some(began + LOOK_SHARE * began.elapsed());
            self.looks.get_mut(i).into_iter().for_each(|looks| *looks = Looks { count: count.wrapping_add(1), next });
        }
        if intact {
            return Ok(Intact::Yes);
        }
        self.applied.trust = Trust::Nothing;
        Ok(Intact::No)
    }
}

/// What the first restore into an empty kernel would be, all in one.
pub fn first_input(plan: &Plan, settings: &Settings, random_fully: bool, counters: Counters) -> String {
    let style = style(&plan.node, plan.endpoints() > LARGE_CLUSTER_ENDPOINTS, settings, random_fully, counters);
    let base = diff::base_from_snapshot(&compile::base(&plan.node, &style), &mut Snapshot::new(true));
    let services =
        plan.services().iter().map(|(name, plan)| diff::service(name, None, Some(plan), &style, Part::Whole));
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
