//! Rules of the house, as tests over the repository's own text. Each rule is a function from files
//! to complaints, so that each can be shown to fail on files made up for it.

mod dependencies;
mod documents;
mod layers;
mod modules;
mod style;
mod text;

use std::path::Path;

/// A text file of the repository.
struct File {
    /// Path from the top of the repository.
    path: String,
    /// Its text.
    text: String,
}

// === impl File ===

impl File {
    /// A file made up for a test.
    fn new(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is the file `stem.rs` or lies in the folder `stem/`.
    fn belongs_to(&self, stem: &str) -> bool {
        self.path.strip_prefix(stem).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    }

    /// A complaint about one of its lines, counted from 1.
    fn complain(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Every text file of the checkout.
fn repository() -> Vec<File> {
    let mut files = Vec::new();
    walk(Path::new(env!("CARGO_MANIFEST_DIR")), "", &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the walk found no src/lib.rs");
    files
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<File>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let (path, here) = (entry.path(), format!("{prefix}{name}"));
        if path.is_dir() {
            // Build output of any cargo command holds this mark.
            if name != ".git" && !path.join("CACHEDIR.TAG").exists() {
                walk(&path, &format!("{here}/"), files);
            }
        } else if name != ".git"
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            files.push(File { path: here, text });
        }
    }
}

/// Fails with all complaints if there are any.
#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

/// The complaints of `rule` about made-up files must be exactly so many, each with its words.
#[track_caller]
fn assert_complaints(complaints: &[String], words: &[&str]) {
    assert_eq!(complaints.len(), words.len(), "expected one complaint for each of {words:?}, got {complaints:#?}");
    for (complaint, word) in complaints.iter().zip(words) {
        assert!(complaint.contains(word), "expected {word:?} in {complaint:?}");
    }
}

/// The lines between a heading line and the next one, numbered from 1.
fn section<'a>(text: &'a str, heading: &str, next: &str) -> Vec<(usize, &'a str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.skip_while(|(_, line)| *line != heading).skip(1).take_while(|(_, line)| !line.starts_with(next)).collect()
}
