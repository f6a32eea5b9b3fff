//! The loop with a backend that only writes down what it is told, and a made-up clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::drive::drive;
use super::notice::{Notice, Observer};
use super::pacer::Pace;
use super::*;
use crate::cluster::Event;
use crate::model::{Conditions, Endpoint, EndpointSlice, Kind, ObjectRef, Service, ServicePort, SlicePort};
use crate::net::Protocol;
use crate::plan::build::{Balancing, DetectLocal, NodePortSetting};

/// What one call of the backend saw.
#[derive(Debug)]
struct Call {
    at: Duration,
    scope: Scope,
    plan: BTreeMap<ServicePortName, usize>,
}

#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    /// Answers of the next calls; none left is success.
    failures: VecDeque<ApplyError>,
    intact: VecDeque<Intact>,
    /// How many Services are set aside after each of the next calls that succeed.
    set_aside: VecDeque<usize>,
    takes: Duration,
}

struct Recorder {
    script: Arc<Mutex<Script>>,
    start: Instant,
}

impl Backend for Recorder {
    async fn sync(&mut self, plan: &Plan, scope: &Scope) -> Result<Report, ApplyError> {
        let takes = {
            let mut script = self.script.lock().unwrap();
            let plan = plan.services().iter().map(|(name, plan)| (name.clone(), plan.cluster.len())).collect();
            script.calls.push(Call { at: self.start.elapsed(), scope: scope.clone(), plan });
            script.takes
        };
        tokio::time::sleep(takes).await;
        let mut script = self.script.lock().unwrap();
        match script.failures.pop_front() {
            Some(error) => Err(error),
            None => Ok(Report { set_aside: script.set_aside.pop_front().unwrap_or(0), ..Report::default() }),
        }
    }

    async fn check(&mut self) -> Result<Intact, ApplyError> {
        Ok(self.script.lock().unwrap().intact.pop_front().unwrap_or(Intact::Yes))
    }
}

/// Writes down what it is told, a line each.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<String>>>);

impl Observer for Listener {
    fn notice(&mut self, notice: &Notice<'_>) {
        self.0.lock().unwrap().push(match notice {
            Notice::Started(family) => format!("started {family}"),
            Notice::Event { event: Event::EndpointSlice(slice), changed } => {
                format!("slice {} {}", slice.name, if **changed == Changed::Nothing { "again" } else { "new" })
            }
            Notice::Event { .. } | Notice::Planned { .. } => return,
            Notice::Requested(_) => "requested".to_owned(),
            Notice::Begun(_) => "begun".to_owned(),
            Notice::Ended(sync) => format!(
                "{:?} {} waited {:?} triggers {:?} services {}",
                sync.occasion,
                if sync.result.is_ok() { "done" } else { "failed" },
                sync.waited.map(|waited| waited.as_millis()),
                sync.triggers,
                sync.plan.services().len()
            ),
            Notice::Drifted(_) => "drifted".to_owned(),
        });
    }
}

struct Rig {
    script: Arc<Mutex<Script>>,
    events: mpsc::Sender<Event>,
    told: Listener,
}

impl Rig {
    fn start() -> Rig {
        Rig::start_with(Vec::new())
    }

    fn start_with(early: Vec<Event>) -> Rig {
        let script = Arc::new(Mutex::new(Script::default()));
        let (events, receiver) = mpsc::channel(1024);
        let settings = Arc::new(Settings {
            node_name: "node-a".into(),
            bind_address: None,
            masquerade_all: false,
            localhost_node_ports: true,
            node_port_addresses: NodePortSetting::Cidrs(Vec::new()),
            detect_local: DetectLocal::NodeCidr,
            external_ips: true,
            balancing: Balancing::Rules,
        });
        let pace = Pace { min: Duration::from_secs(1), retry: Duration::from_secs(30), max: Duration::from_secs(3600) };
        let told = Listener::default();
        let backend = Recorder { script: script.clone(), start: Instant::now() };
        let pipelines = vec![Pipeline::new(IpFamily::V4, settings, pace, backend)];
        tokio::spawn(drive(
            pipelines,
            pace,
            early,
            receiver,
            ClusterState::is_synced,
            told.clone(),
            std::future::pending(),
        ));
        Rig { script, events, told }
    }

    async fn send(&self, event: Event) {
        self.events.send(event).await.unwrap();
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn list(&self, services: usize) {
        self.send(Event::Addresses([].into())).await;
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            self.send(Event::Listing(kind)).await;
        }
        for i in 0..services {
            self.send(Event::Service(service(i))).await;
            self.send(Event::EndpointSlice(slice(i, 2))).await;
        }
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            self.send(Event::Synced(kind)).await;
        }
    }

    /// What the observer was told since the last question.
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.0.lock().unwrap())
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script.lock().unwrap().calls)
    }
}

fn service(i: usize) -> Arc<Service> {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Arc::new(Service {
        name: ServiceName::new("ns", &format!("svc-{i}")),
        cluster_ips: [[10, 0, 0, u8::try_from(i).unwrap()].into()].into(),
        ports: [port].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
        external_policy_local: false,
        internal_policy_local: false,
        affinity_seconds: None,
        health_check_node_port: None,
    })
}

fn slice(i: usize, endpoints: u8) -> Arc<EndpointSlice> {
    let conditions = Conditions { ready: true, serving: true, terminating: false };
    Arc::new(EndpointSlice {
        service: ServiceName::new("ns", &format!("svc-{i}")),
        name: format!("svc-{i}-abc").into(),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (0..endpoints)
            .map(|n| Endpoint {
                ip: [10, 1, u8::try_from(i).unwrap(), n].into(),
                conditions,
                local: false,
                hints: None,
            })
            .collect(),
        trigger_time: None,
        version: 0,
    })
}

fn only(i: usize) -> Scope {
    let service = ServiceName::new("ns", &format!("svc-{i}"));
    Scope::Services([ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp }].into())
}

fn busy() -> ApplyError {
    ApplyError::Busy { program: "iptables-restore".into(), detail: "held".into() }
}

const SECOND: Duration = Duration::from_secs(1);

/// Whatever was said before the loop counts, also if nothing comes after.
#[tokio::test(start_paused = true)]
async fn what_was_said_early_is_enough() {
    let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
    let mut early = vec![Event::Addresses([].into()), Event::Service(service(1)), Event::EndpointSlice(slice(1, 2))];
    early.splice(0..0, kinds.map(Event::Listing));
    early.extend(kinds.map(Event::Synced));
    let rig = Rig::start_with(early);
    rig.pass(SECOND).await;
    let calls = rig.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(rig.told().first().map(String::as_str), Some("started IPv4"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_every_kind_is_listed() {
    let rig = Rig::start();
    rig.send(Event::Addresses([].into())).await;
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        rig.send(Event::Listing(kind)).await;
    }
    rig.send(Event::Service(service(1))).await;
    rig.send(Event::EndpointSlice(slice(1, 2))).await;
    rig.send(Event::Synced(Kind::Service)).await;
    rig.send(Event::Synced(Kind::Node)).await;
    rig.pass(600 * SECOND).await;
    assert!(rig.calls().is_empty());
    rig.send(Event::Synced(Kind::EndpointSlice)).await;
    rig.pass(SECOND / 10).await;
    let calls = rig.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].scope, Scope::Audit);
    assert_eq!(calls[0].plan.values().copied().collect::<Vec<_>>(), [2]);
}

#[tokio::test(start_paused = true)]
async fn one_event_plans_the_service_it_touches_and_no_other() {
    let rig = Rig::start();
    rig.list(50).await;
    rig.pass(10 * SECOND).await;
    rig.calls();
    rig.send(Event::EndpointSlice(slice(7, 5))).await;
    rig.pass(SECOND / 100).await;
    let calls = rig.calls();
    assert_eq!(calls.iter().map(|call| &call.scope).collect::<Vec<_>>(), [&only(7)]);
    assert_eq!(calls[0].plan.values().filter(|endpoints| **endpoints == 5).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_changes_nothing_is_not_planned() {
    let rig = Rig::start();
    rig.list(3).await;
    rig.pass(10 * SECOND).await;
    rig.calls();
    // A server that was lost and comes back lists everything again.
    rig.list(3).await;
    rig.pass(60 * SECOND).await;
    assert!(rig.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_listing_no_longer_holds_is_removed_only_at_its_end() {
    let rig = Rig::start();
    rig.list(3).await;
    rig.pass(10 * SECOND).await;
    rig.calls();
    rig.send(Event::Listing(Kind::Service)).await;
    rig.send(Event::Service(service(0))).await;
    rig.send(Event::Service(service(2))).await;
    rig.pass(60 * SECOND).await;
    assert!(rig.calls().is_empty());
    rig.send(Event::Synced(Kind::Service)).await;
    rig.pass(SECOND).await;
    let calls = rig.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!((&calls[0].scope, calls[0].plan.len()), (&only(1), 2));
}

#[tokio::test(start_paused = true)]
async fn changes_during_a_sync_are_served_together_after_it() {
    let rig = Rig::start();
    rig.script.lock().unwrap().takes = 5 * SECOND;
    rig.list(3).await;
    rig.pass(SECOND).await;
    rig.send(Event::EndpointSlice(slice(0, 3))).await;
    rig.send(Event::EndpointSlice(slice(0, 4))).await;
    rig.send(Event::Deleted(ObjectRef::new(Kind::Service, "ns", "svc-2"))).await;
    rig.pass(20 * SECOND).await;
    let calls = rig.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls[1].at >= 6 * SECOND && calls[1].at < 7 * SECOND, "at {:?}", calls[1].at);
    assert_eq!(calls[1].plan.values().copied().collect::<Vec<_>>(), [4, 2]);
    assert!(matches!(&calls[1].scope, Scope::Services(names) if names.len() == 2));
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_retried_until_it_succeeds() {
    let rig = Rig::start();
    rig.script.lock().unwrap().failures = (0..3).map(|_| busy()).collect();
    rig.list(1).await;
    rig.pass(120 * SECOND).await;
    let calls = rig.calls();
    let gaps: Vec<_> = calls.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs()).collect();
    assert_eq!(gaps, [1, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn rules_removed_by_others_are_written_again_within_the_sync_period() {
    let rig = Rig::start();
    rig.list(1).await;
    rig.pass(SECOND).await;
    rig.calls();
    rig.script.lock().unwrap().intact = [Intact::Yes, Intact::No].into();
    rig.pass(31 * SECOND).await;
    assert!(rig.calls().is_empty());
    rig.pass(30 * SECOND).await;
    let calls = rig.calls();
    assert_eq!(calls.iter().map(|call| &call.scope).collect::<Vec<_>>(), [&Scope::Everything]);
}

#[tokio::test(start_paused = true)]
async fn the_kernel_is_looked_at_once_an_hour() {
    let rig = Rig::start();
    rig.list(1).await;
    rig.pass(3 * 3600 * SECOND + 60 * SECOND).await;
    let scopes: Vec<Scope> = rig.calls().into_iter().map(|call| call.scope).collect();
    assert_eq!(scopes, vec![Scope::Audit; 4]);
}

/// Where something always happens, it is looked at as often.
#[tokio::test(start_paused = true)]
async fn changes_put_off_neither_the_look_for_flushes_nor_the_hourly_one() {
    let rig = Rig::start();
    rig.list(1).await;
    rig.pass(SECOND).await;
    rig.calls();
    rig.script.lock().unwrap().intact = [Intact::No].into();
    for i in 0..40 {
        rig.send(Event::EndpointSlice(slice(0, 3 + i % 2))).await;
        rig.pass(SECOND).await;
    }
    let whole = |calls: &[Call], scope: &Scope| calls.iter().filter(|call| call.scope == *scope).count();
    let calls = rig.calls();
    assert_eq!(whole(&calls, &Scope::Everything), 1, "{calls:?}");
    assert!(calls.len() > 30, "{calls:?}");
    for i in 0..70 {
        rig.send(Event::EndpointSlice(slice(0, 3 + i % 2))).await;
        rig.pass(60 * SECOND).await;
    }
    assert_eq!(whole(&rig.calls(), &Scope::Audit), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refused_is_tried_again() {
    let rig = Rig::start();
    rig.script.lock().unwrap().set_aside = [1, 1].into();
    rig.list(1).await;
    rig.pass(600 * SECOND).await;
    let calls = rig.calls();
    let at: Vec<_> = calls.iter().map(|call| call.at.as_secs()).collect();
    assert_eq!(at, [0, 30, 90], "and then it was accepted");
    assert_eq!(calls[1].scope, Scope::Everything);
}

fn caused(i: usize, endpoints: u8, at: &str) -> Event {
    let mut slice = (*slice(i, endpoints)).clone();
    slice.trigger_time = Some(at.into());
    Event::EndpointSlice(Arc::new(slice))
}

#[tokio::test(start_paused = true)]
async fn observers_are_told_what_becomes_of_changes() {
    let rig = Rig::start();
    rig.list(1).await;
    rig.pass(10 * SECOND).await;
    let first = "Audit done waited Some(0) triggers [] services 1";
    assert_eq!(rig.told(), ["started IPv4", "slice svc-0-abc new", "requested", "begun", first]);

    // What changes nothing is told, and asks for nothing.
    rig.send(Event::EndpointSlice(slice(0, 2))).await;
    rig.pass(10 * SECOND).await;
    assert_eq!(rig.told(), ["slice svc-0-abc again"]);

    rig.script.lock().unwrap().takes = SECOND;
    rig.send(caused(0, 3, "one")).await;
    rig.pass(SECOND / 2).await;
    // While it is being written: served by the next sync, after twice the time that this one takes.
    rig.send(caused(0, 4, "two")).await;
    rig.send(caused(0, 5, "three")).await;
    rig.pass(10 * SECOND).await;
    let told = rig.told();
    let syncs: Vec<_> = told.iter().filter(|line| line.contains("done")).collect();
    assert_eq!(syncs[0], "Request done waited Some(0) triggers [\"one\"] services 1");
    assert_eq!(syncs[1], "Request done waited Some(2500) triggers [\"two\", \"three\"] services 1");
}

/// Latency is measured to the sync that succeeds.
#[tokio::test(start_paused = true)]
async fn what_a_failed_sync_served_is_told_with_the_next_one() {
    let rig = Rig::start();
    rig.list(2).await;
    rig.pass(10 * SECOND).await;
    rig.told();
    rig.script.lock().unwrap().failures = [busy()].into();
    rig.send(caused(0, 3, "zero")).await;
    rig.send(caused(1, 3, "one")).await;
    rig.pass(SECOND / 2).await;
    // Of a slice that is gone, nothing is left to tell.
    rig.send(Event::Deleted(ObjectRef::new(Kind::EndpointSlice, "ns", "svc-1-abc"))).await;
    rig.pass(10 * SECOND).await;
    let syncs: Vec<_> = rig.told().into_iter().filter(|line| line.contains("waited")).collect();
    assert_eq!(syncs.len(), 2, "{syncs:?}");
    assert!(syncs[0].contains("failed") && syncs[0].contains("[\"zero\", \"one\"]"), "{syncs:?}");
    assert!(syncs[1].contains("done") && syncs[1].contains("triggers [\"zero\"]"), "{syncs:?}");
}

#[tokio::test(start_paused = true)]
async fn observers_are_told_of_drift() {
    let rig = Rig::start();
    rig.list(1).await;
    rig.pass(SECOND).await;
    rig.told();
    rig.script.lock().unwrap().intact = [Intact::No].into();
    rig.pass(31 * SECOND).await;
    assert_eq!(rig.told().first().map(String::as_str), Some("drifted"));
}
