//! How long to wait after a failure.

use std::time::Duration;

/// First wait.
const FIRST: Duration = Duration::from_millis(800);
/// Longest wait, before it is spread.
const LONGEST: Duration = Duration::from_secs(30);
/// After so long a time of health, past failures are forgotten.
pub(super) const HEALTHY: Duration = Duration::from_secs(120);

/// Waits of 0.8 s doubling to 30 s, each spread over up to twice its length so that the nodes of a
/// cluster do not come back in step. (client-go: `NewReflector`'s backoff.)
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a failure.
    pub(super) fn next(&mut self) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures += 1;
        wait.mul_f64(1.0 + fastrand::f64())
    }

    /// Forgets past failures, after a time of health.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_30s_spread_and_resets() {
        let mut backoff = Backoff::default();
        for expected in [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0] {
            let wait = backoff.next().as_secs_f64();
            assert!((expected..2.0 * expected).contains(&wait), "{wait} after {expected}");
        }
        backoff.reset();
        let wait = backoff.next().as_secs_f64();
        assert!((0.8..1.6).contains(&wait), "{wait}");
        let wait = backoff.next().as_secs_f64();
        assert!((1.6..3.2).contains(&wait), "{wait}");
    }

    #[test]
    fn is_spread() {
        let waits: Vec<Duration> = (0..20).map(|_| Backoff::default().next()).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "twenty equal waits");
    }
}
