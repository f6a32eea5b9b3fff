//! Whether the watches are alive, for metrics: nothing decides by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Kind;

/// How the watches are. Clones show the same ones.
#[derive(Clone, Debug)]
pub struct Liveness(Arc<Signs>);

#[derive(Debug)]
struct Signs {
    start: Instant,
    kinds: [Sign; 4],
}

/// Of one watch.
#[derive(Debug, Default)]
struct Sign {
    /// Whether there is such a watch.
    begun: AtomicBool,
    connected: AtomicBool,
    /// Milliseconds since the start when the server last said something, plus one; zero for never.
    heard: AtomicU64,
}

/// How one watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchState {
    /// What it watches.
    pub kind: Kind,
    /// Whether the server answered the last time it was asked. A connection that died without a word is
    /// taken for alive until it has been silent for two and a half minutes.
    pub connected: bool,
    /// How long ago the server last said anything about this kind, `None` for never. On a healthy watch
    /// no more than a minute or so, even if nothing changes: the server sends bookmarks.
    pub silent: Option<Duration>,
}

const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

// === impl Liveness ===

impl Liveness {
    pub(super) fn new() -> Liveness {
        Liveness(Arc::new(Signs { start: Instant::now(), kinds: Default::default() }))
    }

    /// Every watch.
    pub fn read(&self) -> Vec<WatchState> {
        let now = self.millis();
        let begun = KINDS
            .map(|kind| (kind, self.sign(kind)))
            .into_iter()
            .filter(|(_, sign)| sign.begun.load(Ordering::Relaxed));
        let state = |(kind, sign): (Kind, &Sign)| {
            let heard = sign.heard.load(Ordering::Relaxed).checked_sub(1);
            WatchState {
                kind,
                connected: sign.connected.load(Ordering::Relaxed),
                silent: heard.map(|heard| Duration::from_millis(now.saturating_sub(heard))),
            }
        };
        begun.map(state).collect()
    }

    /// There is a watch of a kind.
    pub(super) fn begun(&self, kind: Kind) {
        self.sign(kind).begun.store(true, Ordering::Relaxed);
    }

    /// The server said something.
    pub(super) fn heard(&self, kind: Kind) {
        self.sign(kind).heard.store(self.millis() + 1, Ordering::Relaxed);
        self.connected(kind, true);
    }

    /// The server answers, or does not.
    pub(super) fn connected(&self, kind: Kind, connected: bool) {
        self.sign(kind).connected.store(connected, Ordering::Relaxed);
    }

    fn sign(&self, kind: Kind) -> &Sign {
        let [service, slice, node, service_cidr] = &self.0.kinds;
        match kind {
            Kind::Service => service,
            Kind::EndpointSlice => slice,
            Kind::Node => node,
            Kind::ServiceCidr => service_cidr,
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}
