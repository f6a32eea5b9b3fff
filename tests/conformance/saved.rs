//! What `iptables-save` prints, as data, and what differs between two such states.

mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Says that a rule must stand at the end of its chain.
const LAST: &str = "NOTE: this must be the last rule in this chain";

/// What sets a rule that counts packets to a node port of loopback addresses apart from the rule
/// for all addresses.
const COUNTED: &str = " -m nfacct --nfacct-name  localhost_nps_accepted_pkts";
const LOOPBACK: &str = "-d 127.0.0.0/8 ";

/// Chains whose order is free in kube-proxy (it iterates over a hash map), but for rules marked
/// [`LAST`].
const FREE_ORDER: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];

/// All tables of one IP family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables(pub BTreeMap<String, Table>);

/// Chains of one table.
pub type Table = BTreeMap<String, Chain>;

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `ACCEPT` or `DROP` for a chain of the kernel, `-` for others.
    pub policy: String,
    /// The text of each rule after `-A CHAIN `.
    pub rules: Vec<String>,
}

// === impl Tables ===

impl Tables {
    /// Reads what `iptables-save` or `ip6tables-save` prints. Counters and comment lines are left
    /// out, and everything else must be understood.
    pub fn parse(text: &str) -> Tables {
        let mut tables = Tables::default();
        let mut current: Option<&mut Table> = None;
        for line in text.lines() {
            if line.starts_with('#') || line.is_empty() {
                continue;
            } else if let Some(name) = line.strip_prefix('*') {
                current = Some(tables.0.entry(name.to_owned()).or_default());
            } else if line == "COMMIT" {
                current = None;
            } else if let Some(chain) = line.strip_prefix(':') {
                let [name, policy, _counters] = fields(chain);
                let table = current.as_mut().unwrap_or_else(|| panic!("chain outside a table: {line}"));
                table.entry(name.to_owned()).or_default().policy = policy.to_owned();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (name, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                let table = current.as_mut().unwrap_or_else(|| panic!("rule outside a table: {line}"));
                let chain = table.get_mut(name).unwrap_or_else(|| panic!("rule of an undeclared chain: {line}"));
                chain.rules.push(rule.to_owned());
            } else {
                panic!("not the output of iptables-save: {line}");
            }
        }
        tables
    }

    /// Input for `iptables-restore` that makes exactly this.
    pub fn to_restore(&self) -> String {
        let mut text = String::new();
        for (table, chains) in &self.0 {
            let _ = writeln!(text, "*{table}");
            for (name, chain) in chains {
                let _ = writeln!(text, ":{name} {} [0:0]", chain.policy);
            }
            for (name, chain) in chains {
                for rule in &chain.rules {
                    let _ = writeln!(text, "-A {name} {rule}");
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    /// A chain that must be there.
    #[track_caller]
    pub fn chain(&mut self, table: &str, name: &str) -> &mut Chain {
        let chain = self.0.get_mut(table).and_then(|chains| chains.get_mut(name));
        chain.unwrap_or_else(|| panic!("no chain {name} in table {table}"))
    }

    /// Adds a chain with rules; the table is made if it is not there.
    pub fn add_chain(&mut self, table: &str, name: &str, rules: &[&str]) {
        let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        let chain = Chain { policy: "-".to_owned(), rules };
        self.0.entry(table.to_owned()).or_default().insert(name.to_owned(), chain);
    }

    /// Adds a rule at the end of a chain.
    #[track_caller]
    pub fn append(&mut self, table: &str, name: &str, rule: &str) {
        self.chain(table, name).rules.push(rule.to_owned());
    }

    /// Adds a rule at the beginning of a chain.
    #[track_caller]
    pub fn insert(&mut self, table: &str, name: &str, rule: &str) {
        self.chain(table, name).rules.insert(0, rule.to_owned());
    }

    /// Every way in which `actual` is not what is expected here, as text for people; nothing if
    /// they are equal.
    pub fn differences(&self, actual: &Tables) -> String {
        let mut report = String::new();
        for name in self.0.keys().chain(actual.0.keys()).collect::<BTreeSet<_>>() {
            match (self.0.get(name), actual.0.get(name)) {
                (Some(expected), Some(actual)) => compare_table(name, expected, actual, &mut report),
                (Some(_), None) => _ = writeln!(report, "table {name}: missing"),
                (None, _) => _ = writeln!(report, "table {name}: unexpected"),
            }
        }
        report
    }
}

fn fields(line: &str) -> [&str; 3] {
    let parts: Vec<&str> = line.split(' ').collect();
    parts.try_into().unwrap_or_else(|_| panic!("not a chain line: {line}"))
}

fn compare_table(table: &str, expected: &Table, actual: &Table, report: &mut String) {
    for name in expected.keys().chain(actual.keys()).collect::<BTreeSet<_>>() {
        match (expected.get(name), actual.get(name)) {
            (Some(expected), Some(actual)) => compare_chain(table, name, expected, actual, report),
            (Some(expected), None) => {
                let _ = writeln!(report, "{table} {name}: chain missing");
                list("missing", &expected.rules, report);
            }
            (None, actual) => {
                let _ = writeln!(report, "{table} {name}: chain unexpected");
                list("unexpected", actual.map_or(&[], |chain| &chain.rules), report);
            }
        }
    }
}

fn compare_chain(table: &str, name: &str, expected: &Chain, actual: &Chain, report: &mut String) {
    if expected.policy != actual.policy {
        let _ = writeln!(report, "{table} {name}: policy {} instead of {}", actual.policy, expected.policy);
    }
    let Changes { missing, unexpected, misplaced } = if FREE_ORDER.contains(&name) {
        Changes::in_any_order(&expected.rules, &actual.rules)
    } else {
        Changes::in_order(&expected.rules, &actual.rules)
    };
    if missing.is_empty() && unexpected.is_empty() && misplaced.is_empty() {
        return;
    }
    let _ = writeln!(report, "{table} {name}:");
    list("missing", &missing, report);
    list("unexpected", &unexpected, report);
    list("misplaced", &misplaced, report);
}

/// How the rules of a chain differ.
struct Changes {
    missing: Vec<String>,
    unexpected: Vec<String>,
    misplaced: Vec<String>,
}

impl Changes {
    /// What must be removed and added to turn one sequence into the other; a rule that is both is
    /// misplaced.
    fn in_order(expected: &[String], actual: &[String]) -> Changes {
        let (removed, added) = edits(expected, actual);
        let describe = |rule: String| match actual.iter().position(|other| *other == rule) {
            Some(i) => format!("{rule}\n      (found as rule {}, expected elsewhere)", i + 1),
            None => rule,
        };
        let missing = without(&removed, &added);
        let unexpected = without(&added, &removed);
        let misplaced = without(&removed, &missing).into_iter().map(describe).collect();
        Changes { missing, unexpected, misplaced }
    }

    /// Order is free, but rules that say they must be the last are the last, and a rule that
    /// counts some packets of another rule comes before that.
    fn in_any_order(expected: &[String], actual: &[String]) -> Changes {
        let is_last = |rule: &&String| rule.contains(LAST);
        let after = actual.iter().skip_while(|rule| !is_last(rule)).filter(|rule| !is_last(rule));
        let mut misplaced: Vec<String> =
            after.map(|rule| format!("{rule}\n      (after a rule that must be the last)")).collect();
        for (i, rule) in actual.iter().enumerate().filter(|(_, rule)| rule.contains(COUNTED)) {
            let general = rule.replace(COUNTED, "").replace(LOOPBACK, "");
            if actual[..i].contains(&general) {
                misplaced.push(format!("{rule}\n      (after the rule for all addresses: counts nothing)"));
            }
        }
        Changes { missing: without(expected, actual), unexpected: without(actual, expected), misplaced }
    }
}

/// What to remove from `from` and to add for `to`, leaving a longest common sequence.
fn edits(from: &[String], to: &[String]) -> (Vec<String>, Vec<String>) {
    if from == to {
        return (Vec::new(), Vec::new());
    }
    // common[i][j]: length of a longest common sequence of from[i..] and to[j..].
    let mut common = vec![vec![0u32; to.len() + 1]; from.len() + 1];
    for i in (0..from.len()).rev() {
        for j in (0..to.len()).rev() {
            common[i][j] = match from[i] == to[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut removed, mut added, mut i, mut j) = (Vec::new(), Vec::new(), 0, 0);
    while i < from.len() || j < to.len() {
        if i < from.len() && j < to.len() && from[i] == to[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == to.len() || (i < from.len() && common[i + 1][j] >= common[i][j + 1]) {
            removed.push(from[i].clone());
            i += 1;
        } else {
            added.push(to[j].clone());
            j += 1;
        }
    }
    (removed, added)
}

/// `of` without what `taken` has, each as often as it stands there.
fn without(of: &[String], taken: &[String]) -> Vec<String> {
    let mut count: BTreeMap<&String, usize> = BTreeMap::new();
    for rule in taken {
        *count.entry(rule).or_default() += 1;
    }
    let left = of.iter().filter(|rule| match count.get_mut(rule) {
        Some(n) if *n > 0 => {
            *n -= 1;
            false
        }
        _ => true,
    });
    left.cloned().collect()
}

fn list(what: &str, rules: &[String], report: &mut String) {
    for rule in rules {
        let _ = writeln!(report, "  {what}: {rule}");
    }
}
