//! What one family's tables hold, and what may be done to them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::backend::iptables::parse::{ParseError, SaveReader, Saved};
use crate::backend::iptables::ruleset::{Rule, Table, Target};
use crate::net::IpFamily;

/// The tables of one family: mangle, filter and nat. Copying is cheap: chains are shared until they
/// are changed.
#[derive(Clone, Debug)]
pub struct Tables {
    family: IpFamily,
    tables: BTreeMap<Table, Content>,
}

/// The chains of one table.
#[derive(Clone, Debug)]
pub(super) struct Content {
    table: Table,
    family: IpFamily,
    chains: BTreeMap<String, Arc<Chain>>,
    /// How many rules jump to a chain.
    references: HashMap<String, usize>,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What happens to packets at its end; only built-in chains have that.
    pub policy: Option<String>,
    /// Its rules.
    pub rules: Vec<KernelRule>,
}

/// A rule as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelRule {
    /// One that ferrule can write.
    Known(Rule),
    /// Somebody else's, as its text. Only [`Tables::parse`] makes such.
    Foreign(String),
}

// === impl Tables ===

impl Tables {
    /// Only the built-in chains, which accept.
    pub fn new(family: IpFamily) -> Tables {
        let tables = [Table::Mangle, Table::Filter, Table::Nat];
        Tables { family, tables: tables.map(|table| (table, Content::new(table, family))).into() }
    }

    /// What `iptables-save` printed. Tables it does not mention have their built-in chains only.
    pub fn parse(family: IpFamily, text: &str) -> Result<Tables, ParseError> {
        let mut tables = Tables::new(family);
        let mut reader = SaveReader::default();
        for line in text.lines() {
            let Some(saved) = reader.line(line)? else { continue };
            let (Saved::Chain { table, .. } | Saved::Rule { table, .. } | Saved::Commit(table)) = saved;
            let Some(content) = tables.tables.get_mut(&table) else { continue };
            match saved {
                Saved::Chain { name, default, .. } => content.add_chain(name, default.map(str::to_owned)),
                Saved::Rule { chain, text, .. } => {
                    let rule = match Rule::parse(text, family) {
                        Ok(rule) => KernelRule::Known(rule),
                        Err(_) => KernelRule::Foreign(text.to_owned()),
                    };
                    let at = content.get(chain).map_or(0, |chain| chain.rules.len());
                    content.add_rule(chain, at, rule);
                }
                Saved::Commit(_) => {}
            }
        }
        reader.finish()?;
        Ok(tables)
    }

    /// The family.
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// A chain, if it is there.
    pub fn chain(&self, table: Table, name: &str) -> Option<&Chain> {
        self.tables.get(&table)?.chains.get(name).map(|chain| &**chain)
    }

    /// All chains of a table, built-in ones first.
    pub fn chains(&self, table: Table) -> impl Iterator<Item = (&str, &Chain)> {
        self.tables.get(&table).into_iter().flat_map(Content::in_order)
    }

    /// Number of rules in all tables.
    pub fn rules(&self) -> usize {
        self.tables.values().flat_map(|content| content.chains.values()).map(|chain| chain.rules.len()).sum()
    }

    /// What `iptables-save -t TABLE` prints between its comments.
    pub fn table_text(&self, table: Table) -> String {
        self.tables.get(&table).map(ToString::to_string).unwrap_or_default()
    }

    /// Empties a table: only built-in chains are left.
    pub fn flush(&mut self, table: Table) {
        self.tables.insert(table, Content::new(table, self.family));
    }

    pub(super) fn content(&self, table: Table) -> Option<&Content> {
        self.tables.get(&table)
    }

    pub(super) fn commit(&mut self, content: Content) {
        self.tables.insert(content.table, content);
    }
}

/// All tables, as `iptables-save` prints them.
impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.values().try_for_each(|content| content.fmt(f))
    }
}

// === impl Content ===

impl Content {
    pub(super) fn new(table: Table, family: IpFamily) -> Content {
        let chain = || Arc::new(Chain { policy: Some("ACCEPT".into()), rules: Vec::new() });
        let chains = built_in(table).iter().map(|name| ((*name).to_owned(), chain())).collect();
        Content { table, family, chains, references: HashMap::new() }
    }

    pub(super) fn table(&self) -> Table {
        self.table
    }

    pub(super) fn family(&self) -> IpFamily {
        self.family
    }

    pub(super) fn get(&self, chain: &str) -> Option<&Chain> {
        self.chains.get(chain).map(|chain| &**chain)
    }

    pub(super) fn add_chain(&mut self, name: &str, policy: Option<String>) {
        self.chains.insert(name.to_owned(), Arc::new(Chain { policy, rules: Vec::new() }));
    }

    pub(super) fn remove_chain(&mut self, name: &str) {
        self.chains.remove(name);
    }

    pub(super) fn set_policy(&mut self, name: &str, policy: String) {
        if let Some(chain) = self.chains.get_mut(name) {
            Arc::make_mut(chain).policy = Some(policy);
        }
    }

    /// Adds a rule before the one at a place, which must not be beyond the end.
    pub(super) fn add_rule(&mut self, chain: &str, at: usize, rule: KernelRule) {
        let Some(chain) = self.chains.get_mut(chain) else { return };
        if let Some(target) = rule.jump() {
            *self.references.entry(target.to_owned()).or_default() += 1;
        }
        Arc::make_mut(chain).rules.insert(at, rule);
    }

    /// Removes the rules of a range of places.
    pub(super) fn remove_rules(&mut self, chain: &str, range: impl RangeBounds<usize>) {
        let Some(chain) = self.chains.get_mut(chain) else { return };
        for rule in Arc::make_mut(chain).rules.drain(range) {
            if let Some(count) = rule.jump().and_then(|target| self.references.get_mut(target)) {
                *count = count.saturating_sub(1);
            }
        }
    }

    pub(super) fn is_referenced(&self, chain: &str) -> bool {
        self.references.get(chain).is_some_and(|count| *count > 0)
    }

    /// Built-in chains first, the others by name: the order in which the tools print them.
    fn in_order(&self) -> impl Iterator<Item = (&str, &Chain)> {
        let first = built_in(self.table);
        let built_in = first.iter().filter_map(|name| self.chains.get_key_value(*name));
        let others = self.chains.iter().filter(|(name, _)| !first.contains(&name.as_str()));
        built_in.chain(others).map(|(name, chain)| (name.as_str(), &**chain))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.table)?;
        for (name, chain) in self.in_order() {
            writeln!(f, ":{name} {} [0:0]", chain.policy.as_deref().unwrap_or("-"))?;
        }
        for (name, chain) in self.in_order() {
            for rule in &chain.rules {
                writeln!(f, "-A {name} {rule}")?;
            }
        }
        writeln!(f, "COMMIT")
    }
}

// === impl KernelRule ===

impl KernelRule {
    /// The chain to which the rule jumps.
    fn jump(&self) -> Option<&str> {
        match self {
            KernelRule::Known(Rule { target: Some(Target::Jump(chain)), .. }) => Some(chain.as_str()),
            KernelRule::Known(_) => None,
            KernelRule::Foreign(text) => text.split(' ').skip_while(|word| *word != "-j").nth(1),
        }
    }
}

impl fmt::Display for KernelRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelRule::Known(rule) => rule.fmt(f),
            KernelRule::Foreign(text) => f.write_str(text),
        }
    }
}

/// The chains a table has from the beginning.
fn built_in(table: Table) -> &'static [&'static str] {
    match table {
        Table::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        Table::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        Table::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
    }
}
