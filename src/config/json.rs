//! A tree as JSON text, as Go's encoder writes it.

use super::document::Value;

/// JSON on one line, keys as they are. Characters that mean something in HTML are escaped, as Go
/// does unasked.
pub(crate) fn write(value: &Value) -> String {
    let mut text = String::new();
    append(value, &mut text);
    text
}

fn append(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => text.push_str(number),
        Value::String(string) => append_string(string, text),
        Value::List(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                append(item, text);
            }
            text.push(']');
        }
        Value::Object(entries) => {
            text.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                append_string(key, text);
                text.push(':');
                append(value, text);
            }
            text.push('}');
        }
    }
}

fn append_string(string: &str, text: &mut String) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if u32::from(c) < 0x20 => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let text = r#"{"b":[1,null,true,"x\"\\\n\u0001é"],"a":{},"c":[]}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(write(&value), text);
        assert_eq!(write(&Value::String("<a&b>".to_owned())), r#""\u003ca\u0026b\u003e""#);
    }
}
