//! What is in the table when we come, and what of it is somebody else's.

use std::collections::BTreeSet;
use std::io;

use crate::backend::nftables::compile::{Style, base};
use crate::backend::nftables::kernel::{Commented, Contents, Table, Transaction};
use crate::backend::nftables::ruleset::{Set, Site, Way};
use crate::net::IpFamily;
use crate::plan::NodePlan;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Whether there is a table.
    pub(super) is_there: bool,
    /// Whether its rules are ours.
    pub(super) is_ours: bool,
    /// Elements of our sets, but for those that come and go by themselves.
    pub(super) elements: Vec<Commented>,
    /// Sets of ours that are there only while somebody needs them.
    pub(super) passing: BTreeSet<Set>,
    /// Sets that have names of ours, and are made otherwise.
    pub(super) misshapen: Vec<String>,
    /// Chains that are not ours.
    pub(super) foreign_chains: Vec<String>,
}

/// Chains that are removed at once.
const AT_ONCE: usize = 500;

/// Reads it. Blocks.
pub(super) fn read(table: &mut Table) -> io::Result<Found> {
    let Some(Contents { sets, chains }) = table.contents()? else { return Ok(Found::default()) };
    let ours = own_chains();
    let mut found = Found {
        is_there: true,
        foreign_chains: chains.into_iter().filter(|chain| !ours.contains(chain)).collect(),
        ..Found::default()
    };
    for header in sets {
        match (header.is_ours, Set::named(&header.name)) {
            // Which addresses serve node ports is written with the rules.
            (Some(Set::Clients | Set::NodePortIps), _) => {}
            (Some(set), _) => {
                found.is_ours |= set == Set::Endpoints(Site::Address, Way::Usual);
                found.elements.extend(table.elements(set)?);
                found.passing.extend(Some(set).filter(|set| matches!(set, Set::Kept(_))));
            }
            (None, Some(_)) => found.misshapen.push(header.name),
            (None, None) => {}
        }
    }
    Ok(found)
}

/// Removes chains that are not ours, and sets that are not. What cannot be removed is given back: older kernels notice
/// late that nothing refers to a chain any more. Blocks.
pub(super) fn remove_foreign(table: &mut Table, family: IpFamily, chains: Vec<String>) -> io::Result<Vec<String>> {
    for part in chains.chunks(AT_ONCE) {
        let mut transaction = Transaction::new(family);
        part.iter().for_each(|chain| transaction.flush_chain(chain));
        table.commit(transaction)?;
    }
    if let Some(Contents { sets, .. }) = table.contents()? {
        for header in sets.iter().filter(|header| Set::named(&header.name).is_none()) {
            let mut transaction = Transaction::new(family);
            transaction.delete_set(&header.name);
            table.commit(transaction)?;
        }
    }
    let mut left = Vec::new();
    for part in chains.chunks(AT_ONCE) {
        let mut transaction = Transaction::new(family);
        part.iter().for_each(|chain| transaction.delete_chain(chain));
        if !table.commit(transaction)?.is_empty() {
            left.extend_from_slice(part);
        }
    }
    Ok(left)
}

/// Names of all chains that ours may have.
fn own_chains() -> BTreeSet<String> {
    let any = base(&NodePlan::unknown(IpFamily::V4), &Style { mark: 0 }, &BTreeSet::new());
    any.chains.into_iter().chain(any.netlink_chains).map(|chain| chain.name).collect()
}
