//! A small server for probes, metrics and debugging: plain HTTP/1.1, answers made in one piece.
//!
//! Headers are those of Go's `net/http`, because probes and scrapers were written against it.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;

/// How long a client may take over the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// The longest body of a request that is read, in bytes.
const BODY_LIMIT: usize = 4_096;
/// Connections served at once by one listener; further ones wait.
const CONNECTIONS_MAX: usize = 256;
/// Connections the kernel keeps waiting.
const BACKLOG: u32 = 128;

/// What was asked.
#[derive(Debug)]
pub struct Request {
    /// GET, mostly.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, up to 4 KiB; empty if there was more.
    pub body: Bytes,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: StatusCode,
    /// Headers; `Date` and `Content-Length` are added.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// Makes answers. Called within the runtime: must not wait for anything.
pub type Respond = dyn Fn(&Request) -> Response + Send + Sync;

/// Takes an address. An unspecified one means every address of both families where the kernel has
/// IPv6, as to Go's `net.Listen`; a specific one just that.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match listen_on(any, false) {
            // No IPv6 in this kernel, or none in this namespace.
            Err(error) if matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL)) && address.is_ipv4() => {}
            taken => return taken,
        }
    }
    listen_on(address, true)
}

/// Takes an address in its own family only, the unspecified one too. (kube-proxy: `tcp4` and `tcp6`.)
pub fn listen_in_family(address: SocketAddr) -> io::Result<TcpListener> {
    listen_on(address, true)
}

/// Why an address could not be taken, in Go's words, which operators search logs for.
pub fn refusal(address: SocketAddr, error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut rest = text.chars();
    let first = rest.next().map(|c| c.to_ascii_lowercase());
    format!("listen tcp {address}: bind: {}{}", first.into_iter().collect::<String>(), rest.as_str())
}

const EADDRNOTAVAIL: i32 = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();
const EAFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();

fn listen_on(address: SocketAddr, only_own_family: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for connections of the last run to be forgotten.
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, only_own_family)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers until it is dropped; so do connections that are open then.
pub async fn serve(listener: TcpListener, respond: Arc<Respond>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: it will pass, and a loop would not make it pass sooner.
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let respond = respond.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, &*respond));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::trace!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

async fn answer(
    request: http::Request<Incoming>,
    respond: &Respond,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map(Collected::to_bytes).unwrap_or_default();
    let request = Request { method: head.method, uri: head.uri, headers: head.headers, body };
    let Response { status, headers, body } = respond(&request);
    let mut response = http::Response::new(Full::new(body));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}

// === impl Request ===

impl Request {
    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.uri.path()
    }
}

// === impl Response ===

impl Response {
    /// An answer of a content type, as handlers give it that set it themselves.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Response { status, headers, body: body.into() }
    }

    /// Text that browsers are told to take for nothing else. (Go: `http.Error`.)
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
        Response::new(status, "text/plain; charset=utf-8", body).nosniff()
    }

    /// What Go's mux answers where there is nothing.
    pub fn not_found() -> Response {
        Response::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    /// The same with the header that forbids guessing the content type.
    pub fn nosniff(self) -> Response {
        self.with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
    }

    /// The same with a header.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Response {
        self.headers.insert(name, value);
        self
    }

    /// What is said to a method that a path has no use for.
    pub fn method_not_allowed(allowed: &'static str) -> Response {
        Response::text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n")
            .with(ALLOW, HeaderValue::from_static(allowed))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn answers_in_one_piece() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let respond = |request: &Request| match request.path() {
            "/echo" => Response::text(StatusCode::OK, request.body.clone()),
            _ => Response::not_found(),
        };
        let server = tokio::spawn(serve(listener, Arc::new(respond)));
        let answer = ask(address, "GET /nothing?x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "404 page not found\n");
        let mut head: Vec<&str> = head.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
        head.sort_unstable();
        let expected = [
            "HTTP/1.1 404 Not Found",
            "connection: close",
            "content-length: 19",
            "content-type: text/plain; charset=utf-8",
            "x-content-type-options: nosniff",
        ];
        assert_eq!(head, expected);
        let put = "PUT /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
        assert!(ask(address, put).await.unwrap().ends_with("\r\n\r\nhi"));
        server.abort();
        let _ = server.await;
        assert!(ask(address, "GET / HTTP/1.1\r\n\r\n").await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn an_unspecified_address_is_every_one() {
        let listener = listen("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(serve(listener, Arc::new(|_: &Request| Response::text(StatusCode::OK, "here"))));
        for ip in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), port);
            let answer = ask(to, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
            assert!(answer.unwrap().ends_with("here"), "{ip}");
        }
        server.abort();
        let only = listen_in_family("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = only.local_addr().unwrap().port();
        assert!(ask(SocketAddr::new("::1".parse().unwrap(), port), "").await.is_err());
    }
}
