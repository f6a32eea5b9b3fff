//! A fake API server: what a real one (1.36) says about Services, EndpointSlices, Nodes and
//! ServiceCIDRs, and the faults one can have. Checked against recordings of a real one in
//! `recorded.rs`.
//!
//! Self-contained, so that another test binary can take it in with
//! `#[path = "../suite/api/server.rs"] mod fake_api;`.

#![allow(dead_code, unreachable_pub, reason = "several test binaries take it in; each uses a part")]

#[path = "server/answer.rs"]
pub mod answer;
#[path = "server/selector.rs"]
mod selector;
#[path = "server/store.rs"]
pub mod store;
#[path = "server/tls.rs"]
pub mod tls;
#[path = "server/watch.rs"]
mod watch;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::ops::Deref;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::answer::{Ask, Body, Core};

/// A fake API server on a loopback port of its own, over plain HTTP/1.1, on a thread of its own:
/// it lives in the network namespace of the thread that starts it. Dropping it stops it.
///
/// What it holds and how it misbehaves is set through [`Core`], to which it dereferences.
pub struct FakeApi {
    core: Arc<Core>,
    address: SocketAddr,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the serving thread is told.
enum Order {
    /// Close the listening socket and every connection; then say so.
    Refuse(mpsc::Sender<()>),
    /// Listen again on the same port; then say so.
    Accept(mpsc::Sender<()>),
}

/// Every document of a multi-document YAML text, `List` kinds taken apart.
pub fn objects_from_yaml(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .flat_map(|document| match document.get("items") {
            Some(Value::Array(items)) => items.clone(),
            _ => vec![document],
        })
        .collect()
}

// === impl FakeApi ===

impl FakeApi {
    /// Starts a server that holds `objects`. Those with a resource version keep it; the others get
    /// later ones.
    pub fn start(objects: impl IntoIterator<Item = Value>) -> FakeApi {
        let core = Core::new(objects);
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port (is lo up?)");
        let address = listener.local_addr().expect("the listener's address");
        let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
        let served = core.clone();
        let thread = std::thread::Builder::new()
            .name("fake-api".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(serve(served, listener, inbox));
            })
            .expect("a thread");
        FakeApi { core, address, orders, thread: Some(thread) }
    }

    /// Where it listens: `http://127.0.0.1:PORT`, for `--master` or a kubeconfig's `server`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections are refused, and the open ones are gone.
    pub fn refuse_connections(&self) {
        let (done, wait) = mpsc::channel();
        self.orders.send(Order::Refuse(done)).expect("the server runs");
        wait.recv().expect("the server runs");
    }

    /// Connections are accepted again, on the same port.
    pub fn accept_connections(&self) {
        let (done, wait) = mpsc::channel();
        self.orders.send(Order::Accept(done)).expect("the server runs");
        wait.recv().expect("the server runs");
    }
}

impl Deref for FakeApi {
    type Target = Arc<Core>;

    fn deref(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        // Closing the channel ends the serving loop; its connections go with its runtime.
        let (closed, _) = tokio::sync::mpsc::unbounded_channel();
        self.orders = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(core: Arc<Core>, listener: StdListener, mut inbox: tokio::sync::mpsc::UnboundedReceiver<Order>) {
    let address = listener.local_addr().expect("the listener's address");
    listener.set_nonblocking(true).expect("a non-blocking listener");
    let mut listener = Some(TcpListener::from_std(listener).expect("a listener"));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = inbox.recv() => match order {
                None => return,
                Some(Order::Refuse(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Order::Accept(done)) => {
                    if listener.is_none() {
                        listener = Some(TcpListener::bind(address).await.expect("the same port again"));
                    }
                    let _ = done.send(());
                }
            },
            accepted = accepted => {
                let Ok((stream, _)) = accepted else { continue };
                let core = core.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| respond(core.clone(), request));
                    // A client that goes away is no fault of the server's.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .title_case_headers(true)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

type WireBody = Either<Full<Bytes>, StreamBody<Frames>>;
type Frames = futures::stream::BoxStream<'static, std::io::Result<Frame<Bytes>>>;

async fn respond(core: Arc<Core>, request: Request<Incoming>) -> Result<Response<WireBody>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
    let ask = Ask {
        method: parts.method.to_string(),
        path: parts.uri.path().to_string(),
        query: parts.uri.query().unwrap_or_default().to_string(),
        authorization: header("authorization"),
        user_agent: header("user-agent"),
        body,
    };
    let answer = core.answer(ask).await;
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    let body = match answer.body {
        // Go says the length beforehand of what fits its first buffer, and sends the rest in chunks.
        Body::Whole(text) if text.len() <= 2048 => Either::Left(Full::new(Bytes::from(text))),
        Body::Whole(text) => {
            let frame = futures::stream::once(async { Ok(Frame::data(Bytes::from(text))) });
            Either::Right(StreamBody::new(Box::pin(frame) as Frames))
        }
        Body::Stream(chunks) => {
            let frames = futures::StreamExt::map(chunks, |chunk| chunk.map(Frame::data));
            Either::Right(StreamBody::new(Box::pin(frames) as Frames))
        }
    };
    Ok(response.body(body).expect("a response"))
}

/// Takes a lock; a poisoned one means that another test thread failed already.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
