//! Started as kubeadm starts kube-proxy: the command, the ConfigMap and the ServiceAccount of
//! `deploy/kubeadm`, and an API server over TLS that knows ServiceAccounts by their token.

mod kubelet;

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use serde_json::Value;

use crate::fake_api::FakeApi;
use crate::fake_api::answer::Seen;
use crate::fake_api::tls::{Tls, authority};
use crate::health::probe_status;
use crate::metrics::Scrape;
use crate::objects::{Objects, SERVICE_PORT, Service};
use crate::proxy::{LONG, Proxy};
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Case, Fabric, Namespace, World, eventually};

matrix!(a_kubeadm_daemonset_starts_it);

/// The fake API server on node A, with TLS in front of it.
struct ControlPlane {
    api: FakeApi,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    front: Option<JoinHandle<()>>,
}

impl ControlPlane {
    fn start(world: &World, objects: &Objects) -> ControlPlane {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (report, started) = channel();
        let items = objects.items();
        let front = world.node.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let api = FakeApi::start(items);
                let tls = Tls::start(&api, "one").await;
                report.send((tls.address, api)).unwrap();
                let _ = stopped.await;
            });
        });
        let (address, api) = started.recv().unwrap();
        ControlPlane { api, address, stop: Some(stop), front: Some(front) }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.front.take().unwrap().join();
    }
}

fn a_kubeadm_daemonset_starts_it(case: Case) {
    let world = case.world(Fabric::Bridge, 2, 1);
    let web = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let control_plane = ControlPlane::start(&world, &Objects::new([web.clone()]));
    let api = &control_plane.api;
    api.require_token("the-first-token");

    let mut config_map = kubelet::manifest("kubeadm/configmap.yaml", "ConfigMap");
    set_server(&mut config_map, control_plane.address);
    let account = kubelet::service_account(&world, &authority("one"), "the-first-token");
    let daemonset = kubelet::manifest("kubeadm/daemonset.yaml", "DaemonSet");
    let proxy = kubelet::start(&world, &daemonset, &config_map, &account);

    reachable(&world, &proxy, &web);
    assert_eq!(tokens(api), ["Bearer the-first-token"]);
    // The default addresses, which the zero values of the ConfigMap stand for.
    assert_eq!(["/livez", "/healthz"].map(|path| probe_status(&world, path)), [200, 200]);

    // The kubelet writes a new token, and the old one expires.
    let files = [("ca.crt", &*authority("one")), ("namespace", "kube-system"), ("token", "the-second-token")];
    account.publish(&files);
    api.require_token("the-second-token");
    api.close_watches();
    let more = Service::new(&world, "more", 2, &["a0", "b0"]).outside(2);
    Objects::new([more.clone()]).items().into_iter().for_each(|object| api.apply(object));
    reachable(&world, &proxy, &more);
    reachable(&world, &proxy, &web);
    assert_eq!(tokens(api), ["Bearer the-first-token", "Bearer the-second-token"]);

    // Without the API server, the watches show as dead. What is served goes on, and probes say so.
    let connected = || {
        let scrape = Scrape::take(&world);
        ["Service", "EndpointSlice", "Node"]
            .map(|kind| scrape.get(&format!("ferrule_watch_connected{{kind=\"{kind}\"}}")))
    };
    // They were closed, and each comes back by itself.
    eventually(LONG, "all watches stand", || (connected() == [1.0; 3]).then_some(()));
    api.set_down(true);
    eventually(LONG, "dead watches show", || (connected() == [0.0; 3]).then_some(()));
    assert_eq!(["/livez", "/healthz"].map(|path| probe_status(&world, path)), [200, 200]);
    reachable(&world, &proxy, &web);
    api.set_down(false);
    eventually(LONG, "the watches stand again", || (connected() == [1.0; 3]).then_some(()));

    let beyond: Vec<_> = api.requests().into_iter().filter(|seen| !node_proxier_may(seen)).collect();
    assert!(beyond.is_empty(), "not in the role system:node-proxier: {beyond:?}");
    proxy.terminate();
}

/// Points the kubeconfig of the ConfigMap to the fake API server, and changes nothing else.
fn set_server(config_map: &mut Value, address: SocketAddr) {
    let kubeconfig = config_map["data"]["kubeconfig.conf"].as_str().unwrap();
    let server = "https://control-plane.example:6443";
    assert_eq!(kubeconfig.matches(server).count(), 1, "{kubeconfig}");
    config_map["data"]["kubeconfig.conf"] = kubeconfig.replace(server, &format!("https://{address}")).into();
}

/// Waits until a Service answers at each of its addresses, from inside and from outside.
#[track_caller]
fn reachable(world: &World, proxy: &Proxy<'_>, service: &Service) {
    let family = world.family();
    let outside = [
        SocketAddr::new(family.node(), service.node_port.unwrap()),
        SocketAddr::new(service.load_balancers[0], SERVICE_PORT),
        SocketAddr::new(service.external_ips[0], SERVICE_PORT),
    ];
    let inside = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
    let pod = &world.pod("a1").netns;
    let ways: Vec<(&Namespace, SocketAddr)> =
        [(pod, inside), (&world.node, inside)].into_iter().chain(outside.map(|to| (&world.client, to))).collect();
    for proto in Proto::SOCKETS {
        for (from, to) in &ways {
            let what = format!("{} answers {} at {to}, {proto:?}", service.name, from.name());
            let answer = eventually(LONG, &what, || {
                assert!(proxy.running(), "it ended, see its log");
                let outcome = Call::new(proto, *to).impatient().make_in(from);
                matches!(outcome, Outcome::Answer(_)).then_some(outcome)
            });
            assert!(["a0", "b0"].contains(&answer.endpoint().unwrap()), "{what}: {answer}");
        }
    }
}

/// The credentials of all requests, in order, repetitions left out; none may come without.
fn tokens(api: &FakeApi) -> Vec<String> {
    let mut seen: Vec<_> = api.requests().into_iter().map(|seen| seen.authorization.unwrap_or_default()).collect();
    seen.dedup();
    seen
}

/// Whether the ClusterRole that every API server has for kube-proxy allows a request.
fn node_proxier_may(seen: &Seen) -> bool {
    const LISTED: [&str; 4] = [
        "/api/v1/nodes",
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/networking.k8s.io/v1/servicecidrs",
    ];
    let path = seen.path.as_str();
    match seen.method.as_str() {
        "GET" => LISTED.contains(&path) || path.strip_prefix("/api/v1/nodes/").is_some_and(|name| !name.contains('/')),
        "POST" | "PATCH" | "PUT" => {
            let begins = ["/api/v1/namespaces/", "/apis/events.k8s.io/v1/namespaces/"];
            let rest = begins.iter().find_map(|begin| path.strip_prefix(begin));
            rest.and_then(|rest| rest.split('/').nth(1)) == Some("events")
        }
        _ => false,
    }
}
