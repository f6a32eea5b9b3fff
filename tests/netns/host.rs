//! The host is left as it was.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::objects::{Objects, Service};
use crate::proxy::{Config, Proxy, WORLD_VARIABLE};
use crate::traffic::Probers;
use crate::world::{Case, Fabric, eventually};

matrix!(nothing_is_left_on_the_host);

fn nothing_is_left_on_the_host(case: Case) {
    let before = host();
    let (dir, path) = {
        let world = case.world(Fabric::Bridge, 3, 1);
        let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
        let mut objects = Objects::new([service.clone()]);
        let proxy = Proxy::start(&world, &Config::default(), &objects);
        let probers = Probers::start(&world, &service, "a2");
        objects.services.push(Service::new(&world, "more", 2, &[]).outside(2));
        proxy.apply(&objects);
        probers.finish_unharmed();
        assert_eq!(before, host(), "the host (before, first) while a proxy runs (second)");
        let dir = world.dir().display().to_string();
        assert!(!processes_of(&dir).is_empty(), "the proxy itself is to be seen");
        (dir, world.dir().to_owned())
    };
    // Ending takes a moment, for programs that the proxy has started.
    eventually(Duration::from_secs(10), "all processes of the test have ended", || {
        processes_of(&dir).is_empty().then_some(())
    });
    assert!(!path.exists(), "{dir} is still there");
    assert_eq!(before, host(), "the host before (first) and after (second)");
}

/// What of the host's network a proxy, or the making of a world, could change.
fn host() -> Vec<String> {
    let mut state = Vec::new();
    for save in ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"] {
        let rules = run(save, &[]);
        // Comments hold the time, brackets the counters.
        let rules = rules.lines().filter(|line| !line.starts_with('#'));
        state.extend(rules.map(|line| format!("{save}: {}", line.split(" [").next().unwrap())));
    }
    state.extend(run("ip", &["netns", "list"]).lines().map(|line| format!("netns: {line}")));
    let links = run("ip", &["-oneline", "link"]);
    state.extend(links.lines().map(|line| format!("link: {}", line.split(": <").next().unwrap())));
    for setting in ["ipv4/ip_forward", "ipv4/conf/all/route_localnet", "ipv6/conf/all/forwarding"] {
        let value = fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap_or_default();
        state.push(format!("{setting}: {}", value.trim()));
    }
    state
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): is it installed?"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The processes that were started for a world.
fn processes_of(dir: &str) -> Vec<u32> {
    let mark = format!("{WORLD_VARIABLE}={dir}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has just ended cannot be read any more.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.push(pid);
        }
    }
    found
}
