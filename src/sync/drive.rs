//! The loop that joins events, pipelines and time. Owns the cluster state; everything else is told.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::notice::{Notice, Observer, Sync};
use super::pacer::Pace;
use super::{Done, Pipeline, Worker};
use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::cluster::{Changed, ClusterState, Event};
use crate::model::{Kind, ServiceName};
use crate::net::IpFamily;

/// How many events are folded in before the loop looks at anything else.
const EVENTS_AT_ONCE: usize = 4_096;
/// How many trigger times wait for a sync that succeeds; older ones are dropped.
const TRIGGERS_MAX: usize = 10_000;

/// One family's pipeline and what the loop remembers about it.
struct Line<B> {
    pipeline: Pipeline<B>,
    next_check: Option<Instant>,
    /// When rules were last written again at once because somebody took them away.
    repaired: Option<Instant>,
    has_synced: bool,
    /// Since when something waits for a sync to begin.
    requested: Option<Instant>,
    /// When changes that wait for a sync were caused, by Service.
    triggers: Vec<(ServiceName, Box<str>)>,
    /// The pieces so far of a sync that is not finished.
    pieces: Option<Pieces>,
}

/// What the pieces of a sync came to.
struct Pieces {
    waited: Option<Duration>,
    planning: Duration,
    applying: Duration,
    whole: bool,
    report: Report,
    /// Those that the last piece serves, because the sync is about everything.
    triggers: Vec<(ServiceName, Box<str>)>,
}

/// A sync under way, or what of it is known before it ends.
struct Begun {
    line: usize,
    waited: Option<Duration>,
    planning: Duration,
    triggers: Vec<(ServiceName, Box<str>)>,
}

/// What comes back from a task.
enum Outcome<B> {
    Synced(Begun, Box<Done<B>>, Duration),
    Checked(usize, Box<Worker<B>>, Result<Intact, ApplyError>),
}

/// The loop's memory.
struct Loop<B, O> {
    state: ClusterState,
    lines: Vec<Line<B>>,
    tasks: JoinSet<Outcome<B>>,
    observer: O,
    start: Instant,
    pace: Pace,
    is_ready: bool,
}

/// Runs until the sources are gone or `stop` ends; a sync under way is waited for, for a while.
///
/// `early` is what the sources have said before, `ready` whether enough is known to write rules.
/// `observer` is told what happens.
pub async fn drive<B: Backend + 'static>(
    pipelines: Vec<Pipeline<B>>,
    pace: Pace,
    early: Vec<Event>,
    mut events: mpsc::Receiver<Event>,
    ready: impl Fn(&ClusterState) -> bool,
    observer: impl Observer,
    stop: impl Future<Output = ()>,
) {
    let lines = pipelines.into_iter().map(Line::new).collect();
    let (state, tasks, start) = (ClusterState::new(), JoinSet::new(), Instant::now());
    let mut this = Loop { state, lines, tasks, observer, start, pace, is_ready: false };
    for line in &this.lines {
        this.observer.notice(&Notice::Started(line.pipeline.family()));
    }
    tokio::pin!(stop);
    early.into_iter().for_each(|event| this.take(event));
    loop {
        if !this.is_ready && ready(&this.state) {
            this.is_ready = true;
            for line in &mut this.lines {
                line.pipeline.mark_everything();
                line.request(&mut this.observer);
            }
        }
        if this.is_ready {
            (0..this.lines.len()).for_each(|i| this.begin(i));
        }
        let alarm = this.lines.iter().filter_map(|line| line.alarm(this.start, this.is_ready)).min();
        tokio::select! {
            () = &mut stop => break,
            event = events.recv() => {
                let Some(event) = event else { break };
                this.take(event);
                for _ in 1..EVENTS_AT_ONCE {
                    let Ok(event) = events.try_recv() else { break };
                    this.take(event);
                }
            }
            Some(outcome) = this.tasks.join_next() => match outcome {
                Ok(Outcome::Synced(begun, done, applying)) => this.synced(begun, *done, applying),
                Ok(Outcome::Checked(i, worker, result)) => this.checked(i, *worker, result),
                // A worker is lost only to a panic, which is a bug that must not go on half-alive.
                Err(error) => return tracing::error!(%error, "a sync ended abnormally; stopping"),
            },
            () = sleep_until(alarm) => {}
        }
    }
    let unfinished = async { while this.tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(5), unfinished).await.is_err() {
        tracing::warn!("stopping in the middle of a sync; rules are completed at the next start");
    }
}

fn log(family: IpFamily, result: Result<&Report, &ApplyError>, elapsed: Duration) {
    match result {
        Ok(report) => {
            for (service, reason) in &report.refused {
                let protocol = service.protocol;
                tracing::error!(%family, %service, %protocol, "set aside: the kernel refuses its rules ({reason}); \
                    its previous rules stay; it is tried again from time to time, and when it changes");
            }
            let Report { written, restores, bytes, set_aside, remaining, .. } = report;
            tracing::debug!(%family, written, restores, bytes, set_aside, remaining, ?elapsed, "synced");
        }
        Err(error) => tracing::error!(%family, %error, "sync failed; existing rules stay; retrying"),
    }
}

async fn sleep_until(alarm: Option<Instant>) {
    match alarm {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

// === impl Loop ===

impl<B: Backend + 'static, O: Observer> Loop<B, O> {
    fn take(&mut self, event: Event) {
        if let Event::Problem(problem) = &event {
            tracing::warn!(object = %problem.object, field = problem.field, "{}", problem.reason);
        }
        tracing::trace!(?event, "event");
        if let Event::Disturbed(family) = event {
            let disturbed = self.lines.iter_mut().filter(|line| line.pipeline.family() == family && line.has_synced);
            disturbed.for_each(|line| line.next_check = Some(Instant::now()));
            return;
        }
        let changed = self.state.apply(event.clone());
        self.observer.notice(&Notice::Event { event: &event, changed: &changed });
        for line in &mut self.lines {
            line.note_trigger(&event, &changed);
            if line.pipeline.mark(&changed) && self.is_ready {
                line.request(&mut self.observer);
            }
        }
    }

    /// Starts what is due.
    fn begin(&mut self, i: usize) {
        let Some(line) = self.lines.get_mut(i).filter(|line| line.pipeline.is_idle()) else { return };
        let (now, start) = (Instant::now(), self.start);
        // What is written in pieces is not all there before the last.
        if line.next_check.is_some_and(|at| at <= now) && !line.pipeline.pacer.is_unfinished() {
            if let Some(mut worker) = line.pipeline.lend() {
                self.tasks.spawn(async move {
                    let result = worker.check().await;
                    Outcome::Checked(i, Box::new(worker), result)
                });
            }
        } else if line.pipeline.pacer.due().is_some_and(|due| start + due <= now)
            && let Some(job) = line.pipeline.begin(&self.state, now - start)
        {
            let begun = Begun {
                line: i,
                waited: line.requested.take().map(|since| now - since),
                planning: now.elapsed(),
                triggers: std::mem::take(&mut line.triggers),
            };
            let family = line.pipeline.family();
            self.observer.notice(&Notice::Begun(family));
            self.observer.notice(&Notice::Planned { family, scope: job.scope(), plan: job.plan() });
            self.tasks.spawn(async move {
                let began = Instant::now();
                let done = job.run().await;
                Outcome::Synced(begun, Box::new(done), began.elapsed())
            });
        }
    }

    fn synced(&mut self, begun: Begun, done: Done<B>, applying: Duration) {
        let Begun { line, waited, planning, triggers } = begun;
        let Some(line) = self.lines.get_mut(line) else { return };
        let (family, now) = (line.pipeline.family(), Instant::now());
        log(family, done.result.as_ref(), planning + applying);
        // Not put off by what else goes on: who flushes tables does not wait for quiet.
        line.next_check.get_or_insert(now + self.pace.retry);
        let mut pieces = Pieces::after(line.pieces.take(), waited, planning, applying, &done);
        let unfinished = done.result.as_ref().is_ok_and(|report| !report.is_finished());
        let told = match (unfinished, &done.scope) {
            (true, Scope::Services(_)) => triggers,
            (true, _) => {
                pieces.triggers.extend(triggers);
                Vec::new()
            }
            (false, _) => std::mem::take(&mut pieces.triggers).into_iter().chain(triggers).collect(),
        };
        let (services, times): (Vec<_>, Vec<_>) = told.into_iter().unzip();
        self.observer.notice(&Notice::Ended(Sync {
            family,
            occasion: done.occasion,
            scope: &done.scope,
            whole: pieces.whole,
            unfinished,
            plan: done.plan(),
            result: done.result.as_ref().map(|_| &pieces.report),
            waited: pieces.waited,
            planning: pieces.planning,
            applying: pieces.applying,
            triggers: &times,
        }));
        match line.pipeline.end(done, now - self.start) {
            Ok(_) if unfinished => line.pieces = Some(pieces),
            Ok(_) if !line.has_synced => {
                line.has_synced = true;
                let (written, elapsed) = (pieces.report.written, pieces.applying);
                tracing::info!(%family, written, ?elapsed, "all rules are in the kernel");
            }
            Ok(_) => {}
            Err(_) => {
                let later = std::mem::take(&mut line.triggers);
                line.triggers = services.into_iter().zip(times).chain(later).collect();
                let surplus = line.triggers.len().saturating_sub(TRIGGERS_MAX);
                line.triggers.drain(..surplus);
            }
        }
    }

    fn checked(&mut self, i: usize, worker: Worker<B>, result: Result<Intact, ApplyError>) {
        let Some(line) = self.lines.get_mut(i) else { return };
        let family = line.pipeline.family();
        line.pipeline.give_back(worker);
        line.next_check = Some(Instant::now() + self.pace.retry);
        match result {
            Ok(Intact::Yes) => {}
            Ok(Intact::No) => {
                tracing::warn!(%family, "rules were removed by another program; writing them again");
                self.observer.notice(&Notice::Drifted(family));
                line.pipeline.mark_everything();
                // At once, but not in a race with whoever does it again and again.
                let now = Instant::now();
                if line.repaired.is_none_or(|at| now - at >= self.pace.min) {
                    line.repaired = Some(now);
                    line.pipeline.pacer.urge();
                }
                line.request(&mut self.observer);
            }
            Err(error) => tracing::debug!(%family, %error, "cannot look at the rules"),
        }
    }
}

// === impl Pieces ===

impl Pieces {
    fn after<B>(
        before: Option<Pieces>,
        waited: Option<Duration>,
        planning: Duration,
        applying: Duration,
        done: &Done<B>,
    ) -> Pieces {
        let whole = !matches!(done.scope, Scope::Services(_));
        let report = done.result.as_ref().cloned().unwrap_or_default();
        match before {
            None => Pieces { waited, planning, applying, whole, report, triggers: Vec::new() },
            Some(before) => Pieces {
                waited: before.waited.max(waited),
                planning: before.planning + planning,
                applying: before.applying + applying,
                whole: true,
                report: report.after(before.report),
                triggers: before.triggers,
            },
        }
    }
}

// === impl Line ===

impl<B: Backend + 'static> Line<B> {
    fn new(pipeline: Pipeline<B>) -> Line<B> {
        let triggers = Vec::new();
        Line { pipeline, next_check: None, repaired: None, has_synced: false, requested: None, triggers, pieces: None }
    }

    /// When the loop must look at this line again.
    fn alarm(&self, start: Instant, is_ready: bool) -> Option<Instant> {
        if !is_ready || !self.pipeline.is_idle() {
            return None;
        }
        let due = self.pipeline.pacer.due().map(|due| start + due);
        let check = self.next_check.filter(|_| !self.pipeline.pacer.is_unfinished());
        due.into_iter().chain(check).min()
    }

    /// Something waits for the next sync.
    fn request(&mut self, observer: &mut impl Observer) {
        self.requested.get_or_insert_with(Instant::now);
        observer.notice(&Notice::Requested(self.pipeline.family()));
    }

    /// Remembers when an endpoint change was caused. Those of a Service whose slice goes are dropped,
    /// because what became of them can no longer be told apart. (kube-proxy: the same.)
    fn note_trigger(&mut self, event: &Event, changed: &Changed) {
        match (event, changed) {
            (_, Changed::Nothing) => {}
            (Event::EndpointSlice(slice), _) if slice.family == self.pipeline.family() => {
                self.triggers.extend(slice.trigger_time.iter().map(|time| (slice.service.clone(), time.clone())));
            }
            (Event::Deleted(object), Changed::Service(service, _)) if object.kind == Kind::EndpointSlice => {
                self.triggers.retain(|(known, _)| known != service);
            }
            _ => {}
        }
    }
}
