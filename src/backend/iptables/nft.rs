//! What the nat table holds, asked of nf_tables itself over netlink.
//!
//! For the iptables programs of nf_tables a listing of a big table takes minutes: the kernel walks it
//! anew for every part of the answer. Asked for one chain at a time it answers in microseconds.

mod attributes;
mod decode;
mod extensions;

use std::fmt::Write as _;
use std::io;

use self::decode::Told;
use super::names::ChainName;
use crate::net::IpFamily;
use crate::netlink::nf_tables::{self, GET_CHAIN, GET_RULE, OF_CHAIN, OF_TABLE};
use crate::netlink::{Bus, Connection, HEADER};

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

// === impl Kernel ===

impl Kernel {
    /// The table of a family.
    pub fn new(family: IpFamily) -> Kernel {
        Kernel { family }
    }
}

impl Chains for Kernel {
    fn names(&self, name: &mut dyn FnMut(&str)) -> io::Result<()> {
        let names = [(OF_TABLE, decode::TABLE)];
        let mut connection = Connection::open(Bus::Netfilter)?;
        // One after the other, each with a zero at its end.
        let mut found = String::new();
        let take = |found: &mut String, message: &[u8]| {
            if let Some(name) = decode::chain(attributes(message)) {
                found.push_str(name);
                found.push('\0');
            }
        };
        nf_tables::list(&mut connection, self.family, GET_CHAIN, &names, &mut found, String::clear, take)?;
        found.split_terminator('\0').for_each(name);
        Ok(())
    }

    fn rules(&self, chains: &[ChainName], rule: &mut dyn FnMut(&ChainName, Option<&str>)) -> io::Result<()> {
        let mut connection = Connection::open(Bus::Netfilter)?;
        let mut texts = Texts::default();
        for chain in chains {
            let names = [(OF_TABLE, decode::TABLE), (OF_CHAIN, chain.as_str())];
            let take = |texts: &mut Texts, message: &[u8]| {
                texts.add(&decode::rule(attributes(message), self.family, chain.as_str()));
            };
            nf_tables::list(&mut connection, self.family, GET_RULE, &names, &mut texts, Texts::clear, take)?;
            texts.iter().for_each(|text| rule(chain, text));
        }
        Ok(())
    }
}

/// What follows netfilter's header.
fn attributes(message: &[u8]) -> &[u8] {
    message.get(HEADER..).unwrap_or_default()
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
