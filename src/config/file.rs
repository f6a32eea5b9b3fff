//! Reading the configuration file.

use std::io;
use std::path::Path;

use super::decode::{Decode, Decoder};
use super::document::locate::{self, Place};
use super::document::{self, Value};
use super::go::quote;
use super::go_io_error;
use super::schema::KubeProxyConfiguration;

/// The kind of the document.
pub(crate) const KIND: &str = "KubeProxyConfiguration";
/// Its only version.
pub(crate) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// Where kube-proxy's own source keeps its table of kinds; part of the message.
const SCHEME: &str = "pkg/proxy/apis/config/scheme/scheme.go:29";

/// A file's content with defaults filled in.
#[derive(Debug)]
pub(crate) struct Read {
    /// What it says.
    pub(crate) configuration: KubeProxyConfiguration,
    /// What a strict reader would refuse: fields that are unknown or there twice.
    pub(crate) complaint: Option<String>,
    /// Where these are; the first of them if they are many.
    pub(crate) places: Vec<Place>,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(crate) struct Refused {
    /// In the words of kube-proxy.
    pub(crate) error: String,
    /// Where in the file, if one can tell.
    pub(crate) places: Vec<Place>,
}

/// Complaints whose place is looked for: each takes a pass over the file.
const PLACES: usize = 10;

/// Reads and decodes a file. Errors are worded as kube-proxy's.
pub(crate) fn read(path: &Path) -> Result<Read, Refused> {
    from_bytes(&std::fs::read(path).map_err(|error| {
        let operation = if error.kind() == io::ErrorKind::IsADirectory { "read" } else { "open" };
        Refused { error: go_io_error(operation, path, &error), places: Vec::new() }
    })?)
}

/// Decodes what stands in a file.
pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Read, Refused> {
    decode(&String::from_utf8_lossy(bytes))
        .map_err(|refused| Refused { error: format!("failed to decode: {}", refused.error), ..refused })
}

/// Decodes a document: YAML or JSON, of several YAML documents the first.
pub(crate) fn decode(text: &str) -> Result<Read, Refused> {
    let refuse = |error, place: Option<Place>| Refused { error, places: place.into_iter().collect() };
    let document = document::read(text).map_err(|error| refuse(error, locate::fault(text)))?;
    check_kind(&document.root, text).map_err(|(error, field)| {
        let start = Place { line: 1, column: 1 };
        let place = field.and_then(|field| locate::field(text, &[field.to_owned()]));
        refuse(error, Some(place.unwrap_or(start)))
    })?;
    let mut configuration = KubeProxyConfiguration::default();
    let mut decoder = Decoder::default();
    configuration.decode(&document.root, &mut decoder);
    let strict = decoder.finish().map_err(|fault| refuse(fault.text, locate::field(text, &fault.path)))?;
    configuration.set_defaults();

    let mut places = document.duplicate_places;
    places.extend(strict.iter().take(PLACES).filter_map(|fault| locate::field(text, &fault.path)));
    places.sort_unstable();
    places.truncate(PLACES);
    let complaints: Vec<String> = document.duplicates.into_iter().chain(strict.into_iter().map(|f| f.text)).collect();
    let complaint = match complaints.is_empty() {
        true => None,
        false => Some(format!("strict decoding error: {}", complaints.join(", "))),
    };
    Ok(Read { configuration, complaint, places })
}

/// An error comes with the field it is about, if there is one.
fn check_kind(root: &Value, text: &str) -> Result<(), (String, Option<&'static str>)> {
    let entries = match root {
        Value::Object(entries) => entries.as_slice(),
        Value::Null => &[],
        other => {
            let kind = other.kind();
            let error =
                format!("couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into an object");
            return Err((error, None));
        }
    };
    let field = |name: &'static str| match entries.iter().rev().find(|(key, _)| key == name) {
        None | Some((_, Value::Null)) => Ok(""),
        Some((_, Value::String(text))) => Ok(text.as_str()),
        Some((_, other)) => {
            let kind = other.kind();
            let error = format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into Go struct field \
                 .{name} of type string"
            );
            Err((error, Some(name)))
        }
    };
    match (field("kind")?, field("apiVersion")?) {
        ("", _) => Err((format!("Object 'Kind' is missing in '{text}'"), None)),
        (_, "") => Err((format!("Object 'apiVersion' is missing in '{text}'"), None)),
        (KIND, API_VERSION) => Ok(()),
        (kind, version) => {
            let (shown, scheme) = (quote(kind), quote(SCHEME));
            let error = format!("no kind {shown} is registered for version {} in scheme {scheme}", quote(version));
            Err((error, Some(if kind == KIND { "apiVersion" } else { "kind" })))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Whatever is in a file, reading it ends with an answer.
        #[test]
        fn any_text_has_an_answer(lines in "([a-z&*!<-]{0,8}[:,{}\\[\\]\"' |>#?%@-]{0,3} ?[0-9a-z\n ~*&]{0,6}\n?){0,12}") {
            let _ = decode(&lines);
            let _ = decode(&format!("{{{lines}"));
        }
    }
}
