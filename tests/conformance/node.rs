//! A network namespace that looks like the node of the recordings.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::nfacct;
use crate::recording::{Rules, read};
use crate::saved::Tables;

/// A variant of the iptables tools. One namespace only ever sees one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tools {
    /// The kernel's old interface.
    Legacy,
    /// The same rules through nftables.
    Nft,
}

/// A network namespace with the interfaces and addresses of the recorded node. It is the one of
/// the thread that works in it, so that it ends with that thread and the processes it started.
#[derive(Debug)]
pub struct Node {
    tools: Tools,
    /// Holds `bin`, the log of restores, the lock file of the legacy tools and the files tests
    /// make.
    dir: tempfile::TempDir,
}

/// What the node of the recordings had. `d0` was a dummy link; not every kernel has those.
const LINKS: &str = "
    link set lo up
    link add eth0 type bridge
    link add d0 type bridge
    link add cni0 type bridge
    addr add 172.31.96.2/24 dev eth0
    addr add 172.31.99.2/24 dev d0
    addr add fd00:99::2/64 dev d0 nodad
    addr add 10.128.0.254/24 dev cni0
    link set eth0 up
    link set d0 up
    link set cni0 up
    route add default via 172.31.96.1 dev eth0
    route add ::/0 via fd00:99::1 dev d0
";

const PROGRAMS: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

// === impl Tools ===

impl Tools {
    /// Both.
    pub const ALL: [Tools; 2] = [Tools::Legacy, Tools::Nft];

    /// As in the names of the recordings.
    pub fn name(self) -> &'static str {
        match self {
            Tools::Legacy => "legacy",
            Tools::Nft => "nft",
        }
    }

    /// The other variant.
    pub fn other(self) -> Tools {
        match self {
            Tools::Legacy => Tools::Nft,
            Tools::Nft => Tools::Legacy,
        }
    }

    /// The binary that is all programs of this variant, by the name it is called by.
    fn binary(self) -> PathBuf {
        let name = format!("iptables-{}", self.name());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|file| file.exists());
        let found = found.unwrap_or_else(|| panic!("{name} is not in PATH: install the package iptables"));
        found.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", found.display()))
    }
}

// === impl Node ===

impl Node {
    /// Works in a namespace of its own. Nothing of it is left afterwards, however `work` ends.
    pub fn run(tools: Tools, work: impl FnOnce(&Node) + Send) {
        let result = std::thread::scope(|scope| {
            let body = || {
                #[expect(deprecated, reason = "its successor is unsafe because of flags that are not used here")]
                rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)
                    .expect("make a network namespace: the conformance tests must run as root");
                let node = Node { tools, dir: folder() };
                node.link_programs();
                node.ip(LINKS);
                work(&node);
            };
            std::thread::Builder::new().spawn_scoped(scope, body).expect("start a thread").join()
        });
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// Runs lines of `ip -batch`.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.feed(self.command("ip").args(["-batch", "-"]), lines);
    }

    /// A folder for the files of one test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The lock of the legacy tools. The host's own is not theirs.
    pub fn lock_file(&self) -> PathBuf {
        self.dir().join("xtables.lock")
    }

    /// A program that finds this variant of the tools under their plain names.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", self.path()).env("XTABLES_LOCKFILE", self.lock_file());
        command
    }

    /// The rules that are in the kernel.
    pub fn rules(&self) -> Rules {
        Rules { v4: self.save("iptables-save"), v6: self.save("ip6tables-save") }
    }

    /// Replaces all tables that `rules` mentions.
    pub fn restore(&self, rules: &Rules) {
        nfacct::NAMES.into_iter().for_each(nfacct::create);
        self.feed(&mut self.command("iptables-restore"), &rules.v4.to_restore());
        self.feed(&mut self.command("ip6tables-restore"), &rules.v6.to_restore());
    }

    /// Whether a tool takes this as input that leaves other chains alone. `--test` among the
    /// arguments only asks; with nftables, the kernel is not asked then.
    pub fn offer(&self, program: &str, args: &[&str], input: &str) -> Result<(), String> {
        nfacct::NAMES.into_iter().for_each(nfacct::create);
        offer(self.command(program).arg("--noflush").args(args), input)
    }

    /// Puts a shell script in the place of a tool. In it, `$real` is the tool; its parent process
    /// is the proxy.
    pub fn wrap(&self, program: &str, script: &str) {
        let (plain, real) = (self.bin().join(program), self.dir().join("real").join(program));
        std::fs::create_dir_all(self.dir().join("real")).expect("a folder for the tools");
        if !real.exists() {
            std::fs::rename(&plain, &real).expect("move a link");
        }
        // Replaced at once: a proxy may be about to start it.
        let new = self.dir().join("new-script");
        std::fs::write(&new, format!("#!/bin/sh\nreal={}\n{script}\n", real.display())).expect("write a script");
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
        std::fs::rename(&new, &plain).expect("replace a tool");
    }

    /// Takes the script of [`Node::wrap`] away.
    pub fn unwrap(&self, program: &str) {
        std::fs::rename(self.dir().join("real").join(program), self.bin().join(program)).expect("move a link back");
    }

    /// From now on, keeps what each restore is given.
    pub fn log_restores(&self) {
        let log = self.dir().join("restores");
        std::fs::create_dir(&log).expect("a folder for the log");
        for program in ["iptables-restore", "ip6tables-restore"] {
            // Inputs are first written under a name that a reader does not see yet.
            let script = format!(
                "set -e\nname=$(date +%s%N)-$$-{program}\ncat >{log}/.$name\nmv {log}/.$name {log}/$name\n\
                 exec $real \"$@\" <{log}/$name",
                log = log.display(),
            );
            self.wrap(program, &script);
        }
    }

    /// What restores were given since [`Node::log_restores`], with the names of the programs, in
    /// order of time.
    pub fn restores(&self) -> Vec<(String, String)> {
        let folder = std::fs::read_dir(self.dir().join("restores")).expect("the log of restores");
        let mut files: Vec<PathBuf> = folder.map(|entry| entry.expect("a file").path()).collect();
        files.sort();
        let named = files.iter().filter_map(|file| {
            let name = file.file_name()?.to_str()?;
            let program = name.splitn(3, '-').nth(2)?;
            (!name.starts_with('.')).then(|| (program.to_owned(), read(file)))
        });
        named.collect()
    }

    fn bin(&self) -> PathBuf {
        self.dir().join("bin")
    }

    fn path(&self) -> OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.bin()).chain(std::env::split_paths(&path));
        std::env::join_paths(folders).expect("no colon in the name of a temporary folder")
    }

    fn link_programs(&self) {
        let binary = self.tools.binary();
        std::fs::create_dir(self.bin()).expect("a folder for the tools");
        for program in PROGRAMS {
            symlink(&binary, self.bin().join(program)).expect("link a tool");
        }
    }

    fn save(&self, program: &str) -> Tables {
        // The tool itself: wrappers are for the proxy.
        let wrapped = self.dir().join("real").join(program);
        let tool = if wrapped.exists() { wrapped } else { self.bin().join(program) };
        let output = self.command(tool).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} failed: {stderr}");
        Tables::parse(&String::from_utf8(output.stdout).expect("text"))
    }

    /// Runs a program on an input.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn feed(&self, command: &mut Command, input: &str) {
        if let Err(error) = offer(command, input) {
            panic!("{error}");
        }
    }
}

/// Runs a program on an input, to its success.
fn offer(command: &mut Command, input: &str) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program} cannot be run: {error}"))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return written.map_err(|error| format!("{program} did not read its input: {error}"));
    }
    Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr)))
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ferrule-conformance-").tempdir().expect("a temporary folder")
}
