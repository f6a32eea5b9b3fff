//! Where objects come from: an API server, or manifest files. Both say the same [`Event`]s.
//!
//! A source begins a kind with `Listing`, mentions every object there is, and ends with `Synced`;
//! then it reports changes. When it must start over (a lost watch, a directory re-read) it does the
//! same again. It never makes up deletions because it lost sight of something.

pub mod addresses;
pub mod api;
pub mod manifests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::cluster::Event;

/// The way events take. Bounded: a source waits while the proxy is busy.
pub type Events = mpsc::Sender<Event>;

/// A request to a server, for those who count them.
#[derive(Clone, Debug)]
pub enum Exchange {
    /// It was answered, or cannot be.
    Answered {
        /// GET, POST, ...
        method: &'static str,
        /// Name of the server, with the port if its URL has one.
        host: Arc<str>,
        /// Status; `None` if there was no answer.
        code: Option<u16>,
    },
    /// The whole answer is here. Never said of a watch, which has no whole.
    Complete {
        /// As above.
        method: &'static str,
        /// As above.
        host: Arc<str>,
        /// How long the limit of requests held it back before it was made.
        waited: Duration,
        /// From the request to the end of the answer.
        duration: Duration,
        /// Bytes of the request's body.
        sent: u64,
        /// Bytes of the answer's body.
        received: u64,
    },
}
