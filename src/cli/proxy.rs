//! Without a subcommand: the proxy, with kube-proxy's command line, messages and exit codes.

use std::process::ExitCode;

use crate::config::flags::Flags;
use crate::config::go::quote;
use crate::config::{self, Config, Loaded, Remark};
use crate::telemetry;

/// Loads the configuration, sets up logging, and runs. Log records come in kube-proxy's order; those
/// from before logging is configured are text, whatever is configured.
pub(super) fn main(flags: &Flags) -> ExitCode {
    let Loaded { config, logging, completing, checking, listing, places } = config::load(flags);
    telemetry::before_configuration(|| completing.iter().for_each(log));
    telemetry::init(logging.as_ref());
    if let Some(logging) = &logging {
        let verbose = logging.verbosity >= 1;
        if verbose {
            for (name, value) in &listing {
                tracing::info!(target: telemetry::PLAIN, v = 1, "FLAG: --{name}={}", quote(value));
            }
        }
        checking.iter().filter(|remark| verbose || !remark.is_detail()).for_each(log);
    }
    let error = match config {
        Ok(config) => match run(config) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(err = error, "Error running ProxyServer");
                error
            }
        },
        Err(error) => {
            let is_of_running = error.is_of_running();
            let error = error.to_string();
            if is_of_running {
                tracing::error!(err = error, "Error running ProxyServer");
            }
            error
        }
    };
    match places.as_slice() {
        [] => tracing::error!(err = error, "command failed"),
        [at] => tracing::error!(err = error, at, "command failed"),
        at => tracing::error!(err = error, ?at, "command failed"),
    }
    ExitCode::FAILURE
}

fn run(config: Config) -> anyhow::Result<()> {
    super::runtime()?.block_on(crate::run::run(config))
}

fn log(remark: &Remark) {
    match remark {
        Remark::LenientDecoding { complaint, places } => {
            tracing::info!(err = complaint, at = ?places, "Using lenient decoding as strict decoding failed");
        }
        Remark::ModeChosen => tracing::info!("Using iptables proxy"),
        Remark::GateSet { name, value, deprecated: false } => tracing::info!(
            featureGate = name,
            value,
            "Warning: setting GA feature gate. It will be removed in a future release."
        ),
        Remark::GateSet { name, value, deprecated: true } => tracing::info!(
            featureGate = name,
            value,
            "Warning: setting deprecated feature gate. It will be removed in a future release."
        ),
        Remark::UnknownGate(name) => {
            tracing::warn!(
                featureGate = name,
                "unrecognized feature gate: it is ignored; see that it is spelled right"
            );
        }
        Remark::GatesUpdated(gates) => tracing::info!(v = 1, featureGates = ?gates, "Updated"),
    }
}
