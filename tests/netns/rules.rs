//! What `iptables-save` shows of node A.

use std::collections::{BTreeMap, BTreeSet};

use crate::world::{Family, World};

/// The rules of one family, by table and chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Rules by (table, chain), as printed but without `-A CHAIN `. Chains without rules are there, too.
    pub chains: BTreeMap<(String, String), Vec<String>>,
}

/// Chains whose order means nothing, apart from the last rule of the nat table's KUBE-SERVICES.
const UNORDERED: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];

// === impl Rules ===

impl Rules {
    /// What is in the kernel now.
    pub fn read(world: &World, family: Family) -> Rules {
        Rules::parse(&world.node.exec::<&str>(&world.tools.real(family, "-save"), &[], ""))
    }

    /// Reads the text of `iptables-save`.
    pub fn parse(text: &str) -> Rules {
        let mut rules = Rules::default();
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            } else if let Some(rest) = line.strip_prefix(':') {
                let chain = rest.split(' ').next().unwrap();
                rules.chains.entry((table.clone(), chain.to_owned())).or_default();
            } else if let Some(rest) = line.strip_prefix("-A ") {
                let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                rules.chains.entry((table.clone(), chain.to_owned())).or_default().push(rule.to_owned());
            }
        }
        rules
    }

    /// The rules of a chain; none if there is no such chain.
    pub fn chain(&self, table: &str, chain: &str) -> &[String] {
        self.chains.get(&(table.to_owned(), chain.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// Whether a rule of the chain has this text.
    pub fn has(&self, table: &str, chain: &str, text: &str) -> bool {
        self.chain(table, chain).iter().any(|rule| rule.contains(text))
    }

    /// Whether a rule with this text looks for a Service by its address, in whichever layout.
    pub fn leads_to_service(&self, text: &str) -> bool {
        let looks = |chain: &str| chain == "KUBE-SERVICES" || chain.starts_with("KUBE-SVC-ADDR-");
        let mut chains = self.chains.iter().filter(|((table, chain), _)| table == "nat" && looks(chain));
        chains.any(|(_, rules)| rules.iter().any(|rule| rule.contains(text)))
    }

    /// The endpoints (`ip:port`) of a service port (`namespace/name:port`) by the comments in its
    /// cluster or local chain.
    pub fn endpoints(&self, kind: &str, port: &str) -> BTreeSet<String> {
        let comment = format!("--comment \"{port} -> ");
        let chains = self.chains.iter().filter(|((table, chain), _)| table == "nat" && chain.starts_with(kind));
        let rules = chains.flat_map(|(_, rules)| rules);
        rules.filter_map(|rule| Some(rule.split_once(&comment)?.1.split_once('"')?.0.to_owned())).collect()
    }

    /// Without the rules that have this text, and without the chains that only they lead to.
    pub fn without(mut self, text: &str) -> Rules {
        // Chains of a Service are known by the comments in them, or by those of the rules that lead there.
        let target = |rule: &String| Some(rule.rsplit_once("-j KUBE-S")?.1.split(' ').next()?.to_owned());
        let mentions = self.chains.values().flatten().filter(|rule| rule.contains(text));
        let gone: BTreeSet<String> = mentions.filter_map(target).map(|end| format!("KUBE-S{end}")).collect();
        self.chains
            .retain(|(_, chain), _| !gone.contains(chain) || !chain.starts_with("KUBE-S") || chain == "KUBE-SERVICES");
        for rules in self.chains.values_mut() {
            rules.retain(|rule| !rule.contains(text));
        }
        self
    }

    /// The same, in the order that matters: to compare two states that should have the same effect.
    pub fn normal(mut self) -> Rules {
        for ((_, chain), rules) in &mut self.chains {
            if UNORDERED.contains(&chain.as_str()) || chain.starts_with("KUBE-SVC-ADDR-") {
                let last = rules.pop();
                rules.sort();
                rules.extend(last);
                if !rules.last().is_some_and(|rule| rule.contains("must be the last rule")) {
                    rules.sort();
                }
            }
        }
        self
    }

    /// Where two states differ, for messages; empty if nowhere.
    pub fn difference(&self, other: &Rules) -> String {
        let names: BTreeSet<_> = self.chains.keys().chain(other.chains.keys()).collect();
        let mut text = String::new();
        for name in names {
            let (left, right) = (self.chains.get(name), other.chains.get(name));
            if left != right {
                text += &format!("{name:?}:\n   {left:?}\n   {right:?}\n");
            }
        }
        text
    }
}

/// Packets counted by the rules of a table whose text contains `text`.
pub fn packets(world: &World, table: &str, text: &str) -> u64 {
    let save = world.tools.real(world.family(), "-save");
    let saved = world.node.exec(&save, &["-c", "-t", table], "");
    let counts = saved.lines().filter(|line| line.contains(text)).filter_map(|line| {
        let (packets, _) = line.strip_prefix('[')?.split_once(':')?;
        packets.parse::<u64>().ok()
    });
    counts.sum()
}
