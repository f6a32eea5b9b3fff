//! Whether this node can have virtual servers at all.

use super::netlink::{Address, Error, Flags, Ipvs, Scheduler, Timeouts, VirtualServer};
use crate::command::{Command, CommandError, Run};
use crate::net::Protocol;

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The kernel has no load balancer or not this scheduler, or cannot be asked.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The program for sets cannot be run.
    #[error("ipset: {0}")]
    Sets(#[from] CommandError),
    /// It is too old, or something else.
    #[error("ipset {found:?} is not good enough: version 6.0 or later is needed")]
    SetsVersion {
        /// What it says of itself.
        found: String,
    },
    /// The kernel took a virtual server and does not have it.
    #[error("IPVS not supported: a virtual server was added, and there is none")]
    Forgetful,
    /// This is a bug.
    #[error("the check ended abnormally: {0}")]
    Lost(#[from] tokio::task::JoinError),
}

/// The port of the virtual server that is added to try a scheduler, on [`PROBE_IP`].
const PROBE_PORT: u16 = 20_000;
/// For documentation only. (RFC 5737)
const PROBE_IP: [u8; 4] = [198, 51, 100, 0];

/// Looks whether the kernel has the load balancer and a scheduler, loading modules as needed, and whether there is a
/// program for sets. (kube-proxy: `CanUseIPVSProxier`, with the same virtual server.)
///
/// # Errors
///
/// They are not there.
pub async fn check<R: Run>(run: &R, scheduler: Scheduler) -> Result<(), Unsupported> {
    // If there is none, that will show; and the module may be part of the kernel.
    let loaded = run.run(Command::new("modprobe", &["-va", "ip_vs"]), &mut |_| {}).await;
    tracing::debug!(?loaded, "modprobe ip_vs");
    let mut version = String::new();
    run.run(Command::new("ipset", &["--version"]), &mut |line| version.push_str(line)).await?;
    if major(&version).is_none_or(|major| major < 6) {
        return Err(Unsupported::SetsVersion { found: version });
    }
    tokio::task::spawn_blocking(move || try_scheduler(scheduler)).await?
}

/// Sets how long connections are remembered.
///
/// # Errors
///
/// The kernel does not take them.
pub async fn set_timeouts(timeouts: Timeouts) -> Result<(), Unsupported> {
    Ok(tokio::task::spawn_blocking(move || Ipvs::open()?.set_timeouts(timeouts)).await??)
}

fn try_scheduler(scheduler: Scheduler) -> Result<(), Unsupported> {
    let mut table = Ipvs::open()?;
    if table.virtual_servers()?.iter().any(|server| server.scheduler == scheduler) {
        return Ok(());
    }
    let address = Address { protocol: Protocol::Tcp, ip: PROBE_IP.into(), port: PROBE_PORT };
    let probe = VirtualServer { address, scheduler, flags: Flags::default(), timeout: 0 };
    match table.add_virtual(probe) {
        Err(Error::Exists(_)) => {}
        result => result?,
    }
    let there = table.virtual_servers()?;
    table.delete_virtual(address)?;
    if there.is_empty() { Err(Unsupported::Forgetful) } else { Ok(()) }
}

/// The first number of `ipset v7.17, protocol version: 7`.
fn major(version: &str) -> Option<u32> {
    let numbers = version.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    numbers.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_ipset() {
        assert_eq!(major("ipset v7.17, protocol version: 7"), Some(7));
        assert_eq!(major("ipset v6.38, protocol version: 6"), Some(6));
        assert_eq!(major("ipset: command not found"), None);
    }
}
