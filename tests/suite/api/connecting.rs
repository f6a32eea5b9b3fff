//! How the server is found, who we are there, and what happens when that changes. Over TCP, with
//! the client that is used in earnest, and on the real clock: waits are for events, not for time.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use ferrule::cluster::{ClusterState, Event};
use ferrule::model::Kind;
use ferrule::source::api::{self, Connection, Settings};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::follower::{INTEREST, requests_for, service, short, slice};
use super::server::FakeApi;
use super::server::answer::{Fault, On};
use super::server::tls::{Tls, authority};

/// A running source that asks over TCP.
struct Source {
    events: mpsc::Receiver<Event>,
    state: ClusterState,
    task: JoinHandle<()>,
}

impl Source {
    async fn start(settings: &Settings) -> Source {
        let connection = Connection::new(settings).await.expect("usable settings");
        let (sender, events) = mpsc::channel(1024);
        let task = tokio::spawn(async move { api::run(&connection, INTEREST, sender, std::future::ready(())).await });
        Source { events, state: ClusterState::new(), task }
    }

    /// Takes events until one is the expected.
    async fn until(&mut self, expected: &str) {
        let seen = async {
            loop {
                let event = self.events.recv().await.expect("the source runs");
                let text = short(&event);
                self.state.apply(event);
                if text == expected {
                    return;
                }
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, seen).await.unwrap_or_else(|_| panic!("no {expected:?} within a minute"));
    }

    async fn until_synced(&mut self) {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        while let Some(kind) = kinds.iter().find(|kind| !self.state.has_listed(**kind)) {
            self.until(&format!("Synced {kind}")).await;
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A directory with a kubeconfig.
struct Files(TempDir);

impl Files {
    /// A kubeconfig with that cluster and user, as YAML flow mappings.
    fn new(cluster: &str, user: &str) -> Files {
        let files = Files(TempDir::new().expect("a directory"));
        files.write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {cluster}\nusers:\n- name: u\n  user: {user}\n\
                 contexts:\n- name: x\n  context: {{cluster: c, user: u}}\ncurrent-context: x\n"
            ),
        );
        files
    }

    fn write(&self, name: &str, content: &str) {
        // As a whole, as the kubelet does it: a reader sees the old content or the new.
        let new = self.path("new");
        std::fs::write(&new, content).expect("a file");
        std::fs::rename(new, self.path(name)).expect("its name");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self) -> Settings {
        Settings { kubeconfig: Some(self.path("kubeconfig")), ..Settings::default() }
    }
}

fn master(url: String) -> Settings {
    Settings { master: Some(url), ..Settings::default() }
}

fn authorizations(fake: &FakeApi) -> Vec<Option<String>> {
    let mut seen: Vec<_> = fake.requests().into_iter().map(|seen| seen.authorization).collect();
    seen.dedup();
    seen
}

#[tokio::test]
async fn master_alone_asks_without_credentials() {
    let fake = FakeApi::start([service("a", "10.0.0.1")]);
    // With and without a scheme.
    for url in [fake.url(), fake.address().to_string()] {
        let mut source = Source::start(&master(url)).await;
        source.until_synced().await;
        assert_eq!(source.state.services().count(), 1);
    }
    assert_eq!(authorizations(&fake), [None]);
    let agent = fake.requests()[0].user_agent.clone().expect("a user agent");
    let rest = agent.strip_prefix("kube-proxy/v1.36.2 (linux/").expect("kube-proxy's name");
    assert!(rest.ends_with(concat!(") ferrule/", env!("CARGO_PKG_VERSION"))), "{agent}");
}

#[tokio::test]
async fn master_takes_the_place_of_the_server() {
    let fake = FakeApi::start([]);
    fake.require_token("sesame");
    for cluster in ["{server: 'http://192.0.2.1:1'}", "{}"] {
        let files = Files::new(cluster, "{token: sesame}");
        let settings = Settings { master: Some(fake.url()), ..files.settings() };
        Source::start(&settings).await.until_synced().await;
    }
}

/// The file kubeadm writes: `tokenFile`, here relative to the kubeconfig. It changes while we run,
/// and then the server stops taking the old token: nobody notices.
#[tokio::test]
async fn a_token_is_rotated() {
    let fake = FakeApi::start([service("a", "10.0.0.1")]);
    fake.require_token("first");
    let files = Files::new(&format!("{{server: '{}'}}", fake.url()), "{tokenFile: token}");
    // Such files end in a newline as often as not.
    files.write("token", "first\n");
    let mut source = Source::start(&files.settings()).await;
    source.until_synced().await;
    files.write("token", "second\n");
    fake.require_token("second");
    fake.close_watches();
    fake.apply(service("b", "10.0.0.2"));
    source.until("Service t/b").await;
    assert_eq!(authorizations(&fake), [Some("Bearer first".into()), Some("Bearer second".into())]);

    // A file that has gone leaves the last token in use.
    std::fs::remove_file(files.path("token")).expect("the file");
    fake.close_watches();
    fake.apply(service("c", "10.0.0.3"));
    source.until("Service t/c").await;
    assert_eq!(authorizations(&fake).last(), Some(&Some("Bearer second".into())));
}

/// The server stops taking a token before the file has the new one: a 401 is not for ever.
#[tokio::test]
async fn a_token_is_refused_for_a_while() {
    let fake = FakeApi::start([service("a", "10.0.0.1")]);
    fake.require_token("first");
    let files = Files::new(&format!("{{server: '{}'}}", fake.url()), "{tokenFile: token}");
    files.write("token", "first");
    let mut source = Source::start(&files.settings()).await;
    source.until_synced().await;
    fake.require_token("second");
    fake.close_watches();
    fake.apply(service("b", "10.0.0.2"));
    let asked = fake.requests().len();
    let attempts = fake.requested(|seen| seen.len() > asked + 3);
    tokio::time::timeout(Duration::from_secs(60), attempts).await.expect("attempts");
    assert_eq!(source.state.services().count(), 1, "nothing changes meanwhile");
    files.write("token", "second");
    source.until("Service t/b").await;
    assert_eq!(source.state.services().count(), 2);
    assert_eq!(authorizations(&fake), [Some("Bearer first".into()), Some("Bearer second".into())]);
}

/// A credential plugin is asked again when its token is refused.
#[tokio::test]
async fn a_plugins_token_is_rotated() {
    let fake = FakeApi::start([]);
    fake.require_token("first");
    let exec = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never}}";
    let files = Files::new(&format!("{{server: '{}'}}", fake.url()), exec);
    files.write("token", "first");
    let token = files.path("token");
    files.write(
        "plugin",
        &format!(
            "#!/bin/sh\necho '{{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\
             \"status\":{{\"token\":\"'$(cat {})'\"}}}}'\n",
            token.display()
        ),
    );
    std::fs::set_permissions(files.path("plugin"), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut source = Source::start(&files.settings()).await;
    source.until_synced().await;
    files.write("token", "second");
    fake.require_token("second");
    fake.close_watches();
    fake.apply(service("a", "10.0.0.1"));
    source.until("Service t/a").await;
}

/// Trap: with a kubeconfig, kube never reads the authority's file again.
#[tokio::test]
async fn a_certificate_authority_is_rotated() {
    let fake = FakeApi::start([service("a", "10.0.0.1")]);
    let tls = Tls::start(&fake, "one").await;
    let cluster = format!("{{server: 'https://{}', certificate-authority: ca.crt}}", tls.address);
    let files = Files::new(&cluster, "{token: sesame}");
    files.write("ca.crt", &authority("one"));
    let mut source = Source::start(&files.settings()).await;
    source.until_synced().await;

    // The server has a new certificate: refused as long as the authority's file is the old one.
    tls.exchange("two");
    fake.refuse_connections();
    fake.accept_connections();
    let before = fake.requests().len();
    fake.apply(service("b", "10.0.0.2"));
    let early = tokio::time::timeout(Duration::from_secs(3), source.events.recv()).await;
    assert!(early.is_err(), "an unknown authority was believed: {early:?}");
    assert_eq!(fake.requests().len(), before, "a request, and its token, went to a server nobody vouches for");
    // Half a file is not taken for a change of mind.
    files.write("ca.crt", "-----BEGIN CERTIFICATE-----\n");
    files.write("ca.crt", &format!("{}{}", authority("one"), authority("two")));
    source.until("Service t/b").await;
}

#[tokio::test]
async fn an_authority_can_be_inline() {
    let fake = FakeApi::start([]);
    let tls = Tls::start(&fake, "one").await;
    let data = data_encoding::BASE64.encode(authority("one").as_bytes());
    let cluster = format!("{{server: 'https://{}', certificate-authority-data: {data}}}", tls.address);
    Source::start(&Files::new(&cluster, "{}").settings()).await.until_synced().await;
}

/// Trap: kube speaks HTTP/1.1 alone, where a watch takes a whole connection. Three are open at once.
#[tokio::test]
async fn every_watch_has_a_connection() {
    let fake = FakeApi::start([]);
    let mut source = Source::start(&master(fake.url())).await;
    source.until_synced().await;
    fake.apply_yaml(
        "{apiVersion: v1, kind: Node, metadata: {name: node-000}}\n---\n\
         {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: node-001}}]}\n",
    );
    source.until("Node node-000").await;
    fake.apply(slice("a-1", "a", "10.1.0.1"));
    source.until("EndpointSlice t/a-1").await;
    fake.apply(service("a", "10.0.0.1"));
    source.until("Service t/a").await;
    assert_eq!(fake.requests().len(), 3, "none of them had to be opened again");
}

/// Connections that are refused and come back, with real sockets.
#[tokio::test]
async fn a_server_is_restarted() {
    let fake = FakeApi::start([service("a", "10.0.0.1")]);
    let mut source = Source::start(&master(fake.url())).await;
    source.until_synced().await;
    fake.refuse_connections();
    fake.apply(service("b", "10.0.0.2"));
    let early = tokio::time::timeout(Duration::from_secs(1), source.events.recv()).await;
    assert!(early.is_err(), "{early:?}");
    fake.accept_connections();
    source.until("Service t/b").await;
    assert_eq!(source.state.services().count(), 2);
}

/// Trap: kube retries 429, 503 and 504 by itself, up to 15 times and out of our sight.
#[tokio::test]
async fn the_client_does_not_retry_by_itself() {
    let fake = FakeApi::start([]);
    fake.set_fault(On::Anything, Fault::Status(503, "ServiceUnavailable"));
    let _source = Source::start(&master(fake.url())).await;
    let twice = fake.requested(|seen| seen.iter().filter(|seen| seen.path.ends_with("/services")).count() >= 2);
    tokio::time::timeout(Duration::from_secs(60), twice).await.expect("a second attempt");
    let seen = requests_for(&fake, Kind::Service);
    let pause = seen[1].at - seen[0].at;
    // kube's first would come after 5 ms.
    assert!(pause >= Duration::from_millis(800), "{pause:?}");
}

#[tokio::test]
async fn goes_through_a_proxy() {
    let fake = FakeApi::start([]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (asked_for, mut asked) = mpsc::unbounded_channel();
    let proxy = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let asked_for = asked_for.clone();
            connections.spawn(async move {
                let mut client = BufReader::new(client);
                let (mut head, mut line) = (String::new(), String::new());
                while client.read_line(&mut line).await.expect("a head") > 2 {
                    head.push_str(&std::mem::take(&mut line));
                }
                let target = head.split(' ').nth(1).expect("a target").to_string();
                asked_for.send(head.lines().next().expect("a line").to_string()).expect("the test runs");
                let mut server = TcpStream::connect(target).await.expect("the target");
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("an answer");
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let files = Files::new(&format!("{{server: '{}', proxy-url: 'http://{address}'}}", fake.url()), "{}");
    Source::start(&files.settings()).await.until_synced().await;
    assert_eq!(asked.recv().await.as_deref(), Some(format!("CONNECT {} HTTP/1.1", fake.address()).as_str()));
    proxy.abort();
}

async fn refusal(settings: &Settings) -> String {
    match Connection::new(settings).await {
        Ok(connection) => panic!("{settings:?} leads to {}", connection.server()),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn unusable_settings_say_what_is_wrong() {
    let check = async |files: Files, expected: &str| {
        let error = refusal(&files.settings()).await;
        assert!(error.contains(expected), "{error:?} says nothing of {expected:?}");
    };
    let server = "server: 'https://192.0.2.1:6443'";
    check(Files::new("{}", "{}"), "no server is given").await;
    check(Files::new("{server: 'ftp://x'}", "{}"), "\"ftp://x\" is not an http or https URL").await;
    check(Files::new(&format!("{{{server}}}"), "{tokenFile: nowhere}"), "nowhere: No such file").await;
    check(Files::new(&format!("{{{server}, certificate-authority: nowhere}}"), "{}"), "nowhere").await;
    let files = Files::new(&format!("{{{server}, certificate-authority: kubeconfig}}"), "{}");
    check(files, "certificate-authority holds no PEM certificate").await;
    let files = Files::new(&format!("{{{server}}}"), "{tokenFile: empty}");
    files.write("empty", " \n");
    check(files, "empty is empty").await;
    let files = Files::new("{}", "{}");
    files.write("kubeconfig", "clusters: [");
    check(files, "kubeconfig: failed to parse kubeconfig YAML").await;
    let files = Files::new("{}", "{}");
    files.write("kubeconfig", "current-context: y");
    check(files, "there is no context \"y\"").await;
    let files = Files::new("{}", "{}");
    std::fs::remove_file(files.path("kubeconfig")).expect("the file");
    check(files, "kubeconfig: no such file or directory").await;
    let files = Files::new(&format!("{{{server}}}"), "{}");
    let settings = Settings { rate: Some(api::Rate { per_second: 5.0, burst: 0 }), ..files.settings() };
    assert!(refusal(&settings).await.starts_with("burst is required to be greater than 0"));
}
