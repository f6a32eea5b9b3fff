//! What processes use: CPU time and memory, as `/proc` says.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the process and its children are looked at.
const PERIOD: Duration = Duration::from_millis(5);

/// What a process and the programs it starts have used so far.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// CPU time of the process itself.
    pub own: Duration,
    /// CPU time of programs that have ended. In steps of 10 ms.
    pub tools: Duration,
    /// Resident size in KiB.
    pub rss: u64,
    /// The most it ever was, in KiB.
    pub peak: u64,
    /// The largest program, in KiB.
    pub child: u64,
    /// The most that all were together at any time, in KiB.
    pub group: u64,
    /// The program that took longest, as far as looking at it now and then shows.
    pub longest: Duration,
    /// Programs seen.
    pub programs: usize,
}

/// Looks at a process and its children all the time.
pub struct Sampler {
    pid: u32,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    /// Nanoseconds by thread; threads come and go.
    threads: HashMap<u32, u64>,
    /// Children that run now, and since when.
    running: HashMap<u32, Instant>,
    child: u64,
    group: u64,
    longest: Duration,
    programs: usize,
    last_busy: Option<Instant>,
}

// === impl Sampler ===

impl Sampler {
    /// Looks at a process of ours.
    pub fn start(pid: u32) -> Sampler {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (seen, stop) = (seen.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    seen.lock().unwrap().look(pid);
                    thread::sleep(PERIOD);
                }
            }
        });
        Sampler { pid, seen, stop, thread: Some(thread) }
    }

    /// What was used so far.
    pub fn usage(&self) -> Usage {
        let mut seen = self.seen.lock().unwrap();
        seen.look(self.pid);
        let (own_ticks, tools) = cpu(self.pid);
        let precise = Duration::from_nanos(seen.threads.values().sum());
        Usage {
            // A thread that came and went between two looks is missing there.
            own: precise.max(own_ticks.saturating_sub(Duration::from_millis(20))),
            tools,
            rss: memory(self.pid, "VmRSS:"),
            peak: memory(self.pid, "VmHWM:"),
            child: seen.child,
            group: seen.group,
            longest: seen.longest,
            programs: seen.programs,
        }
    }

    /// For how long no program has been running.
    pub fn quiet_for(&self) -> Duration {
        self.seen.lock().unwrap().last_busy.map_or(Duration::MAX, |at| at.elapsed())
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Seen ===

impl Seen {
    fn look(&mut self, pid: u32) {
        let now = Instant::now();
        let mut children = Vec::new();
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
        for task in tasks.flatten() {
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            if let Some(ran) = schedstat.split(' ').next().and_then(|text| text.parse().ok()) {
                self.threads.insert(tid, ran);
            }
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let mut group = memory(pid, "VmRSS:");
        for child in &children {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let name = field(&status, "Name:").unwrap_or_default().to_owned();
            // Before it has become another program, it still has the memory of its parent.
            if !["iptables", "ip6tables", "xtables", "nft"].iter().any(|tool| name.starts_with(tool)) {
                continue;
            }
            let number = |key| field(&status, key).and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
            group += number("VmRSS:");
            self.child = self.child.max(number("VmHWM:"));
            self.last_busy = Some(now);
            let fresh = !self.running.contains_key(child);
            self.programs += usize::from(fresh);
            let since = self.running.entry(*child).or_insert(now);
            self.longest = self.longest.max(now - *since);
        }
        self.running.retain(|pid, _| children.contains(pid));
        self.group = self.group.max(group);
    }
}

fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// A figure of `/proc/PID/status`, in KiB.
fn memory(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, key).and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// CPU time of a process, and of its children that have ended.
pub fn cpu(pid: u32) -> (Duration, Duration) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: Vec<u64> = rest.split(' ').skip(11).take(4).filter_map(|text| text.parse().ok()).collect();
    let [user, system, child_user, child_system] = ticks[..] else { return Default::default() };
    // The kernel's USER_HZ is 100 wherever Kubernetes runs.
    let time = |ticks| Duration::from_millis(10 * ticks);
    (time(user + system), time(child_user + child_system))
}

/// Processor time that the host of a virtual machine gave to others, of all processors together.
pub fn stolen() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
    Duration::from_millis(10 * ticks.unwrap_or(0))
}

/// Waits until the machine has nothing to do: what a network namespace held is cleared away in the
/// background.
pub fn await_quiet_machine(limit: Duration) {
    let busy = || {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
        let all: u64 = fields.iter().sum();
        let idle: u64 = fields.iter().skip(3).take(2).sum();
        (all - idle, all)
    };
    let (start, mut calm, mut before) = (Instant::now(), 0, busy());
    while start.elapsed() < limit && calm < 3 {
        thread::sleep(Duration::from_millis(200));
        let now = busy();
        let share = (now.0 - before.0) as f64 / (now.1 - before.1).max(1) as f64;
        calm = if share < 0.1 { calm + 1 } else { 0 };
        before = now;
    }
    if calm < 3 {
        eprintln!("scale: the machine is busy with something else: figures will be worse than they are");
    }
}
