//! What `iptables-save` prints: read line by line, taken in as a snapshot, and led from there to
//! what should be.

use std::collections::{BTreeMap, BTreeSet};

use ferrule::backend::iptables::compile::{self, BaseRules, Layout, Shared};
use ferrule::backend::iptables::diff::{self, Changes};
use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::parse::{SaveReader, Saved};
use ferrule::backend::iptables::ruleset::Table;
use ferrule::backend::iptables::snapshot::{Snapshot, digest};
use ferrule::net::IpFamily;

use super::objects;
use crate::pipeline;

/// The layout that has all chains there can be.
const EVERYTHING: Layout = Layout { bucketed_services: true, compact_endpoints: true };

/// Any text is read or refused; what the snapshot makes of it is what a plain list of rules says.
pub(super) fn text(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    read_line_by_line(&text);
    let kernel = Kernel::read(&text);
    kernel.compare();
    kernel.converges(Layout::default());
    kernel.converges(EVERYTHING);
}

/// Lines that were understood say the same when they are written again.
fn read_line_by_line(text: &str) {
    let mut reader = SaveReader::default();
    let mut again = SaveReader::default();
    for line in text.lines() {
        let Ok(read) = reader.line(line) else { return };
        let written = match read {
            None => line.to_owned(),
            Some(Saved::Chain { name, default, .. }) => format!(":{name} {} [0:0]", default.unwrap_or("-")),
            Some(Saved::Rule { chain, text, .. }) => format!("-A {chain} {text}"),
            Some(Saved::Commit(_)) => "COMMIT".to_owned(),
        };
        assert_eq!(again.line(&written), Ok(read), "{line:?} written as {written:?}");
    }
    assert_eq!(again.finish(), reader.finish());
}

/// Chains and rules in the simplest form.
#[derive(Clone, Default)]
struct Kernel(BTreeMap<(Table, String), Vec<String>>);

// === impl Kernel ===

impl Kernel {
    /// Lines before the first table belong to nat.
    fn read(text: &str) -> Kernel {
        let mut kernel = Kernel::default();
        for (table, line) in of_tables(text) {
            if let Some(rest) = line.strip_prefix("-A ") {
                let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                kernel.0.entry((table, chain.to_owned())).or_default().push(rule.to_owned());
            } else if let Some(rest) = line.strip_prefix(':').or(line.strip_prefix("-N ")) {
                let chain = rest.split(' ').next().unwrap_or_default();
                kernel.0.entry((table, chain.to_owned())).or_default();
            }
        }
        kernel
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ((table, chain), rules) in &self.0 {
            text += &format!("*{table}\n:{chain} - [0:0]\n");
            rules.iter().for_each(|rule| text += &format!("-A {chain} {rule}\n"));
        }
        text
    }

    fn rules(&self, table: Table, chain: &str) -> &[String] {
        self.0.get(&(table, chain.to_owned())).map_or(&[], Vec::as_slice)
    }

    fn snapshot(&self) -> Snapshot {
        snapshot(&self.text())
    }

    /// A snapshot answers as the list of rules does.
    fn compare(&self) {
        let mut snapshot = self.snapshot();
        let mut left: Vec<(Shared, &str, usize)> = snapshot.left_rules().collect();
        left.sort_unstable();
        let mut expected = BTreeMap::new();
        for shared in Shared::of(EVERYTHING) {
            for rule in self.rules(shared.table(), shared.chain().as_str()) {
                *expected.entry((shared, rule.as_str())).or_default() += 1;
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|((shared, rule), count)| (shared, rule, count)).collect();
        assert_eq!(left, expected);
        let services = self.rules(Table::Nat, "KUBE-SERVICES");
        for rules in (0..=services.len().min(4)).map(|count| &services[services.len() - count..]) {
            let is_alone = |rule: &String| services.iter().filter(|other| *other == rule).count() == 1;
            assert_eq!(snapshot.ends_with(Shared::NatServices, rules), rules.iter().all(is_alone), "{rules:?}");
        }
        for (shared, rule, count) in &expected {
            (0..*count).for_each(|_| assert!(snapshot.tick_off(*shared, rule), "{rule}"));
            assert!(!snapshot.tick_off(*shared, rule), "{rule} once more");
        }
        assert_eq!(snapshot.left_rules().next(), None);

        let mut left: BTreeSet<ChainName> = snapshot.left_chains().cloned().collect();
        for ((table, name), rules) in &self.0 {
            let chain = ChainName::from(name.as_str());
            assert!(snapshot.has_chain(*table, &chain), "{name}");
            if *table == Table::Nat {
                assert_eq!(left.remove(&chain), chain.is_per_service(), "{name}");
            }
            let is_shared = Shared::named(*table, name).is_some();
            if name.starts_with("KUBE-") && !is_shared {
                assert_eq!(snapshot.claim(*table, &chain), Some(digest(rules.iter().map(String::as_str))), "{name}");
            }
        }
        assert_eq!(left, BTreeSet::new());
        assert_eq!(snapshot.left_chains().next(), None);
    }

    /// Whatever is there, one sync makes of it what should be, and a second finds nothing to do.
    fn converges(&self, layout: Layout) {
        let base = base(layout);
        let changes = diff::base_from_snapshot(&base, &mut self.snapshot());
        let mut after = self.clone();
        after.apply(&changes);
        for (table, chain, rules) in &base.chains {
            let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
            assert_eq!(after.rules(*table, chain.as_str()), rules, "{chain}");
        }
        let tail: Vec<String> = base.tail.iter().map(ToString::to_string).collect();
        assert!(after.rules(Table::Nat, "KUBE-SERVICES").ends_with(&tail), "{}", after.text());
        // Canaries have no rules to lose, and are always created.
        let again = diff::base_from_snapshot(&base, &mut after.snapshot());
        let left = Changes { create: Vec::new(), ..again };
        assert!(left.is_empty(), "left to do: {left:?}");
    }

    fn apply(&mut self, changes: &Changes) {
        for (table, chain) in &changes.create {
            self.0.insert((*table, chain.to_string()), Vec::new());
        }
        for (table, chain, rules) in &changes.replace {
            self.0.insert((*table, chain.to_string()), rules.iter().map(str::to_owned).collect());
        }
        for (table, chain, rule) in &changes.insert {
            self.0.entry((*table, chain.to_string())).or_default().insert(0, rule.clone());
        }
        for (table, chain, rule) in &changes.delete {
            let rules = self.0.entry((*table, chain.to_string())).or_default();
            let at = rules.iter().position(|known| known == rule);
            rules.remove(at.unwrap_or_else(|| panic!("{chain} has no rule {rule}")));
        }
        for (table, chain, rule) in &changes.append {
            self.0.entry((*table, chain.to_string())).or_default().push(rule.clone());
        }
        for (table, chain) in &changes.remove {
            self.0.remove(&(*table, chain.to_string()));
        }
    }
}

fn snapshot(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::new(true);
    for (table, line) in of_tables(text) {
        snapshot.begin(table);
        snapshot.line(line);
    }
    snapshot
}

/// Lines with their tables.
fn of_tables(text: &str) -> impl Iterator<Item = (Table, &str)> {
    let mut table = Table::Nat;
    // Only this ends a line: a rule may end with a carriage return and must keep it.
    text.split_terminator('\n').map(move |line| {
        let tables = [Table::Mangle, Table::Filter, Table::Nat].into_iter();
        table = tables.into_iter().find(|table| line.strip_prefix('*') == Some(table.as_str())).unwrap_or(table);
        (table, line)
    })
}

/// What belongs to no Service on some node.
fn base(layout: Layout) -> BaseRules {
    let plan = objects::plan(&objects::cluster(Vec::new()), IpFamily::V4);
    compile::base(&plan.node, &pipeline::style(&plan, objects::MARK, layout))
}
