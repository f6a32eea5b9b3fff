//! The manifests for `kubectl apply`: kubeadm's with another image, and with fewer privileges.

use serde_json::{Value, json};

use super::{differences, document, documents, files, pod, read};
use crate::config::{config_flag, load_flags};

const DAEMONSET: &str = "deploy/kubeadm/daemonset.yaml";

#[test]
fn every_file_is_in_order() {
    let mut seen = 0;
    for file in files("deploy") {
        let path = format!("deploy/{file}");
        let is_template = file.starts_with("chart/templates/");
        if file.ends_with(".json") {
            serde_json::from_str::<Value>(&read(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        } else if file.ends_with(".yaml") && !is_template {
            let all = documents(&path, &read(&path));
            assert!(!all.is_empty(), "{path} is empty");
            for document in all.iter().filter(|_| !file.ends_with("-patch.yaml") && !file.ends_with("values.yaml")) {
                assert!(document["apiVersion"].is_string(), "{path}: no apiVersion");
                let is_local = ["Chart.yaml", "kustomization.yaml"].iter().any(|name| file.ends_with(name));
                assert!(is_local || document["kind"].is_string(), "{path}: no kind");
                let name = if file.ends_with("Chart.yaml") { &document["name"] } else { &document["metadata"]["name"] };
                assert!(name.is_string() || file.ends_with("kustomization.yaml"), "{path}: no name");
            }
        }
        seen += 1;
    }
    assert!(seen > 15, "{seen} files");
}

/// kubeadm 1.36, field by field.
fn kubeadms() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "kube-proxy"}},
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-proxy"}},
                "spec": {
                    "priorityClassName": "system-node-critical",
                    "containers": [{
                        "name": "kube-proxy",
                        "image": "kube-proxy:v1.36.2",
                        "imagePullPolicy": "IfNotPresent",
                        "command": [
                            "/usr/local/bin/kube-proxy",
                            "--config=/var/lib/kube-proxy/config.conf",
                            "--hostname-override=$(NODE_NAME)",
                        ],
                        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "securityContext": {"privileged": true},
                        "volumeMounts": [
                            {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
                            {"name": "xtables-lock", "mountPath": "/run/xtables.lock", "readOnly": false},
                            {"name": "lib-modules", "mountPath": "/lib/modules", "readOnly": true},
                        ],
                    }],
                    "hostNetwork": true,
                    "serviceAccountName": "kube-proxy",
                    "volumes": [
                        {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
                        {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
                        {"name": "lib-modules", "hostPath": {"path": "/lib/modules"}},
                    ],
                    "tolerations": [{"operator": "Exists"}],
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                },
            },
        },
    })
}

#[test]
fn the_daemonset_is_kubeadms_with_another_image() {
    let mut found = Vec::new();
    differences(&kubeadms(), &document(DAEMONSET, "DaemonSet"), "", &mut found);
    assert_eq!(found, ["/spec/template/spec/containers/0/image"]);
}

/// The zero values that kubeadm writes are all accepted, none as a mistake.
#[test]
fn the_config_map_is_kubeadms() {
    let config_map = document("deploy/kubeadm/configmap.yaml", "ConfigMap");
    let keys: Vec<&String> = config_map["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["config.conf", "kubeconfig.conf"]);
    assert_eq!(config_map["metadata"]["name"], "kube-proxy");
    assert_eq!(config_map["metadata"]["labels"], json!({"app": "kube-proxy"}));

    let text = config_map["data"]["config.conf"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.conf");
    std::fs::write(&path, text).unwrap();
    let loaded = load_flags(&[&config_flag(&path), "--hostname-override=node-a"]);
    let config = loaded.config.unwrap();
    assert_eq!(&*config.planning.node_name, "node-a");
    assert_eq!(config.api.kubeconfig.as_deref(), Some("/var/lib/kube-proxy/kubeconfig.conf".as_ref()));
    let remarks: Vec<_> = loaded
        .completing
        .iter()
        .filter(|remark| matches!(remark, ferrule::config::Remark::LenientDecoding { .. }))
        .collect();
    assert!(remarks.is_empty(), "{remarks:?}");

    let mut set = Vec::new();
    leaves(&documents("config.conf", text)[0], "", &mut set);
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    assert_eq!(
        set,
        [
            "/apiVersion=\"kubeproxy.config.k8s.io/v1alpha1\"",
            "/bindAddress=\"0.0.0.0\"",
            "/clientConnection/kubeconfig=\"/var/lib/kube-proxy/kubeconfig.conf\"",
            "/clusterCIDR=\"10.244.0.0/16\"",
            "/kind=\"KubeProxyConfiguration\"",
        ],
        "all else is a zero value"
    );

    let kubeconfig = &documents("kubeconfig.conf", config_map["data"]["kubeconfig.conf"].as_str().unwrap())[0];
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["certificate-authority"], format!("{account}/ca.crt"));
    assert_eq!(kubeconfig["users"][0]["user"], json!({"tokenFile": format!("{account}/token")}));
    assert_eq!(
        kubeconfig["contexts"],
        json!([{"name": "default", "context": {"cluster": "default", "namespace": "default", "user": "default"}}])
    );
    assert_eq!(kubeconfig["current-context"], "default");
}

/// What is not a zero value, as pointer and value.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, value)| leaves(value, &format!("{at}/{key}"), found)),
        zero if [json!(null), json!(false), json!(0), json!(""), json!("0"), json!("0s")].contains(zero) => {}
        other => found.push(format!("{at}={other}")),
    }
}

/// Every role bound in `deploy/`, chart included, is `system:node-proxier` or kubeadm's for joining.
#[test]
fn no_role_beyond_node_proxier() {
    let mut roles = Vec::new();
    for path in ["deploy/kubeadm/rbac.yaml", "tests/chart/default.yaml", "tests/chart/everything.yaml"] {
        for document in documents(path, &read(path)) {
            assert_ne!(document["kind"], "ClusterRole", "{path} grants rights of its own");
            if document["kind"] == "Role" {
                let only = json!([{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kube-proxy"], "verbs": ["get"]}]);
                assert_eq!(document["rules"], only, "{path}");
            }
            if document["roleRef"].is_object() {
                let subject = &document["subjects"][0];
                roles.push(format!(
                    "{} {} for {} {}",
                    path, document["roleRef"]["name"], subject["kind"], subject["name"]
                ));
            }
        }
    }
    assert_eq!(
        roles,
        [
            r#"deploy/kubeadm/rbac.yaml "system:node-proxier" for "ServiceAccount" "kube-proxy""#,
            r#"deploy/kubeadm/rbac.yaml "kube-proxy" for "Group" "system:bootstrappers:kubeadm:default-node-token""#,
            r#"tests/chart/default.yaml "system:node-proxier" for "ServiceAccount" "ferrule""#,
            r#"tests/chart/everything.yaml "system:node-proxier" for "ServiceAccount" "kube-proxy""#,
        ]
    );
}

#[test]
fn kustomizations_name_what_is_there() {
    let image = pod(&document(DAEMONSET, "DaemonSet"))["containers"][0]["image"].clone();
    for folder in ["kubeadm", "least-privilege"] {
        let path = format!("deploy/{folder}/kustomization.yaml");
        let kustomization = document(&path, "Kustomization");
        for resource in kustomization["resources"].as_array().unwrap() {
            let target = super::repository(&format!("deploy/{folder}")).join(resource.as_str().unwrap());
            assert!(target.exists(), "{path}: there is no {}", target.display());
        }
        let [only] = kustomization["images"].as_array().unwrap().as_slice() else { panic!("{path}: one image") };
        let written = format!("{}:{}", only["name"].as_str().unwrap(), only["newTag"].as_str().unwrap());
        assert_eq!(image, written, "{path} replaces the image of the manifest");
    }
    let chart = document_of_chart();
    assert_eq!(image, format!("ferrule:{}", chart["appVersion"].as_str().unwrap()));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

fn document_of_chart() -> Value {
    documents("deploy/chart/Chart.yaml", &read("deploy/chart/Chart.yaml")).remove(0)
}

/// The DaemonSet of the overlay: kubeadm's with its JSON patch.
pub(super) fn least_privilege() -> Value {
    let kustomization = document("deploy/least-privilege/kustomization.yaml", "Kustomization");
    let patch = &kustomization["patches"][0];
    assert_eq!(patch["target"], json!({"kind": "DaemonSet", "name": "kube-proxy"}));
    let path = format!("deploy/least-privilege/{}", patch["path"].as_str().unwrap());
    let [operations] = &documents(&path, &read(&path))[..] else { panic!("{path}: one document") };
    let mut daemonset = document(DAEMONSET, "DaemonSet");
    for operation in operations.as_array().unwrap() {
        let pointer = operation["path"].as_str().unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = daemonset.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}: no such place"));
        let old = parent.as_object_mut().unwrap().insert(key.to_owned(), operation["value"].clone());
        // Of RFC 6902 no more is used: `replace` needs something to replace, and `add` should not.
        assert_eq!(old.is_some(), operation["op"] == "replace", "{pointer}: {}", operation["op"]);
        assert!(operation["op"] == "replace" || operation["op"] == "add", "{pointer}");
    }
    daemonset
}

#[test]
fn least_privilege_differs_in_what_it_says() {
    let patched = least_privilege();
    let mut found = Vec::new();
    differences(&document(DAEMONSET, "DaemonSet"), &patched, "", &mut found);
    let container = "/spec/template/spec/containers/0";
    assert_eq!(
        found,
        [
            format!("{container}/livenessProbe"),
            format!("{container}/resources"),
            format!("{container}/securityContext/allowPrivilegeEscalation"),
            format!("{container}/securityContext/capabilities"),
            format!("{container}/securityContext/privileged"),
            format!("{container}/securityContext/readOnlyRootFilesystem"),
            format!("{container}/securityContext/seccompProfile"),
            format!("{container}/startupProbe"),
            "/spec/template/spec/initContainers".to_owned(),
        ]
    );
    let main = &pod(&patched)["containers"][0];
    least(&main["securityContext"]);
    for probe in ["livenessProbe", "startupProbe"] {
        assert_eq!(main[probe]["httpGet"], json!({"path": "/livez", "port": 10256}), "{probe}");
    }
    assert!(main["resources"]["requests"]["memory"].is_string() && main["resources"]["limits"]["cpu"].is_null());

    // The init container does the main container's preparation, and nothing else.
    let [init] = pod(&patched)["initContainers"].as_array().unwrap().as_slice() else { panic!("one init container") };
    let mut expected = main["command"].as_array().unwrap().clone();
    expected.push("--init-only".into());
    assert_eq!(init["command"], Value::from(expected));
    for same in ["image", "imagePullPolicy", "env", "volumeMounts"] {
        assert_eq!(init[same], main[same], "{same}");
    }
    assert_eq!(init["securityContext"], json!({"privileged": true, "readOnlyRootFilesystem": true}));
}

/// Two capabilities, nothing else.
#[track_caller]
pub(super) fn least(security_context: &Value) {
    let expected = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(*security_context, expected);
}
