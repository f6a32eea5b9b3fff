//! Learning from the kernel what it holds.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::super::applied::Interrupted;
use super::super::compile::{self, Layout, Shared};
use super::super::diff;
use super::super::names::{self, ChainName};
use super::super::nft::Chains;
use super::super::round::{Listing, Round, Turn};
use super::super::ruleset::Table;
use super::super::snapshot::Snapshot;
use super::Iptables;
use crate::backend::ApplyError;
use crate::command::Run;
use crate::model::ServicePortName;

/// How long a piece of a sync waits for names of chains.
const PATIENCE: Duration = Duration::from_millis(20);

impl<R: Run> Iptables<R> {
    /// Reads the nat and filter tables. The nft programs' listing takes minutes where there are many chains,
    /// so that those of Service ports are read from the kernel directly, if that is possible, and when they
    /// are to be compared.
    pub(super) async fn read_all(&mut self, round: &mut Round) -> Result<(), ApplyError> {
        let Some(chains) = self.chains.clone().filter(|_| !round.is_listed_by_programs) else {
            round.snapshot = Some(self.tools.read_all().await?);
            return Ok(());
        };
        // The one that is big, and is never empty.
        let fixed = self.tools.read_fixed(|shared| *shared != Shared::NatServices).await?;
        let services = vec![Shared::NatServices.chain()];
        let (mut snapshot, mut result) = self.read_chains(fixed, chains.clone(), services).await?;
        if result.is_ok() && round.style.layout.or(snapshot.layout()).bucketed_services {
            (snapshot, result) = self.read_chains(snapshot, chains.clone(), dispatch()).await?;
        }
        if let Err(error) = result {
            tracing::debug!(%error, "cannot read chains over netlink; asking the iptables programs");
            round.snapshot = Some(self.tools.read_all().await?);
            return Ok(());
        }
        round.snapshot = Some(snapshot);
        self.listing = Some(tokio::task::spawn_blocking(move || own_chains(&*chains)));
        round.listing = Listing::Running;
        Ok(())
    }

    /// Reads the shared chains of a layout; `None` if one is missing.
    pub(super) async fn read_shared(&self, layout: Layout) -> Result<Option<Snapshot>, ApplyError> {
        let Some(chains) = self.chains.clone().filter(|_| layout.bucketed_services) else {
            return self.tools.read_shared(layout).await;
        };
        // The programs would have to be run for each part of the addresses.
        let others = Layout { bucketed_services: false, ..layout };
        let Some(snapshot) = self.tools.read_shared(others).await? else { return Ok(None) };
        let listing = chains.clone();
        let names = tokio::task::spawn_blocking(move || own_chains(&*listing)).await;
        let names = names.unwrap_or_else(|panic| Err(panic.into()));
        let is_there = |shared: &Shared, names: &[ChainName]| names.binary_search(&shared.chain()).is_ok();
        let buckets = || Shared::of(layout).filter(|shared| !shared.is_of(others));
        let all = match names {
            Ok(names) if !buckets().all(|shared| is_there(&shared, &names)) => return Ok(None),
            names => names.map(|_| buckets().map(Shared::chain).collect()),
        };
        match all {
            Ok(all) => {
                if let (snapshot, Ok(())) = self.read_chains(snapshot, chains, all).await? {
                    return Ok(Some(snapshot));
                }
            }
            Err(error) => tracing::debug!(%error, "cannot list chains over netlink; asking the iptables programs"),
        }
        self.tools.read_shared(layout).await
    }

    /// Reads these chains of the nat table.
    async fn read_chains(
        &self,
        mut snapshot: Snapshot,
        chains: Arc<dyn Chains>,
        names: Vec<ChainName>,
    ) -> Result<(Snapshot, io::Result<()>), ApplyError> {
        let reading = tokio::task::spawn_blocking(move || {
            let mut unclear = BTreeSet::new();
            let result = chains.rules(&names, &mut |chain, rule| {
                let Some(shared) = Shared::named(Table::Nat, chain.as_str()) else {
                    return snapshot.add_own(Table::Nat, chain.clone(), rule);
                };
                snapshot.declare(Table::Nat, chain.clone());
                match rule {
                    Some(rule) => snapshot.rule(Table::Nat, chain.as_str(), rule),
                    None => _ = unclear.insert(shared),
                }
            });
            (snapshot, unclear, result)
        });
        let (mut snapshot, unclear, result) = match reading.await {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        // A rule is taken out of a shared chain by its text.
        for shared in unclear {
            snapshot.forget(shared);
            snapshot.begin(shared.table());
            self.tools.list(shared.table(), shared.chain().as_str(), &mut |line| snapshot.line(line)).await?;
        }
        Ok((snapshot, result))
    }

    /// Waits for the names of all chains of Service ports, but no longer than what has changed meanwhile may
    /// have to wait: false if they are still being listed.
    pub(super) async fn await_listing(&mut self, turn: &mut Turn<'_>) -> Result<bool, Interrupted> {
        if !matches!(turn.round.listing, Listing::Running) {
            self.listing = None;
            return Ok(true);
        }
        let Some(listing) = &mut self.listing else { return Ok(true) };
        let Ok(names) = tokio::time::timeout(PATIENCE, &mut *listing).await else { return Ok(false) };
        self.listing = None;
        match names.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(names) => turn.round.listing = Listing::Known(names),
            Err(error) => return Err(Interrupted::Unlisted(error.to_string())),
        }
        Ok(true)
    }

    /// Reads the chains of these Service ports, if they are not known.
    pub(super) async fn read_own(&self, turn: &mut Turn<'_>, names: &[ServicePortName]) -> Result<(), ApplyError> {
        let Round { snapshot, listing, style, .. } = &mut *turn.round;
        let (Some(chains), Some(known)) = (self.chains.clone(), snapshot.as_mut()) else { return Ok(()) };
        if matches!(listing, Listing::Read) {
            return Ok(());
        }
        let plans = names.iter().filter_map(|name| Some((name, self.applied.wanted(name, turn.plan)?)));
        let mut own: Vec<ChainName> = plans.flat_map(|(name, plan)| compile::chain_names(name, plan, style)).collect();
        if let Listing::Known(all) = listing {
            own.retain(|chain| all.binary_search(chain).is_ok());
            own.iter().for_each(|chain| known.declare(Table::Nat, chain.clone()));
        }
        if own.is_empty() {
            return Ok(());
        }
        let (read, result) = self.read_chains(std::mem::take(known), chains, own).await?;
        *known = read;
        if let Err(error) = result {
            // What was not read is taken to be wrong, and written.
            tracing::debug!(%error, "cannot read all chains over netlink");
        }
        Ok(())
    }

    /// Whether shared chains lack what they are taken to hold: then somebody else was there, and a
    /// refusal may be no fault of the Service. Chains of Service ports cannot be removed, nor all be
    /// flushed, without a trace there.
    pub(super) async fn has_drifted(&self) -> Result<bool, ApplyError> {
        // If a shared chain is missing, nothing there can be trusted.
        let Some(mut snapshot) = self.read_shared(self.settings.layout).await? else { return Ok(true) };
        let fixed = self.applied.base.iter().flat_map(|base| base.head().into_iter().chain(base.tail.iter().cloned()));
        let has_tail = fixed.map(|rule| rule.to_string()).all(|rule| snapshot.tick_off(Shared::NatServices, &rule));
        let mut services = self.applied.services.iter();
        Ok(!has_tail || !services.all(|(name, at)| diff::shares(name, &at.plan, &at.style, &mut snapshot)))
    }
}

/// The chains that split KUBE-SERVICES by address.
fn dispatch() -> Vec<ChainName> {
    (0..16).map(names::addresses_by_digit).chain((0..=u8::MAX).map(names::addresses_by_byte)).collect()
}

/// The names of all chains of Service ports, in order. Blocks.
fn own_chains(chains: &dyn Chains) -> io::Result<Vec<ChainName>> {
    let mut own = Vec::new();
    chains.names(&mut |name| own.extend(Some(ChainName::from(name)).filter(ChainName::is_per_service)))?;
    own.sort_unstable();
    Ok(own)
}
