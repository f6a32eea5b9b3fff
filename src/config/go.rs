//! How Go's standard library reads and writes single values. kube-proxy's messages are made of
//! these texts, and scripts grep for them.

use std::net::IpAddr;

use crate::net::parse_ip;

/// A string in double quotes with Go's escapes (`%q`).
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A list of strings as `%q` prints it: `["a" "b"]`.
pub(crate) fn quote_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|item| quote(item)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `strconv.ParseBool`
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(syntax("ParseBool", text)),
    }
}

/// `strconv.ParseInt(text, 0, 32)`: decimal, or with Go's prefixes `0x`, `0o`, `0`, `0b`.
pub(crate) fn parse_int32(text: &str) -> Result<i32, String> {
    match parse_integer(text) {
        Some(Some(value)) => i32::try_from(value).map_err(|_| range("ParseInt", text)),
        Some(None) => Err(range("ParseInt", text)),
        None => Err(syntax("ParseInt", text)),
    }
}

/// An integer literal of Go: `None` if it is none, `Some(None)` if it does not fit 64 bits.
pub(crate) fn parse_integer(text: &str) -> Option<Option<i64>> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let prefixed = prefixes.iter().find_map(|(prefix, radix)| Some((lower.strip_prefix(prefix)?, *radix)));
    let (number, radix) = match (prefixed, lower.strip_prefix('0')) {
        // One underscore may stand between the prefix and the digits.
        (Some((number, radix)), _) => (number.strip_prefix('_').unwrap_or(number), radix),
        (None, Some(number)) if !number.is_empty() => (number.strip_prefix('_').unwrap_or(number), 8),
        (None, _) => (lower.as_str(), 10),
    };
    // What is left must be digits with single underscores between them.
    let mut groups = number.split('_');
    if !groups.all(|group| !group.is_empty() && group.chars().all(|c| c.is_digit(radix))) {
        return None;
    }
    let magnitude = i128::from_str_radix(&number.replace('_', ""), radix).ok();
    Some(magnitude.and_then(|value| i64::try_from(if negative { -value } else { value }).ok()))
}

/// `strconv.ParseUint(text, 10, 31)`: a log level.
pub(crate) fn parse_level(text: &str) -> Result<u32, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(syntax("ParseUint", text));
    }
    let value = text.parse::<i32>().map_err(|_| range("ParseUint", text))?;
    Ok(value.unsigned_abs())
}

/// `strconv.ParseFloat(text, 32)`
pub(crate) fn parse_float32(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| syntax("ParseFloat", text))?;
    match value.is_infinite() && text.contains(|c: char| c.is_ascii_digit()) {
        true => Err(range("ParseFloat", text)),
        false => Ok(value),
    }
}

fn syntax(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: invalid syntax", quote(text))
}

fn range(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: value out of range", quote(text))
}

/// `net.SplitHostPort`: `host:port` or `[host]:port`. The port is whatever stands there.
pub(crate) fn split_host_port(text: &str) -> Result<(&str, &str), String> {
    let refuse = |why: &str| Err(format!("address {text}: {why}"));
    let Some((before, port)) = text.rsplit_once(':') else { return refuse("missing port in address") };
    let (host, opening, closing) = match text.strip_prefix('[') {
        Some(inner) => {
            let Some((host, after)) = inner.split_once(']') else { return refuse("missing ']' in address") };
            match after.strip_prefix(':') {
                Some(rest) if rest == port => (host, inner, after),
                Some(_) => return refuse("too many colons in address"),
                None => return refuse("missing port in address"),
            }
        }
        None if before.contains(':') => return refuse("too many colons in address"),
        None => (before, text, text),
    };
    if opening.contains('[') {
        return refuse("unexpected '[' in address");
    }
    if closing.contains(']') {
        return refuse("unexpected ']' in address");
    }
    Ok((host, port))
}

/// Adds a port to a bare address. Anything else stays as it is, for validation to judge.
pub(crate) fn append_port(address: &str, port: i32) -> String {
    match parse_ip(address) {
        Some(IpAddr::V4(_)) => format!("{address}:{port}"),
        Some(IpAddr::V6(_)) => format!("[{address}]:{port}"),
        None => address.to_owned(),
    }
}

/// One line of comma-separated values (`encoding/csv`), as list flags take them: a field may be in
/// double quotes, in which a comma is text and `""` a quote.
pub(crate) fn split_csv(line: &str) -> Result<Vec<String>, String> {
    if line.is_empty() {
        return Ok(Vec::new());
    }
    let refuse = |rest: &str, why: &str| {
        let column = line.len() - rest.len() + 1;
        Err(format!("parse error on line 1, column {column}: {why}"))
    };
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            if let Some(at) = field.find('"') {
                return refuse(rest.get(at..).unwrap_or_default(), "bare \" in non-quoted field");
            }
            fields.push(field.to_owned());
            match after.strip_prefix(',') {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let Some((text, after)) = quoted.split_once('"') else {
                return refuse("", "extraneous or missing \" in quoted-field");
            };
            field.push_str(text);
            if let Some(after) = after.strip_prefix('"') {
                field.push('"');
                quoted = after;
                continue;
            }
            fields.push(field);
            match after.strip_prefix(',') {
                Some(after) => rest = after,
                None if after.is_empty() => return Ok(fields),
                None => return refuse(after, "extraneous or missing \" in quoted-field"),
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(quote("a\"b\\\n\t\u{1}é"), "\"a\\\"b\\\\\\n\\t\\x01é\"");
        assert_eq!(quote_list(&["foo".to_owned(), String::new()]), r#"["foo" ""]"#);
    }

    #[track_caller]
    fn check_int(text: &str, expected: Result<i32, &str>) {
        let expected = expected.map_err(|why| format!("strconv.ParseInt: parsing {text:?}: {why}"));
        assert_eq!(parse_int32(text), expected, "{text}");
    }

    #[test]
    fn integers() {
        check_int("14", Ok(14));
        check_int("-999", Ok(-999));
        check_int("+7", Ok(7));
        check_int("0", Ok(0));
        check_int("0x10", Ok(16));
        check_int("010", Ok(8));
        check_int("0o10", Ok(8));
        check_int("0b11", Ok(3));
        check_int("1_000", Ok(1000));
        check_int("0x_ff", Ok(255));
        check_int("-2147483648", Ok(i32::MIN));
        check_int("3000000000", Err("value out of range"));
        check_int("99999999999999999999999", Err("value out of range"));
        for bad in ["", "-", "x", "1.5", "08", "1__0", "_1", "1_", "0x", "1 "] {
            check_int(bad, Err("invalid syntax"));
        }
        assert_eq!(parse_level("4"), Ok(4));
        assert_eq!(parse_level("-1").unwrap_err(), r#"strconv.ParseUint: parsing "-1": invalid syntax"#);
        assert_eq!(
            parse_level("2147483648").unwrap_err(),
            r#"strconv.ParseUint: parsing "2147483648": value out of range"#
        );
        assert_eq!(parse_float32("0.5"), Ok(0.5));
        assert_eq!(parse_float32("x").unwrap_err(), r#"strconv.ParseFloat: parsing "x": invalid syntax"#);
        assert_eq!(parse_float32("1e99").unwrap_err(), r#"strconv.ParseFloat: parsing "1e99": value out of range"#);
    }

    #[track_caller]
    fn check_address(text: &str, expected: Result<(&str, &str), &str>) {
        let expected = expected.map_err(|why| format!("address {text}: {why}"));
        assert_eq!(split_host_port(text), expected, "{text}");
    }

    #[test]
    fn addresses() {
        check_address("1.2.3.4:80", Ok(("1.2.3.4", "80")));
        check_address("[::1]:80", Ok(("::1", "80")));
        check_address(":80", Ok(("", "80")));
        check_address("host:", Ok(("host", "")));
        check_address("x", Err("missing port in address"));
        check_address("", Err("missing port in address"));
        check_address("::1", Err("too many colons in address"));
        check_address("[::1]", Err("missing port in address"));
        check_address("[::1", Err("missing ']' in address"));
        check_address("[::1]80", Err("missing port in address"));
        check_address("a]:1", Err("unexpected ']' in address"));
        check_address("a[b:1", Err("unexpected '[' in address"));
        assert_eq!(append_port("127.0.0.1", 1), "127.0.0.1:1");
        assert_eq!(append_port("::", 1), "[::]:1");
        assert_eq!(append_port("[::]:2", 1), "[::]:2");
        assert_eq!(append_port("junk", 1), "junk");
    }

    #[test]
    fn comma_separated_values() {
        let split = |line: &str| split_csv(line).map(|fields| fields.join("|"));
        assert_eq!(split(""), Ok(String::new()));
        assert_eq!(split("a,b,,c"), Ok("a|b||c".to_owned()));
        assert_eq!(split(r#""a,b","c""d""#), Ok(r#"a,b|c"d"#.to_owned()));
        assert_eq!(split(r#"a,b"c"#), Err(r#"parse error on line 1, column 4: bare " in non-quoted field"#.to_owned()));
        assert!(split(r#""a"#).is_err());
        assert!(split(r#""a"b"#).is_err());
    }
}
