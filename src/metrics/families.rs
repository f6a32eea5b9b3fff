//! Families under construction: registered where their mode has them, counted by stability.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, Result};

/// Label of everything that each IP family has of its own.
pub(super) const IP_FAMILY: &str = "ip_family";

/// Registers families.
#[derive(Default)]
pub(super) struct Families {
    registry: Registry,
    /// How many of each stability level, as their help texts begin with.
    levels: BTreeMap<&'static str, u64>,
}

/// Stability levels of Kubernetes' metrics.
pub(super) const LEVELS: [&str; 4] = ["ALPHA", "BETA", "INTERNAL", "STABLE"];

/// 15 buckets, each twice as wide as the one before: 0.001 to 16.384.
pub(super) fn doubling() -> Vec<f64> {
    (0..15).map(|i| 0.001 * f64::from(1u32 << i)).collect()
}

/// Bounds of the network programming latency: 0 (by accident, but there), quarters, seconds to 60, then
/// ever wider steps to 300.
pub(super) fn network_programming() -> Vec<f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect()
}

// === impl Families ===

impl Families {
    pub(super) fn registry(self) -> Registry {
        self.registry
    }

    /// How many families of a level were registered.
    pub(super) fn count(&self, level: &str) -> u64 {
        self.levels.get(level).copied().unwrap_or(0)
    }

    fn add<T: Collector + Clone + 'static>(&mut self, family: T, help: &str) -> Result<T> {
        let level = LEVELS.into_iter().find(|level| help.strip_prefix('[').is_some_and(|rest| rest.starts_with(level)));
        *self.levels.entry(level.unwrap_or_default()).or_default() += 1;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::new(name, help)?, help)
    }

    pub(super) fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?, help)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::new(name, help)?, help)
    }

    pub(super) fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?, help)
    }

    pub(super) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?, help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(doubling().len(), 15);
        assert_eq!(doubling().last(), Some(&16.384));
        let bounds = network_programming();
        assert_eq!(bounds.len(), 81);
        assert!(bounds.is_sorted());
        assert_eq!(bounds.last(), Some(&300.0));
    }
}
