//! The kernel's table of virtual servers (IPVS), over generic netlink: read, changed, with its settings.
//!
//! Knows nothing of Kubernetes.

pub mod message;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::{BitOr, ControlFlow, Sub};
use std::str::FromStr;

use netlink_packet_core::DecodeError;

use self::message::Request;
use crate::net::Protocol;
use crate::netlink::{Bus, Connection, End};

/// The table of the network namespace it was opened in.
pub struct Ipvs {
    connection: Connection,
    family: u16,
}

/// What names a virtual server: where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Protocol.
    pub protocol: Protocol,
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// Where clients connect to.
    pub address: Address,
    /// What chooses the real server of a new connection.
    pub scheduler: Scheduler,
    /// How it does so. Without [`Flags::HASHED`], which is the kernel's own.
    pub flags: Flags,
    /// Seconds for which a client stays with its real server, with [`Flags::PERSISTENT`].
    pub timeout: u32,
}

/// The name of a scheduler: `rr`, `lc`, or whatever the kernel has a module for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheduler {
    /// With zeros after it.
    name: [u8; Scheduler::MAX + 1],
}

/// Flags of a virtual server. (Kernel: `IP_VS_SVC_F_…`.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u32);

/// Where the connections to a virtual server go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// Its share of new connections; with 0 it gets none and keeps those it has.
    pub weight: u32,
    /// How packets reach it.
    pub forwarding: Forwarding,
}

/// How packets reach a real server. (Kernel: `IP_VS_CONN_F_FWD_MASK`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// With its address as their destination.
    Masquerade = 0,
    /// It is this host.
    Local = 1,
    /// In a tunnel.
    Tunnel = 2,
    /// As they are, to its link-layer address.
    DirectRoute = 3,
    /// Around a cache.
    Bypass = 4,
}

/// How many connections a real server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Established ones.
    pub active: u32,
    /// Those that begin or end, and those of UDP.
    pub inactive: u32,
    /// Clients that will come back to it. (Templates of persistent virtual servers.)
    pub persistent: u32,
}

/// How long connections without packets are remembered, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP. In a request, 0 leaves it as it is; so too below.
    pub tcp: u32,
    /// TCP after one side has ended it.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// The load balancer's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u8,
    /// The second.
    pub minor: u8,
    /// The third.
    pub patch: u8,
}

/// Why the kernel's table could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no load balancer, or not yet.
    #[error("this kernel has no IPVS: load module ip_vs (modprobe ip_vs), or use another mode")]
    NoIpvs,
    /// The kernel has no such scheduler, or not yet.
    #[error(
        "virtual server {address}: this kernel has no scheduler {scheduler}: load module ip_vs_{scheduler} \
         (modprobe ip_vs_{scheduler}), or choose another one (ipvs.scheduler, --ipvs-scheduler)"
    )]
    NoScheduler {
        /// The virtual server that was to have it.
        address: Address,
        /// Its name.
        scheduler: Scheduler,
    },
    /// What was to be added is there.
    #[error("{0} exists")]
    Exists(String),
    /// What was to be changed, removed or listed is not there.
    #[error("{0} does not exist")]
    Missing(String),
    /// The kernel refuses it for another reason, or cannot be asked.
    #[error("{subject}: {source}{}", in_words(.complaint.as_deref()))]
    Refused {
        /// What it was about.
        subject: String,
        /// The error number.
        source: io::Error,
        /// The kernel's words, if it had some.
        complaint: Option<String>,
    },
    /// The kernel's answer makes no sense.
    #[error("{subject}: {source}")]
    Malformed {
        /// What it was about.
        subject: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The table changed each time while it was listed.
    #[error("{0} changed while they were listed, time and again")]
    Interrupted(String),
}

/// How often an interrupted listing is begun anew.
const ATTEMPTS: usize = 5;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;

fn in_words(complaint: Option<&str>) -> String {
    complaint.map(|words| format!(" ({words})")).unwrap_or_default()
}

// === impl Ipvs ===

impl Ipvs {
    /// Finds the load balancer. Blocks, as all that follows.
    ///
    /// # Errors
    ///
    /// [`Error::NoIpvs`]; the kernel cannot be asked.
    pub fn open() -> Result<Ipvs, Error> {
        let failed = |source| Error::Refused { subject: "netlink".to_owned(), source, complaint: None };
        let mut connection = Connection::open(Bus::Generic).map_err(failed)?;
        let family = connection.family(message::FAMILY).map_err(|error| match error.raw_os_error() {
            Some(ENOENT) => Error::NoIpvs,
            _ => failed(error),
        })?;
        Ok(Ipvs { connection, family })
    }

    /// Its version.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn version(&mut self) -> Result<Version, Error> {
        self.ask(&Request::GetVersion, message::version)
    }

    /// How long connections are remembered.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        self.ask(&Request::GetTimeouts, message::timeouts)
    }

    /// Sets how long connections are remembered.
    ///
    /// # Errors
    ///
    /// A number of seconds that the kernel does not take.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), Error> {
        self.tell(&Request::SetTimeouts(timeouts))
    }

    /// Every virtual server that has an address, of both families, whoever made it.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked, or changes the table all the time.
    pub fn virtual_servers(&mut self) -> Result<Vec<VirtualServer>, Error> {
        Ok(self.list(&Request::ListVirtual, message::virtual_server)?.into_iter().flatten().collect())
    }

    /// Adds a virtual server, without real ones. The kernel loads the scheduler's module if it can.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::NoScheduler`], other refusals.
    pub fn add_virtual(&mut self, server: VirtualServer) -> Result<(), Error> {
        self.tell(&Request::AddVirtual(server))
    }

    /// Changes scheduler, flags and time limit; connections go on.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::NoScheduler`], other refusals.
    pub fn set_virtual(&mut self, server: VirtualServer) -> Result<(), Error> {
        self.tell(&Request::SetVirtual(server))
    }

    /// Removes a virtual server with its real ones.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], other refusals.
    pub fn delete_virtual(&mut self, address: Address) -> Result<(), Error> {
        self.tell(&Request::DeleteVirtual(address))
    }

    /// The real servers of a virtual one, with their connections.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if there is no such virtual server; otherwise as for [`Ipvs::virtual_servers`].
    pub fn real_servers(&mut self, of: Address) -> Result<Vec<(RealServer, Connections)>, Error> {
        self.list(&Request::ListReal(of), |payload| message::real_server(payload, &of))
    }

    /// Adds a real server to a virtual one. One that was removed a while ago still has its connections.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::Missing`] if there is no such virtual server, other refusals.
    pub fn add_real(&mut self, of: Address, server: RealServer) -> Result<(), Error> {
        self.tell(&Request::AddReal(of, server))
    }

    /// Changes the weight of a real server and how it is reached.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if there is no such virtual or real server, other refusals.
    pub fn set_real(&mut self, of: Address, server: RealServer) -> Result<(), Error> {
        self.tell(&Request::SetReal(of, server))
    }

    /// Removes a real server. What becomes of its connections depends on `net.ipv4.vs.expire_nodest_conn`.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if there is no such virtual or real server, other refusals.
    pub fn delete_real(&mut self, of: Address, server: RealServer) -> Result<(), Error> {
        self.tell(&Request::DeleteReal(of, server))
    }

    /// Removes all virtual servers of both families, whoever made them.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.tell(&Request::Flush)
    }

    fn tell(&mut self, request: &Request) -> Result<(), Error> {
        self.exchange(request, |_| ()).map(drop)
    }

    fn ask<T>(&mut self, request: &Request, decode: impl Fn(&[u8]) -> Result<T, DecodeError>) -> Result<T, Error> {
        let source = DecodeError::from("the kernel gave no answer");
        self.list(request, decode)?.pop().ok_or_else(|| Error::Malformed { subject: subject(request), source })
    }

    fn list<T>(
        &mut self,
        request: &Request,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..ATTEMPTS {
            let mut listed = Ok(Vec::new());
            let end = self.exchange(request, |payload| {
                if let Ok(all) = &mut listed {
                    match decode(payload) {
                        Ok(one) => all.push(one),
                        Err(error) => listed = Err(error),
                    }
                }
            })?;
            if end == End::Complete {
                return listed.map_err(|source| Error::Malformed { subject: subject(request), source });
            }
        }
        Err(Error::Interrupted(subject(request)))
    }

    fn exchange(&mut self, request: &Request, mut take: impl FnMut(&[u8])) -> Result<End, Error> {
        let ended = self.connection.exchange(request.message(self.family), request.flags(), |message| {
            take(message.payload);
            ControlFlow::Continue(())
        });
        ended.map_err(|error| self.refusal(request, error))
    }

    fn refusal(&self, request: &Request, source: io::Error) -> Error {
        let code = source.raw_os_error();
        match (code, request) {
            (Some(ENOENT), Request::AddVirtual(server) | Request::SetVirtual(server)) => {
                Error::NoScheduler { address: server.address, scheduler: server.scheduler }
            }
            (Some(EEXIST), _) => Error::Exists(subject(request)),
            // No such virtual server.
            (Some(ESRCH), Request::AddReal(of, _) | Request::SetReal(of, _) | Request::DeleteReal(of, _)) => {
                Error::Missing(format!("virtual server {of}"))
            }
            // No such real server.
            (Some(ENOENT | ESRCH), _) => Error::Missing(subject(request)),
            _ => Error::Refused {
                subject: subject(request),
                source,
                complaint: self.connection.complaint().map(str::to_owned),
            },
        }
    }
}

/// What a request is about.
fn subject(request: &Request) -> String {
    match request {
        Request::AddVirtual(VirtualServer { address, .. })
        | Request::SetVirtual(VirtualServer { address, .. })
        | Request::DeleteVirtual(address) => format!("virtual server {address}"),
        Request::ListVirtual | Request::Flush => "virtual servers".to_owned(),
        Request::AddReal(of, server) | Request::SetReal(of, server) | Request::DeleteReal(of, server) => {
            format!("real server {} of virtual server {of}", server.at())
        }
        Request::ListReal(of) => format!("real servers of virtual server {of}"),
        Request::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => {
            format!("time limits of IPVS (tcp {tcp} s, tcp fin {tcp_fin} s, udp {udp} s)")
        }
        Request::GetTimeouts => "time limits of IPVS".to_owned(),
        Request::GetVersion => "version of IPVS".to_owned(),
    }
}

// === impl Address ===

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol)
    }
}

// === impl RealServer ===

impl RealServer {
    /// What names it among those of a virtual server.
    pub fn at(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

// === impl Scheduler ===

impl Scheduler {
    /// The longest name, in bytes. (Kernel: `IP_VS_SCHEDNAME_MAXLEN`, with the zero after it.)
    pub const MAX: usize = 15;

    /// Its name.
    pub fn as_str(&self) -> &str {
        let length = self.name.iter().position(|byte| *byte == 0).unwrap_or(Self::MAX);
        self.name.get(..length).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(text: &str) -> Result<Scheduler, String> {
        let is_good = (1..=Self::MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut name = [0; Self::MAX + 1];
        match name.get_mut(..text.len()).filter(|_| is_good) {
            Some(place) => place.copy_from_slice(text.as_bytes()),
            None => return Err(format!("a scheduler has a name of 1 to {} printable characters: {text:?}", Self::MAX)),
        }
        Ok(Scheduler { name })
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Flags ===

impl Flags {
    /// A client stays with its real server.
    pub const PERSISTENT: Flags = Flags(0x1);
    /// It is in the kernel's table. The kernel's own.
    pub const HASHED: Flags = Flags(0x2);
    /// Each packet of UDP is a connection.
    pub const ONE_PACKET: Flags = Flags(0x4);
    /// The first of the three flags that schedulers have. `sh`: another real server where the chosen one cannot take
    /// more; `mh`: so too.
    pub const SCHEDULER_1: Flags = Flags(0x8);
    /// The second. `sh` and `mh`: choose by the client's port, too.
    pub const SCHEDULER_2: Flags = Flags(0x10);
    /// The third.
    pub const SCHEDULER_3: Flags = Flags(0x20);

    /// Whether all of these are set.
    pub fn contains(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl Sub for Flags {
    type Output = Flags;

    fn sub(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }
}

// === impl Version ===

impl Version {
    /// As the kernel writes it, a byte each.
    fn of(number: u32) -> Version {
        let [_, major, minor, patch] = number.to_be_bytes();
        Version { major, minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}
