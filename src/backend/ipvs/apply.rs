//! Bringing the kernel to a Plan: the part of ipvs mode that does IO.
//!
//! What comes, comes in this order: entries of sets, rules that restrict, addresses, virtual and real servers, rules that
//! lead there. What goes, goes in the opposite one. So no packet meets a virtual server that somebody may use who must
//! not, and when another mode ran before, its rules serve until virtual servers do.

mod checking;
mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::compare::{self, Found};
use super::compile::{Style, glue, guard};
use super::diff::{self, Asked, Difference, ServerChange};
use super::drain::Draining;
use super::link::Link;
use super::names;
use super::netlink::{self, Address};
use super::rules::{Chains, Standing, TABLES};
use super::ruleset::{Entry, Set, Sets};
use super::servers::{self, Failures};
use super::sets::{self, Input};
use crate::backend::iptables::diff::Changes;
use crate::backend::iptables::restore::Input as RulesInput;
use crate::backend::iptables::ruleset::Table;
use crate::backend::iptables::tools::{RestoreError, Tools};
use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::command::{Command, Run};
use crate::model::ServicePortName;
use crate::net::IpFamily;
use crate::plan::{NodePlan, Plan};

pub use self::reading::{ask_ipset, saved_sets};

/// Entries that the kernel may refuse in one sync before it is given up.
const REFUSALS_MAX: usize = 256;

/// So long a datagram that is under way has to be answered, before its real server is removed: the kernel forgets all
/// flows to that at once (Linux 5.9 and later), and no answer would find its way any more.
const ANSWERS: Duration = Duration::from_millis(100);

/// Settings of ipvs mode.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How all this is compiled.
    pub style: Style,
    /// Virtual servers in these networks that nobody asks for are not ours to remove.
    pub excluded: Vec<IpNet>,
    /// The longest time that a real server stays for its connections.
    pub drain: Duration,
}

/// ipvs mode in one IP family.
pub struct VirtualServers<R> {
    family: IpFamily,
    run: R,
    tools: Tools<R>,
    settings: Settings,
    /// The kernel's table, unless it is lent.
    table: Option<netlink::Ipvs>,
    link: Option<Link>,
    /// What the kernel was told.
    asked: Asked,
    /// What stands there of rules.
    standing: Standing,
    /// Whether the kernel is known to hold that, but for what is in doubt.
    is_known: bool,
    /// Virtual servers about which something could not be done.
    doubts: BTreeSet<Address>,
    /// Service ports that are set aside.
    refused: BTreeMap<ServicePortName, String>,
    draining: Draining,
    /// From when on draining counts.
    start: Instant,
    /// Where the next look at real servers begins.
    next_look: usize,
}

/// What is to be done, and what held before.
struct Step {
    changes: diff::Changes,
    /// Sets that had entries.
    used: Sets,
    /// Whether what rules depend on besides these may have changed.
    rules: bool,
}

/// When rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What comes, in one table. Single rules that go stay.
    Coming(Table),
    /// When everything else is done.
    Last,
}

// === impl VirtualServers ===

impl<R: Run + Clone> VirtualServers<R> {
    /// ipvs mode with these iptables programs; `run` runs `ipset`.
    pub fn new(run: R, tools: Tools<R>, family: IpFamily, settings: Settings) -> VirtualServers<R> {
        let draining = Draining::new(settings.drain);
        VirtualServers {
            family,
            run,
            tools,
            table: None,
            link: None,
            asked: Asked::new(Arc::new(NodePlan::unknown(family)), settings.style),
            standing: Standing::default(),
            is_known: false,
            doubts: BTreeSet::new(),
            refused: BTreeMap::new(),
            draining,
            start: Instant::now(),
            next_look: 0,
            settings,
        }
    }

    async fn try_sync(&mut self, plan: &Plan, scope: &Scope, report: &mut Report) -> Result<(), ApplyError> {
        let began = Instant::now();
        let everything = !matches!(scope, Scope::Services(_));
        let anew = !self.is_known || *scope == Scope::Audit || everything && !self.refused.is_empty();
        if everything {
            self.refused.clear();
        }
        let mut step = Step { changes: diff::Changes::default(), used: self.asked.used(), rules: true };
        if anew {
            let found = self.read(report).await?;
            let asked = self.ask_anew(plan);
            step.used = found.entries.iter().map(|(set, _)| *set).collect();
            step.changes = found.changes(&asked, &self.settings.excluded);
            let foreign = found.foreign(&asked).count();
            if foreign > 0 && !self.is_known {
                tracing::info!(family = %self.family, foreign, "virtual servers of others are left alone");
            }
            self.asked = asked;
            self.doubts.clear();
        } else if self.asked.node() != &plan.node {
            let asked = self.ask_anew(plan);
            step.changes = Found::told(&self.asked).changes(&asked, &[]);
            self.asked = asked;
        } else {
            step.changes = match scope {
                Scope::Services(names) => {
                    self.refused.retain(|name, _| !names.contains(name));
                    self.asked.set(names.iter().map(|name| (name, plan.services().get(name))))
                }
                Scope::Everything | Scope::Audit => {
                    let gone: Vec<ServicePortName> =
                        self.asked.names().filter(|name| !plan.services().contains_key(name)).cloned().collect();
                    let wanted = plan.services().iter().map(|(name, plan)| (name, Some(plan)));
                    self.asked.set(wanted.chain(gone.iter().map(|name| (name, None))))
                }
            };
            step.rules = step.changes.guards != Difference::default();
        }
        self.settle_doubts(&mut step.changes).await?;
        report.diffing += began.elapsed();
        report.written += self.ports_of(&step.changes);
        self.is_known = true;
        self.perform(step, report).await?;
        report.set_aside = self.refused.len();
        Ok(())
    }

    fn ask_anew(&self, plan: &Plan) -> Asked {
        let mut asked = Asked::new(plan.node.clone(), self.settings.style);
        asked.set(plan.services().iter().map(|(name, plan)| (name, Some(plan))));
        asked
    }

    /// Looks at virtual servers in doubt that are to be changed.
    async fn settle_doubts(&mut self, changes: &mut diff::Changes) -> Result<(), ApplyError> {
        let changed = changes.servers.iter().map(ServerChange::address);
        let due: BTreeSet<Address> = changed.filter(|address| self.doubts.contains(address)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let looked = due.clone();
        let found = self
            .with_table(move |table, _| {
                let mut found = BTreeMap::new();
                for server in table.virtual_servers()?.into_iter().filter(|server| looked.contains(&server.address)) {
                    found.extend(servers::read_one(table, server)?.map(|there| (server.address, there)));
                }
                Ok::<_, netlink::Error>(found)
            })
            .await??;
        changes.servers.retain(|change| !due.contains(&change.address()));
        for address in due {
            let there = found.get(&address);
            changes.servers.extend(match self.asked.server(address) {
                Some(wanted) => compare::change(there, wanted),
                None => there.map(|_| ServerChange::Remove(address)),
            });
            self.doubts.remove(&address);
        }
        Ok(())
    }

    /// How many Service ports changes are about.
    fn ports_of(&self, changes: &diff::Changes) -> usize {
        let owners: BTreeSet<_> =
            changes.servers.iter().filter_map(|change| self.asked.owner(change.address())).collect();
        owners.len()
    }

    async fn perform(&mut self, step: Step, report: &mut Report) -> Result<(), ApplyError> {
        let Step { mut changes, used, rules } = step;
        // Mostly the rules have no part in it, and they may be many.
        let rules = rules || used != self.asked.used();
        let passing = if rules { self.chains(used | self.asked.used()) } else { Chains::new() };

        let mut input = Input::default();
        input.add(self.family, &changes.entries.add);
        let refused = self.write_sets(input, report).await?;
        self.set_entries_aside(refused, &mut changes, report);
        self.write_rules(&passing, Phase::Coming(Table::Filter), report).await?;
        for ip in &changes.addresses.add {
            self.link().await?.add(*ip).await?;
        }
        let changes = Arc::new(changes);
        let raised = changes.clone();
        let failures = self.with_table(move |table, draining| servers::raise(table, draining, &raised.servers)).await?;
        let failed: BTreeSet<Address> = failures.keys().copied().collect();
        self.set_servers_aside(failures, report);
        self.write_rules(&passing, Phase::Coming(Table::Nat), report).await?;

        let (lowered, now) = (changes.clone(), self.start.elapsed());
        let (failures, leaving) = self
            .with_table(move |table, draining| {
                let rest: Vec<ServerChange> =
                    lowered.servers.iter().filter(|change| !failed.contains(&change.address())).cloned().collect();
                servers::lower(table, draining, &rest, now)
            })
            .await?;
        self.set_servers_aside(failures, report);
        for ip in &changes.addresses.remove {
            self.link().await?.remove(*ip).await?;
        }
        let last = if rules { self.chains(self.asked.used()) } else { Chains::new() };
        self.write_rules(&last, Phase::Last, report).await?;
        if rules {
            self.standing.keep(&last);
        }
        let mut input = Input::default();
        input.remove(self.family, &changes.entries.remove);
        for (set, entry) in self.write_sets(input, report).await?.into_keys() {
            tracing::warn!(family = %self.family, set = set.name(self.family), %entry, "an entry stays");
            self.is_known = false;
        }
        if !leaving.is_empty() {
            tokio::time::sleep(ANSWERS).await;
            let failures = self.with_table(move |table, _| servers::remove(table, &leaving)).await?;
            self.set_servers_aside(failures, report);
        }
        Ok(())
    }

    /// All chains, if these sets have entries.
    fn chains(&self, used: Sets) -> Chains {
        let mut chains = glue(self.asked.node(), &self.settings.style, used);
        let guards = self.asked.guards().into_iter().map(guard).collect();
        chains.push((Table::Filter, names::OUT_FILTER, guards));
        chains
    }

    async fn write_rules(&mut self, chains: &Chains, phase: Phase, report: &mut Report) -> Result<(), ApplyError> {
        let changes = match phase {
            Phase::Coming(table) => Changes { delete: Vec::new(), ..self.standing.changes(chains, &[table]) },
            Phase::Last => self.standing.changes(chains, &TABLES),
        };
        if changes.is_empty() {
            return Ok(());
        }
        let input = RulesInput::render(std::iter::once(&changes)).text;
        report.restores += 1;
        report.bytes += input.len();
        match self.tools.restore_text(input).await {
            Ok(()) => {
                self.standing.take(changes);
                Ok(())
            }
            Err(RestoreError::Other(error)) => Err(error),
            Err(RestoreError::Refused { detail, .. }) => {
                report.refusals += 1;
                let program = "iptables-restore of rules for virtual servers".to_owned();
                Err(ApplyError::Failed { program, detail })
            }
        }
    }

    /// Changes sets; entries that the kernel refuses are left out, and given with its words.
    async fn write_sets(
        &self,
        mut input: Input,
        report: &mut Report,
    ) -> Result<BTreeMap<(Set, Entry), String>, ApplyError> {
        let mut refused = BTreeMap::new();
        while !input.is_empty() {
            let mut command = Command::new("ipset", &["restore", "-exist"]);
            command.stdin = input.text().into_bytes();
            report.restores += 1;
            report.bytes += command.stdin.len();
            let output = self.run.run(command, &mut |_| {}).await?;
            if output.success() {
                break;
            }
            report.refusals += 1;
            let failed = || ApplyError::Failed { program: "ipset restore".into(), detail: output.complaint().into() };
            let line = sets::line_of(&output.stderr).filter(|_| refused.len() < REFUSALS_MAX).ok_or_else(failed)?;
            let (entry, rest) = input.after(line).ok_or_else(failed)?;
            let said = output.complaint();
            let reason = said.split_once(": ").map_or(said, |(_, reason)| reason);
            refused.insert(entry, reason.to_owned());
            input = rest;
        }
        Ok(refused)
    }

    /// Service ports of which a set does not take an entry keep what they have: without it, somebody might use them
    /// who must not.
    fn set_entries_aside(
        &mut self,
        refused: BTreeMap<(Set, Entry), String>,
        changes: &mut diff::Changes,
        report: &mut Report,
    ) {
        if refused.is_empty() {
            return;
        }
        let entries: BTreeSet<(Set, Entry)> = refused.keys().copied().collect();
        let mut aside = Vec::new();
        for ((set, entry), reason) in &refused {
            let one = BTreeSet::from([(*set, *entry)]);
            let detail = format!("set {} does not take {entry}: {reason}", set.name(self.family));
            aside.extend(self.asked.askers(&one).map(|name| (name.clone(), detail.clone())));
        }
        let addresses: BTreeSet<Address> =
            self.asked.askers(&entries).flat_map(|name| self.asked.addresses_of(name)).collect();
        changes.servers.retain(|change| !addresses.contains(&change.address()));
        self.doubts.extend(addresses);
        for (name, reason) in aside {
            self.set_aside(name, reason, report);
        }
        // What the set lacks is looked for with the next sync about everything.
        self.asked.forget(&entries);
    }

    fn set_servers_aside(&mut self, failures: Failures, report: &mut Report) {
        for (address, error) in failures {
            self.doubts.insert(address);
            report.refusals += 1;
            match self.asked.owner(address).cloned() {
                Some(name) => self.set_aside(name, error.to_string(), report),
                None => {
                    tracing::warn!(family = %self.family, %error, "a virtual server nobody asks for stays");
                    self.is_known = false;
                }
            }
        }
    }

    fn set_aside(&mut self, name: ServicePortName, reason: String, report: &mut Report) {
        if self.refused.insert(name.clone(), reason.clone()).is_none() {
            report.refused.push((name, reason));
        }
    }

    async fn link(&mut self) -> Result<&Link, ApplyError> {
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::ensure().await?,
        };
        Ok(self.link.insert(link))
    }

    /// Does something with the kernel's table, on a thread that may block.
    async fn with_table<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut netlink::Ipvs, &mut Draining) -> T + Send + 'static,
    ) -> Result<T, ApplyError> {
        let lent = self.table.take();
        let mut draining = std::mem::replace(&mut self.draining, Draining::new(self.settings.drain));
        let task = tokio::task::spawn_blocking(move || {
            let table = lent.map_or_else(netlink::Ipvs::open, Ok);
            let (table, result) = match table {
                Ok(mut table) => {
                    let result = work(&mut table, &mut draining);
                    (Some(table), Ok(result))
                }
                Err(error) => (None, Err(error)),
            };
            (table, draining, result)
        });
        let lost =
            |error: tokio::task::JoinError| ApplyError::Failed { program: "IPVS".into(), detail: error.to_string() };
        let (table, draining, result) = task.await.map_err(lost)?;
        (self.table, self.draining) = (table, draining);
        Ok(result?)
    }
}

impl<R: Run + Clone> Backend for VirtualServers<R> {
    async fn sync(&mut self, plan: &Plan, scope: &Scope) -> Result<Report, ApplyError> {
        let mut report = Report::default();
        let result = self.try_sync(plan, scope, &mut report).await;
        if result.is_err() {
            self.is_known = false;
        }
        result.map(|()| report)
    }

    async fn check(&mut self) -> Result<Intact, ApplyError> {
        if !self.is_known {
            return Ok(Intact::No);
        }
        self.tend().await?;
        let intact = self.is_intact().await?;
        self.is_known = intact;
        Ok(if intact { Intact::Yes } else { Intact::No })
    }
}

impl From<netlink::Error> for ApplyError {
    fn from(error: netlink::Error) -> ApplyError {
        ApplyError::Failed { program: "IPVS".to_owned(), detail: error.to_string() }
    }
}
