//! The table in the kernel, over netlink: elements are written and read here, without a program in between. (Rules are
//! written as text by `nft`, which knows how to describe them for listings; they are few and hardly ever change.)

mod message;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{DefaultNla, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};

use super::names::TABLE;
use super::ruleset::{Chain, Element, Set};
use crate::net::IpFamily;
use crate::netlink::{Bus, Connection, End, Message};

pub use message::{Command, SUBSYSTEM, SetHeader, Transaction, number, table_name};

/// The table of a family, in the network namespace of the thread that uses it first.
pub struct Table {
    family: IpFamily,
    connection: Option<Connection>,
}

/// What there is in the table, besides elements and rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Sets and maps, but for those without a name.
    pub sets: Vec<SetHeader>,
    /// Chains, by name.
    pub chains: Vec<String>,
}

/// An element with its comment.
pub type Commented = (Element, Option<Box<str>>);

/// The kernel refuses something.
#[derive(Debug, thiserror::Error)]
#[error("{}{error}", words.as_ref().map(|words| format!("{words}: ")).unwrap_or_default())]
pub struct Refused {
    /// Whom it was for.
    pub owner: usize,
    /// Why.
    pub error: io::Error,
    /// The kernel's words about it.
    pub words: Option<String>,
}

/// How often a listing during which the table changed is begun anew.
const ATTEMPTS: usize = 5;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;

// === impl Refused ===

impl Refused {
    /// Whether the kernel does not hold what it was taken to hold.
    pub fn shows_drift(&self) -> bool {
        matches!(self.error.raw_os_error(), Some(ENOENT | EEXIST | EBUSY))
    }
}

// === impl Table ===

impl Table {
    /// The table of a family.
    pub fn new(family: IpFamily) -> Table {
        Table { family, connection: None }
    }

    /// What there is in it; `None` if it is not there. Blocks.
    ///
    /// # Errors
    ///
    /// The kernel's; `EINTR` if it changes time and again while it is listed.
    pub fn contents(&mut self) -> io::Result<Option<Contents>> {
        let family = self.family;
        let by_table = [(message::OF_TABLE, TABLE)];
        let mut found = Contents::default();
        // Without the table, kernels differ in what they say to a list of what is in it.
        let begin = |found: &mut Contents| found.chains.clear();
        self.list(message::GET_CHAIN, &by_table, &mut found, begin, |found, message| {
            if table_name(message).as_deref() == Some(TABLE) {
                found.chains.extend(message::chain_name(message));
            }
        })?;
        let begin = |found: &mut Contents| found.sets.clear();
        self.list(message::GET_SET, &by_table, &mut found, begin, |found, message| {
            if table_name(message).as_deref() == Some(TABLE) {
                found.sets.extend(message::set_header(message, family).filter(|set| !set.name.starts_with("__")));
            }
        })?;
        Ok(Some(found).filter(|found| !found.chains.is_empty() || !found.sets.is_empty()))
    }

    /// Which of these chains have the rules that they shall have. Blocks.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn standing(&mut self, chains: &[Chain]) -> io::Result<BTreeSet<String>> {
        let family = self.family;
        let mut found: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        let by_table = [(message::OF_TABLE, TABLE)];
        let begin = |found: &mut HashMap<_, _>| found.clear();
        self.list(message::GET_RULE, &by_table, &mut found, begin, |found, message| {
            if table_name(message).as_deref() == Some(TABLE)
                && let Some((chain, expressions)) = message::rule(message)
            {
                found.entry(chain).or_default().push(expressions);
            }
        })?;
        let stands = |chain: &&Chain| {
            let told = found.get(&chain.name).map_or(&[][..], Vec::as_slice);
            message::are_rules_of(chain, family, told)
        };
        Ok(chains.iter().filter(stands).map(|chain| chain.name.clone()).collect())
    }

    /// The elements of one of our sets with their comments, and how many there are that ours cannot have. Blocks.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn elements(&mut self, set: Set) -> io::Result<(Vec<Commented>, usize)> {
        let (family, name) = (self.family, set.name());
        let names = [(message::OF_TABLE, TABLE), (message::OF_SET, name.as_str())];
        let mut found = (Vec::new(), 0);
        let begin = |found: &mut (Vec<Commented>, usize)| *found = (Vec::new(), 0);
        self.list(message::GET_SET_ELEM, &names, &mut found, begin, |(elements, strange), message| {
            *strange += message::elements(message, family, set, &mut |element, comment| {
                elements.push((element, comment));
            });
        })?;
        Ok(found)
    }

    /// Does all of a transaction, or nothing: then these of it are refused. Blocks.
    ///
    /// # Errors
    ///
    /// The kernel's, where it is not about a single message.
    pub fn commit(&mut self, transaction: Transaction) -> io::Result<Vec<Refused>> {
        if transaction.is_empty() {
            return Ok(Vec::new());
        }
        let (bytes, owners) = transaction.finish();
        let last = u32::try_from(owners.len()).map_err(io::Error::other)?;
        let refused = self.with(|connection| connection.transact(&bytes, last))?;
        let owner = |number: u32| owners.get((number as usize).checked_sub(1)?).copied();
        Ok(refused
            .into_iter()
            .map(|refusal| Refused {
                owner: owner(refusal.number).unwrap_or_default(),
                error: refusal.error,
                words: refusal.words,
            })
            .collect())
    }

    /// The port from which the table is changed, by which notifications tell who did it.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn port(&mut self) -> io::Result<u32> {
        self.with(|connection| connection.port())
    }

    /// Uses the connection. After an error, answers may be under way on it: another one is opened next time.
    fn with<T>(&mut self, work: impl FnOnce(&mut Connection) -> io::Result<T>) -> io::Result<T> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(Bus::Netfilter)?,
        };
        let done = work(&mut connection)?;
        self.connection = Some(connection);
        Ok(done)
    }

    /// Asks for a list, again if what is listed changed meanwhile; `begin` then forgets what `take` was given. What is not
    /// there is an empty list.
    fn list<T>(
        &mut self,
        message_type: u8,
        names: &[(u16, &str)],
        found: &mut T,
        begin: impl Fn(&mut T),
        take: impl Fn(&mut T, &[u8]),
    ) -> io::Result<()> {
        let family = number(self.family);
        for _ in 0..ATTEMPTS {
            begin(found);
            let request = self.request(message_type, names);
            let end = self.with(|connection| {
                connection.exchange(request, NLM_F_REQUEST | NLM_F_DUMP, |Message { payload, .. }| {
                    if payload.first() == Some(&family) {
                        take(found, payload);
                    }
                    ControlFlow::Continue(())
                })
            });
            match end {
                Ok(End::Complete | End::Stopped) => return Ok(()),
                Ok(End::Interrupted) => {}
                Err(error) => match error.raw_os_error() {
                    Some(ENOENT) => {
                        begin(found);
                        return Ok(());
                    }
                    Some(EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::from_raw_os_error(EINTR))
    }

    fn request(&self, message_type: u8, names: &[(u16, &str)]) -> NetfilterMessage {
        let attribute = |(kind, name): &(u16, &str)| DefaultNla::new(*kind, [name.as_bytes(), &[0]].concat());
        let inner = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::NfTables,
            message_type,
            attributes: names.iter().map(attribute).collect(),
        };
        let family = match self.family {
            IpFamily::V4 => NetfilterProtoFamily::IPv4,
            IpFamily::V6 => NetfilterProtoFamily::IPv6,
        };
        NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
    }
}
