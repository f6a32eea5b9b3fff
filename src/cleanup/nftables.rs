//! The tables of nftables mode.

use super::ask;
use crate::backend::nftables::support::{Missing, check_version};
use crate::command::{Command, Run};
use crate::net::IpFamily;

/// Whether `nft` is there and recent enough for nftables mode; otherwise there never was a table.
pub(super) async fn is_available<R: Run>(run: &R) -> bool {
    match check_version(run).await {
        Ok(()) => true,
        Err(Missing::Program | Missing::Version(_)) => false,
        Err(error) => {
            tracing::warn!(%error, "tables of nftables mode are not looked for");
            false
        }
    }
}

/// Deletes the table of a family. In a kernel that has no such tables, there is nothing to delete.
/// (kube-proxy: `knftables.New` fails then, and cleanup is skipped.)
pub(super) async fn remove<R: Run>(run: &R, family: IpFamily) -> Result<(), String> {
    let table = match family {
        IpFamily::V4 => "ip kube-proxy",
        IpFamily::V6 => "ip6 kube-proxy",
    };
    let feed = |args: &[&str], text: String| Command::new("nft", args).with_stdin(text.into_bytes());
    // What could be made is not there. To list tables, or to delete one that is not there, nft first reads
    // all that there is in all of them: on a big node that takes a second and a hundred MiB, or minutes.
    let try_out = feed(&["--check", "-f", "-"], format!("create table {table}\n"));
    if !ask(run, try_out).await?.is_some_and(|(output, _)| output.stderr.contains("File exists")) {
        return Ok(());
    }
    match ask(run, feed(&["-f", "-"], format!("delete table {table}\n"))).await? {
        Some((output, _)) if output.success() => {
            tracing::info!(table, "removed the table of nftables mode");
            Ok(())
        }
        Some((output, _)) if output.stderr.contains("No such file or directory") => Ok(()),
        Some((output, _)) => Err(format!("nft delete table {table} failed: {}", output.complaint())),
        None => Ok(()),
    }
}
