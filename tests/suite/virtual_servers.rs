//! ipvs mode: differences lead from what Service ports had to what they shall have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ferrule::backend::ipvs::compile::Style;
use ferrule::backend::ipvs::diff::{Asked, Changes, ServerChange};
use ferrule::backend::ipvs::netlink::{Address, RealServer, VirtualServer};
use ferrule::backend::ipvs::ruleset::{Entry, Set};
use ferrule::model::ServicePortName;
use ferrule::net::IpFamily;
use ferrule::plan::build::Balancing;
use ferrule::plan::{Plan, ServicePlan};
use proptest::prelude::*;

use crate::clusters::{self, Input};
use crate::equivalence;

/// What a kernel has.
#[derive(Debug, Default, PartialEq)]
struct Kernel {
    servers: BTreeMap<Address, (String, BTreeSet<(IpAddr, u16)>)>,
    entries: BTreeSet<(Set, Entry)>,
    guards: BTreeSet<Address>,
}

// === impl Kernel ===

impl Kernel {
    /// Does what it is told, as a kernel would: nothing is there twice, and what goes was there.
    fn take(&mut self, changes: Changes) {
        for entry in changes.entries.add {
            assert!(self.entries.insert(entry), "{entry:?} is there");
        }
        for entry in changes.entries.remove {
            assert!(self.entries.remove(&entry), "{entry:?} is not there");
        }
        for guard in changes.guards.add {
            assert!(self.guards.insert(guard), "{guard} is there");
        }
        for guard in changes.guards.remove {
            assert!(self.guards.remove(&guard), "{guard} is not there");
        }
        let key = |RealServer { ip, port, .. }: RealServer| (ip, port);
        let mut touched = BTreeSet::new();
        for change in changes.servers {
            let address = change.address();
            assert!(touched.insert(address), "{address} is changed twice");
            match change {
                ServerChange::Add(server, reals) => {
                    let all: BTreeSet<_> = reals.iter().copied().map(key).collect();
                    assert_eq!(all.len(), reals.len(), "a real server twice");
                    assert!(self.servers.insert(address, (of(&server), all)).is_none(), "{address} is there");
                }
                ServerChange::Change { set, reals, .. } => {
                    let known = self.servers.get_mut(&address).unwrap_or_else(|| panic!("{address} is not there"));
                    if let Some(server) = set {
                        assert_ne!(known.0, of(&server));
                        known.0 = of(&server);
                    }
                    reals.add.into_iter().for_each(|real| assert!(known.1.insert(key(real)), "{real:?} is there"));
                    reals
                        .remove
                        .into_iter()
                        .for_each(|real| assert!(known.1.remove(&key(real)), "{real:?} is not there"));
                }
                ServerChange::Remove(_) => assert!(self.servers.remove(&address).is_some(), "{address} is not there"),
            }
        }
    }
}

/// All of a virtual server but its address.
fn of(server: &VirtualServer) -> String {
    format!("{} {:?} {}", server.scheduler, server.flags, server.timeout)
}

fn style() -> Style {
    Style { scheduler: "mh".parse().unwrap(), mark: 0x4000, random_fully: true }
}

fn plan(input: &Input, family: IpFamily) -> Plan {
    let mut input = input.clone();
    input.settings.balancing = Balancing::VirtualServers;
    equivalence::plan(&input, family)
}

type Wanted<'a> = (&'a ServicePortName, Option<&'a Arc<ServicePlan>>);

fn all(plan: &Plan) -> impl Iterator<Item = Wanted<'_>> {
    plan.services().iter().map(|(name, plan)| (name, Some(plan)))
}

/// A kernel that only ever saw this plan.
fn fresh(plan: &Plan) -> Kernel {
    let mut kernel = Kernel::default();
    kernel.take(Asked::new(plan.node.clone(), style()).set(all(plan)));
    kernel
}

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn differences_lead_from_one_plan_to_the_other(a in clusters::input(4), b in clusters::input(4), one_by_one: bool) {
        // On one node, whose own addresses do not change.
        let b = Input { settings: a.settings.clone(), node: a.node.clone(), ..b };
        for family in IpFamily::BOTH {
            let (a, b) = (plan(&a, family), plan(&b, family));
            let mut asked = Asked::new(a.node.clone(), style());
            let mut kernel = Kernel::default();
            kernel.take(asked.set(all(&a)));
            prop_assert!(asked.set(all(&a)).is_empty(), "there is no difference to oneself");

            let gone = a.services().keys().filter(|name| !b.services().contains_key(*name)).map(|name| (name, None));
            let changes: Vec<Wanted<'_>> = all(&b).chain(gone).collect();
            match one_by_one {
                true => changes.into_iter().for_each(|change| kernel.take(asked.set([change]))),
                false => kernel.take(asked.set(changes)),
            }
            prop_assert_eq!(&kernel, &fresh(&b));
            let sets: BTreeSet<Set> = kernel.entries.iter().map(|(set, _)| *set).collect();
            for set in Set::all() {
                prop_assert_eq!(asked.used().contains(set), sets.contains(&set), "{:?}", set);
            }

            kernel.take(asked.set(b.services().keys().map(|name| (name, None))));
            prop_assert_eq!(kernel, Kernel::default());
        }
    }
}
