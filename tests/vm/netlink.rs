//! The table of virtual servers over netlink, beside `ipvsadm`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use ferrule::backend::ipvs::netlink::{
    Address, Connections, Error, Flags, Forwarding, Ipvs, RealServer, Scheduler, Timeouts, VirtualServer,
};
use ferrule::net::Protocol;

/// A table without virtual servers, of a network namespace that this thread is in from now on.
fn table() -> Ipvs {
    let loaded = Command::new("modprobe").args(["-a", "ip_vs", "nf_conntrack"]).status().expect("modprobe");
    assert!(loaded.success(), "this kernel has no IPVS: these tests are for the one that tests/vm/boot starts");
    // One thread of several: what it makes is its own.
    #[expect(deprecated, reason = "its successor is unsafe because of flags that are not used here")]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("a network namespace");
    // Without any address there is no table of local routes, and the kernel takes no real server.
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip");
    assert!(up.success(), "lo could not be brought up");
    Ipvs::open().unwrap()
}

fn address(protocol: Protocol, text: &str) -> Address {
    let socket: SocketAddr = text.parse().unwrap();
    Address { protocol, ip: socket.ip(), port: socket.port() }
}

fn plain(address: Address, scheduler: &str) -> VirtualServer {
    VirtualServer { address, scheduler: scheduler.parse().unwrap(), flags: Flags::default(), timeout: 0 }
}

fn real(text: &str, weight: u32) -> RealServer {
    let socket: SocketAddr = text.parse().unwrap();
    RealServer { ip: socket.ip(), port: socket.port(), weight, forwarding: Forwarding::Masquerade }
}

/// What the tool says there is.
fn listed() -> String {
    let output = Command::new("ipvsadm").arg("-Sn").output().expect("ipvsadm");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Schedulers for which this kernel has a module.
fn schedulers() -> BTreeSet<String> {
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    let folder = format!("/lib/modules/{release}/kernel/net/netfilter/ipvs");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let modules = names.filter_map(|name| Some(name.split_once('.')?.0.strip_prefix("ip_vs_")?.to_owned()));
    // A helper for FTP and an engine for persistence.
    modules.filter(|module| !["ftp", "pe_sip"].contains(&module.as_str())).collect()
}

#[test]
fn every_scheduler_for_every_protocol_and_family() {
    let mut table = table();
    let schedulers = schedulers();
    for known in ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq", "fo", "ovf"] {
        assert!(schedulers.contains(known), "{known}: {schedulers:?}");
    }
    let mut expected = Vec::new();
    for (port, scheduler) in (1..).zip(&schedulers) {
        for protocol in Protocol::ALL {
            for ip in ["10.96.0.1", "[fd00:96::1]"] {
                let server = plain(address(protocol, &format!("{ip}:{port}")), scheduler);
                table.add_virtual(server).unwrap_or_else(|error| panic!("{error}"));
                expected.push(server);
            }
        }
    }
    let found = table.virtual_servers().unwrap();
    assert_eq!(found.len(), schedulers.len() * 6);
    for server in expected {
        assert!(found.contains(&server), "{server:?}");
    }
    let said = listed();
    for (port, scheduler) in (1..).zip(&schedulers) {
        for option in ["-t", "-u", "--sctp-service"] {
            for ip in ["10.96.0.1", "[fd00:96::1]"] {
                let line = format!("-A {option} {ip}:{port} -s {scheduler}");
                assert!(said.lines().any(|other| other.trim_end() == line), "{line}\n{said}");
            }
        }
    }
}

#[test]
fn a_virtual_server_changes_and_goes() {
    let mut table = table();
    let web = address(Protocol::Tcp, "10.96.0.1:80");
    table.add_virtual(plain(web, "rr")).unwrap();
    let changed = VirtualServer {
        address: web,
        scheduler: "mh".parse().unwrap(),
        flags: Flags::PERSISTENT | Flags::SCHEDULER_2,
        timeout: 10_800,
    };
    table.set_virtual(changed).unwrap();
    assert_eq!(table.virtual_servers().unwrap(), [changed]);
    assert_eq!(listed().trim_end(), "-A -t 10.96.0.1:80 -s mh -p 10800 -b mh-port");
    // Back: flags that are not named are gone.
    table.set_virtual(plain(web, "rr")).unwrap();
    assert_eq!(table.virtual_servers().unwrap(), [plain(web, "rr")]);
    table.delete_virtual(web).unwrap();
    assert_eq!(table.virtual_servers().unwrap(), []);
}

#[test]
fn real_servers_come_change_and_go() {
    let mut table = table();
    for (of, pods) in [
        ("10.96.0.1:80", ["10.244.0.5:8080", "10.244.1.5:8080"]),
        ("[fd00:96::1]:80", ["[fd00:10::5]:8080", "[fd00:11::5]:8080"]),
    ] {
        for protocol in Protocol::ALL {
            let of = address(protocol, of);
            table.add_virtual(plain(of, "rr")).unwrap();
            assert_eq!(table.real_servers(of).unwrap(), []);
            for pod in pods {
                table.add_real(of, real(pod, 1)).unwrap();
            }
            table.set_real(of, real(pods[0], 0)).unwrap();
            let found = table.real_servers(of).unwrap();
            assert_eq!(found.len(), 2);
            for server in [real(pods[0], 0), real(pods[1], 1)] {
                assert!(found.contains(&(server, Connections::default())), "{server:?} in {found:?}");
            }
            table.delete_real(of, real(pods[0], 0)).unwrap();
            assert_eq!(table.real_servers(of).unwrap(), [(real(pods[1], 1), Connections::default())]);
        }
    }
    assert!(listed().contains("-a --sctp-service [fd00:96::1]:80 -r [fd00:11::5]:8080 -m -w 1\n"), "{}", listed());
}

#[test]
fn refusals_name_what_it_was_about() {
    let mut table = table();
    let web = address(Protocol::Tcp, "10.96.0.1:80");
    let says = |error: Error| error.to_string();
    let error = table.add_virtual(plain(web, "nosuch")).unwrap_err();
    assert!(matches!(error, Error::NoScheduler { .. }), "{error:?}");
    assert_eq!(
        says(error),
        "virtual server 10.96.0.1:80/TCP: this kernel has no scheduler nosuch: load module ip_vs_nosuch (modprobe \
         ip_vs_nosuch), or choose another one (ipvs.scheduler, --ipvs-scheduler)"
    );
    assert_eq!(says(table.delete_virtual(web).unwrap_err()), "virtual server 10.96.0.1:80/TCP does not exist");
    assert_eq!(
        says(table.add_real(web, real("10.244.0.5:8080", 1)).unwrap_err()),
        "virtual server 10.96.0.1:80/TCP does not exist"
    );
    assert_eq!(
        says(table.set_virtual(plain(web, "rr")).unwrap_err()),
        "virtual server 10.96.0.1:80/TCP does not exist"
    );
    table.add_virtual(plain(web, "rr")).unwrap();
    assert_eq!(says(table.add_virtual(plain(web, "rr")).unwrap_err()), "virtual server 10.96.0.1:80/TCP exists");
    let pod = real("10.244.0.5:8080", 1);
    let missing = "real server 10.244.0.5:8080 of virtual server 10.96.0.1:80/TCP does not exist";
    assert_eq!(says(table.delete_real(web, pod).unwrap_err()), missing);
    assert_eq!(says(table.set_real(web, pod).unwrap_err()), missing);
    table.add_real(web, pod).unwrap();
    assert_eq!(
        says(table.add_real(web, pod).unwrap_err()),
        "real server 10.244.0.5:8080 of virtual server 10.96.0.1:80/TCP exists"
    );
    // What the kernel takes no less than from the tool is still there.
    assert_eq!(table.real_servers(web).unwrap(), [(pod, Connections::default())]);
    let error = table.set_timeouts(Timeouts { tcp: u32::MAX, tcp_fin: 0, udp: 0 }).unwrap_err();
    assert!(says(error).starts_with("time limits of IPVS (tcp 4294967295 s, tcp fin 0 s, udp 0 s): "));
}

#[test]
fn time_limits_and_the_version() {
    let mut table = table();
    let before = table.timeouts().unwrap();
    table.set_timeouts(Timeouts { tcp: 1_000, tcp_fin: 0, udp: 61 }).unwrap();
    assert_eq!(table.timeouts().unwrap(), Timeouts { tcp: 1_000, tcp_fin: before.tcp_fin, udp: 61 });
    assert_eq!(table.version().unwrap().to_string(), "1.2.1");
}

#[test]
fn a_long_list_is_whole() {
    let mut table = table();
    let rr: Scheduler = "rr".parse().unwrap();
    let addresses: BTreeSet<Address> =
        (0..3_000_u16).map(|i| address(Protocol::Tcp, &format!("10.96.{}.{}:80", i / 250, i % 250))).collect();
    for address in &addresses {
        table
            .add_virtual(VirtualServer { address: *address, scheduler: rr, flags: Flags::default(), timeout: 0 })
            .unwrap();
    }
    let web = *addresses.first().unwrap();
    for i in 0..1_000 {
        table.add_real(web, real(&format!("10.244.{}.{}:8080", i / 250, i % 250), 1)).unwrap();
    }
    let listed: BTreeSet<Address> = table.virtual_servers().unwrap().iter().map(|server| server.address).collect();
    assert_eq!(listed, addresses);
    let reals: BTreeSet<_> = table.real_servers(web).unwrap().iter().map(|(server, _)| server.ip).collect();
    assert_eq!(reals.len(), 1_000);
    // Somebody else's, with a mark instead of an address.
    let marked = Command::new("ipvsadm").args(["-A", "-f", "7", "-s", "rr"]).status().unwrap();
    assert!(marked.success());
    assert_eq!(table.virtual_servers().unwrap().len(), addresses.len());
    table.flush().unwrap();
    assert_eq!(table.virtual_servers().unwrap(), []);
}
