//! Bringing the kernel to a Plan: the part of nftables mode that does IO.
//!
//! First the rules, which are few; then elements, the most important Services first, in transactions of bounded size.
//! Where there are rules of somebody else in the table, such as kube-proxy's, ours come last: those serve until all
//! elements are there.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compile::{Base, Style, base};
use super::diff::{Change, Held};
use super::kernel::{Command, Refused, Table, Transaction};
use super::queue::Queue;
use super::render::Script;
use super::ruleset::{Element, Set};
use super::watch::Watch;
use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::command::{self, Run};
use crate::model::{ServiceName, ServicePortName};
use crate::net::IpFamily;
use crate::plan::{NodePlan, Plan, ServicePlan};

/// A transaction shall not take longer than this: connections wait for none, but other writers of the kernel's tables do.
const LONG: Duration = Duration::from_millis(100);
/// Elements of the first transaction, and the least and most that are put into one.
const AT_ONCE: usize = 2_000;
const AT_ONCE_MIN: usize = 250;
const AT_ONCE_MAX: usize = 8_000;

/// nftables mode in one IP family.
pub struct Maps<R> {
    family: IpFamily,
    run: R,
    style: Style,
    watch: Watch,
    /// The kernel's table, unless it is lent.
    table: Option<Table>,
    held: Held,
    /// What was written besides elements.
    written: Option<Written>,
    /// Whether the rules of the table are somebody else's.
    is_foreign: bool,
    is_known: bool,
    /// Whether all elements are there and what is too much is gone.
    is_settled: bool,
    queue: Queue,
    at_once: usize,
    /// Service ports that are set aside.
    refused: BTreeMap<ServicePortName, String>,
    /// Service ports whose elements were not what they were taken to be: once is not their fault.
    suspects: BTreeSet<ServicePortName>,
    /// Sets that were there before, and may have nobody who needs them.
    passing: BTreeSet<Set>,
    /// Chains of others that could not be removed yet.
    foreign_chains: Vec<String>,
}

/// What is in the table besides elements, and from what it follows.
struct Written {
    node: Arc<NodePlan>,
    timeouts: BTreeSet<u32>,
    base: Base,
}

// === impl Maps ===

impl<R: Run + Clone> Maps<R> {
    /// nftables mode; `run` runs `nft`, `watch` hears of what others do.
    pub fn new(run: R, family: IpFamily, style: Style, watch: Watch) -> Maps<R> {
        Maps {
            family,
            run,
            style,
            watch,
            table: None,
            held: Held::default(),
            written: None,
            is_foreign: false,
            is_known: false,
            is_settled: false,
            queue: Queue::default(),
            at_once: AT_ONCE,
            refused: BTreeMap::new(),
            suspects: BTreeSet::new(),
            passing: BTreeSet::new(),
            foreign_chains: Vec::new(),
        }
    }

    async fn try_sync(&mut self, plan: &Plan, scope: &Scope, report: &mut Report) -> Result<(), ApplyError> {
        let began = Instant::now();
        let is_everything = !matches!(scope, Scope::Services(_));
        match scope {
            Scope::Services(names) => {
                self.refused.retain(|name, _| !names.contains(name));
                self.queue.put_first(names);
            }
            Scope::Everything | Scope::Audit => self.refused.clear(),
        }
        if self.watch.take_disturbed(self.family) || *scope == Scope::Audit {
            self.is_known = false;
        }
        if !self.is_known {
            self.adopt(plan).await?;
        } else if is_everything {
            self.queue.extend(plan.services().keys());
            let gone: Vec<_> = self.held.names().filter(|name| !plan.services().contains_key(*name)).cloned().collect();
            self.queue.extend(&gone);
        }
        self.is_settled = false;
        let names = self.queue.next(plan, self.at_once);
        report.diffing += began.elapsed();
        self.write_base(plan, &names, report).await?;
        if !names.is_empty() {
            self.write_services(plan, &names, report).await?;
        }
        if self.is_known && self.queue.is_empty() {
            self.settle(plan, report).await?;
        }
        report.remaining = if self.is_settled { 0 } else { self.queue.len().max(1) };
        report.set_aside = self.refused.len();
        Ok(())
    }

    /// Takes over what is there.
    async fn adopt(&mut self, plan: &Plan) -> Result<(), ApplyError> {
        let found = self.with_table(table::read).await??;
        for name in &found.misshapen {
            tracing::warn!(family = %self.family, set = %name, "not made as ours of that name is; the table is made anew");
        }
        let is_there = found.is_there && found.misshapen.is_empty();
        if found.is_there && !is_there {
            let family = self.family;
            self.with_table(move |table| {
                let mut transaction = Transaction::new(family);
                transaction.delete_table();
                table.commit(transaction)
            })
            .await??;
        }
        self.is_foreign = is_there && !found.is_ours;
        self.foreign_chains = if is_there { found.foreign_chains } else { Vec::new() };
        self.passing = if is_there { found.passing } else { BTreeSet::new() };
        self.held = Held::of(if is_there { found.elements } else { Vec::new() });
        for name in self.refused.keys() {
            if let Some(plan) = plan.services().get(name) {
                self.held.leave_alone(name, plan);
            }
        }
        self.written = None;
        self.queue.clear();
        self.queue.extend(plan.services().keys().filter(|name| !self.refused.contains_key(*name)));
        let port = self.with_table(Table::port).await??;
        self.watch.add_own(port);
        self.is_known = true;
        Ok(())
    }

    /// Writes rules, and sets for what these Service ports need.
    async fn write_base(
        &mut self,
        plan: &Plan,
        names: &[ServicePortName],
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let mut timeouts = self.held.timeouts();
        let plans = names.iter().filter_map(|name| plan.services().get(name));
        timeouts.extend(plans.filter_map(|plan| plan.affinity_seconds));
        // What goes, goes when elements have gone.
        timeouts.extend(self.written.iter().flat_map(|written| &written.timeouts));
        self.write(&plan.node, timeouts, report).await
    }

    async fn write(
        &mut self,
        node: &Arc<NodePlan>,
        timeouts: BTreeSet<u32>,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        if self.written.as_ref().is_some_and(|written| written.node == *node && written.timeouts == timeouts) {
            return Ok(());
        }
        let base = base(node, &self.style, &timeouts);
        // The kernel goes through all elements of a map for each new rule that asks it: those that are right stay.
        let standing = self.standing(&base).await?;
        let mut transaction = Transaction::new(self.family);
        let differ = base.netlink_chains.iter().filter(|chain| !standing.contains(&chain.name));
        differ.for_each(|chain| transaction.rewrite_chain(chain));
        self.feed(&base, report).await?;
        let before = self.written.take();
        if let Some(refusal) = self.commit(transaction, report).await?.into_iter().next() {
            let program = "nf_tables, asked for rules that choose endpoints,".to_owned();
            return Err(ApplyError::Failed { program, detail: refusal.to_string() });
        }
        self.passing.extend(before.into_iter().flat_map(|before| before.base.sets));
        self.written = Some(Written { node: node.clone(), timeouts, base });
        Ok(())
    }

    /// Which of the chains that `nft` cannot read are as they shall be.
    async fn standing(&mut self, base: &Base) -> Result<BTreeSet<String>, ApplyError> {
        if let Some(written) = &self.written {
            let same = written.base.netlink_chains.iter().filter(|chain| base.netlink_chains.contains(chain));
            return Ok(same.map(|chain| chain.name.clone()).collect());
        }
        let chains = base.netlink_chains.clone();
        Ok(self.with_table(move |table| table.standing(&chains)).await??)
    }

    /// Has `nft` write what it can read; beside rules of others, only sets.
    async fn feed(&mut self, base: &Base, report: &mut Report) -> Result<(), ApplyError> {
        let mut script = Script::new(self.family);
        if self.is_foreign {
            script.sets(&base.sets);
            script.declare(&base.netlink_chains);
        } else {
            script.base(base);
            // Without rules, it is told from what others do by taking nothing away.
            self.watch.expect(self.family);
        }
        let input = script.into_text().into_bytes();
        report.restores += 1;
        report.bytes += input.len();
        let command = command::Command::new("nft", &["-f", "-"]).with_stdin(input);
        let failed = match self.run.run(command, &mut |_| {}).await {
            Ok(output) if output.success() => return Ok(()),
            Ok(output) => {
                report.refusals += 1;
                let detail = output.complaint().to_owned();
                ApplyError::Failed { program: "nft -f -".to_owned(), detail }
            }
            Err(error) => error.into(),
        };
        self.watch.expect_no_more(self.family);
        Err(failed)
    }

    async fn write_services(
        &mut self,
        plan: &Plan,
        names: &[ServicePortName],
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let began = Instant::now();
        let wanted: Vec<(&ServicePortName, Option<&Arc<ServicePlan>>)> =
            names.iter().map(|name| (name, plan.services().get(name))).collect();
        let changes = self.held.set(wanted);
        let mut transaction = Transaction::new(self.family);
        for (i, change) in changes.iter().enumerate() {
            transaction.elements_of(Command::Remove, &change.remove, Some(&change.name), i);
        }
        for (i, change) in changes.iter().enumerate() {
            transaction.elements_of(Command::Add, &change.add, Some(&change.name), i);
        }
        report.diffing += began.elapsed();
        let refused = self.commit(transaction, report).await?;
        if refused.is_empty() {
            report.written += changes.len();
            self.suspects.clear();
            return self.settle_clients(&changes, report).await;
        }
        report.refusals += 1;
        for refusal in refused {
            let Some(Change { name, .. }) = changes.get(refusal.owner) else { continue };
            if refusal.shows_drift() && self.suspects.insert(name.clone()) {
                tracing::debug!(family = %self.family, service = %name, %refusal, "elements are not what they were; reading them");
            } else {
                let reason = refusal.to_string();
                if self.refused.insert(name.clone(), reason.clone()).is_none() {
                    report.refused.push((name.clone(), reason));
                }
            }
        }
        // Nothing of it happened. What the kernel holds is read again, and the others go on without those.
        self.is_known = false;
        Ok(())
    }

    /// All Service ports have what they shall have: what is too much goes.
    async fn settle(&mut self, plan: &Plan, report: &mut Report) -> Result<(), ApplyError> {
        if self.is_foreign {
            // Now that all is there, our rules take the place of others.
            self.is_foreign = false;
            self.written = None;
        }
        self.write(&plan.node, self.held.timeouts(), report).await?;
        let left = self.held.take_leftovers();
        if !left.is_empty() {
            tracing::info!(family = %self.family, elements = left.len(), "removing elements that nobody asks for");
            for part in left.chunks(self.at_once) {
                let mut transaction = Transaction::new(self.family);
                transaction.elements_of(Command::Remove, part, None, 0);
                self.clean(transaction, "elements that nobody asks for stay", report).await?;
            }
            self.clear_clients(report).await?;
        }
        let mut transaction = Transaction::new(self.family);
        let needed = |set: &Set| self.written.as_ref().is_some_and(|written| written.base.sets.contains(set));
        let gone = self.passing.iter().filter(|set| !needed(set));
        gone.for_each(|set| transaction.delete_set(&set.name()));
        self.passing.clear();
        self.clean(transaction, "sets that nobody asks stay", report).await?;
        if !self.foreign_chains.is_empty() {
            let (family, chains) = (self.family, std::mem::take(&mut self.foreign_chains));
            self.foreign_chains = self.with_table(move |table| table::remove_foreign(table, family, chains)).await??;
            report.cleanup_failures += usize::from(!self.foreign_chains.is_empty());
        }
        self.is_settled = true;
        Ok(())
    }

    /// Takes away what nobody needs any more. If it cannot be had, that does no harm.
    async fn clean(&mut self, transaction: Transaction, stays: &str, report: &mut Report) -> Result<(), ApplyError> {
        let refused = self.commit(transaction, report).await?;
        report.cleanup_failures += usize::from(!refused.is_empty());
        for refusal in refused {
            tracing::warn!(family = %self.family, %refusal, "{stays}");
        }
        Ok(())
    }

    /// Clients are with endpoints that are gone: they are forgotten, so that they get others.
    async fn settle_clients(&mut self, changes: &[Change], report: &mut Report) -> Result<(), ApplyError> {
        if changes.iter().any(|change| change.is_unsettled) { self.clear_clients(report).await } else { Ok(()) }
    }

    async fn clear_clients(&mut self, report: &mut Report) -> Result<(), ApplyError> {
        let clients = self.with_table(|table| table.elements(Set::Clients)).await??;
        let stale = self.held.stale_clients(clients.into_iter().map(|(client, _)| client));
        for part in stale.chunks(self.at_once) {
            // One that has ended meanwhile must not keep the others.
            let mut rest: Vec<Element> = part.to_vec();
            while !rest.is_empty() {
                let mut transaction = Transaction::new(self.family);
                for (i, client) in rest.iter().enumerate() {
                    transaction.elements_of(Command::Remove, &[*client], None, i);
                }
                let refused: BTreeSet<usize> =
                    self.commit(transaction, report).await?.into_iter().map(|refusal| refusal.owner).collect();
                if refused.is_empty() {
                    break;
                }
                let mut i = 0..;
                rest.retain(|_| i.next().is_some_and(|i| !refused.contains(&i)));
            }
        }
        Ok(())
    }

    /// Does a transaction, and learns from the time it takes how much to put into the next.
    async fn commit(&mut self, transaction: Transaction, report: &mut Report) -> Result<Vec<Refused>, ApplyError> {
        let elements = transaction.elements();
        if transaction.is_empty() {
            return Ok(Vec::new());
        }
        report.restores += 1;
        let (took, refused) = self
            .with_table(move |table| {
                let began = Instant::now();
                let refused = table.commit(transaction);
                (began.elapsed(), refused)
            })
            .await?;
        tracing::trace!(family = %self.family, elements, ?took, "transaction");
        if took > LONG {
            self.at_once = (self.at_once / 2).max(AT_ONCE_MIN);
        } else if took < LONG / 4 && elements >= self.at_once {
            self.at_once = (self.at_once * 2).min(AT_ONCE_MAX);
        }
        Ok(refused?)
    }

    /// Does something with the kernel's table, on a thread that may block.
    async fn with_table<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Table) -> T + Send + 'static,
    ) -> Result<T, ApplyError> {
        let mut table = self.table.take().unwrap_or_else(|| Table::new(self.family));
        let task = tokio::task::spawn_blocking(move || {
            let done = work(&mut table);
            (table, done)
        });
        let lost = |error: tokio::task::JoinError| ApplyError::Failed {
            program: "nf_tables".into(),
            detail: error.to_string(),
        };
        let (table, done) = task.await.map_err(lost)?;
        self.table = Some(table);
        Ok(done)
    }
}

impl<R: Run + Clone> Backend for Maps<R> {
    async fn sync(&mut self, plan: &Plan, scope: &Scope) -> Result<Report, ApplyError> {
        let mut report = Report::default();
        let result = self.try_sync(plan, scope, &mut report).await;
        if result.is_err() {
            self.is_known = false;
        }
        result.map(|()| report)
    }

    fn prefer(&mut self, recent: BTreeSet<ServiceName>) {
        self.queue.prefer(recent);
    }

    async fn check(&mut self) -> Result<Intact, ApplyError> {
        match self.is_known && !self.watch.is_disturbed(self.family) {
            true => Ok(Intact::Yes),
            false => Ok(Intact::No),
        }
    }
}

impl From<io::Error> for ApplyError {
    fn from(error: io::Error) -> ApplyError {
        ApplyError::Failed { program: "nf_tables".to_owned(), detail: error.to_string() }
    }
}
