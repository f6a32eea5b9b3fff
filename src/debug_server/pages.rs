//! Pages for people (and, if they insist, programs): flags and version.

use std::fmt::Write as _;
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

/// What both pages say about themselves, in kube-proxy's words.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// In place of Go's profiler.
pub(super) const NO_PROFILER: &str = "\
ferrule has no profiler of Go's kind, and its verbosity cannot be changed while it runs (restart it with another -v).
For a CPU profile run on the node: perf record -g -p $(pidof ferrule) -- sleep 30
How long each stage of a change takes is in /metrics: ferrule_change_stage_duration_seconds
";

/// In which form a page is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// Neither will do.
    None,
}

/// What `/statusz` shows.
pub(super) struct Status {
    start: SystemTime,
    /// Without the `v`.
    version: String,
    paths: Vec<&'static str>,
}

/// The form that an `Accept` header asks for: the first that there is, with anything or nothing meaning
/// text.
pub(super) fn form(accept: &str, kind: &str) -> Form {
    if accept.trim().is_empty() {
        return Form::Text;
    }
    let wanted = accept.split(',').map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<&str> = parts.collect();
        let has = |parameter: &str| parameters.contains(&parameter);
        let version = has("v=v1beta1") || has("v=v1alpha1");
        match media.as_str() {
            "*/*" | "text/*" | "text/plain" => Form::Text,
            "application/json" if version && has("g=config.k8s.io") && has(&format!("as={kind}")) => Form::Json,
            _ => Form::None,
        }
    });
    wanted.into_iter().find(|form| *form != Form::None).unwrap_or(Form::None)
}

/// `/flagz` for people. (kube-proxy picks its separator at random, so that nobody parses it.)
pub(super) fn flags_text(flags: &[(&'static str, String)]) -> String {
    let mut text = format!("\nkube-proxy flagz\n{WARNING}\n");
    for (name, value) in flags {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}

/// `/flagz` for programs.
pub(super) fn flags_json(flags: &[(&'static str, String)]) -> String {
    let flags: serde_json::Map<_, _> = flags.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    object("Flagz", json!({ "flags": flags }))
}

fn object(kind: &str, mut fields: serde_json::Value) -> String {
    if let Some(fields) = fields.as_object_mut() {
        fields.insert("kind".to_owned(), json!(kind));
        fields.insert("apiVersion".to_owned(), json!("config.k8s.io/v1beta1"));
        fields.insert("metadata".to_owned(), json!({ "name": "kube-proxy" }));
    }
    format!("{fields}\n")
}

// === impl Status ===

impl Status {
    pub(super) fn new(start: SystemTime, version: &str, paths: Vec<&'static str>) -> Status {
        Status { start, version: version.trim_start_matches('v').to_owned(), paths }
    }

    /// Major and minor version.
    fn emulated(&self) -> String {
        self.version.split('.').take(2).collect::<Vec<_>>().join(".")
    }

    fn up(&self) -> u64 {
        self.start.elapsed().unwrap_or_default().as_secs()
    }

    fn started(&self) -> Timestamp {
        let since = self.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        SignedDuration::try_from(since).ok().and_then(|since| Timestamp::from_duration(since).ok()).unwrap_or_default()
    }

    /// For people. The line for Go's version says what there is instead.
    pub(super) fn text(&self) -> String {
        let up = self.up();
        let (hours, minutes, seconds) = (up / 3_600, up / 60 % 60, up % 60);
        format!(
            "\nkube-proxy statusz\n{WARNING}\n\nStarted:  {}\nUp:  {hours} hr {minutes:02} min {seconds:02} sec\n\
             Go version:  none (ferrule {})\nBinary version:  {}\nEmulation version:  {}\nPaths:  {}\n",
            self.started().to_zoned(TimeZone::UTC).strftime("%a %b %e %H:%M:%S UTC %Y"),
            env!("CARGO_PKG_VERSION"),
            self.version,
            self.emulated(),
            self.paths.join(" ")
        )
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        object(
            "Statusz",
            json!({
                "startTime": self.started().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "uptimeSeconds": self.up(),
                "goVersion": "",
                "binaryVersion": self.version,
                "emulationVersion": self.emulated(),
                "paths": self.paths,
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for text in ["", "*/*", "text/plain", "text/html, */*;q=0.8", "text/plain; charset=utf-8"] {
            assert_eq!(form(text, "Flagz"), Form::Text, "{text}");
        }
        for json in [
            "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
            "application/json; as=Flagz; g=config.k8s.io; v=v1alpha1",
        ] {
            assert_eq!(form(json, "Flagz"), Form::Json, "{json}");
            assert_eq!(form(json, "Statusz"), Form::None, "{json}");
        }
        for none in ["application/json", "image/png", "application/json;v=v2;g=config.k8s.io;as=Flagz"] {
            assert_eq!(form(none, "Flagz"), Form::None, "{none}");
        }
    }

    #[test]
    fn status() {
        let start = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_209_090);
        let status = Status::new(start, "v1.36.2", vec!["/configz", "/metrics"]);
        let text = status.text();
        assert!(text.contains("\nStarted:  Fri Nov 20 21:11:30 UTC 2026\n"), "{text}");
        assert!(text.contains("\nBinary version:  1.36.2\nEmulation version:  1.36\nPaths:  /configz /metrics\n"));
        let json: serde_json::Value = serde_json::from_str(&status.json()).unwrap();
        assert_eq!(json["startTime"], "2026-11-20T21:11:30Z");
        assert_eq!((&json["kind"], &json["binaryVersion"]), (&json!("Statusz"), &json!("1.36.2")));
    }
}
