//! What node A's kernel shows: its rules, what they have counted, whom it remembers, its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ferrule::backend::iptables::ruleset::Table;
use ferrule::command::fake::Tables;
use ferrule::net::IpFamily;

use crate::world::World;

/// The tables that the tracer follows packets through.
const TRACED: [Table; 3] = [Table::Mangle, Table::Filter, Table::Nat];

/// A rule's table, chain, and number in it.
pub(super) type At = (Table, String, usize);

/// A list and an address on it.
pub(super) type Entry = (String, IpAddr);

/// How many packets each rule has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<At, (u64, String)>);

/// The lists of the `recent` match with the addresses on them, and what the kernel says of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists(BTreeMap<Entry, String>);

/// What node A's save program prints for the world's family, with counters.
pub(super) fn save(world: &World) -> String {
    world.node.exec(&world.tools.real(world.family(), "-save"), &["-c"], "")
}

/// The rules in what the save program prints. Those that the tracer would not see are not there.
pub(super) fn tables(family: IpFamily, text: &str) -> Tables {
    let mut table = "";
    for line in text.lines() {
        table = line.strip_prefix('*').unwrap_or(table);
        let is_traced = TRACED.iter().any(|traced| traced.as_str() == table);
        assert!(is_traced || !line.starts_with("-A"), "rules of the table {table} are not traced: {line}");
        // In their place the nft programs print a comment.
        assert!(!line.contains("is incompatible"), "there are rules that iptables cannot show: {line}");
    }
    Tables::parse(family, text).unwrap()
}

/// The addresses of node A's interfaces, besides loopback ones.
pub(super) fn addresses(world: &World) -> Vec<IpAddr> {
    let text = world.node.exec("ip", &["-oneline", "address"], "");
    let words = text.lines().flat_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| ["inet", "inet6"].contains(word)).and_then(|_| words.next())
    });
    let addresses = words.map(|address| address.split('/').next().unwrap().parse().unwrap());
    addresses.filter(|ip: &IpAddr| !ip.is_loopback()).collect()
}

// === impl Counts ===

impl Counts {
    /// The counters in what the save program prints.
    pub(super) fn read(text: &str) -> Counts {
        let mut counts = BTreeMap::new();
        let (mut table, mut last, mut number) = (None, String::new(), 0);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = TRACED.into_iter().find(|table| table.as_str() == name);
                last.clear();
            }
            let Some((count, rule)) = line.strip_prefix('[').and_then(|line| line.split_once("] -A ")) else {
                continue;
            };
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            number = if chain == last { number + 1 } else { 0 };
            chain.clone_into(&mut last);
            let packets = count.split(':').next().unwrap().parse().unwrap();
            if let Some(table) = table {
                counts.insert((table, chain.to_owned(), number), (packets, rule.to_owned()));
            }
        }
        Counts(counts)
    }

    /// The rules that have counted packets since. Fails if they are not the same rules any more.
    pub(super) fn grown_since(&self, before: &Counts) -> Result<BTreeSet<At>, String> {
        let rules = |counts: &Counts| counts.0.iter().map(|(at, (_, rule))| (at.clone(), rule.clone())).collect();
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (rules(before), rules(self));
        if old != new {
            let changed: Vec<_> = old.symmetric_difference(&new).collect();
            return Err(format!("node A's rules have changed meanwhile: {changed:#?}"));
        }
        let grown = |at: &At, packets: u64| match packets.checked_sub(before.0[at].0) {
            Some(more) => Ok((more > 0).then(|| at.clone())),
            None => Err(format!("the counter of {at:?} has gone back: the rule was written again")),
        };
        self.0.iter().filter_map(|(at, (packets, _))| grown(at, *packets).transpose()).collect()
    }
}

// === impl Lists ===

impl Lists {
    pub(super) fn read(world: &World) -> Lists {
        let read = || {
            let mut found = BTreeMap::new();
            // Without a rule that has a list, there may be no such directory.
            let Ok(files) = std::fs::read_dir("/proc/thread-self/net/xt_recent") else { return Lists(found) };
            for file in files.map(Result::unwrap) {
                let list = file.file_name().into_string().unwrap();
                let text = std::fs::read_to_string(file.path()).unwrap();
                for line in text.lines() {
                    let ip = line.strip_prefix("src=").and_then(|rest| rest.split(' ').next()?.parse().ok());
                    let ip = ip.unwrap_or_else(|| panic!("{list}: {line}"));
                    found.insert((list.clone(), ip), line.to_owned());
                }
            }
            Lists(found)
        };
        world.node.run(read)
    }

    /// The lists that an address is on.
    pub(super) fn with(&self, ip: IpAddr) -> impl Iterator<Item = &str> {
        self.0.keys().filter(move |(_, on)| *on == ip).map(|(list, _)| list.as_str())
    }

    /// Addresses that have been put on a list since, again or for the first time.
    pub(super) fn changed_since(&self, before: &Lists) -> BTreeSet<Entry> {
        let changed = self.0.iter().filter(|(entry, text)| before.0.get(entry) != Some(*text));
        changed.map(|(entry, _)| entry.clone()).collect()
    }
}

#[test]
fn tables_that_are_not_traced_must_be_empty() {
    let raw = |rules: &str| {
        format!("*raw\n:PREROUTING ACCEPT [0:0]\n{rules}COMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")
    };
    let fails = |text: String| std::panic::catch_unwind(|| tables(IpFamily::V4, &text)).is_err();
    assert!(!fails(raw("")));
    assert!(fails(raw("-A PREROUTING -j NOTRACK\n")));
    assert!(fails("# Table `filter' is incompatible, use 'nft' tool.\n".to_owned()));
}
