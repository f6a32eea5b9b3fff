//! Which server is meant, and who we are there: from the kubeconfig, `--master` or the pod.

use std::path::Path;

use http::Uri;
use kube::config::{AuthInfo, Cluster, Kubeconfig};

use super::connection::{ConnectionError, Settings, with_causes};
use super::proxy;

/// A server, and who we are there.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) server: Uri,
    pub(super) proxy: Option<Uri>,
    /// Its kubeconfig entry, with absolute paths and without empty values.
    pub(super) cluster: Cluster,
    /// The user's kubeconfig entry, likewise.
    pub(super) user: AuthInfo,
}

// === impl Target ===

impl Target {
    /// Reads what is configured. `account` is where a pod finds its account.
    pub(super) fn new(
        settings: &Settings,
        env: &dyn Fn(&str) -> Option<String>,
        account: &Path,
    ) -> Result<Target, ConnectionError> {
        let master = settings.master.as_deref().filter(|url| !url.is_empty());
        let kubeconfig = settings.kubeconfig.as_deref().filter(|path| !path.as_os_str().is_empty());
        let (mut cluster, user) = match kubeconfig {
            Some(path) if is_missing(path) => {
                // Operators know these words from kube-proxy.
                let error = format!("stat {}: no such file or directory", path.display());
                return Err(ConnectionError::Unusable(error));
            }
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

fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
        let settings = Settings { kubeconfig: Some(PathBuf::new()), master: Some(String::new()), rate: None };
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
}
