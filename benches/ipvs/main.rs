//! ipvs mode as a process, beside the bare tools given the same state: programming everything, one change, memory. Runs in a
//! kernel that has IPVS (`make bench-vm`), in a network namespace of its own.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench: what goes wrong is to end it, and it is there to print"
)]

/// The API server of the other bench.
#[path = "../scale"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod scale {
    pub mod api;
    pub mod cluster;
}

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ferrule::backend::ipvs::netlink::{Address, Ipvs};
use ferrule::net::Protocol;
use scale::api::{Api, Kind};
use scale::cluster::{self, Cluster, cluster_ip};
use serde_json::json;

/// Endpoints of each Service.
const ENDPOINTS: usize = 4;
/// Numbers of Services. The last is the one with a target.
const SIZES: [usize; 3] = [100, 1_000, 5_000];
/// Changes one by one.
const CHANGES: usize = 60;
/// The longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);

/// What was found at one size.
struct Figures {
    services: usize,
    /// From the start of the process until everything is there.
    start: Duration,
    /// Its CPU time by then, with the programs it ran.
    start_cpu: Duration,
    /// The same state by `ipset restore`, `ip -batch`, `ipvsadm -R` and `iptables-restore`, one after the other.
    bare: Duration,
    /// Of that, `ipvsadm -R` alone.
    bare_servers: Duration,
    /// From the event to the real server in the kernel, median.
    change: Duration,
    /// CPU time of the process for that, mean.
    change_cpu: Duration,
    /// Resident and peak, in KiB.
    memory: (u64, u64),
    /// Nothing right is written again: a start over the same state.
    restart: Duration,
}

/// A ferrule that runs.
struct Proxy {
    child: Child,
    log: PathBuf,
}

fn main() {
    // `cargo bench -- --test`: only whether it works.
    let is_test = std::env::args().any(|arg| arg == "--test");
    let sizes: &[usize] = if is_test { &SIZES[..1] } else { &SIZES };
    let modules = ["ip_vs", "nf_conntrack", "dummy", "iptable_nat", "ip6table_nat", "ip_set_hash_ipport"];
    let loaded = Command::new("modprobe").arg("-a").args(modules).status().expect("modprobe (package kmod)");
    assert!(loaded.success(), "this kernel has no IPVS: make bench-vm starts one that has");
    let figures: Vec<Figures> =
        sizes.iter().map(|services| thread::spawn(|| measure(*services)).join().unwrap()).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    println!("\nipvs mode, {ENDPOINTS} endpoints each, one processor, kernel {} (User-Mode Linux)\n", kernel.trim());
    println!(
        "| Services | start | CPU | bare tools | ratio | ipvsadm -R alone | one change | its CPU | restart | resident | peak |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for of in &figures {
        println!(
            "| {} | {:.2?} | {:.2?} | {:.2?} | {:.2} | {:.2?} | {:.1?} | {:.1?} | {:.2?} | {:.1} MiB | {:.1} MiB |",
            of.services,
            of.start,
            of.start_cpu,
            of.bare,
            of.start.as_secs_f64() / of.bare.as_secs_f64(),
            of.bare_servers,
            of.change,
            of.change_cpu,
            of.restart,
            of.memory.0 as f64 / 1024.0,
            of.memory.1 as f64 / 1024.0,
        );
    }
    if let [first, .., last] = figures.as_slice() {
        println!(
            "\nOne change among {} Services takes {:.2} x the time of one among {}. (CPU is counted in steps of 10 ms for {CHANGES} changes.)",
            last.services,
            last.change.as_secs_f64() / first.change.as_secs_f64(),
            first.services,
        );
    }
}

fn measure(services: usize) -> Figures {
    #[expect(deprecated, reason = "the unsafe twin is for flags that touch memory or files; the network is neither")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("a network namespace takes root");
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "node0", "type", "dummy"]);
    run("ip", &["link", "set", "node0", "up"]);
    run("ip", &["addr", "add", "192.0.2.10/24", "dev", "node0"]);
    run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(services, ENDPOINTS, false);
    let api = Api::start(&cluster);
    eprintln!("ipvs: {services} Services");

    let began = Instant::now();
    let proxy = Proxy::start(dir.path(), &api.url());
    proxy.await_rules();
    let (start, start_cpu) = (began.elapsed(), proxy.cpu(true));
    let mut table = Ipvs::open().unwrap();
    let there = table.virtual_servers().unwrap().len();
    assert!(there >= services, "a virtual server each: {there}");

    thread::sleep(Duration::from_secs(2));
    let mut times = Vec::new();
    let before = proxy.cpu(false);
    for change in 0..CHANGES {
        let service = (change * 7_919 + 13) % services;
        let (slice, fresh) = cluster.replace_one(service);
        let (ip, port) = cluster_ip(service);
        let (at, fresh) = (Address { protocol: Protocol::Tcp, ip: ip.into(), port }, IpAddr::from(fresh));
        let began = Instant::now();
        api.put(Kind::EndpointSlice, slice.name, slice.object);
        await_some("the new endpoint", || table.real_servers(at).unwrap().iter().any(|(real, _)| real.ip == fresh));
        times.push(began.elapsed());
        // In this mode, kube-proxy's default is not to pause between two syncs.
        thread::sleep(Duration::from_millis(200));
    }
    let change_cpu = (proxy.cpu(false) - before) / CHANGES as u32;
    times.sort();
    let memory = (proxy.memory("VmRSS:"), proxy.memory("VmHWM:"));
    let servers = output("ipvsadm", &["-Sn"]);
    let sets = output("ipset", &["save"]);
    let rules = output("iptables-legacy-save", &[]);
    let addresses = output("ip", &["-o", "addr", "show", "dev", "kube-ipvs0"]);
    proxy.end();

    let began = Instant::now();
    let proxy = Proxy::start(dir.path(), &api.url());
    proxy.await_rules();
    let restart = began.elapsed();
    proxy.end();

    // The same state by the tools alone.
    run("iptables-legacy", &["-t", "nat", "-F"]);
    run("iptables-legacy", &["-F"]);
    run("ip6tables-legacy", &["-t", "nat", "-F"]);
    run("ip6tables-legacy", &["-F"]);
    run("ipvsadm", &["-C"]);
    run("ipset", &["destroy"]);
    run("ip", &["link", "del", "kube-ipvs0"]);
    let batch: String = addresses
        .lines()
        .filter_map(|line| line.split_whitespace().skip_while(|word| *word != "inet").nth(1))
        .map(|address| format!("addr add {address} dev kube-ipvs0\n"))
        .collect();
    let began = Instant::now();
    feed(dir.path(), "ipset", &["restore"], &sets);
    run("ip", &["link", "add", "kube-ipvs0", "type", "dummy"]);
    feed(dir.path(), "ip", &["-batch", "-"], &batch);
    let at_servers = Instant::now();
    feed(dir.path(), "ipvsadm", &["-R"], &servers);
    let bare_servers = at_servers.elapsed();
    feed(dir.path(), "iptables-legacy-restore", &[], &rules);
    let bare = began.elapsed();
    assert_eq!(table.virtual_servers().unwrap().len(), there, "what the tools made");
    Figures {
        services,
        start,
        start_cpu,
        bare,
        bare_servers,
        change: times[times.len() / 2],
        change_cpu,
        memory,
        restart,
    }
}

fn await_some(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_micros(500));
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn feed(dir: &Path, program: &str, args: &[&str], text: &str) {
    let file = dir.join("input");
    fs::write(&file, text).unwrap();
    let status = Command::new(program).args(args).stdin(File::open(&file).unwrap()).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

// === impl Proxy ===

impl Proxy {
    fn start(dir: &Path, api: &str) -> Proxy {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "ipvs",
            "hostnameOverride": cluster::node().0, "clusterCIDR": "10.128.0.0/9", "conntrack": {"maxPerCore": 0, "min": 0}, "oomScoreAdj": 0,
            // So that no look at the kernel is measured with a change.
            "ipvs": {"syncPeriod": "10m"}, "nodePortAddresses": ["primary"],
        });
        let (file, log) = (dir.join("config.json"), dir.join("log"));
        fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
        let out = File::create(&log).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_ferrule"), "--master", api, "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .expect("setpriv (package util-linux)");
        Proxy { child, log }
    }

    fn await_rules(&self) {
        await_some("everything is in the kernel", || {
            let log = fs::read_to_string(&self.log).unwrap();
            log.lines().any(|line| line.contains("all rules are in the kernel") && line.contains("IPv4"))
        });
    }

    /// CPU time so far, in steps of 10 ms, perhaps with that of programs that have ended.
    fn cpu(&self, with_programs: bool) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let fields = if with_programs { 4 } else { 2 };
        let ticks: u64 = rest.split(' ').skip(11).take(fields).map(|text| text.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    fn memory(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}
