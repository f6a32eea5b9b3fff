//! Logs, in the form of kube-proxy's: klog's text lines or its JSON.

mod pattern;
mod record;

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Metadata};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, filter, layer::SubscriberExt};

use self::record::Lines;
use crate::config::{LogFormat, Logging};

/// The target of events whose message is printed without quotes, as klog does with those that have
/// no keys of their own. Begins with the crate's name, so that levels apply.
pub const PLAIN: &str = "ferrule::plain";

/// Which events are logged.
struct Levels {
    /// Of this crate, by default.
    ours: LevelFilter,
    /// Of source files, by `--vmodule`: the first pattern that matches decides.
    files: Vec<(String, LevelFilter)>,
}

/// Logs what happens in `f` on this thread before logging is configured: text, on standard error.
pub fn before_configuration(f: impl FnOnce()) {
    let levels = Levels { ours: LevelFilter::INFO, files: Vec::new() };
    tracing::dispatcher::with_default(&dispatch(LogFormat::Text, false, levels), f);
}

/// Sets logging up for good. `None` means that it could not be configured: text, on standard error.
///
/// `-v` decides about detail: from 2 on every sync is logged, from 5 on every event and rule.
/// `--vmodule` does for single source files of this program. `RUST_LOG` overrides both. Nothing is
/// buffered, so that there is nothing to flush.
pub fn init(logging: Option<&Logging>) {
    let (format, split) = logging.map_or((LogFormat::Text, false), |logging| (logging.format, logging.split_stream));
    let vmodule = logging.map_or(&[][..], |logging| &logging.vmodule);
    let levels = Levels {
        ours: level(logging.map_or(0, |logging| logging.verbosity)),
        files: vmodule.iter().map(|(pattern, verbosity)| (pattern.clone(), level(*verbosity))).collect(),
    };
    // A second initialisation (in tests) keeps the first.
    let _ = dispatch(format, split, levels).try_init();
}

/// klog's levels are numbers: what we log at `debug` is its 2, at `trace` its 5.
fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0 | 1 => LevelFilter::INFO,
        2..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn dispatch(format: LogFormat, split: bool, levels: Levels) -> Dispatch {
    let writer = match split {
        true => BoxMakeWriter::new(std::io::stderr.with_max_level(tracing::Level::ERROR).or_else(std::io::stdout)),
        false => BoxMakeWriter::new(std::io::stderr),
    };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).event_format(Lines(format)).with_writer(writer);
    let lines = match EnvFilter::try_from_default_env() {
        Ok(wanted) => lines.with_filter(wanted).boxed(),
        Err(_) => {
            let most = levels.files.iter().map(|(_, level)| *level).chain([levels.ours]).max();
            let wanted = filter::filter_fn(move |event| levels.want(event));
            lines.with_filter(wanted.with_max_level_hint(most.unwrap_or(LevelFilter::TRACE))).boxed()
        }
    };
    tracing_subscriber::registry().with(lines).into()
}

// === impl Levels ===

impl Levels {
    fn want(&self, event: &Metadata<'_>) -> bool {
        // Libraries only speak up when something is wrong.
        if event.target().split("::").next() != Some(env!("CARGO_CRATE_NAME")) {
            return *event.level() <= LevelFilter::WARN;
        }
        let of_file = || {
            let file = event.file()?;
            self.files.iter().find(|(pattern, _)| pattern::matches(pattern, file)).map(|(_, level)| *level)
        };
        *event.level() <= of_file().unwrap_or(self.ours)
    }
}
