//! The configuration file after it was read: when its content changes, the proxy ends and leaves it
//! to its supervisor to start it anew.

use std::io;
use std::path::Path;

use futures::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};

/// A watch of the file that a path leads to now. Symbolic links are followed once: a link that is
/// made to lead elsewhere later, as a ConfigMap volume does with every update, is not noticed, and
/// neither is a file that is removed. kube-proxy does the same, and clusters rely on it not to
/// restart by itself when its ConfigMap changes.
#[derive(Debug)]
pub struct FileWatch(Inotify);

// === impl FileWatch ===

impl FileWatch {
    /// Begins to watch.
    pub fn new(path: &Path) -> io::Result<FileWatch> {
        let inotify = Inotify::init()?;
        inotify.watches().add(path, WatchMask::MODIFY | WatchMask::MOVE_SELF)?;
        Ok(FileWatch(inotify))
    }

    /// Waits until the file was written to or renamed, and gives the error to end with.
    pub async fn updated(self) -> anyhow::Error {
        let mut events = match self.0.into_event_stream([0; 1024]) {
            Ok(events) => events,
            Err(error) => return anyhow::Error::new(error).context("cannot watch the configuration file"),
        };
        match events.next().await {
            // The file is gone, and the kernel's watch with it.
            Some(Ok(event)) if event.mask.contains(EventMask::IGNORED) => std::future::pending().await,
            Some(Ok(_)) => anyhow::anyhow!("content of the proxy server's configuration file was updated"),
            Some(Err(error)) => anyhow::Error::new(error).context("cannot watch the configuration file"),
            None => std::future::pending().await,
        }
    }
}
