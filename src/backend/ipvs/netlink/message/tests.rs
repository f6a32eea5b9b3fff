//! Messages against what `ipvsadm` and a kernel said to each other.

use netlink_packet_core::NetlinkSerializable;

use super::*;
use crate::netlink::tests::bytes;

mod captured;

fn address(protocol: Protocol, text: &str) -> Address {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Address { protocol, ip: socket.ip(), port: socket.port() }
}

fn tcp(text: &str) -> Address {
    address(Protocol::Tcp, text)
}

fn virtual_of(address: Address, scheduler: &str, flags: Flags, timeout: u32) -> VirtualServer {
    VirtualServer { address, scheduler: scheduler.parse().unwrap(), flags, timeout }
}

fn real(text: &str, weight: u32, forwarding: Forwarding) -> RealServer {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    RealServer { ip: socket.ip(), port: socket.port(), weight, forwarding }
}

#[test]
fn requests_are_those_of_ipvsadm() {
    let web = tcp("10.0.0.1:80");
    let web6 = tcp("[fd00::1]:80");
    let (dns, sctp) = (address(Protocol::Udp, "10.0.0.1:53"), address(Protocol::Sctp, "10.0.0.1:38412"));
    let persistent = Flags::PERSISTENT;
    let masquerade = Forwarding::Masquerade;
    let requests: &[(&str, &[Request])] = &[
        ("ipvsadm -A -t 10.0.0.1:80 -s rr", &[Request::AddVirtual(virtual_of(web, "rr", Flags::default(), 0))]),
        (
            "ipvsadm -A -u 10.0.0.1:53 -s wrr -p 10800",
            &[Request::AddVirtual(virtual_of(dns, "wrr", persistent, 10800))],
        ),
        (
            "ipvsadm -A --sctp-service 10.0.0.1:38412 -s sh",
            &[Request::AddVirtual(virtual_of(sctp, "sh", Flags::default(), 0))],
        ),
        (
            "ipvsadm -A -t [fd00::1]:80 -s mh -b mh-port",
            &[Request::AddVirtual(virtual_of(web6, "mh", Flags::SCHEDULER_2, 0))],
        ),
        ("ipvsadm -E -t 10.0.0.1:80 -s lc -p 60", &[Request::SetVirtual(virtual_of(web, "lc", persistent, 60))]),
        (
            "ipvsadm -a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 1",
            &[Request::AddReal(web, real("10.1.0.1:8080", 1, masquerade))],
        ),
        (
            "ipvsadm -a -t [fd00::1]:80 -r [fd00:1::1]:8080 -m -w 1",
            &[Request::AddReal(web6, real("[fd00:1::1]:8080", 1, masquerade))],
        ),
        (
            "ipvsadm -e -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 0",
            &[Request::SetReal(web, real("10.1.0.1:8080", 0, masquerade))],
        ),
        (
            "ipvsadm -Ln",
            &[
                Request::ListVirtual,
                Request::ListReal(web),
                Request::ListReal(dns),
                Request::ListReal(sctp),
                Request::ListReal(web6),
            ],
        ),
        ("ipvsadm --set 900 120 300", &[Request::SetTimeouts(Timeouts { tcp: 900, tcp_fin: 120, udp: 300 })]),
        ("ipvsadm -L --timeout", &[Request::GetTimeouts]),
        (
            "ipvsadm -d -t 10.0.0.1:80 -r 10.1.0.1:8080",
            // The tool names what it does not need to: a weight, and what it would have added.
            &[Request::DeleteReal(web, real("10.1.0.1:8080", 1, Forwarding::DirectRoute))],
        ),
        ("ipvsadm -D -t 10.0.0.1:80", &[Request::DeleteVirtual(web)]),
        ("ipvsadm -D -t 10.0.0.9:80", &[Request::DeleteVirtual(tcp("10.0.0.9:80"))]),
        (
            "ipvsadm -A -t 10.0.0.2:80 -s nosuch",
            &[Request::AddVirtual(virtual_of(tcp("10.0.0.2:80"), "nosuch", Flags::default(), 0))],
        ),
        ("ipvsadm -C", &[Request::Flush]),
    ];
    for (command, requests) in requests {
        let sent: Vec<Vec<u8>> =
            captured::SENT.iter().filter(|(of, _)| of == command).map(|(_, text)| bytes(text)).collect();
        let ours: Vec<Vec<u8>> = requests.iter().map(serialized).collect();
        assert_eq!(ours, sent, "{command}");
    }
    let known: Vec<&str> = requests.iter().map(|(command, _)| *command).collect();
    assert!(captured::SENT.iter().all(|(command, _)| known.contains(command)), "every captured command is compared");
    assert_eq!(serialized(&Request::GetVersion), [15, 1, 0, 0]);
}

fn serialized(request: &Request) -> Vec<u8> {
    let message = request.message(28);
    assert_eq!(message.message_type(), 28);
    let mut bytes = vec![0; NetlinkSerializable::buffer_len(&message)];
    message.serialize(&mut bytes);
    bytes
}

fn answers(command: &str, kind: u8) -> Vec<Vec<u8>> {
    let of = captured::ANSWERED.iter().filter(|(of, _)| *of == command).map(|(_, text)| bytes(text));
    of.filter(|bytes| bytes[0] == kind).collect()
}

#[test]
fn answers_of_a_kernel_are_read() {
    let servers: Vec<_> =
        answers("ipvsadm -Ln", NEW_SERVICE).iter().map(|payload| virtual_server(payload).unwrap().unwrap()).collect();
    assert_eq!(servers.len(), 4);
    let expected = [
        virtual_of(tcp("10.0.0.1:80"), "lc", Flags::PERSISTENT, 60),
        virtual_of(address(Protocol::Udp, "10.0.0.1:53"), "wrr", Flags::PERSISTENT, 10800),
        virtual_of(address(Protocol::Sctp, "10.0.0.1:38412"), "sh", Flags::default(), 0),
        virtual_of(tcp("[fd00::1]:80"), "mh", Flags::SCHEDULER_2, 0),
    ];
    for server in expected {
        assert!(servers.contains(&server), "{server:?} in {servers:?}");
    }

    let reals = answers("ipvsadm -Ln", NEW_DEST);
    let of = |payload: &Vec<u8>, of| real_server(payload, &of).unwrap();
    assert_eq!(reals.len(), 2);
    assert_eq!(
        of(&reals[0], tcp("10.0.0.1:80")),
        (real("10.1.0.1:8080", 0, Forwarding::Masquerade), Connections::default())
    );
    assert_eq!(
        of(&reals[1], tcp("[fd00::1]:80")),
        (real("[fd00:1::1]:8080", 1, Forwarding::Masquerade), Connections::default())
    );

    let limits = answers("ipvsadm -L --timeout", SET_CONFIG);
    assert_eq!(timeouts(&limits[0]).unwrap(), Timeouts { tcp: 900, tcp_fin: 120, udp: 300 });
    let versions = answers("ipvsadm -A -t 10.0.0.1:80 -s rr", 14);
    assert_eq!(version(&versions[0]).unwrap().to_string(), "1.2.1");
}

#[test]
fn counts_of_connections_are_read() {
    let mut payload = answers("ipvsadm -Ln", NEW_DEST).remove(0);
    for (kind, count) in [(DEST_ACTIVE_CONNS, 7_u32), (DEST_INACT_CONNS, 8), (DEST_PERSIST_CONNS, 9)] {
        let header = [8_u16.to_ne_bytes(), kind.to_ne_bytes()].concat();
        let place = payload.windows(4).position(|window| window == header).unwrap();
        payload[place + 4..place + 8].copy_from_slice(&count.to_ne_bytes());
    }
    let (_, connections) = real_server(&payload, &tcp("10.0.0.1:80")).unwrap();
    assert_eq!(connections, Connections { active: 7, inactive: 8, persistent: 9 });
}

#[test]
fn what_is_cut_short_is_an_error_and_no_panic() {
    let answer = answers("ipvsadm -Ln", NEW_SERVICE).remove(0);
    for length in 0..answer.len() {
        // Statistics at the end are not looked at, but the length of what contains them is.
        assert!(virtual_server(&answer[..length]).is_err(), "{length}");
    }
    let answer = answers("ipvsadm -Ln", NEW_DEST).remove(0);
    for length in 0..answer.len() {
        assert!(real_server(&answer[..length], &tcp("10.0.0.1:80")).is_err(), "{length}");
    }
    for place in 0..answer.len() {
        let mut broken = answer.clone();
        broken[place] ^= 0xff;
        // Whatever comes of it.
        let _ = real_server(&broken, &tcp("10.0.0.1:80"));
    }
}

#[test]
fn virtual_servers_with_a_mark_are_not_ours() {
    let mark = nested(
        SERVICE,
        &[
            short(SVC_AF, AF_INET),
            number(5, 42),
            DefaultNla::new(SVC_SCHED_NAME, b"rr\0".to_vec()),
            number(SVC_TIMEOUT, 0),
        ],
    );
    let mut bytes = vec![1, 1, 0, 0];
    let mut attribute = vec![0; mark.buffer_len()];
    mark.emit(&mut attribute);
    bytes.extend(attribute);
    assert_eq!(virtual_server(&bytes).unwrap(), None);
}

#[test]
fn names_of_schedulers() {
    for good in ["rr", "wrr", "mh", "fifteen-letters"] {
        assert_eq!(good.parse::<Scheduler>().unwrap().as_str(), good);
    }
    for bad in ["", "sixteen-letters!", "a b", "r\0", "ß"] {
        assert!(bad.parse::<Scheduler>().is_err(), "{bad:?}");
    }
}
