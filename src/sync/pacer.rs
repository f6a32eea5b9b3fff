//! When to sync: a state machine fed with the time.
//!
//! The first request after a quiet time runs at once. Two syncs never start closer than `min` after
//! the end of the previous one; requests meanwhile are served together. After a failure it is tried
//! again by itself, first soon, then ever more rarely up to `retry`. (kube-proxy:
//! `bounded_frequency_runner.go`, which always waits `retry`.)

use std::time::Duration;

/// Points in time: the span since some fixed moment.
pub type Instant = Duration;

/// How soon a failed sync is tried again the first time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Limits of the pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Least time between the end of a sync and the start of the next.
    pub min: Duration,
    /// Longest time until a failed sync is tried again; also how often the kernel is looked at.
    pub retry: Duration,
    /// Longest time until a full sync although nothing happened.
    pub max: Duration,
}

/// Decides when the next sync begins.
#[derive(Clone, Debug)]
pub struct Pacer {
    pace: Pace,
    requested: bool,
    running: bool,
    /// End of the last sync.
    ended: Option<Instant>,
    /// Failures since the last success.
    failures: u32,
    /// When to sync although nobody asked.
    alarm: Option<Instant>,
}

// === impl Pacer ===

impl Pacer {
    /// Nothing requested yet.
    pub fn new(pace: Pace) -> Pacer {
        Pacer { pace, requested: false, running: false, ended: None, failures: 0, alarm: None }
    }

    /// Somebody wants a sync.
    pub fn request(&mut self) {
        self.requested = true;
    }

    /// Whether somebody wants a sync that has not begun.
    pub fn is_requested(&self) -> bool {
        self.requested
    }

    /// When the next sync is due, if nothing else happens. `None` while one runs, or with nothing
    /// to do.
    pub fn due(&self) -> Option<Instant> {
        if self.running {
            return None;
        }
        let earliest = self.ended.map_or(Duration::ZERO, |ended| ended + self.pace.min);
        match (self.requested, self.alarm) {
            (true, _) => Some(earliest),
            (false, Some(alarm)) => Some(alarm.max(earliest)),
            (false, None) => None,
        }
    }

    /// A sync begins; what was requested is served by it.
    pub fn begin(&mut self) {
        self.requested = false;
        self.running = true;
    }

    /// A sync has ended.
    pub fn end(&mut self, now: Instant, success: bool) {
        self.running = false;
        self.ended = Some(now);
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        let wait = match self.failures {
            0 => self.pace.max,
            n => FIRST_RETRY.saturating_mul(1 << (n - 1).min(16)).min(self.pace.retry).min(self.pace.max),
        };
        self.alarm = Some(now + wait);
    }

    /// Whether the last sync failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pacer(min: u64, retry: u64) -> Pacer {
        Pacer::new(Pace { min: s(min), retry: s(retry), max: s(3600) })
    }

    #[test]
    fn the_first_request_is_due_at_once() {
        let mut pacer = pacer(1, 30);
        assert_eq!(pacer.due(), None);
        pacer.request();
        assert_eq!(pacer.due(), Some(s(0)));
    }

    #[test]
    fn requests_while_running_are_served_once_after_the_least_interval() {
        let mut pacer = pacer(5, 30);
        pacer.request();
        pacer.begin();
        pacer.request();
        pacer.request();
        assert_eq!(pacer.due(), None);
        pacer.end(s(10), true);
        assert_eq!(pacer.due(), Some(s(15)));
        pacer.begin();
        pacer.end(s(16), true);
        assert_eq!(pacer.due(), Some(s(16 + 3600)));
    }

    #[test]
    fn after_a_quiet_time_a_request_does_not_wait() {
        let mut pacer = pacer(5, 30);
        pacer.begin();
        pacer.end(s(10), true);
        pacer.request();
        assert!(pacer.due().unwrap() <= s(100));
    }

    #[test]
    fn failures_are_retried_ever_more_rarely_up_to_the_limit() {
        let mut pacer = pacer(0, 6);
        let mut waits = Vec::new();
        for _ in 0..5 {
            pacer.begin();
            pacer.end(s(100), false);
            waits.push(pacer.due().unwrap() - s(100));
        }
        assert_eq!(waits, [s(1), s(2), s(4), s(6), s(6)]);
        pacer.begin();
        pacer.end(s(100), true);
        assert!(!pacer.is_failing());
        assert_eq!(pacer.due(), Some(s(3700)));
    }
}
