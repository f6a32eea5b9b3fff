//! Subcommands. Without one, ferrule is the proxy and its command line is kube-proxy's.

pub mod demo;
mod proxy;
pub mod render;

use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;

use crate::config::flags::{self, Invocation};

/// Runs what the command line asks for. The first argument selects a subcommand.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args: Vec<String> = args.into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let parsed = match flags::parse(&args) {
        Ok(parsed) => parsed,
        Err(refused) => return fail(&refused),
    };
    parsed.deprecations.iter().for_each(|line| say(line));
    match parsed.invocation {
        Invocation::Proxy(flags) => proxy::main(&flags),
        Invocation::Print(text) => print(&text),
        Invocation::Render { flags, ip_family } => render::main(&flags, ip_family),
        Invocation::Demo { mode } => match runtime().and_then(|runtime| runtime.block_on(demo::run(mode))) {
            Ok(code) => code,
            Err(error) => fail(&format!("Error: {error:#}")),
        },
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
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
