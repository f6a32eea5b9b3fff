//! Tests that need no privilege and no kernel: one fast binary.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends by a panic when something is not as expected"
)]

mod algebra;
mod api;
mod balanced;
mod cleanup;
mod clusters;
mod config;
mod decisions;
mod deploy;
mod elements;
mod equivalence;
mod incremental;
mod manifests;
mod mapped;
#[path = "../tracer/maps.rs"]
mod maps;
mod oracle;
mod pipeline;
mod recorded_answers;
mod recorded_calls;
mod recorded_metrics;
mod recorded_pages;
mod recorded_rules;
mod recordings;
mod regress;
mod rendered;
mod sizes;
mod tidy;
mod traced;
#[path = "../tracer/trace.rs"]
mod tracer;
mod verdicts;
mod virtual_servers;
