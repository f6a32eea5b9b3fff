//! How many requests the API server is asked to bear.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// A limit of requests over time. (kube-proxy: `--kube-api-qps` and `--kube-api-burst`; the client's
/// token bucket.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second in the long run; more than zero.
    pub per_second: f32,
    /// Requests at once after a pause; at least one.
    pub burst: u32,
}

/// A bucket of tokens, of which every request takes one.
#[derive(Debug)]
pub(super) struct Limit {
    rate: Option<Rate>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Less than zero if requests wait for tokens to come.
    tokens: f64,
    filled: Instant,
}

// === impl Limit ===

impl Limit {
    /// A full bucket; `None` is no limit.
    pub(super) fn new(rate: Option<Rate>) -> Limit {
        let tokens = rate.map_or(0.0, |rate| f64::from(rate.burst));
        Limit { rate, bucket: Mutex::new(Bucket { tokens, filled: Instant::now() }) }
    }

    /// Waits until a request may be made.
    pub(super) async fn wait(&self) {
        let Some(rate) = self.rate else { return };
        let delay = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(rate, Instant::now());
        if !delay.is_zero() {
            sleep(delay).await;
        }
    }
}

// === impl Bucket ===

impl Bucket {
    /// Takes a token; says how long it is until it is there.
    fn take(&mut self, rate: Rate, now: Instant) -> Duration {
        let per_second = f64::from(rate.per_second);
        let grown = (now - self.filled).as_secs_f64() * per_second;
        self.tokens = (self.tokens + grown).min(f64::from(rate.burst)) - 1.0;
        self.filled = now;
        Duration::try_from_secs_f64(-self.tokens.min(0.0) / per_second).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let limit = Limit::new(Some(Rate { per_second: 2.0, burst: 3 }));
        let start = Instant::now();
        for expected in [0, 0, 0, 500, 1000] {
            limit.wait().await;
            assert_eq!(start.elapsed().as_millis(), expected);
        }
        // A long pause fills the bucket, and no more than that.
        sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        for expected in [0, 0, 0, 500] {
            limit.wait().await;
            assert_eq!(start.elapsed().as_millis(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit() {
        let (limit, start) = (Limit::new(None), Instant::now());
        for _ in 0..1000 {
            limit.wait().await;
        }
        assert!(start.elapsed().is_zero());
    }
}
