//! What kube-proxy has no metric for.

use prometheus::{GaugeVec, HistogramVec, IntCounterVec, Result};

use super::families::{Families, IP_FAMILY, doubling};

/// The families, all with the prefix `ferrule_`.
pub(super) struct Own {
    /// By stage: `queue` (the oldest request waited for its sync), `plan`, `diff` and `apply`. Those of a
    /// sync that fails have no `diff` and `apply`.
    pub(super) stages: HistogramVec,
    /// Seconds since the oldest change that is not in the kernel, 0 without one. Set at each scrape.
    pub(super) oldest: GaugeVec,
    /// Service ports of which the kernel refuses the rules; their previous ones stay.
    pub(super) set_aside: GaugeVec,
    /// Programs run by each sync to write rules.
    pub(super) restores: HistogramVec,
    /// Bytes given to them.
    pub(super) bytes: HistogramVec,
    /// Looks that found rules missing.
    pub(super) drift_found: IntCounterVec,
    /// Of these, how many were followed by a sync that put them back.
    pub(super) drift_repaired: IntCounterVec,
    /// When the API server was last heard of, by kind of object watched. Set at each scrape.
    pub(super) heard: GaugeVec,
    /// Whether that watch stands. Set at each scrape.
    pub(super) connected: GaugeVec,
}

// === impl Own ===

impl Own {
    pub(super) fn register(f: &mut Families) -> Result<Own> {
        let mut bytes = vec![0.0];
        bytes.extend((0..9).map(|i| 1_024.0 * f64::from(1u32 << (2 * i))));
        Ok(Own {
            stages: f.histograms(
                "ferrule_change_stage_duration_seconds",
                "How long changes spend in each stage on their way to the kernel: queue, plan, diff, apply.",
                &[IP_FAMILY, "stage"],
                // Planning and comparing one Service takes microseconds.
                [0.000_01, 0.000_05, 0.000_1, 0.000_5].into_iter().chain(doubling()).collect(),
            )?,
            oldest: f.gauges(
                "ferrule_oldest_change_seconds",
                "Age of the oldest change that is not in the kernel yet; 0 if all are.",
                &[IP_FAMILY],
            )?,
            set_aside: f.gauges(
                "ferrule_set_aside_service_ports",
                "Service ports whose rules the kernel refuses; their previous rules stay. The log names them.",
                &[IP_FAMILY],
            )?,
            restores: f.histograms(
                "ferrule_sync_restores",
                "Programs run by a sync to write rules.",
                &[IP_FAMILY],
                vec![0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0],
            )?,
            bytes: f.histograms(
                "ferrule_sync_restore_bytes",
                "Bytes of rules given to the kernel by a sync.",
                &[IP_FAMILY],
                bytes,
            )?,
            drift_found: f.counters(
                "ferrule_drift_found_total",
                "Looks at the kernel that found rules missing which another program must have removed.",
                &[IP_FAMILY],
            )?,
            drift_repaired: f.counters(
                "ferrule_drift_repaired_total",
                "Findings of missing rules after which a sync has put them back.",
                &[IP_FAMILY],
            )?,
            heard: f.gauges(
                "ferrule_watch_last_heard_timestamp_seconds",
                "When the API server last said anything in a watch, as Unix time.",
                &["kind"],
            )?,
            connected: f.gauges("ferrule_watch_connected", "Whether a watch stands (1) or not (0).", &["kind"])?,
        })
    }
}
