//! Notices when somebody else takes something away from our tables. The kernel tells of every change; each transaction ends
//! with a message of its own, so who made it is known before it counts. (Kernel: `NFNLGRP_NFTABLES`.)

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::kernel::{SUBSYSTEM, table_name};
use super::names::TABLE;
use crate::net::IpFamily;
use crate::netlink::messages;
use crate::netlink::nf_tables::number;

/// What is known of the tables of both families. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Ports from which we change elements.
    own: Mutex<HashSet<u32>>,
    tables: [TableState; 2],
}

#[derive(Debug, Default)]
struct TableState {
    /// Transactions in which `nft` writes rules for us, and of which we were not told yet.
    expected: AtomicUsize,
    /// Whether something may have been taken away.
    disturbed: AtomicBool,
}

/// What one transaction did to one of our tables so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    writes_rules: bool,
    takes_away: bool,
}

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// Room for notifications: those of the biggest transactions, several times.
const ROOM: usize = 32 * 1024 * 1024;
const BUFFER: usize = 64 * 1024;
/// `NFT_MSG_NEWRULE`, `NFT_MSG_NEWGEN`, and `NFT_MSG_DEL…` of table, chain, rule, set and elements.
const NEW_RULE: u8 = 6;
const NEW_GENERATION: u8 = 15;
const DELETIONS: [u8; 5] = [2, 5, 8, 11, 14];
const ENOBUFS: i32 = 105;

// === impl Watch ===

impl Watch {
    /// What is changed from this port is changed by us.
    pub fn add_own(&self, port: u32) {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
    }

    /// `nft` is about to write rules for us.
    pub fn expect(&self, family: IpFamily) {
        self.table(family).expected.fetch_add(1, Ordering::SeqCst);
    }

    /// It did not.
    pub fn expect_no_more(&self, family: IpFamily) {
        self.table(family).take_expected();
    }

    /// Whether something may have been taken away since this was asked before.
    pub fn take_disturbed(&self, family: IpFamily) -> bool {
        self.table(family).disturbed.swap(false, Ordering::SeqCst)
    }

    /// Whether something may have been taken away.
    pub fn is_disturbed(&self, family: IpFamily) -> bool {
        self.table(family).disturbed.load(Ordering::SeqCst)
    }

    /// Listens until the process ends; `tell` is called for a family each time something may have been taken away.
    ///
    /// # Errors
    ///
    /// The kernel lets us not listen, or no more.
    pub async fn run<F: Future<Output = ()>>(self, mut tell: impl FnMut(IpFamily) -> F) -> io::Result<()> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        set_socket_recv_buffer_size_force(socket.socket_ref(), ROOM)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut transactions = HashMap::new();
        loop {
            buffer.clear();
            let disturbed = match socket.recv(&mut buffer).await {
                Ok(_) => self.take(&buffer, &mut transactions),
                // Told more than we could hear.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                    transactions.clear();
                    [true; 2]
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for (family, disturbed) in IpFamily::BOTH.into_iter().zip(disturbed) {
                if disturbed {
                    self.table(family).disturbed.store(true, Ordering::SeqCst);
                    tell(family).await;
                }
            }
        }
    }

    /// Takes note of messages; gives the families of which something was taken away. `transactions` are those under way, by
    /// the port they come from.
    fn take(&self, datagram: &[u8], transactions: &mut HashMap<u32, [Seen; 2]>) -> [bool; 2] {
        let mut disturbed = [false; 2];
        for message in messages(datagram).map_while(Result::ok) {
            let [kind, subsystem] = message.header.message_type.to_le_bytes();
            let port = message.header.port_number;
            if subsystem != SUBSYSTEM {
                continue;
            }
            if kind == NEW_GENERATION {
                let seen = transactions.remove(&port).unwrap_or_default();
                if !self.is_own(port) {
                    for ((disturbed, table), seen) in disturbed.iter_mut().zip(&self.0.tables).zip(seen) {
                        *disturbed |= table.is_disturbed_by(seen);
                    }
                }
            } else if let Some(i) = table_of(kind, message.payload)
                && let Some(seen) = transactions.entry(port).or_default().get_mut(i)
            {
                seen.writes_rules |= kind == NEW_RULE;
                seen.takes_away |= DELETIONS.contains(&kind);
            }
        }
        disturbed
    }

    fn is_own(&self, port: u32) -> bool {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner).contains(&port)
    }

    fn table(&self, family: IpFamily) -> &TableState {
        let [v4, v6] = &self.0.tables;
        match family {
            IpFamily::V4 => v4,
            IpFamily::V6 => v6,
        }
    }
}

// === impl TableState ===

impl TableState {
    /// Whether somebody else took something away in a transaction that has ended.
    fn is_disturbed_by(&self, seen: Seen) -> bool {
        let is_ours = seen.writes_rules && self.take_expected();
        seen.takes_away && !is_ours
    }

    /// One transaction of `nft` less is expected, if one was.
    fn take_expected(&self) -> bool {
        let less = |expected: usize| expected.checked_sub(1);
        self.expected.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

/// Which of our tables a message is about that tells of new rules, or that something was taken away.
fn table_of(kind: u8, payload: &[u8]) -> Option<usize> {
    let family = payload.first()?;
    let place = IpFamily::BOTH.iter().position(|of| number(*of) == *family)?;
    let is_of_interest = kind == NEW_RULE || DELETIONS.contains(&kind);
    (is_of_interest && table_name(payload).as_deref() == Some(TABLE)).then_some(place)
}
