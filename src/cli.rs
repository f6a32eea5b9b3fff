//! Subcommands. Without one, ferrule is the proxy and its command line is kube-proxy's.

pub mod demo;
pub mod render;

use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;

use crate::config::flags::{self, Invocation};
use crate::config::{self, LogFormat};

/// Runs what the command line asks for. The first argument selects a subcommand.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let parsed = match flags::parse(&args) {
        Ok(parsed) => parsed,
        Err(refused) => return fail(&refused),
    };
    parsed.deprecations.iter().for_each(|line| say(line));
    let flags = match parsed.invocation {
        Invocation::Proxy(flags) => flags,
        Invocation::Print(text) => return print(&text),
        Invocation::Render { flags, ip_family } => return render::main(&flags, ip_family),
        Invocation::Demo { mode } => return run(demo::run(mode)),
    };
    let loaded = config::load(&flags);
    let logging = loaded.config.as_ref().ok().map(|config| &config.logging);
    let verbosity = logging.map_or(0, |logging| logging.verbosity);
    crate::telemetry::init(verbosity, logging.is_some_and(|logging| logging.format == LogFormat::Json));
    loaded.warnings.iter().for_each(|line| tracing::warn!("{line}"));
    loaded.infos.iter().for_each(|line| tracing::info!("{line}"));
    let config = match loaded.config {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(err = %error, "command failed");
            return ExitCode::FAILURE;
        }
    };
    run(async { crate::run::run(config).await.map(|()| ExitCode::SUCCESS) })
}

/// Runs to the end what needs a runtime.
fn run(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(work).unwrap_or_else(|error| fail(&format!("Error: {error:#}")))
}

/// Says why it did not work, for an exit code of 1.
fn fail(error: &dyn Display) -> ExitCode {
    say(&error.to_string());
    ExitCode::FAILURE
}

#[allow(clippy::print_stderr, reason = "the log may not be set up yet")]
fn say(line: &str) {
    eprintln!("{line}");
}

#[allow(clippy::print_stdout, reason = "what was asked for goes there")]
fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}
