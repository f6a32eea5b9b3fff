//! What the kernel was seen to hold, from the output of `iptables-save` or `iptables -S`.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use super::compile::{Layout, Shared};
use super::names::{self, ChainName};
use super::ruleset::Table;

/// The kernel's chains as seen at one moment. Rules of shared chains are kept as text; of other
/// chains only a digest, because a big cluster has hundreds of thousands of rules.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    chains: HashMap<(Table, ChainName), Digest>,
    /// How often each rule stands in a shared chain and has not been ticked off.
    shared: HashMap<Shared, HashMap<String, usize>>,
    /// Last rules of nat KUBE-SERVICES, in order.
    services_end: Vec<String>,
    /// Rules of built-in chains that jump to a chain of ours.
    jumps: HashMap<(Table, String), Vec<String>>,
    /// What the rules there need.
    layout: Layout,
    /// Whether all chains were read, not only the shared ones.
    complete: bool,
    table: Option<Table>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Digest {
    /// Of the rules so far, as [`digest`] makes it.
    rules: u64,
    claimed: bool,
}

/// How many rules at the end of nat KUBE-SERVICES are remembered in order. More addresses serving
/// node ports than this only cost a needless rewrite of those rules at start.
const REMEMBERED_END: usize = 256;

/// Digest of a chain's rules.
pub fn digest<'a>(rules: impl Iterator<Item = &'a str>) -> u64 {
    rules.fold(0, add)
}

/// The digest of some rules and one more.
fn add(before: u64, rule: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(before);
    hasher.write(rule.as_bytes());
    hasher.finish()
}

/// Stands for a rule that cannot be read: no rule of ours has a line end.
const UNREADABLE: &str = "\n";

// === impl Snapshot ===

impl Snapshot {
    /// Nothing read yet; `complete` says whether all chains will be.
    pub fn new(complete: bool) -> Snapshot {
        Snapshot { complete, ..Snapshot::default() }
    }

    /// Says to which table the following lines belong, where the output does not.
    pub fn begin(&mut self, table: Table) {
        self.table = Some(table);
    }

    /// Reads one line of `iptables-save -t TABLE` or `iptables -t TABLE -S CHAIN`.
    pub fn line(&mut self, line: &str) {
        let Some(table) = self.table else { return };
        if let Some(rest) = line.strip_prefix("-A ") {
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            self.rule(table, chain, rule);
        } else if let Some(declared) = line.strip_prefix(':').or_else(|| line.strip_prefix("-N ")) {
            let chain = declared.split(' ').next().unwrap_or_default();
            self.declare(table, chain.into());
        }
    }

    /// Reads one rule: what follows `-A CHAIN`.
    pub fn rule(&mut self, table: Table, chain: &str, rule: &str) {
        if !chain.starts_with("KUBE-") {
            if rule.contains("-j KUBE-") {
                self.jumps.entry((table, chain.to_owned())).or_default().push(rule.to_owned());
            }
            return;
        }
        if let Some(shared) = Shared::named(table, chain) {
            if shared == Shared::NatServices {
                self.layout.bucketed_services |=
                    rule.rsplit_once("-j ").is_some_and(|(_, target)| names::splits_addresses(target));
                if self.services_end.len() == 2 * REMEMBERED_END {
                    self.services_end.drain(..REMEMBERED_END);
                }
                self.services_end.push(rule.to_owned());
            }
            *self.shared.entry(shared).or_default().entry(rule.to_owned()).or_default() += 1;
            return;
        }
        // What recognises packets to their own source, whatever the rest of that rule is.
        self.layout.compact_endpoints |= chain == names::POSTROUTING.as_str() && rule.contains("-m bpf ");
        self.add_own(table, chain.into(), Some(rule));
    }

    /// Takes note of a chain of a Service port. What is read on its own has no declaration.
    pub fn declare(&mut self, table: Table, chain: ChainName) {
        self.layout.bucketed_services |= table == Table::Nat && names::splits_addresses(chain.as_str());
        self.chains.entry((table, chain)).or_default();
    }

    /// Takes note of the next rule of such a chain; `None` is one that cannot be read, and then the chain
    /// holds what it should under no circumstances.
    pub fn add_own(&mut self, table: Table, chain: ChainName, rule: Option<&str>) {
        let digest = self.chains.entry((table, chain)).or_default();
        digest.rules = add(digest.rules, rule.unwrap_or(UNREADABLE));
    }

    /// Takes back what was read of a shared chain, so that it can be read again.
    pub fn forget(&mut self, shared: Shared) {
        self.shared.remove(&shared);
        if shared == Shared::NatServices {
            self.services_end.clear();
        }
    }

    /// What the rules that were read need.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether all chains were read.
    pub fn has_chains(&self) -> bool {
        self.complete
    }

    /// Whether a chain is there.
    pub fn has_chain(&self, table: Table, chain: &ChainName) -> bool {
        self.chains.contains_key(&(table, chain.clone()))
    }

    /// Whether a built-in chain has a jump.
    pub fn has_jump(&self, table: Table, chain: &str, rule: &str) -> bool {
        self.jumps.get(&(table, chain.to_owned())).is_some_and(|rules| rules.iter().any(|r| r == rule))
    }

    /// The digest of a chain, which now belongs to somebody.
    pub fn claim(&mut self, table: Table, chain: &ChainName) -> Option<u64> {
        let digest = self.chains.get_mut(&(table, chain.clone()))?;
        digest.claimed = true;
        Some(digest.rules)
    }

    /// Says that a chain, which is there now, belongs to nobody any more.
    pub fn release(&mut self, table: Table, chain: ChainName) {
        self.chains.entry((table, chain)).or_default().claimed = false;
    }

    /// Ticks one occurrence of a rule off; false if there is none (left).
    pub fn tick_off(&mut self, shared: Shared, rule: &str) -> bool {
        match self.shared.get_mut(&shared).and_then(|rules| rules.get_mut(rule)) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Ticks off every rule of a kind that is left in a shared chain, each as often as it is there.
    pub fn take_left(&mut self, shared: Shared, kind: impl Fn(&str) -> bool) -> Vec<String> {
        let mut taken = Vec::new();
        for (rule, count) in self.shared.entry(shared).or_default().iter_mut().filter(|(rule, _)| kind(rule)) {
            taken.extend(std::iter::repeat_n(rule.clone(), std::mem::take(count)));
        }
        taken
    }

    /// Whether a shared chain ends with exactly these rules, in any order, and has none of them
    /// elsewhere.
    pub fn ends_with(&self, shared: Shared, rules: &[String]) -> bool {
        let Some(from) = self.services_end.len().checked_sub(rules.len()) else { return false };
        let Some(end) = self.services_end.get(from..) else { return false };
        let counts = self.shared.get(&shared);
        rules.iter().all(|rule| end.contains(rule) && counts.and_then(|c| c.get(rule)) == Some(&1))
    }

    /// Rules of shared chains that nobody ticked off.
    pub fn left_rules(&self) -> impl Iterator<Item = (Shared, &str, usize)> {
        self.shared.iter().flat_map(|(shared, rules)| {
            rules.iter().filter(|(_, count)| **count > 0).map(move |(rule, count)| (*shared, rule.as_str(), *count))
        })
    }

    /// Chains of Service ports, or for their dispatch, that nobody claimed. None if not all chains were read.
    pub fn left_chains(&self) -> impl Iterator<Item = &ChainName> {
        let chains = self.chains.iter().filter(|_| self.complete);
        let left =
            chains.filter(|((table, chain), digest)| *table == Table::Nat && chain.is_per_service() && !digest.claimed);
        left.map(|((_, chain), _)| chain)
    }
}
