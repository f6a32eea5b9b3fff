//! Documents say what is there: files, make targets, dependencies.

use std::collections::BTreeSet;

use super::{File, assert_complaints, assert_none, dependencies, repository, section};

/// Top-level folders and files that a path in a document begins with.
const TOPS: [&str; 8] = ["src", "tests", "benches", "deploy", "examples", ".ci", "Makefile", "Dockerfile"];

fn is_document(file: &File) -> bool {
    file.path.ends_with(".md") && !file.path.starts_with("tests/golden/")
}

fn missing_files(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| is_document(file)) {
        for (index, line) in file.text.lines().enumerate() {
            for path in paths_in(line) {
                let exists = files.iter().any(|other| {
                    other.path == path || other.path.starts_with(&format!("{}/", path.trim_end_matches('/')))
                });
                if !exists {
                    complaints.push(file.complain(index + 1, &format!("there is no {path}")));
                }
            }
        }
    }
    complaints
}

/// Paths of the repository in a line, braces expanded: `src/a/{b,c}.rs` names two files.
fn paths_in(line: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || "/._-{},".contains(c);
    line.split(|c: char| !is_part(c))
        .map(|word| word.trim_end_matches([',', '.']))
        .filter(|word| {
            TOPS.iter().any(|top| word.strip_prefix(top).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1))
        })
        .flat_map(expand)
        .collect()
}

fn expand(path: &str) -> Vec<String> {
    let parts = || {
        let (before, rest) = path.split_once('{')?;
        let (inside, after) = rest.split_once('}')?;
        Some((before, inside, after))
    };
    match parts() {
        Some((before, inside, after)) => {
            inside.split(',').flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
        }
        None => vec![path.to_owned()],
    }
}

/// Targets of the Makefile.
fn targets(files: &[File]) -> BTreeSet<String> {
    let makefile = files.iter().find(|file| file.path == "Makefile").expect("Makefile is there");
    let rules = makefile.text.lines().filter_map(|line| line.strip_prefix(".PHONY: "));
    let named: BTreeSet<String> = rules.flat_map(|rule| rule.split(' ')).map(str::to_owned).collect();
    let is_rule = |target: &String| {
        makefile.text.lines().any(|line| line.starts_with(&format!("{target}:")) && line.contains(" ## "))
    };
    named.into_iter().filter(is_rule).collect()
}

fn missing_targets(files: &[File]) -> Vec<String> {
    let targets = targets(files);
    let wanted = ["help", "demo", "test", "lint", "bench", "conformance", "image"];
    let mut complaints: Vec<String> = wanted
        .iter()
        .filter(|wanted| !targets.contains(**wanted))
        .map(|wanted| format!("Makefile: no target {wanted} with a description"))
        .collect();
    for file in files.iter().filter(|file| is_document(file)) {
        for (index, line) in file.text.lines().enumerate() {
            for command in line.split("`make ").skip(1) {
                let target: String = command.chars().take_while(char::is_ascii_lowercase).collect();
                if !targets.contains(&target) {
                    complaints.push(file.complain(index + 1, &format!("there is no `make {target}`")));
                }
            }
        }
    }
    complaints
}

/// The code map names every module of the program, and every program under tests.
fn missing_from_code_map(files: &[File]) -> Vec<String> {
    let architecture = files.iter().find(|file| file.path == "ARCHITECTURE.md").expect("ARCHITECTURE.md is there");
    let named: BTreeSet<String> = architecture.text.lines().flat_map(paths_in).collect();
    let is_module = |path: &str| path.strip_prefix("src/").is_some_and(|rest| !rest.contains('/'));
    let is_test = |path: &str| path.starts_with("tests/") && path.ends_with("/main.rs");
    let unnamed = files.iter().filter(|file| file.is_rust() && is_module(&file.path) && !named.contains(&file.path));
    let untold = files.iter().filter(|file| is_test(&file.path)).filter(|file| {
        let folder = file.path.trim_end_matches("main.rs");
        !named.iter().any(|path| path.trim_end_matches('/') == folder.trim_end_matches('/'))
    });
    unnamed.chain(untold).map(|file| format!("ARCHITECTURE.md: the code map lacks {}", file.path)).collect()
}

/// Each dependency has a line that says what it is for, and each such line a dependency.
fn unexplained_dependencies(files: &[File]) -> Vec<String> {
    let find = |path: &str| files.iter().find(|file| file.path == path).expect("the file is there");
    let named = |table: &str| {
        dependencies::keys(find("Cargo.toml"), table).into_iter().map(|(_, key)| key).collect::<BTreeSet<_>>()
    };
    let needed: BTreeSet<&str> = named("[dependencies]")
        .union(&named("[dev-dependencies]"))
        .copied()
        .filter(|name| *name != "ferrule")
        .collect();
    let lines = section(&find("ARCHITECTURE.md").text, "## Dependencies", "## ");
    let told: BTreeSet<&str> = lines
        .iter()
        .filter_map(|(_, line)| line.strip_prefix("- ")?.split_once(": "))
        .flat_map(|(names, _)| names.split(", "))
        .filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'))
        .collect();
    let untold = needed.difference(&told).map(|name| format!("ARCHITECTURE.md: nothing says what {name} is for"));
    untold.chain(told.difference(&needed).map(|name| format!("ARCHITECTURE.md: {name} is no dependency"))).collect()
}

/// The image is built from what `.dockerignore` lets in: all that cargo wants to see.
fn missing_from_image(files: &[File]) -> Vec<String> {
    let ignore = files.iter().find(|file| file.path == ".dockerignore").expect(".dockerignore is there");
    let needed = files.iter().filter(|file| file.is_rust() || file.path.starts_with("examples/"));
    let tops: BTreeSet<&str> = needed.filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    let missing = tops.into_iter().filter(|top| !ignore.text.lines().any(|line| line == format!("!{top}")));
    missing.map(|top| format!(".dockerignore keeps {top}/ out of the image's build")).collect()
}

#[test]
fn the_image_is_built_from_everything() {
    assert_none(&missing_from_image(&repository()));
    let files = [
        File::new(".dockerignore", "*\n!src\n"),
        File::new("src/main.rs", ""),
        File::new("benches/plan.rs", ""),
        File::new("deploy/README.md", ""),
    ];
    assert_complaints(&missing_from_image(&files), &["keeps benches/ out"]);
}

#[test]
fn documents_name_files_that_exist() {
    assert_none(&missing_files(&repository()));
    let text = "See `src/plan.rs`, src/plan/ and `src/backend/{ipvs,iptables}.rs`.\nA file `x.rs`, not ours.";
    let files = [
        File::new("README.md", text),
        File::new("src/plan.rs", ""),
        File::new("src/plan/build.rs", ""),
        File::new("src/backend/iptables.rs", ""),
    ];
    assert_complaints(&missing_files(&files), &["README.md:1: there is no src/backend/ipvs.rs"]);
}

#[test]
fn documents_name_targets_that_exist() {
    assert_none(&missing_targets(&repository()));
    let makefile = "help: ## x\n.PHONY: help demo test lint bench conformance image\ndemo: ## x\ntest: ## x\nlint: ## x\nbench: ## x\nimage:\nconformance: ## x\n";
    let files = [File::new("Makefile", makefile), File::new("README.md", "Run `make test` or `make install`.")];
    assert_complaints(&missing_targets(&files), &["no target image", "README.md:1: there is no `make install`"]);
}

#[test]
fn the_code_map_is_complete() {
    assert_none(&missing_from_code_map(&repository()));
    let files = [
        File::new("ARCHITECTURE.md", "| `src/plan.rs` | x |\n| `tests/suite/` | x |\n"),
        File::new("src/plan.rs", ""),
        File::new("src/sync.rs", ""),
        File::new("tests/suite/main.rs", ""),
        File::new("tests/netns/main.rs", ""),
    ];
    assert_complaints(&missing_from_code_map(&files), &["src/sync.rs", "tests/netns/main.rs"]);
}

#[test]
fn every_dependency_is_explained() {
    assert_none(&unexplained_dependencies(&repository()));
    let files = [
        File::new("Cargo.toml", "[dependencies]\na = \"1\"\nb = \"1\"\n"),
        File::new("ARCHITECTURE.md", "## Dependencies\n- `a`, `c`: why\n\n## Next\n- `b`: why\n"),
    ];
    assert_complaints(&unexplained_dependencies(&files), &["nothing says what b is for", "c is no dependency"]);
}
