//! ipvs mode: for any cluster and any packet, what virtual servers, sets and rules do together is what the Plan says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ferrule::backend::ipvs::compile::Style;
use ferrule::backend::ipvs::render::Whole;
use ferrule::command::fake::{FakeKernel, Tables, Variant};
use ferrule::command::{Command, Run};
use ferrule::net::IpFamily;
use ferrule::plan::build::Balancing;
use ferrule::plan::{Backend, Plan};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::clusters::{self, Input, PacketSeed, Sent};
use crate::equivalence::{self, RUNTIME};
use crate::tracer::{Packet, Verdict, VirtualServers, World};
use crate::{oracle, verdicts};

/// What there is in a kernel.
struct Kernel {
    tables: Tables,
    balancer: VirtualServers,
    links: Vec<IpAddr>,
    world: World,
}

fn style() -> Style {
    Style { scheduler: "rr".parse().unwrap(), mark: 0x4000, random_fully: true }
}

fn plan(input: &Input, family: IpFamily) -> Plan {
    let mut input = input.clone();
    input.settings.balancing = Balancing::VirtualServers;
    equivalence::plan(&input, family)
}

// === impl Kernel ===

impl Kernel {
    fn new(plan: &Plan) -> Kernel {
        let family = plan.node.family;
        let whole = Whole::compile(plan, &style());
        let text = whole.render();
        let (_, rules) = text.split_once("tables-restore --noflush\n").unwrap();
        let kernel = FakeKernel::new(Variant::Legacy);
        let program = match family {
            IpFamily::V4 => "iptables-restore",
            IpFamily::V6 => "ip6tables-restore",
        };
        let command = Command::new(program, &["--noflush"]).with_stdin(rules.to_owned().into_bytes());
        let output = RUNTIME.block_on(kernel.run(command, &mut |_| {})).unwrap();
        assert!(output.success(), "{}\n{rules}", output.stderr);
        let links: Vec<IpAddr> = whole.addresses().collect();
        let servers = whole.servers.iter().map(|(address, (_, reals))| {
            let pool = reals.iter().map(|real| Backend { ip: real.ip, port: real.port }).collect();
            ((address.protocol, address.ip, address.port), pool)
        });
        let servers = servers.collect();
        let sets = whole.sets.into_iter().map(|(set, entries)| (set.name(family), entries)).collect();
        let mut world = clusters::world();
        world.addresses.extend(&links);
        Kernel { tables: kernel.tables(family), balancer: VirtualServers { servers, sets }, links, world }
    }

    /// A process that asks for one of the node's addresses has that as its own, unless it chooses another.
    fn send(&self, seed: &PacketSeed, plan: &Plan, chooses: bool) -> Packet {
        let Sent { mut packet, .. } = seed.grow(plan);
        if packet.interface.is_none() && !chooses && self.world.is_local(packet.destination) {
            packet.source = packet.destination;
        }
        // What has one of the node's addresses does not come from outside.
        if self.world.is_local(packet.source) {
            packet.interface = None;
        }
        packet
    }
}

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn virtual_servers_do_what_the_plan_says(
        input in clusters::input(3),
        seeds in prop::collection::vec((clusters::packet_seed(), any::<bool>()), 24),
    ) {
        for family in IpFamily::BOTH {
            let plan = plan(&input, family);
            let kernel = Kernel::new(&plan);
            for (seed, chooses) in &seeds {
                let packet = kernel.send(seed, &plan, *chooses);
                let does = verdicts::trace_with(&kernel.tables, &kernel.balancer, &kernel.world, &packet);
                let says = oracle::judge_balanced(&plan, &kernel.world, &kernel.links, &packet);
                prop_assert!(
                    does == says,
                    "{packet:?}\nvirtual servers:\n{does}plan:\n{says}{plan:#?}\n{:#?}\n{}", kernel.balancer, kernel.tables
                );
            }
        }
    }
}

/// What is made up covers what can happen.
#[test]
fn packets_meet_every_fate() {
    let mut runner = TestRunner::deterministic();
    let strategy = (clusters::input(3), prop::collection::vec(clusters::packet_seed(), 24));
    let mut fates: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..200 {
        let (input, seeds) = strategy.new_tree(&mut runner).unwrap().current();
        let plan = plan(&input, IpFamily::V4);
        let kernel = Kernel::new(&plan);
        for seed in &seeds {
            let packet = kernel.send(seed, &plan, round % 2 == 0);
            for (verdict, _) in oracle::judge_balanced(&plan, &kernel.world, &kernel.links, &packet).iter() {
                let from = if packet.interface.is_some() { "from outside" } else { "from here" };
                let fate = match verdict {
                    Verdict::Delivered { backend, masqueraded, .. } => {
                        format!(
                            "delivered {from}, masqueraded: {masqueraded}, hairpin: {}",
                            backend.ip == packet.source
                        )
                    }
                    other => format!("{other:?} {from}"),
                };
                *fates.entry(fate).or_default() += 1;
            }
        }
    }
    assert!(fates.len() >= 10 && fates.values().all(|count| *count >= 3), "{fates:#?}");
}
