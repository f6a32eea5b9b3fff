//! Against a real kube-proxy's `/metrics`: every family that something relies on is here, with the same
//! type, help, labels and buckets, and counts of rules are the recorded ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ferrule::backend::iptables::apply::{Iptables, Settings as Mode};
use ferrule::backend::iptables::compile::Layout;
use ferrule::backend::iptables::netlink::Counters;
use ferrule::backend::iptables::tools::Tools;
use ferrule::backend::{Backend, Report, RuleCount, Scope};
use ferrule::cluster::{Changed, Event, Families};
use ferrule::command::fake::{FakeKernel, Variant};
use ferrule::config::Config;
use ferrule::metrics::{Metrics, Probe, Readers, Watch};
use ferrule::model::ServiceName;
use ferrule::net::IpFamily;
use ferrule::plan::Plan;
use ferrule::source::Exchange;
use ferrule::sync::notice::{Notice, Observer, Sync};
use ferrule::sync::pacer::Occasion;

use crate::config::load_text;
use crate::pipeline;
use crate::recordings::{self, Objects};

/// A family as it was exposed.
#[derive(Debug, Default)]
pub(crate) struct Family {
    kind: String,
    help: String,
    /// Names of labels, without `le`.
    labels: BTreeSet<Vec<String>>,
    /// Texts of `le` in order, of the first series.
    buckets: Vec<String>,
    /// Every series as it stands, with its value.
    series: BTreeMap<String, String>,
}

/// The families of an exposition, by name.
pub(crate) fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some((of, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            of.clone_into(&mut name);
            assert!(families.insert(of.to_owned(), Family { help: help.to_owned(), ..Family::default() }).is_none());
        } else if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut families.get_mut(&name).unwrap().kind);
        } else if let Some((series, value)) = line.rsplit_once(' ').filter(|_| !name.is_empty() && !line.is_empty()) {
            let family = families.get_mut(&name).unwrap();
            let (_, labels) = series.split_once('{').unwrap_or((series, ""));
            let mut names = Vec::new();
            for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once("=\"").unwrap();
                match label {
                    "le" if family.labels.len() > 1 => {}
                    "le" if family.buckets.contains(&value.trim_end_matches('"').to_owned()) => {}
                    "le" => family.buckets.push(value.trim_end_matches('"').to_owned()),
                    _ => names.push(label.to_owned()),
                }
            }
            family.labels.insert(names);
            family.series.insert(series.to_owned(), value.to_owned());
        }
    }
    families
}

fn recorded(file: &str) -> BTreeMap<String, Family> {
    let text = recordings::read(file).replace('\r', "");
    families(text.split_once("\n\n").unwrap().1)
}

/// The names that the specification's table of a scrape marks, by the word in its last column.
fn needed() -> BTreeMap<String, String> {
    let text = recordings::read("../spec/control-plane.md");
    let (_, table) = text.split_once("### 9.4 ").unwrap();
    let mut needed = BTreeMap::new();
    for line in
        table.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'))
    {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let need = cells.last().unwrap().trim_matches('*');
        if need.starts_with("must") || need.starts_with("should") {
            let names = cells[0].split('`').filter(|name| !name.trim().is_empty());
            needed.extend(names.map(|name| (name.to_owned(), need.to_owned())));
        }
    }
    needed
}

pub(crate) fn config(case: &str) -> Config {
    load_text(&recordings::read(&format!("{case}/config.yaml")), &["-v=2"]).config.unwrap()
}

pub(crate) fn metrics(config: &Config) -> Metrics {
    let readers = Readers {
        invalid_dropped: Box::new(|| Some(0)),
        localhost_accepted: Box::new(|| Some(0)),
        probes: Box::new(|| {
            let answered = |path, code, answers| Probe { path, code, answers };
            vec![answered("/healthz", 200, 1), answered("/healthz", 503, 0), answered("/livez", 200, 1)]
        }),
        watches: Box::new(|| vec![Watch { kind: "Service".to_owned(), silent: Some(Duration::ZERO), connected: true }]),
    };
    Metrics::new(config, readers).unwrap()
}

fn plan(objects: &Objects, config: &Config, family: IpFamily) -> Plan {
    pipeline::plan(&objects.cluster(), &config.planning, family)
}

fn ended<'a>(plan: &'a Plan, scope: &'a Scope, report: &'a Report, triggers: &'a [Box<str>]) -> Sync<'a> {
    Sync {
        family: plan.node.family,
        occasion: Occasion::Request,
        scope,
        whole: !matches!(scope, Scope::Services(_)),
        unfinished: false,
        plan,
        result: Ok(report),
        waited: Some(Duration::from_millis(3)),
        planning: Duration::from_millis(1),
        applying: Duration::from_millis(20),
        triggers,
    }
}

/// What a kube-proxy goes through that serves both families, one change, probes and the API server.
fn a_life(case: &str) -> Metrics {
    let config = config(case);
    let metrics = metrics(&config);
    let mut recorder = metrics.recorder();
    let mut objects = Objects::default();
    objects.apply("objects/all.yaml");
    for family in IpFamily::BOTH {
        let plan = plan(&objects, &config, family);
        recorder.notice(&Notice::Started(family));
        recorder.notice(&Notice::Requested(family));
        recorder.notice(&Notice::Begun(family));
        recorder.notice(&Notice::Ended(ended(&plan, &Scope::Everything, &Report::default(), &[])));
        recorder.notice(&Notice::Ended(ended(&plan, &Scope::Services(BTreeSet::new()), &Report::default(), &[])));
    }
    metrics.record_reconcile(IpFamily::V4, Duration::from_millis(10), 0);
    let host: Arc<str> = "apiserver.test:6443".into();
    metrics.count_request(&Exchange::Answered { method: "GET", host: host.clone(), code: Some(200) });
    metrics.count_request(&Exchange::Answered { method: "POST", host: host.clone(), code: Some(201) });
    let (waited, duration) = (Duration::ZERO, Duration::from_millis(8));
    metrics.count_request(&Exchange::Complete { method: "POST", host, waited, duration, sent: 207, received: 451 });
    metrics
}

#[test]
fn families_are_those_of_kube_proxy() {
    let needed = needed();
    assert_eq!(needed.len(), 34, "{needed:?}");
    for case in ["legacy-base", "nft-base"] {
        let ours = families(&a_life(case).scrape());
        let mut theirs = recorded(&format!("{case}/http/metrics.txt"));
        theirs.extend(recorded(&format!("{case}/http/metrics-after-steps.txt")));
        let later: Vec<String> = theirs.keys().filter(|name| name.starts_with("kubeproxy_")).cloned().collect();
        let mut wrong = Vec::new();
        for name in needed.keys().chain(&later).collect::<BTreeSet<_>>() {
            let theirs = theirs.get(name).unwrap_or_else(|| panic!("{name} is not in the recording"));
            let Some(ours) = ours.get(name) else {
                wrong.push(format!("{name} is missing"));
                continue;
            };
            let look = |family: &Family| {
                (family.kind.clone(), family.help.clone(), family.labels.clone(), family.buckets.clone())
            };
            if look(ours) != look(theirs) {
                wrong.push(format!("{name}:\n  kube-proxy {:?}\n  ferrule    {:?}", look(theirs), look(ours)));
            }
        }
        assert!(wrong.is_empty(), "{case}:\n{}", wrong.join("\n"));
        let foreign: Vec<_> =
            ours.keys().filter(|name| name.starts_with("kubeproxy_") && !theirs.contains_key(*name)).collect();
        assert!(foreign.is_empty(), "{case}: {foreign:?}");
        // Values that do not depend on the machine.
        for name in ["kubeproxy_sync_proxy_rules_no_local_endpoints_total", "rest_client_request_size_bytes"] {
            let first = recorded(&format!("{case}/http/metrics.txt"));
            assert_eq!(ours[name].series, first[name].series, "{case}");
        }
        let gates = |families: &BTreeMap<String, Family>| families["kubernetes_feature_enabled"].series.clone();
        let (ours, theirs) = (gates(&ours), gates(&theirs));
        assert!(ours.len() > 240, "{}", ours.len());
        let different: Vec<_> = ours.iter().filter(|(series, value)| theirs.get(*series) != Some(value)).collect();
        assert!(different.is_empty(), "{different:?}");
    }
}

#[test]
fn other_modes_have_their_own() {
    for case in ["ipvs-base", "nftables-base"] {
        let ours = families(&a_life(case).scrape());
        let names = |families: &BTreeMap<String, Family>| -> BTreeSet<String> {
            families.keys().filter(|name| name.starts_with("kubeproxy_")).cloned().collect()
        };
        let mut theirs = names(&recorded(&format!("{case}/http/metrics.txt")));
        theirs.extend(["healthz", "livez"].map(|path| format!("kubeproxy_proxy_{path}_total")));
        if case == "nftables-base" {
            theirs.insert("kubeproxy_sync_partial_proxy_rules_duration_seconds".to_owned());
        }
        assert_eq!(names(&ours), theirs, "{case}");
    }
}

#[test]
fn failures_of_nftables_mode_are_counted() {
    let config = config("nftables-base");
    let metrics = metrics(&config);
    let (plan, scope) = (plan_of_nothing(&config), Scope::Services(BTreeSet::new()));
    let mut recorder = metrics.recorder();
    recorder.notice(&Notice::Started(IpFamily::V4));
    let report = Report { refusals: 2, cleanup_failures: 3, ..Report::default() };
    recorder.notice(&Notice::Ended(ended(&plan, &scope, &report, &[])));
    for (name, expected) in [
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", 2.0),
        ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", 3.0),
    ] {
        assert_eq!(value(&metrics, name, &format!("{name}{{ip_family=\"IPv4\"}}")), expected, "{name}");
    }
}

/// A label makes a family absent until it is used; without labels it is there from the start.
#[test]
fn what_a_fresh_scrape_has() {
    let config = config("legacy-base");
    let fresh = families(&metrics(&config).scrape());
    let ours: Vec<&String> = fresh.keys().filter(|name| name.starts_with("kubeproxy_")).collect();
    let expected = [
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        "kubeproxy_proxy_healthz_total",
        "kubeproxy_proxy_livez_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "kubeproxy_sync_proxy_rules_service_changes_total",
    ];
    assert_eq!(ours, expected);
    assert_eq!(fresh["kubeproxy_proxy_healthz_total"].series.len(), 1, "a code that was never given is no series");
    assert_eq!(fresh["ferrule_watch_connected"].series["ferrule_watch_connected{kind=\"Service\"}"], "1");
    assert!(fresh.contains_key("ferrule_watch_last_heard_timestamp_seconds"));
}

fn value(metrics: &Metrics, family: &str, series: &str) -> f64 {
    let families = families(&metrics.scrape());
    let family = families.get(family).unwrap_or_else(|| panic!("{family} is missing"));
    family.series.get(series).unwrap_or_else(|| panic!("{series} is missing: {:?}", family.series)).parse().unwrap()
}

#[test]
fn times_of_triggers() {
    let config = config("legacy-base");
    let metrics = metrics(&config);
    let mut recorder = metrics.recorder();
    recorder.notice(&Notice::Started(IpFamily::V4));
    let plan = plan_of_nothing(&config);
    let now = k8s_time(Duration::ZERO);
    let triggers: Vec<Box<str>> = vec![now.into(), k8s_time(Duration::from_secs(3_600)).into(), "yesterday".into()];
    recorder.notice(&Notice::Ended(ended(&plan, &Scope::Services(BTreeSet::new()), &Report::default(), &triggers)));
    let name = "kubeproxy_network_programming_duration_seconds";
    // The one from before the process began does not count, nor does the one that is no time.
    assert_eq!(value(&metrics, name, &format!("{name}_count{{ip_family=\"IPv4\"}}")), 1.0);
    let family = families(&metrics.scrape()).remove(name).unwrap();
    assert_eq!((family.buckets.len(), family.buckets[0].as_str(), family.buckets[80].as_str()), (82, "0", "300"));
    assert_eq!(family.help, "[ALPHA] In Cluster Network Programming Latency in seconds");
}

fn plan_of_nothing(config: &Config) -> Plan {
    let mut objects = Objects::default();
    objects.apply("objects/all.yaml");
    plan(&objects, config, IpFamily::V4)
}

/// The time that long ago, as it stands in annotations.
fn k8s_time(ago: Duration) -> String {
    jiff::Timestamp::try_from(std::time::SystemTime::now() - ago).unwrap().to_string()
}

#[test]
fn pending_changes_and_failures() {
    let config = config("legacy-base");
    let metrics = metrics(&config);
    let mut recorder = metrics.recorder();
    let (pending, total) =
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "kubeproxy_sync_proxy_rules_service_changes_total");
    IpFamily::BOTH.into_iter().for_each(|family| recorder.notice(&Notice::Started(family)));
    let (service, slice) = crate::clusters::plain_service(1, 2);
    let name: ServiceName = service.name.clone();
    let event = Event::Service(Arc::new(service));
    let changed = Changed::Service(name.clone(), Families::Both);
    recorder.notice(&Notice::Event { event: &event, changed: &changed });
    recorder.notice(&Notice::Event { event: &event, changed: &Changed::Nothing });
    assert_eq!((value(&metrics, pending, pending), value(&metrics, total, total)), (1.0, 4.0));
    let of_slice = slice.family;
    let event = Event::EndpointSlice(Arc::new(slice));
    let changed = Changed::Service(name, Families::Only(of_slice));
    recorder.notice(&Notice::Event { event: &event, changed: &changed });
    let slices = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    assert_eq!(value(&metrics, slices, slices), 1.0);
    IpFamily::BOTH.into_iter().for_each(|family| recorder.notice(&Notice::Begun(family)));
    assert_eq!((value(&metrics, pending, pending), value(&metrics, slices, slices)), (0.0, 0.0));

    let plan = plan_of_nothing(&config);
    let report = Report { refusals: 2, set_aside: 1, ..Report::default() };
    let scope = Scope::Services(BTreeSet::new());
    recorder.notice(&Notice::Drifted(IpFamily::V4));
    recorder.notice(&Notice::Ended(ended(&plan, &scope, &report, &[])));
    for (name, expected) in [
        ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", 2.0),
        ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", 2.0),
        ("ferrule_set_aside_service_ports", 1.0),
        ("ferrule_drift_found_total", 1.0),
        ("ferrule_drift_repaired_total", 1.0),
        ("ferrule_oldest_change_seconds", 0.0),
    ] {
        assert_eq!(value(&metrics, name, &format!("{name}{{ip_family=\"IPv4\"}}")), expected, "{name}");
    }
}

/// The number of rules is counted as kube-proxy counts: all of its own chains', none of the jumps there.
#[tokio::test]
async fn counts_of_rules_are_those_of_kube_proxy() {
    let config = config("legacy-base");
    let mut objects = Objects::default();
    objects.apply("objects/all.yaml");
    for family in IpFamily::BOTH {
        let kernel = FakeKernel::new(Variant::Legacy);
        let tools = Tools::probe(kernel.clone(), family, |_| false).await.unwrap();
        let mode = Mode { mark: config.masquerade_mark, drop_invalid: true, layout: Layout::default() };
        let mut backend = Iptables::new(tools, mode, || Counters { invalid_dropped: true, localhost_accepted: true });
        let first = plan(&objects, &config, family);
        let report = backend.sync(&first, &Scope::Audit).await.unwrap();
        let expected = recorded_count("legacy-base/http/metrics.txt", family, "total");
        assert_eq!((report.holds, report.rules), (expected, expected), "{family}");

        let mut changed = objects.clone();
        let mut plans = first;
        for step in recordings::steps() {
            changed.step(&step);
            let next = plan(&changed, &config, family);
            let names = plans.services().keys().chain(next.services().keys());
            let touched = names.filter(|name| plans.services().get(*name) != next.services().get(*name)).cloned();
            let scope = Scope::Services(touched.collect());
            let report = backend.sync(&next, &scope).await.unwrap();
            let saved = recordings::saved_chains(&recordings::saved_text(&format!("legacy-base/steps/{step}"), family));
            let count = |of: &str| {
                let own = saved
                    .iter()
                    .filter(|((table, chain), _)| table.as_str() == of && chain.as_str().starts_with("KUBE-"));
                own.map(|(_, rules)| rules.len()).sum::<usize>()
            };
            assert_eq!(report.holds, RuleCount { filter: count("filter"), nat: count("nat") }, "{family} {step}");
            plans = next;
        }
        let report = backend.sync(&plans, &Scope::Everything).await.unwrap();
        let expected = recorded_count("legacy-base/http/metrics-after-steps.txt", family, "total");
        assert_eq!((report.holds, report.rules), (expected, RuleCount::default()), "{family}");
    }
}

fn recorded_count(file: &str, family: IpFamily, which: &str) -> RuleCount {
    let families = recorded(file);
    let name = format!("kubeproxy_sync_proxy_rules_iptables_{which}");
    let of = |table: &str| -> usize {
        families[&name].series[&format!("{name}{{ip_family=\"{family}\",table=\"{table}\"}}")].parse().unwrap()
    };
    RuleCount { filter: of("filter"), nat: of("nat") }
}
