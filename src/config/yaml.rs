//! A tree as YAML text, as the YAML library of Kubernetes writes it: block style, keys sorted, a
//! string in quotes only where it would be read as something else without.

use super::document::Value;
use super::go::quote;
use super::json;

/// YAML of an object, with a line end at the end.
pub(crate) fn write(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(entries) if !entries.is_empty() => object(entries, "", "", &mut text),
        other => {
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
    text
}

/// Entries below `indent`; the first one comes after `first` instead, which is as wide.
fn object(entries: &[(String, Value)], first: &str, indent: &str, text: &mut String) {
    let mut sorted: Vec<&(String, Value)> = entries.iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        text.push_str(if index == 0 { first } else { indent });
        text.push_str(&string(key));
        text.push(':');
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                let inner = format!("{indent}  ");
                text.push('\n');
                object(entries, &inner, &inner, text);
            }
            Value::List(items) if !items.is_empty() => {
                text.push('\n');
                list(items, indent, text);
            }
            other => {
                text.push(' ');
                text.push_str(&scalar(other));
                text.push('\n');
            }
        }
    }
}

/// Items below a key, which are not indented further.
fn list(items: &[Value], indent: &str, text: &mut String) {
    for item in items {
        match item {
            Value::Object(entries) if !entries.is_empty() => {
                object(entries, &format!("{indent}- "), &format!("{indent}  "), text);
            }
            other => {
                text.push_str(&format!("{indent}- {}\n", scalar(other)));
            }
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        // Lists in lists do not occur; JSON is YAML, too.
        other => json::write(other),
    }
}

fn string(text: &str) -> String {
    if means_something_else(text) || !text.chars().all(is_printable) {
        quote(text)
    } else if !may_stand_plain(text) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        text.to_owned()
    }
}

/// Whether a plain scalar is read as something other than a string, by some version of YAML.
fn means_something_else(text: &str) -> bool {
    let is_sexagesimal = || {
        let mut parts = text.trim_start_matches(['+', '-']).split(':');
        let first = parts.next().unwrap_or_default();
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        text.contains(':') && digits(first) && parts.all(|part| part.len() <= 2 && digits(part))
    };
    let is_date = || {
        let bytes: Vec<bool> = text.bytes().take(5).map(|byte| byte.is_ascii_digit()).collect();
        bytes == [true, true, true, true, false] && text.as_bytes().get(4) == Some(&b'-')
    };
    let special = |text: &str| {
        matches!(text.trim_start_matches(['+', '-']), ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN" | "<<" | "=")
    };
    !matches!(Value::plain(text), Value::String(_)) || special(text) || is_sexagesimal() || is_date()
}

fn is_printable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Whether the syntax allows a string without quotes, as the value of a key.
fn may_stand_plain(text: &str) -> bool {
    let starts_badly = text.starts_with(|c: char| ",[]{}#&*!|>'\"%@`".contains(c))
        || text.starts_with("---")
        || text.starts_with("...")
        || ["-", "?", ":"].iter().any(|mark| text == *mark || text.starts_with(&format!("{mark} ")));
    !(starts_badly
        || text.starts_with(' ')
        || text.ends_with(' ')
        || text.ends_with(':')
        || text.contains(": ")
        || text.contains(" #"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::read;

    #[track_caller]
    fn check(value: &str, expected: &str) {
        assert_eq!(string(value), expected);
        let text = write(&Value::Object(vec![("key".to_owned(), Value::String(value.to_owned()))]));
        let again = read(&text).unwrap().root;
        assert_eq!(again, Value::Object(vec![("key".to_owned(), Value::String(value.to_owned()))]), "{text}");
    }

    #[test]
    fn quotes_where_needed() {
        for plain in ["x", "0.0.0.0:10256", "fd00::/64", "10.0.0.0/8,fd00::/48", "a b", "a'b", "-x", "a-", "15m0s"] {
            check(plain, plain);
        }
        for other in ["", "0", "true", "Yes", "null", "~", "1.5", "0x10", "1:20", "2001-01-01", ".inf", "<<", "1e3"] {
            check(other, &format!("\"{other}\""));
        }
        for single in ["::", "[::]:10256", "a: b", "a #b", " a", "a ", "*x", "- a", "#", "---"] {
            check(single, &format!("'{single}'"));
        }
        check("'", "''''");
        check("a\n", r#""a\n""#);
    }

    #[test]
    fn block_style_with_sorted_keys() {
        let document = "b: [x, {d: 1, c: ['y']}]\na: {z: {}, y: null, x: []}\n";
        let text = write(&read(document).unwrap().root);
        assert_eq!(text, "a:\n  x: []\n  \"y\": null\n  z: {}\nb:\n- x\n- c:\n  - \"y\"\n  d: 1\n");
        assert_eq!(read(&text).unwrap().root, read(document).unwrap().root);
    }

    proptest::proptest! {
        #[test]
        fn any_string_is_read_again(value in "[ -~\n\u{e9}]{0,12}") {
            check(&value.clone(), &string(&value));
        }
    }
}
