//! Tests that need no privilege and no kernel: one fast binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod golden;
mod pipeline;
mod recorded_calls;
mod recordings;
