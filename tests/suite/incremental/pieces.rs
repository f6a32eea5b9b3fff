//! A sync that is done in pieces ends where one ends that is done at once, whatever changes in between.

use std::io;

use ferrule::backend::iptables::apply::{Iptables, Piece};
use ferrule::backend::iptables::names::ChainName;
use ferrule::backend::iptables::nft::Chains;
use ferrule::backend::iptables::ruleset::Table;
use ferrule::backend::iptables::tools::Variant;
use ferrule::command::fake::{FakeKernel, KernelRule};
use ferrule::net::IpFamily;
use proptest::prelude::*;

use super::{Move, Rig, assert_same, clusters, fresh, moves, runtime, start};

const EINTR: i32 = 4;
/// In the text of rules that only the programs can put into words.
pub(super) const UNREADABLE: &str = "unreadable";

/// In pieces of which size a proxy does its work, and whether it is told of chains without the programs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pieces {
    Usual,
    Small(Piece),
    /// It cannot be told.
    Unlisted(Piece),
}

pub(super) fn pieces() -> impl Strategy<Value = Pieces> {
    // There are hundreds of chains to remove where a layout ends.
    let hooks = prop_oneof![1 => 1..5usize, 9 => 50..300usize];
    let piece = (1..20usize, 1..20usize, hooks, 1..2_000usize);
    let piece = piece.prop_map(|(lines, chains, hooks, bytes)| Piece { lines, chains, hooks, bytes });
    let all_at_once =
        (1..2_000usize).prop_map(|bytes| Piece { lines: usize::MAX, chains: usize::MAX, hooks: usize::MAX, bytes });
    prop_oneof![
        4 => piece.clone().prop_map(Pieces::Small),
        1 => piece.prop_map(Pieces::Unlisted),
        1 => all_at_once.prop_map(Pieces::Unlisted),
    ]
}

/// The nat table as nf_tables tells of it.
struct NatTable {
    kernel: FakeKernel,
    family: IpFamily,
    gone: bool,
}

impl Chains for NatTable {
    fn names(&self, name: &mut dyn FnMut(&str)) -> io::Result<()> {
        if self.gone {
            return Err(io::Error::from_raw_os_error(EINTR));
        }
        self.kernel.tables(self.family).chains(Table::Nat).for_each(|(chain, _)| name(chain));
        Ok(())
    }

    fn rules(&self, chains: &[ChainName], rule: &mut dyn FnMut(&ChainName, Option<&str>)) -> io::Result<()> {
        if self.gone {
            return Err(io::Error::from_raw_os_error(EINTR));
        }
        let tables = self.kernel.tables(self.family);
        for chain in chains {
            for known in tables.chain(Table::Nat, chain.as_str()).into_iter().flat_map(|found| &found.rules) {
                let text = match known {
                    KernelRule::Known(known) => Some(known.to_string()).filter(|text| !text.contains(UNREADABLE)),
                    KernelRule::Foreign(_) => None,
                };
                rule(chain, text.as_deref());
            }
        }
        Ok(())
    }
}

// === impl Pieces ===

impl Pieces {
    pub(super) fn of(
        self,
        backend: Iptables<FakeKernel>,
        kernel: &FakeKernel,
        family: IpFamily,
    ) -> Iptables<FakeKernel> {
        let table = |gone| NatTable { kernel: kernel.clone(), family, gone };
        match self {
            // So that each is tried with one family or the other: what the programs say, and what the kernel says.
            Pieces::Usual if family == IpFamily::V6 && backend.variant() == Variant::Nft => {
                backend.with_chains(table(false))
            }
            Pieces::Usual => backend,
            Pieces::Small(piece) => backend.in_pieces(piece).with_chains(table(false)),
            Pieces::Unlisted(piece) => backend.in_pieces(piece).with_chains(table(true)),
        }
    }
}

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn changes_between_pieces_end_like_a_fresh_start(
        start in (start(), pieces()), moves in moves(0..=1),
    ) {
        runtime().block_on(async {
            let mut rig = Rig::start_in(start).await;
            for Move { step, faults, merged } in &moves {
                for (after, fault) in faults {
                    rig.kernel.inject(*after, *fault);
                }
                rig.step(step).await;
                if !merged {
                    let _ = rig.piece().await;
                }
            }
            rig.sync_at_last().await;
            assert_same(&rig.tables(), &fresh(&rig).await);
            rig.pipeline.mark_everything();
            prop_assert_eq!(rig.sync_at_last().await.written, 0);
            Ok(())
        })?;
    }
}
