//! Logs.

use tracing_subscriber::EnvFilter;

/// Sends logs to standard error, as kube-proxy does. `verbosity` is kube-proxy's `-v`: from 2 on
/// every sync is logged, from 5 on every event and rule. `RUST_LOG` overrides it.
pub fn init(verbosity: u32, json: bool) {
    let level = match verbosity {
        0 | 1 => "info",
        2..=4 => "debug",
        _ => "trace",
    };
    // Our own lines at that level; libraries only speak up when something is wrong.
    let default = format!("warn,ferrule={level}");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation (in tests) keeps the first.
    let _ = match json {
        true => builder.json().try_init(),
        false => builder.with_target(false).with_ansi(false).try_init(),
    };
}
