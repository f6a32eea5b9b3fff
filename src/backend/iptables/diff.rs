//! What must be written so that the kernel goes from one state to another.

use std::collections::{BTreeMap, HashMap};

use super::compile::{self, BaseRules, Layout, ServiceRules, Shared, Style};
use super::names::{self, ChainName};
use super::ruleset::{Rule, Table};
use super::snapshot::{Snapshot, digest};
use crate::backend::RuleCount;
use crate::model::ServicePortName;
use crate::plan::ServicePlan;

/// Edits of chains. Rules are texts in the form of `iptables-save`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Chains to create empty; must not exist, or they lose their rules.
    pub create: Vec<(Table, ChainName)>,
    /// Chains to create or empty, and to fill.
    pub replace: Vec<(Table, ChainName, Lines)>,
    /// Rules to put at the head of a chain.
    pub insert: Vec<(Table, ChainName, String)>,
    /// Rules to put at the end of a chain.
    pub append: Vec<(Table, ChainName, String)>,
    /// Rules to take out of a chain.
    pub delete: Vec<(Table, ChainName, String)>,
    /// Chains to empty and remove. Nothing may refer to them any more.
    pub remove: Vec<(Table, ChainName)>,
    /// How many rules of our own chains there are afterwards, written now or before: those of one
    /// Service port, or those that belong to none.
    pub holds: RuleCount,
}

/// Texts of a chain's rules, each with a line end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    text: String,
    count: usize,
}

/// What the kernel is taken to hold of a Service port.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// The plan its rules follow.
    pub plan: &'a ServicePlan,
    /// Their style.
    pub style: &'a Style,
    /// Whether its chains hold what they should; if not, all are written anew.
    pub certain: bool,
    /// Whether rules in shared chains lead to them.
    pub hooked: bool,
}

/// Of which tables changes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// The filter table's only.
    Filter,
    /// The nat table's only.
    Nat,
}

/// Compiled rules of a Service port as texts, ready to be compared.
#[derive(Default)]
struct Texts {
    chains: Vec<(ChainName, Lines)>,
    shared: Vec<(Shared, String)>,
}

// === impl Changes ===

impl Changes {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        let Changes { create, replace, insert, append, delete, remove, holds: _ } = self;
        create.is_empty()
            && replace.is_empty()
            && insert.is_empty()
            && append.is_empty()
            && delete.is_empty()
            && remove.is_empty()
    }

    /// How many rules they write to our own chains.
    pub fn rules(&self) -> RuleCount {
        let mut count = RuleCount::default();
        for (table, _, rules) in &self.replace {
            add(&mut count, *table, rules.len());
        }
        for (table, chain, _) in self.insert.iter().chain(&self.append) {
            add(&mut count, *table, usize::from(chain.as_str().starts_with("KUBE-")));
        }
        count
    }

    /// Whether nothing of what there shall be is there: neither chains as they shall be, nor any rule that
    /// leads to them.
    pub fn is_all_new(&self) -> bool {
        let Changes { create, delete, append, remove, .. } = self;
        create.is_empty() && delete.is_empty() && append.is_empty() && remove.is_empty() && self.rules() == self.holds
    }

    /// How many lines they come to, roughly.
    pub fn lines(&self) -> usize {
        let replaced: usize = self.replace.iter().map(|(_, _, rules)| rules.len() + 1).sum();
        replaced + self.create.len() + self.insert.len() + self.append.len() + self.delete.len() + 2 * self.remove.len()
    }

    /// Takes the removals out: these chains are only emptied.
    pub fn empty_instead_of_remove(&mut self) -> Vec<(Table, ChainName)> {
        let emptied = self.remove.iter().map(|(table, chain)| (*table, chain.clone(), Lines::default()));
        self.replace.extend(emptied);
        std::mem::take(&mut self.remove)
    }

    /// The same removals in two parts; `None` if there is only one chain to remove.
    pub fn halved_removal(mut self) -> Option<[Changes; 2]> {
        if self.remove.len() < 2 {
            return None;
        }
        let rest = self.remove.split_off(self.remove.len() / 2);
        Some([self, Changes { remove: rest, ..Changes::default() }])
    }
}

// === impl Lines ===

impl Lines {
    /// The texts of these rules.
    pub fn of(rules: &[Rule]) -> Lines {
        let mut text = String::with_capacity(128 * rules.len());
        for rule in rules {
            rule.write(&mut text);
            text.push('\n');
        }
        Lines { text, count: rules.len() }
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.text.split_terminator('\n')
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

// === impl Texts ===

impl Texts {
    fn of(name: &ServicePortName, plan: &ServicePlan, style: &Style, part: Part) -> Texts {
        let ServiceRules { chains, shared } = match part {
            Part::Filter => ServiceRules { chains: Vec::new(), shared: compile::shared(name, plan, style) },
            Part::Whole | Part::Nat => compile::service(name, plan, style),
        };
        let is_wanted = |shared: Shared| match part {
            Part::Whole => true,
            Part::Filter => shared.table() == Table::Filter,
            Part::Nat => shared.table() == Table::Nat,
        };
        let shared = shared.into_iter().filter(|(shared, _)| is_wanted(*shared));
        Texts {
            chains: chains.into_iter().map(|(chain, rules)| (chain, Lines::of(&rules))).collect(),
            shared: shared.map(|(shared, rule)| (shared, rule.to_string())).collect(),
        }
    }

    fn held(name: &ServicePortName, held: Option<&Held<'_>>, part: Part) -> Texts {
        let mut texts = held.map(|held| Texts::of(name, held.plan, held.style, part)).unwrap_or_default();
        if held.is_some_and(|held| !held.hooked) {
            texts.shared.clear();
        }
        texts
    }
}

/// Counts rules of a table.
fn add(count: &mut RuleCount, table: Table, rules: usize) {
    match table {
        Table::Filter => count.filter += rules,
        Table::Nat => count.nat += rules,
        // Only the canary is there.
        Table::Mangle => {}
    }
}

impl Texts {
    fn count(&self) -> RuleCount {
        let mut count = RuleCount::default();
        self.chains.iter().for_each(|(_, rules)| add(&mut count, Table::Nat, rules.len()));
        self.shared.iter().for_each(|(shared, _)| add(&mut count, shared.table(), 1));
        count
    }
}

fn count_base(base: &BaseRules) -> RuleCount {
    let mut count = RuleCount::default();
    base.chains.iter().for_each(|(table, _, rules)| add(&mut count, *table, rules.len()));
    add(&mut count, Table::Nat, base.dispatch_rules() + base.tail.len());
    count
}

/// From one plan of a Service port to another; `None` is a port without rules.
pub fn service(
    name: &ServicePortName,
    held: Option<&Held<'_>>,
    new: Option<&ServicePlan>,
    style: &Style,
    part: Part,
) -> Changes {
    let old = Texts::held(name, held, part);
    let certain = held.is_none_or(|held| held.certain);
    let new = new.map(|new| Texts::of(name, new, style, part)).unwrap_or_default();
    let holds = new.count();
    let mut changes = Changes { holds, ..own_chains(&old.chains, new.chains, certain) };
    let mut surplus: BTreeMap<(Shared, String), usize> = BTreeMap::new();
    for rule in old.shared {
        *surplus.entry(rule).or_default() += 1;
    }
    // Each goes to the head of its chain, so the last one first: a rule that counts some packets of
    // another one has to stand before it.
    for (shared, rule) in new.shared.into_iter().rev() {
        let key = (shared, rule);
        match surplus.get_mut(&key) {
            Some(count) if *count > 0 => *count -= 1,
            _ => changes.insert.push((key.0.table(), key.0.chain(), key.1)),
        }
    }
    for ((shared, rule), count) in surplus {
        changes.delete.extend((0..count).map(|_| (shared.table(), shared.chain(), rule.clone())));
    }
    changes
}

fn own_chains(old: &[(ChainName, Lines)], new: Vec<(ChainName, Lines)>, certain: bool) -> Changes {
    let before: HashMap<&ChainName, &Lines> = old.iter().map(|(chain, rules)| (chain, rules)).collect();
    let mut changes = Changes::default();
    for (chain, _) in old {
        if !new.iter().any(|(kept, _)| kept == chain) {
            changes.remove.push((Table::Nat, chain.clone()));
        }
    }
    for (chain, rules) in new {
        if !certain || before.get(&chain) != Some(&&rules) {
            changes.replace.push((Table::Nat, chain, rules));
        }
    }
    changes
}

/// From what the kernel was seen to hold to the plan of a Service port. Its rules in shared chains
/// are ticked off in the snapshot: what is left there in the end belongs to nobody.
/// `held` is what the kernel's chains of the port are known to follow, if that is known.
pub fn service_from_snapshot(
    name: &ServicePortName,
    held: Option<&Held<'_>>,
    new: Option<&ServicePlan>,
    style: &Style,
    part: Part,
    snapshot: &mut Snapshot,
) -> Changes {
    let new_texts = new.map(|new| Texts::of(name, new, style, part)).unwrap_or_default();
    let holds = new_texts.count();
    let mut old_shared = Vec::new();
    let mut changes = if snapshot.has_chains() {
        let mut changes = Changes::default();
        for (chain, rules) in new_texts.chains {
            if snapshot.claim(Table::Nat, &chain) != Some(digest(rules.iter())) {
                changes.replace.push((Table::Nat, chain, rules));
            }
        }
        changes
    } else {
        let old = Texts::held(name, held, part);
        old_shared = old.shared;
        own_chains(&old.chains, new_texts.chains, held.is_none_or(|held| held.certain))
    };
    changes.holds = holds;
    for (shared, rule) in new_texts.shared.into_iter().rev() {
        if !snapshot.tick_off(shared, &rule) {
            changes.insert.push((shared.table(), shared.chain(), rule));
        }
    }
    // Not left for later: chains are removed now, and nothing may refer to them any more.
    for (shared, rule) in old_shared {
        if snapshot.tick_off(shared, &rule) {
            changes.delete.push((shared.table(), shared.chain(), rule));
        }
    }
    changes
}

/// Whether shared chains hold the rules of a Service port, which are ticked off.
pub fn shares(name: &ServicePortName, plan: &ServicePlan, style: &Style, snapshot: &mut Snapshot) -> bool {
    let rules = compile::shared(name, plan, style);
    rules.into_iter().all(|(shared, rule)| snapshot.tick_off(shared, &rule.to_string()))
}

/// From one base to another.
pub fn base(old: &BaseRules, new: &BaseRules) -> Changes {
    let mut changes = Changes { holds: count_base(new), ..Changes::default() };
    for (table, chain, rules) in &new.chains {
        if !old.chains.contains(&(*table, chain.clone(), rules.clone())) {
            changes.replace.push((*table, chain.clone(), Lines::of(rules)));
        }
    }
    for (table, chain, _) in &old.chains {
        // KUBE-FIREWALL stays as it is: it is the kubelet's too, and guards what it always did.
        if *chain != names::FIREWALL && !new.chains.iter().any(|(t, c, _)| (t, c) == (table, chain)) {
            changes.replace.push((*table, chain.clone(), Lines::default()));
        }
    }
    let services = |rule: &Rule| (Table::Nat, names::SERVICES, rule.to_string());
    if old.layout != new.layout {
        let of_one = |one: Layout, other: Layout| Shared::of(one).filter(move |shared| !shared.is_of(other));
        let chain = |shared: Shared| (shared.table(), shared.chain());
        changes.create.extend(of_one(new.layout, old.layout).map(chain));
        changes.remove.extend(of_one(old.layout, new.layout).map(chain));
        let (before, now) = (old.dispatch(), new.dispatch());
        let of_old = before.iter().filter(|chain| !now.contains(chain));
        changes.remove.extend(of_old.map(|(table, chain, _)| (*table, chain.clone())));
        let of_new = now.iter().filter(|chain| !before.contains(chain));
        changes.replace.extend(of_new.map(|(table, chain, rules)| (*table, chain.clone(), Lines::of(rules))));
        let (before, now) = (old.head(), new.head());
        changes.insert.extend(now.iter().filter(|rule| !before.contains(rule)).map(services));
        changes.delete.extend(before.iter().filter(|rule| !now.contains(rule)).map(services));
    }
    changes.append.extend(new.tail.iter().filter(|rule| !old.tail.contains(rule)).map(services));
    changes.delete.extend(old.tail.iter().filter(|rule| !new.tail.contains(rule)).map(services));
    changes
}

/// From what the kernel was seen to hold to the base, with the chains others are compiled into,
/// the jumps from built-in chains, and the canaries.
pub fn base_from_snapshot(new: &BaseRules, snapshot: &mut Snapshot) -> Changes {
    let mut changes = Changes { holds: count_base(new), ..Changes::default() };
    for table in [Table::Mangle, Table::Filter, Table::Nat] {
        if !snapshot.has_chain(table, &names::CANARY) {
            changes.create.push((table, names::CANARY));
        }
    }
    let jump_targets = JUMPS.iter().map(|jump| (jump.table, ChainName::from(jump.to)));
    let shared = Shared::of(new.layout).map(|shared| (shared.table(), shared.chain()));
    for (table, chain) in jump_targets.chain(shared) {
        snapshot.claim(table, &chain);
        let replaced = new.chains.iter().any(|(t, c, _)| (*t, c) == (table, &chain));
        if !replaced && !snapshot.has_chain(table, &chain) && !changes.create.contains(&(table, chain.clone())) {
            changes.create.push((table, chain));
        }
    }
    for (table, chain, rules) in new.chains.iter().chain(&new.dispatch()) {
        let rules = Lines::of(rules);
        if snapshot.claim(*table, chain) != Some(digest(rules.iter())) {
            changes.replace.push((*table, chain.clone(), rules));
        }
    }
    for jump in &JUMPS {
        let rule = jump.rule();
        if !snapshot.has_jump(jump.table, jump.from, &rule) {
            changes.insert.push((jump.table, ChainName::from(jump.from), rule));
        }
    }
    insert_missing_head(&mut changes, new, snapshot);
    // The tail must be last, all of it: if anything else stands behind, it is written anew.
    let tail: Vec<String> = new.tail.iter().map(ToString::to_string).collect();
    let services = |rule: String| (Table::Nat, names::SERVICES, rule);
    if snapshot.ends_with(Shared::NatServices, &tail) {
        for rule in &tail {
            snapshot.tick_off(Shared::NatServices, rule);
        }
    } else {
        let stale = tail.iter().filter(|rule| snapshot.tick_off(Shared::NatServices, rule)).cloned();
        changes.delete.extend(stale.map(services));
        changes.append.extend(tail.iter().cloned().map(services));
    }
    delete_other_tails(&mut changes, snapshot);
    changes
}

fn insert_missing_head(changes: &mut Changes, new: &BaseRules, snapshot: &mut Snapshot) {
    let rules = new.head().into_iter().map(|rule| rule.to_string());
    let missing = rules.filter(|rule| !snapshot.tick_off(Shared::NatServices, rule));
    changes.insert.extend(missing.map(|rule| (Table::Nat, names::SERVICES, rule)));
}

/// What else leads to node ports goes at once: until then, node ports would answer on addresses
/// that no longer serve them.
fn delete_other_tails(changes: &mut Changes, snapshot: &mut Snapshot) {
    let leads_there = |rule: &str| rule.ends_with(" -j KUBE-NODEPORTS");
    let others = snapshot.take_left(Shared::NatServices, leads_there);
    changes.delete.extend(others.into_iter().map(|rule| (Table::Nat, names::SERVICES, rule)));
}

/// From one base to another where only the shared chains were read.
pub fn base_beside_snapshot(old: Option<&BaseRules>, new: &BaseRules, snapshot: &mut Snapshot) -> Changes {
    let mut changes = old.map(|old| base(old, new)).unwrap_or_default();
    changes.holds = count_base(new);
    changes.insert.clear();
    changes.append.clear();
    changes.delete.clear();
    insert_missing_head(&mut changes, new, snapshot);
    let services = |rule: &Rule| (Table::Nat, names::SERVICES, rule.to_string());
    let missing = new.tail.iter().filter(|rule| !snapshot.tick_off(Shared::NatServices, &rule.to_string()));
    changes.append.extend(missing.map(services));
    delete_other_tails(&mut changes, snapshot);
    changes
}

/// A jump from a built-in chain into one of ours.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    /// Table of both chains.
    pub table: Table,
    /// The built-in chain.
    pub from: &'static str,
    /// Our chain.
    pub to: &'static str,
    /// Only first packets of connections.
    pub new_only: bool,
    /// Comment, if it has one.
    pub comment: &'static str,
}

/// kube-proxy's jumps, in the order in which it puts each at the head of its chain.
pub const JUMPS: [Jump; 14] = {
    use Table::{Filter, Nat};
    [
        Jump::new(Filter, "INPUT", "KUBE-EXTERNAL-SERVICES", true, "kubernetes externally-visible service portals"),
        Jump::new(Filter, "FORWARD", "KUBE-EXTERNAL-SERVICES", true, "kubernetes externally-visible service portals"),
        Jump::new(Filter, "INPUT", "KUBE-NODEPORTS", false, "kubernetes health check service ports"),
        Jump::new(Filter, "FORWARD", "KUBE-SERVICES", true, "kubernetes service portals"),
        Jump::new(Filter, "OUTPUT", "KUBE-SERVICES", true, "kubernetes service portals"),
        Jump::new(Filter, "FORWARD", "KUBE-FORWARD", false, "kubernetes forwarding rules"),
        Jump::new(Filter, "INPUT", "KUBE-PROXY-FIREWALL", true, "kubernetes load balancer firewall"),
        Jump::new(Filter, "OUTPUT", "KUBE-PROXY-FIREWALL", true, "kubernetes load balancer firewall"),
        Jump::new(Filter, "FORWARD", "KUBE-PROXY-FIREWALL", true, "kubernetes load balancer firewall"),
        Jump::new(Nat, "OUTPUT", "KUBE-SERVICES", false, "kubernetes service portals"),
        Jump::new(Nat, "PREROUTING", "KUBE-SERVICES", false, "kubernetes service portals"),
        Jump::new(Nat, "POSTROUTING", "KUBE-POSTROUTING", false, "kubernetes postrouting rules"),
        Jump::new(Filter, "INPUT", "KUBE-FIREWALL", false, ""),
        Jump::new(Filter, "OUTPUT", "KUBE-FIREWALL", false, ""),
    ]
};

// === impl Jump ===

impl Jump {
    /// A jump, with an empty comment for none.
    pub const fn new(
        table: Table,
        from: &'static str,
        to: &'static str,
        new_only: bool,
        comment: &'static str,
    ) -> Jump {
        Jump { table, from, to, new_only, comment }
    }

    /// Its rule as text.
    pub fn rule(&self) -> String {
        use super::ruleset::{ConnStates, Is, Match};
        let mut rule = Rule::jump(ChainName::fixed(self.to));
        if self.new_only {
            rule = rule.with(Match::ConnState(Is::so(ConnStates::NEW)));
        }
        if !self.comment.is_empty() {
            rule = rule.comment(self.comment);
        }
        rule.to_string()
    }
}
