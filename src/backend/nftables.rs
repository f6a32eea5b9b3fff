//! nftables mode: maps and sets that all Services share, and rules that do not depend on how many there are.
//!
//! What a Service is, is elements: its addresses in the set of their size, its endpoints in a map under those addresses
//! and a number each. A packet's way through a handful of chains is the same in a cluster of ten Services and of fifty
//! thousand; a change is elements that come and elements that go. (kube-proxy: `pkg/proxy/nftables`, which has a chain and
//! a map for each.)

pub mod apply;
pub mod compile;
pub mod diff;
pub mod kernel;
pub mod names;
pub mod queue;
pub mod render;
pub mod ruleset;
pub mod support;
pub mod watch;
