//! Looking whether the kernel still holds what it was told.

use std::collections::BTreeMap;

use super::super::netlink::{Error, Ipvs, RealServer, VirtualServer};
use super::super::ruleset::Set;
use super::super::servers;
use super::super::sets::Sizes;
use super::{VirtualServers, ask_ipset};
use crate::backend::ApplyError;
use crate::command::Run;
use crate::net::IpFamily;

/// Virtual servers whose real ones are looked at in one check: all of them in turn.
const LOOKED_AT: usize = 500;

impl<R: Run + Clone> VirtualServers<R> {
    /// Removes real servers on their way out whose connections have ended.
    pub(super) async fn tend(&mut self) -> Result<(), ApplyError> {
        if self.draining.is_empty() {
            return Ok(());
        }
        let now = self.start.elapsed();
        Ok(self.with_table(move |table, draining| servers::tend(table, draining, now)).await??)
    }

    /// Whether nothing that was told is missing: addresses, rules, how many entries sets have, virtual servers, and the
    /// real servers of some.
    pub(super) async fn is_intact(&mut self) -> Result<bool, ApplyError> {
        let family = self.family;
        let wanted = self.asked.links().collect();
        if self.link().await?.addresses(family).await? != wanted
            || !self.standing.is_in(&self.read_rules().await?)
            || self.sizes().await? != self.asked.sizes()
        {
            return Ok(false);
        }
        let (mut servers, mut looked) = (Vec::new(), Vec::new());
        for (n, (server, reals)) in self.asked.servers().enumerate() {
            if self.doubts.contains(&server.address) {
                continue;
            }
            servers.push(server);
            if (self.next_look..self.next_look + LOOKED_AT).contains(&n) {
                looked.push((server, reals));
            }
        }
        self.next_look = if looked.is_empty() { 0 } else { self.next_look + LOOKED_AT };
        let intact = self.with_table(move |table, draining| {
            let there = table.virtual_servers()?;
            let there = there.into_iter().filter(|server| IpFamily::of(server.address.ip) == family);
            let there: BTreeMap<_, _> = there.map(|server| (server.address, server)).collect();
            let has = |server: &VirtualServer| there.get(&server.address) == Some(server);
            if !servers.iter().all(has) {
                return Ok(false);
            }
            for (server, reals) in &looked {
                let is_leaving = |real: &RealServer| draining.contains(server.address, real);
                if !has_reals(table, server, reals, is_leaving)? {
                    return Ok(false);
                }
            }
            Ok::<_, Error>(true)
        });
        Ok(intact.await??)
    }

    async fn sizes(&self) -> Result<BTreeMap<Set, usize>, ApplyError> {
        let mut sizes = Sizes::new(self.family);
        ask_ipset(&self.run, &["list", "-terse"], &mut |line| sizes.line(line)).await?;
        Ok(sizes.known)
    }
}

/// Whether a virtual server has these real ones, and no others but those on their way out. Their weights may be
/// somebody's wish.
fn has_reals(
    table: &mut Ipvs,
    server: &VirtualServer,
    wanted: &[RealServer],
    is_leaving: impl Fn(&RealServer) -> bool,
) -> Result<bool, Error> {
    let there = match table.real_servers(server.address) {
        Err(Error::Missing(_)) => return Ok(false),
        there => there?,
    };
    let has_all = wanted.iter().all(|real| there.iter().any(|(known, _)| known.at() == real.at()));
    let no_others =
        there.iter().all(|(known, _)| is_leaving(known) || wanted.iter().any(|real| known.at() == real.at()));
    Ok(has_all && no_others)
}
