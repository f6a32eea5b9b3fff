//! What ferrule leaves in the kernel is what a real kube-proxy left there, rule by rule.
//!
//! Each test runs the built binary in a network namespace of its own that looks like the node of
//! the recordings, and compares `iptables-save` and `ip6tables-save` with them. Needs root and
//! the iptables tools in both variants; a missing one is a failure.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "no module of a test can be reached from outside")]

#[path = "../suite/api/server.rs"]
mod fake_api;
mod nfacct;
mod node;
mod objects;
mod proxy;
mod recording;
mod saved;
mod source;

mod addresses;
mod cleanup;
mod comparator;
mod configurations;
mod events;
mod faults;
mod ipvs;
mod nftables;
mod restores;
mod samples;
mod steps;
mod takeover;
