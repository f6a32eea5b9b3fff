//! `--cleanup` with programs that answer from a script, and iptables on a kernel in memory.

use std::path::Path;
use std::sync::{Arc, Mutex};

use ferrule::backend::iptables::ruleset::Table;
use ferrule::cleanup::Cleaner;
use ferrule::command::fake::{FakeKernel, Fault, Tables, Variant};
use ferrule::command::{Command, CommandError, Output, Run};
use ferrule::net::IpFamily;

/// Programs of a node. Those that are not in the script are not installed.
#[derive(Clone)]
struct Node {
    kernel: Option<FakeKernel>,
    /// Beginning of a command line, exit code, standard output, standard error.
    script: Vec<(&'static str, i32, &'static str, &'static str)>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Run for Node {
    async fn run(&self, command: Command, line: &mut (dyn FnMut(&str) + Send)) -> Result<Output, CommandError> {
        let mut text = format!("{} {}", command.program, command.args.join(" "));
        let answer = self.script.iter().find(|(start, ..)| text.starts_with(start));
        if let (Some(kernel), None) = (&self.kernel, answer) {
            return kernel.run(command, line).await;
        }
        text += &format!(" < {}", String::from_utf8_lossy(&command.stdin).trim());
        self.asked.lock().unwrap().push(text.trim_end_matches(" < ").to_owned());
        let Some((_, code, stdout, stderr)) = answer else {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(CommandError::Start { program: command.program, source });
        };
        stdout.lines().for_each(line);
        Ok(Output { code: *code, stderr: (*stderr).to_owned() })
    }
}

impl Node {
    fn new(kernel: Option<FakeKernel>, script: &[(&'static str, i32, &'static str, &'static str)]) -> Node {
        Node { kernel, script: script.to_vec(), asked: Arc::default() }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    async fn clean(&self, proc: &Path) -> Vec<String> {
        Cleaner::new(self.clone(), proc).everything().await
    }
}

/// What a proxy and others may have left.
const LEFT: &str = "*mangle
:KUBE-PROXY-CANARY - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:MINE - [0:0]
-A INPUT -j MINE
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:KUBE-PROXY-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SVC-ADDR-1 - [0:0]
:KUBE-SVC-ADDR-01 - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -d 0.0.0.1/0.0.0.15 -j KUBE-SVC-ADDR-1
-A KUBE-SVC-ADDR-1 -d 0.0.0.0/0.0.0.240 -j KUBE-SVC-ADDR-01
-A KUBE-SVC-ADDR-01 -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SEP-BBBBBBBBBBBBBBBB -s 10.1.0.1/32 -j KUBE-MARK-MASQ
COMMIT
";

/// What stays of it.
const OTHERS: &str = "*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:MINE - [0:0]
-A INPUT -j MINE
-A INPUT -j KUBE-FIREWALL
COMMIT
";

fn tables(text: &str) -> Tables {
    let mut tables = Tables::new(IpFamily::V4);
    let kernel = FakeKernel::new(Variant::Legacy);
    kernel.load(tables.clone());
    let command = Command::new("iptables-restore", &["--noflush"]).with_stdin(text.as_bytes().to_vec());
    let output = futures::FutureExt::now_or_never(kernel.run(command, &mut |_| {})).unwrap().unwrap();
    assert!(output.success(), "{output:?}");
    tables = kernel.tables(IpFamily::V4);
    tables
}

fn texts(tables: &Tables) -> String {
    [Table::Mangle, Table::Filter, Table::Nat].map(|table| tables.table_text(table)).concat()
}

fn kernel(variant: Variant, left: &str) -> FakeKernel {
    let kernel = FakeKernel::new(variant);
    kernel.load(tables(left));
    kernel
}

fn nowhere() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn rules_of_a_proxy_go_and_those_of_others_stay() {
    for variant in [Variant::Legacy, Variant::Nft] {
        let kernel = kernel(variant, LEFT);
        let node = Node::new(Some(kernel.clone()), &[]);
        for _again in 0..2 {
            assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
            assert_eq!(texts(&kernel.tables(IpFamily::V4)), texts(&tables(OTHERS)), "{variant:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_is_waited_for() {
    let kernel = kernel(Variant::Legacy, LEFT);
    (0..8).for_each(|call| kernel.inject(call, Fault::Locked));
    let node = Node::new(Some(kernel.clone()), &[]);
    assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
    assert_eq!(kernel.clear_faults(), 0, "all have happened");
    assert_eq!(texts(&kernel.tables(IpFamily::V4)), texts(&tables(OTHERS)));

    // Not for ever.
    kernel.load(tables(LEFT));
    (0..100).for_each(|call| kernel.inject(call, Fault::Locked));
    let complaints = node.clean(nowhere().path()).await;
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].contains("xtables lock"), "{complaints:?}");
}

#[tokio::test]
async fn a_chain_that_others_lead_to_stays_empty_and_is_named() {
    let left = format!("{LEFT}*nat\n:MINE - [0:0]\n-A MINE -j KUBE-SVC-AAAAAAAAAAAAAAAA\nCOMMIT\n");
    let kernel = kernel(Variant::Legacy, &left);
    let complaints = Node::new(Some(kernel.clone()), &[]).clean(nowhere().path()).await;
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].contains("chain KUBE-SVC-AAAAAAAAAAAAAAAA of table nat stays"), "{complaints:?}");
    let mine =
        "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n:MINE - [0:0]\n-A MINE -j KUBE-SVC-AAAAAAAAAAAAAAAA\nCOMMIT\n";
    assert_eq!(texts(&kernel.tables(IpFamily::V4)), texts(&tables(&format!("{OTHERS}{mine}"))));
}

#[tokio::test]
async fn nothing_installed_is_nothing_to_do() {
    let node = Node::new(None, &[]);
    assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
}

#[tokio::test]
async fn tables_of_nftables_mode() {
    let deletes = |node: &Node| node.asked().into_iter().filter(|asked| asked.contains("delete")).collect::<Vec<_>>();
    let both = ["nft -f - < delete table ip kube-proxy", "nft -f - < delete table ip6 kube-proxy"];
    let version = ("nft --version", 0, "nftables v1.0.6 (Lester Gooch #5)", "");
    let exists = "/dev/stdin:1:14-23: Error: Could not process rule: File exists\ncreate table ip kube-proxy\n";
    let check = ("nft --check", 1, "", exists);

    let node = Node::new(None, &[version, check, ("nft -f -", 0, "", "")]);
    assert_eq!(Cleaner::new(node.clone(), "/nowhere").nftables().await, Vec::<String>::new());
    assert_eq!(deletes(&node), both);

    let missing =
        "/dev/stdin:1:14-23: Error: Could not process rule: No such file or directory\ndelete table ip kube-proxy\n";
    let node = Node::new(None, &[version, check, ("nft -f -", 1, "", missing)]);
    assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());

    let refused = "netlink: Error: cache initialization failed: Operation not permitted";
    let node = Node::new(None, &[version, check, ("nft -f -", 1, "", refused)]);
    let complaints = node.clean(nowhere().path()).await;
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints[0].contains("table ip kube-proxy") && complaints[0].contains("not permitted"), "{complaints:?}");

    // Too old, a kernel that has none, or no such table.
    let old = ("nft --version", 0, "nftables v1.0.0 (Fearless Fosdick #2)", "");
    let unable = ("nft --check", 1, "", "Protocol not supported");
    for script in [vec![old, check], vec![version, unable], vec![version, ("nft --check", 0, "", "")]] {
        let node = Node::new(None, &script);
        assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
        assert_eq!(deletes(&node), Vec::<String>::new());
    }
}

#[tokio::test]
async fn sets_of_ipvs_mode() {
    let modprobe = ("modprobe -va ip_vs", 0, "", "");
    let names = "KUBE-LOOP-BACK\nKUBE-6-LOAD-BALANCER-SOURCE-CID\ncali40s:x\nKUBE-CLUSTER-IP\nKUBE-MINE\n";
    let list = ("ipset list -name", 0, names, "");
    let destroy = ("ipset destroy", 0, "", "");
    let header = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
    let proc = nowhere();
    std::fs::create_dir(proc.path().join("net")).unwrap();
    let table = proc.path().join("net/ip_vs");
    let touched =
        |node: &Node| node.asked().into_iter().filter(|asked| asked.starts_with("ipset destroy")).collect::<Vec<_>>();
    let sets = [
        "ipset destroy KUBE-LOOP-BACK",
        "ipset destroy KUBE-CLUSTER-IP",
        "ipset destroy KUBE-6-LOAD-BALANCER-SOURCE-CID",
    ];

    // The module is loaded. (What becomes of virtual servers, tests/vm/ shows: they are not asked for by a program.)
    std::fs::write(&table, header).unwrap();
    let node = Node::new(None, &[list, destroy]);
    assert_eq!(node.clean(proc.path()).await, Vec::<String>::new());
    assert_eq!(touched(&node), sets);

    // Not loaded, but it can be.
    let node = Node::new(None, &[modprobe, list, destroy]);
    assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
    assert_eq!(touched(&node), sets);

    // It cannot: nothing is looked for.
    let node = Node::new(None, &[("modprobe", 1, "", "FATAL: Module ip_vs not found"), list, destroy]);
    assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
    assert_eq!(touched(&node), Vec::<String>::new());

    let in_use = "ipset v7.17: Set cannot be destroyed: it is in use by a kernel component";
    let node = Node::new(None, &[modprobe, list, ("ipset destroy", 1, "", in_use)]);
    let complaints = node.clean(nowhere().path()).await;
    assert_eq!(complaints.len(), 3, "{complaints:?}");
    assert!(complaints[0].contains("KUBE-LOOP-BACK") && complaints[0].contains("in use"), "{complaints:?}");
}

/// Only where the kernel has the load balancer, as kube-proxy does it.
#[tokio::test]
async fn rules_of_ipvs_mode() {
    let left = "*filter
:KUBE-NODE-PORT - [0:0]
-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
COMMIT
*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-SERVICES - [0:0]
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
COMMIT
";
    let kernel = kernel(Variant::Legacy, left);
    assert_eq!(Node::new(Some(kernel.clone()), &[]).clean(nowhere().path()).await, Vec::<String>::new());
    assert!(kernel.tables(IpFamily::V4).chain(Table::Filter, "KUBE-NODE-PORT").is_some());
    let node = Node::new(Some(kernel.clone()), &[("modprobe -va ip_vs", 0, "", "")]);
    assert_eq!(node.clean(nowhere().path()).await, Vec::<String>::new());
    assert_eq!(texts(&kernel.tables(IpFamily::V4)), texts(&tables("")));
}
