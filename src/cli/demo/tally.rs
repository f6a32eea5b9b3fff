//! Counting where connections landed, and telling when a change has reached all of them.

use std::time::{Duration, Instant};

use super::scene::{Frontend, PODS};
use super::traffic::{Outcome, Sample};
use crate::net::IpFamily;

/// So many connections in a row as expected, and a frontend is taken to have settled.
const QUIET: usize = 50;

/// Where connections to one frontend landed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// How many each pod answered, web-1 first.
    pub(super) answered: [usize; PODS],
    /// How many were refused.
    pub(super) refused: usize,
    /// How many failed otherwise, and how the first of them did.
    pub(super) failed: usize,
    /// In words, how the first one failed.
    pub(super) failure: Option<String>,
}

// === impl Tally ===

impl Tally {
    /// Counts one connection.
    pub(super) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Answered(number) => {
                if let Some(count) = number.checked_sub(1).and_then(|index| self.answered.get_mut(index)) {
                    *count += 1;
                }
            }
            Outcome::Refused => self.refused += 1,
            Outcome::Failed(reason) => {
                self.failed += 1;
                self.failure.get_or_insert_with(|| reason.clone());
            }
        }
    }

    /// All connections.
    pub(super) fn total(&self) -> usize {
        self.answered.iter().sum::<usize>() + self.refused + self.failed
    }

    /// Both together.
    pub(super) fn plus(mut self, other: &Tally) -> Tally {
        self.answered.iter_mut().zip(other.answered).for_each(|(count, more)| *count += more);
        self.refused += other.refused;
        self.failed += other.failed;
        self.failure = self.failure.or_else(|| other.failure.clone());
        self
    }

    /// What is wrong if the first `endpoints` pods should have answered, and each of them, or
    /// everything been refused if there are none.
    pub(super) fn problem(&self, endpoints: usize) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(format!("{} connections failed, the first: {failure}", self.failed));
        }
        if endpoints == 0 {
            let answered = self.total() - self.refused;
            return (answered > 0).then(|| format!("{answered} connections were answered without an endpoint"));
        }
        if self.refused > 0 {
            return Some(format!("{} connections were refused", self.refused));
        }
        let (used, unused) = self.answered.split_at_checked(endpoints)?;
        let silent = used.iter().position(|count| *count == 0);
        let removed = unused.iter().position(|count| *count > 0);
        silent
            .map(|index| format!("no connection reached web-{}", index + 1))
            .or_else(|| removed.map(|index| format!("connections reached web-{}, no endpoint", endpoints + index + 1)))
    }
}

impl Tally {
    /// What is wrong with connections made while `before` endpoints became `after`.
    pub(super) fn problem_during(&self, before: usize, after: usize) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(format!("{} connections failed, the first: {failure}", self.failed));
        }
        if self.refused > 0 && before > 0 && after > 0 {
            return Some(format!("{} connections were refused", self.refused));
        }
        let strange = self.answered.iter().skip(before.max(after)).sum::<usize>();
        (strange > 0).then(|| format!("{strange} connections reached pods that never were endpoints"))
    }
}

/// Tallies of the samples, one for each frontend.
pub(super) fn tallies(frontends: &[Frontend], samples: &[Sample]) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); frontends.len()];
    for sample in samples {
        if let Some(tally) = tallies.get_mut(sample.frontend) {
            tally.count(&sample.outcome);
        }
    }
    tallies
}

/// Watches connections while the number of endpoints changes.
pub(super) struct Watch {
    /// When the manifest was written.
    written: Instant,
    before: usize,
    after: usize,
    frontends: Vec<(IpFamily, Progress)>,
}

/// How far a change has got at one frontend.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// When the first connection went as it should go from now on, and none otherwise since.
    reached: Option<Instant>,
    /// Connections since.
    quiet: usize,
}

// === impl Watch ===

impl Watch {
    /// Watches from `written` on how `before` endpoints become `after`.
    pub(super) fn new(frontends: &[Frontend], written: Instant, before: usize, after: usize) -> Watch {
        let frontends = frontends.iter().map(|frontend| (frontend.family, Progress::default())).collect();
        Watch { written, before, after, frontends }
    }

    /// Takes note of a connection. Those that were begun before the change do not count.
    pub(super) fn see(&mut self, sample: &Sample) {
        let (before, after) = (self.before, self.after);
        let Some((_, progress)) = self.frontends.get_mut(sample.frontend) else { return };
        if sample.begun < self.written {
            return;
        }
        let shows_change = match sample.outcome {
            Outcome::Answered(number) if number <= after => after <= before || number > before,
            Outcome::Refused if after == 0 => true,
            _ => {
                *progress = Progress::default();
                return;
            }
        };
        if progress.reached.is_none() && shows_change {
            progress.reached = Some(sample.over);
        }
        progress.quiet += usize::from(progress.reached.is_some());
    }

    /// Whether the change has reached every frontend.
    pub(super) fn is_over(&self) -> bool {
        self.frontends.iter().all(|(_, progress)| progress.quiet >= QUIET)
    }

    /// How long it took to reach the last frontend of a family.
    pub(super) fn took(&self, family: IpFamily) -> Option<Duration> {
        let of_family = self.frontends.iter().filter(|(own, _)| *own == family);
        let reached: Option<Vec<Instant>> = of_family.map(|(_, progress)| progress.reached).collect();
        Some(reached?.into_iter().max()?.saturating_duration_since(self.written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::scene::frontends;

    fn tally(answered: [usize; PODS], refused: usize, failed: usize) -> Tally {
        Tally { answered, refused, failed, failure: (failed > 0).then(|| "it broke".to_owned()) }
    }

    #[test]
    fn problems_of_a_tally() {
        let cases = [
            (tally([5, 5, 0, 0], 0, 0), 2, None),
            (tally([5, 0, 0, 0], 0, 0), 2, Some("no connection reached web-2")),
            (tally([5, 5, 0, 1], 0, 0), 2, Some("reached web-4, no endpoint")),
            (tally([5, 5, 0, 0], 3, 0), 2, Some("3 connections were refused")),
            (tally([5, 5, 0, 0], 0, 2), 2, Some("2 connections failed, the first: it broke")),
            (tally([5, 5, 5, 5], 0, 0), 4, None),
            (tally([0; PODS], 9, 0), 0, None),
            (tally([0, 1, 0, 0], 9, 0), 0, Some("1 connections were answered")),
        ];
        for (tally, endpoints, expected) in cases {
            let problem = tally.problem(endpoints);
            assert_eq!(problem.is_some(), expected.is_some(), "{tally:?}: {problem:?}");
            assert!(problem.unwrap_or_default().contains(expected.unwrap_or_default()), "{tally:?}");
        }
    }

    /// Gives outcomes, one each millisecond, to a watch over one frontend; says when the change
    /// was reached, in milliseconds after the manifest was written, and whether it is over.
    #[track_caller]
    fn check(change: (usize, usize), outcomes: &[(Outcome, usize)], expected: (Option<u128>, bool)) {
        let written = Instant::now();
        let frontends = &frontends(&[IpFamily::V4])[..1];
        let mut watch = Watch::new(frontends, written, change.0, change.1);
        let all = outcomes.iter().flat_map(|(outcome, times)| std::iter::repeat_n(outcome, *times));
        for (millis, outcome) in (1..).zip(all) {
            let over = written + Duration::from_millis(millis);
            watch.see(&Sample { frontend: 0, begun: over, over, outcome: outcome.clone() });
        }
        assert_eq!((watch.took(IpFamily::V4).map(|took| took.as_millis()), watch.is_over()), expected);
    }

    #[test]
    fn a_change_is_reached_when_it_shows_for_good() {
        use Outcome::{Answered, Failed, Refused};
        check((2, 4), &[(Answered(1), 9), (Answered(3), 1), (Answered(2), 60)], (Some(10), true));
        check((2, 4), &[(Answered(1), 90)], (None, false));
        check((4, 1), &[(Answered(1), 2), (Answered(4), 5), (Answered(1), 50)], (Some(8), true));
        check((4, 1), &[(Answered(1), 60), (Answered(4), 1), (Answered(1), 10)], (Some(62), false));
        check((1, 0), &[(Answered(1), 3), (Refused, 60)], (Some(4), true));
        check((0, 2), &[(Refused, 3), (Answered(2), 60)], (Some(4), true));
        check((2, 4), &[(Answered(3), 20), (Failed("x".to_owned()), 1), (Answered(1), 60)], (None, false));
    }

    #[test]
    fn what_was_begun_before_the_change_does_not_count() {
        let written = Instant::now();
        let mut watch = Watch::new(&frontends(&[IpFamily::V6])[..1], written, 1, 0);
        let begun = written - Duration::from_millis(1);
        watch.see(&Sample { frontend: 0, begun, over: written, outcome: Outcome::Refused });
        assert_eq!(watch.took(IpFamily::V6), None);
    }
}
