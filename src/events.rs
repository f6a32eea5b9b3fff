//! What is told to people who look at the node or a Service in the cluster: Events of the API.
//!
//! ```text
//! health, metrics, run --Happening--> Recorder --> sink: wire (an Event) -> series (repeats) -> API server
//! ```

mod series;
pub mod sink;
mod wire;

use tokio::sync::mpsc;

use crate::model::ServiceName;

/// Something worth an Event. (kube-proxy: the same, with these reasons.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// `Starting`: the proxy begins, on the Node.
    Starting,
    /// `FailedToStartProxierHealthcheck`: the health server cannot have its address, on the Node.
    HealthServerFailed(String),
    /// `FailedToStartMetricServer`: the metrics server cannot have its address, on the Node.
    MetricsServerFailed(String),
    /// `FailedToStartServiceHealthcheck`: a health check node port cannot be had, on the Service.
    HealthCheckNodePortFailed {
        /// The Service.
        service: ServiceName,
        /// The port.
        port: u16,
        /// Why.
        error: String,
    },
}

/// Where happenings go. Clones lead to the same place.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<mpsc::Sender<Happening>>);

// === impl Recorder ===

impl Recorder {
    /// A recorder and what comes out of it. Up to `backlog` happenings wait; further ones are dropped.
    pub fn new(backlog: usize) -> (Recorder, mpsc::Receiver<Happening>) {
        let (sender, receiver) = mpsc::channel(backlog);
        (Recorder(Some(sender)), receiver)
    }

    /// Records; never waits. Without an API server (manifests), or when too much waits, nothing happens:
    /// the log has it as well.
    pub fn record(&self, happening: Happening) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(happening);
        }
    }
}
