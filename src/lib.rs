//! ferrule programs Kubernetes Services into a node's kernel, as kube-proxy does.
//!
//! ```text
//! API server or manifests -> source -> ClusterState -> topology -> Plan -> compile -> diff -> apply -> kernel
//!                           `- IO -'   `----------- pure: no tokio, fs, process, clock, log ---------'   `IO'
//! ```
//!
//! Modules are declared so that each uses only those before it: nothing calls back up the line. See
//! ARCHITECTURE.md for the code map and the invariants.

pub mod net;

pub mod model;

pub mod cluster;
pub mod topology;

pub mod plan;

pub mod config;
pub mod source;

pub mod command;
pub mod http;
pub mod netlink;

pub mod backend;

pub mod sync;

pub mod conntrack;

pub mod events;
pub mod health;

pub mod instance;
pub mod sysctl;
pub mod telemetry;

pub mod cleanup;
pub mod startup;

pub mod metrics;

pub mod debug_server;

pub mod run;

pub mod cli;

#[cfg(feature = "fixtures")]
pub mod fixtures;
