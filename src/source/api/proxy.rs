//! Whether the API server is reached through an HTTP or SOCKS proxy.
//!
//! kubeadm hands the proxy variables of the machine it ran on to kube-proxy's pod, mostly together
//! with a NO_PROXY that names the API server. The rules are Go's (`httpproxy`), because Go programs
//! are what those values were written for; kube's own reading of NO_PROXY compares it with the
//! proxy's address instead of the server's, and fails on entries that Go ignores.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

/// The proxy for `target`: the kubeconfig's `proxy-url`, or else what the environment says.
/// An error says which value is no URL.
pub(super) fn for_target(
    target: &Uri,
    explicit: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, String> {
    if let Some(url) = explicit.filter(|url| !url.is_empty()) {
        return parse("proxy-url", url).map(Some);
    }
    let either = |upper: &str| {
        let value = |name: &str| env(name).filter(|value| !value.is_empty());
        value(upper).or_else(|| value(&upper.to_lowercase()))
    };
    let name = match target.scheme_str() {
        Some("https") => "HTTPS_PROXY",
        _ => "HTTP_PROXY",
    };
    let Some(url) = either(name) else { return Ok(None) };
    let host = target.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_lowercase();
    let port = target.port_u16().unwrap_or(if name == "HTTPS_PROXY" { 443 } else { 80 });
    if is_exempt(&host, port, &either("NO_PROXY").unwrap_or_default()) {
        return Ok(None);
    }
    parse(name, &url).map(Some)
}

fn parse(name: &str, url: &str) -> Result<Uri, String> {
    let full = if url.contains("://") { url.to_string() } else { format!("http://{url}") };
    full.parse().map_err(|error| format!("{name} {url:?} is not a URL: {error}"))
}

fn is_exempt(host: &str, port: u16, no_proxy: &str) -> bool {
    let ip = host.parse::<IpAddr>().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(net) = entry.parse::<IpNet>() {
            return ip.is_some_and(|ip| net.contains(&ip));
        }
        let (name, only) = match entry.rsplit_once(':') {
            Some((name, digits)) if entry.parse::<IpAddr>().is_err() => match digits.parse::<u16>() {
                Ok(port) => (name, Some(port)),
                Err(_) => (entry.as_str(), None),
            },
            _ => (entry.as_str(), None),
        };
        if only.is_some_and(|only| only != port) {
            return false;
        }
        let name = name.trim_start_matches('[').trim_end_matches(']');
        if let Ok(exempt) = name.parse::<IpAddr>() {
            return ip == Some(exempt);
        }
        // ".example.org" and "*.example.org" are the names below, "example.org" is that name too.
        let below = name.strip_prefix('*').unwrap_or(name);
        match below.strip_prefix('.') {
            Some(_) => host.ends_with(below),
            None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: &str, env: &[(&str, &str)], expected: Option<&str>) {
        let get = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        let proxy = for_target(&target.parse().expect("a URL"), None, &get).expect("usable variables");
        assert_eq!(proxy.map(|uri| uri.to_string()), expected.map(str::to_string));
    }

    #[test]
    fn environment() {
        let both = [("HTTPS_PROXY", "http://p:3128"), ("HTTP_PROXY", "q:1")];
        check("https://10.0.0.1:6443", &[], None);
        check("https://10.0.0.1:6443", &both, Some("http://p:3128/"));
        check("http://10.0.0.1:8080", &both, Some("http://q:1/"));
        check("https://127.0.0.1:6443", &both, None);
        check("https://localhost:6443", &both, None);
        check("https://[::1]:6443", &both, None);
        check("https://10.0.0.1", &[("https_proxy", "socks5://p:1")], Some("socks5://p:1/"));
        check("https://10.0.0.1", &[("HTTPS_PROXY", ""), ("https_proxy", "http://p")], Some("http://p/"));
    }

    #[test]
    fn exemptions() {
        let exempt = |target: &str, no_proxy: &str, expected: bool| {
            let proxy = if expected { None } else { Some("http://p/") };
            check(target, &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", no_proxy)], proxy);
        };
        exempt("https://10.0.0.1:6443", "127.0.0.1, 10.0.0.0/8,", true);
        exempt("https://11.0.0.1:6443", "10.0.0.0/8", false);
        exempt("https://10.0.0.1:6443", "10.0.0.1", true);
        exempt("https://10.0.0.1:6443", "10.0.0.1:6443", true);
        exempt("https://10.0.0.1:6443", "10.0.0.1:443", false);
        exempt("https://[fd00::1]:6443", "fd00::/8", true);
        exempt("https://[fd00::1]:6443", "[fd00::1]:6443", true);
        exempt("https://[fd00::1]:6443", "fd00::1", true);
        exempt("https://api.example.org", "example.org", true);
        exempt("https://badexample.org", "example.org", false);
        exempt("https://example.org", ".example.org", false);
        exempt("https://API.example.org", "*.Example.org", true);
        exempt("https://10.0.0.1:6443", "*", true);
        exempt("https://10.0.0.1:6443", "not a:thing,,10.0.0.0/99", false);
    }

    #[test]
    fn explicit() {
        let target = "https://127.0.0.1".parse().expect("a URL");
        let proxy = for_target(&target, Some("http://p:8080"), &|_| None).expect("a usable URL");
        assert_eq!(proxy.map(|uri| uri.to_string()).as_deref(), Some("http://p:8080/"));
        let error = for_target(&target, Some("http://a b"), &|_| None).expect_err("no URL");
        assert!(error.starts_with("proxy-url \"http://a b\" is not a URL"), "{error}");
    }
}
