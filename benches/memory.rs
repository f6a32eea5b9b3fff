//! What a cluster costs in memory, stage by stage: what is kept of its objects, the Plan, what those who
//! watch the loop remember, what the backend takes as applied; and the most that each held meanwhile.
//!
//! Bytes are those asked of the allocator, which adds some 8 to 16 to every block.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench ends by a panic when something is not as expected")]
#![allow(clippy::print_stdout, reason = "what is measured goes there")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use allocation_counter::{AllocationInfo, measure};
use ferrule::backend::iptables::apply::{self, Iptables};
use ferrule::backend::iptables::compile::Layout;
use ferrule::backend::iptables::netlink::Counters;
use ferrule::backend::iptables::tools::Tools;
use ferrule::cluster::{ClusterState, Event};
use ferrule::command::{Command, CommandError, Output, Run};
use ferrule::config::flags::{self, Invocation};
use ferrule::config::{self, Config};
use ferrule::conntrack::frontends::{Change, Frontends};
use ferrule::events::Recorder;
use ferrule::fixtures::{self, Cluster, NODE, cluster};
use ferrule::health::{Health, NodePorts};
use ferrule::metrics::{Metrics, Readers};
use ferrule::model::Kind;
use ferrule::net::IpFamily;
use ferrule::plan::build::Settings;
use ferrule::source::api::read_line;
use ferrule::sync::Pipeline;
use ferrule::sync::notice::{Notice, Observer, Sync};
use ferrule::sync::pacer::Pace;
use futures::FutureExt as _;

const IPTABLES: apply::Settings = apply::Settings {
    mark: 1 << 14,
    drop_invalid: true,
    layout: Layout { bucketed_services: false, compact_endpoints: false },
};
const COUNTERS: Counters = Counters { invalid_dropped: true, localhost_accepted: true };
const PACE: Pace = Pace { min: Duration::ZERO, retry: Duration::from_secs(30), max: Duration::from_secs(3600) };

/// Programs that take everything and do nothing.
#[derive(Clone, Copy)]
struct Null;

impl Run for Null {
    async fn run(&self, command: Command, line: &mut (dyn FnMut(&str) + Send)) -> Result<Output, CommandError> {
        if command.args.iter().any(|arg| arg == "--version") {
            line("iptables v1.8.9 (nf_tables)");
        }
        Ok(Output::default())
    }
}

/// What an API server adds to its objects, and nobody here reads.
const META: &str = r#""metadata":{"uid":"02e1f078-a2cb-4699-93c5-a624f9fca527","generation":12,"creationTimestamp":"2026-11-20T22:06:35Z","ownerReferences":[{"apiVersion":"v1","kind":"Service","name":"service","uid":"c62b0df9-5bcf-45be-878d-c44eed1ce70c","controller":true,"blockOwnerDeletion":true}],"managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"2026-11-20T22:06:38Z","fieldsType":"FieldsV1","fieldsV1":{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"c62b0df9-5bcf-45be-878d-c44eed1ce70c\"}":{}}},"f:ports":{}}}],"annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2026-11-20T22:06:38Z"},"#;
const ADDRESSES: &str = r#""zone":"zone-1","targetRef":{"kind":"Pod","namespace":"default","name":"service-7d9c5b7f4d-x7k2m","uid":"83e79c3a-06f7-48b6-92b2-6cbb3886bdc6"},"addresses":"#;

/// The lines of a streaming list.
fn lines(cluster: &Cluster, services: usize) -> Vec<(Kind, String)> {
    let line = |json: String| {
        let json = json.replace(r#""metadata":{"#, META).replace(r#""addresses":"#, ADDRESSES);
        format!(r#"{{"type":"ADDED","object":{json}}}"#)
    };
    let all = || 0..services;
    let mut lines = vec![(Kind::Node, line(cluster.node().json()))];
    lines.extend(all().map(|number| (Kind::Service, line(cluster.service(number).json()))));
    let slices = all().flat_map(|number| cluster.slices(number));
    lines.extend(slices.map(|slice| (Kind::EndpointSlice, line(slice.json()))));
    lines
}

/// What something took and keeps.
#[derive(Clone, Copy, Default)]
struct Tally {
    bytes: i64,
    blocks: i64,
    peak: i64,
    took: Duration,
}

impl Tally {
    /// Counts what `run` allocates, and what it frees.
    fn add<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let mut result = None;
        let mut took = Duration::ZERO;
        let AllocationInfo { bytes_current, bytes_max, count_current, .. } = measure(|| {
            let began = Instant::now();
            result = Some(run());
            took = began.elapsed();
        });
        self.peak = self.peak.max(self.bytes + i64::try_from(bytes_max).unwrap());
        self.bytes += bytes_current;
        self.blocks += count_current;
        self.took += took;
        result.unwrap()
    }
}

/// Somebody who watches the loop, and what that takes.
struct Watcher {
    what: &'static str,
    observer: Box<dyn Observer>,
    tally: Tally,
}

fn watchers(config: &Config, families: &[IpFamily]) -> Vec<Watcher> {
    let watcher = |what, make: &dyn Fn() -> Box<dyn Observer>| {
        let mut tally = Tally::default();
        let observer = tally.add(make);
        Watcher { what, observer, tally }
    };
    let (recorder, _) = Recorder::new(1);
    let health = Health::new(PACE.retry);
    let readers = || Readers {
        invalid_dropped: Box::new(|| None),
        localhost_accepted: Box::new(|| None),
        probes: Box::new(Vec::new),
        watches: Box::new(Vec::new),
    };
    vec![
        watcher("metrics", &|| Box::new(Metrics::new(config, readers()).unwrap().recorder())),
        watcher("health", &|| Box::new(health.clone())),
        watcher("health check node ports", &|| Box::new(NodePorts::new(families.iter().copied(), &health, &recorder))),
        watcher("frontends of UDP", &|| Box::new(Flows(families.iter().map(|_| Frontends::default()).collect()))),
    ]
}

/// Stands for the reconciler of flows, whose tasks do this.
struct Flows(Vec<Frontends>);

impl Observer for Flows {
    fn notice(&mut self, notice: &Notice<'_>) {
        let of = |family: IpFamily| usize::from(family == IpFamily::V6).min(self.0.len() - 1);
        match notice {
            Notice::Planned { family, scope, plan } => {
                let of = of(*family);
                self.0.get_mut(of).unwrap().planned(Change::of(plan, scope));
            }
            Notice::Ended(Sync { family, .. }) => {
                let of = of(*family);
                let frontends = self.0.get_mut(of).unwrap();
                frontends.applied(&[]);
                frontends.take_due();
            }
            _ => {}
        }
    }
}

fn tell(watchers: &mut [Watcher], notice: &Notice<'_>) {
    for Watcher { observer, tally, .. } in watchers {
        tally.add(|| observer.notice(notice));
    }
}

fn config() -> Config {
    match flags::parse(&["ferrule".to_owned()]).unwrap().invocation {
        Invocation::Proxy(flags) => config::load(&flags).config.unwrap(),
        _ => unreachable!(),
    }
}

fn pipeline(family: IpFamily, settings: &Arc<Settings>) -> Pipeline<Iptables<Null>> {
    let tools = Tools::probe(Null, family, |_| false).now_or_never().unwrap().unwrap();
    Pipeline::new(family, settings.clone(), PACE, Iptables::new(tools, IPTABLES, || COUNTERS))
}

/// From the lines of a listing to the end of the first sync, as the loop goes about it.
fn run(title: &str, cluster: &Cluster, [services, endpoints]: [usize; 2], families: &[IpFamily]) {
    let lines = lines(cluster, services);
    let settings = Arc::new(fixtures::settings(NODE, "10.128.0.0/9"));
    let mut watchers = watchers(&config(), families);
    let mut pipelines: Vec<_> = families.iter().map(|family| pipeline(*family, &settings)).collect();
    let [mut objects, mut plan, mut rules] = [Tally::default(); 3];
    let mut decoding = Duration::ZERO;

    families.iter().for_each(|family| tell(&mut watchers, &Notice::Started(*family)));
    let mut state = ClusterState::new();
    let mut take = |decode: &dyn Fn() -> Vec<Event>| {
        let before = objects.took;
        let events = objects.add(decode);
        decoding += objects.took - before;
        for event in &events {
            let changed = objects.add(|| state.apply(event.clone()));
            tell(&mut watchers, &Notice::Event { event, changed: &changed });
            plan.add(|| pipelines.iter_mut().for_each(|pipeline| _ = pipeline.mark(&changed)));
            objects.add(|| drop(changed));
        }
        objects.add(|| drop(events));
    };
    take(&|| vec![Event::Addresses([[192, 0, 2, 10].into()].into())]);
    for kind in [Kind::Node, Kind::Service, Kind::EndpointSlice] {
        take(&|| vec![Event::Listing(kind)]);
        for (_, line) in lines.iter().filter(|(of, _)| *of == kind) {
            take(&|| read_line(kind, line.as_bytes(), NODE).unwrap());
        }
        take(&|| vec![Event::Synced(kind)]);
    }
    assert!(state.is_synced());

    for pipeline in &mut pipelines {
        let (family, mut written) = (pipeline.family(), 0);
        loop {
            let job = plan.add(|| pipeline.begin(&state, Duration::ZERO)).unwrap();
            tell(&mut watchers, &Notice::Begun(family));
            tell(&mut watchers, &Notice::Planned { family, scope: job.scope(), plan: job.plan() });
            let done = rules.add(|| job.run().now_or_never()).unwrap();
            let unfinished = done.result.as_ref().is_ok_and(|report| !report.is_finished());
            let sync = Sync {
                family,
                occasion: done.occasion,
                scope: &done.scope,
                whole: true,
                unfinished,
                plan: done.plan(),
                result: done.result.as_ref(),
                waited: None,
                planning: Duration::ZERO,
                applying: Duration::ZERO,
                triggers: &[],
            };
            tell(&mut watchers, &Notice::Ended(sync));
            written += rules.add(|| pipeline.end(done, Duration::ZERO)).unwrap().written;
            if !unfinished {
                break;
            }
        }
        assert_eq!(written, services);
    }

    println!("\n{title}: {} lines of {} bytes on average", lines.len(), bytes(&lines) / lines.len());
    let titles = ["KiB", "blocks", "B/Service", "B/endpoint", "peak KiB", "ms"];
    println!("{:<36}{}", "", titles.map(|title| format!("{title:>12}")).concat());
    let mut all = Tally::default();
    let watchers = watchers.iter().map(|watcher| (watcher.what, watcher.tally));
    let stages = [("objects", objects), ("Plan", plan)].into_iter().chain(watchers).chain([("applied rules", rules)]);
    for (what, tally) in stages {
        print(what, &tally, services, endpoints);
        let Tally { bytes, blocks, peak, took } = tally;
        all.peak = all.peak.max(all.bytes + peak);
        all = Tally { bytes: all.bytes + bytes, blocks: all.blocks + blocks, took: all.took + took, ..all };
    }
    print("all", &all, services, endpoints);
    println!("{:<36}{:>72.1}", "of it decoding", milliseconds(decoding));
}

fn print(what: &str, tally: &Tally, services: usize, endpoints: usize) {
    let Tally { bytes, blocks, peak, took } = *tally;
    let [services, endpoints] = [services, endpoints].map(|count| bytes as f64 / count as f64);
    let (kept, peak) = (bytes as f64 / 1024.0, peak as f64 / 1024.0);
    let took = milliseconds(took);
    println!("{what:<36}{kept:>12.0}{blocks:>12}{services:>12.0}{endpoints:>12.1}{peak:>12.0}{took:>12.1}");
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1_000.0
}

fn bytes(lines: &[(Kind, String)]) -> usize {
    lines.iter().map(|(_, line)| line.len()).sum()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &&String| !name.starts_with('-') && !"memory".contains(name.as_str());
    if arguments.iter().any(|argument| wanted(&argument)) {
        return;
    }
    // `--test` only shows that it runs at all.
    let scale = if arguments.iter().any(|argument| argument == "--test") { 100 } else { 1 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _within = runtime.enter();
    let (v4, both) = (&IpFamily::BOTH[..1], &IpFamily::BOTH[..]);
    for (services, endpoints, families) in [(1_000, 10, v4), (10_000, 10, v4), (10_000, 10, both), (10_000, 100, v4)] {
        let services = services / scale;
        let cluster = cluster(services, endpoints);
        let (kind, cluster) = match families.len() {
            1 => ("IPv4", cluster),
            _ => ("dual-stack", cluster.dual_stack()),
        };
        let title = format!("{services} Services x {endpoints} endpoints, {kind}");
        let all = services * endpoints * families.len();
        run(&title, &cluster, [services, all], families);
    }
}
