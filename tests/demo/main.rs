//! `ferrule demo` as a user runs it. Needs root and what the demo needs.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends by a panic when something is not as expected"
)]

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A demo removes what killed demos left, whoever started them: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Longer than a demo takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A demo under way. Ended, and swept up after, whatever happens to the test.
struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _alone: MutexGuard<'static, ()>,
}

// === impl Demo ===

impl Demo {
    fn start() -> Demo {
        Demo::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Demo {
        Demo::start_alone(ALONE.lock().unwrap_or_else(PoisonError::into_inner), arguments)
    }

    fn start_alone(alone: MutexGuard<'static, ()>, arguments: &[&str]) -> Demo {
        assert!(rustix::process::geteuid().is_root(), "tests of the demo need root: it makes network namespaces");
        let mut command = demo();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ferrule can be started");
        let lines = BufReader::new(child.stdout.take().expect("its output is a pipe")).lines();
        Demo { child, lines, _alone: alone }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        kill_process(pid, signal).expect("the demo is still there");
    }

    /// Reads up to a line that contains `text`; all lines until then.
    fn read_to(&mut self, text: &str) -> Vec<String> {
        let mut read = Vec::new();
        for line in self.lines.by_ref() {
            read.push(line.expect("its output is text"));
            if read.last().is_some_and(|line| line.contains(text)) {
                return read;
            }
        }
        panic!("the demo never said {text:?}; it said:\n{}{}", read.join("\n"), self.complaints());
    }

    fn complaints(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text).expect("its complaints are text");
        }
        text
    }

    /// Reads to the end: the other lines, and how it ended.
    fn finish(&mut self) -> (Vec<String>, std::process::ExitStatus) {
        let read = self.lines.by_ref().map(|line| line.expect("its output is text")).collect();
        (read, self.child.wait().expect("it ends"))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for left in left_by(self.pid()) {
            match left {
                Left::Namespace(name) => drop(Command::new("ip").args(["netns", "del", &name]).status()),
                Left::Folder(path) => drop(fs::remove_dir_all(path)),
                Left::Process(pid, _) => {
                    let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
                }
                Left::Link(_) => {}
            }
        }
    }
}

/// The program, in an environment in which everybody gets the same output.
fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrule"));
    command.arg("demo").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// Something a demo made.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Namespace(String),
    Folder(String),
    Process(i32, String),
    Link(String),
}

/// What there is of the demo with a process id.
fn left_by(pid: u32) -> Vec<Left> {
    let prefix = format!("ferrule-demo-{pid}");
    let is_ours = |name: &str| name == prefix || name.starts_with(&format!("{prefix}-"));
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let mut left = Vec::new();
    left.extend(names("/run/netns").into_iter().filter(|name| is_ours(name)).map(Left::Namespace));
    left.extend(
        names("/run").into_iter().filter(|name| is_ours(name)).map(|name| Left::Folder(format!("/run/{name}"))),
    );
    // Links of the demo only ever exist in its namespaces.
    let ours = ["uplink", "caller", "web-1", "web-2", "web-3", "web-4"];
    left.extend(names("/sys/class/net").into_iter().filter(|name| ours.contains(&name.as_str())).map(Left::Link));
    for process in names("/proc").iter().filter_map(|name| name.parse::<i32>().ok()) {
        let line = String::from_utf8_lossy(&fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default())
            .replace('\0', " ");
        // The proxy has its files named on its command line.
        if line.contains(&format!("/run/{prefix}/")) {
            left.push(Left::Process(process, line));
        }
    }
    left
}

/// Waits until nothing is left of a demo. (A process that was killed takes a moment to go.)
#[track_caller]
fn assert_nothing_left(pid: u32) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if left_by(pid).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(left_by(pid), [], "left of demo {pid}");
}

/// The host's rules, in both variants of the tools and both families, without counters and dates.
fn host_rules() -> String {
    let mut all = String::new();
    for tool in ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"] {
        let output = Command::new(tool).output().unwrap_or_else(|error| panic!("{tool}: {error}; install iptables"));
        let text = String::from_utf8(output.stdout).unwrap();
        let rules = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap());
        all.extend(rules.flat_map(|line| [line, "\n"]));
    }
    all
}

/// Whether the last words of a line are times, as many as there are families.
fn ends_with_times(line: &str, families: usize) -> bool {
    let words: Vec<&str> = line.split_whitespace().rev().take(2 * families).collect();
    words.len() == 2 * families
        && words.chunks(2).all(|pair| matches!(pair, [unit, number] if ["s", "ms"].contains(unit) && number.parse::<f64>().is_ok_and(|number| number > 0.0)))
}

#[test]
fn everything_is_shown_as_expected_and_nothing_is_left() {
    is_shown_as_expected(&[]);
}

#[test]
fn so_it_is_in_nftables_mode() {
    is_shown_as_expected(&["--proxy-mode", "nftables"]);
}

fn is_shown_as_expected(arguments: &[&str]) {
    let before = host_rules();
    let mut demo = Demo::start_with(arguments);
    let pid = demo.pid();
    let intro = demo.read_to("1. Started with 2 endpoints");
    assert!(!left_by(pid).is_empty(), "the test sees nothing of a demo that is under way");
    let (rest, status) = demo.finish();
    let all = [intro, rest].concat();
    let text = all.join("\n");
    assert!(status.success(), "{status}\n{text}\n{}", demo.complaints());

    for heading in [
        "2. Scaled up: from 2 to 4",
        "3. Scaled down: from 4 to one",
        "4. Scaled to zero: from 1 to none",
        "5. Scaled up again: from 0 to 2",
    ] {
        assert_eq!(text.matches(heading).count(), 1, "{heading}\n{text}");
    }
    let families = if fs::exists("/proc/sys/net/ipv6").unwrap() { 2 } else { 1 };
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        let rows = |family: &str| all.iter().filter(|line| line.starts_with(&format!("  {kind:<12} {family}"))).count();
        assert_eq!(rows("IPv4"), if families == 2 { 5 } else { 9 }, "{kind}\n{text}");
        assert_eq!(rows("IPv6"), if families == 2 { 5 } else { 0 }, "{kind}\n{text}");
        assert_eq!(rows("both"), if families == 2 { 4 } else { 0 }, "{kind}\n{text}");
    }
    for change in ["0 -> 2", "2 -> 4", "4 -> 1", "1 -> 0"] {
        let line = all.iter().find(|line| line.contains(&format!("{change} endpoints"))).expect(change);
        assert!(ends_with_times(line, families), "{line}");
    }
    assert!(all.last().unwrap().contains("connections went where they should."), "{text}");
    assert!(!text.contains('\x1b'), "colours in a pipe\n{text}");
    let widest = all.iter().max_by_key(|line| line.chars().count()).unwrap();
    assert!(widest.chars().count() <= 80, "wider than a terminal: {widest}");

    assert_nothing_left(pid);
    assert_eq!(host_rules(), before, "the host's rules");
}

#[test]
fn a_demo_that_is_told_to_stop_leaves_nothing() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut demo = Demo::start();
        demo.read_to("2. Scaled up");
        assert!(!left_by(demo.pid()).is_empty());
        demo.signal(signal);
        let (rest, status) = demo.finish();
        assert_eq!(status.code(), Some(code), "{signal:?}: {rest:?}");
        assert!(rest.iter().any(|line| line.contains("Interrupted")), "{signal:?}: {rest:?}");
        assert_nothing_left(demo.pid());
    }
}

#[test]
fn what_a_killed_demo_left_is_removed_by_the_next() {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut killed = demo().stdout(Stdio::piped()).spawn().unwrap();
    let pid = killed.id();
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    let reached = lines.any(|line| line.unwrap().contains("2. Scaled up"));
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(reached, "the demo ended before it could be killed");
    let left = left_by(pid);
    let count = |is_it: fn(&Left) -> bool| left.iter().filter(|left| is_it(left)).count();
    assert_eq!(count(|left| matches!(left, Left::Namespace(_))), 7, "{left:?}");
    assert!(count(|left| matches!(left, Left::Process(..))) > 0, "the proxy goes on: {left:?}");

    let mut next = Demo::start_alone(alone, &[]);
    next.read_to("Removed what 1 killed demo had left.");
    assert_nothing_left(pid);
    next.read_to("1. Started");
    next.signal(Signal::TERM);
    let (_, status) = next.finish();
    assert_eq!(status.code(), Some(143));
    assert_nothing_left(next.pid());
}

#[test]
fn a_proxy_that_dies_is_a_failure() {
    let mut demo = Demo::start();
    demo.read_to("2. Scaled up");
    let proxies: Vec<i32> = left_by(demo.pid())
        .into_iter()
        .filter_map(|left| if let Left::Process(pid, _) = left { Some(pid) } else { None })
        .collect();
    for proxy in &proxies {
        kill_process(Pid::from_raw(*proxy).unwrap(), Signal::KILL).unwrap();
    }
    assert!(!proxies.is_empty());
    let (_, status) = demo.finish();
    assert_eq!(status.code(), Some(1), "{:?}", status.signal());
    let complaints = demo.complaints();
    assert!(complaints.contains("the proxy ended by itself"), "{complaints}");
    assert_nothing_left(demo.pid());
}

#[track_caller]
fn refuses(output: &Output, words: &str) {
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    assert!(complaints.contains(words), "expected {words:?} in {complaints:?}");
}

#[test]
fn where_it_cannot_run_it_says_why() {
    refuses(&demo().env("PATH", "/nonexistent").output().unwrap(), "install the Debian package iproute2");

    // A copy that others may run: the build directory may be closed to them.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("ferrule");
    fs::copy(env!("CARGO_BIN_EXE_ferrule"), &copy).unwrap();
    let output = Command::new(copy).arg("demo").current_dir("/").uid(65_534).output().unwrap();
    refuses(&output, "only root");
}
