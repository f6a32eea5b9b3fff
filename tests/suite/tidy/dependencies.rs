//! What ferrule is linked from: licences, origins and versions, the small part of deny.toml that
//! every test run can afford to check.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::{File, assert_complaints, assert_none, repository, section, text};

/// A compiled-in package, as cargo describes it.
#[derive(serde::Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(serde::Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// Packages for the platform of this machine.
fn packages() -> Vec<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    assert!(metadata.packages.len() > 50, "cargo metadata lists only {} packages", metadata.packages.len());
    metadata.packages
}

fn bad_licences(packages: &[Package], allowed: &BTreeSet<String>) -> Vec<String> {
    let allows =
        |licence: &Option<String>| licence.as_deref().is_some_and(|text| Expression::read(text).holds(allowed));
    let bad = packages.iter().filter(|package| !allows(&package.license));
    bad.map(|package| {
        format!("{} {}: licence {:?} is not allowed by deny.toml", package.name, package.version, package.license)
    })
    .collect()
}

fn bad_origins(packages: &[Package]) -> Vec<String> {
    let from_registry =
        |package: &&Package| package.source.as_deref().is_some_and(|source| source.starts_with("registry+"));
    let bad = packages.iter().filter(|package| package.name != "ferrule" && !from_registry(package));
    bad.map(|package| {
        format!("{} {}: comes from {:?}, not from the registry", package.name, package.version, package.source)
    })
    .collect()
}

fn duplicates(packages: &[Package], named: &BTreeSet<String>) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages.iter().filter(|package| named.contains(&package.name)) {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    let twice = versions.iter().filter(|(_, versions)| versions.len() > 1);
    twice.map(|(name, versions)| format!("{name}: we name it, yet it is there as {}", versions.join(" and "))).collect()
}

/// Licences that `deny.toml` allows.
fn allowed_licences(files: &[File]) -> BTreeSet<String> {
    let deny = files.iter().find(|file| file.path == "deny.toml").expect("deny.toml is there");
    let lines = section(&deny.text, "[licenses]", "[");
    let list = lines
        .into_iter()
        .map(|(_, line)| line)
        .skip_while(|line| *line != "allow = [")
        .skip(1)
        .take_while(|line| *line != "]");
    list.map(|line| line.trim().trim_end_matches(',').trim_matches('"').to_owned()).collect()
}

/// Names in the tables of dependencies in Cargo.toml.
fn named_dependencies(manifest: &File) -> BTreeSet<String> {
    let tables = ["[dependencies]", "[dev-dependencies]", "[build-dependencies]"];
    let keys = tables.iter().flat_map(|table| keys(manifest, table));
    keys.map(|(_, key)| key.to_owned()).collect()
}

/// Dependencies that no code of theirs names: those of the program in `src/`, those of tests anywhere.
fn unused(files: &[File]) -> Vec<String> {
    let names = |in_program: bool| -> BTreeSet<String> {
        let rust = files.iter().filter(|file| file.is_rust() && (!in_program || file.path.starts_with("src/")));
        let paths = rust.flat_map(|file| text::paths(&text::without_comments(&file.text)));
        paths.filter_map(|named| Some(named.path.split("::").next()?.to_owned())).collect()
    };
    let (program, all) = (names(true), names(false));
    let manifest = manifest(files);
    let of_program = keys(manifest, "[dependencies]").into_iter().map(|key| (key, &program));
    let of_tests = keys(manifest, "[dev-dependencies]").into_iter().map(|key| (key, &all));
    let unused = of_program.chain(of_tests).filter(|((_, name), used)| !used.contains(&name.replace('-', "_")));
    unused.map(|((line, name), _)| manifest.complain(line, &format!("{name} is not used"))).collect()
}

/// Keys of a table, with their lines.
pub(super) fn keys<'a>(manifest: &'a File, table: &str) -> Vec<(usize, &'a str)> {
    let lines = section(&manifest.text, table, "[");
    let is_key = |line: &str| line.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    lines
        .into_iter()
        .filter(|(_, line)| is_key(line))
        .filter_map(|(at, line)| Some((at, line.split([' ', '=', '.']).next()?)))
        .collect()
}

fn unsorted(manifest: &File) -> Vec<String> {
    let tables = [
        "[features]",
        "[dependencies]",
        "[dev-dependencies]",
        "[build-dependencies]",
        "[lints.rust]",
        "[lints.clippy]",
    ];
    let mut complaints = Vec::new();
    for table in tables {
        for pair in keys(manifest, table).windows(2) {
            if let [(_, first), (line, second)] = pair
                && first > second
            {
                complaints.push(manifest.complain(*line, &format!("{second} comes before {first} in {table}")));
            }
        }
    }
    complaints
}

/// The fuzz targets are a package of their own. What they run must be what is built here: the same
/// dependencies in the same versions.
fn fuzzed_with_others(files: &[File]) -> Vec<String> {
    let lock = |path: &str| locked(files.iter().find(|file| file.path == path).expect("the file is there"));
    let (ours, theirs) = (lock("Cargo.lock"), lock("tests/fuzz/Cargo.lock"));
    let is_ours = |(name, _): &&(String, String)| ours.iter().any(|(known, _)| known == name);
    let others = theirs.iter().filter(is_ours).filter(|package| !ours.contains(*package));
    let others = others.map(|(name, version)| format!("tests/fuzz/Cargo.lock: {name} {version} is another version"));
    let needed = keys(manifest(files), "[dependencies]");
    let missing = needed.iter().filter(|(_, name)| !theirs.iter().any(|(known, _)| known == name));
    let missing = missing.map(|(_, name)| format!("tests/fuzz/Cargo.lock: {name} is missing"));
    let cure = "(cp Cargo.lock tests/fuzz/ && cargo update --workspace --manifest-path tests/fuzz/Cargo.toml)";
    others.chain(missing).map(|complaint| format!("{complaint} {cure}")).collect()
}

/// Names and versions in a `Cargo.lock`.
fn locked(lock: &File) -> BTreeSet<(String, String)> {
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let packages = lock.text.split("[[package]]").skip(1);
    packages.filter_map(|package| Some((value(package, "name")?, value(package, "version")?))).collect()
}

fn manifest(files: &[File]) -> &File {
    files.iter().find(|file| file.path == "Cargo.toml").expect("Cargo.toml is there")
}

/// An SPDX licence expression.
enum Expression {
    Licence(String),
    All(Vec<Expression>),
    Any(Vec<Expression>),
}

// === impl Expression ===

impl Expression {
    fn read(text: &str) -> Expression {
        // Old manifests write `MIT/Apache-2.0` and mean a choice.
        let spaced = text.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = words.as_slice();
        Expression::any(&mut rest)
    }

    fn any(words: &mut &[&str]) -> Expression {
        let mut choices = vec![Expression::all(words)];
        while let ["OR", rest @ ..] = *words {
            *words = rest;
            choices.push(Expression::all(words));
        }
        Expression::Any(choices)
    }

    fn all(words: &mut &[&str]) -> Expression {
        let mut parts = vec![Expression::one(words)];
        while let ["AND", rest @ ..] = *words {
            *words = rest;
            parts.push(Expression::one(words));
        }
        Expression::All(parts)
    }

    fn one(words: &mut &[&str]) -> Expression {
        let (first, rest) = match *words {
            ["(", rest @ ..] => {
                *words = rest;
                let inner = Expression::any(words);
                *words = words.get(1..).unwrap_or_default();
                return inner;
            }
            [licence, "WITH", exception, rest @ ..] => (format!("{licence} WITH {exception}"), rest),
            [licence, rest @ ..] => ((*licence).to_owned(), rest),
            [] => (String::new(), *words),
        };
        *words = rest;
        Expression::Licence(first)
    }

    /// Whether a choice of allowed licences satisfies it.
    fn holds(&self, allowed: &BTreeSet<String>) -> bool {
        match self {
            Expression::Licence(name) => allowed.contains(name),
            Expression::All(parts) => parts.iter().all(|part| part.holds(allowed)),
            Expression::Any(choices) => choices.iter().any(|choice| choice.holds(allowed)),
        }
    }
}

#[test]
fn dependencies_are_permissive_and_from_the_registry() {
    let files = repository();
    let packages = packages();
    assert_none(&bad_licences(&packages, &allowed_licences(&files)));
    assert_none(&bad_origins(&packages));
    assert_none(&duplicates(&packages, &named_dependencies(manifest(&files))));
}

#[test]
fn dependency_rules_can_fail() {
    let package = |name: &str, version: &str, licence: &str, source: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        license: Some(licence.to_owned()),
        source: Some(source.to_owned()),
    };
    let packages = [
        package("good", "1.0.0", "MIT", "registry+x"),
        package("good", "2.0.0", "GPL-3.0-or-later", "registry+x"),
        package("forked", "1.0.0", "MIT", "git+x"),
    ];
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    assert_complaints(&bad_licences(&packages, &set(&["MIT"])), &["good 2.0.0: licence Some(\"GPL-3.0-or-later\")"]);
    assert_complaints(&bad_origins(&packages), &["forked 1.0.0: comes from Some(\"git+x\")"]);
    assert_complaints(
        &duplicates(&packages, &set(&["good"])),
        &["good: we name it, yet it is there as 1.0.0 and 2.0.0"],
    );
    assert_complaints(&duplicates(&packages, &set(&["forked"])), &[]);
    assert!(allowed_licences(&repository()).contains("Apache-2.0 WITH LLVM-exception"));
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    let cases = [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND ISC", true),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("(GPL-3.0 OR MIT) AND BSD-3-Clause", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0 WITH other", false),
        ("", false),
    ];
    for (text, expected) in cases {
        assert_eq!(Expression::read(text).holds(&allowed), expected, "{text}");
    }
}

#[test]
fn dependencies_are_used() {
    assert_none(&unused(&repository()));
    let manifest = "[dependencies]\na-b = \"1\"\nc = \"1\"\n[dev-dependencies]\nd = \"1\"\ne = \"1\"\n";
    let files = [
        File::new("Cargo.toml", manifest),
        File::new("src/lib.rs", "use a_b::x; // c::x"),
        File::new("tests/suite/main.rs", "use c::x; d::f();"),
    ];
    assert_complaints(&unused(&files), &["Cargo.toml:3: c is not used", "Cargo.toml:6: e is not used"]);
}

#[test]
fn cargo_toml_is_sorted() {
    assert_none(&unsorted(manifest(&repository())));
    let bad = File::new(
        "Cargo.toml",
        "[dependencies]\nb = \"1\"\na = { version = \"1\" }\n\n[dev-dependencies]\na = \"1\"\n",
    );
    assert_complaints(&unsorted(&bad), &["Cargo.toml:3: a comes before b"]);
}

#[test]
fn what_is_fuzzed_is_what_is_built() {
    assert_none(&fuzzed_with_others(&repository()));
    let lock = |path, packages: &[(&str, &str)]| {
        let package =
            |(name, version): &(&str, &str)| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n");
        File::new(path, &packages.iter().map(package).collect::<Vec<_>>().join("\n"))
    };
    let files = [
        File::new("Cargo.toml", "[dependencies]\na = \"1\"\nb = \"1\"\n[dev-dependencies]\nc = \"1\"\n"),
        lock("Cargo.lock", &[("a", "1.0.0"), ("b", "1.0.0"), ("c", "1.0.0")]),
        lock("tests/fuzz/Cargo.lock", &[("a", "1.0.1"), ("d", "1.0.0")]),
    ];
    assert_complaints(&fuzzed_with_others(&files), &["a 1.0.1 is another version", "b is missing"]);
}
