//! Cases that were once found to go wrong, or could: told one by one.

use std::time::Duration;

use ferrule::backend::iptables::apply::{Iptables, Piece, Settings as Mode};
use ferrule::backend::iptables::compile::{Layout, Shared};
use ferrule::backend::iptables::diff::JUMPS;
use ferrule::backend::iptables::netlink::Counters;
use ferrule::backend::iptables::ruleset::Table;
use ferrule::backend::iptables::tools::Tools;
use ferrule::backend::{ApplyError, Backend as _, Intact, Scope};
use ferrule::command::fake::{FakeKernel, Fault, Refusal, Tables, Variant};
use ferrule::command::{Command, CommandError, Output, Run};
use ferrule::net::IpFamily;
use ferrule::plan::build::Settings;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::pieces::{Pieces, UNREADABLE};
use super::{Rig, Start, Step, assert_same, clusters, fresh, runtime};

/// What most proxies are given.
fn usual(variant: Variant) -> Start {
    let mut runner = TestRunner::deterministic();
    let settings = Settings {
        localhost_node_ports: true,
        external_ips: true,
        ..clusters::settings().new_tree(&mut runner).unwrap().current()
    };
    (variant, IpFamily::V4, settings, clusters::node().new_tree(&mut runner).unwrap().current(), Layout::default())
}

fn plain(i: usize, endpoints: u16) -> Step {
    let (service, slice) = clusters::plain_service(i, endpoints);
    Step::Service(i, Some(service), vec![slice])
}

const VARIANTS: [Variant; 2] = [Variant::Legacy, Variant::Nft];

#[test]
fn what_goes_after_a_held_lock_goes_with_its_rules() {
    for variant in VARIANTS {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.step(&plain(0, 1)).await;
            rig.sync().await.unwrap();
            rig.kernel.inject(0, Fault::Locked);
            rig.step(&plain(1, 1)).await;
            assert!(matches!(rig.sync().await, Err(ApplyError::Busy { .. })));
            rig.step(&Step::Service(0, None, Vec::new())).await;
            rig.kernel.take_calls();
            rig.sync().await.unwrap();
            for call in rig.kernel.calls() {
                assert!(call.output.as_ref().is_some_and(Output::success), "{call}");
            }
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

#[test]
fn a_chain_that_others_hold_on_to_holds_nothing_else_up() {
    for variant in VARIANTS {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.step(&plain(0, 1)).await;
            rig.sync().await.unwrap();
            let tables = rig.tables();
            let (held, _) = tables.chains(Table::Nat).find(|(name, _)| name.starts_with("KUBE-SVC-")).unwrap();
            let foreign = format!("-A OUTPUT -d 8.8.8.8/32 -j {held}\nCOMMIT");
            let text = tables.table_text(Table::Nat).replace("COMMIT", &foreign);
            let text = format!("{}{text}", tables.table_text(Table::Filter));
            rig.kernel.load(Tables::parse(IpFamily::V4, &text).unwrap());

            rig.kernel.take_calls();
            rig.step(&Step::Service(0, None, Vec::new())).await;
            rig.step(&plain(1, 1)).await;
            // It may say that it did not succeed, but it says so soon, and the rest is there.
            let _ = rig.sync().await;
            assert!(rig.kernel.calls().len() < 40, "{} calls", rig.kernel.calls().len());
            let now = rig.tables().to_string();
            assert!(now.contains("ns/svc1:http cluster IP"), "{now}");
            assert!(!now.contains("ns/svc0:http cluster IP"), "{now}");

            // Once the others let go, nothing is left.
            rig.kernel.load(Tables::parse(IpFamily::V4, &now.replace(&foreign.replace("\nCOMMIT", "\n"), "")).unwrap());
            rig.pipeline.mark_everything();
            rig.sync_at_last().await;
            rig.step(&Step::Restart(rig.settings.clone(), rig.layout)).await;
            rig.sync().await.unwrap();
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

/// Takes every rule of ours out of the nat table, as `iptables -t nat -F; iptables -t nat -X` does, and
/// tells nobody.
fn flush_nat(rig: &Rig) {
    let mut left = rig.tables();
    left.flush(Table::Nat);
    rig.kernel.load(left);
}

/// A change that comes between a flush and its discovery fails for reasons that are not its Service's.
#[test]
fn a_change_after_a_flush_is_not_to_blame() {
    for (variant, before, after) in
        VARIANTS.into_iter().flat_map(|variant| [(variant, 1, 0), (variant, 0, 1), (variant, 1, 2)])
    {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.step(&plain(0, before)).await;
            rig.step(&plain(1, 1)).await;
            rig.sync().await.unwrap();
            flush_nat(&rig);
            rig.step(&plain(0, after)).await;
            rig.sync_at_last().await;
            rig.look().await;
            rig.sync_at_last().await;
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

/// A Service that comes after a flush, alone.
#[test]
fn a_new_service_after_a_flush_is_not_to_blame() {
    for variant in VARIANTS {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.step(&plain(0, 1)).await;
            rig.sync().await.unwrap();
            flush_nat(&rig);
            rig.step(&plain(1, 1)).await;
            let report = rig.sync_at_last().await;
            assert_eq!(report.set_aside, 0);
            rig.look().await;
            rig.sync_at_last().await;
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

/// What the kernel refuses for a while is there once it no longer does, whatever it was.
#[test]
fn what_was_refused_for_a_while_is_tried_again() {
    let all = || [Refusal::AtLine, Refusal::AtCommit, Refusal::Somewhere];
    for (variant, refusal) in VARIANTS.into_iter().flat_map(|variant| all().map(|refusal| (variant, refusal))) {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.may_be_refused = true;
            (0..3).for_each(|i| rig.put_plain(i, 1));
            rig.sync().await.unwrap();
            rig.kernel.refuse("ns/svc1:http", refusal);
            rig.put_plain(1, 3);
            rig.put_plain(2, 2);
            assert_eq!(rig.sync().await.unwrap().set_aside, 1);
            let now = rig.tables().to_string();
            assert!(now.contains("ns/svc1:http cluster IP"), "its previous rules stay: {now}");
            // Others come and go meanwhile, and that is no reason to try.
            rig.kernel.take_calls();
            rig.put_plain(2, 3);
            assert_eq!(rig.sync().await.unwrap().set_aside, 1);
            for call in rig.kernel.take_calls() {
                assert!(!call.to_string().contains("ns/svc1"), "{call}");
            }
            // Tried, and refused again.
            rig.pipeline.mark_everything();
            let report = rig.sync().await.unwrap();
            assert_eq!((report.set_aside, report.refused.len()), (1, 1));

            rig.kernel.accept_all();
            rig.pipeline.mark_everything();
            assert_eq!(rig.sync().await.unwrap().set_aside, 0);
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

/// What a kube-proxy left of a Service that is refused here stays, and goes with the Service.
#[test]
fn a_refusal_ends_with_its_service() {
    for variant in VARIANTS {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.may_be_refused = true;
            rig.put_plain(0, 1);
            rig.put_plain(1, 1);
            rig.sync().await.unwrap();
            rig.step(&Step::Restart(rig.settings.clone(), rig.layout)).await;
            rig.put_plain(0, 2);
            rig.kernel.refuse("ns/svc0:http", Refusal::AtLine);
            assert_eq!(rig.sync().await.unwrap().set_aside, 1);
            rig.kernel.accept_all();
            assert!(rig.tables().to_string().contains("ns/svc0:http cluster IP"));
            rig.step(&Step::Service(0, None, Vec::new())).await;
            assert_eq!(rig.sync().await.unwrap().set_aside, 0);
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

/// Jumps that somebody took out of one built-in chain, and rules that somebody changed.
#[test]
fn the_hourly_look_repairs_what_others_changed() {
    for variant in VARIANTS {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.put_plain(0, 2);
            rig.sync().await.unwrap();
            let text = rig.tables().to_string();
            let lines: Vec<&str> = text.lines().collect();
            let mut broken: Vec<&str> = lines.iter().copied().filter(|line| !line.contains("-j MASQUERADE")).collect();
            broken.retain(|line| !line.contains("ns/svc0:http cluster IP"));
            assert!(broken.len() < lines.len() - 1);
            rig.kernel.load(Tables::parse(IpFamily::V4, &broken.join("\n")).unwrap());
            rig.now += Duration::from_secs(3601);
            rig.failed = true;
            rig.sync().await.unwrap();
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }
}

#[test]
fn a_jump_that_is_gone_is_noticed_within_three_looks() {
    for variant in VARIANTS {
        for jump in JUMPS {
            runtime().block_on(async {
                let mut rig = Rig::after(usual(variant), &[]).await;
                let rule = format!("-A {} {}\n", jump.from, jump.rule());
                let table = rig.tables().table_text(jump.table);
                assert!(table.contains(&rule), "{rule}");
                let text = rig.tables().to_string().replace(&table, &table.replacen(&rule, "", 1));
                rig.kernel.load(Tables::parse(IpFamily::V4, &text).unwrap());
                for _ in 0..3 {
                    rig.look().await;
                }
                rig.sync().await.unwrap();
                // At the head of its chain now: those that are there are not moved.
                assert!(rig.tables().table_text(jump.table).contains(&rule), "{rule}");
            });
        }
    }
}

/// Programs that take a second each.
struct Slow(FakeKernel);

impl Run for Slow {
    async fn run(&self, command: Command, line: &mut (dyn FnMut(&str) + Send)) -> Result<Output, CommandError> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.0.run(command, line).await
    }
}

/// The legacy tools copy the whole table for each look: the longer that takes, the less often they look.
#[test]
fn slow_looks_are_rare() {
    runtime().block_on(async {
        let rig = Rig::start(usual(Variant::Legacy)).await;
        let kernel = FakeKernel::new(Variant::Legacy);
        let tools = Tools::probe(Slow(kernel.clone()), IpFamily::V4, |_| false).await.unwrap();
        let mode = Mode { mark: 0x4000, drop_invalid: true, layout: Layout::default() };
        let mut backend = Iptables::new(tools, mode, Counters::default);
        backend.sync(&rig.plan(), &Scope::Everything).await.unwrap();
        kernel.take_calls();
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(30)).await;
            assert!(matches!(backend.check().await, Ok(Intact::Yes)));
        }
        let calls = kernel.take_calls();
        let looks = |table: &str| calls.iter().filter(|call| call.command.args.iter().any(|arg| arg == table)).count();
        assert_eq!(["mangle", "nat", "filter"].map(looks), [10, 3, 3], "of each table, in more than five minutes");
    });
}

/// A cluster of about a thousand endpoints is not written anew with each of them.
#[test]
fn about_a_thousand_endpoints() {
    runtime().block_on(async {
        let mut rig = Rig::after(usual(Variant::Nft), &[]).await;
        let size = |rig: &mut Rig, last: u16| {
            (0..4).for_each(|i| rig.put_plain(i, 250));
            rig.put_plain(4, last);
        };
        size(&mut rig, 0);
        rig.sync().await.unwrap();
        let mut written = Vec::new();
        for last in [1, 0, 1, 0, 1] {
            size(&mut rig, last);
            written.push(rig.sync().await.unwrap().written);
        }
        assert_eq!(written, [5, 1, 1, 1, 1]);
        rig.put_plain(0, 1);
        assert_eq!(rig.sync().await.unwrap().written, 5, "comments again");
        assert_same(&rig.tables(), &fresh(&rig).await);
    });
}

/// The lines given to restores since the last look.
fn sent(rig: &Rig) -> Vec<String> {
    let calls = rig.kernel.take_calls();
    let texts = calls.iter().map(|call| String::from_utf8_lossy(&call.command.stdin).into_owned());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What a change sends is the same in a small and in a larger cluster, whatever the layout: an endpoint
/// more, a Service that goes, a Service that comes.
#[test]
fn what_a_change_sends_does_not_grow_with_the_cluster() {
    let changes = [plain(1, 4), Step::Service(1, None, Vec::new()), plain(1, 3)];
    for (variant, layout) in VARIANTS.into_iter().flat_map(|variant| clusters::LAYOUTS.map(|of| (variant, of))) {
        let of_size = |services: usize| {
            runtime().block_on(async {
                let (.., settings, node, _) = usual(variant);
                let mut rig = Rig::after((variant, IpFamily::V4, settings, node, layout), &[]).await;
                (0..services).for_each(|i| rig.put_plain(i, 3));
                rig.sync().await.unwrap();
                rig.kernel.take_calls();
                let mut all = Vec::new();
                for change in &changes {
                    rig.step(change).await;
                    assert_eq!(rig.sync().await.unwrap().restores, 1);
                    all.push(sent(&rig));
                }
                assert_same(&rig.tables(), &fresh(&rig).await);
                all
            })
        };
        let small = of_size(5);
        assert_eq!(small, of_size(300), "{variant:?} {layout:?}");
        let declared = |lines: &[String]| lines.iter().filter(|line| line.starts_with(':')).count();
        // The Service's chain, and those of one new endpoint, of all four, of three.
        let chains = if layout.compact_endpoints { [1, 1, 1] } else { [2, 5, 4] };
        assert_eq!([0, 1, 2].map(|at| declared(&small[at])), chains, "{layout:?}: {small:#?}");
    }
}

/// From each layout to each other one, with tools that take all at once and such that do not.
#[test]
fn layouts_follow_each_other() {
    const SERVICES: usize = 700;
    for (variant, from, to) in VARIANTS
        .into_iter()
        .flat_map(|variant| clusters::LAYOUTS.map(|from| (variant, from)))
        .flat_map(|(variant, from)| clusters::LAYOUTS.map(|to| (variant, from, to)))
    {
        runtime().block_on(async {
            let mut rig = Rig::after(usual(variant), &[]).await;
            rig.step(&Step::Restart(rig.settings.clone(), from)).await;
            (0..SERVICES).for_each(|i| rig.put_plain(i, 1));
            rig.sync().await.unwrap();
            rig.step(&Step::Restart(rig.settings.clone(), to)).await;
            rig.kernel.take_calls();
            let report = rig.sync().await.unwrap();
            assert_same(&rig.tables(), &fresh(&rig).await);
            // One that looks for rules among very many would take minutes.
            let deletes = sent(&rig).iter().filter(|line| line.starts_with("-D ")).count();
            assert!(deletes < 32, "{variant:?} {from:?} to {to:?}: {deletes} rules taken out one by one");
            assert_eq!(report.written == 0, from == to, "{variant:?} {from:?} to {to:?}: {report:?}");
        });
    }
}

/// Rules of others among those of Services, in every layout and however they are read.
#[test]
fn rules_of_others_in_shared_chains_go() {
    let starts = VARIANTS.into_iter().flat_map(|variant| IpFamily::BOTH.map(|family| (variant, family)));
    for ((variant, family), layout) in starts.flat_map(|start| clusters::LAYOUTS.map(|layout| (start, layout))) {
        runtime().block_on(async {
            let (_, _, settings, node, _) = usual(variant);
            let mut rig = Rig::after((variant, family, settings, node, layout), &[]).await;
            (0..2).for_each(|i| rig.put_plain(i, 2));
            rig.sync().await.unwrap();
            let before = rig.tables();
            let of_shared = Shared::of(layout).filter(|shared| shared.table() == Table::Nat);
            let chains: Vec<String> = of_shared.map(|shared| shared.chain().to_string()).take(20).collect();
            for comment in ["of others", UNREADABLE] {
                let rules = chains
                    .iter()
                    .map(|chain| format!("-A {chain} -m comment --comment \"{comment}\" -j KUBE-MARK-MASQ\n"));
                let text = before.to_string();
                let (others, nat) = text.split_at(text.find("*nat\n").unwrap());
                let nat = nat.replacen("COMMIT", &format!("{}COMMIT", rules.collect::<String>()), 1);
                rig.kernel.load(Tables::parse(family, &format!("{others}{nat}")).unwrap());
                rig.step(&Step::Restart(rig.settings.clone(), layout)).await;
                rig.sync().await.unwrap();
                assert_same(&rig.tables(), &before);
            }
        });
    }
}

/// A proxy that is started over rules that are right writes nothing to the tables that it reads: with the
/// legacy tools, whatever is written costs a copy of the whole table.
#[test]
fn what_is_right_is_not_written_at_a_restart() {
    let starts = VARIANTS.into_iter().flat_map(|variant| IpFamily::BOTH.map(|family| (variant, family)));
    for ((variant, family), layout) in starts.flat_map(|start| clusters::LAYOUTS.map(|layout| (start, layout))) {
        // Over netlink a chain without rules looks like none: empty buckets are declared again, which loses nothing.
        if layout.bucketed_services && variant == Variant::Nft {
            continue;
        }
        runtime().block_on(async {
            let (_, _, settings, node, _) = usual(variant);
            let mut rig = Rig::after((variant, family, settings, node, layout), &[]).await;
            (0..3).for_each(|i| rig.put_plain(i, 2));
            rig.sync().await.unwrap();
            rig.step(&Step::Restart(rig.settings.clone(), layout)).await;
            rig.kernel.take_calls();
            rig.sync().await.unwrap();
            assert_eq!(sent(&rig), ["*mangle", ":KUBE-PROXY-CANARY - [0:0]", "COMMIT"], "{variant:?} {layout:?}");
        });
    }
}

/// Where everything is to be looked at, piece by piece, what changed last does not wait for the others.
#[test]
fn what_changed_last_comes_first() {
    const SERVICES: usize = 80;
    let piece = Pieces::Small(Piece { lines: 20, chains: 8, hooks: 20, bytes: 1_000 });
    runtime().block_on(async {
        let mut rig = Rig::start_in((usual(Variant::Nft), piece)).await;
        for i in 0..SERVICES {
            let (service, mut slice) = clusters::plain_service(i, 2);
            // Names sort otherwise.
            slice.version = if i == 77 { 1_000 } else { 100 };
            rig.put(i, Some(&service), &[slice]);
        }
        assert!(rig.piece().await.unwrap().remaining > 0);
        let has = |rig: &Rig, i: usize| rig.tables().to_string().contains(&format!("ns/svc{i}:http cluster IP"));
        assert!(has(&rig, 77));
        let there = (0..SERVICES).filter(|i| has(&rig, *i)).count();
        assert!(there < SERVICES / 2, "{there} of all");
        rig.sync().await.unwrap();
        assert_same(&rig.tables(), &fresh(&rig).await);
    });
}

/// The legacy programs read the whole table whatever they are asked: whether it is there is not asked of
/// them if it is known.
#[test]
fn a_table_that_is_known_is_not_asked_for() {
    for (variant, is_there, asked) in [(Variant::Legacy, true, 1), (Variant::Legacy, false, 2), (Variant::Nft, true, 2)]
    {
        runtime().block_on(async {
            let kernel = FakeKernel::new(variant);
            let known: fn(IpFamily) -> bool = if is_there { |_| true } else { |_| false };
            Tools::probe(kernel.clone(), IpFamily::V4, known).await.unwrap();
            assert_eq!(kernel.take_calls().len(), asked, "{variant:?}");
        });
    }
}
