//! What `deploy/` holds: manifests, chart, dashboard, alerts.

mod chart;
mod distributions;
mod manifests;
mod monitoring;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A path in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file of the repository.
#[track_caller]
fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every YAML document of a text, empty ones left out.
#[track_caller]
fn documents(path: &str, text: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{path} is no YAML: {error}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// The only document of a kind in a file.
#[track_caller]
fn document(path: &str, kind: &str) -> Value {
    let mut found = documents(path, &read(path)).into_iter().filter(|document| document["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind} in {path}"));
    assert!(found.next().is_none(), "more than one {kind} in {path}");
    first
}

/// All files below a folder of the repository, sorted, relative to it.
fn files(folder: &str) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(&repository(folder), &mut found);
    found.sort();
    let relative = found.iter().map(|path| path.strip_prefix(repository(folder)).expect("below the folder"));
    relative.map(|path| path.to_str().expect("a plain name").to_owned()).collect()
}

/// Where two values differ, as JSON pointers; a list counts as one value unless both have as many
/// elements.
fn differences(a: &Value, b: &Value, at: &str, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(a, b, &format!("{at}/{key}"), found),
                    _ => found.push(format!("{at}/{key}")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(a, b, &format!("{at}/{index}"), found);
            }
        }
        _ if a == b => {}
        _ => found.push(at.to_owned()),
    }
}

/// The pod of a DaemonSet.
fn pod(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]["spec"]
}
