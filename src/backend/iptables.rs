//! iptables mode: the chains and rules kube-proxy writes, through `iptables-restore`.
//!
//! ```text
//! Plan --compile--> rules of each Service port --diff--> changes --render--> text --apply--> kernel
//! ```
//!
//! Rules are written in the form in which `iptables-save` prints them, so that what the kernel
//! holds can be compared with what it should hold as text, chain by chain.

mod applied;
mod batch;
pub mod compile;
pub mod diff;
pub mod names;
pub mod parse;
mod render;
pub mod restore;
mod round;
pub mod ruleset;
pub mod snapshot;

pub mod apply;
pub mod netlink;
pub mod nft;
pub mod tools;
mod variant;
