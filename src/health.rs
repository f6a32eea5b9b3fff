//! Whether this node programs rules, as probes and load balancers ask: `/healthz` and `/livez`, and a
//! port for each Service with a `healthCheckNodePort`.
//!
//! What is asked and answered is kube-proxy's, to the byte where somebody could compare. The loop's
//! notices are the only input: [`Health`] takes note of requests and syncs, [`NodePorts`] of Plans.
//! Watches have no part in it, because a node that lost its API server still serves what it last
//! heard of; how alive they are is for metrics (`source::api::Liveness`).

mod answer;
mod listeners;
mod node_ports;
mod server;
mod state;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;

use crate::cluster::Event;
use crate::http::{Request, Response};
use crate::sync::notice::{Notice, Observer};

pub use answer::node_port_answer;
pub use node_ports::{Answer, NodePorts, answers};
pub use server::{ServeError, serve};
pub use state::{State, Verdict};

/// A moment on both clocks: one that never jumps, and the one that people read.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For measuring.
    pub at: Instant,
    /// For showing.
    pub time: SystemTime,
}

/// The health of this proxy. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<State>>,
    probes: Arc<Probes>,
}

/// How often probes were answered, and with what. (kube-proxy: `kubeproxy_proxy_healthz_total` and
/// `kubeproxy_proxy_livez_total`, with a label `code`.)
#[derive(Debug, Default)]
pub struct Probes {
    /// Answers of `/healthz`.
    pub healthz: Answers,
    /// Answers of `/livez`.
    pub livez: Answers,
}

/// How often one path was answered.
#[derive(Debug, Default)]
pub struct Answers {
    ok: AtomicU64,
    unavailable: AtomicU64,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// `/healthz`: shall this node get traffic?
    Healthz,
    /// `/livez`: does the proxy work?
    Livez,
}

// === impl Moment ===

impl Moment {
    /// The present.
    pub fn now() -> Moment {
        Moment { at: Instant::now(), time: SystemTime::now() }
    }
}

// === impl Health ===

impl Health {
    /// Nothing known yet. A request that waits for longer than `timeout` is not healthy. (kube-proxy:
    /// twice `syncPeriod`.)
    pub fn new(timeout: Duration) -> Health {
        Health { state: Arc::new(Mutex::new(State::new(timeout))), probes: Arc::default() }
    }

    /// How probes were answered so far.
    pub fn probes(&self) -> &Arc<Probes> {
        &self.probes
    }

    /// How things stand.
    pub fn verdict(&self, now: Moment) -> Verdict {
        self.state().verdict(now)
    }

    /// Answers a probe.
    pub fn answer(&self, request: &Request) -> Response {
        let (question, answers) = match request.path() {
            "/healthz" => (Question::Healthz, &self.probes.healthz),
            "/livez" => (Question::Livez, &self.probes.livez),
            _ => return Response::not_found(),
        };
        let now = Moment::now();
        let response = answer::probe_answer(question, &self.verdict(now), now);
        answers.count(response.status);
        response
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Health {
    fn notice(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Started(family) => self.state().started(*family, Moment::now()),
            Notice::Requested(family) => self.state().requested(*family, Moment::now()),
            Notice::Begun(family) => self.state().begun(*family),
            // Services that the kernel refuses do not count: all others are served, and other nodes
            // would refuse them as well.
            Notice::Ended(sync) if sync.result.is_ok() && !sync.unfinished => {
                self.state().succeeded(sync.family, Moment::now());
            }
            // A Node that was deleted stays as it was last seen. (kube-proxy: the same.)
            Notice::Event { event: Event::Node(node), .. } => self.state().node_seen(node.draining),
            _ => {}
        }
    }
}

// === impl Answers ===

impl Answers {
    /// The codes there can be, each with how often it was given.
    pub fn by_code(&self) -> [(u16, u64); 2] {
        [(200, self.ok.load(Ordering::Relaxed)), (503, self.unavailable.load(Ordering::Relaxed))]
    }

    fn count(&self, status: StatusCode) {
        let counter = if status == StatusCode::OK { &self.ok } else { &self.unavailable };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::Changed;
    use crate::model::{Kind, Node, ObjectRef};

    #[test]
    fn a_deleted_node_stays_as_it_was_last_seen() {
        let mut health = Health::new(Duration::from_secs(60));
        let node = |draining| Event::Node(Arc::new(Node { draining, ..Node::default() }));
        let gone = Event::Deleted(ObjectRef::new(Kind::Node, "", "node"));
        let seen = [(&gone, false), (&node(false), true), (&gone, true), (&node(true), false), (&gone, false)];
        for (event, eligible) in seen {
            health.notice(&Notice::Event { event, changed: &Changed::Nothing });
            assert_eq!(health.verdict(Moment::now()).node_eligible, eligible, "{event:?}");
        }
    }

    #[test]
    fn answers_are_counted_by_code() {
        let health = Health::new(Duration::from_secs(60));
        let ask = |path: &'static str| {
            let (method, headers) = (http::Method::POST, http::HeaderMap::new());
            let request = Request { method, uri: http::Uri::from_static(path), headers, body: "".into() };
            health.answer(&request).status.as_u16()
        };
        assert_eq!(ask("/healthz?verbose"), 503);
        assert_eq!(["/livez", "/livez", "/readyz", "/", "/healthz/"].map(ask), [200, 200, 404, 404, 404]);
        assert_eq!(health.probes().healthz.by_code(), [(200, 0), (503, 1)]);
        assert_eq!(health.probes().livez.by_code(), [(200, 2), (503, 0)]);
    }
}
