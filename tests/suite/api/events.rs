//! Events as an API server gets them.

use std::sync::Arc;
use std::time::Duration;

use ferrule::events::sink::{self, Reporter};
use ferrule::events::{Happening, Recorder};
use serde_json::Value;

use super::follower::client;
use super::server::answer::{Core, Fault, On, Seen};
use crate::recordings;

fn start(core: &Arc<Core>) -> Recorder {
    let (recorder, happenings) = Recorder::new(8);
    let client = client(core.clone());
    let reporter = Reporter { node: "node-000".to_owned(), host: "node-000".to_owned() };
    tokio::spawn(sink::run(move || std::future::ready(client.clone()), reporter, happenings));
    recorder
}

fn written(core: &Core) -> Vec<(String, String)> {
    let is_write = |seen: &Seen| seen.method != "GET";
    core.requests().into_iter().filter(is_write).map(|seen| (seen.method, seen.path)).collect()
}

async fn requests(core: &Core, count: usize) {
    core.requested(|seen| seen.len() >= count).await;
}

const NODE_EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

#[tokio::test(start_paused = true)]
async fn recorded_event_has_the_same_fields() {
    let core = Core::new([]);
    start(&core).record(Happening::Starting);
    requests(&core, 1).await;
    assert_eq!(written(&core), [("POST".to_owned(), NODE_EVENTS.to_owned())]);
    let recorded = recordings::read("api/event-create.txt");
    let (_, recorded) = recorded.split_once("\n\n").unwrap();
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    let posted = &core.posted_events()[0];
    for field in ["kind", "apiVersion", "reportingController", "reportingInstance", "action", "reason", "type"] {
        assert_eq!(posted[field], recorded[field], "{field}");
    }
    for field in ["kind", "name"] {
        assert_eq!(posted["regarding"][field], recorded["regarding"][field], "{field}");
    }
    // RFC 3339 with microseconds, as the server wants it.
    let time = posted["eventTime"].as_str().unwrap();
    assert_eq!(time.len(), recorded["eventTime"].as_str().unwrap().len(), "{time}");
    // Nothing that the server did not take.
    let fields = posted.as_object().unwrap().keys().filter(|field| *field != "metadata");
    assert!(fields.into_iter().all(|field| recorded.get(field).is_some()), "{posted}");
}

#[tokio::test(start_paused = true)]
async fn an_event_about_a_service_is_in_its_namespace() {
    let core = Core::new([]);
    let service = ferrule::model::ServiceName::new("shop", "web");
    start(&core).record(Happening::HealthCheckNodePortFailed { service, port: 30_000, error: "in use".to_owned() });
    requests(&core, 1).await;
    let path = NODE_EVENTS.replace("default", "shop");
    assert_eq!(written(&core), [("POST".to_owned(), path)]);
    assert_eq!(core.posted_events()[0]["regarding"]["name"], "web");
}

#[tokio::test(start_paused = true)]
async fn a_server_in_trouble_is_asked_again() {
    let core = Core::new([]);
    core.set_fault(On::Anything, Fault::Status(500, "InternalError"));
    let recorder = start(&core);
    recorder.record(Happening::Starting);
    requests(&core, 3).await;
    let at: Vec<_> = core.requests().iter().map(|seen| seen.at).collect();
    for pause in [at[1] - at[0], at[2] - at[1]] {
        assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&pause), "{pause:?}");
    }
    core.clear_faults();
    requests(&core, 4).await;
    assert_eq!(core.posted_events().len(), 1);
    // Not for ever, and the next one is tried anew.
    core.set_fault(On::Anything, Fault::Status(500, "InternalError"));
    recorder.record(Happening::HealthServerFailed("in use".to_owned()));
    requests(&core, 4 + 12).await;
    recorder.record(Happening::MetricsServerFailed("in use".to_owned()));
    requests(&core, 4 + 12 + 1).await;
    core.clear_faults();
    requests(&core, 4 + 12 + 2).await;
    let reasons: Vec<_> = core.posted_events().iter().map(|event| event["reason"].clone()).collect();
    assert_eq!(reasons, ["Starting", "FailedToStartMetricServer"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final() {
    let core = Core::new([]);
    core.set_fault(On::Anything, Fault::Status(403, "Forbidden"));
    let recorder = start(&core);
    recorder.record(Happening::Starting);
    requests(&core, 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(core.requests().len(), 1);
    core.clear_faults();
    recorder.record(Happening::MetricsServerFailed("in use".to_owned()));
    requests(&core, 2).await;
    assert_eq!(core.posted_events().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn repeats_are_a_series() {
    let core = Core::new([]);
    let recorder = start(&core);
    for error in ["in use", "in use still", "in use ever more"] {
        recorder.record(Happening::MetricsServerFailed(error.to_owned()));
    }
    requests(&core, 2).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let posted = core.posted_events();
    assert_eq!(posted.len(), 1);
    let path = format!("{NODE_EVENTS}/{}", posted[0]["metadata"]["name"].as_str().unwrap());
    assert_eq!(written(&core), [("POST".to_owned(), NODE_EVENTS.to_owned()), ("PATCH".to_owned(), path)]);
    assert_eq!(posted[0]["series"]["count"], 2);
    assert_eq!(posted[0]["note"], "in use");
}

/// Events live for an hour; a series may take longer.
#[tokio::test(start_paused = true)]
async fn a_series_outlives_its_event() {
    let core = Core::new([]);
    let recorder = start(&core);
    recorder.record(Happening::MetricsServerFailed("in use".to_owned()));
    requests(&core, 1).await;
    core.expire_events();
    recorder.record(Happening::MetricsServerFailed("in use".to_owned()));
    requests(&core, 3).await;
    let methods: Vec<_> = written(&core).into_iter().map(|(method, _)| method).collect();
    assert_eq!(methods, ["POST", "PATCH", "POST"]);
    assert_eq!(core.posted_events()[0]["series"]["count"], 2);
}
