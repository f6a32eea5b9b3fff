//! The objects of one manifest file.
//!
//! A document is read twice: once for what it (or each item of a list) says it is, then into the
//! type that fits. So each value is decoded straight from the text, and an error has a line, a
//! column and a field. Objects of other kinds are never decoded.
//!
//! The YAML parser is more lenient than the API server in a few places, which are kept because the
//! meaning is beyond doubt: `port: "80"` is a number, `name: 10` is the text `10`, `ready: yes` is
//! true. It is as strict as `kubectl` about keys given twice.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter as _, Spanned, UserMessageFormatter};

use super::admit::{Entry, Object};
use super::documents::{self, Document};
use crate::model::Kind;

/// Reads a whole file. One mistake makes it unusable as a whole: what is half written must not
/// look like deletions.
pub(super) fn decode(bytes: &[u8], node_name: &str) -> Result<Decoded, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|error| Fault::not_utf8(bytes, error.valid_up_to()))?;
    let mut decoded = Decoded::default();
    for document in documents::split(text) {
        read_document(document, node_name, &mut decoded)?;
    }
    Ok(decoded)
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// Objects, in the file's order.
    pub(super) entries: Vec<Entry>,
    /// How many more there are that are of no interest: other kinds, other nodes.
    pub(super) ignored: usize,
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// From 1; 0 if it is about the file as a whole.
    pub(super) line: u64,
    /// In characters, from 1; 0 if unknown.
    pub(super) column: u64,
    /// Path of the field within its document; empty if it is not about one.
    pub(super) field: String,
    /// What is wrong.
    pub(super) reason: String,
}

// === reading ===

/// What stands in a document, or in an item of a list.
enum Shape {
    Ignored,
    /// An object of interest, and the line of the file on which it begins.
    One(Kind, u64),
    List(Vec<Shape>),
}

/// The part of every object that says what it is.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    items: Option<Vec<Spanned<Header>>>,
}

fn read_document(document: Document<'_>, node_name: &str, decoded: &mut Decoded) -> Result<(), Fault> {
    let line = document.content_line();
    let shape = match document.type_meta() {
        Some(written) => match kind_of(&written.api_version, &written.kind) {
            Some(kind) => Shape::One(kind, line),
            None => Shape::Ignored,
        },
        None => match parse(document, PhantomData::<Option<Header>>)? {
            // A document of comments.
            None => return Ok(()),
            Some(header) => header.shape(document, line, "", None)?,
        },
    };
    match shape {
        Shape::Ignored => decoded.ignored += 1,
        Shape::One(..) | Shape::List(_) => parse(document, Reader { shape: &shape, node_name, decoded })?,
    }
    Ok(())
}

/// Parses one document. Errors are given their line in the file.
fn parse<'a, S: DeserializeSeed<'a>>(document: Document<'a>, seed: S) -> Result<S::Value, Fault> {
    let budget = serde_saphyr::budget! {
        // A List can be a dump of a whole cluster. Depth, aliases and merges stay bounded.
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
        max_total_comment_bytes: usize::MAX,
    };
    let options = serde_saphyr::options! { budget: budget, with_snippet: false };
    let mut track = serde_path_to_error::Track::new();
    let result = serde_saphyr::with_deserializer_from_str_with_options(document.text, options, |de| {
        seed.deserialize(serde_path_to_error::Deserializer::new(de, &mut track))
    });
    result.map_err(|error| Fault::new(document, &error, &track.path()))
}

/// The kinds ferrule reads, in the versions whose shape it knows. A Service of
/// `serving.knative.dev` is something else.
fn kind_of(api_version: &str, kind: &str) -> Option<Kind> {
    match (api_version, kind) {
        ("v1", "Service") => Some(Kind::Service),
        ("discovery.k8s.io/v1", "EndpointSlice") => Some(Kind::EndpointSlice),
        ("v1", "Node") => Some(Kind::Node),
        ("networking.k8s.io/v1", "ServiceCIDR") => Some(Kind::ServiceCidr),
        _ => None,
    }
}

// === impl Header ===

impl Header {
    /// `field` is the path to this object and `line` where it begins; `implied`: the items of a
    /// ServiceList need not repeat what they are.
    fn shape(&self, document: Document<'_>, line: u64, field: &str, implied: Option<Kind>) -> Result<Shape, Fault> {
        let below = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
        let missing = |name| Fault { line, column: 0, field: below(name), reason: "is missing".into() };
        let (kind, api_version) = match (self.kind.as_deref(), self.api_version.as_deref(), implied) {
            (None, None, Some(kind)) => return Ok(Shape::One(kind, line)),
            (None, _, _) => return Err(missing("kind")),
            (_, None, _) => return Err(missing("apiVersion")),
            (Some(kind), Some(api_version), _) => (kind, api_version),
        };
        if let Some(kind) = kind_of(api_version, kind) {
            return Ok(Shape::One(kind, line));
        }
        let implied = kind.strip_suffix("List").and_then(|kind| kind_of(api_version, kind));
        if implied.is_none() && (api_version, kind) != ("v1", "List") {
            return Ok(Shape::Ignored);
        }
        let items = self.items.as_deref().unwrap_or_default().iter().enumerate();
        let shapes = items.map(|(i, item)| {
            let line = document.file_line(item.referenced.line());
            item.value.shape(document, line, &below(&format!("items[{i}]")), implied)
        });
        Ok(Shape::List(shapes.collect::<Result<_, _>>()?))
    }
}

// === impl Reader ===

/// Decodes what a [`Shape`] says is there, and skips the rest.
struct Reader<'a> {
    shape: &'a Shape,
    node_name: &'a str,
    decoded: &'a mut Decoded,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        let (kind, line) = match self.shape {
            Shape::List(_) => return de.deserialize_map(self),
            Shape::One(kind, line) => (*kind, *line),
            Shape::Ignored => {
                self.decoded.ignored += 1;
                IgnoredAny::deserialize(de)?;
                return Ok(());
            }
        };
        let object = match kind {
            Kind::Service => Object::Service(Deserialize::deserialize(de)?),
            Kind::EndpointSlice => Object::EndpointSlice(Deserialize::deserialize(de)?),
            Kind::Node => Object::Node(Deserialize::deserialize(de)?),
            Kind::ServiceCidr => Object::ServiceCidr(Deserialize::deserialize(de)?),
        };
        match object.admit(line, self.node_name) {
            Some(entry) => self.decoded.entries.push(entry),
            None => self.decoded.ignored += 1,
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "camelCase")]
        enum Key {
            Items,
            #[serde(other)]
            Other,
        }
        let Shape::List(shapes) = self.shape else { return Ok(()) };
        while let Some(key) = map.next_key()? {
            match key {
                Key::Items if !shapes.is_empty() => {
                    map.next_value_seed(Items { shapes, node_name: self.node_name, decoded: self.decoded })?;
                }
                Key::Items | Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Decodes `items`.
struct Items<'a> {
    shapes: &'a [Shape],
    node_name: &'a str,
    decoded: &'a mut Decoded,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for shape in self.shapes {
            let reader = Reader { shape, node_name: self.node_name, decoded: self.decoded };
            if seq.next_element_seed(reader)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

// === impl Fault ===

impl Fault {
    fn new(document: Document<'_>, error: &serde_saphyr::Error, path: &serde_path_to_error::Path) -> Fault {
        let location = error.location();
        // The path ends where the parser failed; a syntax error may stand outside of any field.
        let field = path.to_string();
        let known = field.split('.').take_while(|part| !part.is_empty() && !part.starts_with('?'));
        let field = known.collect::<Vec<_>>().join(".");
        let reason = match error.without_snippet() {
            serde_saphyr::Error::InvalidScalar { ty, location } => {
                let expected = match *ty {
                    "i64" => "a whole number",
                    "boolean" | "bool" => "true or false",
                    other => other,
                };
                let span = location.span();
                let written = span.byte_offset().zip(span.byte_len()).and_then(|(from, len)| {
                    let from = usize::try_from(from).ok()?;
                    document.text.get(from..from + usize::try_from(len).ok()?)
                });
                match written {
                    Some(written) if !written.trim().is_empty() => {
                        format!("invalid value {}, expected {expected}", written.trim())
                    }
                    _ => format!("invalid value, expected {expected}"),
                }
            }
            serde_saphyr::Error::Unexpected { expected, .. } => match *expected {
                "string scalar" => "expected a single value".into(),
                "sequence start" => "expected a list".into(),
                "mapping start" => "expected a mapping".into(),
                other => format!("expected {other}"),
            },
            other => UserMessageFormatter.format_message(other).into_owned(),
        };
        Fault {
            line: location.map_or(document.line, |at| document.file_line(at.line())),
            column: location.map_or(0, |at| at.column()),
            field,
            reason,
        }
    }

    fn not_utf8(bytes: &[u8], valid: usize) -> Fault {
        let before = bytes.get(..valid).unwrap_or_default();
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
        Fault { line: line as u64, column: column as u64, field: String::new(), reason: "is not UTF-8 text".into() }
    }
}
