//! What ipvs mode would have in the kernel, against recordings of a real kube-proxy in that mode: virtual and real
//! servers, sets, addresses of the link, and rules. Compiled here from the recorded objects and configurations; in
//! [`in_vm`], brought to a kernel.

mod in_vm;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ferrule::backend::ipvs::compile::Style;
use ferrule::backend::ipvs::render::Whole;
use ferrule::cluster::{ClusterState, Event};
use ferrule::config::flags::{self, Invocation};
use ferrule::config::{self, Config};
use ferrule::fixtures;
use ferrule::net::IpFamily;

use crate::objects::{Objects, Step};
use crate::recording::{golden, read};

/// Addresses of the node on which it was recorded.
const ADDRESSES: [&str; 6] = ["127.0.0.1", "172.31.96.1", "172.31.96.2", "172.31.99.2", "10.128.0.254", "fd00:99::2"];

/// A state as text, each part in any order.
#[derive(Debug, Default)]
struct State {
    /// What `ipvsadm -Sn` prints.
    servers: BTreeSet<String>,
    /// What `ipset save` prints, but for how sets are kept in memory.
    sets: BTreeSet<String>,
    /// Addresses of the link.
    addresses: BTreeSet<IpAddr>,
    /// Rules by family, table and chain.
    rules: BTreeMap<(IpFamily, String, String), Vec<String>>,
}

// === impl State ===

impl State {
    fn recorded(folder: &Path) -> State {
        let lines = |file: &str| read(&folder.join(file)).lines().map(str::to_owned).collect::<Vec<_>>();
        let mut state = State::default();
        state.servers.extend(lines("ipvsadm.txt"));
        state.take_sets(&read(&folder.join("ipset.txt")));
        state.take_addresses(&read(&folder.join("kube-ipvs0.txt")));
        for (family, file) in [(IpFamily::V4, "iptables-save.txt"), (IpFamily::V6, "ip6tables-save.txt")] {
            state.take_rules(family, &read(&folder.join(file)));
        }
        state
    }

    /// Adds what `ipset save` prints.
    fn take_sets(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.split_once(" bucketsize").map_or(line, |(definition, _)| definition);
            self.sets.insert(line.to_owned());
        }
    }

    /// Adds what `ip addr show` prints of the link.
    fn take_addresses(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["inet" | "inet6", address, ..] = words[..] {
                let (ip, length) = address.split_once('/').expect("an address with its length");
                assert!(["32", "128"].contains(&length), "{line}");
                self.addresses.insert(ip.parse().expect("an address"));
            }
        }
    }

    /// What ferrule makes of objects, with a configuration.
    fn planned(objects: &Objects, config: &Config) -> State {
        let folder = tempfile::tempdir().expect("a folder");
        objects.write(folder.path());
        let node_name = &config.planning.node_name;
        let loaded = ferrule::source::manifests::load(&[folder.path().to_owned()], node_name);
        assert!(loaded.broken.is_empty(), "every recorded object can be read");
        let mut cluster = ClusterState::new();
        for event in loaded.events {
            cluster.apply(event);
        }
        let addresses: Vec<IpAddr> = ADDRESSES.iter().map(|ip| ip.parse().expect("an address")).collect();
        cluster.apply(Event::Addresses(addresses.into()));
        let mut state = State::default();
        for family in IpFamily::BOTH {
            let plan = fixtures::plan(&cluster, &config.planning, family);
            let style = Style {
                scheduler: config.ipvs.scheduler.parse().expect("a scheduler"),
                mark: config.masquerade_mark,
                random_fully: true,
            };
            state.take(family, &Whole::compile(&plan, &style).render());
        }
        state
    }

    /// Adds what is rendered of one family.
    fn take(&mut self, family: IpFamily, rendered: &str) {
        let mut part = "";
        let mut rules = String::new();
        for line in rendered.lines() {
            match (line.strip_prefix("# "), part) {
                (Some(title), _) => part = title,
                (_, "ipset restore") => assert!(self.sets.insert(line.to_owned()), "twice: {line}"),
                (_, "ipvsadm --restore") => assert!(self.servers.insert(line.to_owned()), "twice: {line}"),
                (_, "addresses of the link") => {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    if let Some(at) = words.iter().position(|word| *word == "add" && words[1] != "link") {
                        self.addresses.insert(words[at + 1].parse().expect("an address"));
                    }
                }
                (_, tool) => {
                    assert!(tool.ends_with("tables-restore --noflush"), "{tool}");
                    rules.push_str(line);
                    rules.push('\n');
                }
            }
        }
        self.take_rules(family, &rules);
    }

    fn take_rules(&mut self, family: IpFamily, text: &str) {
        let mut table = String::new();
        for line in text.lines() {
            let key = |chain: &str| (family, table.clone(), chain.to_owned());
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            } else if let Some((chain, _)) = line.strip_prefix(':').and_then(|line| line.split_once(' ')) {
                if chain.starts_with("KUBE-") {
                    self.rules.entry(key(chain)).or_default();
                }
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|line| line.split_once(' ')) {
                self.rules.entry(key(chain)).or_default().push(rule.to_owned());
            } else if let Some((chain, rule)) = line.strip_prefix("-I ").and_then(|line| line.split_once(' ')) {
                self.rules.entry(key(chain)).or_default().insert(0, rule.to_owned());
            }
        }
        for ((_, _, chain), rules) in &mut self.rules {
            if chain == "KUBE-IPVS-OUT-FILTER" {
                rules.sort();
            }
        }
    }

    #[track_caller]
    fn assert_is(&self, expected: &State, of: &str) {
        let report = self.differences(expected);
        assert!(report.is_empty(), "{of}:\n{}", report.join("\n"));
    }

    fn differences(&self, expected: &State) -> Vec<String> {
        let mut report = Vec::new();
        let mut compare = |what: &str, ours: &BTreeSet<String>, theirs: &BTreeSet<String>| {
            report.extend(theirs.difference(ours).map(|line| format!("{what}, missing: {line}")));
            report.extend(ours.difference(theirs).map(|line| format!("{what}, unexpected: {line}")));
        };
        compare("servers", &self.servers, &expected.servers);
        compare("sets", &self.sets, &expected.sets);
        let addresses = |of: &State| of.addresses.iter().map(ToString::to_string).collect();
        compare("addresses", &addresses(self), &addresses(expected));
        for key in self.rules.keys().chain(expected.rules.keys()).collect::<BTreeSet<_>>() {
            let (ours, theirs) = (self.rules.get(key), expected.rules.get(key));
            if ours != theirs {
                report.push(format!("{key:?}:\n  {ours:#?}\n  instead of\n  {theirs:#?}"));
            }
        }
        report
    }
}

fn configuration(folder: &Path) -> Config {
    let args = ["ferrule".to_owned(), format!("--config={}", folder.join("config.yaml").display())];
    let invocation = flags::parse(&args).expect("flags").invocation;
    let Invocation::Proxy(flags) = invocation else { panic!("no proxy: {args:?}") };
    config::load(&flags).config.unwrap_or_else(|error| panic!("{error}"))
}

fn check(case: &str) {
    let folder = golden().join(format!("ipvs-{case}"));
    let planned = State::planned(&Objects::recorded(&["all.yaml"]), &configuration(&folder));
    planned.assert_is(&State::recorded(&folder), case);
}

#[test]
fn base() {
    check("base");
}

#[test]
fn masqall() {
    check("masqall");
}

#[test]
fn npcidr() {
    check("npcidr");
}

#[test]
fn nodetect() {
    check("nodetect");
}

#[test]
fn strictarp_exclude() {
    let folder = golden().join("ipvs-strictarp-exclude");
    let mut recorded = State::recorded(&folder);
    // In excludeCIDRs: somebody else's, and left alone.
    let before = recorded.servers.len();
    recorded.servers.retain(|line| !line.contains(" 10.77."));
    assert!(recorded.servers.len() < before, "there was one");
    State::planned(&Objects::recorded(&["all.yaml"]), &configuration(&folder))
        .assert_is(&recorded, "strictarp-exclude");
}

#[test]
fn every_step() {
    let folder = golden().join("ipvs-base");
    let config = configuration(&folder);
    let mut objects = Objects::recorded(&["all.yaml"]);
    for step in Step::recorded() {
        objects.take(&step);
        State::planned(&objects, &config)
            .assert_is(&State::recorded(&folder.join("steps").join(&step.name)), &step.name);
    }
}
