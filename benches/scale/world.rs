//! Where a run happens: a network namespace of its own, with the programs that write rules.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cluster::{NODE, NODE_IP, POD_PORT, PODS, SERVICES};

/// What rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Variant {
    /// iptables mode, by `iptables-legacy`.
    Legacy,
    /// iptables mode, by `iptables-nft`.
    Nft,
    /// nftables mode.
    Nftables,
}

/// Ports of endpoints behind which something answers: of `default/kubernetes`, of DNS, of the others.
const PORTS: [u16; 3] = [6443, 53, POD_PORT];

/// How long a connection is waited for. Everything is local: an answer comes within a millisecond
/// or not at all.
const PATIENCE: Duration = Duration::from_millis(20);

/// The pause between calls of those who wait for a change: to call all the time would take a core from
/// what is measured.
pub const PROBES: Duration = Duration::from_micros(300);

/// A namespace of a run's own and the files it needs. The process that makes it is in it for good.
pub struct World {
    pub variant: Variant,
    dir: PathBuf,
}

// === impl Variant ===

impl Variant {
    pub const ALL: [Variant; 3] = [Variant::Legacy, Variant::Nft, Variant::Nftables];

    /// By this it is chosen on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Legacy => "legacy",
            Variant::Nft => "nft",
            Variant::Nftables => "nftables",
        }
    }

    /// As a configuration file has it.
    fn mode(self) -> &'static str {
        match self {
            Variant::Legacy | Variant::Nft => "iptables",
            Variant::Nftables => "nftables",
        }
    }

    /// The program behind all names of iptables. nftables mode only looks for what iptables mode left.
    pub fn binary(self) -> Option<PathBuf> {
        let name = match self {
            Variant::Legacy => "xtables-legacy-multi",
            Variant::Nft | Variant::Nftables => "xtables-nft-multi",
        };
        ["/usr/sbin", "/sbin", "/usr/local/sbin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
    }
}

// === impl World ===

impl World {
    /// Moves this process into a new network namespace. It must not have other threads yet.
    pub fn enter(variant: Variant, dir: &Path) -> World {
        unshare_network();
        let world = World { variant, dir: dir.to_owned() };
        let bin = world.bin();
        if !bin.exists() {
            fs::create_dir_all(&bin).unwrap();
            let binary = variant.binary().expect("install the package iptables");
            for family in ["iptables", "ip6tables"] {
                for suffix in ["", "-save", "-restore"] {
                    symlink(&binary, bin.join(format!("{family}{suffix}"))).unwrap();
                }
            }
        }
        world
    }

    fn bin(&self) -> PathBuf {
        self.dir.join(format!("bin-{}", self.variant.name()))
    }

    /// Links and routes: every endpoint is local, and cluster IPs lead nowhere.
    pub fn wire(&self) {
        let commands = format!(
            "link set lo up\naddr add {} dev lo\nlink add node0 type veth peer name wire0\n\
             addr add {NODE_IP}/24 dev node0\nlink set node0 arp off up\nlink set wire0 arp off up\nroute add {SERVICES} dev node0\n",
            PODS.replace(".0.0/", ".0.1/")
        );
        let mut child =
            self.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("install iproute2");
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "ip -batch");
        for port in PORTS {
            answer(port);
        }
    }

    /// A program, with this world's iptables first.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env(
                "PATH",
                format!("{}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin", self.bin().display()),
            )
            .env("XTABLES_LOCKFILE", self.dir.join(format!("xtables-{}.lock", std::process::id())))
            .env_remove("RUST_LOG");
        command
    }

    /// A configuration file; the same for every proxy.
    pub fn config(&self) -> PathBuf {
        let file = self.dir.join(format!("config-{}.json", std::process::id()));
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": self.variant.mode(),
            "clusterCIDR": PODS,
            "hostnameOverride": NODE,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": METRICS,
            // The limits of the connection table belong to the host.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "1s", "syncPeriod": "30s"},
            "nftables": {"minSyncPeriod": "1s", "syncPeriod": "30s", "masqueradeAll": false},
        });
        fs::write(&file, config.to_string()).unwrap();
        file
    }
}

/// Where proxies serve their metrics.
pub const METRICS: &str = "127.0.0.1:10249";

/// The least time between two syncs that proxies are configured with.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Moves the calling thread into a new namespace; those it starts are in there, too.
#[expect(deprecated, reason = "the unsafe twin is for flags that touch memory or files; the network is neither")]
fn unshare_network() {
    rustix::thread::unshare(UnshareFlags::NEWNET).expect("network namespaces need root");
}

/// Tells everybody who connects which endpoint they reached.
fn answer(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        // Whoever called breaks off when it has read; to do so first would take the answer back.
        let mut open = VecDeque::new();
        for mut stream in listener.incoming().flatten() {
            if let Ok(SocketAddr::V4(address)) = stream.local_addr() {
                let _ = stream.write_all(&address.ip().octets());
            }
            open.push_back(stream);
            if open.len() > 64 {
                open.pop_front();
            }
        }
    });
}

/// Connects to a cluster IP: the endpoint that was reached.
pub fn call(to: (Ipv4Addr, u16)) -> Option<Ipv4Addr> {
    call_within(to, PATIENCE)
}

/// The same with more patience.
pub fn call_within(to: (Ipv4Addr, u16), patience: Duration) -> Option<Ipv4Addr> {
    let address = SocketAddr::new(IpAddr::V4(to.0), to.1);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let mut octets = [0; 4];
    stream.read_exact(&mut octets).ok()?;
    // Broken off: no connection is left waiting for stragglers.
    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
    Some(Ipv4Addr::from_octets(octets))
}

/// Connects again and again until an endpoint is reached that is wanted; when that was.
pub fn await_endpoint(to: (Ipv4Addr, u16), limit: Duration, wanted: impl Fn(Ipv4Addr) -> bool) -> Option<Instant> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if call(to).is_some_and(&wanted) {
            return Some(Instant::now());
        }
        thread::sleep(PROBES);
    }
    None
}
