//! The algebra of differences: `patch(a, diff(a, b)) = b`, and `diff(b, b)` is empty.

use std::collections::BTreeSet;

use ferrule::backend::iptables::compile::{self, Layout};
use ferrule::backend::iptables::diff::{self, Changes, Held, Part};
use ferrule::backend::iptables::restore::Input as RestoreInput;
use ferrule::command::fake::{FakeKernel, Tables, Variant};
use ferrule::command::{Command, Run};
use ferrule::net::IpFamily;
use ferrule::plan::Plan;
use proptest::prelude::*;

use crate::clusters;
use crate::incremental::assert_same;
use crate::{equivalence, pipeline};

const MARK: u32 = 0x4000;

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn a_difference_leads_from_one_plan_to_the_other(
        a in clusters::input(3), b in clusters::input(3), from in clusters::layout(), to in clusters::layout(),
    ) {
        for family in IpFamily::BOTH {
            let (a, b) = (equivalence::plan(&a, family), equivalence::plan(&b, family));
            let [most, last] = difference((&a, from), (&b, to));
            let patched = patch(patch(equivalence::tables(&a, from), &most, family), &last, family);
            assert_same(&patched, &equivalence::tables(&b, to));
        }
    }

    #[test]
    fn there_is_no_difference_to_oneself(input in clusters::input(3), layout in clusters::layout()) {
        for family in IpFamily::BOTH {
            let plan = equivalence::plan(&input, family);
            let again = equivalence::plan(&input, family);
            prop_assert_eq!(difference((&plan, layout), (&again, layout)), [Vec::new(), Vec::new()]);
        }
    }
}

/// What differs between two plans in their layouts, without the parts in which nothing does; and what
/// only the first layout needs, which goes last.
fn difference((a, from): (&Plan, Layout), (b, to): (&Plan, Layout)) -> [Vec<Changes>; 2] {
    let (old, new) = (pipeline::style(a, MARK, from), pipeline::style(b, MARK, to));
    let names: BTreeSet<_> = a.services().keys().chain(b.services().keys()).collect();
    let services = names.into_iter().map(|name| {
        let held = |plan| Held { plan, style: &old, certain: true, hooked: true };
        let before = a.services().get(name).map(|plan| held(&**plan));
        diff::service(name, before.as_ref(), b.services().get(name).map(|plan| &**plan), &new, Part::Whole)
    });
    let base = |plan: &Plan, layout| compile::base(&plan.node, &pipeline::style(plan, MARK, layout));
    let passing = base(b, from.or(to));
    let most = std::iter::once(diff::base(&base(a, from), &passing)).chain(services);
    let last = diff::base(&passing, &base(b, to));
    [most.collect(), vec![last]].map(|parts: Vec<Changes>| parts.into_iter().filter(|part| !part.is_empty()).collect())
}

/// The kernel after `changes` were restored into it.
fn patch(tables: Tables, changes: &[Changes], family: IpFamily) -> Tables {
    let kernel = FakeKernel::new(Variant::Nft);
    kernel.load(tables);
    let input = RestoreInput::render(changes.iter());
    if input.is_empty() {
        return kernel.tables(family);
    }
    let program = match family {
        IpFamily::V4 => "iptables-restore",
        IpFamily::V6 => "ip6tables-restore",
    };
    let command =
        Command::new(program, &["-w", "5", "--noflush", "--counters"]).with_stdin(input.text.clone().into_bytes());
    let output = equivalence::RUNTIME.block_on(kernel.run(command, &mut |_| {})).expect("the program runs");
    assert!(output.success(), "{}\n{}", output.stderr, input.text);
    kernel.tables(family)
}
