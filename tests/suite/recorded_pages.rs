//! Against the other pages of a real kube-proxy's metrics address: status, headers and bodies.

use std::collections::BTreeMap;

use ferrule::debug_server::DebugServer;
use ferrule::events::{Happening, Recorder};
use ferrule::http::{Request, Response};
use http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Method};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::load_text;
use crate::recorded_metrics::{config, metrics};
use crate::recordings;

/// A recorded answer.
struct Recorded {
    status: u16,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

fn recorded(file: &str) -> Recorded {
    let text = recordings::read(file).replace('\r', "");
    let (head, body) = text.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Recorded { status, headers, body: body.to_owned() }
}

fn server(case: &str) -> DebugServer {
    let config = config(case);
    DebugServer::new(&config, &config.document.to_configz_json(), metrics(&config))
}

fn ask(server: &DebugServer, method: Method, uri: &str, accept: Option<&str>) -> Response {
    let headers = HeaderMap::from_iter(accept.map(|accept| (ACCEPT, accept.parse().unwrap())));
    server.answer(&Request { method, uri: uri.parse().unwrap(), headers, body: Default::default() })
}

fn body(response: &Response) -> String {
    String::from_utf8(response.body.to_vec()).unwrap()
}

/// Asks for a page and checks status and headers.
#[track_caller]
fn page(server: &DebugServer, uri: &str, recorded: &Recorded) -> String {
    let response = ask(server, Method::GET, uri, None);
    assert_eq!(response.status.as_u16(), recorded.status, "{uri}");
    for name in [CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS] {
        let ours = response.headers.get(&name).map(|value| value.to_str().unwrap());
        assert_eq!(ours, recorded.headers.get(name.as_str()).map(String::as_str), "{uri} {name}");
    }
    let started = response.headers.contains_key("process-start-time-unix");
    assert_eq!(started, recorded.headers.contains_key("process-start-time-unix"), "{uri}");
    body(&response)
}

#[test]
fn pages_are_those_of_kube_proxy() {
    for case in ["legacy-base", "nft-base", "nftables-base"] {
        let server = server(case);
        let from = |file: &str| recorded(&format!("{case}/http/{file}.txt"));
        for (uri, file) in [("/", "metrics-root"), ("/proxyMode", "proxyMode"), ("/healthz", "metrics-healthz")] {
            let recorded = from(file);
            assert_eq!(page(&server, uri, &recorded), recorded.body, "{case} {uri}");
        }
        // The recordings were made with another path of the kubeconfig only in so far as all have the same.
        let recorded = from("configz");
        assert_eq!(page(&server, "/configz", &recorded), recorded.body, "{case}");
        let recorded = from("metrics");
        let text = page(&server, "/metrics", &recorded);
        assert!(text.starts_with("# HELP "), "{text}");

        // The separator is another one each time kube-proxy starts.
        let recorded = from("flagz");
        let text = page(&server, "/flagz", &recorded);
        let flags = |text: &str| -> Vec<(String, String)> {
            let lines = text.lines().skip(3);
            let split = lines.map(|line| {
                let end = line.find([':', '=', ' ']).unwrap_or(line.len());
                (line[..end].to_owned(), line[end..].trim_start_matches([':', '=', ' ']).trim().to_owned())
            });
            let own = |name: &str| name.starts_with("ferrule-") || ["config", "manifests"].contains(&name);
            split.filter(|(name, _)| !own(name)).collect()
        };
        assert_eq!(text.lines().take(3).collect::<Vec<_>>(), recorded.body.lines().take(3).collect::<Vec<_>>());
        assert_eq!(flags(&text), flags(&recorded.body), "{case}");

        let recorded = from("statusz");
        let text = page(&server, "/statusz", &recorded);
        let labels = |text: &str| -> Vec<String> {
            let labels = text.lines().map(|line| line.split([':', '=']).next().unwrap().trim().to_owned());
            labels.collect()
        };
        assert_eq!(labels(&text).len(), labels(&recorded.body).len());
        let known = |text: &str, label: &str| {
            let line = text.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{label}: {text}"));
            line[label.len()..].trim_start_matches([':', '=', ' ']).to_owned()
        };
        for label in ["Binary version", "Emulation version", "Paths"] {
            assert_eq!(known(&text, label), known(&recorded.body, label), "{case}");
        }
        for label in ["Started", "Up", "Go version"] {
            assert!(!known(&text, label).is_empty(), "{text}");
        }
    }
}

#[test]
fn other_forms() {
    let server = server("legacy-base");
    for (uri, kind) in [("/flagz", "Flagz"), ("/statusz", "Statusz")] {
        let accept = format!("application/json;v=v1beta1;g=config.k8s.io;as={kind}");
        let response = ask(&server, Method::GET, uri, Some(&accept));
        assert_eq!(response.status.as_u16(), 200);
        let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(json["kind"], kind);
        let response = ask(&server, Method::GET, uri, Some("image/png"));
        assert_eq!(response.status.as_u16(), 406, "{uri}");
    }
    let verbose = ask(&server, Method::GET, "/healthz?verbose", None);
    assert_eq!(body(&verbose), "[+]ping ok\nhealthz check passed\n");
    assert_eq!(body(&ask(&server, Method::GET, "/healthz/ping", None)), "ok");
    let slis = || body(&ask(&server, Method::GET, "/metrics/slis", None));
    assert!(slis().contains("kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n"));
    assert_eq!(body(&ask(&server, Method::DELETE, "/metrics/slis", None)), "metrics reset\n");
    assert_eq!(slis(), "");
}

#[test]
fn what_is_switched_off() {
    let answer = |lines: &str, uri: &str| {
        let text = format!("{}{lines}\n", recordings::read("legacy-base/config.yaml"));
        let config = load_text(&text, &[]).config.unwrap();
        let server = DebugServer::new(&config, "{}", metrics(&config));
        let response = ask(&server, Method::GET, uri, None);
        (response.status.as_u16(), body(&response))
    };
    let nothing = (404, "404 page not found\n".to_owned());
    assert_eq!(answer("", "/debug/pprof/"), nothing);
    assert_eq!(answer("featureGates: {ComponentFlagz: false}", "/flagz"), nothing);
    assert_eq!(answer("featureGates: {ComponentStatusz: false}", "/statusz"), nothing);
    for uri in ["/debug/pprof", "/debug/pprof/profile", "/debug/flags/v"] {
        let (status, body) = answer("enableProfiling: true", uri);
        assert_eq!(status, 404);
        assert!(body.contains("perf record"), "{body}");
    }
}

/// An address that somebody else has is waited for, unless the operator wants it otherwise.
#[tokio::test(start_paused = true)]
async fn an_address_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let run = |lines: String, events: Recorder| async move {
        let text = format!("{}metricsBindAddress: {address}\n{lines}\n", recordings::read("legacy-base/config.yaml"));
        let config = load_text(&text, &[]).config.unwrap();
        DebugServer::new(&config, "{}", metrics(&config)).run(config.servers, events).await
    };
    let (events, mut happened) = Recorder::new(8);
    let error = run("bindAddressHardFail: true".to_owned(), events.clone()).await.to_string();
    assert!(error.contains(&address.to_string()) && error.contains("metricsBindAddress"), "{error}");
    assert!(matches!(happened.recv().await, Some(Happening::MetricsServerFailed(_))));

    let server = tokio::spawn(run(String::new(), events));
    assert!(matches!(happened.recv().await, Some(Happening::MetricsServerFailed(_))));
    drop(taken);
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
    };
    stream.write_all(b"GET /proxyMode HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n\r\niptables"), "{answer}");
    server.abort();
}
