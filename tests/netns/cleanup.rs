//! `--cleanup`, `--init-only` and the leftovers of other modes, in a kernel of one's own.

use std::fs;
use std::process::Command;

use crate::objects::{Objects, Service};
use crate::proxy::{Config, Proxy, binary};
use crate::rules::Rules;
use crate::world::{Case, Fabric, Family, World};

matrix!(cleaning_up, initialising);

/// Runs ferrule on node A to its end: its exit code and log.
pub fn ferrule(world: &World, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(args).env("PATH", world.tools.path_variable()).env("XTABLES_LOCKFILE", world.tools.lock_file());
    let output = world.node.run_on_keeper(move || command.output()).expect("ferrule is to start");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Names of all chains and the rules of built-in ones.
fn rules(world: &World) -> Vec<Rules> {
    Family::BOTH.map(|family| Rules::read(world, family)).into()
}

/// Tables as nftables mode has them, and one of somebody else.
fn add_nft_tables(world: &World) {
    for table in ["ip kube-proxy", "ip6 kube-proxy", "ip mine"] {
        world.node.exec("nft", &["-f", "-"], &format!("add table {table}\nadd chain {table} services\n"));
    }
}

fn nft_tables(world: &World) -> Vec<String> {
    let tables = world.node.exec("nft", &["list", "tables"], "");
    let of_interest = |line: &&str| line.contains("kube-proxy") || line.contains("mine");
    tables.lines().filter(of_interest).map(str::to_owned).collect()
}

fn cleaning_up(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    let before = rules(&world);
    add_nft_tables(&world);
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let proxy = Proxy::start(&world, &Config::default(), &Objects::new([service]));
    assert_eq!(nft_tables(&world), ["table ip mine"], "leftovers of another mode go at the start");

    // Two that undo what the other does would be worse than either.
    let with_rules = rules(&world);
    let (code, log) = ferrule(&world, &["--cleanup"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("another ferrule runs in this network namespace"), "{log}");
    assert!(log.contains("encountered an error while tearing down rules"), "{log}");
    assert_eq!(rules(&world), with_rules);
    proxy.terminate();

    // Somebody's rule leads to a chain of ours: this chain stays, and all else goes.
    let mine = "*nat\n:MINE - [0:0]\n-A MINE -j KUBE-SERVICES\nCOMMIT\n";
    world.node.exec(&world.tools.real(case.family, "-restore"), &["-w", "5", "--noflush"], mine);
    let (code, log) = ferrule(&world, &["--cleanup"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("chain KUBE-SERVICES of table nat stays"), "{log}");
    let left = Rules::read(&world, case.family);
    let chains = left.chains.keys().filter(|(_, chain)| chain.starts_with("KUBE-") && chain != "KUBE-FIREWALL");
    assert_eq!(chains.collect::<Vec<_>>(), [&("nat".to_owned(), "KUBE-SERVICES".to_owned())], "{log}");

    add_nft_tables(&world);
    world.node.exec(&world.tools.real(case.family, ""), &["-w", "5", "-t", "nat", "-F", "MINE"], "");
    world.node.exec(&world.tools.real(case.family, ""), &["-w", "5", "-t", "nat", "-X", "MINE"], "");
    for _again in 0..2 {
        let (code, log) = ferrule(&world, &["--cleanup"]);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(nft_tables(&world), ["table ip mine"]);
        for (before, after) in before.iter().zip(rules(&world)) {
            // Shared with the kubelet; and built-in chains appear with their table.
            let mut left = after;
            left.chains.retain(|key, _| key.1 != "KUBE-FIREWALL");
            left.chains.values_mut().for_each(|rules| rules.retain(|rule| rule != "-j KUBE-FIREWALL"));
            let is_new = |key: &(String, String)| !before.chains.contains_key(key);
            let built_in = |chain: &str| chain.bytes().all(|byte| byte.is_ascii_uppercase());
            left.chains.retain(|key, rules| !(is_new(key) && built_in(&key.1) && rules.is_empty()));
            assert_eq!(before.difference(&left), "", "what was there before (first), and what is left (second)");
        }
    }
}

/// The privileged half of a start writes no rule, and the other half needs no more of it.
fn initialising(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 1);
    add_nft_tables(&world);
    let service = Service::new(&world, "web", 1, &["a0"]).outside(1);
    crate::proxy::write(&world, &Objects::new([service]));
    let file = world.dir().join("init.json");
    let mut config = Config::default().file();
    config["conntrack"]["tcpCloseWaitTimeout"] = "1h".into();
    fs::write(&file, config.to_string()).unwrap();
    let manifests = world.dir().join("manifests");
    let (file, manifests) = (file.display().to_string(), manifests.display().to_string());
    let args = ["--config", &file, "--manifests", &manifests, "--hostname-override", "node-a", "--init-only"];
    let (code, log) = ferrule(&world, &args);
    assert_eq!(code, Some(0), "{log}");
    let said = |what: &str, of: &str| log.lines().any(|line| line.contains(what) && line.contains(of));
    for family in Family::BOTH {
        assert!(said("System initialized and --init-only specified", family.name()), "{log}");
    }
    let proc_sys = |name: &str| world.node.exec("cat", &[format!("/proc/sys/net/{name}")], "").trim().to_owned();
    assert_eq!(proc_sys("netfilter/nf_conntrack_tcp_timeout_close_wait"), "3600");
    assert_eq!(proc_sys("ipv4/conf/all/route_localnet"), "1");
    assert!(said("Changed sysctl", "net/netfilter/nf_conntrack_tcp_timeout_close_wait"), "{log}");
    assert_eq!(nft_tables(&world), ["table ip mine"]);
    let is_ours = |rules: &Rules| rules.chains.keys().any(|(_, chain)| chain.starts_with("KUBE-"));
    assert!(!rules(&world).iter().any(is_ours), "no rule is written");

    // What has its value is not written again; and a family is not given up for a bad moment.
    let fails_once = "[ -e $STATE/$NAME ] && exec $REAL \"$@\"; touch $STATE/$NAME; echo 'out of memory' >&2; exit 4";
    world.tools.replace("", fails_once);
    let (code, log) = ferrule(&world, &args);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("Changed sysctl"), "{log}");
    let initialised = log.lines().filter(|line| line.contains("System initialized and --init-only specified"));
    assert_eq!(initialised.count(), 2, "{log}");
}
