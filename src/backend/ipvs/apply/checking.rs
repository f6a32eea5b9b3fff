//! Looking whether the kernel still holds what it was told.

use std::collections::BTreeMap;

use super::super::netlink::{Error, Ipvs, RealServer, VirtualServer};
use super::super::ruleset::Set;
use super::super::servers;
use super::super::sets::Sizes;
use super::{VirtualServers, unreadable};
use crate::backend::ApplyError;
use crate::command::{Command, Run};
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
        self.with_table(move |table, draining| servers::tend(table, draining, now)).await?.map_err(unreadable)
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
        let servers: BTreeMap<_, _> =
            self.asked.addresses().filter_map(|address| Some((address, self.asked.virtual_server(address)?))).collect();
        let from = if self.next_look < servers.len() { self.next_look } else { 0 };
        self.next_look = from + LOOKED_AT;
        let looked: Vec<_> = servers.keys().copied().skip(from).take(LOOKED_AT).collect();
        let looked = looked.into_iter().filter_map(|address| self.asked.server(address)).collect();
        let doubts = self.doubts.clone();
        self.with_table(move |table, draining| {
            let is_sure = |server: &VirtualServer| !doubts.contains(&server.address);
            let there = table.virtual_servers()?;
            let there = there.into_iter().filter(|server| IpFamily::of(server.address.ip) == family);
            let there: BTreeMap<_, _> = there.map(|server| (server.address, server)).collect();
            let has = |server: &VirtualServer| there.get(&server.address) == Some(server);
            if !servers.values().filter(|server| is_sure(server)).all(has) {
                return Ok(false);
            }
            let looked: Vec<(VirtualServer, Vec<RealServer>)> = looked;
            for (server, reals) in looked.iter().filter(|(server, _)| is_sure(server)) {
                let is_leaving = |real: &RealServer| draining.contains(server.address, real);
                if !has_reals(table, server, reals, is_leaving)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?
        .map_err(unreadable)
    }

    async fn sizes(&self) -> Result<BTreeMap<Set, usize>, ApplyError> {
        let mut sizes = Sizes::new(self.family);
        let output = self.run.run(Command::new("ipset", &["list", "-terse"]), &mut |line| sizes.line(line)).await?;
        match output.success() {
            true => Ok(sizes.known),
            false => {
                let detail = output.complaint().to_owned();
                Err(ApplyError::Failed { program: "ipset list".to_owned(), detail })
            }
        }
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
    let same = |a: &RealServer, b: &RealServer| (a.ip, a.port) == (b.ip, b.port);
    let has_all = wanted.iter().all(|real| there.iter().any(|(known, _)| same(known, real)));
    let no_others = there.iter().all(|(known, _)| is_leaving(known) || wanted.iter().any(|real| same(known, real)));
    Ok(has_all && no_others)
}
