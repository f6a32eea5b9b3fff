//! IPVS mode: the kernel's own load balancer between the addresses of Services and endpoints.
//!
//! Virtual servers balance and translate. Around them, sets of addresses and a few dozen rules of iptables that refer to
//! those sets decide what is masqueraded and who may connect, and a link of its own holds the addresses, so that the
//! kernel takes packets for them as its own. (kube-proxy: `pkg/proxy/ipvs`.)

pub mod apply;
pub mod clear;
pub mod compare;
pub mod compile;
pub mod diff;
pub mod drain;
pub mod link;
pub mod names;
pub mod netlink;
pub mod render;
pub mod rules;
pub mod ruleset;
pub mod servers;
pub mod sets;
pub mod support;
