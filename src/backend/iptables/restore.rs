//! Input of `iptables-restore --noflush`.

use super::diff::Changes;
use super::names::ChainName;
use super::ruleset::Table;

/// Text for one run of `iptables-restore`, and whose lines those are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The text.
    pub text: String,
    owners: Owners,
}

/// Input that is being written: at most one transaction per table, except that refusals are written
/// before and deleted after the nat table is changed.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    mangle: Part,
    /// What refuses packets comes before the translation that would deliver them goes ...
    filter_first: Part,
    nat: Part,
    /// ... and goes after the translation has come: no packet falls in between.
    filter_last: Part,
    /// Whether a part of the nat table has been taken, and more follows.
    is_open: bool,
}

/// Whose lines those are that were taken: for so many lines in a row the index of the changes that they
/// come from; `None` for lines of the format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(Vec<(Option<usize>, usize)>);

/// Lines of one table.
#[derive(Clone, Debug, Default)]
struct Part {
    /// Chains to create or to empty.
    declared: Lines,
    edits: Lines,
}

/// Lines and whose they are.
#[derive(Clone, Debug, Default)]
struct Lines {
    text: String,
    owners: Owners,
}

// === impl Input ===

impl Input {
    /// Writes several changes as one input.
    pub fn render<'a>(changes: impl Iterator<Item = &'a Changes>) -> Input {
        let mut draft = Draft::default();
        changes.enumerate().for_each(|(i, changes)| draft.add(i, changes));
        let mut owners = Owners::default();
        let text = draft.take(&mut owners, false);
        Input { text, owners }
    }

    /// Whose changes the n-th line (from 1) belongs to, as an index into what was rendered.
    pub fn owner_of_line(&self, number: usize) -> Option<usize> {
        self.owners.of_line(number)
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

// === impl Draft ===

impl Draft {
    /// Adds changes, whose lines shall be known as those of `owner`.
    pub fn add(&mut self, owner: usize, changes: &Changes) {
        for (table, chain) in &changes.create {
            self.first(*table).declare(owner, chain);
        }
        for (table, chain, rules) in &changes.replace {
            let part = self.first(*table);
            part.declare(owner, chain);
            for rule in rules.iter() {
                part.edits.line(owner, &["-A ", chain.as_str(), " ", rule]);
            }
        }
        for (table, chain, rule) in &changes.insert {
            self.first(*table).edits.line(owner, &["-I ", chain.as_str(), " ", rule]);
        }
        for (table, chain, rule) in &changes.delete {
            self.last(*table).edits.line(owner, &["-D ", chain.as_str(), " ", rule]);
        }
        for (table, chain, rule) in &changes.append {
            self.first(*table).edits.line(owner, &["-A ", chain.as_str(), " ", rule]);
        }
        for (table, chain) in &changes.remove {
            let part = self.last(*table);
            part.declare(owner, chain);
            part.edits.line(owner, &["-X ", chain.as_str()]);
        }
    }

    /// Where additions to a table go.
    fn first(&mut self, table: Table) -> &mut Part {
        match table {
            Table::Mangle => &mut self.mangle,
            Table::Filter => &mut self.filter_first,
            Table::Nat => &mut self.nat,
        }
    }

    /// Where removals go.
    fn last(&mut self, table: Table) -> &mut Part {
        match table {
            Table::Filter => &mut self.filter_last,
            Table::Mangle | Table::Nat => self.first(table),
        }
    }

    /// How many bytes can be taken though more follow.
    pub fn available(&self) -> usize {
        [&self.mangle, &self.filter_first, &self.nat].map(Part::len).iter().sum()
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.available() == 0 && self.filter_last.is_empty() && !self.is_open
    }

    /// Takes what there is. If `more` changes follow, they may be of the nat table only, but for rules of
    /// the filter table that go: the nat table stays open, and those wait.
    pub fn take(&mut self, owners: &mut Owners, more: bool) -> String {
        let mut text = String::with_capacity(self.available() + self.filter_last.len() + 64);
        if !self.is_open {
            for (table, part) in [(Table::Mangle, &mut self.mangle), (Table::Filter, &mut self.filter_first)] {
                part.take_table(table, &mut text, owners);
            }
        }
        if !self.nat.is_empty() {
            if !std::mem::replace(&mut self.is_open, true) {
                begin(Table::Nat, &mut text, owners);
            }
            self.nat.take(&mut text, owners);
        }
        if !more {
            if std::mem::take(&mut self.is_open) {
                commit(&mut text, owners);
            }
            self.filter_last.take_table(Table::Filter, &mut text, owners);
        }
        text
    }
}

fn begin(table: Table, text: &mut String, owners: &mut Owners) {
    text.extend(["*", table.as_str(), "\n"]);
    owners.add(None, 1);
}

fn commit(text: &mut String, owners: &mut Owners) {
    text.push_str("COMMIT\n");
    owners.add(None, 1);
}

// === impl Part ===

impl Part {
    fn len(&self) -> usize {
        self.declared.text.len() + self.edits.text.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves the lines out, as all that is written of a table, if there are any.
    fn take_table(&mut self, table: Table, text: &mut String, owners: &mut Owners) {
        if !self.is_empty() {
            begin(table, text, owners);
            self.take(text, owners);
            commit(text, owners);
        }
    }

    fn declare(&mut self, owner: usize, chain: &ChainName) {
        self.declared.line(owner, &[":", chain.as_str(), " - [0:0]"]);
    }

    fn take(&mut self, text: &mut String, owners: &mut Owners) {
        for lines in [&mut self.declared, &mut self.edits] {
            text.push_str(&lines.text);
            lines.text.clear();
            lines.owners.0.drain(..).for_each(|(owner, lines)| owners.add(owner, lines));
        }
    }
}

// === impl Lines ===

impl Lines {
    fn line(&mut self, owner: usize, parts: &[&str]) {
        self.text.extend(parts.iter().copied());
        self.text.push('\n');
        self.owners.add(Some(owner), 1);
    }
}

// === impl Owners ===

impl Owners {
    /// Whose the n-th line is (from 1).
    pub fn of_line(&self, number: usize) -> Option<usize> {
        let mut before = 0;
        let run = self.0.iter().find(|(_, lines)| {
            before += lines;
            before >= number
        });
        run.filter(|_| number > 0).and_then(|(owner, _)| *owner)
    }

    fn add(&mut self, owner: Option<usize>, lines: usize) {
        match self.0.last_mut() {
            Some((last, so_far)) if *last == owner => *so_far += lines,
            _ => self.0.push((owner, lines)),
        }
    }
}
