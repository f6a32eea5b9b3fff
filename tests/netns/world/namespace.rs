//! A network namespace without a name.
//!
//! It lives as long as this process holds it, or a process inside of it runs: whatever ends the
//! tests, also `kill -9`, the kernel then removes the namespace with its links, rules and
//! connections. Nothing is left on the host that somebody would have to clean up.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle, scope};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network namespace of its own. Clones are the same one.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    name: String,
    handle: OwnedFd,
    keeper: Mutex<Sender<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

// === impl Namespace ===

impl Namespace {
    /// Makes a namespace; `name` is for messages only.
    pub fn create(name: &str) -> Namespace {
        let (keeper, jobs) = channel::<Job>();
        let (report, answer) = channel();
        Builder::new()
            .name(format!("netns {name}"))
            .spawn(move || {
                let handle = unshare_network();
                let usable = handle.is_ok();
                report.send(handle).unwrap();
                if usable {
                    for job in jobs {
                        job();
                    }
                }
            })
            .unwrap();
        let handle = answer.recv().unwrap().unwrap_or_else(|error| {
            panic!(
                "no network namespace can be made ({error}): these tests need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
            )
        });
        Namespace(Arc::new(Inner { name: name.to_owned(), handle, keeper: Mutex::new(keeper) }))
    }

    /// The name for messages.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A path that other programs (`ip`, `nsenter --net=…`) can open while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.handle.as_raw_fd())
    }

    /// Runs `work` inside and waits for it. Sockets made by it stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `work` inside, in a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let inside = self.clone();
        Builder::new()
            .name(format!("in {}", self.name()))
            .spawn(move || {
                inside.enter();
                work()
            })
            .unwrap()
    }

    /// Runs `work` on the thread that lives as long as the namespace does. A child process that asks
    /// to die with its parent must be started here: the kernel takes the starting thread for the
    /// parent.
    pub fn run_on_keeper<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (report, answer) = channel();
        let job: Job = Box::new(move || {
            let _ = report.send(work());
        });
        self.0.keeper.lock().unwrap().send(job).unwrap();
        answer.recv().unwrap()
    }

    /// Runs a program inside and gives what it printed; a failure of it is a panic.
    pub fn exec<S: AsRef<OsStr> + Sync>(&self, program: &str, args: &[S], stdin: &str) -> String {
        let output = self.try_exec(program, args, stdin);
        assert!(
            output.status.success(),
            "in {}: {program} {:?}: {}: {}",
            self.name(),
            args.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a program inside, whatever comes of it.
    pub fn try_exec<S: AsRef<OsStr> + Sync>(&self, program: &str, args: &[S], stdin: &str) -> Output {
        self.run(|| {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): is it installed?"));
            let mut input = child.stdin.take().unwrap();
            scope(|scope| {
                // Beside the reading, or two full pipes wait for each other; EPIPE shows in the exit status.
                scope.spawn(move || drop(input.write_all(stdin.as_bytes())));
                child.wait_with_output().unwrap()
            })
        })
    }

    /// Sets kernel settings of the namespace: (path under `/proc/sys`, value).
    pub fn sysctl(&self, settings: &[(&str, &str)]) {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/{name}");
                std::fs::write(&path, value).unwrap_or_else(|error| {
                    panic!(
                        "in {}: {path} cannot be set to {value}: {error} (is the kernel module loaded?)",
                        self.name()
                    )
                });
            }
        });
    }

    /// The same, for those of them that there are.
    pub fn sysctl_if_there(&self, settings: &[(&str, &str)]) {
        self.run(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/{name}");
                if std::path::Path::new(&path).exists() {
                    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
                }
            }
        });
    }

    /// The content of a file under `/proc/net` as seen from inside.
    pub fn proc_net(&self, file: &str) -> String {
        self.run(|| {
            let path = format!("/proc/thread-self/net/{file}");
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("in {}: {path}: {error}", self.name()))
        })
    }

    /// One of the kernel's counters about TCP (`TcpExt` in `/proc/net/netstat`).
    pub fn tcp_counter(&self, name: &str) -> u64 {
        let text = self.proc_net("netstat");
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(other, _)| *other == name).unwrap_or_else(|| panic!("no counter {name}")).1.parse().unwrap()
    }

    fn enter(&self) {
        move_into_link_name_space(self.0.handle.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

/// Moves the calling thread, and no other, into a new namespace.
#[expect(deprecated, reason = "the unsafe twin is for flags that touch memory or files; the network is neither")]
fn unshare_network() -> rustix::io::Result<OwnedFd> {
    rustix::thread::unshare(UnshareFlags::NEWNET)?;
    rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
