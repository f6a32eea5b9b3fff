//! The same objects and the same configuration give the rules a real kube-proxy left in the kernel.

use std::collections::BTreeSet;

use ferrule::backend::iptables::compile::{Layout, Shared};
use ferrule::backend::iptables::names;
use ferrule::backend::iptables::ruleset::{Rule, Table};
use ferrule::net::{IpFamily, parse_cidr, parse_ip};
use ferrule::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings};
use serde_json::Value;

use crate::pipeline::{self, Chains};
use crate::recordings::{self, Objects, SavedChains};

#[test]
fn rules_are_those_of_kube_proxy() {
    let mut compared = 0;
    for case in recordings::iptables_cases() {
        let config = Config::read(&case);
        let mut objects = Objects::default();
        objects.apply("objects/all.yaml");
        if case.ends_with("-large") {
            objects.apply("objects/large-extra.yaml");
        }
        for family in IpFamily::BOTH {
            compared += compare(&case, &objects, &config, family);
        }
        if case.ends_with("-base") {
            for step in recordings::steps() {
                objects.step(&step);
                for family in IpFamily::BOTH {
                    compared += compare(&format!("{case}/steps/{step}"), &objects, &config, family);
                }
            }
        }
    }
    assert!(compared > 10_000, "only {compared} rules compared");
}

/// Compares one recording with what is compiled; returns how many rules that were.
fn compare(directory: &str, objects: &Objects, config: &Config, family: IpFamily) -> usize {
    let plan = pipeline::plan(&objects.cluster(), &config.settings, family);
    let style = pipeline::style(&plan, config.mark, Layout::default());
    assert_eq!(style.large_cluster, directory.ends_with("-large") && family == IpFamily::V4, "{directory}");
    let ours = normalized(pipeline::compile(&plan, &style));
    let theirs = normalized_saved(recordings::saved_chains(&recordings::saved_text(directory, family)));
    let mut differences = String::new();
    for (table, chain) in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let key = (*table, chain.clone());
        if ours.get(&key) == theirs.get(&key) {
            continue;
        }
        differences += &format!("{table} {chain}\n");
        let lines = |chains: &SavedChains| chains.get(&key).cloned();
        match (lines(&ours), lines(&theirs)) {
            (None, _) => differences += "    is missing\n",
            (_, None) => differences += "    is not kube-proxy's\n",
            (Some(ours), Some(theirs)) => {
                for line in theirs.iter().filter(|line| !ours.contains(line)) {
                    differences += &format!("    kube-proxy: {line}\n");
                }
                for line in ours.iter().filter(|line| !theirs.contains(line)) {
                    differences += &format!("    ferrule:    {line}\n");
                }
                differences += "    (order, or the above)\n";
            }
        }
    }
    assert!(differences.is_empty(), "{directory} {family}:\n{differences}");
    ours.values().map(Vec::len).sum()
}

/// Sorts what kube-proxy writes in the order of a hash map; the rule that must be the last stays.
fn normalized_saved(mut chains: SavedChains) -> SavedChains {
    chains.retain(|(_, chain), _| chain.as_str().starts_with("KUBE-") && *chain != names::CANARY);
    for shared in Shared::ALWAYS {
        let rules = chains.get_mut(&(shared.table(), shared.chain())).expect("kube-proxy has every shared chain");
        let body = rules.iter().position(|rule| rule.contains("must be the last rule")).unwrap_or(rules.len());
        let (body, tail) = rules.split_at_mut(body);
        body.sort();
        tail.sort();
        assert!(tail.iter().all(|rule| rule.contains("must be the last rule")), "{tail:?}");
    }
    chains
}

/// The text of our rules. KUBE-FIREWALL is made with the jump to it, whether or not it has rules.
fn normalized(mut chains: Chains) -> SavedChains {
    chains.entry((Table::Filter, names::FIREWALL)).or_default();
    let text = |rules: Vec<Rule>| rules.iter().map(ToString::to_string).collect();
    normalized_saved(chains.into_iter().map(|(chain, rules)| (chain, text(rules))).collect())
}

/// What a recorded configuration says about rules.
struct Config {
    settings: Settings,
    mark: u32,
}

impl Config {
    fn read(case: &str) -> Config {
        let file: Value = serde_saphyr::from_str(&recordings::read(&format!("{case}/config.yaml"))).unwrap();
        let text = |pointer: &str| file.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let detect_local = match text("/detectLocalMode").as_str() {
            "" | "ClusterCIDR" => {
                DetectLocal::ClusterCidr(text("/clusterCIDR").split(',').filter_map(parse_cidr).collect())
            }
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(text("/detectLocal/bridgeInterface")),
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(text("/detectLocal/interfaceNamePrefix")),
            other => panic!("{case}: {other}"),
        };
        let node_ports: Vec<&str> = match file.pointer("/nodePortAddresses") {
            Some(list) => list.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect(),
            None => Vec::new(),
        };
        let node_port_addresses = match node_ports.as_slice() {
            ["primary"] => NodePortSetting::Primary,
            cidrs => NodePortSetting::Cidrs(cidrs.iter().map(|cidr| parse_cidr(cidr).unwrap()).collect()),
        };
        let settings = Settings {
            node_name: recordings::NODE.into(),
            bind_address: parse_ip(&text("/bindAddress")),
            masquerade_all: file.pointer("/iptables/masqueradeAll") == Some(&Value::Bool(true)),
            localhost_node_ports: file.pointer("/iptables/localhostNodePorts") != Some(&Value::Bool(false)),
            node_port_addresses,
            detect_local,
            external_ips: true,
            balancing: Balancing::Rules,
        };
        let bit = file.pointer("/iptables/masqueradeBit").map_or(14, |bit| bit.as_u64().unwrap());
        Config { settings, mark: 1 << bit }
    }
}
