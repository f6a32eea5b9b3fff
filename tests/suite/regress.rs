//! The checks of the fuzzer over inputs that are kept: past findings, and a few to begin with.

#[path = "../fuzz/checks/all.rs"]
mod checks;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

const TOP: &str = env!("CARGO_MANIFEST_DIR");

/// The entries of a folder, in order.
fn entries(folder: &str) -> Vec<PathBuf> {
    let read = fs::read_dir(Path::new(TOP).join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut paths: Vec<PathBuf> = read.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

#[test]
fn past_findings_stay_mended() {
    let mut failed = Vec::new();
    for (name, check) in checks::CHECKS {
        let inputs = entries(&format!("tests/regress/{name}"));
        assert!(!inputs.is_empty(), "tests/regress/{name} holds nothing to begin with");
        for path in inputs {
            let input = fs::read(&path).unwrap();
            if catch_unwind(|| check(&input)).is_err() {
                failed.push(format!("{name}: {}", path.display()));
            }
        }
    }
    assert!(failed.is_empty(), "see above for what is wrong with each of\n{}", failed.join("\n"));
}

#[test]
fn every_check_has_a_target_and_inputs() {
    let checks: BTreeSet<String> = checks::CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let named = |folder: &str| entries(folder).iter().map(|path| stem(path)).collect::<BTreeSet<_>>();
    assert_eq!(named("tests/fuzz/fuzz_targets"), checks);
    assert_eq!(named("tests/regress"), checks);
    let manifest = fs::read_to_string(Path::new(TOP).join("tests/fuzz/Cargo.toml")).unwrap();
    for name in checks {
        let target = format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n");
        assert!(manifest.contains(&target), "tests/fuzz/Cargo.toml lacks the target {name}");
    }
}
