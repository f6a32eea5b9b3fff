//! What the nat table holds, asked of nf_tables itself over netlink.
//!
//! For the iptables programs of nf_tables a listing of a big table takes minutes: the kernel walks it
//! anew for every part of the answer. Asked for one chain at a time it answers in microseconds.

mod attributes;
mod decode;
mod extensions;

use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{DefaultNla, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};

use self::decode::Told;
use super::names::ChainName;
use crate::net::IpFamily;
use crate::netlink::{Bus, Connection, End, HEADER, Message};

/// Chains of the nat table of one family, as the kernel holds them.
pub trait Chains: Send + Sync {
    /// Hands over the name of every chain of the table; without a table, none. Blocks.
    ///
    /// # Errors
    ///
    /// The kernel's; `EINTR` if the tables change time and again while they are listed. No name has
    /// been handed over then.
    fn names(&self, name: &mut dyn FnMut(&str)) -> io::Result<()>;

    /// Hands over every rule of these chains, chain by chain and in order, as the text after `-A CHAIN `
    /// in the form of `iptables-save`, or `None` for a rule that this cannot read. A chain that is not
    /// there has no rules. Blocks.
    ///
    /// # Errors
    ///
    /// The same. The rules of chains before the one it came to have been handed over, and none of that
    /// one.
    fn rules(&self, chains: &[ChainName], rule: &mut dyn FnMut(&ChainName, Option<&str>)) -> io::Result<()>;
}

/// The table of the network namespace the calling thread is in, written by the iptables programs of
/// nf_tables.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    family: IpFamily,
}

/// How often a listing during which the tables changed is begun anew.
const ATTEMPTS: usize = 5;
/// `NFT_MSG_GETCHAIN`, `NFT_MSG_GETRULE`
const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;
const ENOENT: i32 = 2;
const EINTR: i32 = 4;

// === impl Kernel ===

impl Kernel {
    /// The table of a family.
    pub fn new(family: IpFamily) -> Kernel {
        Kernel { family }
    }

    /// Asks for a list, again if what is listed changed meanwhile; `begin` then forgets what `take` was
    /// given.
    fn list<T>(
        self,
        connection: &mut Connection,
        request: impl Fn() -> NetfilterMessage,
        found: &mut T,
        begin: impl Fn(&mut T),
        take: impl Fn(&mut T, &[u8]),
    ) -> io::Result<()> {
        let family = u8::from(family(self.family));
        for _ in 0..ATTEMPTS {
            begin(found);
            let end = connection.exchange(request(), NLM_F_REQUEST | NLM_F_DUMP, |Message { payload, .. }| {
                match payload.split_at_checked(HEADER) {
                    Some((&[of, 0, ..], attributes)) if of == family => take(found, attributes),
                    _ => return ControlFlow::Break(()),
                }
                ControlFlow::Continue(())
            });
            match end {
                Ok(End::Complete) => return Ok(()),
                Ok(End::Interrupted) => {}
                Ok(End::Stopped) => return Err(io::Error::other("nf_tables gave an answer that was not asked for")),
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

    fn request(self, message_type: u8, names: &[(u16, &str)]) -> NetfilterMessage {
        let attribute = |(kind, name): &(u16, &str)| DefaultNla::new(*kind, [name.as_bytes(), &[0]].concat());
        let inner = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::NfTables,
            message_type,
            attributes: names.iter().map(attribute).collect(),
        };
        NetfilterMessage::new(NetfilterHeader::new(family(self.family), 0, 0), inner)
    }
}

impl Chains for Kernel {
    fn names(&self, name: &mut dyn FnMut(&str)) -> io::Result<()> {
        let request = || self.request(GET_CHAIN, &[(decode::CHAIN_TABLE, decode::TABLE)]);
        // One after the other, each with a zero at its end.
        let mut found = String::new();
        self.list(&mut Connection::open(Bus::Netfilter)?, request, &mut found, String::clear, |found, message| {
            if let Some(name) = decode::chain(message) {
                found.push_str(name);
                found.push('\0');
            }
        })?;
        found.split_terminator('\0').for_each(name);
        Ok(())
    }

    fn rules(&self, chains: &[ChainName], rule: &mut dyn FnMut(&ChainName, Option<&str>)) -> io::Result<()> {
        let mut connection = Connection::open(Bus::Netfilter)?;
        let mut texts = Texts::default();
        for chain in chains {
            let names = [(decode::RULE_TABLE, decode::TABLE), (decode::RULE_CHAIN, chain.as_str())];
            let request = || self.request(GET_RULE, &names);
            self.list(&mut connection, request, &mut texts, Texts::clear, |texts, message| {
                texts.add(&decode::rule(message, self.family, chain.as_str()));
            })?;
            texts.iter().for_each(|text| rule(chain, text));
        }
        Ok(())
    }
}

/// The rules of one chain.
#[derive(Default)]
struct Texts {
    text: String,
    /// Where in the text each rule ends that could be read.
    ends: Vec<Option<usize>>,
}

// === impl Texts ===

impl Texts {
    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    fn add(&mut self, told: &Told) {
        self.ends.push(match told {
            Told::Elsewhere => return,
            Told::Foreign => None,
            Told::Rule(rule) => {
                // Writing to a String does not fail.
                let _ = write!(self.text, "{rule}");
                Some(self.text.len())
            }
        });
    }

    fn iter(&self) -> impl Iterator<Item = Option<&str>> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let text = self.text.get(start..(*end)?);
            start = end.unwrap_or(start);
            text
        })
    }
}

fn family(family: IpFamily) -> NetfilterProtoFamily {
    match family {
        IpFamily::V4 => NetfilterProtoFamily::IPv4,
        IpFamily::V6 => NetfilterProtoFamily::IPv6,
    }
}
