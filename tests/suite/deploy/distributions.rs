//! The command lines by which distributions start kube-proxy (deploy/README.md) are understood, and
//! mean what they say.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use ferrule::config::ProxyMode;
use ferrule::plan::build::DetectLocal;

use super::document;
use crate::config::{config, config_flag};

/// k3s: the flags it gives to the kube-proxy inside it.
#[test]
fn k3s() {
    let config = config(&[
        "--proxy-mode=iptables",
        "--healthz-bind-address=127.0.0.1",
        "--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
        "--cluster-cidr=10.42.0.0/16",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--hostname-override=node-a",
    ]);
    assert_eq!(config.mode, ProxyMode::Iptables);
    assert_eq!(config.servers.healthz, Some("127.0.0.1:10256".parse().unwrap()));
    let conntrack = &config.conntrack;
    assert_eq!(conntrack.tcp_established_timeout.or(conntrack.tcp_close_wait_timeout), None);
    assert_eq!(conntrack.max_per_core.unwrap_or(0), 0);
    assert_eq!(config.api.kubeconfig.as_deref(), Some(Path::new("/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig")));
}

/// GCE: `--master` beside a kubeconfig that names no server.
#[test]
fn gce() {
    let config = config(&[
        "--master=https://192.0.2.1",
        "--kubeconfig=/var/lib/kube-proxy/kubeconfig",
        "--cluster-cidr=10.64.0.0/14",
        "--oom-score-adj=-998",
        "--v=2",
        "--proxy-mode=iptables",
        "--iptables-sync-period=1m",
        "--iptables-min-sync-period=10s",
        "--hostname-override=node-a",
    ]);
    assert_eq!(config.api.master.as_deref(), Some("https://192.0.2.1"));
    assert!(config.api.kubeconfig.is_some());
    assert_eq!(config.oom_score_adj, -998);
    assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(60), Duration::from_secs(10)));
    assert_eq!(config.logging.verbosity, 2);
}

/// EKS: a file and a verbosity beside it.
#[test]
fn eks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig}\nmetricsBindAddress: 0.0.0.0:10249\n\
                mode: iptables\n";
    std::fs::write(&path, text).unwrap();
    let config = config(&["--v=2", &config_flag(&path), "--hostname-override=node-a"]);
    assert_eq!(config.servers.metrics, (IpAddr::from(Ipv4Addr::UNSPECIFIED), 10249).into());
    assert_eq!(config.logging.verbosity, 2);
    assert_eq!(&*config.planning.node_name, "node-a");
}

/// AKS: the kubelet's kubeconfig.
#[test]
fn aks() {
    let config = config(&[
        "--conntrack-max-per-core=0",
        "--metrics-bind-address=0.0.0.0:10249",
        "--kubeconfig=/var/lib/kubelet/kubeconfig",
        "--cluster-cidr=10.244.0.0/16",
        "--detect-local-mode=ClusterCIDR",
        "--pod-interface-name-prefix=",
        "--hostname-override=node-a",
    ]);
    assert!(
        matches!(config.planning.detect_local, DetectLocal::ClusterCidr { .. }),
        "{:?}",
        config.planning.detect_local
    );
    assert_eq!(config.servers.metrics.port(), 10249);
}

/// The alert rules are of the file that `kubectl apply` takes: a name of its own, in the namespace of
/// all else.
#[test]
fn everything_is_in_one_namespace() {
    for (path, kind) in [
        ("deploy/chart/files/prometheus-rule.yaml", "PrometheusRule"),
        ("deploy/kubeadm/configmap.yaml", "ConfigMap"),
        ("deploy/kubeadm/daemonset.yaml", "DaemonSet"),
        ("deploy/kubeadm/rbac.yaml", "ServiceAccount"),
    ] {
        assert_eq!(document(path, kind)["metadata"]["namespace"], "kube-system", "{path}");
    }
}
