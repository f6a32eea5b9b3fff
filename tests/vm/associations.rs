//! SCTP with sockets of the kernel: whole associations, not only their first packet.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with};

use crate::kernel::{key, table};
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{Config, Mode, Proxy};
use crate::traffic::Proto;
use crate::world::{Case, Fabric, Family, Namespace, POD_PORT, Pod};

families!(an_association_is_served_to_the_end);

/// The standard library's TCP types serve as "any socket with a stream".
fn socket(at: SocketAddr) -> std::os::fd::OwnedFd {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP)).unwrap();
    // One address only: others would be told to the peer, past all translation.
    bind(&socket, &at).unwrap();
    socket
}

/// Greets with the pod's name, then sends back what comes.
fn serve(pod: &Pod, family: Family) {
    let at = SocketAddr::new(pod.ip(family), POD_PORT);
    let name = pod.name.clone();
    pod.netns.spawn(move || {
        let socket = socket(at);
        listen(&socket, 16).unwrap();
        // Ends with the test's process.
        for stream in TcpListener::from(socket).incoming().flatten() {
            let name = name.clone();
            std::thread::spawn(move || echo(stream, &name));
        }
    });
}

fn echo(mut stream: TcpStream, name: &str) {
    let _ = stream.write_all(name.as_bytes());
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let _ = stream.write_all(&buffer[..length]);
    }
}

fn associate(netns: &Namespace, from: SocketAddr, to: SocketAddr) -> (TcpStream, String) {
    let mut stream = netns.run(|| {
        let socket = socket(from);
        connect(&socket, &to).unwrap_or_else(|error| panic!("{to}: {error}"));
        TcpStream::from(socket)
    });
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer).unwrap();
    (stream, String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn an_association_is_served_to_the_end(case: Case) {
    let loaded = Command::new("modprobe").arg("sctp").status().unwrap();
    assert!(loaded.success(), "this kernel has no SCTP");
    let world = case.world(Fabric::Bridge, 2, 1);
    let family = world.family();
    world.pods.iter().for_each(|pod| serve(pod, family));
    let service = Service::new(&world, "sctp", 1, &["a0", "a1", "b0"]).outside(1);
    let service = Service { protocols: vec![Proto::Tcp, Proto::Sctp], ..service };
    let config = Config { mode: Mode::IPVS, ..Config::default() };
    let proxy = Proxy::start(&world, &config, &Objects::new([service.clone()]));
    let ways = [
        SocketAddr::new(service.cluster_ip, SERVICE_PORT),
        SocketAddr::new(family.node(), service.node_port.unwrap()),
        SocketAddr::new(service.load_balancers[0], SERVICE_PORT),
    ];
    let from = SocketAddr::new(family.client(0), 0);
    let mut open: Vec<(TcpStream, String)> = Vec::new();
    for to in ways {
        open.extend((0..3).map(|_| associate(&world.client, from, to)));
        let answered: std::collections::BTreeSet<_> = open.iter().rev().take(3).map(|(_, name)| name.clone()).collect();
        assert_eq!(answered.len(), 3, "{to}: {answered:?}");
    }
    let mut left = service.clone();
    left.endpoints.remove(0);
    proxy.apply(&Objects::new([left]));
    let server = &table(&world)[&key("SCTP", service.cluster_ip, SERVICE_PORT)];
    assert_eq!(server.weights[&SocketAddr::new(world.pod("a0").ip(family), POD_PORT)], 0, "{server:?}");
    for (stream, name) in &mut open {
        stream.write_all(b"still there?").unwrap();
        let mut buffer = [0; 12];
        stream.read_exact(&mut buffer).unwrap_or_else(|error| panic!("the association with {name}: {error}"));
        assert_eq!(&buffer, b"still there?");
    }
    for _ in 0..4 {
        let (_, name) = associate(&world.client, from, ways[0]);
        assert_ne!(name, "a0", "no new one goes there");
    }
}
