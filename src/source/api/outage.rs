//! What is said about a server that is lost, and when.

use tokio::time::Instant;

use super::exchange::Failure;
use crate::model::Kind;

/// Whether a watch is without its server. Loss and recovery are each said once; a retry that fails
/// in the same way is only of interest when debugging.
#[derive(Debug)]
pub(super) struct Outage {
    kind: Kind,
    server: String,
    since: Option<(Instant, Class)>,
}

type Class = (std::mem::Discriminant<Failure>, u16);

impl Outage {
    pub(super) fn new(kind: Kind, server: &str) -> Outage {
        Outage { kind, server: server.to_string(), since: None }
    }

    /// Whether the server is lost at the moment.
    pub(super) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// A list or watch failed.
    pub(super) fn failed(&mut self, failure: &Failure) {
        let (kind, server, class) = (self.kind, self.server.as_str(), failure.class());
        match &mut self.since {
            Some((_, known)) if *known == class => {
                tracing::debug!(%kind, server, reason = %failure, "the API server is still lost");
            }
            Some((_, known)) => {
                *known = class;
                tracing::info!(%kind, server, reason = %failure, "the API server is lost for another reason now");
            }
            None => {
                self.since = Some((Instant::now(), class));
                tracing::info!(
                    %kind, server, reason = %failure,
                    "the API server is lost: trying again, rules stay as they are"
                );
            }
        }
    }

    /// The server delivers.
    pub(super) fn over(&mut self) {
        if let Some((since, _)) = self.since.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(kind = %self.kind, server = self.server, seconds, "the API server is back");
        }
    }
}
