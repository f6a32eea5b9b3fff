//! The task beside the loop, with flows made up and a clock that does not wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex};

use super::*;
use crate::backend::{ApplyError, Report, Scope};
use crate::conntrack::netlink::Entry;
use crate::model::ServiceName;
use crate::net::Protocol;
use crate::plan::{Backend, Frontend, Listen, NodePlan, NodePortAddresses, Plan, Pool, ServicePlan, Unmet};
use crate::sync::pacer::Occasion;

/// Flows, and what goes wrong with them.
#[derive(Default)]
struct Made {
    flows: Vec<Flow>,
    lists: Vec<Instant>,
    /// How the next listings end.
    listings: VecDeque<Result<End, io::ErrorKind>>,
    /// Whether the next deletions fail.
    deletions: VecDeque<bool>,
    /// Listings wait.
    is_held: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<(Mutex<Made>, Condvar)>);

/// One family's fake kernel by number, the observer, and what it told.
struct Rig {
    kernels: [Fake; 2],
    observer: Box<dyn Observer>,
    plans: [Plan; 2],
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

// === impl Fake ===

impl Fake {
    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.0.0.lock().unwrap()
    }

    fn hold(&self, held: bool) {
        self.made().is_held = held;
        self.0.1.notify_all();
    }
}

impl Table for Fake {
    fn list(&mut self, _: IpFamily, wanted: &mut dyn FnMut(&Flow) -> bool, limit: usize) -> io::Result<Listing> {
        let mut made = self.made();
        made.lists.push(Instant::now());
        let end = made.listings.pop_front().unwrap_or(Ok(End::All))?;
        let mut entries: Vec<Entry> =
            made.flows.iter().filter(|flow| wanted(flow)).map(|flow| Entry::made_up(*flow)).collect();
        let end = if entries.len() > limit { End::Limit } else { end };
        entries.truncate(limit);
        drop(self.0.1.wait_while(made, |made| made.is_held).unwrap());
        Ok(Listing { entries, end })
    }

    fn delete(&mut self, _: IpFamily, entries: &[Entry]) -> Deletion {
        let mut made = self.made();
        if made.deletions.pop_front() == Some(true) {
            return Deletion { deleted: 0, error: Some(io::ErrorKind::PermissionDenied.into()) };
        }
        let gone: std::collections::HashSet<Flow> = entries.iter().map(|entry| entry.flow).collect();
        made.flows.retain(|flow| !gone.contains(flow));
        Deletion { deleted: entries.len(), error: None }
    }
}

// === impl Rig ===

const VIP: [&str; 2] = ["10.0.0.10:53", "[fd00::10]:53"];
const POD: [[&str; 3]; 2] =
    [["10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53"], ["[fd01::1]:53", "[fd01::2]:53", "[fd01::3]:53"]];

fn backend(text: &str) -> Backend {
    let at: SocketAddr = text.parse().unwrap();
    Backend { ip: at.ip(), port: at.port() }
}

fn name(protocol: Protocol) -> ServicePortName {
    ServicePortName { service: ServiceName::new("kube-system", "dns"), port: "dns".into(), protocol }
}

/// A flow to the Service that leads to its n-th pod.
fn flow(family: usize, pod: usize) -> Flow {
    Flow { destination: VIP[family].parse().unwrap(), endpoint: backend(POD[family][pod]) }
}

impl Rig {
    fn start() -> Rig {
        let kernels = [Fake::default(), Fake::default()];
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let waiting = Mutex::new(VecDeque::from(kernels.clone()));
        let told = outcomes.clone();
        let observer = with_table(
            move || waiting.lock().unwrap().pop_front().unwrap(),
            move |outcome| told.lock().unwrap().push(outcome),
        );
        let plans = IpFamily::BOTH.map(|family| {
            let node = NodePlan {
                node_port_addresses: NodePortAddresses::All,
                health_check_addresses: NodePortAddresses::All,
                localhost_node_ports: true,
                ..NodePlan::unknown(family)
            };
            Plan::new(Arc::new(node), BTreeMap::new())
        });
        let mut rig = Rig { kernels, observer: Box::new(observer), plans, outcomes };
        IpFamily::BOTH.into_iter().for_each(|family| rig.observer.notice(&Notice::Started(family)));
        rig
    }

    /// The Service has these pods.
    fn set(&mut self, family: usize, pods: &[usize]) -> Scope {
        let at: SocketAddr = VIP[family].parse().unwrap();
        let listen = Listen::ClusterIp(at.ip(), at.port());
        let plan = ServicePlan {
            frontends: [Frontend { listen, allow_from: None, routes: Default::default() }].into(),
            cluster: Pool::default(),
            local: Pool::default(),
            affinity_seconds: None,
            health_check: None,
            here: Pool::default(),
            serving: pods.iter().map(|pod| backend(POD[family][*pod])).collect(),
            unmet: Unmet::default(),
            endpoints: 0,
        };
        self.plans[family].set(name(Protocol::Udp), Some(Arc::new(plan)));
        Scope::Services([name(Protocol::Udp)].into())
    }

    fn begins(&mut self, family: usize, scope: &Scope) {
        let (of, plan) = (IpFamily::BOTH[family], &self.plans[family]);
        self.observer.notice(&Notice::Begun(of));
        self.observer.notice(&Notice::Planned { family: of, scope, plan });
    }

    fn ends(&mut self, family: usize, scope: &Scope, result: Result<&Report, &ApplyError>) {
        self.observer.notice(&Notice::Ended(Sync {
            family: IpFamily::BOTH[family],
            occasion: Occasion::Request,
            scope,
            whole: !matches!(scope, Scope::Services(_)),
            unfinished: false,
            plan: &self.plans[family],
            result,
            waited: None,
            planning: Duration::ZERO,
            applying: Duration::ZERO,
            triggers: &[],
        }));
    }

    fn syncs(&mut self, family: usize, scope: &Scope) {
        self.begins(family, scope);
        self.ends(family, scope, Ok(&Report::default()));
    }

    fn remember(&self, family: usize, flows: &[Flow]) {
        self.kernels[family].made().flows.extend(flows);
    }

    fn flows(&self, family: usize) -> Vec<Flow> {
        self.kernels[family].made().flows.clone()
    }

    fn lists(&self, family: usize) -> usize {
        self.kernels[family].made().lists.len()
    }

    fn deleted(&self) -> Vec<usize> {
        self.outcomes.lock().unwrap().iter().map(|outcome| outcome.deleted).collect()
    }
}

/// Long enough for all that is not put off. The clock stands still while a flow is listed or deleted.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Waits, without the clock, until so many listings have begun.
async fn listing(rig: &Rig, family: usize, count: usize) {
    while rig.lists(family) < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stale_flows_go_when_the_rules_are_there() {
    let mut rig = Rig::start();
    let scope = rig.set(0, &[0]);
    rig.syncs(0, &scope);
    settle().await;
    assert_eq!(rig.lists(0), 1, "the first sync looks at all");
    rig.remember(0, &[flow(0, 0)]);

    let scope = rig.set(0, &[1]);
    rig.begins(0, &scope);
    settle().await;
    assert_eq!(rig.flows(0), [flow(0, 0)], "the rules are not there yet");
    let error = ApplyError::Failed { program: "iptables-restore".into(), detail: String::new() };
    rig.ends(0, &scope, Err(&error));
    settle().await;
    assert_eq!((rig.flows(0), rig.lists(0)), (vec![flow(0, 0)], 1), "the rules may not be there");
    rig.syncs(0, &Scope::Services(BTreeSet::new()));
    settle().await;
    assert_eq!((rig.flows(0), rig.lists(0)), (vec![], 2));
    let told = rig.outcomes.lock().unwrap().last().copied().unwrap();
    assert_eq!((told.family, told.deleted), (IpFamily::V4, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_listed_when_no_udp_port_changed() {
    let mut rig = Rig::start();
    let scope = rig.set(0, &[0]);
    rig.syncs(0, &scope);
    settle().await;
    let same = rig.plans[0].services()[&name(Protocol::Udp)].clone();
    rig.plans[0].set(name(Protocol::Tcp), Some(same));
    for scope in [scope, Scope::Services([name(Protocol::Tcp)].into()), Scope::Everything, Scope::Audit] {
        rig.syncs(0, &scope);
        settle().await;
        assert_eq!(rig.lists(0), 1, "{scope:?}");
    }
    assert_eq!(rig.lists(1), 0, "the other family has no Service");
    rig.observer.notice(&Notice::Drifted(IpFamily::V4));
    rig.syncs(0, &Scope::Everything);
    settle().await;
    assert_eq!(rig.lists(0), 2, "rules were gone for a while");
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_fails_is_repeated() {
    let mut rig = Rig::start();
    let start = Instant::now();
    rig.remember(0, &[flow(0, 0)]);
    rig.kernels[0].made().listings = vec![Err(io::ErrorKind::Other); 12].into();
    let scope = rig.set(0, &[1]);
    rig.syncs(0, &scope);
    tokio::time::sleep(Duration::from_secs(150)).await;
    assert_eq!(rig.flows(0), []);
    assert_eq!(rig.deleted(), [1], "what could not be listed is not counted");
    let made = rig.kernels[0].made();
    let seconds: Vec<f64> = made.lists.iter().map(|at| (*at - start).as_secs_f64().round()).collect();
    assert_eq!(seconds, [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 6.0, 13.0, 26.0, 51.0, 81.0, 111.0, 141.0], "ever more rarely");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_is_repeated() {
    let mut rig = Rig::start();
    rig.remember(0, &[flow(0, 0), flow(0, 1), flow(0, 2)]);
    rig.kernels[0].made().deletions = vec![true, true].into();
    let scope = rig.set(0, &[1]);
    rig.syncs(0, &scope);
    settle().await;
    assert_eq!((rig.flows(0).len(), rig.deleted()), (3, vec![0]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((rig.flows(0), rig.deleted()), (vec![flow(0, 1)], vec![0, 0, 2]));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(rig.lists(0), 3, "and then no more");
}

#[tokio::test(start_paused = true)]
async fn what_an_interrupted_listing_has_shown_goes_at_once() {
    let mut rig = Rig::start();
    rig.remember(0, &[flow(0, 0)]);
    rig.kernels[0].made().listings = vec![Ok(End::Interrupted)].into();
    let scope = rig.set(0, &[1]);
    rig.syncs(0, &scope);
    settle().await;
    assert_eq!((rig.flows(0), rig.lists(0)), (vec![], 1));
    rig.remember(0, &[flow(0, 2)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((rig.flows(0), rig.lists(0)), (vec![], 2), "some may have been missing");
}

#[tokio::test(start_paused = true)]
async fn more_flows_than_are_held_at_once() {
    let mut rig = Rig::start();
    rig.remember(0, &[flow(0, 1)]);
    let many = (0..=u32::try_from(BATCH).unwrap()).map(|n| {
        let [_, a, b, c] = n.to_be_bytes();
        Flow { endpoint: Backend { ip: [10, a, b, c].into(), port: 53 }, ..flow(0, 0) }
    });
    rig.kernels[0].made().flows.extend(many);
    let scope = rig.set(0, &[1]);
    rig.syncs(0, &scope);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((rig.flows(0), rig.deleted()), (vec![flow(0, 1)], vec![BATCH, 1]));
    assert_eq!(rig.lists(0), 2);
}

#[tokio::test(start_paused = true)]
async fn a_family_that_fails_does_not_hold_up_the_other() {
    let mut rig = Rig::start();
    for family in [0, 1] {
        rig.remember(family, &[flow(family, 0)]);
    }
    rig.kernels[0].made().listings = vec![Err(io::ErrorKind::Unsupported); 1_000].into();
    for family in [0, 1] {
        let scope = rig.set(family, &[1]);
        rig.syncs(family, &scope);
    }
    settle().await;
    assert_eq!((rig.flows(0).len(), rig.flows(1).len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_happens_meanwhile_is_looked_at_together() {
    let mut rig = Rig::start();
    rig.kernels[0].hold(true);
    let scope = rig.set(0, &[0]);
    rig.syncs(0, &scope);
    listing(&rig, 0, 1).await;
    for pods in [[1], [2], [1]] {
        rig.remember(0, &[flow(0, pods[0])]);
        let scope = rig.set(0, &pods);
        rig.syncs(0, &scope);
    }
    rig.kernels[0].hold(false);
    settle().await;
    assert_eq!((rig.flows(0), rig.lists(0)), (vec![flow(0, 1), flow(0, 1)], 2));
}

/// While flows are listed, the next sync writes rules, by which new flows go.
#[tokio::test(start_paused = true)]
async fn flows_of_the_next_rules_are_not_stale() {
    let mut rig = Rig::start();
    rig.kernels[0].hold(true);
    rig.remember(0, &[flow(0, 0), flow(0, 2)]);
    let scope = rig.set(0, &[1]);
    rig.syncs(0, &scope);
    listing(&rig, 0, 1).await;
    let scope = rig.set(0, &[1, 2]);
    rig.begins(0, &scope);
    rig.kernels[0].hold(false);
    settle().await;
    assert_eq!((rig.flows(0), rig.deleted()), (vec![flow(0, 2)], vec![1]));
    rig.ends(0, &scope, Ok(&Report::default()));
    settle().await;
    assert_eq!(rig.flows(0), [flow(0, 2)]);
}
