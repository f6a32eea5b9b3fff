//! IPVS against a real kernel that has it: the tests of this binary run as root in a kernel of their own, which
//! `tests/vm/boot` starts (`make test-vm`). Elsewhere they fail. Each has a network namespace of its own, and with it a
//! table of virtual servers of its own.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "no module of a test can be reached from outside")]

mod netlink;
