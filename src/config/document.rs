//! YAML or JSON text as a tree, the way kube-proxy gets to it: YAML is turned into JSON with the
//! scalar rules of YAML 1.1 (`yes` is true, `010` is eight), keys sorted, the last of several equal
//! keys kept. Not serde's data model, because that hides what must be told apart here: a quoted
//! `"30"` from a number, and every duplicate key with its line.

pub(crate) mod locate;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use self::locate::Place;
use super::go::{parse_integer, quote};

/// A JSON value. Numbers keep their text, objects their duplicate keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number as JSON writes it.
    Number(String),
    /// A string.
    String(String),
    /// An array.
    List(Vec<Value>),
    /// An object. Sorted and without duplicates if it was YAML, as written if it was JSON.
    Object(Vec<(String, Value)>),
}

/// The first document of a text.
#[derive(Debug)]
pub(crate) struct Document {
    /// What it says.
    pub(crate) root: Value,
    /// Complaint about duplicate keys, if it is YAML and has some.
    pub(crate) duplicates: Option<String>,
    /// Where these are.
    pub(crate) duplicate_places: Vec<Place>,
}

/// Nodes that aliases may expand to: a bound for malicious input. The largest real configuration
/// has a few hundred nodes in all.
const MAX_EXPANDED: usize = 100_000;
/// How deep nodes may be nested, likewise.
const MAX_DEPTH: usize = 500;

/// Reads YAML or JSON; JSON is what begins with a brace. Errors are worded as kube-proxy's.
pub(crate) fn read(text: &str) -> Result<Document, String> {
    if text.trim_start().starts_with('{') {
        let root = serde_json::from_str(text)
            .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))?;
        return Ok(Document { root, duplicates: None, duplicate_places: Vec::new() });
    }
    let events = Parser::new_from_str(text);
    let mut reader = Reader {
        events,
        anchors: HashMap::new(),
        duplicates: Vec::new(),
        places: Vec::new(),
        nodes: 0,
        expanded: 0,
        depth: 0,
    };
    let root = reader.document()?;
    let duplicates = match reader.duplicates.is_empty() {
        true => None,
        false => Some(format!("yaml: unmarshal errors:\n  {}", reader.duplicates.join("\n  "))),
    };
    Ok(Document { root, duplicates, duplicate_places: reader.places })
}

// === impl Value ===

impl Value {
    /// JSON's name of the kind of value.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::List(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// A plain YAML scalar: null, a boolean, a number, or else a string.
    pub(crate) fn plain(text: &str) -> Value {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
            "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
                return Value::Bool(true);
            }
            "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
                return Value::Bool(false);
            }
            _ => {}
        }
        if let Some(Some(integer)) = parse_integer(&text.replace('_', "")) {
            return Value::Number(integer.to_string());
        }
        let float_like = text.contains(|c: char| c.is_ascii_digit())
            && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
        match text.parse::<f64>() {
            Ok(number) if float_like && number.is_finite() => Value::Number(number.to_string()),
            _ => Value::String(text.to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            object.push(entry);
        }
        Ok(Value::Object(object))
    }
}

/// Builds the tree from the YAML parser's events.
struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, (Value, usize)>,
    duplicates: Vec<String>,
    places: Vec<Place>,
    /// Nodes so far, aliases expanded.
    nodes: usize,
    /// Nodes among them that came from aliases.
    expanded: usize,
    depth: usize,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Value, String> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(..), _) => {}
                (Event::StreamEnd | Event::DocumentEnd, _) => return Ok(Value::Null),
                (event, _) => return self.node(event),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        loop {
            match self.events.next() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(event)) => return Ok(event),
                Some(Err(error)) => return Err(complaint(&error)),
                None => return Ok((Event::StreamEnd, Span::default())),
            }
        }
    }

    fn node(&mut self, event: Event<'a>) -> Result<Value, String> {
        let before = self.nodes;
        self.nodes += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("yaml: exceeded max depth of {MAX_DEPTH}"));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_string = tag.as_ref().and_then(|tag| tag.core_suffix()) == Some("str");
                let value = match style == ScalarStyle::Plain && !is_string {
                    true => Value::plain(&text),
                    false => Value::String(text.into_owned()),
                };
                (value, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.sequence()?, anchor),
            Event::MappingStart(_, anchor, _) => (self.mapping()?, anchor),
            Event::Alias(id) => {
                let Some((value, size)) = self.anchors.get(&id).cloned() else {
                    return Err("yaml: anchor value contains itself".to_owned());
                };
                self.nodes += size;
                self.expanded += size;
                self.depth -= 1;
                return match self.expanded > MAX_EXPANDED {
                    true => Err("yaml: document contains excessive aliasing".to_owned()),
                    false => Ok(value),
                };
            }
            _ => return Err("yaml: a value is missing".to_owned()),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), self.nodes - before));
        }
        self.depth -= 1;
        Ok(value)
    }

    fn sequence(&mut self) -> Result<Value, String> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(list)),
                (event, _) => list.push(self.node(event)?),
            }
        }
    }

    fn mapping(&mut self) -> Result<Value, String> {
        let mut entries = BTreeMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let (key, plain) = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, style, ..) => (key.into_owned(), style == ScalarStyle::Plain),
                _ => return Err(format!("yaml: line {}: a key must be a string", span.start.line())),
            };
            let (event, _) = self.next()?;
            let value = self.node(event)?;
            if plain && key == "<<" {
                merged.push(value);
                continue;
            }
            // Told once the value is read, so that duplicates inside it come first.
            if entries.contains_key(&key) {
                self.duplicates.push(format!("line {}: key {} already set in map", span.start.line(), quote(&key)));
                self.places.push(Place { line: span.start.line(), column: span.start.col() + 1 });
            }
            entries.insert(key, value);
        }
        for value in merged {
            let maps = match value {
                Value::List(maps) => maps,
                map => vec![map],
            };
            for map in maps {
                let Value::Object(map) = map else {
                    return Err("yaml: map merge requires map or sequence of maps as the value".to_owned());
                };
                for (key, value) in map {
                    entries.entry(key).or_insert(value);
                }
            }
        }
        Ok(Value::Object(entries.into_iter().collect()))
    }
}

/// The scanner speaks with libyaml's words, as Go's YAML library does; that one names no line if
/// it is the first.
fn complaint(error: &ScanError) -> String {
    match error.marker().line() {
        0 | 1 => format!("yaml: {}", error.info()),
        line => format!("yaml: line {line}: {}", error.info()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as JSON text.
    fn json(value: &Value) -> String {
        match value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.clone(),
            Value::String(text) => quote(text),
            Value::List(list) => format!("[{}]", list.iter().map(json).collect::<Vec<_>>().join(",")),
            Value::Object(entries) => {
                let entry = |(key, value): &(String, Value)| format!("{}:{}", quote(key), json(value));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
            }
        }
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let read = read(text).map(|document| json(&document.root));
        assert_eq!(read.as_deref().map_err(String::as_str), expected, "{text}");
    }

    #[test]
    fn scalars_as_in_yaml_1_1() {
        check("[yes, Off, y, true, 'yes', !!str true]", Ok(r#"[true,false,true,true,"yes","true"]"#));
        check("[14, -999, 010, 0x10, 1_000, +5, '14']", Ok(r#"[14,-999,8,16,1000,5,"14"]"#));
        check("[1.5, 5., .5, 1e3, 1.2.3.4, 1:2, -x, nan]", Ok(r#"[1.5,5,0.5,1000,"1.2.3.4","1:2","-x","nan"]"#));
        check("[~, null, ~x]", Ok(r#"[null,null,"~x"]"#));
        check("a: ~\nb:\nc: null\nd: ''", Ok(r#"{"a":null,"b":null,"c":null,"d":""}"#));
    }

    #[test]
    fn documents() {
        check("", Ok("null"));
        check("# nothing\n", Ok("null"));
        check("---\nb: 1\na: {c: [d]}\n---\nc: d: e\n", Ok(r#"{"a":{"c":["d"]},"b":1}"#));
        check("a: b: c", Err("yaml: mapping values are not allowed in this context"));
        check("x: 1\n\na: b: c", Err("yaml: line 3: mapping values are not allowed in this context"));
        check(" {\"b\": 1, \"a\": [null, 1.5, \"x\"], \"b\": 2}", Ok(r#"{"b":1,"a":[null,1.5,"x"],"b":2}"#));
        check("{a: b}", Err("couldn't get version/kind; json parse error: key must be a string at line 1 column 2"));
    }

    #[test]
    fn anchors_and_merges() {
        check(
            "a: &x {b: 1, c: 2}\nd: *x\ne: {<<: *x, c: 3}",
            Ok(r#"{"a":{"b":1,"c":2},"d":{"b":1,"c":2},"e":{"b":1,"c":3}}"#),
        );
        check("a: &x [*x]", Err("yaml: anchor value contains itself"));
        let bomb = (0..12).fold("a: &a0 [x]\n".to_owned(), |text, level| {
            let next = level + 1;
            text + &format!("b{next}: &a{next} [{}]\n", vec![format!("*a{level}"); 9].join(","))
        });
        check(&bomb, Err("yaml: document contains excessive aliasing"));
        assert!(read(&"[".repeat(100_000)).is_err() && read(&"- ".repeat(100_000)).is_err());
    }

    #[test]
    fn duplicate_keys_are_told_and_the_last_wins() {
        let document = read("a: 1\nb: {c: 1, c: 2}\na: 3\n").unwrap();
        assert_eq!(json(&document.root), r#"{"a":3,"b":{"c":2}}"#);
        assert_eq!(
            document.duplicates.as_deref(),
            Some(
                "yaml: unmarshal errors:\n  line 2: key \"c\" already set in map\n  line 3: key \"a\" already set in map"
            )
        );
        assert_eq!(read("a: 1").unwrap().duplicates, None);
    }
}
