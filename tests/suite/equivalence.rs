//! For any cluster and any packet: what the rules do is what the Plan says, wherever they stand.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ferrule::backend::iptables::apply;
use ferrule::backend::iptables::compile::Layout;
use ferrule::backend::iptables::netlink::Counters;
use ferrule::command::fake::{FakeKernel, Tables, Variant};
use ferrule::command::{Command, Run};
use ferrule::net::IpFamily;
use ferrule::plan::Plan;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::runtime::{Builder, Runtime};

use crate::clusters::{self, Input, PacketSeed, Sent};
use crate::tracer::Verdict;
use crate::{oracle, pipeline, verdicts};

pub(crate) static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn rules_do_what_the_plan_says(
        input in clusters::input(3),
        seeds in prop::collection::vec(clusters::packet_seed(), 24),
        layout in select(clusters::LAYOUTS.to_vec()),
    ) {
        for family in IpFamily::BOTH {
            let plan = plan(&input, family);
            let tables = tables(&plan, layout);
            for seed in &seeds {
                check(&plan, &tables, seed)?;
            }
        }
    }
}

/// What is made up covers what can happen: otherwise the test above would say little.
#[test]
fn packets_meet_every_fate() {
    let mut runner = TestRunner::deterministic();
    let strategy = (clusters::input(3), prop::collection::vec(clusters::packet_seed(), 24));
    let mut fates: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..200 {
        let (input, seeds) = strategy.new_tree(&mut runner).unwrap().current();
        let plan = plan(&input, IpFamily::V4);
        for seed in &seeds {
            let Sent { packet, remembered, .. } = seed.grow(&plan);
            for (verdict, _) in oracle::judge(&plan, &clusters::world(), &packet, &remembered).iter() {
                let from = if packet.interface.is_some() { "from outside" } else { "from here" };
                let fate = match verdict {
                    Verdict::Delivered { backend, masqueraded, remembers } => {
                        let hairpin = backend.ip == packet.source;
                        format!(
                            "delivered {from}, masqueraded: {masqueraded}, remembers: {remembers}, hairpin: {hairpin}"
                        )
                    }
                    other => format!("{other:?} {from}"),
                };
                *fates.entry(fate).or_default() += 1;
            }
        }
    }
    // Eight ways to be delivered, less those where an endpoint that is sent back to itself from
    // outside keeps its address; and refused, dropped or left alone.

    assert!(fates.len() >= 18 && fates.values().all(|count| *count >= 3), "{fates:#?}");
}

fn check(plan: &Plan, tables: &Tables, seed: &PacketSeed) -> Result<(), TestCaseError> {
    let world = clusters::world();
    let Sent { packet, remembered, seen } = seed.grow(plan);
    let rules = verdicts::trace(tables, &world, &packet, &seen);
    let says = oracle::judge(plan, &world, &packet, &remembered);
    prop_assert!(rules == says, "{packet:?}\nrules:\n{rules}plan:\n{says}{plan:#?}\n{tables}");
    Ok(())
}

pub(crate) fn plan(input: &Input, family: IpFamily) -> Plan {
    let addresses = clusters::interface_addresses();
    let state = pipeline::cluster(&input.node, &addresses, input.services.clone(), input.slices.clone());
    pipeline::plan(&state, &input.settings, family)
}

/// The rules of a first full sync, in the kernel.
pub(crate) fn tables(plan: &Plan, layout: Layout) -> Tables {
    let settings = apply::Settings { mark: 0x4000, drop_invalid: true, layout };
    let counters = Counters { invalid_dropped: true, localhost_accepted: true };
    let input = apply::first_input(plan, &settings, true, counters);
    let kernel = FakeKernel::new(Variant::Nft);
    let program = match plan.node.family {
        IpFamily::V4 => "iptables-restore",
        IpFamily::V6 => "ip6tables-restore",
    };
    let command = Command::new(program, &["--noflush"]).with_stdin(input.clone().into_bytes());
    let output = RUNTIME.block_on(kernel.run(command, &mut |_| {})).unwrap();
    assert!(output.success(), "{}\n{input}", output.stderr);
    kernel.tables(plan.node.family)
}
