//! Taking away what ipvs mode has in the kernel besides rules, whichever proxy made it.

use super::apply::{ask_ipset, saved_sets};
use super::compare::Found;
use super::link::Link;
use super::netlink::{Error, Ipvs};
use super::ruleset::Set;
use super::servers;
use crate::backend::ApplyError;
use crate::command::{Command, Run};
use crate::net::IpFamily;

/// Removes all virtual servers of both families, whoever made them.
///
/// # Errors
///
/// The kernel cannot be asked.
pub async fn all_virtual_servers() -> Result<(), ApplyError> {
    blocking(|| Ipvs::open()?.flush()).await
}

/// Removes the virtual servers of a family that a proxy made, and says how many those were. The link and the sets, by
/// which they are known, must be there.
///
/// # Errors
///
/// Something cannot be read, or one of them cannot be removed.
pub async fn own_virtual_servers<R: Run>(run: &R, family: IpFamily) -> Result<usize, ApplyError> {
    let addresses = match Link::find().await? {
        Some(link) => link.addresses(family).await?,
        None => Default::default(),
    };
    let found = Found { addresses, entries: saved_sets(run, family).await?.entries, ..Found::default() };
    blocking(move || {
        let (mut table, mut found) = (Ipvs::open()?, found);
        servers::read(&mut table, family, &mut found)?;
        let ours: Vec<_> = found.ours().collect();
        for address in &ours {
            servers::gone(table.delete_virtual(*address))?;
        }
        Ok(ours.len())
    })
    .await
}

/// Removes the sets of a family. What could not be removed is told.
pub async fn sets<R: Run>(run: &R, family: IpFamily) -> Vec<String> {
    let mut listed = String::new();
    let mut keep = |line: &str| {
        listed.push_str(line);
        listed.push('\n');
    };
    match ask_ipset(run, &["list", "-name"], &mut keep).await {
        Ok(()) => {}
        Err(error) if error.is_not_installed() => return Vec::new(),
        Err(error) => return vec![error.to_string()],
    }
    let mut complaints = Vec::new();
    let ours: Vec<String> = Set::all().map(|set| set.name(family)).collect();
    for name in listed.lines().filter(|name| ours.iter().any(|own| own == name)) {
        match run.run(Command::new("ipset", &["destroy", name]), &mut |_| {}).await {
            Ok(output) if !output.success() && !output.stderr.contains("does not exist") => {
                complaints.push(format!(
                    "set {name} stays: {}; does a rule of somebody else use it? remove that rule first",
                    output.complaint()
                ));
            }
            Ok(_) => {}
            Err(error) => complaints.push(error.to_string()),
        }
    }
    complaints
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, ApplyError> {
    let lost = |error: tokio::task::JoinError| ApplyError::Failed { program: "IPVS".into(), detail: error.to_string() };
    Ok(tokio::task::spawn_blocking(work).await.map_err(lost)??)
}
