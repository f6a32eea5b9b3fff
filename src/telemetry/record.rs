//! One event as a line (or several) of the log.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{self, FormatTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::PLAIN;
use crate::config::LogFormat;
use crate::config::go::quote;

/// Formats events as klog does.
///
/// - Text: `E0501 10:00:00.123456   <pid> file.rs:NN] "message" err="..." key="value"`, times in
///   UTC; a value of several lines stands between `<` and ` >`, each line after a tab.
/// - JSON: `{"ts":<milliseconds>,"caller":"folder/file.rs:NN","msg":"...","v":0,...}`, without
///   `v` if it is an error.
///
/// A field `error` is called `err`, as klog calls it. A field `v` is the level at which klog would
/// log an event that is an info here.
pub(super) struct Lines(pub(super) LogFormat);

/// What an event says.
#[derive(Default)]
struct Record {
    message: String,
    verbosity: Option<u64>,
    fields: Vec<(&'static str, Value)>,
}

enum Value {
    /// To be quoted.
    Text(String),
    /// Numbers, booleans, JSON.
    Bare(String),
}

// === impl Lines ===

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut record = Record::default();
        event.record(&mut record);
        let line = match self.0 {
            LogFormat::Text => record.text(event)?,
            LogFormat::Json => record.json(event),
        };
        writer.write_str(&line)
    }
}

// === impl Record ===

impl Record {
    fn text(&self, event: &Event<'_>) -> Result<String, fmt::Error> {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        // As in 2026-05-01T10:00:00.123456Z.
        let mut now = String::new();
        time::SystemTime.format_time(&mut Writer::new(&mut now))?;
        let part = |from: usize, to: usize| now.get(from..to).unwrap_or_default();
        let (month, day, time) = (part(5, 7), part(8, 10), part(11, 26));
        let file = metadata.file().and_then(|file| file.rsplit('/').next()).unwrap_or("???");
        let (pid, line) = (std::process::id(), metadata.line().unwrap_or(1));
        let message = match metadata.target() {
            PLAIN => self.message.clone(),
            _ => quote(&self.message),
        };
        let mut text = format!("{severity}{month}{day} {time} {pid:>7} {file}:{line}] {message}");
        for (name, value) in &self.fields {
            match value {
                Value::Text(value) if value.contains('\n') => {
                    writeln!(text, " {name}=<")?;
                    for line in value.strip_suffix('\n').unwrap_or(value).split('\n') {
                        writeln!(text, "\t{line}")?;
                    }
                    text.push_str(" >");
                }
                Value::Text(value) => write!(text, " {name}={}", quote(value))?,
                Value::Bare(value) => write!(text, " {name}={value}")?,
            }
        }
        text.push('\n');
        Ok(text)
    }

    fn json(&self, event: &Event<'_>) -> String {
        let metadata = event.metadata();
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let file = metadata.file().unwrap_or("???");
        let short = file.rmatch_indices('/').nth(1).and_then(|(at, _)| file.get(at + 1..)).unwrap_or(file);
        let string = |text: &str| serde_json::Value::from(text).to_string();
        let mut json = format!(
            "{{\"ts\":{}.{:03},\"caller\":{},\"msg\":{}",
            micros / 1_000,
            micros % 1_000,
            string(&format!("{short}:{}", metadata.line().unwrap_or(1))),
            string(&self.message)
        );
        let verbosity = match *metadata.level() {
            Level::ERROR => None,
            Level::WARN | Level::INFO => Some(self.verbosity.unwrap_or(0)),
            Level::DEBUG => Some(2),
            Level::TRACE => Some(5),
        };
        if let Some(verbosity) = verbosity {
            json.push_str(&format!(",\"v\":{verbosity}"));
        }
        for (name, value) in &self.fields {
            let value = match value {
                Value::Text(text) => string(text),
                Value::Bare(text) => text.clone(),
            };
            json.push_str(&format!(",{}:{value}", string(name)));
        }
        json.push_str("}\n");
        json
    }

    fn push(&mut self, field: &Field, value: Value) {
        let name = match field.name() {
            "error" => "err",
            name => name,
        };
        match (name, &value) {
            ("message", Value::Text(text) | Value::Bare(text)) => self.message.clone_from(text),
            // Where the `log` crate's events come from.
            (name, _) if name.starts_with("log.") => {}
            // klog has the error first.
            ("err", _) => self.fields.insert(0, (name, value)),
            _ => self.fields.push((name, value)),
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // A list or map is printed as such.
        let may_be_json = field.name() != "message" && text.starts_with(['[', '{']);
        let json = may_be_json.then(|| serde_json::from_str::<serde_json::Value>(&text).ok()).flatten();
        self.push(field, json.map_or(Value::Text(text), |json| Value::Bare(json.to_string())));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, Value::Text(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "v" => self.verbosity = Some(value),
            _ => self.push(field, Value::Bare(value.to_string())),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match field.name() {
            "v" => self.verbosity = u64::try_from(value).ok(),
            _ => self.push(field, Value::Bare(value.to_string())),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::Bare(value.to_string()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let bare = value.is_finite();
        let text = value.to_string();
        self.push(field, if bare { Value::Bare(text) } else { Value::Text(text) });
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, events: impl FnOnce()) -> String {
        let log = Log::default();
        let writer = log.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(Lines(format)).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
    }

    /// What follows the head of each line.
    fn texts(events: impl FnOnce()) -> Vec<String> {
        let log = logged(LogFormat::Text, events);
        let pid = std::process::id();
        let bodies = log.lines().map(|line| match line.split_once(" record.rs:") {
            Some((head, rest)) => {
                // E0501 10:00:00.123456
                let (letter, time) = head.split_at(1);
                assert!(matches!(letter, "I" | "W" | "E"), "{line}");
                let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).take(20).collect();
                assert_eq!(shape, "0000 00:00:00.000000", "{line}");
                assert_eq!(time.get(20..), Some(format!(" {pid:>7}").as_str()), "{line}");
                format!("{letter}{}", rest.split_once(']').unwrap().1)
            }
            None => line.to_owned(),
        });
        bodies.collect()
    }

    #[test]
    fn text() {
        let seen = texts(|| {
            let error = io::Error::other("a \"bad\" thing");
            tracing::error!(code = 5, %error, "command failed");
            tracing::info!(name = "x", on = true, list = ?["a", "b"], took = ?std::time::Duration::from_millis(1500), "Said \"so\"");
            tracing::warn!(err = "one\ntwo\n", next = 1, "Long");
            tracing::debug!(target: PLAIN, "FLAG: --x={:?}", "y");
            tracing::info!(v = 1, r#"{{"a":1}}"#);
        });
        let expected = [
            r#"E "command failed" err="a \"bad\" thing" code=5"#,
            r#"I "Said \"so\"" name="x" on=true list=["a","b"] took="1.5s""#,
            r#"W "Long" err=<"#,
            "\tone",
            "\ttwo",
            " > next=1",
            r#"I FLAG: --x="y""#,
            r#"I "{\"a\":1}""#,
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn json() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let log = logged(LogFormat::Json, || {
            tracing::error!(error = "one\ntwo", "command failed");
            tracing::info!(v = 1, file = "/x", map = ?std::collections::BTreeMap::from([("a", 1)]), "Wrote");
            tracing::debug!("Detail");
        });
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &lines {
            assert!(line["ts"].as_f64().unwrap() >= before as f64, "{line}");
            assert!(line["caller"].as_str().unwrap().starts_with("telemetry/record.rs:"), "{line}");
        }
        assert_eq!((&lines[0]["err"], lines[0].get("v")), (&"one\ntwo".into(), None));
        assert_eq!((&lines[1]["v"], &lines[1]["map"]["a"], &lines[1]["msg"]), (&1.into(), &1.into(), &"Wrote".into()));
        assert_eq!(lines[2]["v"], 2);
        assert!(log.starts_with("{\"ts\":"), "{log}");
    }
}
