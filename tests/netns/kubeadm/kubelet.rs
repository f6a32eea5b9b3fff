//! What a kubelet does for the kube-proxy pod of `deploy/kubeadm`: files for its volumes, mounts, its
//! environment, its command. All of it in a mount namespace of the pod's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fake_api::objects_from_yaml;
use crate::proxy::{Proxy, binary};
use crate::world::{Node, World};

/// Where every pod finds its ServiceAccount.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A folder that the kubelet keeps up to date for a pod: a ConfigMap, or a ServiceAccount's. It changes
/// as a whole, by a link.
pub struct Volume(PathBuf);

// === impl Volume ===

impl Volume {
    fn create(path: PathBuf, files: &[(&str, &str)]) -> Volume {
        fs::create_dir(&path).unwrap();
        let volume = Volume(path);
        volume.publish(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), volume.0.join(name)).unwrap();
        }
        volume
    }

    /// Replaces all files, as the kubelet does.
    pub fn publish(&self, files: &[(&str, &str)]) {
        let data = self.0.join("..data");
        let old = fs::read_link(&data).ok();
        let number = fs::read_dir(&self.0).unwrap().count();
        let fresh = format!("..version-{number}");
        fs::create_dir(self.0.join(&fresh)).unwrap();
        for (name, content) in files {
            fs::write(self.0.join(&fresh).join(name), content).unwrap();
        }
        let link = self.0.join("..data_tmp");
        symlink(&fresh, &link).unwrap();
        fs::rename(link, data).unwrap();
        if let Some(old) = old {
            fs::remove_dir_all(self.0.join(old)).unwrap();
        }
    }
}

/// The first object of a kind in a file of `deploy/`.
pub fn manifest(path: &str, kind: &str) -> Value {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)).unwrap();
    let objects = objects_from_yaml(&text);
    objects.into_iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {path}"))
}

/// The files of the ServiceAccount.
pub fn service_account(world: &World, authority: &str, token: &str) -> Volume {
    let files = [("ca.crt", authority), ("namespace", "kube-system"), ("token", token)];
    Volume::create(world.dir().join("service-account"), &files)
}

/// Starts the only container of the DaemonSet's pod.
pub fn start<'w>(world: &'w World, daemonset: &Value, config_map: &Value, service_account: &Volume) -> Proxy<'w> {
    let pod = &daemonset["spec"]["template"]["spec"];
    let [container] = pod["containers"].as_array().unwrap().as_slice() else { panic!("one container") };
    let mut script = Script::new(world);
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("the volume of a mount");
        let source = source(world, volume, config_map);
        script.mount(&source, text(&mount["mountPath"]), mount["readOnly"] == true);
    }
    script.mount(&service_account.0, SERVICE_ACCOUNT, true);

    let mut arguments: Vec<String> = ["env".to_owned()].into();
    let mut command: Vec<String> =
        container["command"].as_array().unwrap().iter().map(|part| text(part).into()).collect();
    for variable in container["env"].as_array().unwrap() {
        assert_eq!(
            variable["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName",
            "the only one a kubelet is asked for"
        );
        let (name, value) = (text(&variable["name"]), Node::A.name());
        arguments.push(format!("{name}={value}"));
        for part in &mut command {
            *part = part.replace(&format!("$({name})"), value);
        }
    }
    arguments.extend(["unshare", "--mount", "--propagation", "private", "sh", "-euc"].map(str::to_owned));
    arguments.extend([script.0 + "exec \"$@\"\n", "sh".to_owned()]);
    arguments.extend(command);
    let arguments: Vec<_> = arguments.into_iter().map(Into::into).collect();
    Proxy::spawn(world, &arguments)
}

/// What a volume leads to.
fn source(world: &World, volume: &Value, config_map: &Value) -> PathBuf {
    if volume["configMap"].is_object() {
        assert_eq!(volume["configMap"]["name"], config_map["metadata"]["name"]);
        let files: Vec<_> =
            config_map["data"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), text(v))).collect();
        return Volume::create(world.dir().join("config-map"), &files).0;
    }
    match text(&volume["hostPath"]["path"]) {
        // Not the host's lock: the node under test is a namespace.
        "/run/xtables.lock" => {
            assert_eq!(volume["hostPath"]["type"], "FileOrCreate");
            let lock = world.dir().join("host-xtables.lock");
            fs::write(&lock, "").unwrap();
            lock
        }
        other => PathBuf::from(other),
    }
}

/// A shell script that mounts.
struct Script(String);

impl Script {
    /// An image with nothing but the program at its place.
    fn new(world: &World) -> Script {
        let mut script = Script(String::new());
        for empty in ["/run", "/usr/local/bin", "/var/lib"] {
            script.0 += &format!("mount -t tmpfs tmpfs {empty}\n");
        }
        script.mount(&binary(), "/usr/local/bin/kube-proxy", true);
        // The limits of connections are the host's, and no namespace has its own: files in their place.
        for (name, place, value) in [
            ("nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
            ("hashsize", "/sys/module/nf_conntrack/parameters/hashsize", "16384\n"),
        ] {
            let limit = world.dir().join(name);
            fs::write(&limit, value).unwrap();
            script.mount(&limit, place, false);
        }
        script
    }

    fn mount(&mut self, from: &Path, to: &str, read_only: bool) {
        if !from.exists() {
            assert_eq!(to, "/lib/modules", "a kernel without modules has no such folder, all else is there");
            return;
        }
        let make = if from.is_dir() {
            format!("mkdir -p {to}")
        } else {
            format!("mkdir -p $(dirname {to}); [ -e {to} ] || : >{to}")
        };
        self.0 += &format!("{make}\nmount --bind {} {to}\n", from.display());
        if read_only {
            self.0 += &format!("mount -o remount,bind,ro {to}\n");
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}
