//! Reading the configuration file.

use std::io;
use std::path::Path;

use super::decode::{Decode, Decoder};
use super::document::{self, Value};
use super::go::quote;
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
}

/// Reads and decodes a file. Errors are worded as kube-proxy's.
pub(crate) fn read(path: &Path) -> Result<Read, String> {
    let text = std::fs::read(path).map_err(|error| io_error(path, &error))?;
    decode(&String::from_utf8_lossy(&text)).map_err(|error| format!("failed to decode: {error}"))
}

/// Decodes a document: YAML or JSON, of several YAML documents the first.
pub(crate) fn decode(text: &str) -> Result<Read, String> {
    let document = document::read(text)?;
    check_kind(&document.root, text)?;
    let mut configuration = KubeProxyConfiguration::default();
    let mut decoder = Decoder::default();
    configuration.decode(&document.root, &mut decoder);
    let complaints: Vec<String> = document.duplicates.into_iter().chain(decoder.finish()?).collect();
    configuration.set_defaults();
    let complaint = match complaints.is_empty() {
        true => None,
        false => Some(format!("strict decoding error: {}", complaints.join(", "))),
    };
    Ok(Read { configuration, complaint })
}

fn check_kind(root: &Value, text: &str) -> Result<(), String> {
    let entries = match root {
        Value::Object(entries) => entries.as_slice(),
        Value::Null => &[],
        other => {
            let kind = other.kind();
            return Err(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into an object"
            ));
        }
    };
    let field = |name: &str| match entries.iter().rev().find(|(key, _)| key == name) {
        None | Some((_, Value::Null)) => Ok(""),
        Some((_, Value::String(text))) => Ok(text.as_str()),
        Some((_, other)) => Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{name} of type string",
            other.kind()
        )),
    };
    match (field("kind")?, field("apiVersion")?) {
        ("", _) => Err(format!("Object 'Kind' is missing in '{text}'")),
        (_, "") => Err(format!("Object 'apiVersion' is missing in '{text}'")),
        (KIND, API_VERSION) => Ok(()),
        (kind, version) => Err(format!(
            "no kind {} is registered for version {} in scheme {}",
            quote(kind),
            quote(version),
            quote(SCHEME)
        )),
    }
}

/// The system's answer as Go words it.
fn io_error(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("open {path}: no such file or directory"),
        io::ErrorKind::PermissionDenied => format!("open {path}: permission denied"),
        io::ErrorKind::IsADirectory => format!("read {path}: is a directory"),
        _ => format!("open {path}: {error}"),
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
