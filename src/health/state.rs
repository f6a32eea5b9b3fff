//! What health is judged by: a state machine fed with the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::Moment;
use crate::net::IpFamily;

/// What is known.
#[derive(Clone, Debug)]
pub struct State {
    timeout: Duration,
    families: BTreeMap<IpFamily, Progress>,
    /// Whether the Node was seen, and is not about to go.
    node_eligible: bool,
}

/// How far a family is.
#[derive(Clone, Debug)]
struct Progress {
    /// Last success, or the start.
    updated: SystemTime,
    /// Since when something waits that the sync under way serves, or one that failed should have.
    begun: Option<Instant>,
    /// Since when something waits for the next sync to begin.
    requested: Option<Instant>,
}

/// A judgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Every family is healthy.
    pub healthy: bool,
    /// Traffic for Services may be sent to this node as far as the Node object says.
    pub node_eligible: bool,
    /// Each family that is served, with its last success and whether it is healthy.
    pub families: Vec<(IpFamily, SystemTime, bool)>,
}

// === impl State ===

impl State {
    /// Nothing known yet.
    pub fn new(timeout: Duration) -> State {
        State { timeout, families: BTreeMap::new(), node_eligible: false }
    }

    /// A family begins to be served; so a proxy to which nothing happens is healthy.
    pub fn started(&mut self, family: IpFamily, now: Moment) {
        self.families.insert(family, Progress { updated: now.time, begun: None, requested: None });
    }

    /// Something is to be synced.
    pub fn requested(&mut self, family: IpFamily, now: Moment) {
        if let Some(progress) = self.families.get_mut(&family) {
            progress.requested.get_or_insert(now.at);
        }
    }

    /// A sync begins. Whatever is requested from now on is not for this one. (kube-proxy forgets what
    /// is requested meanwhile when the sync ends.)
    pub fn begun(&mut self, family: IpFamily) {
        if let Some(progress) = self.families.get_mut(&family) {
            let requested = progress.requested.take();
            progress.begun = progress.begun.or(requested);
        }
    }

    /// A sync has succeeded. One that fails changes nothing: what it was for still waits.
    pub fn succeeded(&mut self, family: IpFamily, now: Moment) {
        if let Some(progress) = self.families.get_mut(&family) {
            progress.begun = None;
            progress.updated = now.time;
        }
    }

    /// The Node was seen.
    pub fn node_seen(&mut self, draining: bool) {
        self.node_eligible = !draining;
    }

    /// How things stand. A family is unhealthy when something has waited for as long as the timeout;
    /// however long nothing happens, that is healthy.
    pub fn verdict(&self, now: Moment) -> Verdict {
        let in_time = |progress: &Progress| {
            let oldest = progress.begun.or(progress.requested);
            oldest.is_none_or(|since| now.at.saturating_duration_since(since) < self.timeout)
        };
        let families: Vec<_> =
            self.families.iter().map(|(family, progress)| (*family, progress.updated, in_time(progress))).collect();
        let healthy = families.iter().all(|(.., healthy)| *healthy);
        Verdict { healthy, node_eligible: self.node_eligible, families }
    }
}

#[cfg(test)]
mod tests {
    use IpFamily::{V4, V6};

    use super::*;

    struct Rig {
        start: Moment,
        state: State,
    }

    impl Rig {
        fn started() -> Rig {
            let mut rig = Rig { start: Moment::now(), state: State::new(Duration::from_secs(60)) };
            IpFamily::BOTH.into_iter().for_each(|family| rig.state.started(family, rig.start));
            rig
        }

        fn at(&self, seconds: u64) -> Moment {
            let passed = Duration::from_secs(seconds);
            Moment { at: self.start.at + passed, time: self.start.time + passed }
        }

        fn request(&mut self, family: IpFamily, seconds: u64) {
            self.state.requested(family, self.at(seconds));
        }

        fn succeed(&mut self, family: IpFamily, seconds: u64) {
            self.state.succeeded(family, self.at(seconds));
        }

        #[track_caller]
        fn check(&self, seconds: u64, healthy: bool) {
            assert_eq!(self.state.verdict(self.at(seconds)).healthy, healthy, "at {seconds} s");
        }
    }

    #[test]
    fn before_anything_is_served_it_is_healthy() {
        let state = State::new(Duration::from_secs(60));
        let verdict = state.verdict(Moment::now());
        assert_eq!(verdict, Verdict { healthy: true, node_eligible: false, families: Vec::new() });
    }

    #[test]
    fn however_long_nothing_happens_it_is_healthy() {
        let mut rig = Rig::started();
        rig.check(1_000_000, true);
        rig.request(V4, 1_000_000);
        rig.check(1_000_059, true);
        rig.check(1_000_060, false);
    }

    #[test]
    fn the_oldest_request_counts_until_a_sync_succeeds() {
        let mut rig = Rig::started();
        rig.request(V4, 10);
        rig.request(V4, 65);
        rig.check(69, true);
        rig.check(70, false);
        rig.state.begun(V4);
        rig.check(71, false);
        rig.succeed(V4, 72);
        rig.check(72, true);
        rig.check(1_000, true);
    }

    #[test]
    fn a_request_while_a_sync_runs_waits_for_the_next() {
        let mut rig = Rig::started();
        rig.request(V4, 0);
        rig.state.begun(V4);
        rig.request(V4, 10);
        rig.succeed(V4, 30);
        rig.check(69, true);
        rig.check(70, false);
        // That one fails; the next one is for what it was for, and for what came since.
        rig.state.begun(V4);
        rig.request(V4, 80);
        rig.check(81, false);
        rig.state.begun(V4);
        rig.check(82, false);
        rig.succeed(V4, 90);
        rig.check(10_000, true);
    }

    #[test]
    fn a_failed_sync_leaves_its_requests_waiting() {
        let mut rig = Rig::started();
        rig.request(V6, 0);
        rig.state.begun(V6);
        rig.state.begun(V6);
        rig.check(59, true);
        rig.check(60, false);
    }

    #[test]
    fn a_retry_without_a_request_is_no_reason() {
        let mut rig = Rig::started();
        rig.state.begun(V4);
        rig.check(1_000, true);
        rig.succeed(V4, 1_000);
        rig.check(2_000, true);
    }

    #[test]
    fn families_are_judged_by_themselves_and_together() {
        let mut rig = Rig::started();
        rig.request(V4, 0);
        rig.request(V6, 0);
        rig.state.begun(V4);
        rig.succeed(V4, 5);
        let verdict = rig.state.verdict(rig.at(60));
        assert!(!verdict.healthy);
        assert_eq!(verdict.families, [(V4, rig.at(5).time, true), (V6, rig.start.time, false)]);
    }

    #[test]
    fn the_node_says_whether_it_is_eligible() {
        let mut rig = Rig::started();
        assert!(!rig.state.verdict(rig.at(0)).node_eligible, "never seen");
        for draining in [false, true, false] {
            rig.state.node_seen(draining);
            assert_eq!(rig.state.verdict(rig.at(0)).node_eligible, !draining);
        }
        rig.check(0, true);
    }
}
