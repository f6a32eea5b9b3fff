//! Kernel settings under `/proc/sys`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Lets the kernel route packets for 127.0.0.0/8 that came in elsewhere, which node ports on
/// loopback addresses need; `KUBE-FIREWALL` keeps others out. Never taken back.
pub fn allow_localhost_node_ports() -> anyhow::Result<()> {
    set("net/ipv4/conf/all/route_localnet", "1").context(
        "node ports on 127.0.0.1 need it; set iptables.localhostNodePorts: false to go without, \
         or restrict nodePortAddresses",
    )
}

/// Whether conntrack takes TCP packets outside their window for valid.
pub fn conntrack_is_liberal() -> bool {
    read("net/netfilter/nf_conntrack_tcp_be_liberal").is_some_and(|value| value != "0")
}

/// Whether the kernel has IPv6 and it is not switched off.
pub fn kernel_has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists() && read("net/ipv6/conf/all/disable_ipv6").as_deref() != Some("1")
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(path(name)).ok()?.trim().to_owned())
}

/// Writes a setting unless it has the value already, so that an unprivileged restart works.
fn set(name: &str, value: &str) -> anyhow::Result<()> {
    let before = read(name);
    if before.as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(path(name), value).with_context(|| format!("cannot set sysctl {name} to {value}"))?;
    tracing::info!(name, before = before.as_deref().unwrap_or("unknown"), after = value, "changed sysctl");
    Ok(())
}
