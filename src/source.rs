//! Where objects come from: an API server, or manifest files. Both say the same [`Event`]s.
//!
//! A source begins a kind with `Listing`, mentions every object there is, and ends with `Synced`;
//! then it reports changes. When it must start over (a lost watch, a directory re-read) it does the
//! same again. It never makes up deletions because it lost sight of something.

pub mod addresses;
pub mod api;
pub mod manifests;

use tokio::sync::mpsc;

use crate::cluster::Event;

/// The way events take. Bounded: a source waits while the proxy is busy.
pub type Events = mpsc::Sender<Event>;
