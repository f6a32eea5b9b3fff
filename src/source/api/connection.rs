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

use http::Uri;
use k8s_openapi::jiff::Timestamp;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster, Kubeconfig};
use kube::{Client, Config};
use tokio::sync::Mutex;

use super::proxy;

/// Where a pod finds its account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server is, as configured. With neither part, the pod's own account is used.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--kubeconfig`, or `clientConnection.kubeconfig`. That file exactly: no `$KUBECONFIG`, no
    /// `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: URL of the server, in place of the kubeconfig's. Alone, it is asked without
    /// credentials.
    pub master: Option<String>,
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
    target: Option<Arc<Target>>,
    current: Mutex<Current>,
}

/// A server, and who we are there.
#[derive(Debug)]
struct Target {
    server: Uri,
    proxy: Option<Uri>,
    cluster: Cluster,
    user: AuthInfo,
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
        let env = |name: &str| std::env::var(name).ok();
        let target = Arc::new(Target::new(settings, &env, Path::new(SERVICE_ACCOUNT))?);
        let server = target.server.to_string().trim_end_matches('/').to_string();
        let current = Mutex::new(target.clone().connect().await?);
        Ok(Connection { server, target: Some(target), current })
    }

    /// A connection through a client made elsewhere. `server` is its name in the log.
    pub fn over(client: Client, server: &str) -> Connection {
        let current = Current { client, files: Vec::new(), refused: false, complained: false };
        Connection { server: server.to_string(), target: None, current: Mutex::new(current) }
    }

    /// URL of the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The client for a request. It is made anew if a file it was made of has changed, its
    /// credentials have run out or were refused; if that fails, the one in use is kept.
    pub async fn client(&self) -> Client {
        let mut current = self.current.lock().await;
        let Some(target) = &self.target else { return current.client.clone() };
        let expired = current.client.valid_until().is_some_and(|end| end <= Timestamp::now());
        if current.refused || expired || target.clone().read_files().await != current.files {
            match target.clone().connect().await {
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
    fn new(
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
        account: &Path,
    ) -> Result<Target, ConnectionError> {
        let master = settings.master.as_deref().filter(|url| !url.is_empty());
        let kubeconfig = settings.kubeconfig.as_deref().filter(|path| !path.as_os_str().is_empty());
        let (mut cluster, user) = match kubeconfig {
            Some(path) => read_kubeconfig(path, master.is_some())
                .map_err(|reason| ConnectionError::Kubeconfig { path: path.to_path_buf(), reason })?,
            None if master.is_some() => Default::default(),
            None => in_cluster(env, account)?,
        };
        if let Some(url) = master {
            cluster.server = Some(url.to_string());
        }
        let server = server_url(&cluster, &user).map_err(ConnectionError::Unusable)?;
        let proxy = proxy::for_target(&server, cluster.proxy_url.as_deref(), env).map_err(ConnectionError::Unusable)?;
        Ok(Target { server, proxy, cluster, user })
    }

    async fn connect(self: Arc<Self>) -> Result<Current, ConnectionError> {
        blocking(move || {
            let files = self.files();
            Ok(Current { client: self.client()?, files, refused: false, complained: false })
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
    fn client(&self) -> Result<Client, ConnectionError> {
        let unusable = ConnectionError::Unusable;
        let mut config = Config::new(self.server.clone());
        let authority = ExecAuthCluster::try_from(&self.cluster).map_err(|error| unusable(with_causes(&error)))?;
        config.root_cert = match &authority.certificate_authority_data {
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
        Ok(Client::try_from(config)?)
    }
}

/// The cluster and user of a kubeconfig's current context, with absolute paths. A server given
/// elsewhere makes up for a missing context.
fn read_kubeconfig(path: &Path, has_server: bool) -> Result<(Cluster, AuthInfo), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let kubeconfig = Kubeconfig::from_yaml(&text).map_err(|error| with_causes(&error))?;
    let name = kubeconfig.current_context.unwrap_or_default();
    let context = kubeconfig.contexts.into_iter().find(|context| context.name == name).and_then(|c| c.context);
    let context = match context {
        Some(context) => context,
        None if has_server => Default::default(),
        None if name.is_empty() => return Err("current-context is not set".into()),
        None => return Err(format!("there is no context {name:?}, which current-context names")),
    };
    let cluster = kubeconfig.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let mut cluster = match cluster.and_then(|cluster| cluster.cluster) {
        Some(cluster) => cluster,
        None if has_server => Cluster::default(),
        None => return Err(format!("there is no cluster {:?}, which context {name:?} names", context.cluster)),
    };
    let user = kubeconfig.auth_infos.into_iter().find(|user| Some(&user.name) == context.user.as_ref());
    let mut user = user.and_then(|user| user.auth_info).unwrap_or_default();

    let directory = path.parent().unwrap_or(Path::new(""));
    let files =
        [&mut cluster.certificate_authority, &mut user.client_certificate, &mut user.client_key, &mut user.token_file];
    for file in files {
        // Go takes an empty value for none.
        *file = file.take().filter(|file| !file.is_empty()).map(|file| absolute(directory, &file));
    }
    for data in [&mut cluster.certificate_authority_data, &mut user.client_certificate_data, &mut cluster.server] {
        *data = data.take().filter(|data| !data.is_empty());
    }
    // A bare name is looked up in PATH.
    if let Some(command) = user.exec.as_mut().and_then(|exec| exec.command.as_mut())
        && command.contains('/')
    {
        *command = absolute(directory, command);
    }
    Ok((cluster, user))
}

fn absolute(directory: &Path, file: &str) -> String {
    directory.join(file).to_string_lossy().into_owned()
}

/// The server and account of the pod we run in.
fn in_cluster(env: &dyn Fn(&str) -> Option<String>, account: &Path) -> Result<(Cluster, AuthInfo), ConnectionError> {
    let part = |name: &str| env(name).filter(|value| !value.is_empty()).ok_or(ConnectionError::NotInCluster);
    let (host, port) = (part("KUBERNETES_SERVICE_HOST")?, part("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let cluster = Cluster {
        server: Some(format!("https://{host}:{port}")),
        certificate_authority: Some(absolute(account, "ca.crt")),
        ..Default::default()
    };
    let user = AuthInfo { token_file: Some(absolute(account, "token")), ..Default::default() };
    Ok((cluster, user))
}

/// The server's URL. Without a scheme it is HTTPS if anything speaks for TLS, as in client-go.
fn server_url(cluster: &Cluster, user: &AuthInfo) -> Result<Uri, String> {
    let Some(written) = cluster.server.as_deref() else {
        return Err("no server is given: set `server` of the kubeconfig's cluster, or --master".into());
    };
    let tls = cluster.certificate_authority.is_some()
        || cluster.certificate_authority_data.is_some()
        || cluster.insecure_skip_tls_verify == Some(true)
        || user.client_certificate.is_some()
        || user.client_certificate_data.is_some();
    let full = match written.contains("://") {
        true => written.to_string(),
        false if tls => format!("https://{written}"),
        false => format!("http://{written}"),
    };
    match full.parse::<Uri>() {
        Ok(url) if matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some() => Ok(url),
        Ok(_) => Err(format!("server {written:?} is not an http or https URL")),
        Err(error) => Err(format!("server {written:?} is not a URL: {error}")),
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

    fn target(settings: &Settings, env: &[(&str, &str)]) -> Result<Target, ConnectionError> {
        let get = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        Target::new(settings, &get, Path::new("/account"))
    }

    #[test]
    fn in_a_pod() {
        let env = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
        let found = target(&Settings::default(), &env).expect("a target");
        assert_eq!(found.server, "https://10.96.0.1:443/");
        assert_eq!(found.cluster.certificate_authority.as_deref(), Some("/account/ca.crt"));
        assert_eq!(found.user.token_file.as_deref(), Some("/account/token"));
        let env = [("KUBERNETES_SERVICE_HOST", "fd00::1"), ("KUBERNETES_SERVICE_PORT", "6443")];
        let found = target(&Settings::default(), &env).expect("a target");
        assert_eq!(found.server, "https://[fd00::1]:6443/");
    }

    /// The error is kube-proxy's; `$KUBECONFIG` and `~/.kube/config` are not looked at.
    #[test]
    fn in_no_pod() {
        let home = [("KUBECONFIG", "/etc/kubernetes/admin.conf"), ("HOME", "/root")];
        for env in [&home[..], &[("KUBERNETES_SERVICE_HOST", "10.96.0.1")], &[("KUBERNETES_SERVICE_PORT", "443")]] {
            let error = target(&Settings::default(), env).expect_err("not in a pod");
            assert_eq!(
                error.to_string(),
                "unable to load in-cluster configuration, \
                 KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
            );
        }
    }

    #[test]
    fn empty_settings_are_none() {
        let settings = Settings { kubeconfig: Some(PathBuf::new()), master: Some(String::new()) };
        assert!(matches!(target(&settings, &[]), Err(ConnectionError::NotInCluster)));
    }

    #[test]
    fn server_addresses() {
        let check = |written: &str, tls: bool, expected: &str| {
            let cluster = Cluster {
                server: Some(written.into()),
                insecure_skip_tls_verify: tls.then_some(true),
                ..Default::default()
            };
            let url = server_url(&cluster, &AuthInfo::default()).map(|url| url.to_string());
            assert_eq!(url.as_deref(), Ok(expected));
        };
        check("https://a:6443", false, "https://a:6443/");
        check("https://a/k8s/clusters/b", false, "https://a/k8s/clusters/b");
        check("10.0.0.1:8080", false, "http://10.0.0.1:8080/");
        check("10.0.0.1:6443", true, "https://10.0.0.1:6443/");
    }

    #[test]
    fn pem() {
        let one = "-----BEGIN CERTIFICATE-----\nAQID\nBAUG\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(one.as_bytes()), [vec![1, 2, 3, 4, 5, 6]]);
        assert_eq!(certificates(format!("text\n{one}{one}").as_bytes()).len(), 2);
        assert_eq!(certificates(b"-----BEGIN CERTIFICATE-----\nAQID"), Vec::<Vec<u8>>::new());
        assert_eq!(certificates(b"nothing"), Vec::<Vec<u8>>::new());
    }
}
