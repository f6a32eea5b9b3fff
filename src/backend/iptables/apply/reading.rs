//! Learning from the kernel what it holds.

use std::io;

use super::super::applied::Interrupted;
use super::super::compile::{self, Shared};
use super::super::diff;
use super::super::names::ChainName;
use super::super::nft::Chains;
use super::super::round::{Listing, Round, Turn};
use super::super::ruleset::Table;
use super::Iptables;
use crate::backend::ApplyError;
use crate::command::Run;
use crate::model::ServicePortName;

impl<R: Run> Iptables<R> {
    /// Reads the nat and filter tables. The nft programs' listing takes minutes where there are many chains,
    /// so that those of Service ports are read from the kernel directly, if that is possible, and when they
    /// are to be compared.
    pub(super) async fn read_all(&mut self, round: &mut Round) -> Result<(), ApplyError> {
        let Some(chains) = self.chains.clone().filter(|_| !round.is_listed_by_programs) else {
            round.snapshot = Some(self.tools.read_all().await?);
            return Ok(());
        };
        round.snapshot = Some(self.tools.read_fixed().await?);
        self.listing = Some(tokio::task::spawn_blocking(move || own_chains(&*chains)));
        round.listing = Listing::Running;
        Ok(())
    }

    /// Waits for the names of all chains of Service ports.
    pub(super) async fn await_listing(&mut self, turn: &mut Turn<'_>) -> Result<(), Interrupted> {
        let Some(listing) = self.listing.take().filter(|_| matches!(turn.round.listing, Listing::Running)) else {
            return Ok(());
        };
        match listing.await.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(names) => turn.round.listing = Listing::Known(names),
            Err(error) => return Err(Interrupted::Unlisted(error.to_string())),
        }
        Ok(())
    }

    /// Reads the chains of these Service ports, if they are not known.
    pub(super) async fn read_own(&self, turn: &mut Turn<'_>, names: &[ServicePortName]) {
        let Round { snapshot, listing, style, .. } = &mut *turn.round;
        let (Some(chains), Some(known)) = (self.chains.clone(), snapshot.as_mut()) else { return };
        if matches!(listing, Listing::Read) {
            return;
        }
        let plans = names.iter().filter_map(|name| Some((name, self.applied.wanted(name, turn.plan)?)));
        let mut own: Vec<ChainName> = plans.flat_map(|(name, plan)| compile::chain_names(name, plan, style)).collect();
        if let Listing::Known(all) = listing {
            own.retain(|chain| all.binary_search(chain).is_ok());
            own.iter().for_each(|chain| known.declare(Table::Nat, chain.clone()));
        }
        if own.is_empty() {
            return;
        }
        let mut read = std::mem::take(known);
        let reading = tokio::task::spawn_blocking(move || {
            let result = chains.rules(&own, &mut |chain, rule| read.add_own(Table::Nat, chain.clone(), rule));
            (read, result)
        });
        match reading.await {
            Ok((read, result)) => {
                *known = read;
                if let Err(error) = result {
                    // What was not read is taken to be wrong, and written.
                    tracing::debug!(%error, "cannot read all chains over netlink");
                }
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Whether shared chains lack what they are taken to hold: then somebody else was there, and a
    /// refusal may be no fault of the Service. Chains of Service ports cannot be removed, nor all be
    /// flushed, without a trace there.
    pub(super) async fn has_drifted(&self) -> Result<bool, ApplyError> {
        // If a shared chain is missing, nothing there can be trusted.
        let Some(mut snapshot) = self.tools.read_shared().await? else { return Ok(true) };
        let tail = self.applied.base.iter().flat_map(|base| &base.tail);
        let has_tail = tail.map(ToString::to_string).all(|rule| snapshot.tick_off(Shared::NatServices, &rule));
        let mut services = self.applied.services.iter();
        Ok(!has_tail || !services.all(|(name, at)| diff::shares(name, &at.plan, &at.style, &mut snapshot)))
    }
}

/// The names of all chains of Service ports, in order. Blocks.
fn own_chains(chains: &dyn Chains) -> io::Result<Vec<ChainName>> {
    let mut own = Vec::new();
    chains.names(&mut |name| own.extend(Some(ChainName::from(name)).filter(ChainName::is_per_service)))?;
    own.sort_unstable();
    Ok(own)
}
