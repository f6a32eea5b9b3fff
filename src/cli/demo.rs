//! `ferrule demo`: the proxy at work on real packets, in network namespaces of its own.

mod leftovers;
mod namespace;
mod network;
mod processors;
mod scene;
mod screen;
mod story;
mod tally;
mod traffic;

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::backend::iptables::tools::Tools;
use crate::command::{Command, CommandError, Run, System};
use crate::config::ProxyMode;
use crate::net::IpFamily;
use screen::Screen;
use story::Story;

/// Runs the demo. The exit code says whether all was as expected; what it made is gone in any case.
///
/// # Errors
///
/// If it cannot run here, or its own work fails.
pub async fn run(mode: ProxyMode) -> anyhow::Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces, which only root may do: run it as root, or with sudo"
    );
    raise_limit_of_files();
    version("ip", "-V", "iproute2").await?;
    let (_, mut tools) = Tools::find(System, IpFamily::V4).await.context("install the Debian package iptables")?;
    if mode == ProxyMode::Nftables {
        tools = version("nft", "--version", "nftables").await?;
    } else if mode == ProxyMode::Ipvs {
        tools = format!("virtual servers (IPVS), {}, {tools}", version("ipset", "--version", "ipset").await?);
    }
    let mut stop = Stop::new()?;
    let mut screen = Screen::stdout();
    let dead = leftovers::remove_of_others().await?;
    if dead > 0 {
        screen.line(&format!("Removed what {dead} killed demo{} had left.\n", if dead == 1 { "" } else { "s" }))?;
    }

    let mut story = Story::new(screen, mode, tools, leftovers::make_folder()?);
    let told = tokio::select! {
        told = story.tell() => Ok(told),
        number = stop.asked() => Err(number),
    };
    let proxy_log = story.proxy_log();
    let removed = leftovers::remove_own().await;
    match told {
        Err(number) => {
            removed?;
            story.screen.line("\nInterrupted. What the demo had made is removed.")?;
            Ok(ExitCode::from(128 + number))
        }
        Ok(Err(error)) => {
            // The output may be what is broken.
            let _ = story.screen.line(&proxy_log);
            Err(error)
        }
        Ok(Ok(())) => {
            removed?;
            if !story.is_as_expected() {
                story.screen.line(&proxy_log)?;
            }
            story.summary()?;
            Ok(if story.is_as_expected() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// As many sockets as this process may have at all: a refusal that is heard late holds its own for a second, and on a
/// busy machine there are many.
fn raise_limit_of_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, the former one may do.
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}

/// What a program says about its version, or which Debian package has the program.
async fn version(program: &str, argument: &str, package: &str) -> anyhow::Result<String> {
    let mut first = None;
    let mut keep = |line: &str| {
        first.get_or_insert_with(|| line.trim().to_owned());
    };
    match System.run(Command::new(program, &[argument]), &mut keep).await {
        Ok(output) if output.success() => Ok(first.unwrap_or_default()),
        Ok(output) => bail!("{program} {argument} failed: {}", output.complaint()),
        Err(CommandError::Start { source, .. }) => {
            bail!("the demo needs the program {program} ({source}): install the Debian package {package}")
        }
        Err(error) => Err(error.into()),
    }
}

/// Signals that ask the demo to end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

// === impl Stop ===

impl Stop {
    fn new() -> std::io::Result<Stop> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them; its number.
    async fn asked(&mut self) -> u8 {
        tokio::select! {
            _ = self.hangup.recv() => 1,
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}
