//! `rest_client_*`: requests to the API server. Names, help texts and buckets are client-go's.

use prometheus::{HistogramVec, IntCounterVec, Result};

use super::families::Families;
use crate::source::Exchange;

pub(super) struct Requests {
    requests: IntCounterVec,
    duration: HistogramVec,
    rate_limiter: HistogramVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
}

/// Bounds of times, in seconds.
const TIMES: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
/// Bounds of sizes, in bytes.
const SIZES: [f64; 11] =
    [64.0, 256.0, 512.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

// === impl Requests ===

impl Requests {
    pub(super) fn register(f: &mut Families) -> Result<Requests> {
        let mut histogram = |name: &str, help: &str, buckets: &[f64]| {
            f.histograms(
                &format!("rest_client_{name}"),
                &format!("[ALPHA] {help}"),
                &["verb", "host"],
                buckets.to_vec(),
            )
        };
        Ok(Requests {
            duration: histogram(
                "request_duration_seconds",
                "Request latency in seconds. Broken down by verb, and host.",
                &TIMES,
            )?,
            rate_limiter: histogram(
                "rate_limiter_duration_seconds",
                "Client side rate limiter latency in seconds. Broken down by verb, and host.",
                &TIMES,
            )?,
            request_size: histogram(
                "request_size_bytes",
                "Request size in bytes. Broken down by verb and host.",
                &SIZES,
            )?,
            response_size: histogram(
                "response_size_bytes",
                "Response size in bytes. Broken down by verb and host.",
                &SIZES,
            )?,
            requests: f.counters(
                "rest_client_requests_total",
                "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
                &["code", "method", "host"],
            )?,
        })
    }

    pub(super) fn count(&self, exchange: &Exchange) {
        match exchange {
            Exchange::Answered { method, host, code } => {
                let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
                self.requests.with_label_values(&[&*code, method, host]).inc();
            }
            Exchange::Complete { method, host, waited, duration, sent, received } => {
                let labels = &[method, &**host];
                self.duration.with_label_values(labels).observe(duration.as_secs_f64());
                self.rate_limiter.with_label_values(labels).observe(waited.as_secs_f64());
                self.request_size.with_label_values(labels).observe(*sent as f64);
                self.response_size.with_label_values(labels).observe(*received as f64);
            }
        }
    }
}
