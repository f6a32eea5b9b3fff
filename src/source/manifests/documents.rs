//! A manifest file as text: where each document begins and what it holds, before it is decoded.

use std::borrow::Cow;

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Its text, with the `---` before it and the comments around it.
    pub(super) text: &'a str,
    /// Line of the file on which the text begins, from 1.
    pub(super) line: u64,
}

/// What an object or list says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TypeMeta<'a> {
    /// `apiVersion`
    pub(super) api_version: Cow<'a, str>,
    /// `kind`
    pub(super) kind: Cow<'a, str>,
}

/// Cuts a file at `---` and `...`, and between JSON objects that just follow one another. Neither
/// marker can stand at the beginning of a line inside a YAML document, whatever it holds.
///
/// Documents are decoded one by one so that the parser's budgets against malicious input hold for
/// each, not for a dump of a whole cluster.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut begin = (0, 1);
    let mut at = 0;
    let mut shape = Shape::Nothing;
    let mut closed = false;
    for (number, line) in (1u64..).zip(text.split_inclusive('\n')) {
        let begins = match shape {
            // Comments and %YAML lines belong to the document they precede.
            Shape::Nothing => false,
            Shape::Block => is_marker(line, "---"),
            Shape::Flow => is_marker(line, "---") || (closed && line.starts_with('{')),
        };
        if begins {
            documents.extend(document(text, begin, at));
            begin = (at, number);
            shape = Shape::Nothing;
        }
        at += line.len();
        if is_marker(line, "...") {
            documents.extend(document(text, begin, at));
            begin = (at, number + 1);
            shape = Shape::Nothing;
            continue;
        }
        let content = line.trim();
        if shape == Shape::Nothing && !content.is_empty() && !content.starts_with(['#', '%']) {
            let first = content.strip_prefix("---").unwrap_or(content).trim_start();
            shape = if first.starts_with('{') { Shape::Flow } else { Shape::Block };
        }
        if !content.is_empty() {
            closed = content.ends_with('}');
        }
    }
    documents.extend(document(text, begin, text.len()));
    documents
}

/// What kind of document the lines seen so far begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Nothing,
    Block,
    Flow,
}

fn document(text: &str, (from, line): (usize, u64), to: usize) -> Option<Document<'_>> {
    let text = text.get(from..to)?;
    // What else counts as white space elsewhere is a mistake in YAML, and must be told as one.
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    (!text.chars().all(is_blank)).then_some(Document { text, line })
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

// === impl Document ===

impl<'a> Document<'a> {
    /// Line of the file that is line `line` (from 1) of the document.
    pub(super) fn file_line(&self, line: u64) -> u64 {
        self.line + line.max(1) - 1
    }

    /// Line of the file on which the content begins.
    pub(super) fn content_line(&self) -> u64 {
        let is_content = |line: &str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with(['#', '%']) && line != "---"
        };
        (self.line..).zip(self.text.lines()).find(|(_, line)| is_content(line)).map_or(self.line, |(number, _)| number)
    }

    /// What a single object in block style says it is, found without parsing: a key at the
    /// beginning of a line can only belong to the outermost mapping. `None` if that is not certain
    /// or the object is a list: then the document has to be parsed.
    pub(super) fn type_meta(&self) -> Option<TypeMeta<'a>> {
        let mut kind = None;
        let mut api_version = None;
        for line in self.text.lines() {
            if line.starts_with(['{', '[', '"', '\'', '?', '|', '>', '&', '!', '\u{feff}']) {
                return None;
            }
            // `--- {` begins a mapping whose lines may stand anywhere.
            if line.strip_prefix("---").is_some_and(|rest| !rest.trim().is_empty()) {
                return None;
            }
            for (key, found) in [("kind:", &mut kind), ("apiVersion:", &mut api_version)] {
                if let Some(value) = line.strip_prefix(key)
                    && found.replace(plain(value)?).is_some()
                {
                    return None;
                }
            }
        }
        let (kind, api_version): (&str, &str) = (kind?, api_version?);
        (!kind.ends_with("List")).then_some(TypeMeta { api_version: api_version.into(), kind: kind.into() })
    }
}

/// A scalar that means what it looks like.
fn plain(value: &str) -> Option<&str> {
    let value = value.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '-');
    (value.starts_with(|c: char| c.is_ascii_alphabetic()) && value.chars().all(is_plain)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_split(text: &str, expected: &[(u64, &str)]) {
        let found: Vec<(u64, &str)> = split(text).iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn documents() {
        check_split("", &[]);
        check_split("\n \r\n\t\n", &[]);
        check_split("\u{b}\n", &[(1, "\u{b}\n")]);
        check_split("a: 1\n", &[(1, "a: 1\n")]);
        check_split("a: 1\n---\nb: 2", &[(1, "a: 1\n"), (2, "---\nb: 2")]);
        check_split("# c\n---\na: 1\n---\n---\nb: 2\n", &[(1, "# c\n---\na: 1\n"), (4, "---\n"), (5, "---\nb: 2\n")]);
        check_split("%YAML 1.2\n---\na: 1\n...\nb: 2\n", &[(1, "%YAML 1.2\n---\na: 1\n...\n"), (5, "b: 2\n")]);
        check_split("a: |\n  ---\n  x\n---x\n", &[(1, "a: |\n  ---\n  x\n---x\n")]);
        check_split("a: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1\r\n"), (2, "---\r\nb: 2\r\n")]);
        check_split("--- {a: 1}\n--- {b: 2}\n", &[(1, "--- {a: 1}\n"), (2, "--- {b: 2}\n")]);
    }

    #[test]
    fn json_documents() {
        check_split("{\n  \"a\": 1\n}\n{\n  \"b\": 2\n}\n", &[(1, "{\n  \"a\": 1\n}\n"), (4, "{\n  \"b\": 2\n}\n")]);
        check_split("{\"a\":1}\n{\"b\":2}\n", &[(1, "{\"a\":1}\n"), (2, "{\"b\":2}\n")]);
        check_split("{\"items\": [\n{\"a\":1},\n{\"b\":2}\n]}\n", &[(1, "{\"items\": [\n{\"a\":1},\n{\"b\":2}\n]}\n")]);
    }

    #[track_caller]
    fn check_type(text: &str, expected: Option<(&str, &str)>) {
        let document = Document { text, line: 1 };
        let found = document.type_meta();
        assert_eq!(found.as_ref().map(|t| (&*t.api_version, &*t.kind)), expected, "{text:?}");
    }

    #[test]
    fn types_without_parsing() {
        check_type("---\napiVersion: v1\nkind: Service\nspec:\n  kind: x\n", Some(("v1", "Service")));
        check_type("kind: Service\r\napiVersion: v1\r\n", Some(("v1", "Service")));
        check_type("apiVersion: v1\nitems: []\nkind: List\n", None);
        check_type("apiVersion: v1\nkind: \"Service\"\n", None);
        check_type("apiVersion: v1\nkind: Service # the main one\n", None);
        check_type("apiVersion: v1\nkind: Service\nkind: Node\n", None);
        check_type("apiVersion: v1\n", None);
        check_type("{\nkind: Service,\napiVersion: v1\n}", None);
        check_type("--- {apiVersion: v1, kind: Service, x: {\nkind: Node\n, y: {\napiVersion: v1\n}}}\n", None);
    }

    #[test]
    fn content_lines() {
        let line = |text| Document { text, line: 10 }.content_line();
        assert_eq!(line("a: 1\n"), 10);
        assert_eq!(line("---\n# c\n\na: 1\n"), 13);
        assert_eq!(line("--- {a: 1}\n"), 10);
    }
}
