//! What every component of Kubernetes says about itself.

use prometheus::proto::{MetricFamily, MetricType};

use super::families::{Families, LEVELS};
use super::sample;
use crate::config::{Config, KUBERNETES_VERSION, ProxyMode};

/// Families whose values never change while the program runs. `families` are those registered, which are
/// counted here.
pub(super) fn families(config: &Config, families: &Families) -> Vec<MetricFamily> {
    let gates = config.feature_gates.all().map(|(name, stage, enabled)| {
        (vec![("name", name.to_owned()), ("stage", stage.as_str().to_owned())], f64::from(u8::from(enabled)))
    });
    let levels = LEVELS.into_iter().map(|level| {
        // Those that are made up at a scrape are registered too, to somebody who counts: the ones of this
        // function, answers of probes, and counters of the kernel.
        let others = match level {
            "BETA" => 5,
            "ALPHA" if config.mode == ProxyMode::Iptables => 4,
            "ALPHA" => 2,
            _ => 0,
        };
        let labels = vec![("deprecated_version", String::new()), ("stability_level", level.to_owned())];
        (labels, (families.count(level) + others) as f64)
    });
    vec![
        sample::family(
            MetricType::GAUGE,
            "kubernetes_build_info",
            "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree \
             state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is \
             running.",
            [(build(&config.version), 1.0)],
        ),
        sample::family(
            MetricType::GAUGE,
            "kubernetes_feature_enabled",
            "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
            gates,
        ),
        sample::family(
            MetricType::COUNTER,
            "registered_metrics_total",
            "[BETA] The count of registered metrics broken by stability level and deprecation version.",
            levels,
        ),
        sample::alone(MetricType::COUNTER, "disabled_metrics_total", "[BETA] The count of disabled metrics.", 0.0),
        sample::alone(MetricType::COUNTER, "hidden_metrics_total", "[BETA] The count of hidden metrics.", 0.0),
    ]
}

/// Labels of the build: of the Kubernetes release we stand in for, where dashboards look for it; what only
/// a Go program has names ours.
fn build(version: &str) -> Vec<(&'static str, String)> {
    let mut numbers = KUBERNETES_VERSION.trim_start_matches('v').split('.').map(str::to_owned);
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    vec![
        ("build_date", String::new()),
        ("compiler", "rustc".to_owned()),
        ("git_commit", String::new()),
        ("git_tree_state", String::new()),
        ("git_version", version.to_owned()),
        ("go_version", String::new()),
        ("major", major),
        ("minor", minor),
        ("platform", format!("{}/{architecture}", std::env::consts::OS)),
    ]
}
