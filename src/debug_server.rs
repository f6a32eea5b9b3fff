//! The server for metrics and debugging: what kube-proxy serves on its metrics address.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | [`crate::metrics`] |
//! | `/metrics/slis` | how often `/healthz` here was asked; `DELETE` begins anew |
//! | `/healthz`, `/healthz/ping` | that this server answers; not the health of the proxy, which has a server of its own |
//! | `/proxyMode`, `/configz`, `/flagz`, `/statusz` | mode, configuration, flags, version |
//! | `/debug/…` | with `enableProfiling`: what to use in place of Go's profiler |
//!
//! Plain HTTP, no authentication, paths exactly as they stand here.

mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{ACCEPT, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use prometheus::proto::MetricType;
use tokio::task::JoinSet;

use self::pages::{Form, Status};
use crate::config::{Config, ProxyMode, Servers};
use crate::events::{Happening, Recorder};
use crate::http::{self as server, Request, Response};
use crate::metrics::{Metrics, encode, sample};

/// How long to wait before an address that cannot be had is tried again. (kube-proxy: the same.)
const RETRY: Duration = Duration::from_secs(5);

/// Answers questions.
pub struct DebugServer {
    metrics: Metrics,
    mode: ProxyMode,
    /// The resolved configuration as JSON.
    configuration: String,
    /// Every flag and its value; `None` if `/flagz` is switched off.
    flags: Option<Vec<(&'static str, String)>>,
    /// For `/statusz`; `None` if that is switched off.
    status: Option<Status>,
    profiling: bool,
    /// How often `/healthz` was asked since the numbers began.
    asked: AtomicU64,
}

// === impl DebugServer ===

impl DebugServer {
    /// A server for the proxy of this configuration; `document` is the resolved one as JSON.
    pub fn new(config: &Config, document: &str, metrics: Metrics) -> DebugServer {
        let enabled = |gate| config.feature_gates.enabled(gate);
        let flags = enabled("ComponentFlagz").then(|| config.flags.clone());
        // In the order of their registration, so without itself.
        let paths = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];
        let paths = paths.into_iter().filter(|path| *path != "/flagz" || flags.is_some()).collect();
        DebugServer {
            mode: config.mode,
            configuration: format!("{{\"kubeproxy.config.k8s.io\":{document}}}"),
            status: enabled("ComponentStatusz").then(|| Status::new(metrics.start(), &config.version, paths)),
            flags,
            profiling: config.servers.profiling,
            asked: AtomicU64::new(0),
            metrics,
        }
    }

    /// Serves until the future is dropped. An address that cannot be had is tried again, or is the error with
    /// which this ends if the operator says so (`bindAddressHardFail`).
    pub fn run(self, servers: Servers, events: Recorder) -> impl Future<Output = anyhow::Error> {
        // In a task of its own: whoever waits for the end may be busy with other things.
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                match server::listen(servers.metrics) {
                    Ok(listener) => {
                        tracing::info!(address = %servers.metrics, "serving metrics");
                        let respond = move |request: &Request| self.answer(request);
                        server::serve(listener, Arc::new(respond)).await;
                        return anyhow::anyhow!("the metrics server ended");
                    }
                    Err(error) => {
                        let message = format!("starting metrics server failed: {}: {error}", servers.metrics);
                        events.record(Happening::MetricsServerFailed(message.clone()));
                        if servers.bind_address_hard_fail {
                            return anyhow::anyhow!("{message}; set metricsBindAddress to an address that is free");
                        }
                        tracing::error!(
                            "{message}; trying again every {} s; set metricsBindAddress to an address that is free",
                            RETRY.as_secs()
                        );
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
        async move {
            match tasks.join_next().await {
                Some(Ok(error)) => error,
                Some(Err(error)) => anyhow::Error::new(error).context("the metrics server ended abnormally"),
                None => anyhow::anyhow!("the metrics server is gone"),
            }
        }
    }

    /// The answer to one request.
    pub fn answer(&self, request: &Request) -> Response {
        match request.path() {
            "/metrics" => self.exposition(self.metrics.scrape()),
            "/metrics/slis" if request.method == Method::DELETE => {
                self.asked.store(0, Ordering::Relaxed);
                Response::new(StatusCode::OK, "text/plain; charset=utf-8", "metrics reset\n")
            }
            "/metrics/slis" => self.exposition(self.indicators()),
            "/healthz" | "/healthz/ping" => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                let is_verbose = request.uri.query().is_some_and(|query| {
                    query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="))
                });
                let body = if is_verbose { "[+]ping ok\nhealthz check passed\n" } else { "ok" };
                Response::text(StatusCode::OK, body)
            }
            "/proxyMode" => Response::text(StatusCode::OK, self.mode.as_str()),
            "/configz" => Response::new(StatusCode::OK, "application/json", self.configuration.clone()).nosniff(),
            "/flagz" => match &self.flags {
                Some(flags) => negotiated(request, "Flagz", || pages::flags_text(flags), || pages::flags_json(flags)),
                None => Response::not_found(),
            },
            "/statusz" => match &self.status {
                Some(status) => negotiated(request, "Statusz", || status.text(), || status.json()),
                None => Response::not_found(),
            },
            path if self.profiling && (path == "/debug/pprof" || path.starts_with("/debug/")) => {
                Response::text(StatusCode::NOT_FOUND, pages::NO_PROFILER)
            }
            _ => Response::not_found(),
        }
    }

    fn exposition(&self, text: String) -> Response {
        let start = self.metrics.start().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        Response::new(StatusCode::OK, encode::CONTENT_TYPE, text)
            .with(HeaderName::from_static("process-start-time-unix"), HeaderValue::from(start))
    }

    fn indicators(&self) -> String {
        let asked = self.asked.load(Ordering::Relaxed);
        let check = || vec![("name", "ping".to_owned()), ("type", "healthz".to_owned())];
        let mut families = Vec::new();
        if asked > 0 {
            let mut outcome = check();
            outcome.push(("status", "success".to_owned()));
            families.push(sample::family(
                MetricType::GAUGE,
                "kubernetes_healthcheck",
                "[STABLE] This metric records the result of a single healthcheck.",
                [(check(), 1.0)],
            ));
            families.push(sample::family(
                MetricType::COUNTER,
                "kubernetes_healthchecks_total",
                "[STABLE] This metric records the results of all healthcheck.",
                [(outcome, asked as f64)],
            ));
        }
        encode::text(families)
    }
}

/// A page as text or in the structured form that was asked for.
fn negotiated(request: &Request, kind: &str, text: impl FnOnce() -> String, json: impl FnOnce() -> String) -> Response {
    let accept: Vec<&str> = request.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    match pages::form(&accept.join(","), kind) {
        Form::Text => Response::new(StatusCode::OK, "text/plain; charset=utf-8", text()),
        Form::Json => Response::new(StatusCode::OK, "application/json", json()),
        Form::None => Response::text(
            StatusCode::NOT_ACCEPTABLE,
            format!("accept text/plain, or application/json;v=v1beta1;g=config.k8s.io;as={kind}\n"),
        ),
    }
}
