//! The source at work on a fake API server in the same process, on the made-up clock of the test:
//! what it sends is folded into a `ClusterState`, as the proxy does it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ferrule::cluster::{Changed, ClusterState, Event};
use ferrule::model::{EndpointSlice, Kind, Service, wire};
use ferrule::net::IpFamily;
use ferrule::source::api::{self, Connection, Interest, Liveness};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::server::answer::{Ask, Body, Core, Seen};
use crate::recordings::NODE;

/// Longer than any wait of the source's.
pub(super) const LONG: Duration = Duration::from_secs(90);

/// What is watched unless a test is about more.
pub(super) const INTEREST: Interest<'_> = Interest { node_name: NODE, service_cidrs: false };

/// A running source and what came of it.
pub(super) struct Follower {
    pub(super) core: Arc<Core>,
    pub(super) state: ClusterState,
    pub(super) liveness: Liveness,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

/// Objects of every kind: the node, and Services `t/s00` to `t/s59` with a slice each.
pub(super) fn objects() -> Vec<Value> {
    let node = json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": NODE, "uid": "uid-of-the-node" } });
    let services = (0..60).flat_map(|i| {
        let name = format!("s{i:02}");
        [service(&name, &format!("10.0.0.{i}")), slice(&format!("{name}-1"), &name, &format!("10.1.0.{i}"))]
    });
    [node].into_iter().chain(services).collect()
}

/// A Service with one port.
pub(super) fn service(name: &str, ip: &str) -> Value {
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "t" },
        "spec": { "type": "ClusterIP", "clusterIP": ip, "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

/// A slice of a Service, with one endpoint.
pub(super) fn slice(name: &str, service: &str, ip: &str) -> Value {
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": { "name": name, "namespace": "t", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [ip] }],
    })
}

/// An event in short.
pub(super) fn short(event: &Event) -> String {
    match event {
        Event::Listing(kind) => format!("Listing {kind}"),
        Event::Synced(kind) => format!("Synced {kind}"),
        Event::Service(service) => format!("Service {}", service.name),
        Event::EndpointSlice(slice) => format!("EndpointSlice {}/{}", slice.service.namespace, slice.name),
        Event::Node(node) => format!("Node {}", node.name),
        Event::ServiceCidr(object) => format!("ServiceCIDR {} {:?}", object.name, object.cidrs),
        Event::Deleted(object) => format!("Deleted {object}"),
        Event::Unreadable(object) => format!("Unreadable {object}"),
        Event::Problem(problem) => format!("Problem {problem}"),
        other => format!("{other:?}"),
    }
}

/// The requests for one kind of object.
pub(super) fn requests_for(core: &Core, kind: Kind) -> Vec<Seen> {
    let end = match kind {
        Kind::Service => "/services",
        Kind::EndpointSlice => "/endpointslices",
        Kind::Node => "/nodes",
        Kind::ServiceCidr => "/servicecidrs",
    };
    core.requests().into_iter().filter(|seen| seen.path.ends_with(end)).collect()
}

/// A client whose requests are answered by `core` in this process.
pub(super) fn client(core: Arc<Core>) -> kube::Client {
    let serve = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let core = core.clone();
        async move {
            let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "made to refuse");
            if core.is_down() {
                return Err(refused());
            }
            let (parts, body) = request.into_parts();
            let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
            let ask = Ask {
                method: parts.method.to_string(),
                path: parts.uri.path().to_string(),
                query: parts.uri.query().unwrap_or_default().to_string(),
                authorization: header("authorization"),
                user_agent: header("user-agent"),
                body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
            };
            let answer = core.answer(ask).await;
            let body = match answer.body {
                Body::Whole(text) => Either::Left(Full::new(Bytes::from(text)).map_err(|never| match never {})),
                Body::Stream(chunks) => {
                    let frames = futures::StreamExt::map(chunks, |chunk| chunk.map(Frame::data));
                    Either::Right(StreamBody::new(frames))
                }
            };
            Ok::<_, io::Error>(http::Response::builder().status(answer.status).body(body).expect("a response"))
        }
    });
    kube::Client::new(serve, "default")
}

// === impl Follower ===

impl Follower {
    /// Starts the source on a server.
    pub(super) fn start(core: &Arc<Core>) -> Follower {
        Follower::with_capacity(core, 1024)
    }

    /// The same, of a source that watches ServiceCIDRs too.
    pub(super) fn of_all_kinds(core: &Arc<Core>) -> Follower {
        Follower::new(core, Interest { service_cidrs: true, ..INTEREST }, 1024)
    }

    /// The same, with room for so many events on the way.
    pub(super) fn with_capacity(core: &Arc<Core>, capacity: usize) -> Follower {
        Follower::new(core, INTEREST, capacity)
    }

    fn new(core: &Arc<Core>, interest: Interest<'static>, capacity: usize) -> Follower {
        let (sender, events) = mpsc::channel(capacity);
        let connection = Connection::over(client(core.clone()), "http://fake");
        let liveness = connection.liveness().clone();
        let task = tokio::spawn(async move { api::run(&connection, interest, sender, std::future::ready(())).await });
        Follower { core: core.clone(), state: ClusterState::new(), liveness, events, task }
    }

    /// The next event, which must come within a minute and a half.
    #[track_caller]
    pub(super) fn next(&mut self) -> impl Future<Output = (String, Changed)> {
        let caller = std::panic::Location::caller();
        async move {
            let event = timeout_at(Instant::now() + LONG, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("no event; awaited at {caller}")).expect("the source runs");
            (short(&event), self.state.apply(event))
        }
    }

    /// Takes events until one is the expected; what came before it.
    #[track_caller]
    pub(super) fn until(&mut self, expected: &str) -> impl Future<Output = Vec<String>> {
        let caller = std::panic::Location::caller();
        async move {
            let (mut before, end) = (Vec::new(), Instant::now() + LONG);
            loop {
                let event = timeout_at(end, self.events.recv()).await;
                let event = event
                    .unwrap_or_else(|_| panic!("no {expected:?}, awaited at {caller}, but {before:?}"))
                    .expect("the source runs");
                let text = short(&event);
                self.state.apply(event);
                if text == expected {
                    return before;
                }
                before.push(text);
            }
        }
    }

    /// Takes events until every kind was listed.
    pub(super) async fn until_synced(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        while ![Kind::Service, Kind::EndpointSlice, Kind::Node].iter().all(|kind| self.state.has_listed(*kind)) {
            events.push(self.next().await.0);
        }
        events
    }

    /// What comes within some time, with what it changed.
    pub(super) async fn within(&mut self, time: Duration) -> Vec<(String, Changed)> {
        let (mut events, end) = (Vec::new(), Instant::now() + time);
        while let Ok(event) = timeout_at(end, self.events.recv()).await {
            let event = event.expect("the source runs");
            events.push((short(&event), self.state.apply(event)));
        }
        events
    }

    /// Stops taking events, as the proxy does when it ends; whether the source then ends.
    pub(super) async fn hang_up(mut self) -> bool {
        self.events.close();
        tokio::time::timeout(LONG, &mut self.task).await.is_ok()
    }

    /// Asserts that the state is what the server holds.
    #[track_caller]
    pub(super) fn assert_equals_server(&self) {
        let mut services: Vec<Service> = self
            .core
            .objects("Service")
            .into_iter()
            .filter(|object| object["metadata"]["labels"].get("service.kubernetes.io/service-proxy-name").is_none())
            .filter_map(|object| {
                let object = wire::Service::deserialize(&object).expect("a Service");
                Service::from_wire(&object).0
            })
            .collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let ours: Vec<Service> = self.state.services().map(|(service, _)| Service::clone(service)).collect();
        assert_eq!(ours, services);

        let mut slices: Vec<EndpointSlice> = self
            .core
            .objects("EndpointSlice")
            .into_iter()
            .filter_map(|object| {
                let object = wire::EndpointSlice::deserialize(&object).expect("an EndpointSlice");
                // Versions are kept apart: one alone is no change.
                EndpointSlice::from_wire(&object, NODE).0.map(|slice| EndpointSlice { version: 0, ..slice })
            })
            .filter(|slice| services.iter().any(|service| service.name == slice.service))
            .collect();
        let order = |slice: &EndpointSlice| (slice.service.clone(), slice.family, slice.name.clone());
        slices.sort_by_key(order);
        let mut ours: Vec<EndpointSlice> = Vec::new();
        for (_, of_service) in self.state.services() {
            for family in IpFamily::BOTH {
                ours.extend(of_service.of_family(family).map(|slice| EndpointSlice::clone(slice)));
            }
        }
        ours.sort_by_key(order);
        assert_eq!(ours, slices);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
