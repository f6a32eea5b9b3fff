//! How the API server is reached: kubeconfig, `--master` or the pod's own account, as kube-proxy
//! does it.
//!
//! Files with credentials (token, certificate authority, client certificate and key) are read again
//! before every request; when one has changed, the next request is made by a new client. Requests
//! are rare (a watch lives for minutes), so nothing needs to be timed, and a rotated token or
//! authority is never older than the request it serves. kube's own reloading would notice after up
//! to a minute, does not cover a kubeconfig's authority, and takes a token file's trailing newline
//! for a part of the token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use kube::client::ClientBuilder;
use kube::config::ExecAuthCluster;
use kube::{Client, Config};
use tokio::sync::Mutex;

use super::limit::{Limit, Rate};
use super::liveness::Liveness;
use super::observed::{Observed, Told};
use super::target::Target;
use crate::source::Exchange;

/// Where a pod finds its account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// kube-proxy's words for a burst of zero (`--kube-api-burst`, `clientConnection.burst`).
const NO_BURST: &str =
    "burst is required to be greater than 0 when RateLimiter is not set and QPS is set to greater than 0";

/// Where the API server is, as configured. With neither part, the pod's own account is used.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--kubeconfig`, or `clientConnection.kubeconfig`. That file exactly: no `$KUBECONFIG`, no
    /// `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: URL of the server, in place of the kubeconfig's. Alone, it is asked without
    /// credentials.
    pub master: Option<String>,
    /// How often it may be asked; `None` for no limit. Watches count once, when they begin.
    pub rate: Option<Rate>,
}

/// Why the API server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Neither a kubeconfig nor `--master` is given, and we do not run in a pod.
    #[error(
        "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
    )]
    NotInCluster,
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An address or a file that the configuration names cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// kube cannot make a client of it.
    #[error("the API client cannot be set up: {0}")]
    Client(#[from] kube::Error),
}

/// A way to an API server, shared by all that ask it something.
pub struct Connection {
    server: String,
    limit: Limit,
    target: Option<Arc<Target>>,
    told: Told,
    current: Mutex<Current>,
    liveness: Liveness,
}

/// The client in use.
struct Current {
    client: Client,
    /// What it was made of.
    files: Files,
    /// Whether the server refused its credentials.
    refused: bool,
    /// Whether it was said that newer ones cannot be read.
    complained: bool,
}

/// Contents of the files a client is made of: those that cannot be read are `None`.
type Files = Vec<(PathBuf, Option<Vec<u8>>)>;

// === impl Connection ===

impl Connection {
    /// Finds the server and reads the credentials; does not connect yet.
    pub async fn new(settings: &Settings) -> Result<Connection, ConnectionError> {
        if settings.kubeconfig.is_none() && settings.master.is_none() {
            tracing::info!("Neither kubeconfig file nor master URL was specified, falling back to in-cluster config");
        }
        let env = |name: &str| std::env::var(name).ok();
        let target = Arc::new(Target::new(settings, &env, Path::new(SERVICE_ACCOUNT))?);
        let server = target.server.to_string().trim_end_matches('/').to_string();
        if settings.rate.is_some_and(|rate| rate.burst == 0) {
            return Err(ConnectionError::Unusable(NO_BURST.to_string()));
        }
        let (limit, told, liveness) = (Limit::new(settings.rate), Told::default(), Liveness::new());
        let current = Mutex::new(target.clone().connect(&told).await?);
        Ok(Connection { server, limit, target: Some(target), told, current, liveness })
    }

    /// A connection through a client made elsewhere. `server` is its name in the log.
    pub fn over(client: Client, server: &str) -> Connection {
        let current = Current { client, files: Vec::new(), refused: false, complained: false };
        let (limit, told, liveness) = (Limit::new(None), Told::default(), Liveness::new());
        let (server, current) = (server.to_string(), Mutex::new(current));
        Connection { server, limit, target: None, told, current, liveness }
    }

    /// Tells about every request from now on; only the first call counts. Not of a connection
    /// [`over`](Self::over) another client.
    pub fn observe(&self, tell: impl Fn(&Exchange) + Send + Sync + 'static) {
        self.told.begin(Box::new(tell));
    }

    /// URL of the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// How the watches on it are.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// The client for a request, once the limit allows one. It is made anew if a file it was made of has changed, its
    /// credentials have run out or were refused; if that fails, the one in use is kept.
    pub async fn client(&self) -> Client {
        let began = Instant::now();
        self.limit.wait().await;
        self.told.has_waited(began.elapsed());
        let mut current = self.current.lock().await;
        let Some(target) = &self.target else { return current.client.clone() };
        let expired = current.client.valid_until().is_some_and(|end| end <= Timestamp::now());
        if current.refused || expired || target.clone().read_files().await != current.files {
            match target.clone().connect(&self.told).await {
                Ok(fresh) => {
                    tracing::debug!(server = self.server, "credentials read again");
                    *current = fresh;
                }
                Err(error) if !current.complained => {
                    tracing::warn!(server = self.server, %error, "credentials cannot be read; the last good ones are used");
                    current.complained = true;
                }
                Err(_) => {}
            }
        }
        current.client.clone()
    }

    /// Says that the server refused the credentials: the next client gets new ones.
    pub(super) async fn refused(&self) {
        self.current.lock().await.refused = true;
    }
}

// === impl Target ===

impl Target {
    async fn connect(self: Arc<Self>, told: &Told) -> Result<Current, ConnectionError> {
        let told = told.clone();
        blocking(move || {
            let files = self.files();
            Ok(Current { client: self.client(told)?, files, refused: false, complained: false })
        })
        .await?
    }

    async fn read_files(self: Arc<Self>) -> Files {
        blocking(move || self.files()).await.unwrap_or_default()
    }

    fn files(&self) -> Files {
        let inline = |data: bool, path: &Option<String>| path.clone().filter(|_| !data);
        let user = &self.user;
        [
            user.token_file.clone(),
            inline(self.cluster.certificate_authority_data.is_some(), &self.cluster.certificate_authority),
            inline(user.client_certificate_data.is_some(), &user.client_certificate),
            inline(user.client_key_data.is_some(), &user.client_key),
        ]
        .into_iter()
        .flatten()
        .map(|path| {
            let content = std::fs::read(&path).ok();
            (PathBuf::from(path), content)
        })
        .collect()
    }

    /// Makes a client. Reads files, and may run a credential plugin.
    fn client(&self, told: Told) -> Result<Client, ConnectionError> {
        let unusable = ConnectionError::Unusable;
        let mut config = Config::new(self.server.clone());
        let authority = ExecAuthCluster::try_from(&self.cluster).map_err(|error| unusable(with_causes(&error)))?;
        config.root_cert = match &authority.certificate_authority_data {
            // Without TLS nobody asks for the system's own, which take a while to read.
            None if self.server.scheme_str() == Some("http") && self.proxy.is_none() => Some(Vec::new()),
            None => None,
            Some(pem) => match certificates(pem) {
                found if found.is_empty() => {
                    return Err(unusable("certificate-authority holds no PEM certificate".into()));
                }
                found => Some(found),
            },
        };
        config.accept_invalid_certs = self.cluster.insecure_skip_tls_verify.unwrap_or(false);
        config.tls_server_name = self.cluster.tls_server_name.clone();
        config.proxy_url = self.proxy.clone();
        // We have a back-off of our own, and one that says what it waits for.
        config.default_retry = false;
        config.headers.push((http::header::USER_AGENT, user_agent()));
        config.auth_info = self.user.clone();
        if let Some(path) = config.auth_info.token_file.take() {
            let token = std::fs::read_to_string(&path).map_err(|error| unusable(format!("tokenFile {path}: {error}")));
            match token.as_deref().map(str::trim) {
                Ok("") if config.auth_info.token.is_none() => {
                    return Err(unusable(format!("tokenFile {path} is empty")));
                }
                Ok("") => {}
                Ok(token) => config.auth_info.token = Some(token.to_string().into()),
                Err(_) if config.auth_info.token.is_some() => {}
                Err(_) => return Err(token.err().unwrap_or_else(|| unusable(format!("tokenFile {path}")))),
            }
        }
        if let Some(exec) = config.auth_info.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
            exec.cluster = Some(authority);
        }
        let host: Arc<str> = self.server.authority().map_or("", http::uri::Authority::as_str).into();
        let observed = tower::layer::layer_fn(move |inner| Observed { inner, host: host.clone(), told: told.clone() });
        Ok(ClientBuilder::try_from(config)?.with_layer(&observed).build())
    }
}

/// The certificates of a PEM text, in DER.
fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(pem);
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    let bodies = blocks.filter_map(|block| block.split_once("-----END CERTIFICATE-----"));
    let decoded = bodies.map(|(body, _)| {
        let digits: String = body.split_whitespace().collect();
        data_encoding::BASE64.decode(digits.as_bytes())
    });
    decoded.filter_map(Result::ok).collect()
}

/// kube-proxy's, with ours added: some clusters let it through by that name.
fn user_agent() -> http::HeaderValue {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let text = format!("kube-proxy/v1.36.2 (linux/{architecture}) ferrule/{}", env!("CARGO_PKG_VERSION"));
    http::HeaderValue::try_from(text).unwrap_or(http::HeaderValue::from_static("ferrule"))
}

/// An error and what caused it, on one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ConnectionError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ConnectionError::Unusable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem() {
        let one = "-----BEGIN CERTIFICATE-----\nAQID\nBAUG\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(one.as_bytes()), [vec![1, 2, 3, 4, 5, 6]]);
        assert_eq!(certificates(format!("text\n{one}{one}").as_bytes()).len(), 2);
        assert_eq!(certificates(b"-----BEGIN CERTIFICATE-----\nAQID"), Vec::<Vec<u8>>::new());
        assert_eq!(certificates(b"nothing"), Vec::<Vec<u8>>::new());
    }
}
