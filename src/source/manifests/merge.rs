//! What all files say together, and what of it is news.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::admit::{Entry, Value};
use crate::cluster::Event;
use crate::model::{Kind, ObjectRef, Problem};

/// A file, in the order in which files take precedence: later given paths over earlier ones, and
/// within a directory by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId {
    /// Which of the given paths it was found through.
    pub(super) input: usize,
    /// Its path, as bytes: comparing paths part by part costs more than all else when one file
    /// of thousands changes.
    path: OsString,
}

/// The same object stands in two places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The object.
    pub object: ObjectRef,
    /// File and line (from 1) of the version that is used: the later one.
    pub used: (PathBuf, u64),
    /// File and line of the one that is not.
    pub unused: (PathBuf, u64),
}

/// All objects of all files. Works on the objects that are touched, however many others there are.
#[derive(Debug, Default)]
pub(super) struct Merged {
    known: HashMap<ObjectRef, Known>,
    /// Objects whose versions changed since the last [`Merged::settle`].
    touched: BTreeSet<ObjectRef>,
}

/// One object.
#[derive(Debug, Default)]
struct Known {
    /// Every place where it stands; the last one counts.
    versions: BTreeMap<Position, Entry>,
    /// What was last said of it.
    said: Option<Value>,
    /// Problems that were last said of it.
    problems: Vec<Problem>,
    /// Files that were last complained about for naming it twice.
    twice: Option<(Arc<FileId>, Arc<FileId>)>,
}

/// A file, and the how-manieth of its objects.
type Position = (Arc<FileId>, usize);

// === impl FileId ===

impl FileId {
    /// The file at `path`, found through one of the given paths.
    pub(super) fn new(input: usize, path: OsString) -> FileId {
        FileId { input, path }
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        Path::new(&self.path)
    }
}

// === impl Merged ===

impl Merged {
    /// Replaces what a file holds; `before` is what this returned for the file last time.
    pub(super) fn replace(
        &mut self,
        file: &Arc<FileId>,
        before: &[(ObjectRef, usize)],
        entries: Vec<Entry>,
    ) -> Vec<(ObjectRef, usize)> {
        for (object, index) in before {
            if let Some(known) = self.known.get_mut(object) {
                known.versions.remove(&(file.clone(), *index));
            }
            self.touched.insert(object.clone());
        }
        let mut now = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            now.push((entry.object.clone(), index));
            self.touched.insert(entry.object.clone());
            self.known.entry(entry.object.clone()).or_default().versions.insert((file.clone(), index), entry);
        }
        now
    }

    /// What is news since the last time, and which objects turned out to stand in two places.
    /// What stands in files that may be gone only counts if it stands nowhere else.
    pub(super) fn settle(&mut self, is_gone: impl Fn(&FileId) -> bool) -> (Vec<Event>, Vec<Duplicate>) {
        let mut events = Vec::new();
        let mut duplicates = Vec::new();
        for object in std::mem::take(&mut self.touched) {
            let Some(known) = self.known.get_mut(&object) else { continue };
            known.settle(&object, &is_gone, &mut events, &mut duplicates);
            if known.versions.is_empty() {
                self.known.remove(&object);
            }
        }
        events.sort_by_key(rank);
        (events, duplicates)
    }
}

/// Endpoints come before the Service that uses them and go after it, so that a Service is not
/// refused for a moment because its endpoints are further down.
fn rank(event: &Event) -> u8 {
    match event {
        Event::Node(_) | Event::ServiceCidr(_) => 0,
        Event::Deleted(object) if object.kind != Kind::EndpointSlice => 1,
        Event::EndpointSlice(_) => 2,
        Event::Service(_) => 3,
        Event::Deleted(_) => 4,
        _ => 5,
    }
}

// === impl Known ===

impl Known {
    fn settle(
        &mut self,
        object: &ObjectRef,
        is_gone: impl Fn(&FileId) -> bool,
        events: &mut Vec<Event>,
        duplicates: &mut Vec<Duplicate>,
    ) {
        let mut latest = self.versions.iter().rev().filter(|((file, _), _)| !is_gone(file));
        let winner = latest.next();
        let loser = latest.next();
        let winner = winner.or_else(|| self.versions.last_key_value());

        let value = winner.and_then(|(_, entry)| entry.value.as_ref());
        if value != self.said.as_ref() {
            events.push(value.map_or_else(|| Event::Deleted(object.clone()), Value::event));
            self.said = value.cloned();
        }

        let problems = winner.map(|(_, entry)| entry.problems.as_slice()).unwrap_or_default();
        if problems != self.problems.as_slice() {
            if let Some(((file, _), entry)) = winner {
                let place = format!("{}:{}", file.path().display(), entry.line);
                events.extend(problems.iter().map(|problem| {
                    let reason = format!("{} ({place})", problem.reason);
                    Event::Problem(Problem { reason, ..problem.clone() })
                }));
            }
            self.problems = problems.to_vec();
        }

        // Objects without a name are no duplicates of each other.
        let twice = match (winner, loser) {
            (Some(((used, _), _)), Some(((unused, _), _))) if !object.name.is_empty() => {
                Some((used.clone(), unused.clone()))
            }
            _ => None,
        };
        if twice != self.twice
            && let (Some(((used, _), winner)), Some(((unused, _), loser)), Some(_)) = (winner, loser, &twice)
        {
            duplicates.push(Duplicate {
                object: object.clone(),
                used: (used.path().to_owned(), winner.line),
                unused: (unused.path().to_owned(), loser.line),
            });
        }
        self.twice = twice;
    }
}

// === impl Duplicate ===

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |(path, line): &(PathBuf, u64)| format!("{}:{line}", Path::display(path));
        let (used, unused) = (place(&self.used), place(&self.unused));
        write!(f, "{} stands at {unused} and again at {used}: the latter is used", self.object)
    }
}
