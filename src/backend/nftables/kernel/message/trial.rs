//! A table of its own, to be looked at by the kernel and not to be kept: what `nft` makes of ours, as far as the rules take it
//! that `nft` cannot write.

use super::{
    CHAIN_NAME, CREATE, FLAG_EVAL, FLAG_MAP, FLAG_TIMEOUT, NEW_CHAIN, NEW_SET, NEW_TABLE, REQUEST, SET_FLAGS,
    SET_KEY_LENGTH, SET_VALUE_LENGTH, SET_VALUE_TYPE, Transaction, length,
};
use crate::backend::nftables::names::TRIAL;
use crate::backend::nftables::ruleset::Set;
use crate::net::IpFamily;
use crate::netlink::nf_tables::OF_SET;

/// `NFTA_SET_ID`: by it, rules of the same transaction could name a set that has no name yet. The kernel insists on one.
const SET_ID: u16 = 10;
/// `NFT_DATA_VALUE`
const PLAIN: u32 = 0;

impl Transaction {
    /// A table that is nobody's comes.
    pub fn trial(family: IpFamily) -> Transaction {
        let mut transaction = Transaction::about(family, TRIAL);
        let message = transaction.begin(NEW_TABLE, REQUEST | CREATE, 0);
        transaction.end(message);
        transaction
    }

    /// A set or a map comes. Its keys are no ranges.
    pub fn add_set(&mut self, set: Set, owner: usize) {
        let (shape, family) = (set.shape(), self.family);
        let mut flags = 0;
        if shape.value.is_some() {
            flags |= FLAG_MAP;
        }
        if shape.dynamic {
            flags |= FLAG_TIMEOUT | FLAG_EVAL;
        }
        let id = u32::try_from(owner).unwrap_or(u32::MAX);
        let message = self.begin(NEW_SET, REQUEST | CREATE, owner);
        self.name(OF_SET, &set.name());
        let mut number = |kind, number: u32| self.value(kind, &number.to_be_bytes());
        number(SET_KEY_LENGTH, length(shape.key, family));
        if let Some(value) = shape.value {
            number(SET_VALUE_LENGTH, length(value, family));
            number(SET_VALUE_TYPE, PLAIN);
        }
        number(SET_FLAGS, flags);
        number(SET_ID, id);
        self.end(message);
    }

    /// A chain comes.
    pub fn add_chain(&mut self, name: &str, owner: usize) {
        let message = self.begin(NEW_CHAIN, REQUEST | CREATE, owner);
        self.name(CHAIN_NAME, name);
        self.end(message);
    }
}
