//! Input of `iptables-restore --noflush`.

use std::collections::BTreeSet;

use super::diff::Changes;
use super::names::ChainName;
use super::ruleset::Table;

/// Text for one run of `iptables-restore`, and whose lines those are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The text.
    pub text: String,
    /// For each line, the index of the changes it comes from; `None` for lines of the format.
    owners: Vec<Option<usize>>,
}

/// A part of the input: one table, committed as one.
#[derive(Clone, Copy)]
enum Section {
    Mangle,
    /// What refuses packets comes before the translation that would deliver them goes ...
    FilterFirst,
    Nat,
    /// ... and goes after the translation has come: no packet falls in between.
    FilterLast,
}

// === impl Input ===

impl Input {
    /// Writes several changes as one input: at most one transaction per table, except that
    /// refusals are written before and deleted after the nat table is changed.
    pub fn render<'a>(changes: impl Iterator<Item = &'a Changes> + Clone) -> Input {
        let mut input = Input::default();
        for section in [Section::Mangle, Section::FilterFirst, Section::Nat, Section::FilterLast] {
            input.section(section, changes.clone());
        }
        input
    }

    /// Whose changes the n-th line (from 1) belongs to, as an index into what was rendered.
    pub fn owner_of_line(&self, number: usize) -> Option<usize> {
        self.owners.get(number.checked_sub(1)?).copied().flatten()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn section<'a>(&mut self, section: Section, changes: impl Iterator<Item = &'a Changes> + Clone) {
        let table = section.table();
        let before = (self.text.len(), self.owners.len());
        self.line(None, &["*", table.as_str()]);
        let start = self.owners.len();
        let mut declared: BTreeSet<&ChainName> = BTreeSet::new();
        for (i, c) in changes.clone().enumerate() {
            let created = c.create.iter().filter(|_| section.adds()).map(|(t, chain)| (t, chain));
            let replaced = c.replace.iter().filter(|_| section.adds()).map(|(t, chain, _)| (t, chain));
            let removed = c.remove.iter().filter(|_| section.deletes()).map(|(t, chain)| (t, chain));
            for (_, chain) in created.chain(replaced).chain(removed).filter(|(t, _)| **t == table) {
                if declared.insert(chain) {
                    self.line(Some(i), &[":", chain.as_str(), " - [0:0]"]);
                }
            }
        }
        for (i, c) in changes.enumerate() {
            if section.adds() {
                for (_, chain, rules) in c.replace.iter().filter(|(t, ..)| *t == table) {
                    for rule in rules {
                        self.line(Some(i), &["-A ", chain.as_str(), " ", rule]);
                    }
                }
                for (_, chain, rule) in c.insert.iter().filter(|(t, ..)| *t == table) {
                    self.line(Some(i), &["-I ", chain.as_str(), " ", rule]);
                }
            }
            if section.deletes() {
                for (_, chain, rule) in c.delete.iter().filter(|(t, ..)| *t == table) {
                    self.line(Some(i), &["-D ", chain.as_str(), " ", rule]);
                }
            }
            if section.adds() {
                for (_, chain, rule) in c.append.iter().filter(|(t, ..)| *t == table) {
                    self.line(Some(i), &["-A ", chain.as_str(), " ", rule]);
                }
            }
            if section.deletes() {
                for (_, chain) in c.remove.iter().filter(|(t, _)| *t == table) {
                    self.line(Some(i), &["-X ", chain.as_str()]);
                }
            }
        }
        if self.owners.len() == start {
            self.text.truncate(before.0);
            self.owners.truncate(before.1);
        } else {
            self.line(None, &["COMMIT"]);
        }
    }

    fn line(&mut self, owner: Option<usize>, parts: &[&str]) {
        self.owners.push(owner);
        self.text.extend(parts.iter().copied());
        self.text.push('\n');
    }
}

// === impl Section ===

impl Section {
    fn table(self) -> Table {
        match self {
            Section::Mangle => Table::Mangle,
            Section::FilterFirst | Section::FilterLast => Table::Filter,
            Section::Nat => Table::Nat,
        }
    }

    fn adds(self) -> bool {
        !matches!(self, Section::FilterLast)
    }

    fn deletes(self) -> bool {
        !matches!(self, Section::FilterFirst)
    }
}
