//! ipvs mode where the kernel may have no IPVS. Where it has, `tests/vm/` shows what it does.

use std::path::Path;
use std::process::Command;

use crate::objects::{Objects, Service};
use crate::proxy::{Config, Mode, Proxy, shown_in_table, write};
use crate::rules::Rules;
use crate::world::{Case, Fabric};

matrix!(a_kernel_without_it_is_named);

/// Nothing is written then, and what another mode has in the kernel serves on.
fn a_kernel_without_it_is_named(case: Case) {
    let world = case.world(Fabric::Bridge, 1, 0);
    let service = Service::new(&world, "web", 1, &["a0"]);
    let objects = Objects::new([service.clone()]);
    let config = Config { mode: Mode::IPVS, ..Config::default() };
    let loads = Command::new("modprobe").args(["-n", "-q", "ip_vs"]).status().is_ok_and(|status| status.success());
    if loads || Path::new("/proc/net/ip_vs").exists() {
        let _proxy = Proxy::start(&world, &config, &objects);
        let shown = shown_in_table((service.cluster_ip, service.port).into());
        assert!(world.node.proc_net("ip_vs").contains(&shown));
        return;
    }
    Proxy::start(&world, &Config::default(), &objects).terminate();
    let before = Rules::read(&world, world.family());
    write(&world, &objects);
    let status = Proxy::launch(&world, &config).wait();
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(world.log_path()).unwrap();
    assert!(log.contains("this kernel has no IPVS: load module ip_vs (modprobe ip_vs), or use another mode"), "{log}");
    assert_eq!(Rules::read(&world, world.family()), before);
}
