//! Watches of the fake API server.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Core, Fault, status};
use super::locked;
use super::selector::Selector;
use super::store::{Entry, Resource};

/// One open watch.
struct Watch {
    core: Arc<Core>,
    resource: Resource,
    selector: Selector,
    changes: tokio::sync::watch::Receiver<u64>,
    /// Pieces to send before anything else.
    queue: VecDeque<Bytes>,
    /// How far the log was read.
    position: usize,
    /// Changes up to this revision are not of interest.
    after: u64,
    ends: u64,
    /// Nothing follows what is queued.
    last: bool,
    stalled: bool,
    deadline: Instant,
    bookmark: Option<Instant>,
}

/// Opens a watch: the body of its answer.
pub(super) fn open(
    core: Arc<Core>,
    resource: Resource,
    selector: Selector,
    value: &dyn Fn(&str) -> String,
    fault: Option<Fault>,
) -> BoxStream<'static, io::Result<Bytes>> {
    let seconds = value("timeoutSeconds").parse().unwrap_or(1800);
    let version = value("resourceVersion");
    let initial = value("sendInitialEvents") == "true";
    let bookmarks = value("allowWatchBookmarks") == "true";
    let changes = core.changes.subscribe();
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut watch = {
        let state = locked(&core.state);
        let store = &state.store;
        let bookmark = bookmarks.then(|| next_bookmark(state.bookmark_every, deadline));
        Watch {
            core: core.clone(),
            resource,
            selector,
            changes,
            queue: VecDeque::new(),
            position: store.log.len(),
            after: 0,
            ends: state.ends,
            last: false,
            stalled: matches!(fault, Some(Fault::Stall)),
            deadline,
            bookmark,
        }
    };
    watch.begin(&version, initial, matches!(fault, Some(Fault::NoEndBookmark)));
    if let Some(Fault::CloseAfter(events)) = fault {
        watch.queue.truncate(2 * events);
        watch.last = true;
    }
    if watch.stalled {
        watch.queue.clear();
    }
    Box::pin(futures::stream::unfold(watch, |mut watch| async {
        let piece = watch.next().await?;
        Some((piece, watch))
    }))
}

impl Watch {
    /// Queues what a watch starts with: the objects there are, or what changed since a version.
    fn begin(&mut self, version: &str, initial: bool, without_end: bool) {
        let core = self.core.clone();
        let state = locked(&core.state);
        let store = &state.store;
        let from = version.parse().unwrap_or(0);
        if initial || from == 0 {
            for (_, object) in store.list_at(store.revision, self.resource, &self.selector) {
                self.push("ADDED", &object);
            }
            if initial && !without_end {
                let end = json!({
                    "resourceVersion": store.revision.to_string(),
                    "annotations": { "k8s.io/initial-events-end": "true" },
                });
                self.push("BOOKMARK", &self.resource.bookmark(end));
            }
            return;
        }
        if from < store.compacted {
            let message = format!("too old resource version: {from} ({})", store.compacted);
            self.push("ERROR", &status(410, "Expired", &message));
            self.last = true;
            return;
        }
        self.after = from;
        for entry in &store.log {
            self.push_entry(entry);
        }
    }

    fn push_entry(&mut self, entry: &Entry) {
        if matches!(entry, Entry::Change { revision, .. } if *revision > self.after)
            && let Some((kind, object)) = entry.seen_by(self.resource, &self.selector)
        {
            self.push(kind, &object);
        }
    }

    fn push(&mut self, kind: &str, object: &Value) {
        self.push_line(&format!(r#"{{"type":"{kind}","object":{object}}}"#));
    }

    /// A line goes in two pieces, as it may on a network.
    fn push_line(&mut self, line: &str) {
        let (first, second) = line.split_at(line.floor_char_boundary(line.len() / 2));
        self.queue.push_back(Bytes::copy_from_slice(first.as_bytes()));
        self.queue.push_back(Bytes::from(format!("{second}\n")));
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            self.changes.mark_unchanged();
            {
                let core = self.core.clone();
                let state = locked(&core.state);
                if state.ends != self.ends {
                    self.ends = state.ends;
                    self.last = true;
                    self.queue.clear();
                    if state.abrupt {
                        return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "made to break off")));
                    }
                }
                if !self.last && !self.stalled {
                    for entry in &state.store.log[self.position..] {
                        match entry {
                            Entry::Line { resource, text } if *resource == self.resource => self.push_line(text),
                            Entry::Line { .. } => {}
                            Entry::Change { .. } => self.push_entry(entry),
                        }
                    }
                    self.position = state.store.log.len();
                    let now = Instant::now();
                    if self.queue.is_empty() && self.bookmark.is_some_and(|due| due <= now) {
                        let revision = state.store.revision.to_string();
                        self.push("BOOKMARK", &self.resource.bookmark(json!({ "resourceVersion": revision })));
                        self.bookmark = Some(next_bookmark(state.bookmark_every, self.deadline));
                    }
                }
            }
            if let Some(piece) = self.queue.pop_front() {
                return Some(Ok(piece));
            }
            if self.last || Instant::now() >= self.deadline && !self.stalled {
                return None;
            }
            let far = self.deadline + Duration::from_secs(1_000_000);
            let deadline = if self.stalled { far } else { self.deadline };
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep_until(deadline) => {}
                () = tokio::time::sleep_until(self.bookmark.filter(|_| !self.stalled).unwrap_or(far)) => {}
            }
        }
    }
}

/// Every so often, and twice within the last two seconds.
fn next_bookmark(every: Duration, deadline: Instant) -> Instant {
    let now = Instant::now();
    let near_the_end =
        deadline.checked_sub(Duration::from_secs(2)).unwrap_or(deadline).max(now + Duration::from_secs(1));
    (now + every).min(near_the_end)
}
