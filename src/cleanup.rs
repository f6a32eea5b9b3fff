//! Taking away what a proxy of any mode left in the kernel: ferrule's rules are kube-proxy's, so this
//! is for both. Rules of others stay: the kubelet's `KUBE-FIREWALL` with its jumps, its hint and canary
//! chains, those of network plugins.
//!
//! Each step is taken whatever became of the others, and what could not be removed is named. Kernel
//! settings, connections under way and counters stay as they are. (kube-proxy: `CleanupLeftovers`.)

mod iptables;
mod ipvs;
mod nftables;

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Command, CommandError, Output, Run, System};
use crate::config::ProxyMode;
use crate::instance::Instance;
use crate::net::IpFamily;
use crate::sync::notice::{Notice, Observer};
use iptables::Which;

/// How long to wait for another ferrule in this network namespace to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where to clean.
#[derive(Clone, Debug)]
pub struct Cleaner<R> {
    run: R,
    /// Where `/proc` is.
    proc: PathBuf,
}

/// What could not be removed, each with the reason and what to do.
pub type Complaints = Vec<String>;

/// `--cleanup`: removes the rules of every mode. An error if anything was left.
///
/// A ferrule that runs in this network namespace would write its rules again at once, and each
/// would undo what the other does: nothing is touched while there is one.
pub async fn everything() -> anyhow::Result<()> {
    let failed = || anyhow::anyhow!("encountered an error while tearing down rules");
    match Instance::acquire_within(PATIENCE).await {
        Ok(Some(instance)) => {
            let complaints = Cleaner::new(System, "/proc").everything().await;
            drop(instance);
            complaints.iter().for_each(|complaint| tracing::error!(err = %complaint, "Error cleaning up"));
            complaints.is_empty().then_some(()).ok_or_else(failed)
        }
        Ok(None) => {
            tracing::error!(
                "another ferrule runs in this network namespace and would write its rules again; nothing was removed: \
                 stop it first"
            );
            Err(failed())
        }
        Err(error) => {
            tracing::error!(%error, "cannot find out whether another ferrule runs here; nothing was removed");
            Err(failed())
        }
    }
}

/// With `--init-only`: removes what other modes left, as far as it can be. Whoever starts the proxy afterwards may not be
/// allowed to. (The modes iptables and ipvs share chains, and take over from one another.)
pub async fn other_modes(mode: ProxyMode) {
    let cleaner = Cleaner::new(System, "/proc");
    let complaints = match mode {
        ProxyMode::Iptables | ProxyMode::Ipvs => cleaner.nftables().await,
        ProxyMode::Nftables => cleaner.iptables_and_ipvs().await,
    };
    for complaint in complaints {
        tracing::error!(err = %complaint, %mode, "leftovers of another mode stay; going on");
    }
}

/// Removes what only other modes have, as soon as this one serves, so that no packet is without rules in between.
/// (kube-proxy removes it at its start, before it has written anything.)
pub struct FormerMode {
    mode: ProxyMode,
    /// Families that are not served yet.
    waiting: Vec<IpFamily>,
}

// === impl FormerMode ===

impl FormerMode {
    /// Waits until each of these families is served by `mode`.
    pub fn new(mode: ProxyMode, families: Vec<IpFamily>) -> FormerMode {
        FormerMode { mode, waiting: families }
    }
}

impl Observer for FormerMode {
    fn notice(&mut self, notice: &Notice<'_>) {
        let Notice::Ended(sync) = notice else { return };
        if sync.unfinished || sync.result.is_err() || !self.waiting.contains(&sync.family) {
            return;
        }
        self.waiting.retain(|family| *family != sync.family);
        let (mode, family, is_last) = (self.mode, sync.family, self.waiting.is_empty());
        tokio::spawn(async move {
            for complaint in Cleaner::new(System, "/proc").superseded_by(mode, family, is_last).await {
                tracing::error!(err = %complaint, %mode, "leftovers of another mode stay; going on");
            }
        });
    }
}

// === impl Cleaner ===

impl<R: Run + Clone> Cleaner<R> {
    /// Cleans by means of these programs. `proc` is where `/proc` is.
    pub fn new(run: R, proc: impl Into<PathBuf>) -> Cleaner<R> {
        Cleaner { run, proc: proc.into() }
    }

    /// Removes the artefacts of every mode.
    pub async fn everything(&self) -> Complaints {
        let mut complaints = self.iptables_and_ipvs().await;
        complaints.extend(self.nftables().await);
        complaints
    }

    /// Removes the artefacts of iptables and ipvs modes.
    pub async fn iptables_and_ipvs(&self) -> Complaints {
        // First what sends packets to virtual servers and refers to sets.
        let has_ipvs = ipvs::is_available(&self.run, &self.proc).await;
        let mut complaints = Vec::new();
        for family in IpFamily::BOTH {
            complaints.extend(iptables::remove(&self.run, family, Which::All { has_ipvs }).await);
        }
        if has_ipvs {
            complaints.extend(ipvs::remove(&self.run, &self.proc).await);
        }
        complaints
    }

    /// Removes what of a family only other modes have; with the last family, also what belongs to both. (The modes iptables
    /// and ipvs share chains.)
    pub async fn superseded_by(&self, mode: ProxyMode, family: IpFamily, is_last: bool) -> Complaints {
        // To look for its rules takes long where there are many others: only if something else shows that it was there.
        let had_ipvs = ipvs::was_here(&self.proc);
        let mut complaints = match mode {
            ProxyMode::Ipvs => iptables::remove(&self.run, family, Which::OnlyIptables).await,
            ProxyMode::Iptables if had_ipvs => iptables::remove(&self.run, family, Which::OnlyIpvs).await,
            ProxyMode::Iptables => Vec::new(),
            ProxyMode::Nftables => iptables::remove(&self.run, family, Which::All { has_ipvs: had_ipvs }).await,
        };
        if had_ipvs && mode != ProxyMode::Ipvs {
            complaints.extend(ipvs::retire(&self.run, family, is_last).await);
        }
        if mode != ProxyMode::Nftables && nftables::is_available(&self.run).await {
            complaints.extend(nftables::remove(&self.run, family).await.err());
        }
        complaints
    }

    /// Removes the artefacts of nftables mode.
    pub async fn nftables(&self) -> Complaints {
        let mut complaints = Vec::new();
        if nftables::is_available(&self.run).await {
            for family in IpFamily::BOTH {
                complaints.extend(nftables::remove(&self.run, family).await.err());
            }
        }
        complaints
    }
}

/// Runs a program and gives its output too; `None` if it is not installed.
async fn ask<R: Run>(run: &R, command: Command) -> Result<Option<(Output, String)>, String> {
    let mut said = String::new();
    let mut keep = |line: &str| {
        said.push_str(line);
        said.push('\n');
    };
    match run.run(command, &mut keep).await {
        Ok(output) => Ok(Some((output, said))),
        Err(CommandError::Start { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
