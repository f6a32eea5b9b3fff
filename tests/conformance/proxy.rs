//! A ferrule that runs on a [`Node`].

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::node::Node;
use crate::recording::{Rules, read};
use crate::source::Source;

/// Rules that are not as expected are waited for this long.
const DEADLINE: Duration = Duration::from_secs(90);

/// The wait ends earlier if the rules have been wrong in the same way for this long.
const STUCK: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(50);

/// A running ferrule. It ends with this value, and at the latest with the thread that started it.
pub struct Proxy<'a> {
    node: &'a Node,
    /// Outlives the proxy: dropping it may stop a server.
    _source: &'a Source,
    child: Child,
    log: PathBuf,
}

// === impl Proxy ===

impl<'a> Proxy<'a> {
    /// Starts it with a configuration file of this text.
    pub fn start(node: &'a Node, config: &str, source: &'a Source) -> Proxy<'a> {
        let (file, log) = (node.dir().join("config.yaml"), node.dir().join("ferrule.log"));
        std::fs::write(&file, config).expect("write the configuration");
        let output = File::options().create(true).append(true).open(&log).expect("open the log");
        // Should the test be killed, its proxy is too.
        let child = node
            .command("setpriv")
            .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_ferrule"), "--config"])
            .arg(&file)
            .args(source.args())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicate the log"))
            .stderr(output)
            .spawn()
            .expect("run setpriv (package util-linux)");
        Proxy { node, _source: source, child, log }
    }

    /// Waits until the rules in the kernel are the expected ones.
    ///
    /// # Panics
    /// If that does not happen in time: with the differences and the end of the proxy's log.
    #[track_caller]
    pub fn wait_for(&mut self, expected: &Rules) {
        self.wait_for_step(expected, "the start");
    }

    /// The same, with a word in the message on what was done before.
    ///
    /// # Panics
    /// As [`Proxy::wait_for`].
    #[track_caller]
    pub fn wait_for_step(&mut self, expected: &Rules, step: &str) {
        if let Some(status) = self.wait(expected, step) {
            let differences = expected.differences(&self.node.rules());
            let differences = first_lines(&differences, 60);
            panic!("after {step}, ferrule ended ({status}); the rules:\n{differences}{}", self.end_of_log());
        }
    }

    /// Waits until the rules are the expected ones, or the proxy ends: whether it ended.
    ///
    /// # Panics
    /// If neither happens in time.
    #[track_caller]
    pub fn wait_for_or_end(&mut self, expected: &Rules) -> bool {
        self.wait(expected, "the start").is_some()
    }

    /// Waits until something has happened.
    ///
    /// # Panics
    /// If it does not happen in time, or the proxy ends.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, happened: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !happened() {
            let ended = self.child.try_wait().expect("ask for the proxy's state");
            assert!(ended.is_none(), "ferrule ended before {what}{}", self.end_of_log());
            assert!(Instant::now() < deadline, "in vain waited until {what}{}", self.end_of_log());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the rules are the expected ones, or the proxy ends: how it ended.
    #[track_caller]
    fn wait(&mut self, expected: &Rules, step: &str) -> Option<ExitStatus> {
        let begin = Instant::now();
        let (mut since, mut previous) = (begin, None);
        loop {
            let ended = self.child.try_wait().expect("ask for the proxy's state");
            let differences = expected.differences(&self.node.rules());
            if ended.is_some() || differences.is_empty() {
                return ended;
            }
            let now = Instant::now();
            if previous.as_ref() != Some(&differences) {
                (since, previous) = (now, Some(differences.clone()));
            }
            if now - since > STUCK || now - begin > DEADLINE {
                let differences = first_lines(&differences, 120);
                panic!("after {step}, the rules are not as expected:\n{differences}{}", self.end_of_log());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends it as a service manager does, and waits for that.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal the proxy");
        let deadline = Instant::now() + DEADLINE;
        while self.child.try_wait().expect("ask for the proxy's state").is_none() {
            assert!(Instant::now() < deadline, "ferrule did not end on SIGTERM{}", self.end_of_log());
            std::thread::sleep(POLL);
        }
    }

    fn end_of_log(&self) -> String {
        last_lines(&self.log, 40)
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn first_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (first, more) = lines.split_at(lines.len().min(count));
    let rest = if more.is_empty() { String::new() } else { format!("... and {} more lines\n", more.len()) };
    format!("{}\n{rest}", first.join("\n"))
}

fn last_lines(file: &Path, count: usize) -> String {
    let text = read(file);
    let lines: Vec<&str> = text.lines().collect();
    let (_, last) = lines.split_at(lines.len().saturating_sub(count));
    format!("\nend of ferrule's log:\n{}\n", last.join("\n"))
}
