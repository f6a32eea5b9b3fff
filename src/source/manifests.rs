//! Manifest files as a source: Services, EndpointSlices and the Node from YAML or JSON, as
//! `kubectl get -o yaml` prints them, instead of an API server.
//!
//! - Given paths are files, read whatever their names, or directories, of which `*.yaml`, `*.yml`
//!   and `*.json` are read (not hidden ones, not directories further down).
//! - What is read is what an API server would have sent: its label selectors and the defaults that
//!   follow from an object itself are applied. Nobody assigns addresses or node ports here; where
//!   they are missing, a [`Problem`](crate::model::Problem) says so. Other kinds are ignored.
//! - An object that stands in two places counts where it stands last: later given paths after
//!   earlier ones, file names in order, documents in order.
//! - A file with a mistake is not used as a whole: its last good version stays in use, and if it
//!   never had one it contributes nothing. Either way everything else is served: one broken file
//!   does not keep a node from [`Event::Synced`]. A file that had objects and is empty now is taken
//!   for a mistake, too.
//! - A given path that is not there (any more) says nothing about the objects in it: they stay.
//!   Until every given path has been there once, nothing at all is said, and so nothing is
//!   programmed: a node that restarts before its volume is mounted must not drop its rules.
//!   A file that goes from a directory takes its objects along.

mod admit;
mod decode;
mod documents;
mod files;
mod merge;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Events;
use crate::cluster::Event;
use crate::model::Kind;
use files::{Files, News, Stays};
use watch::Watch;

pub use merge::Duplicate;

/// Files are looked at this often even if nothing is noticed: not every file system tells.
const RESCAN: Duration = Duration::from_secs(30);
/// The same where it is known that not every change is noticed.
const POLL: Duration = Duration::from_secs(1);

/// Follows manifest files, and sends what changes in them. Returns when nobody listens any more.
pub async fn run(paths: Vec<PathBuf>, node_name: Arc<str>, events: Events) -> Result<(), ManifestsError> {
    let mut watch = Watch::new();
    let mut files = Files::new(&paths, node_name.clone());
    let paths: Arc<[PathBuf]> = paths.into();
    let mut listed = false;
    loop {
        let mut news: News;
        // File systems can be slow, and parsing takes time: neither may hold up the runtime.
        let (given, mut watching, mut reading) = (paths.clone(), watch, files);
        let turn = tokio::task::spawn_blocking(move || {
            watching.cover(&given);
            let look = reading.look(&watching.held());
            // What was being written while it was read is read again later.
            let news = reading.take(look, &watching.held(), Instant::now());
            (watching, reading, news)
        });
        (watch, files, news) = turn.await?;
        log(&news);

        let mut changes = std::mem::take(&mut news.events);
        if !listed && !news.awaited {
            listed = true;
            log_listing(&changes, &node_name);
            changes = listing(changes);
        }
        for event in changes {
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }

        let rescan = Instant::now() + if watch.is_complete() { RESCAN } else { POLL };
        let until = news.again.map_or(rescan, |again| again.min(rescan));
        tokio::select! {
            () = watch.wait(until.into()) => {}
            () = events.closed() => return Ok(()),
        }
    }
}

/// Reads manifest files once.
pub fn load(paths: &[PathBuf], node_name: &str) -> Loaded {
    let mut files = Files::new(paths, node_name.into());
    let nothing = HashSet::new();
    let look = files.look(&nothing);
    let news = files.take(look, &nothing, Instant::now());
    Loaded {
        events: if news.awaited { Vec::new() } else { listing(news.events) },
        broken: news.broken.into_iter().map(|(error, _)| error).collect(),
        duplicates: news.duplicates,
    }
}

/// The same for a single file that holds these bytes.
#[cfg(feature = "fixtures")]
pub fn load_text(bytes: &[u8], node_name: &str) -> Loaded {
    let file = Arc::new(merge::FileId::new(0, "manifest.yaml".into()));
    let decoded = match decode::decode(bytes, node_name) {
        Ok(decoded) => decoded,
        Err(fault) => return Loaded { broken: vec![fault.of_file(file.path())], ..Loaded::default() },
    };
    let mut merged = merge::Merged::default();
    merged.replace(&file, &[], decoded.entries);
    let (events, duplicates) = merged.settle(|_| false);
    Loaded { events: listing(events), broken: Vec::new(), duplicates }
}

/// What [`load`] read.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// A complete listing of every kind, with the problems of the objects. Empty if a given path
    /// is not there.
    pub events: Vec<Event>,
    /// Given paths that are not there and files that cannot be used.
    pub broken: Vec<FileError>,
    /// Objects that stand in two places.
    pub duplicates: Vec<Duplicate>,
}

/// Why a manifest file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct FileError {
    /// The file, or the given path.
    pub path: PathBuf,
    /// Line, from 1; 0 if it is about the file as a whole.
    pub line: u64,
    /// Column in characters, from 1; 0 if unknown.
    pub column: u64,
    /// Path of the field within its document (`spec.ports[0].port`); empty if it is not about one.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// Why manifests are no longer followed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// Reading files ended in a panic, or the runtime is shutting down.
    #[error("reading manifests ended early: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Makes the first changes a complete listing.
fn listing(changes: Vec<Event>) -> Vec<Event> {
    let mut listing = Vec::with_capacity(changes.len() + 8);
    let mut rest = changes;
    for kind in [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice] {
        let is_of_kind = |event: &Event| match event {
            Event::Node(_) => kind == Kind::Node,
            Event::ServiceCidr(_) => kind == Kind::ServiceCidr,
            Event::Service(_) => kind == Kind::Service,
            Event::EndpointSlice(_) => kind == Kind::EndpointSlice,
            _ => false,
        };
        let (of_kind, others) = rest.into_iter().partition::<Vec<_>, _>(is_of_kind);
        rest = others;
        listing.push(Event::Listing(kind));
        listing.extend(of_kind);
        listing.push(Event::Synced(kind));
    }
    listing.extend(rest);
    listing
}

fn log(news: &News) {
    for (error, stays) in &news.broken {
        match stays {
            Stays::Version => tracing::error!("{error}; its last good version stays in use"),
            Stays::Path => tracing::error!("{error}; what was last read there stays in use"),
            Stays::Nothing => tracing::error!("{error}; nothing of it is used until that is mended"),
        }
    }
    if news.awaited && !news.broken.is_empty() {
        tracing::warn!("nothing is programmed until every path given with --manifests has been there");
    }
    for path in &news.mended {
        tracing::info!("{}: can be read again", path.display());
    }
    for duplicate in &news.duplicates {
        tracing::warn!("{duplicate}");
    }
    if news.decoded > 0 {
        let (files, events, ignored) = (news.decoded, news.events.len(), news.ignored);
        tracing::debug!(files, events, ignored, "read manifests");
    }
}

fn log_listing(events: &[Event], node_name: &str) {
    let count = |is: fn(&Event) -> bool| events.iter().filter(|event| is(event)).count();
    let services = count(|event| matches!(event, Event::Service(_)));
    let endpoint_slices = count(|event| matches!(event, Event::EndpointSlice(_)));
    tracing::info!(services, endpoint_slices, "the manifests are read");
    if count(|event| matches!(event, Event::Node(_))) == 0 {
        tracing::warn!("no Node named {node_name} in the manifests: its zone, addresses and pod CIDRs are unknown");
    }
}

// === impl FileError ===

/// `services.yaml:14:7: spec.ports[0].port: what is wrong`
impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        for number in [self.line, self.column] {
            if number != 0 {
                write!(f, "{number}:")?;
            }
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.reason)
    }
}
