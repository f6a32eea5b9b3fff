//! Sending Events. Whatever goes wrong, the proxy goes on: they are for people, and the log has the
//! same.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Happening;
use super::series::{SeriesBook, Write};
use super::wire;

pub use super::wire::Reporter;

/// How often an Event is tried to be sent. (client-go: `maxTriesPerEvent`.)
const TRIES: u32 = 12;
/// The pause in between; a little more or less, or all nodes would ask at once. (client-go: the same.)
const PAUSE: Duration = Duration::from_secs(10);
/// How long the server may take for one.
const LIMIT: Duration = Duration::from_secs(30);
/// How often series are looked through.
const LOOK: Duration = Duration::from_secs(60);

/// Sends what comes out of a [`Recorder`](super::Recorder), one after the other, until nothing more can
/// come. `client` gives the client for each request.
pub async fn run<F: Future<Output = Client>>(
    client: impl Fn() -> F,
    reporter: Reporter,
    mut happenings: mpsc::Receiver<Happening>,
) {
    let mut book = SeriesBook::default();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let writes = tokio::select! {
            happening = happenings.recv() => {
                let Some(happening) = happening else { return };
                let now = Timestamp::now();
                book.take(wire::event(&reporter, &happening, now), now).into_iter().collect()
            }
            _ = look.tick() => book.due(Timestamp::now()),
        };
        for write in writes {
            send(&client, &write).await;
        }
    }
}

async fn send<F: Future<Output = Client>>(client: &impl Fn() -> F, write: &Write) {
    let (Write::Create(event) | Write::Update(event)) = write;
    let reason = event.reason.as_deref().unwrap_or_default();
    for attempt in 1..=TRIES {
        let result = match timeout(LIMIT, try_send(client().await, write)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => {
                tracing::debug!(reason, attempt, "no answer to an Event");
                pause().await;
                continue;
            }
        };
        match &result {
            // An earlier try has arrived after all.
            kube::Error::Api(status) if status.code == 409 => return,
            kube::Error::Api(status) if is_final(status.code) => {
                let remedy = if status.code == 403 {
                    "; it needs the verbs create and patch on events.events.k8s.io"
                } else {
                    ""
                };
                tracing::warn!(reason, err = %result, "the API server refuses an Event{remedy}");
                return;
            }
            error => tracing::debug!(reason, attempt, err = %error, "cannot send an Event"),
        }
        if attempt < TRIES {
            pause().await;
        }
    }
    tracing::warn!(reason, "an Event could not be sent, and is dropped");
}

async fn pause() {
    sleep(PAUSE.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
}

/// Whether the same request would be refused again.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && ![401, 408, 429].contains(&code)
}

async fn try_send(client: Client, write: &Write) -> kube::Result<()> {
    let (Write::Create(event) | Write::Update(event)) = write;
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client, namespace);
    if let Write::Update(event) = write {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({ "series": event.series }));
        match api.patch(name, &PatchParams::default(), &patch).await {
            // It lives for an hour only.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => return result.map(drop),
        }
    }
    api.create(&PostParams::default(), event).await.map(drop)
}
