//! When to sync: a state machine fed with the time.
//!
//! The first request after a quiet time runs at once. No sync starts sooner than `min` after the end of
//! the previous one, and if that took long, sooner than twice the time it took: writing to the kernel
//! never takes more than a third of the time, however much changes. Requests meanwhile are served
//! together. After a failure it is tried
//! again by itself, first soon, then ever more rarely up to `retry`. What the kernel refused of an
//! otherwise good sync is tried again after `retry`, then ever more rarely up to `max`. However
//! much happens, `max` after the kernel was looked at as a whole it is time to do so again. What is
//! done in pieces goes on at once: requests meanwhile are served with the next piece.
//! (kube-proxy: `bounded_frequency_runner.go`, which always waits `retry`.)

use std::time::Duration;

/// Points in time: the span since some fixed moment.
pub type Instant = Duration;

/// How soon a failed sync is tried again the first time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The pause after a sync that took long is at most that long, unless `min` is longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(6);

/// Limits of the pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Least time between the end of a sync and the start of the next.
    pub min: Duration,
    /// Longest time until a failed sync is tried again; also how often the kernel is looked at.
    pub retry: Duration,
    /// Longest time until the kernel is looked at as a whole.
    pub max: Duration,
}

/// Why a sync begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody asked for it.
    Request,
    /// The last one did not succeed, or not for every Service.
    Retry,
    /// It is the first one, or the last look at the whole kernel was long ago.
    Audit,
}

/// How a sync ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The kernel holds what it should.
    Complete,
    /// It does, but for Services that it refuses.
    Incomplete {
        /// Whether it refused any in this sync, not only in earlier ones.
        anew: bool,
    },
    /// It may not.
    Failed,
    /// That is still to be seen: this was one piece of a sync, and there are more.
    Unfinished,
}

/// Decides when the next sync begins.
#[derive(Clone, Debug)]
pub struct Pacer {
    pace: Pace,
    requested: bool,
    /// Why the sync that runs now began, and when.
    running: Option<(Occasion, Instant)>,
    /// Why the sync began of which only a piece was done, and when.
    unfinished: Option<(Occasion, Instant)>,
    /// Before that, no sync begins.
    earliest: Instant,
    last: Ended,
    /// Syncs in a row that ended like the last one.
    repeated: u32,
    /// When to try again.
    retry: Option<Instant>,
    /// When to look at the whole kernel again; at once, before it was ever done.
    audit: Option<Instant>,
}

// === impl Pacer ===

impl Pacer {
    /// Nothing requested yet.
    pub fn new(pace: Pace) -> Pacer {
        let last = Ended::Complete;
        let earliest = Duration::ZERO;
        let (running, unfinished) = (None, None);
        Pacer { pace, requested: false, running, unfinished, earliest, last, repeated: 0, retry: None, audit: None }
    }

    /// Somebody wants a sync.
    pub fn request(&mut self) {
        self.requested = true;
    }

    /// Notes that something is to be done at once, because the kernel does not do what it should.
    pub fn urge(&mut self) {
        self.requested = true;
        self.earliest = Instant::ZERO;
    }

    /// Whether somebody wants a sync that has not begun.
    pub fn is_requested(&self) -> bool {
        self.requested
    }

    /// When the next sync is due, if nothing else happens. `None` while one runs, or with nothing
    /// to do.
    pub fn due(&self) -> Option<Instant> {
        if self.running.is_some() {
            return None;
        }
        let requested = (self.requested || self.is_unfinished()).then_some(self.earliest);
        requested.into_iter().chain(self.retry).chain(self.audit).min().map(|due| due.max(self.earliest))
    }

    /// Whether the last sync was only a piece: the next one goes on with it.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    /// A sync begins, and serves all that is due by then; or it goes on, for the reason for which it began.
    pub fn begin(&mut self, now: Instant) -> Occasion {
        if let Some((occasion, began)) = self.unfinished.take() {
            self.requested = false;
            self.running = Some((occasion, began));
            return occasion;
        }
        let occasion = match self.requested {
            _ if self.audit.is_none_or(|audit| audit <= now) => Occasion::Audit,
            // A request does not take a retry with it that is not due yet: it could be requested
            // often, and a retry is about everything.
            true if self.retry.is_none_or(|retry| retry > now) => Occasion::Request,
            _ => Occasion::Retry,
        };
        self.requested = false;
        self.running = Some((occasion, now));
        occasion
    }

    /// A sync has ended.
    pub fn end(&mut self, now: Instant, ended: Ended) {
        if ended == Ended::Unfinished {
            self.unfinished = self.running.take();
            self.earliest = now;
            return;
        }
        let (occasion, began) = self.running.take().unzip();
        let pause = match (occasion, began) {
            (Some(Occasion::Request), Some(began)) => (2 * now.saturating_sub(began)).min(LONGEST_PAUSE),
            // What is about everything happens rarely.
            _ => Duration::ZERO,
        };
        self.earliest = now + pause.max(self.pace.min);
        let requested = occasion == Some(Occasion::Request);
        let (same, counts) = match ended {
            // What was refused earlier has not been tried, what is refused now was not before.
            Ended::Incomplete { anew } if requested => (false, anew || !matches!(self.last, Ended::Incomplete { .. })),
            Ended::Incomplete { .. } => (matches!(self.last, Ended::Incomplete { .. }), true),
            _ => (ended == self.last, true),
        };
        if counts {
            self.repeated = if same { self.repeated.saturating_add(1) } else { 1 };
            let Pace { retry, max, .. } = self.pace;
            let doubled = |first: Duration| first.saturating_mul(1 << (self.repeated - 1).min(16));
            self.retry = match ended {
                Ended::Complete | Ended::Unfinished => None,
                Ended::Incomplete { .. } => Some(now + doubled(retry).min(max)),
                Ended::Failed => Some(now + doubled(FIRST_RETRY).min(retry).min(max)),
            };
        }
        self.last = ended;
        if ended != Ended::Failed && occasion == Some(Occasion::Audit) {
            self.audit = Some(now + self.pace.max);
        }
    }

    /// Whether the last sync failed.
    pub fn is_failing(&self) -> bool {
        self.last == Ended::Failed
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
        assert_eq!(pacer.begin(s(1)), Occasion::Audit, "the first");
        pacer.request();
        pacer.request();
        assert_eq!(pacer.due(), None);
        pacer.end(s(10), Ended::Complete);
        assert_eq!(pacer.due(), Some(s(15)));
        assert_eq!(pacer.begin(s(15)), Occasion::Request);
        pacer.end(s(16), Ended::Complete);
        assert_eq!(pacer.due(), Some(s(10 + 3600)));
    }

    #[test]
    fn after_a_quiet_time_a_request_does_not_wait() {
        let mut pacer = pacer(5, 30);
        pacer.begin(s(1));
        pacer.end(s(10), Ended::Complete);
        pacer.request();
        assert!(pacer.due().unwrap() <= s(100));
    }

    #[test]
    fn writing_takes_a_third_of_the_time_at_most() {
        let check = |took: Duration, pause: Duration| {
            let mut pacer = pacer(1, 30);
            pacer.begin(s(0));
            pacer.end(s(60), Ended::Complete);
            pacer.request();
            assert_eq!(pacer.due(), Some(s(61)), "the first one took a minute, and no other does");
            pacer.begin(s(100));
            pacer.end(s(100) + took, Ended::Complete);
            pacer.request();
            assert_eq!(pacer.due(), Some(s(100) + took + pause), "after {took:?}");
        };
        check(Duration::from_millis(20), s(1));
        check(Duration::from_millis(1_100), Duration::from_millis(2_200));
        check(s(20), s(6));
    }

    #[test]
    fn pieces_follow_each_other_at_once() {
        let mut pacer = pacer(1, 30);
        assert_eq!(pacer.begin(s(10)), Occasion::Audit);
        pacer.end(s(12), Ended::Unfinished);
        assert!(pacer.is_unfinished());
        assert_eq!(pacer.due(), Some(s(12)));
        pacer.request();
        assert_eq!(pacer.begin(s(12)), Occasion::Audit, "it goes on");
        assert!(!pacer.is_requested(), "served with this piece");
        pacer.end(s(14), Ended::Complete);
        assert!(!pacer.is_unfinished());
        assert_eq!(pacer.due(), Some(s(14 + 3600)), "all of it was looked at");
    }

    #[test]
    fn what_fails_in_the_middle_is_retried_as_a_whole() {
        let mut pacer = pacer(0, 30);
        pacer.begin(s(0));
        pacer.end(s(1), Ended::Unfinished);
        pacer.begin(s(1));
        pacer.end(s(2), Ended::Failed);
        assert!(!pacer.is_unfinished());
        assert_eq!(pacer.begin(s(3)), Occasion::Audit);
    }

    #[test]
    fn failures_are_retried_ever_more_rarely_up_to_the_limit() {
        let mut pacer = pacer(0, 6);
        let mut waits = Vec::new();
        for _ in 0..5 {
            pacer.begin(s(100));
            pacer.end(s(100), Ended::Failed);
            waits.push(pacer.due().unwrap() - s(100));
        }
        assert_eq!(waits, [s(1), s(2), s(4), s(6), s(6)]);
        assert!(pacer.is_failing());
        pacer.begin(s(106));
        pacer.end(s(106), Ended::Complete);
        assert!(!pacer.is_failing());
        assert_eq!(pacer.due(), Some(s(3706)));
    }

    #[test]
    fn what_was_refused_is_tried_again_whatever_else_happens() {
        let mut pacer = pacer(0, 30);
        let (mut now, mut waits) = (s(0), Vec::new());
        for _ in 0..9 {
            let began = now;
            pacer.begin(now);
            pacer.end(now, Ended::Incomplete { anew: true });
            // Not what this is about.
            pacer.audit = Some(s(1_000_000));
            // Another Service changes every ten seconds, and what was refused stays so.
            loop {
                now += s(10);
                if pacer.due().is_some_and(|due| due <= now) {
                    break;
                }
                pacer.request();
                assert_eq!(pacer.begin(now), Occasion::Request);
                pacer.end(now, Ended::Incomplete { anew: false });
            }
            waits.push((now - began).as_secs());
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
    }

    #[test]
    fn what_is_refused_anew_is_tried_again_soon() {
        let mut pacer = pacer(0, 30);
        let mut now = s(0);
        for _ in 0..8 {
            pacer.begin(now);
            pacer.end(now, Ended::Incomplete { anew: true });
            now = pacer.due().unwrap();
        }
        pacer.begin(now);
        pacer.end(now, Ended::Incomplete { anew: true });
        assert_eq!(pacer.due().unwrap() - now, s(3600));
        pacer.request();
        now += s(1);
        pacer.begin(now);
        pacer.end(now, Ended::Incomplete { anew: true });
        assert_eq!(pacer.due().unwrap() - now, s(30));
    }

    #[test]
    fn the_whole_kernel_is_looked_at_however_much_happens() {
        let mut pacer = pacer(1, 30);
        let mut audits = Vec::new();
        for minute in 0..=180 {
            pacer.request();
            if pacer.begin(s(60 * minute)) == Occasion::Audit {
                audits.push(minute);
            }
            pacer.end(s(60 * minute), Ended::Complete);
        }
        assert_eq!(audits, [0, 60, 120, 180]);
    }
}
