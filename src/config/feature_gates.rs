//! Feature gates: which exist, which are on.

mod names;

use std::collections::{BTreeMap, BTreeSet};

use super::Remark;

/// How far a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless switched on.
    Alpha,
    /// Mostly on.
    Beta,
    /// Generally available; mostly not to be switched any more.
    Ga,
    /// On its way out.
    Deprecated,
}

/// The state of every gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates {
    /// Set in the configuration, known ones only.
    set: BTreeMap<String, bool>,
}

/// What is known about a gate.
#[derive(Clone, Copy, Debug)]
struct Gate {
    stage: Stage,
    default: bool,
    locked: bool,
}

const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";

// === impl Stage ===

impl Stage {
    /// The label of metrics; empty for GA.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
            Stage::Ga => "",
            Stage::Deprecated => "DEPRECATED",
        }
    }
}

// === impl FeatureGates ===

impl FeatureGates {
    /// Takes what is configured. An unknown gate is a warning, not an error: one gate map is often
    /// given to all components, and a map made for a newer release must not stop the proxy.
    /// (kube-proxy refuses it.) Changing a locked gate is an error.
    pub(crate) fn set(configured: &BTreeMap<String, bool>, remarks: &mut Vec<Remark>) -> Result<FeatureGates, String> {
        let mut set = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, value) in configured {
            let Some(gate) = lookup(name) else {
                remarks.push(Remark::UnknownGate(name.clone()));
                continue;
            };
            if gate.locked && *value != gate.default {
                let default = gate.default;
                errors.push(format!("cannot set feature gate {name} to {value}, feature is locked to {default}"));
                continue;
            }
            if matches!(gate.stage, Stage::Ga | Stage::Deprecated) {
                let deprecated = gate.stage == Stage::Deprecated;
                remarks.push(Remark::GateSet { name: name.clone(), value: *value, deprecated });
            }
            set.insert(name.clone(), *value);
        }
        match errors.as_slice() {
            [] => Ok(FeatureGates { set }),
            [error] => Err(error.clone()),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }

    /// Those that were set, with their values.
    pub(crate) fn set_ones(&self) -> &BTreeMap<String, bool> {
        &self.set
    }

    /// Whether a gate is on. An unknown one is not.
    pub fn enabled(&self, name: &str) -> bool {
        lookup(name).is_some_and(|gate| self.value(name, gate))
    }

    /// Every gate with its stage and state, sorted by name (for `kubernetes_feature_enabled`).
    pub fn all(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> + '_ {
        let groups = [names::LOCKED_ON, names::LOCKED_OFF, names::ON, names::OFF];
        let names: BTreeSet<&'static str> =
            groups.iter().flat_map(|group| group.split_whitespace()).chain([ALL_ALPHA, ALL_BETA]).collect();
        names.into_iter().filter_map(|name| lookup(name).map(|gate| (name, gate.stage, self.value(name, gate))))
    }

    fn value(&self, name: &str, gate: Gate) -> bool {
        let group = match (gate.locked, gate.stage) {
            (false, Stage::Alpha) => self.set.get(ALL_ALPHA),
            (false, Stage::Beta) => self.set.get(ALL_BETA),
            _ => None,
        };
        self.set.get(name).or(group).copied().unwrap_or(gate.default)
    }
}

fn lookup(name: &str) -> Option<Gate> {
    let among = |list: &str| list.split_whitespace().any(|known| known == name);
    let (default, locked) = match name {
        ALL_ALPHA => return Some(Gate { stage: Stage::Alpha, default: false, locked: false }),
        ALL_BETA => return Some(Gate { stage: Stage::Beta, default: false, locked: false }),
        _ if among(names::LOCKED_ON) => (true, true),
        _ if among(names::LOCKED_OFF) => (false, true),
        _ if among(names::ON) => (true, false),
        _ if among(names::OFF) => (false, false),
        _ => return None,
    };
    let stage = match (default, locked) {
        _ if among(names::DEPRECATED) => Stage::Deprecated,
        (_, true) => Stage::Ga,
        (true, false) if among(names::GA_UNLOCKED) => Stage::Ga,
        (true, false) => Stage::Beta,
        (false, false) if among(names::BETA_OFF) => Stage::Beta,
        (false, false) => Stage::Alpha,
    };
    Some(Gate { stage, default, locked })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> (Result<FeatureGates, String>, Vec<Remark>) {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        let configured = pairs.map(|(name, value)| (name.to_owned(), value == "true")).collect();
        let mut remarks = Vec::new();
        (FeatureGates::set(&configured, &mut remarks), remarks)
    }

    #[test]
    fn defaults() {
        let gates = FeatureGates::default();
        for on in ["AllowServiceExternalIPs", "WatchListClient", "NFTablesProxyMode", "LoggingBetaOptions"] {
            assert!(gates.enabled(on), "{on}");
        }
        for off in ["NativeHistograms", "LoggingAlphaOptions", "AllAlpha", "AllBeta", "KMSv1", "NoSuch"] {
            assert!(!gates.enabled(off), "{off}");
        }
    }

    #[test]
    fn set_ones() {
        let (gates, remarks) = set("AllowServiceExternalIPs=false NativeHistograms=true NFTablesProxyMode=true");
        let gates = gates.unwrap();
        assert!(!gates.enabled("AllowServiceExternalIPs") && gates.enabled("NativeHistograms"));
        let set = |name: &str, value| Remark::GateSet { name: name.to_owned(), value, deprecated: false };
        assert_eq!(remarks, [set("AllowServiceExternalIPs", false), set("NFTablesProxyMode", true)]);
    }

    #[test]
    fn groups_give_way_to_single_ones() {
        let (gates, ..) = set("AllAlpha=true NativeHistograms=false AllBeta=false WatchListClient=true");
        let gates = gates.unwrap();
        assert!(gates.enabled("LoggingAlphaOptions") && !gates.enabled("NativeHistograms"));
        assert!(!gates.enabled("LoggingBetaOptions") && gates.enabled("WatchListClient"));
        assert!(gates.enabled("AllowServiceExternalIPs") && gates.enabled("NFTablesProxyMode"));
    }

    #[test]
    fn locked_and_unknown_ones() {
        let locked =
            |name: &str, to: bool| format!("cannot set feature gate {name} to {}, feature is locked to {to}", !to);
        assert_eq!(set("NFTablesProxyMode=false").0, Err(locked("NFTablesProxyMode", true)));
        let both = format!("[{}, {}]", locked("GitRepoVolumeDriver", false), locked("WinDSR", true));
        assert_eq!(set("WinDSR=false GitRepoVolumeDriver=true").0, Err(both));
        let (gates, remarks) = set("NoSuchGate=true");
        assert_eq!((gates.is_ok(), remarks), (true, vec![Remark::UnknownGate("NoSuchGate".to_owned())]));
    }

    #[test]
    fn every_gate_once() {
        let groups = [names::LOCKED_ON, names::LOCKED_OFF, names::ON, names::OFF];
        let count: usize = groups.iter().map(|group| group.split_whitespace().count()).sum();
        let gates = FeatureGates::default();
        assert_eq!(gates.all().count(), count + 2);
        for name in
            [names::GA_UNLOCKED, names::BETA_OFF, names::DEPRECATED].iter().flat_map(|list| list.split_whitespace())
        {
            assert!(lookup(name).is_some(), "{name}");
        }
    }
}
