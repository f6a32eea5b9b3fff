//! Notices when somebody else takes something away from our tables. The kernel tells of every change; each transaction ends
//! with a message of its own, so who made it is known before it counts. (Kernel: `NFNLGRP_NFTABLES`.)

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::kernel::{SUBSYSTEM, number, table_name};
use super::names::TABLE;
use crate::net::IpFamily;
use crate::netlink::messages;

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

/// What one transaction did to our tables so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    writes_rules: [bool; 2],
    takes_away: [bool; 2],
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
        let less = |expected: usize| expected.checked_sub(1);
        let _ = self.table(family).expected.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
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
    fn take(&self, datagram: &[u8], transactions: &mut HashMap<u32, Seen>) -> [bool; 2] {
        let mut disturbed = [false; 2];
        for message in messages(datagram).map_while(Result::ok) {
            let [kind, subsystem] = message.header.message_type.to_le_bytes();
            if subsystem != SUBSYSTEM {
                continue;
            }
            let port = message.header.port_number;
            if kind == NEW_GENERATION {
                let seen = transactions.remove(&port).unwrap_or_default();
                if !self.is_own(port) {
                    for (i, table) in self.0.tables.iter().enumerate() {
                        let is = |seen: [bool; 2]| seen.get(i).copied().unwrap_or_default();
                        let less = |expected: usize| expected.checked_sub(1);
                        let is_ours = is(seen.writes_rules)
                            && table.expected.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
                        if let Some(place) = disturbed.get_mut(i) {
                            *place |= is(seen.takes_away) && !is_ours;
                        }
                    }
                }
                continue;
            }
            let family = message.payload.first().copied();
            let Some(i) = IpFamily::BOTH.iter().position(|of| Some(number(*of)) == family) else { continue };
            let is_about_rules = kind == NEW_RULE;
            if (is_about_rules || DELETIONS.contains(&kind)) && table_name(message.payload).as_deref() == Some(TABLE) {
                let seen = transactions.entry(port).or_default();
                let places = if is_about_rules { &mut seen.writes_rules } else { &mut seen.takes_away };
                if let Some(place) = places.get_mut(i) {
                    *place = true;
                }
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
