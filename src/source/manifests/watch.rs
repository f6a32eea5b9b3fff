//! Notices that something changed at the given paths, by inotify.
//!
//! Directories are watched, not files: a watch on a file follows the old file when an editor puts
//! a new one in its place. All directories through which a path leads are watched, symbolic links
//! included, so that a path which does not exist yet, a directory that is put in another's place
//! and the `..data` link of a ConfigMap volume need no care of their own. A directory is watched
//! before one looks what is in it: so no change is lost between the two.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::files::is_manifest_name;

/// How long nothing must happen before one looks.
const QUIET: Duration = Duration::from_millis(20);
/// One looks after this long even if something happens all the time.
const PATIENCE: Duration = Duration::from_millis(200);
/// A file that was written to is read when its writer closes it, or has not written for this long,
const WRITING: Duration = Duration::from_millis(500);
/// or has been at it for this long.
const WRITING_ON: Duration = Duration::from_secs(5);
/// How many symbolic links a path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Events on what a path leads through.
const PASSAGE: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR)
    .union(WatchMask::MASK_ADD);
/// Events where files lie that are read.
const CONTENTS: WatchMask = PASSAGE.union(WatchMask::MODIFY).union(WatchMask::CLOSE_WRITE).union(WatchMask::ATTRIB);

/// Watches over the given paths.
#[derive(Debug)]
pub(super) struct Watch {
    /// `None` if the system gives no inotify instance.
    inotify: Option<AsyncFd<Inotify>>,
    directories: HashMap<WatchDescriptor, Directory>,
    /// Files somebody is writing to, by their real paths.
    writing: HashMap<PathBuf, Writing>,
    /// Whether something happened since [`Watch::cover`] began.
    pending: bool,
    /// Directories with manifests that cannot be watched.
    unwatched: HashSet<PathBuf>,
}

/// Times of the first and the last write.
#[derive(Clone, Copy, Debug)]
struct Writing {
    first: Instant,
    last: Instant,
}

/// A watched directory.
#[derive(Debug, Default)]
struct Directory {
    path: PathBuf,
    /// Whether manifests are looked for in it.
    is_listed: bool,
    /// Names in it that a path leads through.
    names: HashSet<OsString>,
}

// === impl Watch ===

impl Watch {
    /// Watches nothing yet.
    pub(super) fn new() -> Watch {
        #[allow(
            deprecated,
            reason = "its successor is unsafe; an Inotify keeps its descriptor open as long as it lives"
        )]
        let inotify = Inotify::init().and_then(AsyncFd::new).map_err(|error| {
            tracing::warn!(%error, "cannot watch manifests; they are looked at from time to time");
        });
        Watch {
            inotify: inotify.ok(),
            directories: HashMap::new(),
            writing: HashMap::new(),
            pending: false,
            unwatched: HashSet::new(),
        }
    }

    /// Whether every change will be noticed, as far as one can know.
    pub(super) fn is_complete(&self) -> bool {
        self.inotify.is_some() && self.unwatched.is_empty()
    }

    /// Watches whatever can change what is found at `paths`, and nothing else. To be called
    /// before they are looked at.
    pub(super) fn cover(&mut self, paths: &[PathBuf]) {
        self.drain();
        self.pending = false;
        let mut cover = Cover { watch: self, directories: HashMap::new(), unwatched: HashSet::new() };
        for path in paths {
            cover.given(path);
        }
        let Cover { directories, unwatched, .. } = cover;
        let before = std::mem::replace(&mut self.directories, directories);
        self.unwatched = unwatched;
        if let Some(fd) = &self.inotify {
            for descriptor in before.into_keys().filter(|descriptor| !self.directories.contains_key(descriptor)) {
                // The kernel has removed it itself if the directory is gone.
                let _ = fd.get_ref().watches().remove(descriptor);
            }
        }
    }

    /// Real paths of files that somebody is writing to.
    pub(super) fn held(&mut self) -> HashSet<PathBuf> {
        self.drain();
        let now = Instant::now();
        self.writing.retain(|_, writing| now < writing.end());
        self.writing.keys().cloned().collect()
    }

    /// Waits until something has happened and come to rest, or until a point in time.
    pub(super) async fn wait(&mut self, until: Instant) {
        while !self.pending {
            let closed = self.writing.values().map(Writing::end).min();
            tokio::select! {
                () = self.read() => {}
                () = sleep_until(closed.map_or(until, |closed| closed.min(until))) => return,
            }
        }
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            tokio::select! {
                () = self.read() => {}
                () = sleep_until((Instant::now() + QUIET).min(patience)) => return,
            }
        }
    }

    /// Waits for something of interest. Nothing is lost if the future is dropped.
    async fn read(&mut self) {
        loop {
            let Some(fd) = &self.inotify else { return std::future::pending().await };
            match fd.readable().await {
                // All there is gets read below, so what comes later makes it ready again.
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => self.give_up(&error),
            }
            if self.drain() {
                return;
            }
        }
    }

    /// Takes note of all events that are there; true if one was of interest.
    fn drain(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let mut any = false;
        while let Some(fd) = &mut self.inotify {
            match fd.get_mut().read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        any |= self.note(&event.wd, event.mask, event.name);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.give_up(&error),
            }
        }
        any
    }

    fn note(&mut self, descriptor: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) -> bool {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.pending = true;
            return true;
        }
        let Some(directory) = self.directories.get(descriptor) else { return false };
        let Some(name) = name else {
            // The directory itself was moved, removed or given other permissions.
            self.pending = true;
            if mask.contains(EventMask::IGNORED) {
                self.directories.remove(descriptor);
            }
            return true;
        };
        let is_manifest = directory.is_listed && is_manifest_name(Path::new(name));
        if !is_manifest && !directory.names.contains(name) {
            return false;
        }
        let path = directory.path.join(name);
        let is_being_written = match () {
            () if mask.contains(EventMask::ISDIR) => false,
            () if mask.contains(EventMask::MODIFY) => true,
            // A new file is written next; a new link leads to a file that is there.
            () if mask.contains(EventMask::CREATE) => fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()),
            () if mask.contains(EventMask::ATTRIB) => self.writing.contains_key(&path),
            () => false,
        };
        if is_being_written {
            let now = Instant::now();
            self.writing.entry(path).or_insert(Writing { first: now, last: now }).last = now;
        } else {
            self.writing.remove(&path);
            self.pending = true;
        }
        true
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(%error, "cannot watch manifests any more; they are looked at from time to time");
        self.inotify = None;
        self.directories.clear();
        self.writing.clear();
    }
}

// === impl Writing ===

impl Writing {
    /// When the file is read even though nobody said that it is complete.
    fn end(&self) -> Instant {
        (self.last + WRITING).min(self.first + WRITING_ON)
    }
}

/// One run of [`Watch::cover`].
struct Cover<'a> {
    watch: &'a Watch,
    directories: HashMap<WatchDescriptor, Directory>,
    unwatched: HashSet<PathBuf>,
}

// === impl Cover ===

impl Cover<'_> {
    fn given(&mut self, path: &Path) {
        let Some(real) = self.follow(path) else { return };
        if !fs::symlink_metadata(&real).is_ok_and(|found| found.is_dir()) {
            return;
        }
        if let Some(directory) = self.watch(&real, CONTENTS) {
            directory.is_listed = true;
        }
        for entry in fs::read_dir(&real).into_iter().flatten().flatten() {
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if is_link && is_manifest_name(&entry.path()) {
                self.follow(&entry.path());
            }
        }
    }

    /// Follows a path as far as it exists, watching every directory on the way; says where it
    /// ends, free of links.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let mut rest: VecDeque<OsString> = names(&std::path::absolute(path).ok()?).collect();
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            if let Some(directory) = self.watch(&at, PASSAGE) {
                directory.names.insert(name.clone());
            }
            let next = at.join(&name);
            let kind = fs::symlink_metadata(&next).ok()?.file_type();
            if kind.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                let target = fs::read_link(&next).ok()?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                rest = names(&target).chain(rest).collect();
            } else if kind.is_dir() {
                at = next;
            } else {
                self.watch(&at, CONTENTS);
                return rest.is_empty().then_some(next);
            }
        }
        Some(at)
    }

    fn watch(&mut self, path: &Path, mask: WatchMask) -> Option<&mut Directory> {
        let fd = self.watch.inotify.as_ref()?;
        match fd.get_ref().watches().add(path, mask) {
            Ok(descriptor) => {
                let directory = self.directories.entry(descriptor).or_default();
                if directory.path.as_os_str().is_empty() {
                    directory.path = path.to_owned();
                }
                Some(directory)
            }
            // The watch on its parent notices when it comes back.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let is_new =
                    mask == CONTENTS && self.unwatched.insert(path.to_owned()) && !self.watch.unwatched.contains(path);
                match is_new {
                    true => tracing::warn!(
                        directory = %path.display(), %error,
                        "cannot watch a directory with manifests; it is looked at from time to time"
                    ),
                    false => tracing::debug!(directory = %path.display(), %error, "cannot watch a directory"),
                }
                None
            }
        }
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}
