//! The dashboard and the alerts ask for metrics that ferrule has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{document, files, read};

/// The families that are used, with the labels that may be asked for. Those of kube-proxy are as in
/// its documentation.
const FAMILIES: [(&str, &[&str]); 36] = [
    ("ferrule_change_stage_duration_seconds", &["ip_family", "stage"]),
    ("ferrule_drift_found_total", &["ip_family"]),
    ("ferrule_drift_repaired_total", &["ip_family"]),
    ("ferrule_oldest_change_seconds", &["ip_family"]),
    ("ferrule_set_aside_service_ports", &["ip_family"]),
    ("ferrule_sync_restore_bytes", &["ip_family"]),
    ("ferrule_sync_restores", &["ip_family"]),
    ("ferrule_watch_connected", &["kind"]),
    ("ferrule_watch_last_heard_timestamp_seconds", &["kind"]),
    ("kubeproxy_conntrack_reconciler_deleted_entries_total", &["ip_family"]),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds", &["ip_family"]),
    ("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", &[]),
    ("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", &[]),
    ("kubeproxy_network_programming_duration_seconds", &["ip_family"]),
    ("kubeproxy_proxy_healthz_total", &["code"]),
    ("kubeproxy_proxy_livez_total", &["code"]),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds", &["ip_family"]),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_duration_seconds", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", &[]),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", &[]),
    ("kubeproxy_sync_proxy_rules_iptables_last", &["ip_family", "table"]),
    ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_iptables_total", &["ip_family", "table"]),
    ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", &["ip_family"]),
    ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", &["ip_family", "traffic_policy"]),
    ("kubeproxy_sync_proxy_rules_service_changes_pending", &[]),
    ("kubeproxy_sync_proxy_rules_service_changes_total", &[]),
    ("process_cpu_seconds_total", &[]),
    ("process_open_fds", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_start_time_seconds", &[]),
    ("rest_client_requests_total", &["code"]),
];

/// Labels that a scrape adds.
const SCRAPED: [&str; 3] = ["instance", "job", "le"];

/// Words of PromQL that are used; all others are metrics or labels.
const PROMQL: [&str; 24] = [
    "absent",
    "and",
    "by",
    "changes",
    "clamp_min",
    "count",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "on",
    "or",
    "rate",
    "sum",
    "time",
    "topk",
    "vector",
    "__rate_interval",
    "instance",
    "job",
    "ip_family",
    "h",
    "m",
];

/// A metric with the labels that an expression asks of it.
type Asked = BTreeMap<String, BTreeSet<String>>;

/// The families that an expression names, and the labels it selects by, groups by or joins on.
fn asked(expression: &str) -> Asked {
    let mut families = Asked::new();
    let mut labels = BTreeSet::new();
    for (word, after) in words(expression) {
        let is_label = after.starts_with('=') || after.starts_with("!=");
        if word.contains('_') && !is_label && !PROMQL.contains(&word.as_str()) {
            if word == "traffic_policy" {
                labels.insert(word);
            } else {
                let family = word.strip_suffix("_bucket").unwrap_or(&word);
                families.entry(family.to_owned()).or_default();
            }
        } else if is_label || !PROMQL.contains(&word.as_str()) || word == "ip_family" {
            labels.insert(word);
        }
    }
    for asked in families.values_mut() {
        asked.extend(labels.iter().cloned());
    }
    families
}

/// Words outside of strings, each with what follows it.
fn words(expression: &str) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    let mut rest = expression;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    while let Some(c) = rest.chars().next() {
        if c == '"' {
            let end = rest[1..].find('"').expect("a closing quote") + 2;
            rest = &rest[end..];
        } else if c.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| is_part(c) || c == '.');
        } else if is_part(c) {
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            found.push((word.to_owned(), after.trim_start()));
            rest = after;
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// What is wrong with an expression.
fn complaints(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (family, labels) in asked(expression) {
        match FAMILIES.iter().find(|(name, _)| *name == family) {
            None => found.push(format!("no family {family}")),
            Some((_, known)) => {
                let unknown = labels.iter().filter(|l| !known.contains(&l.as_str()) && !SCRAPED.contains(&l.as_str()));
                found.extend(unknown.map(|label| format!("{family} has no label {label}")));
            }
        }
    }
    found
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/chart/files/dashboard.json")).unwrap()
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().unwrap()
}

fn targets(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard).iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn rules() -> Vec<Value> {
    let file = document("deploy/chart/files/prometheus-rule.yaml", "PrometheusRule");
    let groups = file["spec"]["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn alerts() -> Vec<String> {
    rules().iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn expressions_name_metrics_with_their_labels() {
    let all = [targets(&dashboard()), alerts()].concat();
    assert!(all.len() > 50, "{} expressions", all.len());
    let wrong: Vec<_> = all.iter().map(|one| (one, complaints(one))).filter(|(_, wrong)| !wrong.is_empty()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let used: BTreeSet<String> = all.iter().flat_map(|one| asked(one).into_keys()).collect();
    let unused: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).filter(|name| !used.contains(*name)).collect();
    assert_eq!(unused, [""; 0], "families listed here that nothing shows");
}

#[test]
fn a_wrong_expression_is_noticed() {
    assert_eq!(complaints("rate(ferrule_nothing_total[5m])"), ["no family ferrule_nothing_total"]);
    let wrong = "sum by (le, stage) (rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job=~\"x\"}[5m]))";
    assert_eq!(complaints(wrong), ["kubeproxy_sync_proxy_rules_duration_seconds has no label stage"]);
    assert_eq!(complaints("process_open_fds{kind=\"x\"}"), ["process_open_fds has no label kind"]);
}

/// Every family is one that the program registers: its name is in the program's text, whole or
/// without the prefix that it shares with others.
#[test]
fn the_program_has_these_metrics() {
    let sources: Vec<String> = files("src").into_iter().filter(|file| file.starts_with("metrics")).collect();
    if sources.is_empty() {
        let readme = read("README.md");
        let row = readme.lines().find(|line| line.contains("`/metrics`")).expect("README.md tells of metrics");
        assert!(row.ends_with("| not yet |"), "no metrics in the program, but README.md says: {row}");
        return;
    }
    let text: String = sources.iter().map(|file| read(&format!("src/{file}"))).collect();
    let is_there = |name: &str| {
        let short = ["kubeproxy_", "rest_client_"].iter().find_map(|prefix| name.strip_prefix(prefix));
        [Some(name), short].iter().flatten().any(|name| text.contains(&format!("\"{name}\"")))
    };
    let missing: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "shown or alerted on, but not in src/metrics: {missing:?}");
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard = dashboard();
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string() && dashboard["id"].is_null());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance", "ip_family"]);
    assert_eq!(variables[0]["type"], "datasource");
    for variable in &variables[1..] {
        assert_eq!(variable["datasource"]["uid"], "${datasource}");
        assert_eq!(complaints(variable["definition"].as_str().unwrap()), [""; 0], "{variable}");
    }

    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: an id twice");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{title} is too wide");
        for place in (y..y + h).flat_map(|y| (x..x + w).map(move |x| (x, y))) {
            assert!(taken.insert(place), "{title} covers another panel");
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: a unit");
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
                assert!(target["expr"].as_str().unwrap().contains("job=~\"$job\""), "{title}: the chosen job only");
            }
        }
    }
}

#[test]
fn alerts_say_what_to_do() {
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name.to_owned()) && name.starts_with("Ferrule"), "{name}");
        let severity = &rule["labels"]["severity"];
        assert!(severity == "critical" || severity == "warning", "{name}: {severity}");
        for said in ["summary", "description", "runbook"] {
            let text = rule["annotations"][said].as_str().unwrap_or_default();
            assert!(text.len() > 20, "{name}: no {said}");
            // A label that the expression has aggregated away would be empty.
            for label in text.split("$labels.").skip(1) {
                let label: String = label.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                assert!(rule["expr"].as_str().unwrap().contains(&label), "{name}: {said} names {label}");
            }
        }
    }
    assert!(names.len() > 8, "{names:?}");
}
