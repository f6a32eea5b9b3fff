//! Kernel settings, most of them under `/proc/sys`.
//!
//! A setting that has its value already is not written, so that a start without the privilege works
//! after one with it (`--init-only`). None is ever put back.

mod conntrack;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};

use crate::config::Conntrack;
use conntrack::HASHSIZE;

/// The settings of one kernel, as files.
#[derive(Clone, Debug)]
pub struct Sysctls {
    /// Where `/proc` is.
    proc: PathBuf,
    /// Where `/sys` is.
    sys: PathBuf,
}

// === impl Sysctls ===

impl Sysctls {
    /// Those of the running kernel.
    pub fn of_the_kernel() -> Sysctls {
        Sysctls::at("/proc", "/sys")
    }

    /// Those below other places than `/proc` and `/sys`.
    pub fn at(proc: impl Into<PathBuf>, sys: impl Into<PathBuf>) -> Sysctls {
        Sysctls { proc: proc.into(), sys: sys.into() }
    }

    /// Limits and timeouts of connection tracking. (kube-proxy: `setupConntrack`; the first failure
    /// ends its start, too.)
    pub fn set_conntrack(&self, wanted: &Conntrack) -> anyhow::Result<()> {
        self.try_set_conntrack(wanted).context("could not set conntrack parameters from kube-proxy configuration")
    }

    fn try_set_conntrack(&self, wanted: &Conntrack) -> anyhow::Result<()> {
        for setting in conntrack::settings(wanted, self.cpus()) {
            self.set(setting.name, &setting.value.to_string())
                .map_err(|error| anyhow!("{error:#}; with {} it is left alone", setting.leave_alone))?;
            if let Some(buckets) = setting.hashsize {
                let path = self.sys.join(HASHSIZE);
                let present = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                if conntrack::is_smaller(&present, buckets).with_context(|| path.display().to_string())? {
                    fs::write(&path, buckets.to_string()).with_context(|| path.display().to_string())?;
                    tracing::info!(path = %path.display(), before = present.trim(), after = buckets, "Changed hash size");
                }
            }
        }
        Ok(())
    }

    /// Lets the kernel route packets for 127.0.0.0/8 that came in elsewhere, which node ports on
    /// loopback addresses need; `KUBE-FIREWALL` keeps others out.
    pub fn allow_localhost_node_ports(&self) -> anyhow::Result<()> {
        self.set("net/ipv4/conf/all/route_localnet", "1").context(
            "node ports on 127.0.0.1 need it; set iptables.localhostNodePorts: false to go without, \
             or restrict nodePortAddresses",
        )
    }

    /// What virtual servers need: their connections are tracked, and end when their real server is gone. With
    /// `strict_arp`, an interface answers only for addresses of its own. (kube-proxy: the same, in this order.)
    pub fn set_virtual_servers(&self, strict_arp: bool) -> anyhow::Result<()> {
        self.set("net/ipv4/vs/conntrack", "1")?;
        // Before Linux 5.9, a connection from a port that was used before is delayed by a second otherwise.
        if self.release().is_some_and(|release| ((4, 1)..(5, 9)).contains(&release)) {
            self.set("net/ipv4/vs/conn_reuse_mode", "0")?;
        }
        self.set("net/ipv4/vs/expire_nodest_conn", "1")?;
        self.set("net/ipv4/vs/expire_quiescent_template", "1")?;
        self.set("net/ipv4/ip_forward", "1")?;
        if strict_arp {
            self.set("net/ipv4/conf/all/arp_ignore", "1")?;
            self.set("net/ipv4/conf/all/arp_announce", "2")?;
        }
        Ok(())
    }

    /// The kernel's first two numbers.
    fn release(&self) -> Option<(u32, u32)> {
        let release = self.read("kernel/osrelease")?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }

    /// Whether conntrack takes TCP packets outside their window for valid.
    pub fn conntrack_is_liberal(&self) -> bool {
        self.read("net/netfilter/nf_conntrack_tcp_be_liberal").is_some_and(|value| value != "0")
    }

    /// Whether the kernel has IPv6 and it is not switched off.
    pub fn kernel_has_ipv6(&self) -> bool {
        self.proc.join("net/if_inet6").exists() && self.read("net/ipv6/conf/all/disable_ipv6").as_deref() != Some("1")
    }

    /// How likely this process is to be killed when memory runs out. Not worth failing for.
    /// (kube-proxy: two tries, and a line in the log.)
    pub async fn set_oom_score(&self, score: i32) {
        let path = self.proc.join("self/oom_score_adj");
        let present = fs::read_to_string(&path).unwrap_or_default();
        if present.trim() == score.to_string() {
            return;
        }
        let mut result = fs::write(&path, score.to_string());
        if result.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            result = fs::write(&path, score.to_string());
        }
        match result {
            Ok(()) => tracing::debug!(score, "oomScoreAdj is set"),
            Err(error) => tracing::debug!(score, err = %error, "Failed to apply OOMScore"),
        }
    }

    /// Processors of the machine, whatever part of them is ours. (kube-proxy: from sysfs.)
    fn cpus(&self) -> u32 {
        let online = fs::read_to_string(self.sys.join("devices/system/cpu/online")).ok();
        let counted = online.and_then(|text| conntrack::count_ranges(&text));
        let ours = || std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
        counted.or_else(ours).unwrap_or(1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.proc.join("sys").join(Path::new(name))
    }

    fn read(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.path(name)).ok()?.trim().to_owned())
    }

    /// Writes a setting unless it has the value already.
    fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let before = self.read(name);
        if before.as_deref() == Some(value) {
            return Ok(());
        }
        let path = self.path(name);
        fs::write(&path, value).with_context(|| format!("cannot set sysctl {name} to {value}"))?;
        tracing::info!(name, before = before.as_deref().unwrap_or("unknown"), after = value, "Changed sysctl");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
