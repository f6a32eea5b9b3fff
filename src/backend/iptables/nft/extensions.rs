//! Matches and targets of x_tables inside of nf_tables rules (kernel: `nft_compat`), from the bytes of
//! their structures. Pure.
//!
//! Layouts are those of 64-bit kernels (`uapi/linux/netfilter/xt_*.h`); others have other sizes, and
//! are not read.

use std::net::IpAddr;

use super::attributes::{is_zero, own_chain};
use crate::backend::iptables::render::one_in_for;
use crate::backend::iptables::ruleset::{Marking, Match, Target};
use crate::net::{IpFamily, Protocol};
use crate::plan::Backend;

/// `XT_MAX_COMMENT_LEN`
const COMMENT: usize = 256;
/// `XT_RECENT_NAME_LEN`
const RECENT_NAME: usize = 200;
/// `XT_RECENT_CHECK | XT_RECENT_REAP`
const RECENT_LOOK: u8 = 1 | 32;
/// `XT_RECENT_SET`
const RECENT_SET: u8 = 2;
/// `XT_ADDRTYPE_LOCAL`
const LOCAL: u16 = 1 << 2;
/// `XT_SCTP_DEST_PORTS`
const SCTP_TO_PORTS: u32 = 2;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`
const RANGE_OF_ADDRESS_AND_PORT: u32 = 3;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const RANGE_RANDOM_FULLY: u32 = 16;

/// A match.
pub(super) fn condition(name: &[u8], revision: u32, info: &[u8], family: IpFamily) -> Option<Match> {
    match (name, revision) {
        (b"comment", 0) => comment(Info::new(info, COMMENT)?),
        (b"tcp", 0) => tcp(Info::new(info, 16)?),
        (b"udp", 0) => udp(Info::new(info, 16)?),
        (b"sctp", 0) => sctp(Info::new(info, 296)?),
        (b"statistic", 0) => statistic(Info::new(info, 24)?),
        (b"recent", 1) => recent(Info::new(info, 232)?, family),
        (b"addrtype", 1) => address_type(Info::new(info, 8)?),
        _ => None,
    }
}

/// A target.
pub(super) fn target(name: &[u8], revision: u32, info: &[u8], family: IpFamily) -> Option<Target> {
    match (name, revision, family) {
        (b"MARK", 2, _) => mark(Info::new(info, 8)?),
        (b"DNAT", 2, _) => dnat(Info::new(info, 48)?, family),
        (b"MASQUERADE", 0, IpFamily::V4) => masquerade(Info::new(info, 24)?, true),
        (b"MASQUERADE", 0, IpFamily::V6) => masquerade(Info::new(info, 40)?, false),
        _ => None,
    }
}

/// A structure, taken from its beginning.
struct Info<'a>(&'a [u8]);

// === impl Info ===

impl<'a> Info<'a> {
    fn new(bytes: &'a [u8], size: usize) -> Option<Info<'a>> {
        (bytes.len() == size).then_some(Info(bytes))
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    /// A number in the host's order.
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// A number in the host's order.
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    /// A number in network order.
    fn port(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn zero(&mut self, count: usize) -> Option<()> {
        is_zero(self.bytes(count)?).then_some(())
    }

    fn rest_is_zero(self) -> Option<()> {
        is_zero(self.0).then_some(())
    }

    /// A text with zeros up to its size.
    fn text(&mut self, size: usize) -> Option<&'a [u8]> {
        let bytes = self.bytes(size)?;
        let (text, rest) = bytes.split_at(bytes.iter().position(|byte| *byte == 0)?);
        is_zero(rest).then_some(text)
    }

    /// An address of the family (`union nf_inet_addr`).
    fn address(&mut self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => {
                let ip: [u8; 4] = self.array()?;
                self.zero(12)?;
                Some(ip.into())
            }
            IpFamily::V6 => self.array::<16>().map(IpAddr::from),
        }
    }
}

/// `struct xt_comment_info`
fn comment(mut info: Info<'_>) -> Option<Match> {
    let text = std::str::from_utf8(info.text(COMMENT)?).ok()?;
    Some(Match::Comment(text.to_owned().into()))
}

/// `struct xt_tcp`: source ports, destination ports, option, flags, inversions; ports in the host's
/// order.
fn tcp(mut info: Info<'_>) -> Option<Match> {
    let port = ports(&mut info)?;
    info.rest_is_zero()?;
    Some(Match::Transport(Protocol::Tcp, port))
}

/// `struct xt_udp`
fn udp(mut info: Info<'_>) -> Option<Match> {
    let port = ports(&mut info)?;
    info.rest_is_zero()?;
    Some(Match::Transport(Protocol::Udp, port))
}

/// Any source port, and any destination port or one.
fn ports(info: &mut Info<'_>) -> Option<Option<u16>> {
    let any = (0, u16::MAX);
    let (source, destination) = ((info.u16()?, info.u16()?), (info.u16()?, info.u16()?));
    match destination {
        _ if source != any => None,
        to if to == any => Some(None),
        (first, last) => (first == last).then_some(Some(first)),
    }
}

/// `struct xt_sctp_info`: destination ports, source ports, chunk types, kind of their comparison, flags
/// of four chunk types (none of them set to be type 255) and how many count, what is compared,
/// inversions.
fn sctp(mut info: Info<'_>) -> Option<Match> {
    let (first, last) = (info.u16()?, info.u16()?);
    info.zero(4 + 256 + 4)?;
    for _ in 0..4 {
        let [kind, flag, mask]: [u8; 3] = info.array()?;
        (kind == 0xff && flag == 0 && mask == 0).then_some(())?;
    }
    info.zero(4)?;
    let port = match (info.u32()?, first, last) {
        (0, 0, 0) => None,
        (SCTP_TO_PORTS, first, last) if first == last => Some(first),
        _ => return None,
    };
    info.rest_is_zero()?;
    Some(Match::Transport(Protocol::Sctp, port))
}

/// `struct xt_statistic_info`: mode (0: random), inversion, probability, and what other modes use.
fn statistic(mut info: Info<'_>) -> Option<Match> {
    info.zero(4)?;
    let probability = info.u32()?;
    info.zero(4)?;
    // The tools work this out for the other mode whatever the mode is.
    (info.u32()? == probability).then_some(())?;
    info.rest_is_zero()?;
    one_in_for(probability.into()).map(Match::OneIn)
}

/// `struct xt_recent_mtinfo_v1`: age limit, hit count, what to do, inversion, list, side (0: source),
/// mask.
fn recent(mut info: Info<'_>, family: IpFamily) -> Option<Match> {
    let seconds = info.u32()?;
    info.zero(4)?;
    let [action] = info.array()?;
    info.zero(1)?;
    let list = own_chain(info.text(RECENT_NAME)?)?.into();
    info.zero(2)?;
    // An IPv4 address has zeros where the mask may have what it likes: without `--mask` there are ones.
    let mask: [u8; 16] = info.array()?;
    let is_whole = match family {
        IpFamily::V4 => mask == [0xff; 16] || (mask.starts_with(&[0xff; 4]) && is_zero(mask.get(4..)?)),
        IpFamily::V6 => mask == [0xff; 16],
    };
    is_whole.then_some(())?;
    info.rest_is_zero()?;
    match (action, seconds) {
        (RECENT_LOOK, 1..) => Some(Match::RecentlySeen { list, seconds, family }),
        (RECENT_SET, 0) => Some(Match::Remember { list, family }),
        _ => None,
    }
}

/// `struct xt_addrtype_info_v1`: types of the source and of the destination, inversions and limits.
fn address_type(mut info: Info<'_>) -> Option<Match> {
    let types = (info.u16()?, info.u16()?);
    info.rest_is_zero()?;
    match types {
        (LOCAL, 0) => Some(Match::SourceIsLocal),
        (0, LOCAL) => Some(Match::DestinationIsLocal),
        _ => None,
    }
}

/// `struct xt_mark_tginfo2`
fn mark(mut info: Info<'_>) -> Option<Target> {
    Some(Target::SetMark(Marking { value: info.u32()?, mask: info.u32()? }))
}

/// `struct nf_nat_range2`: flags, first and last address, first and last port, port to count from.
fn dnat(mut info: Info<'_>, family: IpFamily) -> Option<Target> {
    let flags = info.u32()?;
    let (first, last) = (info.address(family)?, info.address(family)?);
    let (first_port, last_port) = (info.port()?, info.port()?);
    info.rest_is_zero()?;
    let is_one = first == last && first_port == last_port;
    (flags == RANGE_OF_ADDRESS_AND_PORT && is_one).then_some(Target::Dnat(Backend { ip: first, port: first_port }))
}

/// `struct nf_nat_ipv4_multi_range_compat`, which begins with how many ranges there are, or `struct
/// nf_nat_range`: flags, and what is used without any of ours.
fn masquerade(mut info: Info<'_>, is_counted: bool) -> Option<Target> {
    if is_counted && info.u32()? != 1 {
        return None;
    }
    let random_fully = match info.u32()? {
        0 => false,
        RANGE_RANDOM_FULLY => true,
        _ => return None,
    };
    info.rest_is_zero()?;
    Some(Target::Masquerade { random_fully })
}
