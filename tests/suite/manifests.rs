//! Manifest files as a source: reading them, and following what happens to them.

mod broken;
mod changes;
mod recorded;

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrule::cluster::{ClusterState, Event};
use ferrule::model::Kind;
use ferrule::net::IpFamily;
use ferrule::source::manifests;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::recordings::NODE;

/// How long something may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the source, and folds what it says into a cluster.
struct Follower {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<Result<(), manifests::ManifestsError>>,
    state: ClusterState,
    log: Log,
    _logging: tracing::subscriber::DefaultGuard,
}

/// What was logged, from the level of warnings on, but for the Node that most tests lack. Tests run the source on their own thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

// === impl Follower ===

impl Follower {
    /// Follows paths; nothing has been said yet.
    fn of(paths: &[&Path]) -> Follower {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let logging = tracing::subscriber::set_default(subscriber);
        let (sender, events) = mpsc::channel(1000);
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
        let task = tokio::spawn(manifests::run(paths, NODE.into(), sender));
        Follower { events, task, state: ClusterState::new(), log, _logging: logging }
    }

    /// Follows paths and waits for the first listing.
    async fn listed(paths: &[&Path]) -> Follower {
        let mut follower = Follower::of(paths);
        follower.listing().await;
        follower
    }

    /// Waits for the end of the first listing; says what it held.
    async fn listing(&mut self) -> Vec<String> {
        self.until("every kind is listed", |state| {
            [Kind::Service, Kind::EndpointSlice, Kind::Node].iter().all(|kind| state.has_listed(*kind))
        })
        .await
    }

    /// Takes events until the cluster is as described; says what they were.
    async fn until(&mut self, what: &str, done: impl Fn(&ClusterState) -> bool) -> Vec<String> {
        let mut said = Vec::new();
        while !done(&self.state) {
            match tokio::time::timeout(PATIENCE, self.events.recv()).await {
                Ok(Some(event)) => {
                    said.push(word(&event));
                    self.state.apply(event);
                }
                Ok(None) => panic!("the source ended before this: {what}"),
                Err(_) => panic!("not seen: {what}\nsaid: {said:?}\nlog: {}", self.log.text()),
            }
        }
        said
    }

    /// Waits until a Service has this port, or with 0 until it is gone; says what came meanwhile.
    async fn port(&mut self, service: &str, port: u16) -> Vec<String> {
        self.until(&format!("{service} has port {port}"), |state| port_of(state, service) == port).await
    }

    /// Waits until a message was logged.
    async fn logged(&mut self, text: &str) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !self.log.text().contains(text) {
                tokio::task::yield_now().await;
            }
        });
        assert!(waited.await.is_ok(), "not logged: {text}\nlog: {}", self.log.text());
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One event in a word or two.
fn word(event: &Event) -> String {
    match event {
        Event::Listing(kind) => format!("listing {kind}"),
        Event::Synced(kind) => format!("synced {kind}"),
        Event::Service(service) => format!("Service {}", service.name),
        Event::EndpointSlice(slice) => format!("EndpointSlice {}/{}", slice.service.namespace, slice.name),
        Event::Node(node) => format!("Node {}", node.name),
        Event::Deleted(object) => format!("deleted {object}"),
        Event::Problem(problem) => problem.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The first port of a Service of the default namespace; 0 if there is no such Service.
fn port_of(state: &ClusterState, service: &str) -> u16 {
    let name = ferrule::model::ServiceName::new("default", service);
    state.service(&name).map_or(0, |(service, _)| service.ports[0].port)
}

/// Names of all Services.
fn services(state: &ClusterState) -> Vec<String> {
    state.services().map(|(service, _)| service.name.to_string()).collect()
}

/// All of a cluster, as text that can be compared.
fn everything(state: &ClusterState) -> String {
    let mut text = format!("{:?}\n", state.node());
    for (service, slices) in state.services() {
        writeln!(text, "{service:?}").unwrap();
        for slice in IpFamily::BOTH.into_iter().flat_map(|family| slices.of_family(family)) {
            writeln!(text, "  {slice:?}").unwrap();
        }
    }
    text
}

// === impl Log ===

impl Log {
    fn text(&self) -> String {
        let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        all.lines().filter(|line| !line.contains("no Node named")).fold(String::new(), |text, line| text + line + "\n")
    }

    fn count(&self, text: &str) -> usize {
        self.text().matches(text).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// === manifests ===

/// A Service of the default namespace with one port.
fn service(name: &str, port: u16) -> String {
    let last = name.bytes().fold(0u8, u8::wrapping_add);
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.{last}\n  ports:\n  \
         - port: {port}\n"
    )
}

/// Puts a file in place as careful programs do: in one step.
fn replace(path: &Path, text: &str) {
    let new = path.with_file_name(".new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}
