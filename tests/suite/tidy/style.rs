//! What files may be like: size, unfinished work, skipped tests, places outside the project.

use super::{File, assert_complaints, assert_none, repository, text};

/// A file of more lines wants to be two.
const MOST_LINES: usize = 600;

/// Marks of unfinished work, put together here so that this file holds none.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("to", "do!("),
    concat!("unimplemen", "ted!("),
];

/// Hosts of package and image registries: which ones to use is up to the machine that builds.
const REGISTRIES: [&str; 10] = [
    concat!("docker", ".io"),
    concat!("quay", ".io"),
    concat!("gcr", ".io"),
    concat!("ghcr", ".io"),
    concat!("registry.", "k8s.io"),
    concat!("mcr.micro", "soft.com"),
    concat!("ecr", ".aws"),
    concat!("deb.", "debian.org"),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
];

/// Beginnings of paths that exist on one developer's machine only.
const PRIVATE_PATHS: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

/// Text that nobody here wrote: lists of packages, licences, recorded rules and objects.
fn is_ours(file: &File) -> bool {
    !(file.path.ends_with(".lock")
        || file.path == "LICENSE"
        || file.path.starts_with("tests/golden/")
        || file.path.ends_with(".proptest-regressions"))
}

fn too_long(files: &[File]) -> Vec<String> {
    let long = files.iter().filter(|file| file.is_rust() && file.text.lines().count() > MOST_LINES);
    long.map(|file| {
        file.complain(MOST_LINES, &format!("{} lines, {MOST_LINES} are the limit", file.text.lines().count()))
    })
    .collect()
}

fn wrong_name(files: &[File]) -> Vec<String> {
    let rust = files.iter().filter(|file| file.is_rust());
    let vague =
        ["mod", "util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "types", "consts"];
    rust.filter(|file| vague.iter().any(|name| file.path.ends_with(&format!("/{name}.rs"))))
        .map(|file| file.complain(1, "a name that says nothing about the contents"))
        .collect()
}

fn holds(files: &[File], what: &[&str], why: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| is_ours(file)) {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(found) = what.iter().find(|what| line.contains(**what)) {
                complaints.push(file.complain(index + 1, &format!("{found} {why}")));
            }
        }
    }
    complaints
}

fn skipped_tests(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let code = text::code(&file.text.replace("#[cfg(test)]", ""));
        for (index, line) in code.lines().enumerate() {
            let squeezed: String = line.split_whitespace().collect();
            if ["#[ignore", ",ignore)]", ",ignore="].iter().any(|mark| squeezed.contains(mark)) {
                complaints.push(file.complain(index + 1, "a test that does not run is no test"));
            }
        }
    }
    complaints
}

#[test]
fn files_are_short_and_well_named() {
    let files = repository();
    assert_none(&too_long(&files));
    assert_none(&wrong_name(&files));
    assert_complaints(
        &too_long(&[File::new("src/a.rs", &"\n".repeat(601)), File::new("src/b.rs", &"\n".repeat(600))]),
        &["src/a.rs"],
    );
    assert_complaints(
        &wrong_name(&[File::new("src/plan/mod.rs", ""), File::new("tests/suite/common.rs", "")]),
        &["mod.rs", "common.rs"],
    );
}

#[test]
fn nothing_is_left_unfinished() {
    assert_none(&holds(&repository(), &UNFINISHED, "is unfinished work"));
    let text = format!("fn f() {{}}\n// {}: later\n{});", UNFINISHED[0], UNFINISHED[3]);
    assert_complaints(
        &holds(&[File::new("README.md", &text)], &UNFINISHED, "is unfinished work"),
        &["README.md:2", "README.md:3"],
    );
}

#[test]
fn no_test_is_skipped() {
    assert_none(&skipped_tests(&repository()));
    let bad = |text: &str| skipped_tests(&[File::new("tests/suite/x.rs", text)]);
    assert_complaints(&bad("#[test]\n#[ignore]\nfn f() {}"), &["x.rs:2"]);
    assert_complaints(&bad("#[cfg(test)]\nmod tests {\n#[ignore = \"slow\"]\nfn f() {}\n}"), &["x.rs:3"]);
    assert_complaints(&bad("#[cfg_attr(not(root), ignore)]"), &["x.rs:1"]);
    assert_complaints(&bad("// #[ignore]\nlet s = \"#[ignore]\";"), &[]);
}

#[test]
fn no_registry_and_no_private_path_is_named() {
    let files = repository();
    assert_none(&holds(&files, &REGISTRIES, "names a registry"));
    assert_none(&holds(&files, &PRIVATE_PATHS, "is a path of one machine"));
    let image = format!("FROM {}/library/debian\n", REGISTRIES[0]);
    assert_complaints(&holds(&[File::new("Dockerfile", &image)], &REGISTRIES, "names a registry"), &["Dockerfile:1"]);
    assert_complaints(&holds(&[File::new("Cargo.lock", &image)], &REGISTRIES, "names a registry"), &[]);
}
