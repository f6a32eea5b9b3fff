//! Every Rust file is compiled: a test that no `mod` line mentions would pass for ever.

use std::collections::BTreeSet;

use super::{File, assert_complaints, assert_none, repository, text};

fn unreachable(files: &[File]) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let roots = files.iter().filter(|file| is_root(&file.path));
    let mut queue: Vec<Declared> = roots.map(|file| Declared { path: file.path.clone(), beside: true }).collect();
    while let Some(Declared { path, beside }) = queue.pop() {
        let Some(file) = files.iter().find(|file| file.path == path) else { continue };
        if reached.insert(path) {
            queue.extend(declared(file, beside));
        }
    }
    // A folder with a Cargo.toml is a package of its own.
    let others: Vec<&str> = files
        .iter()
        .filter_map(|file| file.path.strip_suffix("Cargo.toml"))
        .filter(|folder| !folder.is_empty())
        .collect();
    files
        .iter()
        .filter(|file| file.is_rust() && !reached.contains(&file.path))
        .filter(|file| !others.iter().any(|folder| file.path.starts_with(folder)))
        .map(|file| file.complain(1, "no mod line leads here, so it is never compiled"))
        .collect()
}

/// Whether cargo compiles the file as a target.
fn is_root(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] => true,
        ["tests" | "benches" | "examples", file] => file.ends_with(".rs"),
        ["tests" | "benches" | "examples", _, "main.rs"] => true,
        _ => false,
    }
}

/// A file that a `mod` line may mean.
struct Declared {
    path: String,
    /// Whether its own modules are in the same folder: so it is with targets, with `mod.rs`, and
    /// with what a `#[path]` leads to. All others have them in the folder of their name.
    beside: bool,
}

/// Files that the `mod` lines of a file may mean.
fn declared(file: &File, beside: bool) -> Vec<Declared> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let stem = name.trim_end_matches(".rs");
    let inner = if beside { folder.to_owned() } else { format!("{folder}/{stem}") };
    // Literals are blank in `code`, so the value of a `#[path]` comes from the text itself.
    let code = text::code(&file.text);
    let mut found = Vec::new();
    let mut path = None;
    for (line, original) in code.lines().zip(file.text.lines()) {
        let line = line.trim();
        if line.starts_with("#[path") {
            path = original.split('"').nth(1);
        } else if let Some(module) = module(line) {
            match path.take() {
                Some(path) => found.push(Declared { path: resolve(&format!("{folder}/{path}")), beside: true }),
                None => found.extend([
                    Declared { path: format!("{inner}/{module}.rs"), beside: false },
                    Declared { path: format!("{inner}/{module}/mod.rs"), beside: true },
                ]),
            }
        }
    }
    found
}

/// The name in a line such as `pub(crate) mod name;`.
fn module(line: &str) -> Option<&str> {
    let line = line.strip_suffix(';')?;
    let (before, name) = line.rsplit_once("mod ")?;
    let is_visibility = before.is_empty() || (before.starts_with("pub") && before.ends_with(' '));
    let before_is_attribute = before.trim_end().ends_with(']');
    (is_visibility || before_is_attribute).then(|| name.trim())
}

/// Takes `..` out of a path.
fn resolve(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "." | "" => {}
            ".." => {
                segments.pop();
            }
            _ => segments.push(segment),
        }
    }
    segments.join("/")
}

#[test]
fn every_file_is_compiled() {
    assert_none(&unreachable(&repository()));
}

#[test]
fn a_forgotten_file_is_found() {
    let tree = |lines: &str| {
        unreachable(&[
            File::new("src/lib.rs", "pub mod plan;\n"),
            File::new("src/plan.rs", lines),
            File::new("src/plan/build.rs", ""),
            File::new("tests/suite/main.rs", "#[path = \"../shared/server.rs\"]\nmod server;\n"),
            File::new("tests/shared/server.rs", "mod answers;\n"),
            File::new("tests/shared/answers.rs", ""),
            File::new("tests/fuzz/Cargo.toml", ""),
            File::new("tests/fuzz/targets/yaml.rs", ""),
        ])
    };
    assert_complaints(&tree("pub(crate) mod build;"), &[]);
    assert_complaints(&tree("#[cfg(test)] mod build;"), &[]);
    assert_complaints(&tree("// mod build;"), &["src/plan/build.rs"]);
    assert_complaints(&tree("let build = \"mod build;\";"), &["src/plan/build.rs"]);
}
