//! The proxy under test: a process of its own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, cluster_ip};
use crate::options::RulesLayout;
use crate::process::Sampler;
use crate::world::{METRICS, Variant, World, call};

/// Which program is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subject {
    Ferrule,
    /// The one that `KUBE_PROXY` names.
    KubeProxy,
}

/// Lines of its log that are kept.
const KEPT: usize = 60;

/// A running proxy.
pub struct Proxy {
    subject: Subject,
    child: Child,
    pub started: Instant,
    pub sampler: Sampler,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    lines: VecDeque<String>,
    /// When it said that all rules of IPv4 are in the kernel.
    done: Option<Instant>,
    /// The longest transaction of nftables mode.
    transaction: Option<Duration>,
}

// === impl Subject ===

impl Subject {
    pub fn name(self) -> &'static str {
        match self {
            Subject::Ferrule => "ferrule",
            Subject::KubeProxy => "kube-proxy",
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Subject::Ferrule => std::env::var_os("FERRULE_BENCH_BINARY")
                .map_or_else(|| env!("CARGO_BIN_EXE_ferrule").into(), PathBuf::from),
            Subject::KubeProxy => std::env::var_os("KUBE_PROXY").expect("KUBE_PROXY").into(),
        }
    }
}

// === impl Proxy ===

impl Proxy {
    /// Starts it. Must be called on a thread that lives as long as the proxy shall.
    pub fn start(subject: Subject, world: &World, api: &str, rules: RulesLayout) -> Proxy {
        let mut command = world.command("setpriv");
        command
            // Ends with this process, even if that one is killed.
            .args(["--pdeathsig", "KILL", "--"])
            .arg(subject.program())
            .args(["--master", api, "--config"])
            .arg(world.config())
            .args(rules.flags().filter(|_| subject == Subject::Ferrule))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        if (subject, world.variant) == (Subject::Ferrule, Variant::Nftables) {
            // A line for each transaction, which tells how long it took.
            command.env("RUST_LOG", "warn,ferrule=info,ferrule::backend::nftables::apply=trace");
        }
        let started = Instant::now();
        let mut child = command.spawn().expect("setpriv (package util-linux) is to start");
        let log = Arc::new(Mutex::new(Log::default()));
        let (stderr, kept) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let now = Instant::now();
                let mut log = kept.lock().unwrap();
                if line.contains("all rules are in the kernel") && line.contains("IPv4") {
                    log.done.get_or_insert(now);
                }
                log.transaction = log.transaction.max(transaction(&line));
                if log.lines.len() == KEPT {
                    log.lines.pop_front();
                }
                log.lines.push_back(line);
            }
        });
        let sampler = Sampler::start(child.id());
        Proxy { subject, child, started, sampler, log }
    }

    /// Waits until all rules are in, and says when that was. ferrule says so itself; of others, the
    /// Service that comes last is asked.
    pub fn await_rules(&mut self, cluster: &Cluster, limit: Duration) -> Option<Instant> {
        loop {
            let done = match self.subject {
                Subject::Ferrule => self.log.lock().unwrap().done,
                Subject::KubeProxy => call(cluster_ip(cluster.services - 1)).map(|_| Instant::now()),
            };
            if done.is_some() {
                return done;
            }
            if self.is_lost(limit) {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether it has ended, or has had so long in vain; then says so.
    pub fn is_lost(&mut self, limit: Duration) -> bool {
        if let Some(status) = self.child.try_wait().unwrap() {
            eprintln!("scale: {} ended: {status}", self.subject.name());
            self.show_log();
            return true;
        }
        if self.started.elapsed() > limit {
            eprintln!("scale: {} has not written all rules within {limit:?}", self.subject.name());
            self.show_log();
            return true;
        }
        false
    }

    /// The longest transaction of nftables mode so far.
    pub fn transaction(&self) -> Option<Duration> {
        self.log.lock().unwrap().transaction
    }

    /// Waits until it has had nothing to do for a while.
    pub fn await_quiet(&self, quiet: Duration, limit: Duration) -> bool {
        let start = Instant::now();
        let (mut before, mut since) = (self.sampler.usage(), Instant::now());
        while start.elapsed() < limit {
            thread::sleep(Duration::from_millis(50));
            let now = self.sampler.usage();
            if now.own - before.own > Duration::from_millis(5) || self.sampler.quiet_for() < Duration::from_millis(50) {
                since = Instant::now();
            }
            before = now;
            if since.elapsed() >= quiet {
                return true;
            }
        }
        eprintln!("scale: {} is still at work after {limit:?}", self.subject.name());
        false
    }

    /// Sum and count of a histogram of its own, over all label sets that hold this text.
    pub fn histogram(&self, name: &str, labels: &str) -> (f64, f64) {
        let text = metrics().unwrap_or_default();
        let total = |suffix: &str| {
            let lines =
                text.lines().filter(|line| line.starts_with(&format!("{name}_{suffix}")) && line.contains(labels));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
        };
        (total("sum"), total("count"))
    }

    /// The end of its log.
    pub fn show_log(&self) {
        self.log.lock().unwrap().lines.iter().for_each(|line| eprintln!("    | {line}"));
    }

    /// Ends it as a service manager does.
    pub fn terminate(mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if self.child.try_wait().unwrap().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!("scale: {} does not end after SIGTERM", self.subject.name());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Gone already is fine: the process has not been waited for then.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How long a transaction took, if a line of ferrule's log is about one: `took` as `Duration` shows itself.
fn transaction(line: &str) -> Option<Duration> {
    let (before, took) = line.split_once("took=")?;
    before.contains("transaction").then_some(())?;
    let took = took.trim_start_matches('"').split(['"', ' ']).next()?;
    let units = [("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let (number, unit) = units.iter().find_map(|(unit, size)| Some((took.strip_suffix(unit)?, size)))?;
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * unit))
}

fn metrics() -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(METRICS).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let _ = stream.read_to_string(&mut text);
    Some(text)
}
