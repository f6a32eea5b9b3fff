//! The server of `/healthz` and `/livez`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Health;
use crate::events::{Happening, Recorder};
use crate::http::{self, Request};

/// How long to wait before an address is tried again. (kube-proxy: the same.)
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Why there is no server, where that ends the proxy.
#[derive(Debug, thiserror::Error)]
#[error("healthz server failed: {0}")]
pub struct ServeError(String);

/// Serves probes; returns only if the address cannot be had and `hard_fail` says that this is fatal.
/// Otherwise it is tried again and again. The address is asked for when the future is first polled.
pub async fn serve(health: Health, address: SocketAddr, hard_fail: bool, recorder: Recorder) -> ServeError {
    loop {
        match http::listen(address) {
            Ok(listener) => {
                tracing::debug!(%address, "serving /healthz and /livez");
                let respond = Arc::new(move |request: &Request| health.answer(request));
                // In a task of its own, so that planning never delays an answer.
                let _ = tokio::spawn(http::serve(listener, respond)).await;
                return ServeError("the server ended".to_owned());
            }
            Err(error) => {
                let error = format!("failed to start proxy healthz on {address}: {}", http::refusal(address, &error));
                if hard_fail {
                    recorder.record(Happening::HealthServerFailed(error.clone()));
                    return ServeError(error);
                }
                let seconds = BIND_RETRY.as_secs();
                tracing::error!(
                    %error, seconds,
                    "probes are not served: end the program that has the address, or set healthzBindAddress; trying again"
                );
            }
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hard_failure_is_told() {
        let taken = http::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let (recorder, mut happenings) = Recorder::new(1);
        let error = serve(Health::new(BIND_RETRY), address, true, recorder).await.to_string();
        let port = address.port();
        let expected = format!(
            "failed to start proxy healthz on 127.0.0.1:{port}: listen tcp 127.0.0.1:{port}: bind: address already in use"
        );
        assert_eq!(error, format!("healthz server failed: {expected}"));
        assert_eq!(happenings.try_recv(), Ok(Happening::HealthServerFailed(expected)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_taken_is_tried_again() {
        let taken = http::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let health = Health::new(BIND_RETRY);
        let server = tokio::spawn(serve(health, address, false, Recorder::default()));
        tokio::time::sleep(BIND_RETRY * 3 / 2).await;
        drop(taken);
        // Answered within the next try.
        let connected = tokio::time::timeout(BIND_RETRY, async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        connected.await.expect("it is served");
        assert!(!server.is_finished());
    }
}
