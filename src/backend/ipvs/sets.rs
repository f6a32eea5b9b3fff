//! Sets of addresses as `ipset` takes and prints them.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::ruleset::{Entry, Set};
use crate::net::{IpFamily, Protocol, host_net};

/// Input of `ipset restore -exist`, and which line is about which entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    lines: Vec<(String, Option<(Set, Entry)>)>,
}

/// What `ipset save` says about the sets of a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Sets that are there, each with whether it is what it should be, and if not, what it is.
    pub sets: BTreeMap<Set, Result<(), String>>,
    /// Their entries.
    pub entries: HashSet<(Set, Entry)>,
    /// Lines of entries that make no sense for their set.
    pub strange: Vec<String>,
}

/// How many entries the sets of a family have, from `ipset list -terse`.
#[derive(Clone, Debug)]
pub struct Sizes {
    family: IpFamily,
    /// The set that the next lines are about.
    set: Option<Set>,
    /// What is known so far.
    pub known: BTreeMap<Set, usize>,
}

// === impl Input ===

impl Input {
    /// Makes these sets of a family.
    pub fn create(&mut self, family: IpFamily, which: impl Fn(Set) -> bool) {
        for set in Set::all().filter(|set| which(*set)) {
            self.lines.push((format!("create {} {}", set.name(family), set.definition(family)), None));
        }
    }

    /// Adds entries.
    pub fn add(&mut self, family: IpFamily, entries: &[(Set, Entry)]) {
        self.entries("add", family, entries);
    }

    /// Removes entries.
    pub fn remove(&mut self, family: IpFamily, entries: &[(Set, Entry)]) {
        self.entries("del", family, entries);
    }

    fn entries(&mut self, verb: &str, family: IpFamily, entries: &[(Set, Entry)]) {
        for (set, entry) in entries {
            self.lines.push((format!("{verb} {} {entry}", set.name(family)), Some((*set, *entry))));
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (line, _) in &self.lines {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// What is left to do after the program stopped at a line (from 1), and the entry of that line, which is refused.
    /// `None` if it is about no entry.
    pub fn after(mut self, line: usize) -> Option<((Set, Entry), Input)> {
        let rest = self.lines.split_off(line.min(self.lines.len()));
        let (_, entry) = self.lines.pop()?;
        Some((entry?, Input { lines: rest }))
    }
}

/// The number in `Error in line 7: ...`.
pub fn line_of(complaint: &str) -> Option<usize> {
    let (_, rest) = complaint.split_once("in line ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

// === impl Sizes ===

impl Sizes {
    /// Nothing read yet.
    pub fn new(family: IpFamily) -> Sizes {
        Sizes { family, set: None, known: BTreeMap::new() }
    }

    /// Reads one line.
    pub fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("Name: ") {
            self.set = Set::all().find(|set| set.name(self.family) == name);
        } else if let (Some(set), Some(size)) = (self.set, line.strip_prefix("Number of entries: ")) {
            self.known.extend(size.parse().ok().map(|size| (set, size)));
        }
    }
}

// === impl Saved ===

impl Saved {
    /// Reads one line of `ipset save`. Those of sets that are not ours do not count.
    pub fn line(&mut self, family: IpFamily, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (Some(verb), Some(name), rest) = (words.next(), words.next(), words.next().unwrap_or_default()) else {
            return;
        };
        let Some(set) = Set::all().find(|set| set.name(family) == name) else { return };
        match verb {
            "create" => {
                let right = rest.starts_with(&identity(&set.definition(family)));
                self.sets.insert(set, right.then_some(()).ok_or_else(|| rest.to_owned()));
            }
            "add" => match parse(set, rest) {
                Some(entry) => drop(self.entries.insert((set, entry))),
                None => self.strange.push(line.to_owned()),
            },
            _ => {}
        }
    }
}

/// What of a definition says what a set can hold: type, family or range.
fn identity(definition: &str) -> String {
    definition.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Reads what is printed of an entry.
fn parse(set: Set, text: &str) -> Option<Entry> {
    let text = text.split(' ').next()?;
    let mut parts = text.split(',');
    let mut next = || parts.next();
    let service = |text: &str| {
        let (protocol, port) = text.split_once(':')?;
        let protocol = Protocol::ALL.into_iter().find(|known| known.lower() == protocol)?;
        Some((protocol, port.parse().ok()?))
    };
    let kind = set.definition(IpFamily::V4);
    match kind.split(' ').next()? {
        "bitmap:port" => Some(Entry::Port(text.parse().ok()?)),
        "hash:ip" => Some(Entry::Ip(next()?.parse().ok()?)),
        "hash:ip,port" => {
            let ip: IpAddr = next()?.parse().ok()?;
            let (protocol, port) = service(next()?)?;
            Some(Entry::IpPort(ip, protocol, port))
        }
        "hash:ip,port,ip" => {
            let ip: IpAddr = next()?.parse().ok()?;
            let (protocol, port) = service(next()?)?;
            Some(Entry::IpPortIp(ip, protocol, port, next()?.parse().ok()?))
        }
        "hash:ip,port,net" => {
            let ip: IpAddr = next()?.parse().ok()?;
            let (protocol, port) = service(next()?)?;
            let net = next()?;
            let net = net.parse().ok().or_else(|| net.parse().ok().map(host_net))?;
            Some(Entry::IpPortNet(ip, protocol, port, net))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpFamily = IpFamily::V4;

    #[test]
    fn what_is_printed_of_an_entry_is_read() {
        let check = |set: Set, text: &str| {
            let entry = parse(set, text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(entry.to_string(), text);
        };
        check(Set::NodePortTcp, "30080");
        check(Set::IpvsIps, "fd00::1");
        check(Set::ClusterIp, "10.96.0.1,sctp:80");
        check(Set::LoopBack, "fd00::5,udp:53,fd00::5");
        check(Set::LoadBalancerSourceCidr, "203.0.113.1,tcp:80,192.0.2.0/24");
        check(Set::LoadBalancerSourceCidr, "203.0.113.1,tcp:80,192.0.2.1");
        for strange in ["", "10.96.0.1", "10.96.0.1,icmp:8", "10.96.0.1,tcp:80000"] {
            assert_eq!(parse(Set::ClusterIp, strange), None, "{strange}");
        }
    }

    #[test]
    fn a_saved_set_of_another_kind_shows() {
        let mut saved = Saved::default();
        let header = "family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1";
        for line in [
            format!("create KUBE-CLUSTER-IP hash:ip,port {header}"),
            "add KUBE-CLUSTER-IP 10.96.0.1,tcp:443".to_owned(),
            "add KUBE-CLUSTER-IP nonsense".to_owned(),
            format!("create KUBE-LOOP-BACK hash:net {header}"),
            format!("create KUBE-6-CLUSTER-IP hash:ip,port {header}"),
            "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535".to_owned(),
            format!("create somebody-elses hash:ip {header}"),
            "add somebody-elses 192.0.2.1".to_owned(),
        ] {
            saved.line(V4, &line);
        }
        assert_eq!(saved.sets.len(), 3);
        assert_eq!(saved.sets[&Set::ClusterIp], Ok(()));
        assert_eq!(saved.sets[&Set::NodePortTcp], Ok(()));
        assert_eq!(saved.sets[&Set::LoopBack], Err(format!("hash:net {header}")));
        assert_eq!(saved.entries.len(), 1);
        assert_eq!(saved.strange, ["add KUBE-CLUSTER-IP nonsense"]);
    }

    #[test]
    fn sizes_are_those_of_our_sets() {
        let mut sizes = Sizes::new(V4);
        for line in ["Name: KUBE-CLUSTER-IP", "Type: hash:ip,port", "Header: family inet", "Number of entries: 5"] {
            sizes.line(line);
        }
        for line in ["Name: KUBE-6-CLUSTER-IP", "Number of entries: 6", "", "Name: other", "Number of entries: 7"] {
            sizes.line(line);
        }
        assert_eq!(sizes.known, BTreeMap::from([(Set::ClusterIp, 5)]));
    }

    #[test]
    fn what_follows_a_refused_entry_is_left_to_do() {
        let entries = [1, 2, 3].map(|port| (Set::NodePortTcp, Entry::Port(port)));
        let mut input = Input::default();
        input.add(V4, &entries);
        assert_eq!(input.text(), "add KUBE-NODE-PORT-TCP 1\nadd KUBE-NODE-PORT-TCP 2\nadd KUBE-NODE-PORT-TCP 3\n");
        let line = line_of("ipset v7.17: Error in line 2: Hash is full, cannot add more elements").unwrap();
        let (refused, rest) = input.clone().after(line).unwrap();
        assert_eq!(refused, entries[1]);
        assert_eq!(rest.text(), "add KUBE-NODE-PORT-TCP 3\n");
        let mut sets = Input::default();
        sets.create(V4, |_| true);
        assert!(!sets.is_empty());
        assert_eq!(sets.after(4), None);
        assert_eq!(line_of("ipset v7.17: Cannot open session to kernel."), None);
    }
}
