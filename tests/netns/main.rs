//! Real packets: the built binary in network namespaces, with real connections, real connection
//! tracking and the real iptables programs. See README.md beside this file.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "all of this crate is a test: what goes wrong is to end it"
)]

mod comparison;
#[path = "../suite/api/server.rs"]
mod fake_api;
mod objects;
mod proxy;
mod rules;
mod tools;
#[path = "../tracer/trace.rs"]
mod tracer;
mod traffic;
mod world;

/// Makes four tests out of each function: for both kinds of iptables programs and both families.
macro_rules! matrix {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use crate::tools::Variant;
            use crate::world::{Case, Family};

            #[test]
            fn legacy_ipv4() {
                super::$name(Case { variant: Variant::Legacy, family: Family::V4 });
            }

            #[test]
            fn legacy_ipv6() {
                super::$name(Case { variant: Variant::Legacy, family: Family::V6 });
            }

            #[test]
            fn nft_ipv4() {
                super::$name(Case { variant: Variant::Nft, family: Family::V4 });
            }

            #[test]
            fn nft_ipv6() {
                super::$name(Case { variant: Variant::Nft, family: Family::V6 });
            }
        })*
    };
}

/// Makes two tests out of each function: for nftables mode and both families.
macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use crate::tools::Variant;
            use crate::world::{Case, Family};

            #[test]
            fn ipv4() {
                super::$name(Case { variant: Variant::Unused, family: Family::V4 });
            }

            #[test]
            fn ipv6() {
                super::$name(Case { variant: Variant::Unused, family: Family::V6 });
            }
        })*
    };
}

/// Makes six tests out of each function: those of the matrix, and those for nftables mode.
macro_rules! every_mode {
    ($($name:ident),* $(,)?) => {
        matrix!($($name),*);

        mod in_nftables_mode {
            use super::*;

            families!($($name),*);
        }
    };
}

mod acceptance;
mod balancing;
mod chains;
mod cleanup;
mod comparison_check;
mod crash;
mod doors;
mod faults;
mod health;
mod host;
mod ipvs;
mod kubeadm;
mod layouts;
mod metrics;
mod nftables;
mod one_change;
mod refusal;
mod refused;
mod restart;
mod rolling;
mod self_check;
mod udp_flows;
mod untouched;
