//! Messages as bytes. The kernel itself is asked in the tests with network namespaces.

use netlink_packet_core::NetlinkHeader;

use super::*;
use crate::netlink::encode;
use crate::netlink::tests::bytes;

/// A flow to 10.96.0.10:53 that leads to 10.244.1.5:8053, as Linux 6.18 tells of it.
const DNS: &str = "
    02 00 00 00
    34 00 01 80  14 00 01 80  08 00 01 00 0a f4 01 07  08 00 02 00 0a 60 00 0a
                 1c 00 02 80  05 00 01 00 11 00 00 00  06 00 02 00 27 10 00 00  06 00 03 00 00 35 00 00
    34 00 02 80  14 00 01 80  08 00 01 00 0a f4 01 05  08 00 02 00 0a f4 01 07
                 1c 00 02 80  05 00 01 00 11 00 00 00  06 00 02 00 1f 75 00 00  06 00 03 00 27 10 00 00
    08 00 03 00 00 00 01 ae
    08 00 07 00 00 00 00 77
    08 00 0c 00 12 34 56 78
    06 00 12 00 00 07 00 00
    08 00 0b 00 00 00 00 01";

fn decode(payload: &[u8]) -> Option<Entry> {
    let mut header = NetlinkHeader::default();
    // `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_NEW`
    header.message_type = 1 << 8;
    header.length = u32::try_from(16 + payload.len()).unwrap();
    Entry::of(NetfilterMessage::deserialize(&header, payload).ok()?)
}

#[test]
fn a_flow_is_read() {
    let entry = decode(&bytes(DNS)).unwrap();
    assert_eq!(entry.flow.destination, "10.96.0.10:53".parse().unwrap());
    assert_eq!(entry.flow.endpoint, Backend { ip: [10, 244, 1, 5].into(), port: 8053 });
    assert!(entry.flow.is_translated());
}

#[test]
fn what_is_not_udp_or_not_complete_is_no_entry() {
    let tcp = bytes(&DNS.replace("05 00 01 00 11", "05 00 01 00 06"));
    assert!(decode(&tcp).is_none(), "TCP");
    let sctp = bytes(&DNS.replace("05 00 01 00 11", "05 00 01 00 84"));
    assert!(decode(&sctp).is_none(), "SCTP");
    let whole = bytes(DNS);
    assert!(decode(&whole[..4]).is_none(), "no attribute");
    assert!(decode(&whole[..4 + 52]).is_none(), "no reply tuple");
    let no_original = [&whole[..4], &whole[4 + 52..]].concat();
    assert!(decode(&no_original).is_none(), "no original tuple");
    let no_port = bytes(&DNS.replace("06 00 03 00", "06 00 7f 00"));
    assert!(decode(&no_port).is_none(), "no destination port");
    for length in 0..whole.len() {
        decode(&whole[..length]);
    }
}

#[test]
fn a_deletion_names_the_flow() {
    let entry = decode(&bytes(DNS)).unwrap();
    let request = encode(delete_request(IpFamily::V4, &entry), NLM_F_REQUEST | NLM_F_ACK, 7);
    let expected = bytes(
        "58 00 00 00 02 01 05 00 07 00 00 00 00 00 00 00
         02 00 00 00
         34 00 01 80  14 00 01 80  08 00 01 00 0a f4 01 07  08 00 02 00 0a 60 00 0a
                      1c 00 02 80  05 00 01 00 11 00 00 00  06 00 02 00 27 10 00 00  06 00 03 00 00 35 00 00
         08 00 0c 00 12 34 56 78
         06 00 12 00 00 07 00 00",
    );
    assert_eq!(request, expected);
}

#[test]
fn a_listing_asks_for_udp_of_one_family() {
    let request = encode(list_request(IpFamily::V6, true), NLM_F_REQUEST | NLM_F_DUMP, 1);
    let expected = bytes(
        "38 00 00 00 01 01 01 03 01 00 00 00 00 00 00 00
         0a 00 00 00
         10 00 01 80  0c 00 02 80  05 00 01 00 11 00 00 00
         14 00 19 80  08 00 01 00 08 00 00 00  08 00 02 00 00 00 00 00",
    );
    assert_eq!(request, expected);
    let request = encode(list_request(IpFamily::V4, false), NLM_F_REQUEST | NLM_F_DUMP, 1);
    assert_eq!(request, bytes("14 00 00 00 01 01 01 03 01 00 00 00 00 00 00 00 02 00 00 00"));
}
