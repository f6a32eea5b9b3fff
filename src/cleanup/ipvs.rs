//! Virtual servers, their addresses and the sets of ipvs mode.

use std::path::Path;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use super::{Complaints, ask};
use crate::backend::ipvs::names::LINK;
use crate::backend::ipvs::ruleset::Set;
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

/// Removes all virtual servers, whoever made them (as kube-proxy does: in this mode they are its own),
/// the link with their addresses, and the sets of both families. (kube-proxy leaves those of IPv6.)
pub(super) async fn remove<R: Run>(run: &R, proc: &Path) -> Complaints {
    let mut complaints = Vec::new();
    complaints.extend(clear_virtual_servers(run, proc).await.err());
    let links = std::fs::read_to_string(proc.join("net/dev")).unwrap_or_default();
    if links.lines().any(|line| line.trim_start().starts_with(&format!("{LINK}:"))) {
        complaints.extend(delete_link().await.err());
    }
    complaints.extend(destroy_sets(run).await);
    complaints
}

async fn clear_virtual_servers<R: Run>(run: &R, proc: &Path) -> Result<(), String> {
    let table = std::fs::read_to_string(proc.join("net/ip_vs")).unwrap_or_default();
    let is_server = |line: &str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind));
    if !table.lines().any(is_server) {
        return Ok(());
    }
    match ask(run, Command::new("ipvsadm", &["--clear"])).await? {
        Some((output, _)) if output.success() => {
            tracing::info!("removed the virtual servers");
            Ok(())
        }
        Some((output, _)) => Err(format!("ipvsadm --clear failed: {}", output.complaint())),
        None => Err("virtual servers stay: install ipvsadm, or restart the node".to_owned()),
    }
}

async fn delete_link() -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("link {LINK} stays: {error}; ip link delete {LINK}");
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let result = async {
        let found = handle.link().get().match_name(LINK.to_owned()).execute().try_next().await;
        // An error here is that there is none.
        let Ok(Some(link)) = found else { return Ok(()) };
        let is_dummy = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Dummy)),
            _ => false,
        });
        if !is_dummy {
            return Err(failed(&"it is no dummy link, so not one of a proxy"));
        }
        handle.link().del(link.header.index).execute().await.map_err(|error| failed(&error))?;
        tracing::info!(link = LINK, "removed the addresses of virtual servers");
        Ok(())
    }
    .await;
    connection.abort();
    result
}

async fn destroy_sets<R: Run>(run: &R) -> Complaints {
    let listed = match ask(run, Command::new("ipset", &["list", "-name"])).await {
        Ok(None) => return Vec::new(),
        Ok(Some((output, listed))) if output.success() => listed,
        Ok(Some((output, _))) => return vec![format!("ipset list failed: {}", output.complaint())],
        Err(error) => return vec![error],
    };
    let mut complaints = Vec::new();
    let ours: Vec<String> =
        IpFamily::BOTH.into_iter().flat_map(|family| Set::all().map(move |set| set.name(family))).collect();
    for name in listed.lines().filter(|name| ours.iter().any(|own| own == name)) {
        match ask(run, Command::new("ipset", &["destroy", name])).await {
            Ok(Some((output, _))) if !output.success() && !output.stderr.contains("does not exist") => {
                complaints.push(format!(
                    "set {name} stays: {}; does a rule of somebody else use it? remove that rule first",
                    output.complaint()
                ));
            }
            Ok(_) => {}
            Err(error) => complaints.push(error),
        }
    }
    complaints
}
