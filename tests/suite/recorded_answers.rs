//! What a real kube-proxy answered to probes and load balancers: ferrule's answers, asked for over
//! HTTP, are the same but for the times in them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferrule::cluster::Changed;
use ferrule::fixtures::node;
use ferrule::health::{self, Health};
use ferrule::http::{self, Request, Respond};
use ferrule::net::IpFamily;
use ferrule::plan::build::{Balancing, DetectLocal, NodePortSetting, Settings};
use ferrule::sync::notice::{Notice, Observer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pipeline;
use crate::recordings::{self, NODE, Objects};

/// The cases with answers. In nftables mode nobody listened where health check node ports were asked.
const CASES: [&str; 4] = ["ipvs-base", "legacy-base", "nft-base", "nftables-base"];

/// An answer, as far as it can be compared.
#[derive(Debug, PartialEq)]
struct Answer {
    status: String,
    /// Names in lower case; what depends on the time or the connection has no value.
    headers: BTreeMap<String, String>,
    body: String,
}

/// Reads an answer; `None` if there was none.
fn parse(text: &str) -> Option<Answer> {
    let text = text.replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n")?;
    let (status, headers) = head.split_once('\n').unwrap();
    let headers = headers.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        match name.to_lowercase().as_str() {
            "connection" => None,
            name @ ("date" | "content-length") => Some((name.to_owned(), String::new())),
            name => Some((name.to_owned(), value.to_owned())),
        }
    });
    Some(Answer { status: status.to_owned(), headers: headers.collect(), body: without_times(body) })
}

/// Every time replaced, after a look at how it is written.
fn without_times(body: &str) -> String {
    let words = body.split('"').map(|word| match word.parse::<jiff::Timestamp>() {
        Ok(time) => {
            assert_eq!(time.to_string(), word, "as few digits as needed, in UTC");
            "TIME"
        }
        Err(_) => word,
    });
    words.collect::<Vec<_>>().join("\"")
}

async fn ask(respond: Arc<Respond>, path: &str) -> Answer {
    let listener = http::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let server = tokio::spawn(http::serve(listener, respond));
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    server.abort();
    parse(&text).expect("an answer")
}

#[tokio::test]
async fn probes_are_answered_as_by_kube_proxy() {
    let mut health = Health::new(Duration::from_secs(60));
    IpFamily::BOTH.into_iter().for_each(|family| health.notice(&Notice::Started(family)));
    health.notice(&Notice::Event { event: &node(NODE).event(), changed: &Changed::Nothing });
    let mut compared = 0;
    for case in CASES {
        for path in ["healthz", "livez"] {
            let file = format!("{case}/http/{path}.txt");
            if case == "ipvs-base" && path == "livez" {
                assert!(!recordings::path(&file).exists(), "{file} is there now: compare it");
                continue;
            }
            let recorded = parse(&recordings::read(&file)).unwrap();
            let health = health.clone();
            let respond = move |request: &Request| health.answer(request);
            let answer = ask(Arc::new(respond), &format!("/{path}")).await;
            assert_eq!(answer, recorded, "{file} (second)");
            compared += 1;
        }
    }
    assert_eq!(compared, 7);
    assert_eq!(health.probes().healthz.by_code(), [(200, 4), (503, 0)]);
    assert_eq!(health.probes().livez.by_code(), [(200, 3), (503, 0)]);
}

#[tokio::test]
async fn load_balancers_are_answered_as_by_kube_proxy() {
    let mut objects = Objects::default();
    objects.apply("objects/all.yaml");
    let settings = Settings {
        node_name: NODE.into(),
        bind_address: None,
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortSetting::Cidrs(Vec::new()),
        detect_local: DetectLocal::ClusterCidr(Vec::new()),
        external_ips: true,
        balancing: Balancing::Rules,
    };
    let plan = pipeline::plan(&objects.cluster(), &settings, IpFamily::V4);
    let answers = health::answers(&plan);
    let mut compared = 0;
    for case in CASES {
        for entry in std::fs::read_dir(recordings::path(&format!("{case}/http"))).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(port) = name.strip_prefix("hc-").and_then(|rest| rest.split('-').next()) else { continue };
            let Some(recorded) = parse(&recordings::read(&format!("{case}/http/{name}"))) else {
                assert_eq!(case, "nftables-base", "{name} is empty");
                continue;
            };
            let asked = answers.iter().find(|(_, answer)| answer.port.to_string() == port);
            let (service, answer) = asked.unwrap_or_else(|| panic!("{case}: nobody is asked for at port {port}"));
            let (service, answer) = (service.clone(), *answer);
            let respond = move |_: &Request| health::node_port_answer(&service, answer.local_endpoints, true);
            assert_eq!(ask(Arc::new(respond), "/").await, recorded, "{case}/http/{name} (second)");
            compared += 1;
        }
    }
    assert_eq!(compared, 9);
    // Where kube-proxy listened.
    let listening = recordings::read("legacy-base/ss-ltnp.txt");
    let recorded = listening.lines().filter_map(|line| line.split_once("0.0.0.0:")?.1.split(' ').next());
    let mut recorded: Vec<&str> = recorded.filter(|port| port.starts_with("31")).collect();
    recorded.sort_unstable();
    let mut ours: Vec<String> = answers.values().map(|answer| answer.port.to_string()).collect();
    ours.sort_unstable();
    assert_eq!(ours, recorded);
}
