//! IPVS against a real kernel that has it: the tests of this binary run as root in a kernel of their own. Elsewhere they
//! fail. There are two: `tests/vm/boot` starts one that has no nf_tables (`make test-vm`), so the iptables programs are the
//! legacy ones; `tests/vm/boot-qemu` one that has (`make test-kernel`), slower by far, and there they are those of nft. Each
//! test has network namespaces of its own, and with them a table of virtual servers of its own. The cluster out of
//! namespaces, its pods and its clients are those of `tests/netns/`.

#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(unreachable_pub, reason = "no module of a test can be reached from outside")]
#![allow(dead_code, unused_imports, reason = "of the modules that other tests have as well, not all is needed")]

/// The cluster of the tests in network namespaces.
#[path = "../netns"]
mod netns {
    pub mod objects;
    pub mod proxy;
    pub mod rules;
    pub mod tools;
    pub mod traffic;
    pub mod world;
}

use netns::{objects, proxy, rules, tools, traffic, world};

/// Makes two tests out of each function, one for each family. The kernel says which iptables programs they are for.
macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use crate::kernel::prepare;
            use crate::world::{Case, Family};

            #[test]
            fn ipv4() {
                super::$name(Case { variant: prepare(), family: Family::V4 });
            }

            #[test]
            fn ipv6() {
                super::$name(Case { variant: prepare(), family: Family::V6 });
            }
        })*
    };
}

mod acceptance;
mod associations;
mod draining;
mod keeping;
mod kernel;
mod netlink;
mod switching;
mod with_nf_tables;
