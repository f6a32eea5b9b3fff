//! Changes applied one after the other end where a fresh start ends, whatever happens on the way;
//! and no packet notices more of it than the change itself.

mod cases;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ferrule::backend::iptables::apply::{Iptables, Settings as Mode};
use ferrule::backend::iptables::compile::{Layout, NFACCT_LOCALHOST_ACCEPTED, Shared};
use ferrule::backend::iptables::netlink::Counters;
use ferrule::backend::iptables::ruleset::Table;
use ferrule::backend::iptables::tools::Tools;
use ferrule::backend::{ApplyError, Intact, Report};
use ferrule::cluster::{ClusterState, Event};
use ferrule::command::fake::{FakeKernel, Fault, Tables, Variant};
use ferrule::model::{EndpointSlice, Kind, Node, ObjectRef, Service, ServicePortName};
use ferrule::net::IpFamily;
use ferrule::plan::build::Settings;
use ferrule::plan::{Backend, Frontend, Listen, Plan, ServicePlan};
use ferrule::sync::Pipeline;
use ferrule::sync::pacer::Pace;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tokio::runtime::{Builder, Runtime};

use crate::clusters::{self, PacketSeed, Sent};
use crate::tracer::Packet;
use crate::verdicts::Verdicts;
use crate::{pipeline, verdicts};

use pieces::{Pieces, pieces};

/// So many Services come and go.
const SERVICES: usize = 3;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Service and slices of a number change; what is `None` is deleted.
    Service(usize, Option<Service>, Vec<EndpointSlice>),
    Node(Node),
    Addresses(Vec<IpAddr>),
    /// A source starts over and no longer knows these Services.
    Relist(BTreeSet<usize>),
    /// Everything is compared, as now and then.
    Full,
    /// The proxy is started again, with other settings and another layout of rules.
    Restart(Settings, Layout),
    /// Somebody flushes tables, and the proxy looks.
    Flush(Vec<Table>),
}

/// A step, what goes wrong while it is applied, and whether the next one comes before it is.
#[derive(Clone, Debug)]
struct Move {
    step: Step,
    faults: Vec<(usize, Fault)>,
    merged: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0..SERVICES).prop_flat_map(|i| {
        clusters::service_with_slices(i).prop_map(move |(service, slices)| Step::Service(i, service, slices))
    });
    let tables = subsequence(vec![Table::Mangle, Table::Filter, Table::Nat], 1..=3);
    prop_oneof![
        8 => service,
        1 => clusters::node().prop_map(Step::Node),
        1 => subsequence(clusters::interface_addresses(), 0..=8).prop_map(Step::Addresses),
        1 => subsequence((0..SERVICES).collect::<Vec<_>>(), 0..=SERVICES)
            .prop_map(|gone| Step::Relist(gone.into_iter().collect())),
        1 => Just(Step::Full),
        1 => (clusters::settings(), clusters::layout()).prop_map(|(settings, layout)| Step::Restart(settings, layout)),
        1 => tables.prop_map(Step::Flush),
    ]
}

fn fault() -> impl Strategy<Value = (usize, Fault)> {
    let faults = vec![Fault::Locked, Fault::KilledBefore, Fault::KilledBetween, Fault::KilledAfter];
    (0..4usize, select(faults))
}

fn moves(faults: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Move>> {
    let one = (step(), prop::collection::vec(fault(), faults), prop::bool::weighted(0.2));
    prop::collection::vec(one.prop_map(|(step, faults, merged)| Move { step, faults, merged }), 1..10)
}

/// Where it begins: variant of the tools, family, settings, node and layout of rules.
type Start = (Variant, IpFamily, Settings, Node, Layout);

fn start() -> impl Strategy<Value = Start> {
    let (variants, families) = (vec![Variant::Legacy, Variant::Nft], IpFamily::BOTH.to_vec());
    (select(variants), select(families), clusters::settings(), clusters::node(), clusters::layout())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// What becomes of a packet: before a change, in some state on the way, and in the end.
struct Fate {
    first: Verdicts,
    now: Verdicts,
    last: Verdicts,
    /// Whether the plan of the Service it is for, and of the node, is the same before and after.
    stays: bool,
    /// For people.
    shown: Box<dyn Fn() -> String>,
}

/// A node with its proxy.
struct Rig {
    pieces: Pieces,
    family: IpFamily,
    kernel: FakeKernel,
    state: ClusterState,
    objects: BTreeMap<usize, (Option<Service>, Vec<EndpointSlice>)>,
    settings: Settings,
    layout: Layout,
    pipeline: Pipeline<Iptables<FakeKernel>>,
    /// Whether the last sync failed, or there was none.
    failed: bool,
    /// Whether the kernel is told to refuse something.
    may_be_refused: bool,
    now: Duration,
}

impl Rig {
    async fn start(start: Start) -> Rig {
        Rig::start_in((start, Pieces::Usual)).await
    }

    async fn start_in(((variant, family, settings, node, layout), pieces): (Start, Pieces)) -> Rig {
        let kernel = FakeKernel::new(variant);
        let state = pipeline::cluster(&node, &clusters::interface_addresses(), [], []);
        let pipeline = started(family, &kernel, &settings, layout, pieces).await;
        Rig {
            pieces,
            family,
            kernel,
            state,
            objects: BTreeMap::new(),
            settings,
            layout,
            pipeline,
            failed: true,
            may_be_refused: false,
            now: Duration::ZERO,
        }
    }

    /// After these moves, and a sync.
    async fn after(start: Start, moves: &[Move]) -> Rig {
        Rig::after_in((start, Pieces::Usual), moves).await
    }

    async fn after_in(start: (Start, Pieces), moves: &[Move]) -> Rig {
        let mut rig = Rig::start_in(start).await;
        for Move { step, .. } in moves {
            rig.step(step).await;
        }
        rig.sync().await.unwrap();
        rig
    }

    fn tables(&self) -> Tables {
        self.kernel.tables(self.family)
    }

    /// What should be in the kernel and what is, before something happens that is watched.
    fn watch(&self) -> (Plan, Tables) {
        self.kernel.keep_history();
        (self.plan(), self.tables())
    }

    /// What becomes of packets in every state since [`Rig::watch`].
    fn fates(&self, (old_plan, old): &(Plan, Tables), seeds: &[PacketSeed]) -> Vec<Fate> {
        let (new_plan, history) = (self.plan(), self.kernel.take_history());
        let Some(new) = history.last() else { return Vec::new() };
        let mut fates = Vec::new();
        for (seed, plan) in seeds.iter().flat_map(|seed| [(seed, old_plan), (seed, &new_plan)]) {
            let Sent { packet, seen, .. } = seed.grow(plan);
            let fate = |tables: &Tables| verdicts::trace(tables, &clusters::world(), &packet, &seen);
            let (first, last) = (fate(old), fate(new));
            let stays = old_plan.node == new_plan.node && concerned(old_plan, &packet) == concerned(&new_plan, &packet);
            for tables in &history {
                let now = fate(tables);
                let shown = {
                    let states = [old.clone(), tables.clone(), new.clone()];
                    let text = format!("{packet:?}\nbefore:\n{first}meanwhile:\n{now}after:\n{last}");
                    Box::new(move || format!("{text}\n{}", changes(&states)))
                };
                fates.push(Fate { first: first.clone(), now, last: last.clone(), stays, shown });
            }
        }
        fates
    }

    /// What should be in the kernel now.
    fn plan(&self) -> Plan {
        pipeline::plan(&self.state, &self.settings, self.family)
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Service(i, service, slices) => self.put(*i, service.as_ref(), slices),
            Step::Node(node) => self.event(Event::Node(Arc::new(node.clone()))),
            Step::Addresses(addresses) => self.event(Event::Addresses(addresses.as_slice().into())),
            Step::Relist(gone) => {
                self.objects.retain(|i, _| !gone.contains(i));
                self.relist();
            }
            Step::Full => self.pipeline.mark_everything(),
            Step::Restart(settings, layout) => {
                (self.settings, self.layout) = (settings.clone(), *layout);
                self.pipeline = started(self.family, &self.kernel, settings, *layout, self.pieces).await;
                self.failed = true;
            }
            Step::Flush(tables) => {
                let mut left = self.kernel.tables(self.family);
                tables.iter().for_each(|table| left.flush(*table));
                self.kernel.load(left);
                self.look().await;
            }
        }
    }

    fn event(&mut self, event: Event) {
        let changed = self.state.apply(event);
        self.pipeline.mark(&changed);
    }

    fn put(&mut self, i: usize, service: Option<&Service>, slices: &[EndpointSlice]) {
        let (old_service, old_slices) = self.objects.remove(&i).unwrap_or_default();
        for slice in &old_slices {
            if !slices.iter().any(|new| new.name == slice.name) {
                let name = ObjectRef::new(Kind::EndpointSlice, &slice.service.namespace, &slice.name);
                self.event(Event::Deleted(name));
            }
        }
        match (service, old_service) {
            (Some(service), _) => self.event(Event::Service(Arc::new(service.clone()))),
            (None, Some(old)) => {
                self.event(Event::Deleted(ObjectRef::new(Kind::Service, &old.name.namespace, &old.name.name)));
            }
            (None, None) => {}
        }
        for slice in slices {
            self.event(Event::EndpointSlice(Arc::new(slice.clone())));
        }
        self.objects.insert(i, (service.cloned(), slices.to_vec()));
    }

    fn put_plain(&mut self, i: usize, endpoints: u16) {
        let (service, slice) = clusters::plain_service(i, endpoints);
        self.put(i, Some(&service), &[slice]);
    }

    fn relist(&mut self) {
        self.event(Event::Listing(Kind::Service));
        self.event(Event::Listing(Kind::EndpointSlice));
        for (service, slices) in self.objects.clone().into_values() {
            for slice in slices {
                self.event(Event::EndpointSlice(Arc::new(slice)));
            }
            if let Some(service) = service {
                self.event(Event::Service(Arc::new(service)));
            }
        }
        self.event(Event::Synced(Kind::Service));
        self.event(Event::Synced(Kind::EndpointSlice));
    }

    /// Looks whether the rules are still there, as the loop does from time to time.
    async fn look(&mut self) {
        let mut worker = self.pipeline.lend().expect("the worker is here");
        let intact = worker.check().await;
        self.pipeline.give_back(worker);
        if !matches!(intact, Ok(Intact::Yes)) {
            self.pipeline.mark_everything();
        }
    }

    /// Syncs if something asks for it: a change, or a failure before; to the end.
    async fn sync(&mut self) -> Result<Report, ApplyError> {
        let mut all = self.piece().await?;
        for _ in 0..5_000 {
            if all.remaining == 0 {
                return Ok(all);
            }
            all = self.piece().await?.after(all);
        }
        panic!("there is always more");
    }

    /// Does one piece of a sync.
    async fn piece(&mut self) -> Result<Report, ApplyError> {
        if !self.failed && !self.pipeline.pacer.is_requested() && !self.pipeline.pacer.is_unfinished() {
            return Ok(Report::default());
        }
        let job = self.pipeline.begin(&self.state, self.now).expect("the worker is here");
        let result = self.pipeline.end(job.run().await, self.now);
        self.failed = result.is_err();
        if let Ok(report) = &result {
            let refused = report.refused.iter().map(|(name, reason)| format!("{name}: {reason}"));
            let refused: Vec<String> = refused.collect();
            assert!(self.may_be_refused || refused.is_empty(), "refused: {refused:?}");
        }
        result
    }

    /// Tries until it succeeds, as the loop does.
    async fn sync_at_last(&mut self) -> Report {
        for _ in 0..20 {
            if let Ok(report) = self.sync().await {
                return report;
            }
        }
        panic!("no sync succeeds");
    }
}

async fn started(
    family: IpFamily,
    kernel: &FakeKernel,
    settings: &Settings,
    layout: Layout,
    pieces: Pieces,
) -> Pipeline<Iptables<FakeKernel>> {
    let mut tools = Tools::probe(kernel.clone(), family, |_| false).await;
    for _ in 0..10 {
        if tools.is_err() {
            tools = Tools::probe(kernel.clone(), family, |_| false).await;
        }
    }
    let mode = Mode { mark: 0x4000, drop_invalid: true, layout };
    let counters = || Counters { invalid_dropped: true, localhost_accepted: true };
    let tools = tools.expect("the programs work");
    let backend = pieces.of(Iptables::new(tools, mode, counters), kernel, family);
    let pace = Pace { min: Duration::ZERO, retry: Duration::from_secs(30), max: Duration::from_secs(3600) };
    Pipeline::new(family, Arc::new(settings.clone()), pace, backend)
}

/// The rules of a first sync with this state on an empty kernel.
async fn fresh(rig: &Rig) -> Tables {
    let kernel = FakeKernel::new(Variant::Nft);
    let mut pipeline = started(rig.family, &kernel, &rig.settings, rig.layout, Pieces::Usual).await;
    loop {
        let job = pipeline.begin(&rig.state, Duration::ZERO).unwrap();
        if pipeline.end(job.run().await, Duration::ZERO).unwrap().remaining == 0 {
            break;
        }
    }
    kernel.tables(rig.family)
}

/// Chains and rules as texts; where the order is free, sorted.
fn normalized(tables: &Tables) -> BTreeMap<(Table, String), Vec<String>> {
    let mut chains = BTreeMap::new();
    for table in [Table::Mangle, Table::Filter, Table::Nat] {
        for (name, chain) in tables.chains(table) {
            let mut rules: Vec<String> = chain.rules.iter().map(ToString::to_string).collect();
            if Shared::named(table, name).is_some() {
                let is_last = |rule: &String| rule.contains("must be the last rule");
                let tail = rules.iter().position(is_last).unwrap_or(rules.len());
                assert!(rules[tail..].iter().all(is_last), "something stands behind the last rules: {rules:#?}");
                if shared_with_counter(table, name) {
                    assert_counted_first(&rules);
                }
                rules.sort();
            }
            chains.insert((table, name.to_owned()), rules);
        }
    }
    chains
}

fn shared_with_counter(table: Table, chain: &str) -> bool {
    let shared = Shared::NatNodePorts;
    (shared.table(), shared.chain().as_str()) == (table, chain)
}

/// The rule that counts packets to a node port on loopback addresses stands before the one that
/// takes them all.
fn assert_counted_first(rules: &[String]) {
    for (at, rule) in rules.iter().enumerate() {
        if let Some(rest) = rule.strip_prefix("-d 127.0.0.0/8 ") {
            let plain = rest.replace(&format!(" -m nfacct --nfacct-name  {NFACCT_LOCALHOST_ACCEPTED}"), "");
            assert_ne!(plain, rest, "{rule}");
            let general = rules.iter().position(|other| *other == plain);
            assert!(general.is_some_and(|general| at < general), "{rule} comes too late: {rules:#?}");
        }
    }
}

#[track_caller]
pub(crate) fn assert_same(ours: &Tables, expected: &Tables) {
    let (mut ours, expected) = (normalized(ours), normalized(expected));
    // The kubelet's as well: what stands there is left where it is not needed.
    let firewall = (Table::Filter, "KUBE-FIREWALL".to_owned());
    if expected[&firewall].is_empty() {
        ours.insert(firewall, Vec::new());
    }
    for chain in ours.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
        assert_eq!(ours.get(chain), expected.get(chain), "{chain:?}: left is what the kernel holds");
    }
}

/// The Service ports a packet can be for.
fn concerned<'a>(plan: &'a Plan, packet: &Packet) -> Vec<(&'a ServicePortName, &'a Arc<ServicePlan>)> {
    let to = (packet.destination, packet.port);
    let takes = |frontend: &Frontend| match frontend.listen {
        Listen::ClusterIp(ip, port) | Listen::ExternalIp(ip, port) | Listen::LoadBalancerIp(ip, port) => {
            (ip, port) == to
        }
        Listen::NodePort(port) => port == packet.port,
    };
    let services = plan.services().iter().filter(|(name, _)| name.protocol == packet.protocol);
    services.filter(|(_, service)| service.frontends.iter().any(takes)).collect()
}

/// How rules come and go: those that do not stay all the time.
fn changes(states: &[Tables; 3]) -> String {
    let lines = states.each_ref().map(ToString::to_string);
    let all: BTreeSet<&str> = lines.iter().flat_map(|text| text.lines()).collect();
    let mut text = String::new();
    for line in all {
        let held = lines.each_ref().map(|text| if text.lines().any(|known| known == line) { '#' } else { '.' });
        if held != ['#'; 3] {
            text += &format!("{} {line}\n", String::from_iter(held));
        }
    }
    text
}

proptest! {
    #![proptest_config(clusters::cases())]

    #[test]
    fn step_by_step_ends_like_a_fresh_start(
        start in start(), moves in moves(0..=0),
    ) {
        runtime().block_on(async {
            let mut rig = Rig::start(start).await;
            rig.sync().await.unwrap();
            for Move { step, merged, .. } in &moves {
                rig.step(step).await;
                if !merged {
                    rig.sync().await.unwrap();
                    assert_same(&rig.tables(), &fresh(&rig).await);
                }
            }
            rig.sync().await.unwrap();
            assert_same(&rig.tables(), &fresh(&rig).await);
            // Nothing is left to do.
            rig.kernel.take_calls();
            rig.pipeline.mark_everything();
            let report = rig.sync().await.unwrap();
            prop_assert_eq!((report.written, report.restores, report.bytes, report.rules), Default::default());
            Ok(())
        })?;
    }

    #[test]
    fn faults_leave_nothing_behind(
        start in start(), moves in moves(0..=3),
    ) {
        runtime().block_on(async {
            let mut rig = Rig::start(start).await;
            for Move { step, faults, merged } in &moves {
                for (after, fault) in faults {
                    rig.kernel.inject(*after, *fault);
                }
                rig.step(step).await;
                if !merged && rig.sync().await.is_ok() {
                    assert_same(&rig.tables(), &fresh(&rig).await);
                }
            }
            rig.sync_at_last().await;
            assert_same(&rig.tables(), &fresh(&rig).await);
        });
    }

    #[test]
    fn no_packet_notices_more_than_the_change(
        start in start(), before in moves(0..=0), change in prop::collection::vec(step(), 1..4),
        seeds in prop::collection::vec(clusters::packet_seed(), 16),
    ) {
        runtime().block_on(async {
            let mut rig = Rig::after(start, &before).await;
            let old = rig.watch();
            for step in change.iter().filter(|step| !matches!(step, Step::Flush(_) | Step::Restart(..))) {
                rig.step(step).await;
            }
            rig.sync().await.unwrap();
            for Fate { first, now, last, shown, .. } in rig.fates(&old, &seeds) {
                // Where a Service comes or goes, its packets may be refused on the way.
                let comes_or_goes = first != last && !(first.delivers() && last.delivers());
                prop_assert!(now == first || now == last || (comes_or_goes && now.refuses()), "{}", shown());
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_proxy_that_takes_over_disturbs_no_service_that_stays(
        start in (start(), pieces()), before in moves(0..=0), change in prop::collection::vec(step(), 0..4),
        seeds in prop::collection::vec(clusters::packet_seed(), 16), layout in clusters::layout(),
    ) {
        runtime().block_on(async {
            let mut rig = Rig::after_in(start, &before).await;
            let old = rig.watch();
            // While no proxy runs, the cluster goes on.
            for step in change.iter().filter(|step| !matches!(step, Step::Flush(_) | Step::Restart(..))) {
                rig.step(step).await;
            }
            rig.step(&Step::Restart(rig.settings.clone(), layout)).await;
            rig.sync().await.unwrap();
            let own: BTreeSet<Backend> = [&old.0, &rig.plan()]
                .iter()
                .flat_map(|plan| plan.services().values().flat_map(|service| service.backends()).collect::<Vec<_>>())
                .collect();
            for Fate { first, now, last, stays, shown } in rig.fates(&old, &seeds) {
                // What stays is not disturbed; of what comes or goes, parts may be there already or
                // still, but never leads anybody elsewhere.
                let fine = match stays {
                    true => now == first && now == last,
                    false => now.backends().all(|backend| own.contains(&backend)),
                };
                prop_assert!(fine, "{}", shown());
            }
            Ok(())
        })?;
    }
}
