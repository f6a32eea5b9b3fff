//! Named packet counters of the kernel. Rules that count with one can be restored only if it is
//! there; kube-proxy makes them at its start.

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

/// The counters that kube-proxy's rules name.
pub const NAMES: [&str; 2] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"];

const ACCT_NEW: u16 = 7 << 8;
const REQUEST_ACK_CREATE: u16 = 0x1 | 0x4 | 0x400;
const NAME: u16 = 1;
const ERROR: u16 = 2;
/// `-EBUSY`: the answer if a counter of that name is to be made again.
const THERE: i32 = -16;

/// Makes a counter in the network namespace of the calling thread, unless it is there.
pub fn create(name: &str) {
    let mut value = name.as_bytes().to_vec();
    value.push(0);
    let mut attribute = Vec::new();
    attribute.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
    attribute.extend(NAME.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);

    let mut message = Vec::new();
    message.extend(u32::try_from(16 + 4 + attribute.len()).unwrap().to_ne_bytes());
    message.extend(ACCT_NEW.to_ne_bytes());
    message.extend(REQUEST_ACK_CREATE.to_ne_bytes());
    message.extend([0; 8]); // sequence number, port id
    message.extend([0; 4]); // family, version, resource id
    message.extend(attribute);

    let mut socket = Socket::new(NETLINK_NETFILTER).expect("a netfilter netlink socket");
    socket.bind_auto().expect("bind a netlink socket");
    socket.send(&message, 0).expect("send to the kernel");
    let (answer, _) = socket.recv_from_full().expect("an answer of the kernel");
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    assert!(kind == ERROR && matches!(code, 0 | THERE), "the kernel did not make the counter {name}: {code}");
}
