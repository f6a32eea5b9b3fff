//! The cluster that is served: objects as a real API server writes them, with all that a proxy does
//! not read (managed fields, owner references, labels), because it must skip that, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

/// The node on which the proxy runs.
pub const NODE: &str = "node-000";
/// Its address, where the endpoint of `default/kubernetes` is.
pub const NODE_IP: &str = "192.0.2.10";
/// Where all endpoints are. The whole of it is local in the namespace of a run.
pub const PODS: &str = "10.128.0.0/9";
/// Where cluster IPs are.
pub const SERVICES: &str = "10.96.0.0/12";
/// Port of every endpoint.
pub const POD_PORT: u16 = 8080;
/// Endpoints in a slice: what the endpoints controller makes of many.
const SLICE: usize = 100;
/// Nodes over which endpoints are spread.
const NODES: usize = 50;
/// Endpoints of the Service of which all endpoints are replaced, slice by slice.
pub const BIG: usize = 1_000;

/// Services with so many endpoints each, beside `default/kubernetes`, `kube-system/kube-dns` and a
/// Service that is added while others change.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub services: usize,
    dual_stack: bool,
    /// Endpoints as they are now, by Service: numbers of addresses.
    now: Vec<Vec<u32>>,
    fresh: u32,
}

/// An EndpointSlice of a Service: what a watch event is made of.
pub struct Slice {
    pub name: String,
    pub object: Value,
}

/// The cluster IP of `default/kubernetes`.
pub const KUBERNETES: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 1), 443);
/// That of `kube-system/kube-dns`.
pub const DNS: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 10), 53);
/// That of the Service with [`BIG`] endpoints.
pub const BIG_IP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 0, 100), 80);

/// Numbers of addresses from here on are given to endpoints that replace others.
const FRESH: u32 = 0x48_0000;
/// Where those of the big Service begin.
const BIG_FIRST: u32 = 0x52_0000;
/// Where those of the others begin.
const FIRST: u32 = 0x100;

/// The address of an endpoint with this number.
pub fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a80_0000 + number)
}

fn pod_v6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits((0xfd00_0128_u128 << 96) + u128::from(number))
}

/// The cluster IP of a Service, counted from 0.
pub fn cluster_ip(service: usize) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from_bits(0x0a60_0100 + u32::try_from(service).unwrap()), 80)
}

fn cluster_ip_v6(service: usize) -> Ipv6Addr {
    Ipv6Addr::from_bits((0xfd00_0096_u128 << 96) + 0x100 + service as u128)
}

// === impl Cluster ===

impl Cluster {
    pub fn new(services: usize, endpoints: usize, dual_stack: bool) -> Cluster {
        let count = u32::try_from(endpoints).unwrap();
        let all = |service: u32| (0..count).map(|n| FIRST + service * count + n).collect();
        let now = (0..u32::try_from(services).unwrap()).map(all).collect();
        Cluster { services, dual_stack, now, fresh: FRESH }
    }

    /// Name of a Service.
    pub fn name(service: usize) -> String {
        format!("service-{service:05}")
    }

    /// What it is called with its namespace.
    pub fn key(service: usize) -> String {
        format!("{}/{}", namespace(service), Cluster::name(service))
    }

    /// Addresses of the endpoints a Service has now.
    pub fn pods(&self, service: usize) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.now[service].iter().map(|number| pod(*number))
    }

    /// Every Service.
    pub fn service_objects(&self) -> Vec<(String, Value)> {
        let mut all = vec![
            service("default", "kubernetes", &[KUBERNETES.0.into()], &[("https", "TCP", 443, 6443)], 0),
            service(
                "kube-system",
                "kube-dns",
                &[DNS.0.into()],
                &[("dns", "UDP", 53, 53), ("dns-tcp", "TCP", 53, 53), ("metrics", "TCP", 9153, 9153)],
                1,
            ),
        ];
        for number in 0..self.services {
            let mut ips = vec![IpAddr::V4(cluster_ip(number).0)];
            if self.dual_stack {
                ips.push(cluster_ip_v6(number).into());
            }
            let name = Cluster::name(number);
            all.push(service(&namespace(number), &name, &ips, &[("http", "TCP", 80, POD_PORT)], number + 10));
        }
        all
    }

    /// Every EndpointSlice.
    pub fn slice_objects(&self) -> Vec<(String, Value)> {
        let node: IpAddr = NODE_IP.parse().unwrap();
        let mut all = vec![
            slice("default", "kubernetes", "kubernetes", "kubernetes", &[("https", "TCP", 6443)], &[(0, node)]),
            slice(
                "kube-system",
                "kube-dns",
                "kube-dns-x7k2p",
                "kube-dns-7d9f5c6b84",
                &[("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("metrics", "TCP", 9153)],
                &[(2, pod(2).into()), (3, pod(3).into())],
            ),
        ];
        all.extend((0..self.services).flat_map(|number| self.slices(number)).map(|slice| (slice.name, slice.object)));
        all
    }

    /// The slices of a Service as they are now, IPv4 first.
    pub fn slices(&self, service: usize) -> Vec<Slice> {
        let mut slices = Vec::new();
        for v6 in [false, true].into_iter().take(if self.dual_stack { 2 } else { 1 }) {
            for (at, chunk) in self.now[service].chunks(SLICE).enumerate() {
                slices.push(self.slice(service, at, v6, chunk));
            }
        }
        slices
    }

    fn slice(&self, service: usize, at: usize, v6: bool, numbers: &[u32]) -> Slice {
        let (name, family) = (Cluster::name(service), if v6 { "6" } else { "4" });
        let ips: Vec<(u32, IpAddr)> =
            numbers.iter().map(|n| (*n, if v6 { pod_v6(*n).into() } else { pod(*n).into() })).collect();
        let (name, object) = slice(
            &namespace(service),
            &name,
            &format!("{name}-v{family}x{at}"),
            &format!("{name}-6c8d5f7b9c"),
            &[("http", "TCP", POD_PORT)],
            &ips,
        );
        Slice { name, object }
    }

    /// Replaces one endpoint in the first slice of a Service: the slice, and the address of what is new.
    pub fn replace_one(&mut self, service: usize) -> (Slice, Ipv4Addr) {
        let number = self.fresh;
        self.fresh += 1;
        let endpoints = &mut self.now[service];
        let at = number as usize % endpoints.len().min(SLICE);
        endpoints[at] = number;
        let chunk = &self.now[service][..self.now[service].len().min(SLICE)];
        (self.slice(service, 0, false, chunk), pod(number))
    }

    /// The Service with many endpoints.
    pub fn big_service() -> (String, Value) {
        service("default", "big", &[BIG_IP.0.into()], &[("http", "TCP", 80, POD_PORT)], 5)
    }

    /// One of its slices, and the addresses of its endpoints; `generation` tells those from the ones
    /// they replace.
    pub fn big_slice(at: usize, generation: u32) -> (Slice, Vec<Ipv4Addr>) {
        let first = BIG_FIRST + generation * 0x1000 + u32::try_from(at * SLICE).unwrap();
        let numbers: Vec<u32> = (first..first + u32::try_from(SLICE).unwrap()).collect();
        let ips: Vec<(u32, IpAddr)> = numbers.iter().map(|n| (*n, pod(*n).into())).collect();
        let ports = [("http", "TCP", POD_PORT)];
        let (name, object) = slice("default", "big", &format!("big-{at:02}"), "big-5b6c7d8f9", &ports, &ips);
        (Slice { name, object }, numbers.into_iter().map(pod).collect())
    }
}

fn namespace(service: usize) -> String {
    format!("team-{:02}", service % 20)
}

fn uid(kind: u32, number: usize) -> String {
    format!("{kind:08x}-5a1f-4c3e-9b7d-{number:012x}")
}

/// The node.
pub fn node() -> (String, Value) {
    let object = json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": NODE,
            "uid": uid(3, 0),
            "creationTimestamp": "2026-01-12T09:14:31Z",
            "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "zone-0"},
        },
        "spec": {"podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}, {"type": "Hostname", "address": NODE}]},
    });
    (NODE.to_owned(), object)
}

/// A Service: its key and the object. `ports`: name, protocol, port, target port.
fn service(
    namespace: &str,
    name: &str,
    ips: &[IpAddr],
    ports: &[(&str, &str, u16, u16)],
    number: usize,
) -> (String, Value) {
    let families: Vec<&str> = ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, protocol, port, target)| {
            json!({"name": name, "protocol": protocol, "port": port, "targetPort": target})
        })
        .collect();
    let object = json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid(1, number),
            "creationTimestamp": "2026-01-12T09:14:31Z",
            "labels": {
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/instance": format!("{name}-production"),
                "app.kubernetes.io/version": "4.17.2",
                "app.kubernetes.io/managed-by": "Helm",
                "helm.sh/chart": format!("{name}-1.9.4"),
            },
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace},
            "managedFields": [{
                "manager": "helm", "operation": "Update", "apiVersion": "v1", "time": "2026-01-12T09:14:31Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {
                        "f:annotations": {".": {}, "f:meta.helm.sh/release-name": {}, "f:meta.helm.sh/release-namespace": {}},
                        "f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:app.kubernetes.io/instance": {},
                            "f:app.kubernetes.io/version": {}, "f:app.kubernetes.io/managed-by": {}, "f:helm.sh/chart": {}},
                    },
                    "f:spec": {
                        "f:internalTrafficPolicy": {},
                        "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {},
                            "f:protocol": {}, "f:targetPort": {}}},
                        "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
                    },
                },
            }],
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families,
            "ipFamilyPolicy": if ips.len() == 1 { "SingleStack" } else { "RequireDualStack" },
            "ports": ports, "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app.kubernetes.io/name": name, "app.kubernetes.io/instance": format!("{name}-production")},
        },
        "status": {"loadBalancer": {}},
    });
    (format!("{namespace}/{name}"), object)
}

/// An EndpointSlice: its key and the object. `pods` begins the names of the pods.
fn slice(
    namespace: &str,
    service: &str,
    name: &str,
    pods: &str,
    ports: &[(&str, &str, u16)],
    endpoints: &[(u32, IpAddr)],
) -> (String, Value) {
    let v4 = endpoints.first().is_none_or(|(_, ip)| ip.is_ipv4());
    let ports: Vec<Value> =
        ports.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).collect();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(number, ip)| {
            let on = *number as usize % NODES;
            json!({
                "addresses": [ip],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {
                    "kind": "Pod", "namespace": namespace, "name": format!("{pods}-{number:05x}"),
                    "uid": uid(4, *number as usize),
                },
                "nodeName": format!("node-{on:03}"),
                "zone": format!("zone-{}", on % 3),
            })
        })
        .collect();
    let object = json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": name,
            "generateName": format!("{service}-"),
            "namespace": namespace,
            "uid": uid(2, endpoints.len()),
            "generation": 7,
            "creationTimestamp": "2026-01-12T09:14:31Z",
            "labels": {
                "app.kubernetes.io/name": service,
                "app.kubernetes.io/managed-by": "Helm",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-12T09:14:33Z"},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "uid": uid(1, 0),
                "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": [{
                "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "discovery.k8s.io/v1",
                "time": "2026-01-12T09:14:33Z", "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:addressType": {}, "f:endpoints": {},
                    "f:metadata": {
                        "f:annotations": {".": {}, "f:endpoints.kubernetes.io/last-change-trigger-time": {}},
                        "f:generateName": {},
                        "f:labels": {".": {}, "f:app.kubernetes.io/managed-by": {}, "f:app.kubernetes.io/name": {},
                            "f:endpointslice.kubernetes.io/managed-by": {}, "f:kubernetes.io/service-name": {}},
                        "f:ownerReferences": {".": {}, "k:{\"uid\":\"00000001-5a1f-4c3e-9b7d-000000000000\"}": {}},
                    },
                    "f:ports": {},
                },
            }],
        },
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": ports,
    });
    (format!("{namespace}/{name}"), object)
}
