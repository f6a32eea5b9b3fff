//! What is said to the kernel's load balancer and what it answers, as bytes. Numbers are in the machine's own
//! order, but for ports. (Kernel: `include/uapi/linux/ip_vs.h`, `net/netfilter/ipvs/ip_vs_ctl.c`.)
//!
//! Requests are those that `ipvsadm` 1.31 sends, byte for byte.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};
use netlink_packet_generic::{GenlFamily, GenlMessage};

use super::{Address, Connections, Flags, Forwarding, RealServer, Scheduler, Timeouts, Version, VirtualServer};
use crate::net::Protocol;
use crate::netlink::{HEADER, nested};

/// The name of the load balancer's family of generic netlink. (`IPVS_GENL_NAME`.)
pub(super) const FAMILY: &str = "IPVS";

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Adds a virtual server.
    AddVirtual(VirtualServer),
    /// Changes what is not part of its address.
    SetVirtual(VirtualServer),
    /// Removes it, with its real servers.
    DeleteVirtual(Address),
    /// All of them.
    ListVirtual,
    /// Adds a real server to a virtual one.
    AddReal(Address, RealServer),
    /// Changes its weight and how it is reached.
    SetReal(Address, RealServer),
    /// Removes it.
    DeleteReal(Address, RealServer),
    /// Those of a virtual server.
    ListReal(Address),
    /// Sets how long connections are remembered.
    SetTimeouts(Timeouts),
    /// Asks that.
    GetTimeouts,
    /// Asks for the version.
    GetVersion,
    /// Removes all virtual servers, whoever made them.
    Flush,
}

/// Attributes after a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    command: u8,
    attributes: Vec<DefaultNla>,
}

// `IPVS_CMD_…`
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DEL_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const SET_DEST: u8 = 6;
const DEL_DEST: u8 = 7;
const GET_DEST: u8 = 8;
const SET_CONFIG: u8 = 12;
const GET_CONFIG: u8 = 13;
const GET_INFO: u8 = 15;
const FLUSH: u8 = 17;
/// `IPVS_GENL_VERSION`
const VERSION: u8 = 1;

// `IPVS_CMD_ATTR_…`
const SERVICE: u16 = 1;
const DEST: u16 = 2;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;

// `IPVS_SVC_ATTR_…`
const SVC_AF: u16 = 1;
const SVC_PROTOCOL: u16 = 2;
const SVC_ADDR: u16 = 3;
const SVC_PORT: u16 = 4;
const SVC_SCHED_NAME: u16 = 6;
const SVC_FLAGS: u16 = 7;
const SVC_TIMEOUT: u16 = 8;
const SVC_NETMASK: u16 = 9;

// `IPVS_DEST_ATTR_…`
const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_FWD_METHOD: u16 = 3;
const DEST_WEIGHT: u16 = 4;
const DEST_U_THRESH: u16 = 5;
const DEST_L_THRESH: u16 = 6;
const DEST_ACTIVE_CONNS: u16 = 7;
const DEST_INACT_CONNS: u16 = 8;
const DEST_PERSIST_CONNS: u16 = 9;
const DEST_ADDR_FAMILY: u16 = 11;
const DEST_TUN_TYPE: u16 = 13;
const DEST_TUN_PORT: u16 = 14;
const DEST_TUN_FLAGS: u16 = 15;

/// `IPVS_INFO_ATTR_VERSION`
const INFO_VERSION: u16 = 1;

/// `AF_INET` and `AF_INET6`
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Clients are told apart by their whole address: a mask for IPv4, the length of a prefix for IPv6.
const NETMASK_V4: u32 = u32::MAX;
const NETMASK_V6: u32 = 128;

/// `IP_VS_CONN_F_FWD_MASK`
const FORWARDING: u32 = 0x7;

// === impl Request ===

impl Request {
    /// Flags of netlink: whether the answer is a list, one message, or nothing but success.
    pub fn flags(&self) -> u16 {
        match self {
            Request::ListVirtual | Request::ListReal(_) => NLM_F_REQUEST | NLM_F_DUMP,
            Request::GetTimeouts | Request::GetVersion => NLM_F_REQUEST,
            _ => NLM_F_REQUEST | NLM_F_ACK,
        }
    }

    /// The message, for a family that the kernel gave this number.
    pub fn message(&self, family: u16) -> GenlMessage<Payload> {
        let mut message = GenlMessage::from_payload(self.payload());
        message.set_resolved_family_id(family);
        message
    }

    fn payload(&self) -> Payload {
        let real = |address, real| vec![service(address), dest(real)];
        let (command, attributes) = match self {
            Request::AddVirtual(server) => (NEW_SERVICE, vec![whole_service(server)]),
            Request::SetVirtual(server) => (SET_SERVICE, vec![whole_service(server)]),
            Request::DeleteVirtual(address) => (DEL_SERVICE, vec![service(address)]),
            Request::ListVirtual => (GET_SERVICE, Vec::new()),
            Request::AddReal(address, server) => (NEW_DEST, real(address, server)),
            Request::SetReal(address, server) => (SET_DEST, real(address, server)),
            Request::DeleteReal(address, server) => (DEL_DEST, real(address, server)),
            Request::ListReal(address) => (GET_DEST, vec![nested(SERVICE, &identity(address))]),
            Request::SetTimeouts(timeouts) => {
                let all =
                    [(TIMEOUT_TCP, timeouts.tcp), (TIMEOUT_TCP_FIN, timeouts.tcp_fin), (TIMEOUT_UDP, timeouts.udp)];
                (SET_CONFIG, all.into_iter().map(|(kind, seconds)| number(kind, seconds)).collect())
            }
            Request::GetTimeouts => (GET_CONFIG, Vec::new()),
            Request::GetVersion => (GET_INFO, Vec::new()),
            Request::Flush => (FLUSH, Vec::new()),
        };
        Payload { command, attributes }
    }
}

impl GenlFamily for Payload {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Payload {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

/// What names a virtual server.
fn identity(address: &Address) -> Vec<DefaultNla> {
    let protocol = address.protocol.number().into();
    vec![
        short(SVC_AF, family(address.ip)),
        short(SVC_PROTOCOL, protocol),
        ip(SVC_ADDR, address.ip),
        port(SVC_PORT, address.port),
    ]
}

/// What names a virtual server, where the kernel reads no more of it.
fn service(address: &Address) -> DefaultNla {
    described_service(address, "", Flags::default(), 0)
}

fn whole_service(server: &VirtualServer) -> DefaultNla {
    described_service(&server.address, server.scheduler.as_str(), server.flags, server.timeout)
}

fn described_service(address: &Address, scheduler: &str, flags: Flags, timeout: u32) -> DefaultNla {
    let mut attributes = identity(address);
    let name = [scheduler.as_bytes(), &[0]].concat();
    // Flags, and which of them are meant.
    let flags = [flags.0.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
    let netmask = if address.ip.is_ipv4() { NETMASK_V4 } else { NETMASK_V6 };
    attributes.push(DefaultNla::new(SVC_SCHED_NAME, name));
    attributes.push(DefaultNla::new(SVC_FLAGS, flags));
    attributes.push(number(SVC_TIMEOUT, timeout));
    attributes.push(number(SVC_NETMASK, netmask));
    nested(SERVICE, &attributes)
}

fn dest(server: &RealServer) -> DefaultNla {
    // No tunnel, and no limits to the number of connections.
    nested(
        DEST,
        &[
            short(DEST_ADDR_FAMILY, family(server.ip)),
            ip(DEST_ADDR, server.ip),
            port(DEST_PORT, server.port),
            number(DEST_FWD_METHOD, server.forwarding as u32),
            number(DEST_WEIGHT, server.weight),
            DefaultNla::new(DEST_TUN_TYPE, vec![0]),
            port(DEST_TUN_PORT, 0),
            short(DEST_TUN_FLAGS, 0),
            number(DEST_U_THRESH, 0),
            number(DEST_L_THRESH, 0),
        ],
    )
}

fn family(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn short(kind: u16, value: u16) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn port(kind: u16, value: u16) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// An address in the place for both families. (`union nf_inet_addr`.)
fn ip(kind: u16, value: IpAddr) -> DefaultNla {
    let mut bytes = match value {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.resize(16, 0);
    DefaultNla::new(kind, bytes)
}

// === answers ===

/// A virtual server, out of a message of the answer to [`Request::ListVirtual`]; `None` if it is one that has no
/// address but a mark, or a protocol of its own.
///
/// # Errors
///
/// Something is missing, or has another form.
pub fn virtual_server(payload: &[u8]) -> Result<Option<VirtualServer>, DecodeError> {
    let mut found = None;
    each(payload.get(HEADER..).unwrap_or_default(), |kind, value| {
        if kind == SERVICE {
            found = Some(service_of(value)?);
        }
        Ok(())
    })?;
    need(found, "a virtual server")
}

fn service_of(bytes: &[u8]) -> Result<Option<VirtualServer>, DecodeError> {
    let (mut af, mut protocol, mut addr, mut port, mut scheduler, mut flags, mut timeout) = Default::default();
    each(bytes, |kind, value| {
        match kind {
            SVC_AF => af = Some(u16::from_ne_bytes(sized(value)?)),
            SVC_PROTOCOL => protocol = Some(u16::from_ne_bytes(sized(value)?)),
            SVC_ADDR => addr = Some(sized(value)?),
            SVC_PORT => port = Some(u16::from_be_bytes(sized(value)?)),
            SVC_SCHED_NAME => scheduler = Some(scheduler_of(value)?),
            // What is meant follows.
            SVC_FLAGS => flags = Some(u32::from_ne_bytes(sized(value.get(..4).unwrap_or_default())?)),
            SVC_TIMEOUT => timeout = Some(u32::from_ne_bytes(sized(value)?)),
            _ => {}
        }
        Ok(())
    })?;
    // One with a mark has none.
    let number = protocol.and_then(|protocol: u16| protocol.try_into().ok());
    let Some(protocol) = number.and_then(Protocol::from_number) else { return Ok(None) };
    let ip = ip_of(need(af, "the family of a virtual server")?, need(addr, "the address of a virtual server")?)?;
    Ok(Some(VirtualServer {
        address: Address { protocol, ip, port: need(port, "the port of a virtual server")? },
        scheduler: need(scheduler, "the scheduler of a virtual server")?,
        flags: Flags(need(flags, "the flags of a virtual server")?) - Flags::HASHED,
        timeout: need(timeout, "the time limit of a virtual server")?,
    }))
}

fn scheduler_of(value: &[u8]) -> Result<Scheduler, DecodeError> {
    let name = value.split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok());
    let scheduler = name.and_then(|name| name.parse().ok());
    need(scheduler, "a scheduler with a name that it can have")
}

/// A real server and its connections, out of a message of the answer to [`Request::ListReal`] about a virtual server
/// with this address.
///
/// # Errors
///
/// Something is missing, or has another form.
pub fn real_server(payload: &[u8], of: &Address) -> Result<(RealServer, Connections), DecodeError> {
    let mut found = None;
    each(payload.get(HEADER..).unwrap_or_default(), |kind, value| {
        if kind == DEST {
            found = Some(dest_of(value, of)?);
        }
        Ok(())
    })?;
    need(found, "a real server")
}

fn dest_of(bytes: &[u8], of: &Address) -> Result<(RealServer, Connections), DecodeError> {
    // Kernels before 3.18 tell no family: it is the virtual server's.
    let mut af = family(of.ip);
    let (mut addr, mut port, mut forwarding, mut weight) = Default::default();
    let mut connections = Connections::default();
    each(bytes, |kind, value| {
        let number = || Ok::<_, DecodeError>(u32::from_ne_bytes(sized(value)?));
        match kind {
            DEST_ADDR_FAMILY => af = u16::from_ne_bytes(sized(value)?),
            DEST_ADDR => addr = Some(sized(value)?),
            DEST_PORT => port = Some(u16::from_be_bytes(sized(value)?)),
            DEST_FWD_METHOD => forwarding = Some(forwarding_of(number()? & FORWARDING)?),
            DEST_WEIGHT => weight = Some(number()?),
            DEST_ACTIVE_CONNS => connections.active = number()?,
            DEST_INACT_CONNS => connections.inactive = number()?,
            DEST_PERSIST_CONNS => connections.persistent = number()?,
            _ => {}
        }
        Ok(())
    })?;
    let server = RealServer {
        ip: ip_of(af, need(addr, "the address of a real server")?)?,
        port: need(port, "the port of a real server")?,
        weight: need(weight, "the weight of a real server")?,
        forwarding: need(forwarding, "how a real server is reached")?,
    };
    Ok((server, connections))
}

fn forwarding_of(number: u32) -> Result<Forwarding, DecodeError> {
    use Forwarding::{Bypass, DirectRoute, Local, Masquerade, Tunnel};
    let all = [Masquerade, Local, Tunnel, DirectRoute, Bypass];
    need(all.into_iter().find(|forwarding| *forwarding as u32 == number), "a way to reach a real server")
}

/// The answer to [`Request::GetTimeouts`].
///
/// # Errors
///
/// Something is missing, or has another form.
pub fn timeouts(payload: &[u8]) -> Result<Timeouts, DecodeError> {
    let (mut tcp, mut tcp_fin, mut udp) = Default::default();
    each(payload.get(HEADER..).unwrap_or_default(), |kind, value| {
        let place = match kind {
            TIMEOUT_TCP => &mut tcp,
            TIMEOUT_TCP_FIN => &mut tcp_fin,
            TIMEOUT_UDP => &mut udp,
            _ => return Ok(()),
        };
        *place = Some(u32::from_ne_bytes(sized(value)?));
        Ok(())
    })?;
    let need = |seconds| need(seconds, "a time limit");
    // A kernel without one of the protocols has no limit for it.
    Ok(Timeouts { tcp: need(tcp)?, tcp_fin: need(tcp_fin)?, udp: udp.unwrap_or_default() })
}

/// The answer to [`Request::GetVersion`].
///
/// # Errors
///
/// There is no version in it.
pub fn version(payload: &[u8]) -> Result<Version, DecodeError> {
    let mut found = None;
    each(payload.get(HEADER..).unwrap_or_default(), |kind, value| {
        if kind == INFO_VERSION {
            found = Some(Version::of(u32::from_ne_bytes(sized(value)?)));
        }
        Ok(())
    })?;
    need(found, "the load balancer's version")
}

/// Hands over type and value of each attribute.
fn each(bytes: &[u8], mut take: impl FnMut(u16, &[u8]) -> Result<(), DecodeError>) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        take(attribute.kind(), attribute.value())?;
    }
    Ok(())
}

fn sized<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| DecodeError::from(format!("an attribute of {} bytes instead of {N}", value.len())))
}

fn need<T>(found: Option<T>, what: &str) -> Result<T, DecodeError> {
    found.ok_or_else(|| DecodeError::from(format!("the kernel's answer lacks {what}")))
}

fn ip_of(family: u16, bytes: [u8; 16]) -> Result<IpAddr, DecodeError> {
    match (family, bytes) {
        (AF_INET, [a, b, c, d, ..]) => Ok(IpAddr::from([a, b, c, d])),
        (AF_INET6, bytes) => Ok(IpAddr::V6(Ipv6Addr::from(bytes))),
        _ => Err(DecodeError::from(format!("an address of family {family}"))),
    }
}

#[cfg(test)]
mod tests;
