//! The rules around virtual servers: what stands in the kernel, and what leads from there to what shall.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::JUMPS;
use super::names;
use crate::backend::iptables::diff::{Changes, Lines};
use crate::backend::iptables::names::ChainName;
use crate::backend::iptables::ruleset::{Rule, Table};

/// Tables with rules of ipvs mode.
pub const TABLES: [Table; 2] = [Table::Nat, Table::Filter];

/// Chains with their rules.
pub type Chains = Vec<(Table, ChainName, Vec<Rule>)>;

/// What stands in the kernel, as far as it concerns ipvs mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Rules of our chains, as text.
    chains: BTreeMap<(Table, ChainName), Vec<String>>,
    /// Jumps from other chains to ours, each once.
    jumps: BTreeSet<(Table, String, String)>,
}

// === impl Standing ===

impl Standing {
    /// Reads one line of `iptables-save -t TABLE`.
    pub fn line(&mut self, table: Table, line: &str) {
        if let Some(chain) = line.strip_prefix(':').and_then(|declared| declared.split(' ').next()) {
            if chain.starts_with("KUBE-") {
                self.chains.entry((table, chain.into())).or_default();
            }
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            if chain.starts_with("KUBE-") {
                self.chains.entry((table, chain.into())).or_default().push(rule.to_owned());
            } else if JUMPS.iter().any(|jump| (jump.table, jump.from) == (table, chain) && jump.rule() == rule) {
                self.jumps.insert((table, chain.to_owned(), rule.to_owned()));
            }
        }
    }

    /// What leads from here to these chains, and to every jump, in these tables.
    pub fn changes(&self, wanted: &Chains, tables: &[Table]) -> Changes {
        let mut changes = Changes::default();
        for (table, chain, rules) in wanted.iter().filter(|(table, ..)| tables.contains(table)) {
            let key = (*table, chain.clone());
            let texts = Lines::of(rules);
            match self.chains.get(&key) {
                Some(standing) if standing.iter().map(String::as_str).eq(texts.iter()) => {}
                // Each rule is about another virtual server: their order does not matter, and they may be many.
                Some(standing) if *chain == names::OUT_FILTER => {
                    let has: BTreeSet<&str> = standing.iter().map(String::as_str).collect();
                    let shall: BTreeSet<&str> = texts.iter().collect();
                    let line = |rule: &&str| (*table, chain.clone(), (*rule).to_owned());
                    changes.append.extend(shall.difference(&has).map(line));
                    changes.delete.extend(has.difference(&shall).map(line));
                }
                _ => changes.replace.push((*table, chain.clone(), texts)),
            }
        }
        for jump in JUMPS.iter().filter(|jump| tables.contains(&jump.table)) {
            let rule = jump.rule();
            if !self.jumps.contains(&(jump.table, jump.from.to_owned(), rule.clone())) {
                changes.insert.push((jump.table, jump.from.into(), rule));
            }
        }
        changes
    }

    /// These changes were made.
    pub fn take(&mut self, changes: Changes) {
        let Changes { replace, insert, append, delete, .. } = changes;
        for (table, chain, rules) in replace {
            self.chains.insert((table, chain), rules.iter().map(str::to_owned).collect());
        }
        for (table, chain, rule) in insert {
            self.jumps.insert((table, chain.as_str().to_owned(), rule));
        }
        for (table, chain, rule) in append {
            self.chains.entry((table, chain)).or_default().push(rule);
        }
        for (table, chain, rule) in delete {
            self.chains.entry((table, chain)).or_default().retain(|standing| *standing != rule);
        }
    }

    /// Whether all of this stands in the kernel as well.
    pub fn is_in(&self, kernel: &Standing) -> bool {
        let same = |(key, rules): (&(Table, ChainName), &Vec<String>)| {
            let Some(there) = kernel.chains.get(key) else { return false };
            match key.1 == names::OUT_FILTER {
                true => rules.iter().collect::<BTreeSet<_>>() == there.iter().collect::<BTreeSet<_>>(),
                false => rules == there,
            }
        };
        self.chains.iter().all(same) && self.jumps.is_subset(&kernel.jumps)
    }

    /// Forgets chains that are not among these: they belong to others, or to another mode.
    pub fn keep(&mut self, wanted: &Chains) {
        self.chains.retain(|(table, chain), _| wanted.iter().any(|(t, c, _)| (t, c) == (table, chain)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::iptables::ruleset::Target;

    const SAVED: &str = ":INPUT ACCEPT [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
-A INPUT -j KUBE-FIREWALL
-A KUBE-NODE-PORT -j ACCEPT
-A KUBE-FIREWALL -j DROP
-A KUBE-IPVS-OUT-FILTER -j DROP
-A KUBE-IPVS-OUT-FILTER -j ACCEPT
";

    fn standing(text: &str) -> Standing {
        let mut standing = Standing::default();
        text.lines().for_each(|line| standing.line(Table::Filter, line));
        standing
    }

    fn chains(guards: &[Target]) -> Chains {
        let of = |targets: &[Target]| targets.iter().cloned().map(Rule::to).collect();
        vec![(Table::Filter, names::NODE_PORT, of(&[Target::Accept])), (Table::Filter, names::OUT_FILTER, of(guards))]
    }

    #[test]
    fn what_stands_is_not_written() {
        let changes = standing(SAVED).changes(&chains(&[Target::Accept, Target::Drop]), &[Table::Filter]);
        assert!(changes.replace.is_empty() && changes.append.is_empty() && changes.delete.is_empty(), "{changes:?}");
        let missing = JUMPS.iter().filter(|jump| jump.table == Table::Filter).count() - 1;
        assert_eq!(changes.insert.len(), missing, "all jumps but the one that is there");
    }

    #[test]
    fn guards_come_and_go_one_by_one() {
        let mut standing = standing(SAVED);
        let wanted = chains(&[Target::Drop, Target::Return]);
        let changes = standing.changes(&wanted, &[Table::Filter]);
        let line = |target: &str| vec![(Table::Filter, names::OUT_FILTER, format!("-j {target}"))];
        assert_eq!((&changes.append, &changes.delete), (&line("RETURN"), &line("ACCEPT")));
        assert!(changes.replace.is_empty(), "{changes:?}");
        standing.take(changes);
        assert!(standing.changes(&wanted, &[Table::Filter]).is_empty());
        assert_eq!(standing.changes(&wanted, &[Table::Nat]).replace, []);
    }

    /// Others may change what is theirs.
    #[test]
    fn only_what_is_ours_is_missed() {
        let mut ours = standing(SAVED);
        ours.keep(&chains(&[]));
        let without =
            |text: &str| standing(&SAVED.lines().filter(|line| !line.contains(text)).collect::<Vec<_>>().join("\n"));
        assert!(ours.is_in(&standing(SAVED)));
        assert!(ours.is_in(&without("KUBE-FIREWALL")));
        assert!(!ours.is_in(&without("kubernetes health check rules")));
        assert!(!ours.is_in(&without("-A KUBE-NODE-PORT")));
        assert!(!ours.is_in(&without("-A KUBE-IPVS-OUT-FILTER -j DROP")));
    }
}
