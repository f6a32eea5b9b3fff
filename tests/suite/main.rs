//! Tests that need no privilege and no kernel: one fast binary.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends by a panic when something is not as expected"
)]

mod config;
mod golden;
mod pipeline;
mod recordings;
mod tidy;
