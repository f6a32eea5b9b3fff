//! The Helm chart, as Helm rendered it: `make chart` keeps the results in `tests/chart/`, and the
//! digest of what they were made of.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::manifests::{least, least_privilege};
use super::{document, documents, files, pod, read, repository};

const DEFAULT: &str = "tests/chart/default.yaml";
const EVERYTHING: &str = "tests/chart/everything.yaml";

/// Whoever changes the chart renders it again, and sees the difference.
#[test]
fn what_is_kept_was_rendered_from_this_chart() {
    let mut digest = Sha256::new();
    for file in files("deploy/chart") {
        digest.update(file.as_bytes());
        digest.update([0]);
        digest.update(std::fs::read(repository("deploy/chart").join(&file)).unwrap());
        digest.update([0]);
    }
    let digest = data_encoding::HEXLOWER.encode(&digest.finalize());
    for path in [DEFAULT, EVERYTHING] {
        let text = read(path);
        let kept = text.lines().nth(1).and_then(|line| line.strip_prefix("# "));
        assert_eq!(kept, Some(digest.as_str()), "{path} is of another chart: run UPDATE_GOLDEN=1 make chart");
    }
}

/// By default, the pod is that of the least-privilege manifest.
#[test]
fn by_default_with_least_privilege() {
    let daemonset = document(DEFAULT, "DaemonSet");
    let manifest = least_privilege();
    let (ours, other) = (pod(&daemonset), pod(&manifest));
    for same in ["hostNetwork", "nodeSelector", "priorityClassName", "tolerations"] {
        assert_eq!(ours[same], other[same], "{same}");
    }
    let (main, main_other) = (&ours["containers"][0], &other["containers"][0]);
    for same in ["command", "env", "image", "livenessProbe", "resources", "securityContext", "startupProbe"] {
        assert_eq!(main[same], main_other[same], "{same}");
    }
    least(&main["securityContext"]);
    let (init, init_other) = (&ours["initContainers"][0], &other["initContainers"][0]);
    for same in ["command", "env", "image", "securityContext"] {
        assert_eq!(init[same], init_other[same], "{same}");
    }
    assert_eq!(places(main), places(main_other));
    assert_eq!(places(init), places(init_other));
    assert_eq!(host_paths(ours), host_paths(other));

    let config_map = document(DEFAULT, "ConfigMap");
    assert_eq!(ours["volumes"][0]["configMap"]["name"], config_map["metadata"]["name"]);
    assert_eq!(ours["serviceAccountName"], document(DEFAULT, "ServiceAccount")["metadata"]["name"]);
    let text = config_map["data"]["config.conf"].as_str().unwrap();
    let loaded = crate::config::load_text(text, &["--hostname-override=node-a"]);
    let config = loaded.config.unwrap();
    assert_eq!(config.api.kubeconfig.as_deref(), Some("/var/lib/kube-proxy/kubeconfig.conf".as_ref()));
    let kubeconfig = &documents("kubeconfig", config_map["data"]["kubeconfig.conf"].as_str().unwrap())[0];
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://203.0.113.7:6443");
}

fn places(container: &Value) -> Vec<&str> {
    let mounts = container["volumeMounts"].as_array().unwrap();
    mounts.iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect()
}

fn host_paths(pod: &Value) -> Vec<&Value> {
    pod["volumes"].as_array().unwrap().iter().map(|volume| &volume["hostPath"]).collect()
}

#[test]
fn values_arrive_where_they_belong() {
    let daemonset = document(EVERYTHING, "DaemonSet");
    let pod = pod(&daemonset);
    let main = &pod["containers"][0];
    assert_eq!(main["image"], "images.example/net/ferrule:1.2.3");
    assert_eq!(main["securityContext"], json!({"privileged": true}));
    assert!(pod["initContainers"].is_null(), "a privileged container needs no preparation");
    assert_eq!(main["command"].as_array().unwrap().last(), Some(&json!("--v=4")));
    assert_eq!(main["env"][1], json!({"name": "HTTPS_PROXY", "value": "http://192.0.2.1:3128"}));
    assert_eq!(pod["volumes"][0]["configMap"]["name"], "kube-proxy");
    assert_eq!(pod["serviceAccountName"], "kube-proxy");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
    assert!(pod["affinity"]["nodeAffinity"].is_object());
    let template = &daemonset["spec"]["template"]["metadata"];
    assert_eq!(template["labels"]["team"], "net");
    assert_eq!(template["annotations"]["example/note"], "x");
    let selector = daemonset["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(selector.iter().all(|(key, value)| template["labels"][key] == *value), "the selector selects the pods");

    let monitor = document(EVERYTHING, "PodMonitor");
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], Value::from(selector.clone()));
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let rule = document(EVERYTHING, "PrometheusRule");
    assert_eq!(rule["spec"], document("deploy/chart/files/prometheus-rule.yaml", "PrometheusRule")["spec"]);
    let kinds: Vec<Value> =
        documents(EVERYTHING, &read(EVERYTHING)).into_iter().map(|mut it| it["kind"].take()).collect();
    assert!(!kinds.contains(&json!("ConfigMap")) && !kinds.contains(&json!("ServiceAccount")), "{kinds:?}");
}
