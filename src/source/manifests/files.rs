//! Which files there are, what they held last, and what has become of them.
//!
//! A look has two steps. [`Files::look`] finds the files that differ from what was last read, and
//! reads them; [`Files::take`] decodes what was read. Between the two the caller can learn that a
//! file was being written while it was read, and hold it back.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::hash::Hasher as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::FileError;
use super::decode::{self, Fault};
use super::merge::{Duplicate, FileId, Merged};
use crate::cluster::Event;
use crate::model::ObjectRef;

/// A file that is gone from its directory is believed to be gone after this long: some editors
/// move the old version away before they write the new one.
const GRACE: Duration = Duration::from_millis(150);
/// A file changed less than this before it was read may have changed again within the resolution
/// of its time stamps.
const STAMP_RESOLUTION: Duration = Duration::from_secs(2);

/// The given paths and all files found there.
#[derive(Debug)]
pub(super) struct Files {
    inputs: Vec<Input>,
    node_name: Arc<str>,
    files: BTreeMap<Arc<FileId>, File>,
    merged: Merged,
}

/// A path that was given.
#[derive(Debug)]
struct Input {
    path: PathBuf,
    /// Whether it was ever there.
    seen: bool,
    /// Why it cannot be read at the moment, as last reported.
    fault: Option<Fault>,
}

/// A file that was found.
#[derive(Debug, Default)]
struct File {
    /// Its metadata when it was last read; `None` if it has to be read again.
    stamp: Option<Stamp>,
    /// Of what was last read.
    hash: Option<u64>,
    /// Objects of its last good version.
    objects: Vec<(ObjectRef, usize)>,
    /// Whether there ever was a good version.
    good: bool,
    /// Why it cannot be used, as last reported.
    fault: Option<Fault>,
    /// Since when it is no longer there.
    gone: Option<Instant>,
}

/// What tells two versions of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Whether the times are old enough to tell.
    settled: bool,
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Look {
    /// For each given path, the files there.
    listings: Vec<io::Result<Vec<OsString>>>,
    /// Files that seem to differ from what was last read.
    read: Vec<(FileId, Result<Contents, io::Error>)>,
}

#[derive(Debug)]
struct Contents {
    stamp: Stamp,
    bytes: Vec<u8>,
}

/// What is new.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Changes of objects. Only once every given path has been there.
    pub(super) events: Vec<Event>,
    /// Files and given paths that cannot be used now, and what is used meanwhile.
    pub(super) broken: Vec<(FileError, Stays)>,
    /// Files that can be used again.
    pub(super) mended: Vec<PathBuf>,
    /// Objects that stand in two places.
    pub(super) duplicates: Vec<Duplicate>,
    /// Whether a given path has never been there, or a file in it was never read.
    pub(super) awaited: bool,
    /// Look again at this time.
    pub(super) again: Option<Instant>,
    /// Files decoded, and objects in them that are of no interest.
    pub(super) decoded: usize,
    pub(super) ignored: usize,
}

/// What is used of something that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stays {
    /// The last good version of the file.
    Version,
    /// All files that were last found at a given path.
    Path,
    /// Nothing: there was never anything good.
    Nothing,
}

// === impl Files ===

impl Files {
    /// Nothing has been read yet.
    pub(super) fn new(paths: &[PathBuf], node_name: Arc<str>) -> Files {
        let mut inputs: Vec<Input> = Vec::with_capacity(paths.len());
        for path in paths {
            if !inputs.iter().any(|input| input.path == *path) {
                inputs.push(Input { path: path.clone(), seen: false, fault: None });
            }
        }
        Files { inputs, node_name, files: BTreeMap::new(), merged: Merged::default() }
    }

    /// Lists the given paths and reads what changed, except files in `held`, which are real paths.
    pub(super) fn look(&self, held: &HashSet<PathBuf>) -> Look {
        let mut listed = HashSet::new();
        let mut look = Look { listings: Vec::with_capacity(self.inputs.len()), read: Vec::new() };
        for (input, given) in self.inputs.iter().enumerate() {
            let listing = list(&given.path).map(|mut paths| {
                // Found through an earlier path already.
                paths.retain(|path| listed.insert(path.clone()));
                paths.retain(|path| {
                    let id = FileId::new(input, path.clone());
                    match self.read(&id, held) {
                        Ok(None) => true,
                        Ok(Some(contents)) => {
                            look.read.push((id, Ok(contents)));
                            true
                        }
                        // It went between the two calls, or is a link to nothing.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                        Err(error) => {
                            look.read.push((id, Err(error)));
                            true
                        }
                    }
                });
                paths
            });
            look.listings.push(listing);
        }
        look
    }

    /// The contents of a file, unless they are known or not to be had now.
    fn read(&self, id: &FileId, held: &HashSet<PathBuf>) -> io::Result<Option<Contents>> {
        let metadata = fs::metadata(id.path())?;
        let stamp = Stamp::of(&metadata);
        let known = self.files.get(id).and_then(|file| file.stamp);
        // A pipe gives what it holds once.
        let is_known = known.is_some_and(|known| (known.settled && known.is_same(&stamp)) || !metadata.is_file());
        if is_known || is_held(id.path(), held) {
            return Ok(None);
        }
        Ok(Some(Contents { stamp, bytes: fs::read(id.path())? }))
    }

    /// Takes over what a look found, except files in `held`.
    pub(super) fn take(&mut self, look: Look, held: &HashSet<PathBuf>, now: Instant) -> News {
        let mut news = News::default();
        let mut present = HashSet::new();
        let mut readable = HashSet::new();
        for (input, (given, listing)) in self.inputs.iter_mut().zip(look.listings).enumerate() {
            let fault = match listing {
                Ok(paths) => {
                    readable.insert(input);
                    present.extend(paths.into_iter().map(|path| FileId::new(input, path)));
                    None
                }
                Err(error) => Some(Fault::of_io(&error)),
            };
            let stays = if given.seen { Stays::Path } else { Stays::Nothing };
            report(&mut given.fault, fault, &given.path, stays, &mut news);
            given.seen |= readable.contains(&input);
            news.awaited |= !given.seen;
        }
        for (id, contents) in look.read {
            if !is_held(id.path(), held) {
                self.take_file(id, contents, &mut news);
            }
        }
        // A listing is complete when every file has been read once.
        news.awaited |= present.iter().any(|id| !self.files.contains_key(id));
        self.forget(&present, &readable, now, &mut news);
        if !news.awaited {
            let files = &self.files;
            let is_gone = |id: &FileId| files.get(id).is_some_and(|file| file.gone.is_some());
            (news.events, news.duplicates) = self.merged.settle(is_gone);
        }
        news
    }

    fn take_file(&mut self, id: FileId, contents: io::Result<Contents>, news: &mut News) {
        let id = Arc::new(id);
        let file = self.files.entry(id.clone()).or_default();
        let stays = if file.good { Stays::Version } else { Stays::Nothing };
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => {
                (file.stamp, file.hash) = (None, None);
                report(&mut file.fault, Some(Fault::of_io(&error)), id.path(), stays, news);
                return;
            }
        };
        file.stamp = Some(contents.stamp);
        let mut hasher = DefaultHasher::new();
        hasher.write(&contents.bytes);
        if file.hash.replace(hasher.finish()) == Some(hasher.finish()) {
            return;
        }
        news.decoded += 1;
        let is_blank = contents.bytes.iter().all(u8::is_ascii_whitespace);
        let fault = match decode::decode(&contents.bytes, &self.node_name) {
            Err(fault) => Some(fault),
            Ok(_) if is_blank && !file.objects.is_empty() => Some(Fault::emptied()),
            Ok(decoded) => {
                news.ignored += decoded.ignored;
                file.objects = self.merged.replace(&id, &file.objects, decoded.entries);
                file.good = true;
                None
            }
        };
        report(&mut file.fault, fault, id.path(), stays, news);
    }

    /// Lets go of files that are gone. Those of a given path that cannot be read stay: losing
    /// sight of them says nothing about the objects.
    fn forget(&mut self, present: &HashSet<FileId>, readable: &HashSet<usize>, now: Instant, news: &mut News) {
        let mut gone = BTreeSet::new();
        for (id, file) in &mut self.files {
            if present.contains(&**id) || !readable.contains(&id.input) {
                file.gone = None;
                continue;
            }
            let until = *file.gone.get_or_insert(now) + GRACE;
            if now < until {
                news.again = Some(news.again.map_or(until, |again| again.min(until)));
            } else {
                gone.insert(id.clone());
            }
        }
        for id in gone {
            if let Some(file) = self.files.remove(&id) {
                self.merged.replace(&id, &file.objects, Vec::new());
            }
        }
    }
}

/// Notes what is wrong with a file; says so if it was not already known.
fn report(known: &mut Option<Fault>, fault: Option<Fault>, path: &Path, stays: Stays, news: &mut News) {
    match &fault {
        Some(fault) if known.as_ref() != Some(fault) => news.broken.push((fault.clone().of_file(path), stays)),
        None if known.is_some() => news.mended.push(path.to_owned()),
        _ => {}
    }
    *known = fault;
}

/// The manifest files at a given path, in order: the path itself, or what the directory holds.
/// Directories are not searched further, as with `kubectl -f`.
fn list(path: &Path) -> io::Result<Vec<OsString>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !is_manifest_name(Path::new(&entry.file_name())) {
            continue;
        }
        let kind = entry.file_type()?;
        // Links are followed: in a ConfigMap volume all files are links.
        let is_there = match kind.is_symlink().then(|| fs::metadata(entry.path())) {
            None => kind.is_file(),
            Some(Ok(found)) => found.is_file(),
            Some(Err(error)) => error.kind() != io::ErrorKind::NotFound,
        };
        if is_there {
            paths.push(entry.path().into_os_string());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether a file in a directory is taken for a manifest. Hidden files are editors' own.
pub(super) fn is_manifest_name(path: &Path) -> bool {
    let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !is_hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn is_held(path: &Path, held: &HashSet<PathBuf>) -> bool {
    !held.is_empty() && fs::canonicalize(path).is_ok_and(|real| held.contains(&real))
}

// === impl Stamp ===

impl Stamp {
    fn of(file: &Metadata) -> Stamp {
        let age = file.modified().ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        Stamp {
            file: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
            settled: age.is_some_and(|age| age > STAMP_RESOLUTION),
        }
    }

    fn is_same(&self, other: &Stamp) -> bool {
        Stamp { settled: other.settled, ..*self } == *other
    }
}

// === impl Fault ===

impl Fault {
    fn of_io(error: &io::Error) -> Fault {
        Fault { line: 0, column: 0, field: String::new(), reason: error.to_string() }
    }

    /// What is left when a program fails whose output is sent to a file, or a disk is full. Who
    /// means to delete objects deletes the file, or leaves a comment in it.
    fn emptied() -> Fault {
        Fault { line: 0, column: 0, field: String::new(), reason: "is empty".into() }
    }

    pub(super) fn of_file(self, path: &Path) -> FileError {
        let Fault { line, column, field, reason } = self;
        FileError { path: path.to_owned(), line, column, field, reason }
    }
}
