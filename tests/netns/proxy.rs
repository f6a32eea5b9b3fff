//! The built binary, as it runs on node A.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

use crate::objects::{Endpoint, Objects, Service};
use crate::rules::Rules;
use crate::traffic::Proto;
use crate::world::{Fabric, Family, Node, World, eventually};

/// How long a loaded machine may take for a change to reach the kernel.
pub const LONG: Duration = Duration::from_secs(60);

/// The environment variable that names the world to which a process belongs.
pub const WORLD_VARIABLE: &str = "FERRULE_NETNS_WORLD";

/// What the proxy is configured with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which kernel mechanism it uses.
    pub mode: Mode,
    /// How it knows local pods.
    pub detector: Detector,
    /// `masqueradeAll`.
    pub masquerade_all: bool,
    /// `syncPeriod`.
    pub sync_period: &'static str,
    /// `nodePortAddresses`.
    pub node_port_addresses: Vec<String>,
    /// `localhostNodePorts`.
    pub localhost_node_ports: bool,
    /// `bindAddressHardFail`.
    pub bind_address_hard_fail: bool,
    /// Where rules stand.
    pub layout: Layout,
    /// `--ferrule-localhost-nodeports`.
    pub localhost_nodeports: bool,
}

/// A kernel mechanism, with what only it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rules.
    Iptables,
    /// Virtual servers.
    Ipvs {
        /// `ipvs.scheduler`.
        scheduler: &'static str,
        /// `ipvs.excludeCIDRs`.
        excluded: Vec<&'static str>,
    },
    /// Maps and sets.
    Nftables,
}

/// Where rules stand, as environment variables have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// `FERRULE_SERVICE_DISPATCH=bucketed`.
    pub bucketed: bool,
    /// `FERRULE_ENDPOINT_LAYOUT=compact`.
    pub compact: bool,
}

/// How local pods are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detector {
    /// Not at all.
    None,
    /// By `clusterCIDR`.
    ClusterCidr,
    /// By the Node's `podCIDRs`.
    NodeCidr,
    /// By the bridge they come through.
    Bridge,
    /// By the beginning of their interfaces' names.
    InterfacePrefix,
}

/// A running proxy.
pub struct Proxy<'w> {
    world: &'w World,
    child: Child,
    mode: Mode,
    /// How many syncs the log told of before it was started.
    syncs_before: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            mode: Mode::Iptables,
            detector: Detector::ClusterCidr,
            masquerade_all: false,
            sync_period: "30s",
            node_port_addresses: Vec::new(),
            localhost_node_ports: true,
            bind_address_hard_fail: false,
            layout: Layout::default(),
            localhost_nodeports: false,
        }
    }
}

// === impl Detector ===

impl Detector {
    /// How pods must be connected for it.
    pub fn fabric(self) -> Fabric {
        match self {
            Detector::InterfacePrefix => Fabric::Routed,
            _ => Fabric::Bridge,
        }
    }
}

// === impl Mode ===

impl Mode {
    /// Virtual servers, otherwise as usual.
    pub const IPVS: Mode = Mode::Ipvs { scheduler: "", excluded: Vec::new() };

    /// Adds what the configuration file says of it.
    fn write(&self, file: &mut Value, sync_period: &str) {
        match self {
            Mode::Iptables => file["mode"] = json!("iptables"),
            Mode::Ipvs { scheduler, excluded } => {
                file["mode"] = json!("ipvs");
                file["ipvs"] = json!({
                    "scheduler": scheduler,
                    "excludeCIDRs": excluded,
                    "syncPeriod": sync_period,
                    "minSyncPeriod": "10ms",
                });
            }
            Mode::Nftables => {
                file["mode"] = json!("nftables");
                file["nftables"] = json!({
                    "masqueradeAll": file["iptables"]["masqueradeAll"],
                    "syncPeriod": sync_period,
                    "minSyncPeriod": "10ms",
                });
            }
        }
    }
}

// === impl Layout ===

impl Layout {
    /// kube-proxy's.
    pub const USUAL: Layout = Layout { bucketed: false, compact: false };
    /// Services by address.
    pub const BUCKETED: Layout = Layout { bucketed: true, compact: false };
    /// No chains of endpoints.
    pub const COMPACT: Layout = Layout { bucketed: false, compact: true };
    /// Both.
    pub const BOTH: Layout = Layout { bucketed: true, compact: true };

    /// The program that gives another one these variables; nothing for the usual layout.
    fn variables(self) -> Vec<OsString> {
        let bucketed = self.bucketed.then(|| "FERRULE_SERVICE_DISPATCH=bucketed".into());
        let compact = self.compact.then(|| "FERRULE_ENDPOINT_LAYOUT=compact".into());
        let variables: Vec<OsString> = bucketed.into_iter().chain(compact).collect();
        if variables.is_empty() { variables } else { [vec!["env".into()], variables].concat() }
    }
}

// === impl Config ===

impl Config {
    /// The configuration file.
    pub fn file(&self) -> Value {
        let mut file = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "iptables": {
                "masqueradeAll": self.masquerade_all,
                "localhostNodePorts": self.localhost_node_ports,
                "syncPeriod": self.sync_period,
                // The tests wait for changes, not for pauses between them.
                "minSyncPeriod": "10ms",
            },
            "nodePortAddresses": self.node_port_addresses,
            "bindAddressHardFail": self.bind_address_hard_fail,
            // The limits of the connection table belong to the host.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "oomScoreAdj": 0,
            "logging": {"verbosity": 4},
        });
        self.mode.write(&mut file, self.sync_period);
        match self.detector {
            Detector::None => {}
            Detector::ClusterCidr => file["clusterCIDR"] = json!(Family::BOTH.map(Family::cluster_cidr).join(",")),
            Detector::NodeCidr => file["detectLocalMode"] = json!("NodeCIDR"),
            Detector::Bridge => {
                file["detectLocalMode"] = json!("BridgeInterface");
                file["detectLocal"] = json!({"bridgeInterface": "cni0"});
            }
            Detector::InterfacePrefix => {
                file["detectLocalMode"] = json!("InterfaceNamePrefix");
                file["detectLocal"] = json!({"interfaceNamePrefix": "veth-"});
            }
        }
        file
    }
}

// === impl Proxy ===

impl<'w> Proxy<'w> {
    /// Starts the proxy with these objects and waits until they are in the kernel.
    pub fn start(world: &'w World, config: &Config, objects: &Objects) -> Proxy<'w> {
        let marker = write(world, objects);
        let proxy = Proxy::launch(world, config);
        proxy.settled(&marker);
        proxy
    }

    /// Starts it with the objects that were written last, and does not wait.
    pub fn launch(world: &'w World, config: &Config) -> Proxy<'w> {
        let mut config = config.clone();
        if world.tools.are_unused() && config.mode == Mode::Iptables {
            config.mode = Mode::Nftables;
        }
        let file = world.dir().join("config.json");
        fs::write(&file, serde_json::to_vec_pretty(&config.file()).unwrap()).unwrap();
        let mut arguments = arguments(&file, &manifests(world), Node::A.name());
        arguments.extend(config.localhost_nodeports.then(|| "--ferrule-localhost-nodeports".into()));
        let mut proxy = Proxy::spawn(world, &[config.layout.variables(), arguments].concat());
        proxy.mode = config.mode.clone();
        proxy
    }

    /// Starts it with a configuration file, manifests and node name of any kind, and does not wait.
    pub fn launch_with(world: &'w World, config: &Path, manifests: &Path, hostname: &str) -> Proxy<'w> {
        Proxy::spawn(world, &arguments(config, manifests, hostname))
    }

    /// Starts a program, which is to become the proxy, with its arguments.
    pub fn spawn(world: &'w World, arguments: &[OsString]) -> Proxy<'w> {
        let log = File::options().create(true).append(true).open(world.log_path()).unwrap();
        let syncs_before = syncs(world);
        // Ends with this process, even if that one is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(arguments)
            .env("PATH", world.tools.path_variable())
            .env("XTABLES_LOCKFILE", world.tools.lock_file())
            // By this its processes, and those that they start, are known as this world's.
            .env(WORLD_VARIABLE, world.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        let child =
            world.node.run_on_keeper(move || command.spawn()).expect("setpriv (package util-linux) is to start");
        Proxy { world, child, mode: Mode::Iptables, syncs_before }
    }

    /// Changes the objects and waits until the change is in the kernel.
    #[track_caller]
    pub fn apply(&self, objects: &Objects) {
        let before = syncs(self.world);
        let marker = write(self.world, objects);
        self.settled_since(&marker, before);
    }

    /// Waits until the rules for a marker Service are there and nothing changes any more.
    #[track_caller]
    pub fn settled(&self, marker: &Service) {
        self.settled_since(marker, self.syncs_before);
    }

    /// The same if the log told of so many syncs before the marker was written, or the proxy started.
    #[track_caller]
    fn settled_since(&self, marker: &Service, before: usize) {
        match self.mode {
            Mode::Iptables => {}
            Mode::Ipvs { .. } => {
                let shown = shown_in_table(SocketAddr::new(marker.cluster_ip, marker.port));
                let table = || self.world.node.proc_net("ip_vs");
                return self.settled_in_table(&shown, table, before);
            }
            Mode::Nftables => {
                let shown = format!("comment \"{}\"", marker.port(Proto::Tcp));
                return self.settled_in_table(&shown, || table(self.world, self.world.family()), before);
            }
        }
        let family = self.world.family();
        let text = format!("\"{} cluster IP\"", marker.port(Proto::Tcp));
        eventually(LONG, &format!("the rules for {text} are in the kernel"), || {
            assert!(self.running(), "ferrule ended, see its log");
            Rules::read(self.world, family).leads_to_service(&text).then_some(())
        });
        quiet(self.world);
    }

    /// The same for what is shown of a marker where it is there before all the rest is.
    #[track_caller]
    fn settled_in_table(&self, shown: &str, table: impl Fn() -> String, begun: usize) {
        // A list that is read in two parts, while others change theirs, may lack what is there.
        const GLITCH: Duration = Duration::from_secs(5);
        let mut before = begun;
        eventually(LONG, &format!("there is {shown}"), || {
            assert!(self.running(), "ferrule ended, see its log");
            let now = syncs(self.world);
            let is_there = table().contains(shown);
            if !is_there {
                before = now;
            }
            is_there.then_some(())
        });
        let found = Instant::now();
        eventually(LONG, "the sync is done that made it", || {
            let now = syncs(self.world);
            (now > before || now > begun && found.elapsed() > GLITCH).then_some(())
        });
        match self.mode {
            Mode::Nftables => quiet_in(|| Family::BOTH.map(|family| without_clocks(&self::table(self.world, family)))),
            _ => quiet(self.world),
        }
    }

    /// Whether it still runs.
    pub fn running(&self) -> bool {
        let pid = Pid::from_child(&self.child);
        // A zombie counts as ended; asking must not reap it, or its id could be somebody else's.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    }

    /// The exit code, if it has ended by itself.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        self.child.try_wait().unwrap().map(|status| status.code())
    }

    /// Ends it as a service manager does.
    pub fn terminate(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        eventually(LONG, "ferrule ends after SIGTERM", || self.child.try_wait().unwrap());
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> ExitStatus {
        eventually(LONG, "ferrule ends by itself", || self.child.try_wait().unwrap())
    }

    /// Ends it as a crash does, alone: programs that it has started run on.
    pub fn crash(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        // With what it has started; gone already is fine.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The binary under test: the one built with these tests, or `FERRULE_NETNS_BINARY`.
pub fn binary() -> PathBuf {
    std::env::var_os("FERRULE_NETNS_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_ferrule").into(), PathBuf::from)
}

/// An address as `/proc/net/ip_vs` shows it.
pub fn shown_in_table(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => format!("{:08X}:{:04X}", u32::from(*address.ip()), address.port()),
        SocketAddr::V6(address) => {
            let groups = address.ip().segments().map(|group| format!("{group:04x}")).join(":");
            format!("[{groups}]:{:04X}", address.port())
        }
    }
}

pub fn arguments(config: &Path, manifests: &Path, hostname: &str) -> Vec<OsString> {
    let [config, manifests] = [config, manifests].map(OsString::from);
    let flags = ["--config".into(), config, "--manifests".into(), manifests];
    let hostname = ["--hostname-override".into(), hostname.into()];
    std::iter::once(binary().into()).chain(flags).chain(hostname).collect()
}

pub fn manifests(world: &World) -> PathBuf {
    let dir = world.dir().join("manifests");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Writes the objects and a marker Service that has not been written before.
pub fn write(world: &World, objects: &Objects) -> Service {
    world.markers.fetch_add(1, Ordering::Relaxed);
    write_same_marker(world, objects)
}

/// Writes the objects beside the marker Service that is there already: they are all that changes.
pub fn write_same_marker(world: &World, objects: &Objects) -> Service {
    // Sorts last, and is of no use to anybody.
    let name = format!("zz-marker-{}", world.markers.load(Ordering::Relaxed));
    let mut marker = Service::new(world, &name, 9_999, &[]);
    marker.protocols = vec![Proto::Tcp];
    marker.endpoints = vec![Endpoint::ready(&world.pods[0], world.family())];
    let mut all = objects.clone();
    all.services.push(marker.clone());
    all.write(&manifests(world));
    marker
}

/// How many syncs of the world's family its proxies' log tells of.
fn syncs(world: &World) -> usize {
    let synced = format!("\"synced\" family=\"{}\"", world.family().name());
    fs::read_to_string(world.log_path()).unwrap_or_default().matches(&synced).count()
}

/// The table of nftables mode as `nft` lists it; empty if it is not there.
pub fn table(world: &World, family: Family) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let listed = world.node.run(|| Command::new("nft").args(["list", "table", ip, "kube-proxy"]).output().unwrap());
    let complaint = String::from_utf8_lossy(&listed.stderr);
    assert!(listed.status.success() || complaint.contains("No such file or directory"), "{complaint}");
    String::from_utf8(listed.stdout).unwrap()
}

/// A listing without how long clients are still remembered.
fn without_clocks(table: &str) -> String {
    let is_clock = |before: &str| matches!(before, "expires" | "timeout");
    let words: Vec<&str> = table.split_whitespace().collect();
    let kept = words.iter().enumerate().filter(|(i, _)| i.checked_sub(1).is_none_or(|before| !is_clock(words[before])));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

/// Waits until the rules have not changed for a while.
pub fn quiet(world: &World) {
    quiet_in(|| Family::BOTH.map(|family| Rules::read(world, family)));
}

/// Waits until what is read has not changed for a while.
fn quiet_in<T: PartialEq>(read: impl Fn() -> T) {
    const WHILE: Duration = Duration::from_millis(250);
    let (mut last, mut since) = (read(), Instant::now());
    eventually(LONG, "the rules stop changing", || {
        let now = read();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= WHILE).then_some(())
    });
}
