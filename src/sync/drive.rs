//! The loop that joins events, pipelines and time. Owns the cluster state; everything else is told.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::pacer::Pace;
use super::{Done, Pipeline, Worker};
use crate::backend::{ApplyError, Backend, Intact, Report};
use crate::cluster::{ClusterState, Event};
use crate::net::IpFamily;

/// How many events are folded in before the loop looks at anything else.
const EVENTS_AT_ONCE: usize = 4_096;

/// One family's pipeline and what the loop remembers about it.
struct Line<B> {
    pipeline: Pipeline<B>,
    next_check: Option<Instant>,
    has_synced: bool,
}

/// What comes back from a task.
enum Outcome<B> {
    Synced(usize, Box<Done<B>>, Duration),
    Checked(usize, Box<Worker<B>>, Result<Intact, ApplyError>),
}

/// Runs until the sources are gone or `stop` ends; a sync under way is waited for, for a while.
///
/// `ready` says whether enough is known to write rules.
pub async fn drive<B: Backend + 'static>(
    pipelines: Vec<Pipeline<B>>,
    pace: Pace,
    mut events: mpsc::Receiver<Event>,
    ready: impl Fn(&ClusterState) -> bool,
    stop: impl Future<Output = ()>,
) {
    let start = Instant::now();
    let mut state = ClusterState::new();
    let mut lines: Vec<Line<B>> =
        pipelines.into_iter().map(|pipeline| Line { pipeline, next_check: None, has_synced: false }).collect();
    let mut tasks: JoinSet<Outcome<B>> = JoinSet::new();
    let mut is_ready = false;
    tokio::pin!(stop);
    loop {
        let alarm = lines.iter().filter_map(|line| line.alarm(start, is_ready)).min();
        tokio::select! {
            () = &mut stop => break,
            event = events.recv() => {
                let Some(event) = event else { break };
                take(&mut state, &mut lines, event);
                for _ in 1..EVENTS_AT_ONCE {
                    let Ok(event) = events.try_recv() else { break };
                    take(&mut state, &mut lines, event);
                }
            }
            Some(outcome) = tasks.join_next() => match outcome {
                Ok(outcome) => finish(&mut lines, outcome, start, pace),
                // A worker is lost only to a panic, which is a bug that must not go on half-alive.
                Err(error) => return tracing::error!(%error, "a sync ended abnormally; stopping"),
            },
            () = sleep_until(alarm) => {}
        }
        if !is_ready && ready(&state) {
            is_ready = true;
            lines.iter_mut().for_each(|line| line.pipeline.mark_everything());
        }
        if is_ready {
            for (i, line) in lines.iter_mut().enumerate() {
                line.start(i, &state, &mut tasks, start);
            }
        }
    }
    let unfinished = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(5), unfinished).await.is_err() {
        tracing::warn!("stopping in the middle of a sync; rules are completed at the next start");
    }
}

fn take<B: Backend>(state: &mut ClusterState, lines: &mut [Line<B>], event: Event) {
    if let Event::Problem(problem) = &event {
        tracing::warn!(object = %problem.object, field = problem.field, "{}", problem.reason);
    }
    tracing::trace!(?event, "event");
    let changed = state.apply(event);
    for line in lines {
        line.pipeline.mark(&changed);
    }
}

fn finish<B: Backend>(lines: &mut [Line<B>], outcome: Outcome<B>, start: Instant, pace: Pace) {
    let now = Instant::now();
    match outcome {
        Outcome::Synced(i, done, elapsed) => {
            let Some(line) = lines.get_mut(i) else { return };
            let family = line.pipeline.family();
            let result = line.pipeline.end(*done, now - start);
            // Not put off by what else goes on: who flushes tables does not wait for quiet.
            line.next_check.get_or_insert(now + pace.retry);
            if let Some(report) = log(family, result, elapsed)
                && !line.has_synced
            {
                line.has_synced = true;
                tracing::info!(%family, written = report.written, ?elapsed, "all rules are in the kernel");
            }
        }
        Outcome::Checked(i, worker, result) => {
            let Some(line) = lines.get_mut(i) else { return };
            let family = line.pipeline.family();
            line.pipeline.give_back(*worker);
            line.next_check = Some(now + pace.retry);
            match result {
                Ok(Intact::Yes) => {}
                Ok(Intact::No) => {
                    tracing::warn!(%family, "rules were removed by another program; writing them again");
                    line.pipeline.mark_everything();
                }
                Err(error) => tracing::debug!(%family, %error, "cannot look at the rules"),
            }
        }
    }
}

fn log(family: IpFamily, result: Result<Report, ApplyError>, elapsed: Duration) -> Option<Report> {
    match result {
        Ok(report) => {
            for (service, reason) in &report.refused {
                let protocol = service.protocol;
                tracing::error!(%family, %service, %protocol, "set aside: the kernel refuses its rules ({reason}); \
                    its previous rules stay; it is tried again from time to time, and when it changes");
            }
            let Report { written, restores, bytes, set_aside, .. } = report;
            tracing::debug!(%family, written, restores, bytes, set_aside, ?elapsed, "synced");
            Some(report)
        }
        Err(error) => {
            tracing::error!(%family, %error, "sync failed; existing rules stay; retrying");
            None
        }
    }
}

async fn sleep_until(alarm: Option<Instant>) {
    match alarm {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

// === impl Line ===

impl<B: Backend + 'static> Line<B> {
    /// When the loop must look at this line again.
    fn alarm(&self, start: Instant, is_ready: bool) -> Option<Instant> {
        if !is_ready || !self.pipeline.is_idle() {
            return None;
        }
        let due = self.pipeline.pacer.due().map(|due| start + due);
        due.into_iter().chain(self.next_check).min()
    }

    /// Starts what is due.
    fn start(&mut self, i: usize, state: &ClusterState, tasks: &mut JoinSet<Outcome<B>>, start: Instant) {
        let now = Instant::now();
        if !self.pipeline.is_idle() {
            return;
        }
        if self.next_check.is_some_and(|at| at <= now) {
            if let Some(mut worker) = self.pipeline.lend() {
                tasks.spawn(async move {
                    let result = worker.check().await;
                    Outcome::Checked(i, Box::new(worker), result)
                });
            }
        } else if self.pipeline.pacer.due().is_some_and(|due| start + due <= now)
            && let Some(job) = self.pipeline.begin(state, now - start)
        {
            tasks.spawn(async move {
                let done = job.run().await;
                Outcome::Synced(i, Box::new(done), now.elapsed())
            });
        }
    }
}
