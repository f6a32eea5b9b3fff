//! The recordings of a real kube-proxy: where they are, and how they are read.

use std::path::{Path, PathBuf};

use crate::node::Tools;
use crate::saved::Tables;

/// The rules of both IP families.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// IPv4
    pub v4: Tables,
    /// IPv6
    pub v6: Tables,
}

/// The folder `golden` of the recordings: `$FERRULE_SHARED/golden`, or beside the repository.
pub fn golden() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("FERRULE_SHARED").map_or_else(beside, PathBuf::from);
    let golden = shared.join("golden");
    assert!(golden.is_dir(), "no recordings at {}: set FERRULE_SHARED to the folder that holds them", golden.display());
    golden
}

/// The recordings of one configuration. What was recorded with one variant of the tools only is
/// valid for the other as well: the rules have the same form.
pub fn folder(tools: Tools, case: &str) -> PathBuf {
    let of = |tools: Tools| golden().join(format!("{}-{case}", tools.name()));
    let folders = [of(tools), of(tools.other())];
    let found = folders.into_iter().find(|folder| folder.is_dir());
    found.unwrap_or_else(|| panic!("no recording of the configuration {case}"))
}

/// The configuration file, without the line that names a kubeconfig: there is none.
pub fn config(folder: &Path) -> String {
    let text = read(&folder.join("config.yaml"));
    let (kubeconfig, rest): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("clientConnection:"));
    assert_eq!(kubeconfig.len(), 1, "{}: one line names the kubeconfig", folder.display());
    rest.join("\n") + "\n"
}

/// Reads a file that must be there.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares recorded settings of the kernel, those that are of interest, with what they are in the calling thread's
/// network namespace: how many were compared, and which differ.
pub fn compare_settings(recorded: &str, is_of_interest: impl Fn(&str) -> bool) -> (usize, Vec<String>) {
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in recorded.lines() {
        let (name, recorded) = line.split_once(" = ").expect("a setting");
        if !is_of_interest(name) {
            continue;
        }
        compared += 1;
        let ours = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
        if ours.as_deref().map(str::trim).ok() != Some(recorded) {
            wrong.push(format!("{line}, not {ours:?}"));
        }
    }
    (compared, wrong)
}

// === impl Rules ===

impl Rules {
    /// Reads the rules recorded in a folder.
    pub fn recorded(folder: &Path) -> Rules {
        let family = |file: &str| Tables::parse(&read(&folder.join(file)));
        Rules { v4: family("iptables-save.txt"), v6: family("ip6tables-save.txt") }
    }

    /// Tables as the kernel has them at first.
    pub fn empty() -> Rules {
        let chains = [
            ("mangle", ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].as_slice()),
            ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
            ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
        ];
        let mut tables = Tables::default();
        for (table, chain) in chains.into_iter().flat_map(|(table, chains)| chains.iter().map(move |c| (table, c))) {
            tables.add_chain(table, chain, &[]);
            tables.chain(table, chain).policy = "ACCEPT".to_owned();
        }
        Rules { v4: tables.clone(), v6: tables }
    }

    /// Every way in which `actual` is not what is expected here; nothing if they are equal.
    pub fn differences(&self, actual: &Rules) -> String {
        let indent = |title: &str, text: String| match text.as_str() {
            "" => text,
            _ => format!("{title}\n{text}"),
        };
        indent("IPv4", self.v4.differences(&actual.v4)) + &indent("IPv6", self.v6.differences(&actual.v6))
    }

    /// Does the same to both families.
    pub fn both(mut self, change: impl Fn(&mut Tables)) -> Rules {
        change(&mut self.v4);
        change(&mut self.v6);
        self
    }
}
