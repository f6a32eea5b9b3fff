//! Just enough of Rust's grammar to tell code from comments and literals, and to see paths in it.

/// The code of a source file, line for line: comments, contents of literals and modules for tests
/// are blank.
pub(super) fn code(text: &str) -> String {
    without_test_modules(&without_comments(text))
}

/// A path such as `std::fs::read`, with the line it stands in, counted from 1. Groups are taken
/// apart: `use a::{b, c::d}` names `a::b` and `a::c::d`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) path: String,
}

// === impl Named ===

impl Named {
    /// Whether the path is `prefix` or leads into it.
    pub(super) fn is_in(&self, prefix: &str) -> bool {
        self.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

/// All paths in code, single names included.
pub(super) fn paths(code: &str) -> Vec<Named> {
    let mut tokens = Tokens { tokens: tokens(code), at: 0 };
    let mut named = Vec::new();
    while tokens.at < tokens.tokens.len() {
        if !tokens.path("", &mut named) {
            tokens.at += 1;
        }
    }
    named
}

struct Tokens<'a> {
    tokens: Vec<(usize, &'a str)>,
    at: usize,
}

// === impl Tokens ===

impl<'a> Tokens<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |(_, token)| token)
    }

    /// Reads a path, if one begins here.
    fn path(&mut self, prefix: &str, named: &mut Vec<Named>) -> bool {
        let Some(&(line, token)) = self.tokens.get(self.at) else { return false };
        if !token.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '*') {
            return false;
        }
        self.at += 1;
        let path = match token {
            "self" if !prefix.is_empty() => prefix.to_owned(),
            _ if prefix.is_empty() => token.to_owned(),
            _ => format!("{prefix}::{token}"),
        };
        if self.peek() != "::" {
            named.push(Named { line, path });
            return true;
        }
        self.at += 1;
        if self.peek() != "{" {
            // `Vec::<T>` and the like: what follows is read on its own.
            if !self.path(&path, named) {
                named.push(Named { line, path });
            }
            return true;
        }
        self.at += 1;
        while !matches!(self.peek(), "}" | "") {
            if !self.path(&path, named) {
                self.at += 1;
            }
        }
        self.at += 1;
        true
    }
}

fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let length = if is_name(first) {
                rest.find(|c| !is_name(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, after) = rest.split_at(length);
            tokens.push((index + 1, token));
            rest = after.trim_start();
        }
    }
    tokens
}

/// The text with comments and the contents of literals blank.
pub(super) fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, &code) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_char_literal(rest) {
            quoted(rest, '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of the raw string that begins here, unless the `r` ends a name.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let hashes_on = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let body = hashes_on.trim_start_matches('#');
    let hashes = &hashes_on[..hashes_on.len() - body.len()];
    let end = format!("\"{hashes}");
    let inside = body.strip_prefix('"')?;
    let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
    Some(text.len() - inside.len() + length)
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Tells `'a'` from the lifetime `'a`.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    chars.next() == Some('\\') || chars.next() == Some('\'')
}

/// Blanks `#[cfg(test)] mod name { ... }`. Works on code without comments and literals only.
fn without_test_modules(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at);
        kept.push_str(before);
        let item = after[MARK.len()..].trim_start();
        let item = item.strip_prefix("pub(crate)").unwrap_or(item).trim_start();
        let (opening, end) = (after.find('{'), after.find(';'));
        let is_module = item.starts_with("mod ") && opening.is_some_and(|open| end.is_none_or(|end| open < end));
        let length = if is_module { braces(after) } else { MARK.len() };
        kept.extend(after[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &after[length..];
    }
    kept.push_str(rest);
    kept
}

/// Up to the end of the first pair of braces.
fn braces(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

#[test]
fn comments_literals_and_test_modules_are_not_code() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let squeezed: Vec<String> = code(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(squeezed.join(" "), expected);
        assert_eq!(code(text).lines().count(), text.lines().count(), "lines must keep their numbers");
    }
    check("a // tokio\nb", "a b");
    check("a /* x /* y */ z */ b", "a b");
    check(r#"f("std::fs \" // no comment"); g"#, "f( ); g");
    check("f(r#\"one \" two\"#); g", "f( ); g");
    check("var\"x\"", "var");
    check("'a' 'b", "'b");
    check(r"'\'' x", "x");
    check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
    check("a\n#[cfg(test)]\nmod tests {\n fn f() { g(\"}\") }\n}\nb", "a b");
    check("#[cfg(test)]\nmod tests;\nfn f() { a }", "mod tests; fn f() { a }");
    check("#[cfg(test)]\nuse a::b;\nfn f() { a }", "use a::b; fn f() { a }");
}

#[test]
fn paths_are_seen_in_groups_too() {
    #[track_caller]
    fn check(code: &str, expected: &[&str]) {
        let found: Vec<String> = paths(code).into_iter().map(|named| named.path).collect();
        assert_eq!(found, expected, "in {code:?}");
    }
    check("use std::fs;", &["use", "std::fs"]);
    check(
        "use std::{fs, net::{self, IpAddr}, time::*};",
        &["use", "std::fs", "std::net", "std::net::IpAddr", "std::time::*"],
    );
    check("let x = Vec::<u8>::new();", &["let", "x", "Vec", "u8", "new"]);
    check("::tokio::spawn(f)", &["tokio::spawn", "f"]);
    let named = Named { line: 1, path: "std::fs::read".to_owned() };
    assert!(named.is_in("std::fs") && named.is_in("std") && !named.is_in("std::f"));
}
