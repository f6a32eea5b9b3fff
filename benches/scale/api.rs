//! The API server: plain HTTP/1.1 on loopback, a thread for each connection. Objects are kept as the
//! bytes that are sent, so that serving them costs little beside the proxy that reads them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, node};

/// A bookmark is sent after so long without an event, as a real server does every minute.
const BOOKMARK: Duration = Duration::from_secs(30);
/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// What is served. Runs until the process ends.
pub struct Api {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    store: Mutex<Store>,
    changed: Condvar,
}

struct Store {
    revision: u64,
    resources: [Resource; 3],
}

/// Objects of one kind.
struct Resource {
    kind: &'static str,
    version: &'static str,
    path: &'static str,
    at: HashMap<String, usize>,
    objects: Vec<Option<Arc<str>>>,
    /// Lines of a watch, with their revisions.
    log: Vec<(u64, Arc<str>)>,
}

/// Which kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
}

// === impl Api ===

impl Api {
    /// Serves a cluster.
    pub fn start(cluster: &Cluster) -> Api {
        let resource = |kind, version, path| Resource {
            kind,
            version,
            path,
            at: HashMap::new(),
            objects: Vec::new(),
            log: Vec::new(),
        };
        let mut store = Store {
            revision: 1_000,
            resources: [
                resource("Service", "v1", "/api/v1/services"),
                resource("EndpointSlice", "discovery.k8s.io/v1", "/apis/discovery.k8s.io/v1/endpointslices"),
                resource("Node", "v1", "/api/v1/nodes"),
            ],
        };
        for (kind, objects) in [
            (Kind::Service, cluster.service_objects()),
            (Kind::EndpointSlice, cluster.slice_objects()),
            (Kind::Node, vec![node()]),
        ] {
            for (key, object) in objects {
                store.put(kind, key, object);
            }
        }
        store.resources.iter_mut().for_each(|resource| resource.log.clear());
        let shared = Arc::new(Shared { store: Mutex::new(store), changed: Condvar::new() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port on loopback");
        let address = listener.local_addr().expect("its address");
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                // A client that goes away is no fault of ours.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Api { shared, address }
    }

    /// For `--master`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates or replaces an object.
    pub fn put(&self, kind: Kind, key: String, object: Value) {
        self.shared.store.lock().unwrap().put(kind, key, object);
        self.shared.changed.notify_all();
    }

    /// Deletes an object.
    pub fn delete(&self, kind: Kind, key: &str) {
        self.shared.store.lock().unwrap().delete(kind, key);
        self.shared.changed.notify_all();
    }

    /// Another way to the same server.
    pub fn handle(&self) -> Api {
        Api { shared: self.shared.clone(), address: self.address }
    }

    /// Mean size of the objects of a kind, in bytes.
    pub fn mean_size(&self, kind: Kind) -> usize {
        let store = self.shared.store.lock().unwrap();
        let objects: Vec<usize> = store.resources[kind as usize].objects.iter().flatten().map(|o| o.len()).collect();
        objects.iter().sum::<usize>() / objects.len().max(1)
    }
}

// === impl Store ===

impl Store {
    fn put(&mut self, kind: Kind, key: String, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let text: Arc<str> = object.to_string().into();
        let resource = &mut self.resources[kind as usize];
        let known = resource.at.get(&key).copied().filter(|at| resource.objects[*at].is_some());
        let verb = if known.is_some() { "MODIFIED" } else { "ADDED" };
        match known {
            Some(at) => resource.objects[at] = Some(text.clone()),
            None => {
                resource.at.insert(key, resource.objects.len());
                resource.objects.push(Some(text.clone()));
            }
        }
        let line = format!("{{\"type\":\"{verb}\",\"object\":{text}}}\n");
        resource.log.push((self.revision, line.into()));
    }

    fn delete(&mut self, kind: Kind, key: &str) {
        self.revision += 1;
        let resource = &mut self.resources[kind as usize];
        let Some(text) = resource.at.remove(key).and_then(|at| resource.objects[at].take()) else { return };
        resource.log.push((self.revision, format!("{{\"type\":\"DELETED\",\"object\":{text}}}\n").into()));
    }
}

// === impl Resource ===

impl Resource {
    fn bookmark(&self, revision: u64, ends_list: bool) -> String {
        let annotations = match ends_list {
            true => r#","annotations":{"k8s.io/initial-events-end":"true"}"#,
            false => "",
        };
        format!(
            "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\
             \"metadata\":{{\"resourceVersion\":\"{revision}\"{annotations}}}}}}}\n",
            self.kind, self.version
        )
    }
}

// === impl Shared ===

impl Shared {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = Chunks { stream, buffer: Vec::with_capacity(CHUNK + 8192) };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split(' ');
            let (method, target) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
            let mut length = 0;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                    break;
                }
                let lower = header.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            match method.as_str() {
                "GET" => self.get(&target, &mut out)?,
                // Events, of which nothing is kept.
                _ => out.whole("201 Created", &body)?,
            }
        }
    }

    fn get(&self, target: &str, out: &mut Chunks) -> std::io::Result<()> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let has = |pair: &str| query.split('&').any(|other| other == pair);
        let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        let store = self.store.lock().unwrap();
        let Some(at) = store.resources.iter().position(|resource| resource.path == path) else {
            if path.starts_with("/api/v1/nodes/") {
                let node = store.resources[Kind::Node as usize].objects[0].clone().unwrap();
                return out.whole("200 OK", node.as_bytes());
            }
            drop(store);
            return nothing(path, has("watch=true") || has("watch=1"), out);
        };
        let (resource, revision) = (&store.resources[at], store.revision);
        if !has("watch=true") && !has("watch=1") {
            let items: Vec<Arc<str>> = resource.objects.iter().flatten().cloned().collect();
            let head = format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{{\"resourceVersion\":\"{revision}\"}},\"items\":[",
                resource.kind, resource.version
            );
            drop(store);
            out.head()?;
            out.write(&head)?;
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.write(",")?;
                }
                out.write(item)?;
            }
            out.write("]}\n")?;
            return out.end();
        }
        let mut position = resource.log.len();
        let mut initial: Vec<Arc<str>> = Vec::new();
        let mut end = None;
        match value("sendInitialEvents") {
            Some("true") => {
                initial.extend(resource.objects.iter().flatten().cloned());
                end = Some(resource.bookmark(revision, true));
            }
            _ => {
                let after: u64 = value("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(revision);
                position = resource.log.partition_point(|(at, _)| *at <= after);
            }
        }
        drop(store);
        out.head()?;
        for object in initial {
            out.write("{\"type\":\"ADDED\",\"object\":")?;
            out.write(&object)?;
            out.write("}\n")?;
        }
        if let Some(end) = end {
            out.write(&end)?;
        }
        out.flush()?;
        self.follow(at, position, out)
    }

    /// Sends what happens to one kind of objects for as long as somebody listens.
    fn follow(&self, at: usize, mut position: usize, out: &mut Chunks) -> std::io::Result<()> {
        loop {
            let mut store = self.store.lock().unwrap();
            if store.resources[at].log.len() <= position {
                let waited = self
                    .changed
                    .wait_timeout_while(store, BOOKMARK, |store| store.resources[at].log.len() <= position)
                    .unwrap();
                store = waited.0;
            }
            let resource = &store.resources[at];
            let mut lines: Vec<Arc<str>> = resource.log[position..].iter().map(|(_, line)| line.clone()).collect();
            position = resource.log.len();
            if lines.is_empty() {
                lines.push(resource.bookmark(store.revision, false).into());
            }
            drop(store);
            for line in lines {
                out.write(&line)?;
            }
            out.flush()?;
        }
    }
}

/// Kinds of which there is nothing.
fn nothing(path: &str, watch: bool, out: &mut Chunks) -> std::io::Result<()> {
    if path == "/version" {
        return out.whole("200 OK", br#"{"major":"1","minor":"36","gitVersion":"v1.36.0"}"#);
    }
    if path != "/apis/networking.k8s.io/v1/servicecidrs" {
        let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#;
        return out.whole("404 Not Found", status.as_bytes());
    }
    let (kind, version) = ("ServiceCIDR", "networking.k8s.io/v1");
    if !watch {
        let list = format!(
            "{{\"kind\":\"{kind}List\",\"apiVersion\":\"{version}\",\"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[]}}"
        );
        return out.whole("200 OK", list.as_bytes());
    }
    let resource = Resource { kind, version, path: "", at: HashMap::new(), objects: Vec::new(), log: Vec::new() };
    out.head()?;
    out.write(&resource.bookmark(1, true))?;
    out.flush()?;
    loop {
        thread::sleep(BOOKMARK);
        out.write(&resource.bookmark(1, false))?;
        out.flush()?;
    }
}

/// An answer in chunks.
struct Chunks {
    stream: TcpStream,
    buffer: Vec<u8>,
}

// === impl Chunks ===

impl Chunks {
    fn whole(&mut self, status: &str, body: &[u8]) -> std::io::Result<()> {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(body)
    }

    fn head(&mut self) -> std::io::Result<()> {
        self.stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    }

    fn write(&mut self, text: &str) -> std::io::Result<()> {
        self.buffer.extend_from_slice(text.as_bytes());
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut framed = format!("{:x}\r\n", self.buffer.len()).into_bytes();
        framed.append(&mut self.buffer);
        framed.extend_from_slice(b"\r\n");
        self.stream.write_all(&framed)
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.flush()?;
        self.stream.write_all(b"0\r\n\r\n")
    }
}
