//! The table in the kernel, over netlink: elements are written and read here, without a program in between. (Rules are
//! written as text by `nft`, which knows how to describe them for listings; they are few and hardly ever change.)

mod message;

use std::collections::{BTreeSet, HashMap};
use std::io;

use super::names::TABLE;
use super::ruleset::{Chain, Element, Set};
use crate::net::IpFamily;
use crate::netlink::nf_tables::{self, GET_CHAIN, GET_RULE, GET_SET, GET_SET_ELEM, OF_SET, OF_TABLE};
use crate::netlink::{Bus, Connection, Refusal};

pub use message::{Command, SUBSYSTEM, SetHeader, Transaction, table_name};

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
#[error("{refusal}")]
pub struct Refused {
    /// Whom it was for.
    pub owner: usize,
    /// Why.
    pub refusal: Refusal,
}

const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;

// === impl Refused ===

impl Refused {
    /// Whether the kernel does not hold what it was taken to hold.
    pub fn shows_drift(&self) -> bool {
        matches!(self.refusal.error.raw_os_error(), Some(ENOENT | EEXIST | EBUSY))
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
        let by_table = [(OF_TABLE, TABLE)];
        let mut found = Contents::default();
        // Without the table, kernels differ in what they say to a list of what is in it.
        let begin = |found: &mut Contents| found.chains.clear();
        self.list(GET_CHAIN, &by_table, &mut found, begin, |found, message| {
            if table_name(message).as_deref() == Some(TABLE) {
                found.chains.extend(message::chain_name(message));
            }
        })?;
        let begin = |found: &mut Contents| found.sets.clear();
        self.list(GET_SET, &by_table, &mut found, begin, |found, message| {
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
        let by_table = [(OF_TABLE, TABLE)];
        let begin = |found: &mut HashMap<_, _>| found.clear();
        self.list(GET_RULE, &by_table, &mut found, begin, |found, message| {
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

    /// The elements of one of our sets with their comments, but for such as ours cannot have. Blocks.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn elements(&mut self, set: Set) -> io::Result<Vec<Commented>> {
        let (family, name) = (self.family, set.name());
        let names = [(OF_TABLE, TABLE), (OF_SET, name.as_str())];
        let mut found = Vec::new();
        self.list(GET_SET_ELEM, &names, &mut found, Vec::clear, |found, message| {
            message::elements(message, family, set, |element| found.push(element));
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
        self.transact(transaction.finish())
    }

    fn transact(&mut self, (bytes, owners): (Vec<u8>, Vec<usize>)) -> io::Result<Vec<Refused>> {
        let last = u32::try_from(owners.len()).map_err(io::Error::other)?;
        let refused = self.with(|connection| connection.transact(&bytes, last))?;
        let owner = |number: u32| owners.get((number as usize).checked_sub(1)?).copied();
        let refused = refused.into_iter();
        Ok(refused.map(|refusal| Refused { owner: owner(refusal.number).unwrap_or_default(), refusal }).collect())
    }

    /// Has the kernel look at all of a transaction, which changes nothing: these of it would be refused. Blocks.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn try_out(&mut self, transaction: Transaction) -> io::Result<Vec<Refused>> {
        self.transact(transaction.finish_without_end())
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

    /// Asks for a list; `begin` forgets what `take` was given.
    fn list<T>(
        &mut self,
        message_type: u8,
        names: &[(u16, &str)],
        found: &mut T,
        begin: impl Fn(&mut T),
        take: impl FnMut(&mut T, &[u8]),
    ) -> io::Result<()> {
        let family = self.family;
        self.with(|connection| nf_tables::list(connection, family, message_type, names, found, begin, take))
    }
}
