//! A small cluster out of network namespaces: a client outside, two nodes, pods on both.
//!
//! Everything goes through node A, where the proxy under test runs: the client's way to the cluster,
//! and the way between the nodes. So a packet that was not masqueraded finds the way back, too.
//! Whoever makes a [`World`] owns it alone; nothing of it is visible outside.

mod addresses;
mod links;
mod namespace;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::AtomicU32;
use std::thread;
use std::time::{Duration, Instant};

pub use addresses::{Family, Node};
pub use namespace::Namespace;
use tempfile::TempDir;

use crate::tools::{Tools, Variant};
use crate::traffic::{Proto, Servers};

/// The port on which pods answer, in every protocol.
pub const POD_PORT: u16 = 8080;

/// How many addresses the client has.
pub const CLIENTS: u8 = 3;

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// Through the bridge `cni0`.
    Bridge,
    /// Each through an interface `veth-…` of its own and a route.
    Routed,
}

/// What a test is run for. Tests get one from the `matrix!` macro.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Which iptables tools the node has.
    pub variant: Variant,
    /// The family of the Services and connections.
    pub family: Family,
}

/// A pod: a namespace with servers that tell who they are.
pub struct Pod {
    /// Its name, which its servers answer with.
    pub name: String,
    /// Where it runs.
    pub node: Node,
    /// Its n on that node.
    pub n: u8,
    /// Its network namespace.
    pub netns: Namespace,
}

/// The cluster of one test.
pub struct World {
    /// What the test is run for.
    pub case: Case,
    /// How its pods are connected.
    pub fabric: Fabric,
    /// Outside of the cluster.
    pub client: Namespace,
    /// Node A.
    pub node: Namespace,
    /// Node B.
    pub peer: Namespace,
    /// Pods: `a0`, `a1`… on node A, `b0`, `b1`… on node B.
    pub pods: Vec<Pod>,
    /// The servers in the pods.
    pub servers: Servers,
    /// The tools of node A.
    pub tools: Tools,
    /// How many marker Services have been written.
    pub markers: AtomicU32,
    dir: TempDir,
}

impl Case {
    /// A world with these many pods on node A and on node B, each with TCP and UDP servers running.
    pub fn world(self, fabric: Fabric, pods_a: u8, pods_b: u8) -> World {
        remove_stale_dirs();
        let prefix = format!("{DIR_PREFIX}{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let tools = Tools::install(self.variant, dir.path());
        let wired = links::wire(fabric, pods_a, pods_b);
        let servers = Servers::start();
        for pod in &wired.pods {
            servers.listen(pod, Proto::Tcp, POD_PORT);
            servers.listen(pod, Proto::Udp, POD_PORT);
        }
        let links::Wired { client, node, peer, pods } = wired;
        World { case: self, fabric, client, node, peer, pods, servers, tools, markers: AtomicU32::new(0), dir }
    }
}

// === impl Pod ===

impl Pod {
    /// Its address.
    pub fn ip(&self, family: Family) -> IpAddr {
        family.pod(self.node, self.n)
    }

    /// Where its servers listen.
    pub fn address(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.ip(family), POD_PORT)
    }
}

// === impl World ===

impl World {
    /// The pod with this name.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).unwrap_or_else(|| panic!("there is no pod {name}"))
    }

    /// The family that is tested.
    pub fn family(&self) -> Family {
        self.case.family
    }

    /// A directory that lives as long as the world.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where node A's proxy logs to.
    pub fn log_path(&self) -> PathBuf {
        self.dir().join("ferrule.log")
    }

    /// The address which a packet to this pod has after masquerading on node A.
    pub fn masqueraded(&self, pod: &Pod) -> IpAddr {
        match pod.node {
            Node::A => self.family().gateway(self.fabric, Node::A, pod.n),
            Node::B => self.family().inner(Node::A),
        }
    }

    /// The interface by which node A gets what is sent in a namespace; none for its own.
    pub fn entrance(&self, netns: &Namespace) -> Option<String> {
        let name = netns.name();
        if name == self.node.name() {
            return None;
        }
        let interface = match self.pods.iter().find(|pod| pod.netns.name() == name) {
            _ if name == self.client.name() => "outer".to_owned(),
            Some(pod) if pod.node == Node::A && self.fabric == Fabric::Bridge => "cni0".to_owned(),
            Some(pod) if pod.node == Node::A => format!("veth-{name}"),
            _ => "inner".to_owned(),
        };
        Some(interface)
    }

    /// Whether an address is one of the client's.
    pub fn is_client(&self, ip: IpAddr) -> bool {
        (0..CLIENTS).any(|n| self.family().client(n) == ip)
    }

    /// Everything worth knowing about a failed test.
    fn report(&self) {
        let show = |title: &str, text: String| eprintln!("--- {title}\n{}", text.trim_end());
        let out = |netns: &Namespace, program: &str, args: &[&str]| {
            String::from_utf8_lossy(&netns.try_exec(program, args, "").stdout).into_owned()
        };
        eprintln!("=== {:?}: what was there when the test failed", self.case);
        for family in Family::BOTH {
            let save = self.tools.real(family, "-save");
            show(&format!("node-a: {save} -c"), out(&self.node, &save, &["-c"]));
        }
        show("node-a: addresses", out(&self.node, "ip", &["-br", "addr"]));
        show("node-a: routes", out(&self.node, "ip", &["route"]) + &out(&self.node, "ip", &["-6", "route"]));
        let flows = self.node.proc_net("nf_conntrack");
        let last = flows.lines().rev().take(60).collect::<Vec<_>>().join("\n");
        show("node-a: connections (60 at most)", last);
        let log = fs::read_to_string(self.log_path()).unwrap_or_else(|error| format!("none: {error}"));
        let skip = log.lines().count().saturating_sub(150);
        show("ferrule's log (the last 150 lines)", log.lines().skip(skip).collect::<Vec<_>>().join("\n"));
        if std::env::var_os("FERRULE_NETNS_PAUSE").is_some() {
            self.pause();
        }
    }

    /// Keeps the world for somebody who wants to look around in it.
    fn pause(&self) {
        let mut names = vec![&self.client, &self.node, &self.peer];
        names.extend(self.pods.iter().map(|pod| &pod.netns));
        let stop = self.dir().join("continue");
        // Not through eprintln!: the test runner would keep it until the test has ended.
        let mut text = format!("paused, files in {}; to go on: touch {}\n", self.dir().display(), stop.display());
        for netns in names {
            text += &format!("  {:8} nsenter --net={}\n", netns.name(), netns.path());
        }
        let _ = fs::write("/dev/stderr", text);
        while !stop.exists() {
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            self.report();
        }
    }
}

/// Begins the name of every world's directory; the id of the process that made it follows.
const DIR_PREFIX: &str = "ferrule-netns-";

/// A run that was killed leaves directories, and nothing else: its namespaces and proxies end with it.
fn remove_stale_dirs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(DIR_PREFIX));
            let Some((pid, _)) = rest.and_then(|rest| rest.split_once('-')) else { continue };
            if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
                // Another run may be at the same.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
}

/// Waits until `ready` gives something; `what` names it when it never comes.
#[track_caller]
pub fn eventually<T>(limit: Duration, what: &str, ready: impl FnMut() -> Option<T>) -> T {
    match within(limit, ready) {
        Some(value) => value,
        None => panic!("not within {limit:?}: {what}"),
    }
}

/// Waits until `ready` gives something, and gives up after `limit`.
pub fn within<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let value = ready();
        if value.is_some() || start.elapsed() >= limit {
            return value;
        }
        thread::sleep(Duration::from_millis(15));
    }
}
