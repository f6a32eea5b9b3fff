//! A tree into structs, by the rules of Go's JSON decoder: keys match exactly, `null` leaves what
//! is there, the first wrong type is the error but decoding goes on, unknown and duplicate fields
//! are told apart from it. kube-proxy reads every file twice with these rules (strictly, then
//! leniently); here one pass gives both answers.

use std::collections::BTreeMap;
use std::collections::HashSet;

use super::document::Value;
use super::duration::GoDuration;
use super::go::quote;

/// What decoding found besides values.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Names of the fields on the way to the current one.
    path: Vec<String>,
    /// Go's name of the struct the current field belongs to.
    owner: &'static str,
    /// The first value of a wrong type.
    error: Option<Fault>,
    /// Unknown and duplicate fields.
    strict: Vec<Fault>,
}

/// Something wrong in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What, in the words of Go.
    pub(crate) text: String,
    /// Names of the fields that lead there.
    pub(crate) path: Vec<String>,
}

/// Something a value can be decoded into.
pub(crate) trait Decode {
    /// Takes the value over, or reports why not.
    fn decode(&mut self, value: &Value, decoder: &mut Decoder);
}

/// A struct with named fields.
pub(crate) trait Fields {
    /// The struct's name in Go with its package, as error messages show it.
    const GO_TYPE: &'static str;

    /// The field of a JSON name.
    fn field(&mut self, name: &str) -> Option<&mut dyn Decode>;
}

/// An integer number of nanoseconds, or a duration text: `logging.flushFrequency` alone is such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NanosOrText {
    pub(crate) duration: GoDuration,
    /// Whether it is a number, which it then stays.
    pub(crate) is_number: bool,
}

/// A Kubernetes quantity (`10Mi`), kept as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quantity(pub(crate) String);

// === impl Decoder ===

impl Decoder {
    /// The first error, else the complaints only a strict reader has.
    pub(crate) fn finish(self) -> Result<Vec<Fault>, Fault> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.strict),
        }
    }

    /// Reports an error, unless there was one before.
    fn refuse(&mut self, error: String) {
        let path = &self.path;
        self.error.get_or_insert_with(|| Fault { text: error, path: path.clone() });
    }

    /// Reports what only a strict reader refuses.
    fn complain(&mut self, text: String) {
        self.strict.push(Fault { text, path: self.path.clone() });
    }

    fn wrong(&mut self, value: &str, go_type: &str) {
        let target = match self.path.is_empty() {
            true => format!("value of type {go_type}"),
            false => format!("struct field {}.{} of type {go_type}", self.owner, self.path.join(".")),
        };
        self.refuse(format!("json: cannot unmarshal {value} into Go {target}"));
    }

    fn wrong_kind(&mut self, value: &Value, go_type: &str) {
        self.wrong(value.kind(), go_type);
    }
}

// === impl Quantity ===

impl Quantity {
    /// Reads the grammar of quantities: a decimal number with an optional suffix or exponent.
    pub(crate) fn parse(text: &str) -> Result<Quantity, String> {
        const SUFFIXES: [&str; 15] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi"];
        let number = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
        let (digits, suffix) = number.split_at(end);
        let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|exponent| exponent.parse::<i32>().is_ok());
        let number_ok = digits.bytes().any(|b| b.is_ascii_digit()) && digits.matches('.').count() <= 1;
        if text.is_empty() || !number_ok || !(exponent || suffix == "Ei" || SUFFIXES.contains(&suffix)) {
            return Err("quantities must match the regular expression \
                        '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned());
        }
        Ok(Quantity(text.to_owned()))
    }

    /// Whether it is nothing, as when it is not set.
    pub(crate) fn is_zero(&self) -> bool {
        !self.0.chars().take_while(|c| !c.is_ascii_alphabetic()).any(|c| matches!(c, '1'..='9'))
    }
}

// === impl Decode ===

impl<T: Fields> Decode for T {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        let entries = match value {
            Value::Null => return,
            Value::Object(entries) => entries,
            other => return decoder.wrong_kind(other, T::GO_TYPE),
        };
        let owner = T::GO_TYPE.rsplit('.').next().unwrap_or(T::GO_TYPE);
        let outer = std::mem::replace(&mut decoder.owner, owner);
        let mut seen = HashSet::new();
        for (name, value) in entries {
            decoder.path.push(name.clone());
            if !seen.insert(name) {
                decoder.complain(format!("duplicate field {}", quote(&decoder.path.join("."))));
            }
            match self.field(name) {
                Some(field) => field.decode(value, decoder),
                None => decoder.complain(format!("unknown field {}", quote(&decoder.path.join(".")))),
            }
            decoder.path.pop();
        }
        decoder.owner = outer;
    }
}

/// A pointer field: `null` is "not set".
impl<T: Decode + Default> Decode for Option<T> {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        match value {
            Value::Null => *self = None,
            value => self.get_or_insert_default().decode(value, decoder),
        }
    }
}

impl<T: Decode + Default> Decode for Vec<T> {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        let items = match value {
            Value::Null => return self.clear(),
            Value::List(items) => items,
            other => return decoder.wrong_kind(other, "[]string"),
        };
        self.clear();
        for (index, item) in items.iter().enumerate() {
            let last = decoder.path.last().cloned().unwrap_or_default();
            // Unknown fields in lists are told with the index; wrong types without.
            if let (Some(last), Value::Object(_)) = (decoder.path.last_mut(), item) {
                last.push_str(&format!("[{index}]"));
            }
            let mut decoded = T::default();
            decoded.decode(item, decoder);
            self.push(decoded);
            if let Some(name) = decoder.path.last_mut() {
                *name = last;
            }
        }
    }
}

impl Decode for BTreeMap<String, bool> {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        let entries = match value {
            Value::Null => return self.clear(),
            Value::Object(entries) => entries,
            other => return decoder.wrong_kind(other, "map[string]bool"),
        };
        for (key, value) in entries {
            let mut decoded = false;
            decoded.decode(value, decoder);
            if self.insert(key.clone(), decoded).is_some() {
                let path = format!("{}.{key}", decoder.path.join("."));
                decoder.complain(format!("duplicate field {}", quote(&path)));
            }
        }
    }
}

impl Decode for String {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        match value {
            Value::Null => {}
            Value::String(text) => self.clone_from(text),
            other => decoder.wrong_kind(other, "string"),
        }
    }
}

impl Decode for bool {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        match value {
            Value::Null => {}
            Value::Bool(value) => *self = *value,
            other => decoder.wrong_kind(other, "bool"),
        }
    }
}

impl Decode for i32 {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        number(self, value, "int32", decoder);
    }
}

impl Decode for u32 {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        // The only ones are log levels, which have a type of their own.
        number(self, value, "v1.VerbosityLevel", decoder);
    }
}

impl Decode for f32 {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        number(self, value, "float32", decoder);
    }
}

fn number<T: std::str::FromStr>(target: &mut T, value: &Value, go_type: &str, decoder: &mut Decoder) {
    match value {
        Value::Null => {}
        Value::Number(text) => match text.parse() {
            Ok(number) => *target = number,
            Err(_) => decoder.wrong(&format!("number {text}"), go_type),
        },
        other => decoder.wrong_kind(other, go_type),
    }
}

impl Decode for GoDuration {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        let text = match value {
            // Go's type reads null as a string that stays empty, and then parses that.
            Value::Null => "",
            Value::String(text) => text,
            other => return decoder.wrong_kind(other, "string"),
        };
        match text.parse() {
            Ok(duration) => *self = duration,
            Err(error) => decoder.refuse(error),
        }
    }
}

impl Decode for NanosOrText {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        match value {
            Value::Null => {}
            Value::String(_) => {
                self.duration.decode(value, decoder);
                self.is_number = false;
            }
            other => {
                number(&mut self.duration.0, other, "time.Duration", decoder);
                self.is_number = true;
            }
        }
    }
}

impl Decode for Quantity {
    fn decode(&mut self, value: &Value, decoder: &mut Decoder) {
        let text = match value {
            Value::Null => return *self = Quantity::default(),
            Value::String(text) | Value::Number(text) => text,
            other => return decoder.wrong_kind(other, "string"),
        };
        match Quantity::parse(text) {
            Ok(quantity) => *self = quantity,
            Err(error) => decoder.refuse(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::read;

    #[derive(Debug, Default)]
    struct Outer {
        text: String,
        number: i32,
        pointer: Option<i32>,
        list: Vec<String>,
        items: Vec<Inner>,
        inner: Inner,
        map: BTreeMap<String, bool>,
        time: GoDuration,
        flush: NanosOrText,
        size: Quantity,
        ratio: f32,
    }

    #[derive(Debug, Default)]
    struct Inner {
        flag: bool,
    }

    impl Fields for Outer {
        const GO_TYPE: &'static str = "v1.Outer";

        fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
            Some(match name {
                "text" => &mut self.text,
                "number" => &mut self.number,
                "pointer" => &mut self.pointer,
                "list" => &mut self.list,
                "items" => &mut self.items,
                "inner" => &mut self.inner,
                "map" => &mut self.map,
                "time" => &mut self.time,
                "flush" => &mut self.flush,
                "size" => &mut self.size,
                "ratio" => &mut self.ratio,
                _ => return None,
            })
        }
    }

    impl Fields for Inner {
        const GO_TYPE: &'static str = "v1.Inner";

        fn field(&mut self, name: &str) -> Option<&mut dyn Decode> {
            match name {
                "flag" => Some(&mut self.flag),
                _ => None,
            }
        }
    }

    fn decode(text: &str) -> (Outer, Result<Vec<String>, String>) {
        let mut outer = Outer { text: "kept".to_owned(), pointer: Some(1), ..Outer::default() };
        let mut decoder = Decoder::default();
        outer.decode(&read(text).unwrap().root, &mut decoder);
        let texts = |faults: Vec<Fault>| faults.into_iter().map(|fault| fault.text).collect();
        (outer, decoder.finish().map(texts).map_err(|fault| fault.text))
    }

    #[test]
    fn values() {
        let (outer, result) = decode(
            "{number: -3, pointer: 5, list: [a, b], items: [{flag: yes}], inner: {flag: true}, map: {A: true}, \
             time: 1m, flush: 2000000000, size: 10Mi, ratio: 0.5, text: x}"
                .replacen('{', "---\n{", 1)
                .as_str(),
        );
        assert_eq!(result, Ok(Vec::new()));
        assert_eq!((outer.text.as_str(), outer.number, outer.pointer, outer.ratio), ("x", -3, Some(5), 0.5));
        assert_eq!(outer.list, ["a", "b"]);
        assert!(outer.items[0].flag && outer.inner.flag && outer.map["A"]);
        assert_eq!((outer.time, outer.flush.duration), (GoDuration::seconds(60), GoDuration::seconds(2)));
        assert!(!outer.size.is_zero());
    }

    #[test]
    fn null_leaves_defaults_and_empties_pointers() {
        let (outer, result) = decode("text:\nnumber:\npointer:\nlist:\ninner:\nmap:\nflush:\nsize:\n");
        assert_eq!(result, Ok(Vec::new()));
        assert_eq!((outer.text.as_str(), outer.number, outer.pointer), ("kept", 0, None));
        assert!(outer.size.is_zero());
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        assert_eq!(decode(text).1, Err(expected.to_owned()), "{text}");
    }

    #[test]
    fn wrong_types_in_the_words_of_go() {
        check_error("[]", "json: cannot unmarshal array into Go value of type v1.Outer");
        check_error("number: x", "json: cannot unmarshal string into Go struct field Outer.number of type int32");
        check_error("number: 1.5", "json: cannot unmarshal number 1.5 into Go struct field Outer.number of type int32");
        check_error("pointer: '5'", "json: cannot unmarshal string into Go struct field Outer.pointer of type int32");
        check_error(
            "number: 3000000000",
            "json: cannot unmarshal number 3000000000 into Go struct field Outer.number of type int32",
        );
        check_error(
            "inner: {flag: 1}",
            "json: cannot unmarshal number into Go struct field Inner.inner.flag of type bool",
        );
        check_error("inner: 1", "json: cannot unmarshal number into Go struct field Outer.inner of type v1.Inner");
        check_error("list: [1]", "json: cannot unmarshal number into Go struct field Outer.list of type string");
        check_error("map: {A: 1}", "json: cannot unmarshal number into Go struct field Outer.map of type bool");
        check_error("time: 30", "json: cannot unmarshal number into Go struct field Outer.time of type string");
        check_error("time:", "time: invalid duration \"\"");
        check_error("flush: x", "time: invalid duration \"x\"");
        // The first in key order, and no word of unknown fields.
        check_error(
            "zzz: 1\ntext: 1\nnumber: x",
            "json: cannot unmarshal string into Go struct field Outer.number of type int32",
        );
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        let (_, result) = decode("Text: x\nnope: 1\ninner: {no: 1}\nitems: [{flag: true}, {bad: 1}]\n");
        let unknown = ["Text", "inner.no", "items[1].bad", "nope"].map(|field| format!("unknown field {field:?}"));
        assert_eq!(result, Ok(unknown.to_vec()));
        let (outer, result) = decode(r#"{"number": 1, "inner": {"flag": true, "flag": false}, "number": 2}"#);
        let duplicate = ["inner.flag", "number"].map(|field| format!("duplicate field {field:?}"));
        assert_eq!(result, Ok(duplicate.to_vec()));
        assert_eq!((outer.number, outer.inner.flag), (2, false));
    }

    #[test]
    fn quantities() {
        for good in ["0", "10", "1.5", "-1", "10Mi", "3e3", "5k", "0.0", ".5Gi"] {
            assert_eq!(Quantity::parse(good).map(|quantity| quantity.0).as_deref(), Ok(good));
        }
        for bad in ["", "x", "1x", "1.2.3", "Mi", "1 Mi", "."] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
        assert!(Quantity::parse("0Mi").unwrap().is_zero() && !Quantity::parse("0.1").unwrap().is_zero());
    }
}
