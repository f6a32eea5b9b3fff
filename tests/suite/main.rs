//! Tests that need no privilege and no kernel: one fast binary.

mod api;
