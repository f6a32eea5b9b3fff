//! Requests as somebody else may count them: a layer around kube's client, so that all are seen, whoever
//! makes them.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Bytes, Frame};
use kube::client::Body;
use tower::{BoxError, Service};

use crate::source::Exchange;

/// Who is told; nobody at first. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tell: OnceLock<Box<Tell>>,
    /// Nanoseconds that requests about to be made have waited for leave to be.
    waited: AtomicU64,
}

/// Takes note of a request.
pub(super) type Tell = dyn Fn(&Exchange) + Send + Sync;

/// A client whose requests are told.
#[derive(Clone)]
pub(super) struct Observed<S> {
    pub(super) inner: S,
    /// Name and port of the server.
    pub(super) host: Arc<str>,
    pub(super) told: Told,
}

/// A body under way. It is told when it is dropped, however that comes.
struct Answer {
    method: &'static str,
    host: Arc<str>,
    waited: Duration,
    began: Instant,
    sent: u64,
    received: u64,
    told: Told,
}

// === impl Told ===

impl Told {
    /// Tells from now on, if nobody is told yet.
    pub(super) fn begin(&self, tell: Box<Tell>) {
        let _ = self.0.tell.set(tell);
    }

    /// A request has waited for leave to be made.
    pub(super) fn has_waited(&self, time: Duration) {
        self.0.waited.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn tell(&self, exchange: &Exchange) {
        if let Some(tell) = self.0.tell.get() {
            tell(exchange);
        }
    }
}

// === impl Observed ===

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<UnsyncBoxBody<Bytes, BoxError>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = match request.method().as_str() {
            "GET" => "GET",
            "POST" => "POST",
            "PATCH" => "PATCH",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            _ => "OTHER",
        };
        let (host, told) = (self.host.clone(), self.told.clone());
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true"));
        // With several at once, one may be told with the time of another: what they sum up to is right.
        let waited = Duration::from_nanos(told.0.waited.swap(0, Ordering::Relaxed));
        let (sent, began) = (request.body().size_hint().exact().unwrap_or(0), Instant::now());
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answer = answered.await.map_err(Into::into);
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            told.tell(&Exchange::Answered { method, host: host.clone(), code });
            let answer = answer?.map(|body| body.map_err(Into::into));
            if is_watch {
                return Ok(answer.map(BodyExt::boxed_unsync));
            }
            let mut under_way = Answer { method, host, waited, began, sent, received: 0, told };
            Ok(answer.map(|body| body.map_frame(move |frame| under_way.pass(frame)).boxed_unsync()))
        })
    }
}

// === impl Answer ===

impl Answer {
    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        self.received += frame.data_ref().map_or(0, |piece| piece.len() as u64);
        frame
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Answer { method, host, waited, began, sent, received, told } = self;
        let (host, duration) = (host.clone(), began.elapsed());
        let (sent, received) = (*sent, *received);
        told.tell(&Exchange::Complete { method, host, waited: *waited, duration, sent, received });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tower::service_fn;

    use super::*;

    /// What is told of a request, without the time it took.
    async fn told_of(method: &str, uri: &str, answer: Option<u16>) -> Vec<String> {
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let (told, into) = (Told::default(), heard.clone());
        let tell = move |exchange: &Exchange| {
            into.lock().unwrap().push(match exchange {
                Exchange::Answered { method, host, code } => format!("{method} {host} {code:?}"),
                Exchange::Complete { method, host, waited, sent, received, .. } => {
                    format!("{method} {host} sent {sent} received {received} after {waited:?}")
                }
            });
        };
        told.begin(Box::new(tell));
        told.has_waited(Duration::from_millis(7));
        let inner = service_fn(move |_: Request<Body>| async move {
            let status = answer.ok_or("no connection")?;
            Ok::<_, BoxError>(Response::builder().status(status).body(Body::from(b"12345".to_vec())).unwrap())
        });
        let mut observed = Observed { inner, host: "h:6443".into(), told };
        let request = Request::builder().method(method).uri(uri).body(Body::from(b"123".to_vec())).unwrap();
        if let Ok(answer) = observed.call(request).await {
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 5);
        }
        let heard = heard.lock().unwrap();
        heard.clone()
    }

    #[tokio::test]
    async fn what_is_told() {
        assert_eq!(
            told_of("POST", "/api/v1/events", Some(201)).await,
            ["POST h:6443 Some(201)", "POST h:6443 sent 3 received 5 after 7ms"]
        );
        assert_eq!(told_of("GET", "/api/v1/services?a=b&watch=true", Some(200)).await, ["GET h:6443 Some(200)"]);
        assert_eq!(told_of("GET", "/api/v1/services?limit=1", None).await, ["GET h:6443 None"]);
    }
}
