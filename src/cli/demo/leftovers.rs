//! Removing what a demo made: its own at the end, and that of demos that were killed before.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use super::namespace::{NAMES, PREFIX, ip};
use crate::command::{Command, Run, System};

/// Where demos have their files.
const FILES: &str = "/run";

/// Makes the folder for the files of this demo.
pub(super) fn make_folder() -> anyhow::Result<PathBuf> {
    let folder = Path::new(FILES).join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// Removes the namespaces and files of this process; links and rules go with the namespaces.
pub(super) async fn remove_own() -> anyhow::Result<()> {
    for (_, name) in all(NAMES)?.into_iter().filter(|(owner, _)| *owner == std::process::id()) {
        ip(&["netns", "del", &name], "").await?;
    }
    remove_folders(|owner| owner == std::process::id())?;
    Ok(())
}

/// Removes namespaces and files of demos that were killed, and processes still in them. Says how
/// many demos that were.
pub(super) async fn remove_of_others() -> anyhow::Result<usize> {
    let mut dead = Vec::new();
    for (owner, name) in all(NAMES)?.into_iter().filter(|(owner, _)| !is_demo(*owner)) {
        let mut inside = Vec::new();
        let pids = Command::new("ip", &["netns", "pids", &name]);
        System.run(pids, &mut |line| inside.extend(line.trim().parse().ok().and_then(Pid::from_raw))).await?;
        for pid in inside {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        ip(&["netns", "del", &name], "").await?;
        dead.push(owner);
    }
    dead.extend(remove_folders(|owner| !is_demo(owner))?);
    dead.sort_unstable();
    dead.dedup();
    Ok(dead.len())
}

/// Names in a folder that belong to any demo, each with the id of its process.
fn all(folder: &str) -> anyhow::Result<Vec<(u32, String)>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        found.extend(owner(&name).map(|owner| (owner, name)));
    }
    Ok(found)
}

/// The process id in a name of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn remove_folders(of: impl Fn(u32) -> bool) -> anyhow::Result<Vec<u32>> {
    let mut owners = Vec::new();
    for (owner, name) in all(FILES)?.into_iter().filter(|(owner, _)| of(*owner)) {
        let folder = Path::new(FILES).join(name);
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        owners.push(owner);
    }
    Ok(owners)
}

/// Whether a process exists and is a demo. (Ids are used again.)
fn is_demo(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pid == std::process::id() || arguments.split(|byte| *byte == 0).any(|argument| argument == b"demo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_whose_they_are() {
        for (name, expected) in [
            ("ferrule-demo-123-node", Some(123)),
            ("ferrule-demo-123-web-1", Some(123)),
            ("ferrule-demo-123", Some(123)),
            ("ferrule-demo-x-node", None),
            ("ferrule-test-123-node", None),
        ] {
            assert_eq!(owner(name), expected, "{name}");
        }
    }

    #[test]
    fn a_process_that_is_no_demo_is_told_from_one() {
        assert!(is_demo(std::process::id()));
        assert!(!is_demo(1), "init is no demo");
        assert!(!is_demo(u32::MAX), "nor is a process that does not exist");
    }
}
