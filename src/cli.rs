//! Subcommands. Without one, ferrule is the proxy and its command line is kube-proxy's.

pub mod render;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs what the command line asks for. The first argument selects a subcommand.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let config = match crate::config::interim(&args) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    crate::telemetry::init(2, false);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(crate::run::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[allow(clippy::print_stderr, reason = "the log may not be set up yet")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("Error: {error:#}");
    ExitCode::FAILURE
}
