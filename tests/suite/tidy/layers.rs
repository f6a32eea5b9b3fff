//! Who may name whom, and where IO is allowed: the invariants of ARCHITECTURE.md that text shows.

use super::text::{self, Named};
use super::{File, assert_complaints, assert_none, repository};

/// Modules that do no IO, read no clock and log nothing.
const CORE: [&str; 7] = ["net", "model", "cluster", "topology", "plan", "conntrack", "sync/pacer"];

/// The files of a backend that do not either.
const PURE_IN_BACKENDS: [&str; 22] = [
    "applied",
    "batch",
    "round",
    "names",
    "ruleset",
    "compare",
    "compile",
    "diff",
    "render",
    "restore",
    "snapshot",
    "parse",
    "drain",
    "rules",
    "sets",
    "nft/attributes",
    "nft/decode",
    "nft/extensions",
    "netlink/message",
    "kernel/message",
    "queue",
    "importance",
];

/// What the core does without.
const IO: [&str; 22] = [
    "anyhow",
    "eprint",
    "eprintln",
    "fastrand",
    "futures",
    "inotify",
    "netlink_sys",
    "print",
    "println",
    "rtnetlink",
    "rustix",
    "std::env",
    "std::fs",
    "std::io",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "tracing",
];

/// Words of the decisions that only `plan` makes.
const POLICY: [&str; 8] = ["hint", "hints", "policy", "policies", "readiness", "ready", "serving", "terminating"];

/// The modules that parts of the line may name, where that is less than all those declared before
/// them. What puts the parts together knows all.
const MAY_NAME: [(&str, &[&str]); 4] = [
    ("backend", &["net", "model", "plan", "command", "netlink"]),
    ("source", &["net", "model", "cluster"]),
    ("sync", &["net", "model", "cluster", "plan", "backend"]),
    ("conntrack", &["net", "model", "cluster", "plan", "netlink", "backend", "sync"]),
];

/// Modules behind the feature `fixtures`, which no build for a node has.
const FIXTURES: [&str; 2] = ["src/fixtures", "src/command/fake"];

fn is_core(file: &File) -> bool {
    let is_pure_in_backend = || {
        let within = file.path.strip_prefix("src/backend/").and_then(|path| Some(path.split_once('/')?.1));
        let belongs = |stem: &&str| {
            let rest = within.and_then(|within| within.strip_prefix(*stem));
            rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        PURE_IN_BACKENDS.iter().any(belongs)
    };
    !["src/conntrack/netlink.rs", "src/conntrack/reconciler.rs"].contains(&file.path.as_str())
        && (CORE.iter().any(|module| file.belongs_to(&format!("src/{module}"))) || is_pure_in_backend())
}

/// Source files of the program with their code; files that are only for tests are left out.
fn sources(files: &[File]) -> impl Iterator<Item = (&File, String)> {
    let is_for_tests = |file: &File| {
        let is_fixture = FIXTURES.iter().any(|stem| file.belongs_to(stem));
        is_fixture || file.path.ends_with("/tests.rs") || file.path.contains("/tests/")
    };
    files
        .iter()
        .filter(move |file| file.is_rust() && file.path.starts_with("src/") && !is_for_tests(file))
        .map(|file| (file, text::code(&file.text)))
}

fn core_does_io(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (file, code) in sources(files).filter(|(file, _)| is_core(file)) {
        for named in text::paths(&code) {
            // `use std::time` leads to the clock as well as `use std::time::Instant`.
            let leads_there = |what: &&str| named.path.contains("::") && what.starts_with(&format!("{}::", named.path));
            if IO.iter().any(|what| named.is_in(what) || leads_there(what)) {
                complaints.push(file.complain(named.line, &format!("the core may not use {}", named.path)));
            }
        }
    }
    complaints
}

/// A path that only some files may name.
fn named_outside(files: &[File], path: &[&str], home: &[&str], why: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (file, code) in sources(files).filter(|(file, _)| !home.iter().any(|stem| file.belongs_to(stem))) {
        for named in text::paths(&code).iter().filter(|named| path.iter().any(|path| named.is_in(path))) {
            complaints.push(file.complain(named.line, &format!("{} {why}", named.path)));
        }
    }
    complaints
}

fn api_types_outside_the_sources(files: &[File]) -> Vec<String> {
    named_outside(files, &["kube", "k8s_openapi"], &["src/source", "src/events"], "belongs under src/source/")
}

fn processes_outside_command(files: &[File]) -> Vec<String> {
    let processes = ["std::process::Command", "std::process::Stdio", "std::process::Child", "tokio::process"];
    named_outside(files, &processes, &["src/command"], "belongs in src/command.rs")
}

fn backends_decide_policy(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (file, code) in sources(files).filter(|(file, _)| file.belongs_to("src/backend")) {
        for named in text::paths(&code) {
            let name = named.path.rsplit("::").next().unwrap_or_default();
            if let Some(word) = words(name).into_iter().find(|word| POLICY.contains(&word.as_str())) {
                complaints.push(file.complain(named.line, &format!("{name}: \"{word}\" is decided in plan")));
            }
        }
    }
    complaints
}

/// The words of a name: `external_traffic_policy` and `ExternalTrafficPolicy` have three.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in name.chars() {
        if c == '_' || (c.is_uppercase() && after_lower) {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        after_lower = c.is_lowercase();
    }
    words
}

/// Modules of `lib.rs`, in the order in which they are declared.
fn declared(files: &[File]) -> Vec<String> {
    let lib = files.iter().find(|file| file.path == "src/lib.rs").expect("src/lib.rs is there");
    let code = text::code(&lib.text);
    let names = code.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

fn names_what_it_may_not(files: &[File]) -> Vec<String> {
    let declared = declared(files);
    let rank = |module: &str| declared.iter().position(|known| known == module);
    let mut complaints = Vec::new();
    for (file, code) in sources(files) {
        let place: Vec<&str> = file.path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
        let Some(here) = rank(place[0]) else { continue };
        let may_name = MAY_NAME.iter().find(|(module, _)| *module == place[0]).map(|(_, names)| *names);
        for named in text::paths(&code) {
            let Some(name) = module_of(&named, &place) else { continue };
            let Some(there) = rank(&name).filter(|there| *there != here) else { continue };
            if there > here || may_name.is_some_and(|names| !names.contains(&name.as_str())) {
                complaints.push(file.complain(named.line, &format!("{} may not know of {name}", place[0])));
            }
        }
    }
    complaints
}

/// The module of the crate that a path leads to.
fn module_of(named: &Named, place: &[&str]) -> Option<String> {
    let segments: Vec<&str> = named.path.split("::").collect();
    let ups = segments.iter().take_while(|segment| **segment == "super").count();
    let from_root = match segments.first() {
        Some(&"crate") => 1,
        Some(&"super") if ups >= place.len() => ups,
        _ => return None,
    };
    segments.get(from_root).map(|segment| (*segment).to_owned())
}

/// Only the place where all is put together, and the subcommands, choose a source or a backend.
fn choices_outside_run(files: &[File]) -> Vec<String> {
    let modes = ["crate::backend::iptables", "crate::backend::ipvs", "crate::backend::nftables"];
    let choosers = ["src/run", "src/cli", "src/cleanup", "src/fixtures", "src/command/fake"];
    let mut complaints =
        named_outside(files, &modes, &[&choosers[..], &["src/backend"]].concat(), "is chosen in src/run.rs");
    let sources = ["crate::source::api", "crate::source::manifests"];
    complaints.extend(named_outside(
        files,
        &sources,
        &[&choosers[..], &["src/source"]].concat(),
        "is chosen in src/run.rs",
    ));
    complaints
}

#[test]
fn the_core_does_no_io() {
    assert_none(&core_does_io(&repository()));
}

#[test]
fn the_core_rule_can_fail() {
    let bad = |path: &str, text: &str| core_does_io(&[File::new(path, text)]);
    assert_complaints(
        &bad("src/plan/build.rs", "//! no tokio\nuse std::{fs, net::IpAddr};"),
        &["src/plan/build.rs:2: the core may not use std::fs"],
    );
    assert_complaints(&bad("src/net.rs", "let now = std::time::Instant::now();"), &["std::time::Instant"]);
    assert_complaints(&bad("src/model.rs", "use std::time;"), &["std::time"]);
    assert_complaints(&bad("src/backend/ipvs/diff.rs", "tracing::debug!(\"x\"); println!();"), &["tracing", "println"]);
    assert_complaints(&bad("src/backend/iptables/compile/service.rs", "use tokio::spawn;"), &["tokio"]);
    assert_complaints(
        &bad("src/net.rs", "use std::time::Duration; // std::fs\n#[cfg(test)]\nmod tests { use std::fs; }"),
        &[],
    );
    assert_complaints(&bad("src/backend/iptables/apply.rs", "use tokio::spawn;"), &[]);
    assert_complaints(&bad("src/backend/iptables.rs", "use tokio::spawn;"), &[]);
    assert_complaints(&bad("src/backend/iptables/nft/decode.rs", "use netlink_sys::Socket;"), &["netlink_sys"]);
    assert_complaints(&bad("src/backend/iptables/nft.rs", "use netlink_sys::Socket;"), &[]);
}

#[test]
fn api_types_stop_at_the_sources() {
    assert_none(&api_types_outside_the_sources(&repository()));
    let bad = |path: &str| {
        api_types_outside_the_sources(&[File::new(path, "use k8s_openapi::api;\nfn f(c: kube::Client) {}")])
    };
    assert_complaints(&bad("src/model/service.rs"), &["k8s_openapi", "kube::Client"]);
    assert_complaints(&bad("src/source/api.rs"), &[]);
}

#[test]
fn only_command_starts_processes() {
    assert_none(&processes_outside_command(&repository()));
    let bad = |path: &str, text: &str| processes_outside_command(&[File::new(path, text)]);
    assert_complaints(&bad("src/sysctl.rs", "use std::process::{Command, ExitCode};"), &["std::process::Command"]);
    assert_complaints(&bad("src/cli/demo/proxy.rs", "tokio::process::Command::new(x)"), &["tokio::process"]);
    assert_complaints(&bad("src/command.rs", "use tokio::process;"), &[]);
}

#[test]
fn backends_only_translate() {
    assert_none(&backends_decide_policy(&repository()));
    let bad = |text: &str| backends_decide_policy(&[File::new("src/backend/iptables/compile.rs", text)]);
    assert_complaints(&bad("if service.external_traffic_policy == Local {}"), &["policy"]);
    assert_complaints(&bad("use crate::model::ExternalTrafficPolicy;"), &["policy"]);
    assert_complaints(&bad("endpoint.ready && endpoint.is_serving"), &["ready", "serving"]);
    assert_complaints(&bad("let already = \"ready\"; // terminating"), &[]);
}

#[test]
fn each_part_knows_only_those_before_it() {
    assert_none(&names_what_it_may_not(&repository()));
    let bad = |path: &str, text: &str| {
        let lib = "pub mod net;\npub mod cluster;\npub mod plan;\npub mod backend;\nmod sysctl;\nmod run;\n";
        names_what_it_may_not(&[File::new("src/lib.rs", lib), File::new(path, text)])
    };
    assert_complaints(&bad("src/net.rs", "use crate::plan::Plan;"), &["net may not know of plan"]);
    assert_complaints(&bad("src/cluster/slices.rs", "use super::super::plan;"), &["cluster may not know of plan"]);
    assert_complaints(
        &bad("src/backend/ipvs/compile.rs", "use crate::cluster::Event;"),
        &["backend may not know of cluster"],
    );
    assert_complaints(&bad("src/sysctl.rs", "use crate::{net, run::run};"), &["sysctl may not know of run"]);
    assert_complaints(&bad("src/plan/build.rs", "use crate::{net, cluster}; use super::Plan;"), &[]);
    assert_complaints(&bad("src/run.rs", "use crate::{net, cluster, plan, backend};"), &[]);
}

#[test]
fn only_run_chooses() {
    assert_none(&choices_outside_run(&repository()));
    let bad =
        |path: &str| choices_outside_run(&[File::new(path, "use crate::{backend::iptables, source::api::watch};")]);
    assert_complaints(&bad("src/sync.rs"), &["crate::backend::iptables", "crate::source::api"]);
    assert_complaints(&bad("src/run.rs"), &[]);
}
