//! Virtual servers, their addresses and the sets of ipvs mode.

use std::path::Path;

use super::{Complaints, ask};
use crate::backend::ipvs::clear;
use crate::backend::ipvs::link::Link;
use crate::backend::ipvs::names::LINK;
use crate::command::{Command, Run};
use crate::net::IpFamily;

/// Whether this kernel has the load balancer. (kube-proxy: `modprobe -va ip_vs`.)
pub(super) async fn is_available<R: Run>(run: &R, proc: &Path) -> bool {
    if proc.join("net/ip_vs").exists() {
        return true;
    }
    let loaded = ask(run, Command::new("modprobe", &["-va", "ip_vs"])).await;
    matches!(loaded, Ok(Some((output, _))) if output.success())
}

/// Whether a proxy in ipvs mode was here: the link is there.
pub(super) fn was_here(proc: &Path) -> bool {
    let links = std::fs::read_to_string(proc.join("net/dev")).unwrap_or_default();
    links.lines().any(|line| line.trim_start().starts_with(&format!("{LINK}:")))
}

/// Whether there are virtual servers, whoever made them.
fn has_virtual_servers(proc: &Path) -> bool {
    let table = std::fs::read_to_string(proc.join("net/ip_vs")).unwrap_or_default();
    let is_server = |line: &str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind));
    table.lines().any(is_server)
}

/// Removes all virtual servers, whoever made them (as kube-proxy does: in this mode they are its own),
/// the link with their addresses, and the sets of both families. (kube-proxy leaves those of IPv6.)
pub(super) async fn remove<R: Run>(run: &R, proc: &Path) -> Complaints {
    let mut complaints = Vec::new();
    if has_virtual_servers(proc) {
        match clear::all_virtual_servers().await {
            Ok(()) => tracing::info!("removed the virtual servers"),
            Err(error) => complaints.push(format!("virtual servers stay: {error}; ipvsadm --clear")),
        }
    }
    if was_here(proc) {
        complaints.extend(delete_link().await.err());
    }
    for family in IpFamily::BOTH {
        complaints.extend(clear::sets(run, family).await);
    }
    complaints
}

/// Removes what a proxy in ipvs mode had for a family, whose rules are gone, and leaves virtual servers of others alone;
/// with the last family, the link goes as well.
pub(super) async fn retire<R: Run>(run: &R, family: IpFamily, is_last: bool) -> Complaints {
    let mut complaints = Vec::new();
    match clear::own_virtual_servers(run, family).await {
        Ok(removed) => tracing::info!(%family, removed, "removed the virtual servers of ipvs mode"),
        Err(error) => complaints.push(format!("virtual servers stay: {error}")),
    }
    complaints.extend(clear::sets(run, family).await);
    if is_last {
        complaints.extend(delete_link().await.err());
    }
    complaints
}

async fn delete_link() -> Result<(), String> {
    let failed = |error| format!("link {LINK} stays: {error}; ip link delete {LINK}");
    if let Some(link) = Link::find().await.map_err(failed)? {
        link.delete().await.map_err(failed)?;
        tracing::info!(link = LINK, "removed the addresses of virtual servers");
    }
    Ok(())
}
