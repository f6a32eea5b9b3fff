//! Who plays: names and addresses of the demo, and its manifests. The same numbers stand in
//! `examples/`, which are written for readers.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::ProxyMode;
use crate::net::IpFamily;

/// Pods behind the Service, at most: web-1 and so on.
pub(super) const PODS: usize = 4;
/// How many of them are endpoints at first, as in `examples/manifests/endpoints.yaml`.
pub(super) const FIRST: usize = 2;
/// Port on which a pod answers.
pub(super) const POD_PORT: u16 = 8080;

/// The proxy's configuration, for another mode.
const CONFIG: &str = include_str!("../../../examples/config.yaml");
/// The Node and the Service.
pub(super) const MANIFESTS: [(&str, &str); 2] = [
    ("node.yaml", include_str!("../../../examples/manifests/node.yaml")),
    ("service.yaml", include_str!("../../../examples/manifests/service.yaml")),
];
/// File with the endpoints, which change.
pub(super) const ENDPOINTS: &str = "endpoints.yaml";

/// The proxy's configuration.
pub(super) fn config(mode: ProxyMode) -> String {
    CONFIG.replace("mode: iptables", &format!("mode: {mode}"))
}

/// Addresses of one participant, for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// IPv4.
    pub(super) v4: Ipv4Addr,
    /// IPv6.
    pub(super) v6: Ipv6Addr,
}

/// The node, as the client sees it.
pub(super) const NODE: Addresses = addresses([192, 0, 2, 1], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
/// The client outside the cluster.
pub(super) const CLIENT: Addresses = addresses([192, 0, 2, 2], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]);
/// The node, as its pods see it.
pub(super) const GATEWAY: Addresses = addresses([10, 244, 0, 1], [0xfe80, 0, 0, 0, 0, 0, 0, 1]);
/// The pod from which the ClusterIP is called.
pub(super) const CALLER: Addresses = pod(0);

const CLUSTER_IP: Addresses = addresses([10, 96, 0, 80], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x80]);
const LOAD_BALANCER: Addresses = addresses([203, 0, 113, 80], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x80]);
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

/// A kind of address a Service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For pods.
    ClusterIp,
    /// A port of the node, for anybody.
    NodePort,
    /// An address that a router outside leads to the node.
    LoadBalancer,
}

/// An address of the Service, to which connections are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frontend {
    /// Kind of address.
    pub(super) kind: Kind,
    /// Its family.
    pub(super) family: IpFamily,
    /// The address.
    pub(super) address: SocketAddr,
}

// === impl Addresses ===

const fn addresses(v4: [u8; 4], v6: [u16; 8]) -> Addresses {
    let [a, b, c, d] = v4;
    let [e, f, g, h, i, j, k, l] = v6;
    Addresses { v4: Ipv4Addr::new(a, b, c, d), v6: Ipv6Addr::new(e, f, g, h, i, j, k, l) }
}

/// Addresses of a pod: web-1 is 1. IPv6 addresses are those of IPv4 to the reader, not to the bit.
pub(super) const fn pod(number: u8) -> Addresses {
    addresses([10, 244, 0, 10 + number], [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0x10 + number as u16])
}

impl Addresses {
    fn of(self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => self.v4.into(),
            IpFamily::V6 => self.v6.into(),
        }
    }
}

// === impl Kind ===

impl Kind {
    /// As in a Service's `type`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::LoadBalancer => "LoadBalancer",
        }
    }
}

/// The Service's addresses.
pub(super) fn frontends(families: &[IpFamily]) -> Vec<Frontend> {
    let kinds = [
        (Kind::ClusterIp, CLUSTER_IP, PORT),
        (Kind::NodePort, NODE, NODE_PORT),
        (Kind::LoadBalancer, LOAD_BALANCER, PORT),
    ];
    let of_kind = |(kind, addresses, port): (Kind, Addresses, u16)| {
        let address = move |family: IpFamily| SocketAddr::new(addresses.of(family), port);
        families.iter().map(move |&family| Frontend { kind, family, address: address(family) })
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

/// Name of a pod by its number.
pub(super) fn pod_name(number: usize) -> String {
    format!("web-{number}")
}

/// The manifest that makes the first so many pods endpoints of the Service.
pub(super) fn endpoints(count: usize) -> String {
    let mut text = String::from(
        "# The endpoints of the Service, as the control plane writes them down: one list per IP family.\n",
    );
    for (family, label) in [(IpFamily::V4, "ipv4"), (IpFamily::V6, "ipv6")] {
        if family == IpFamily::V6 {
            text.push_str("---\n");
        }
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{label}\n  namespace: demo\n  labels:\n    \
             kubernetes.io/service-name: web\naddressType: {family}\nports:\n- name: http\n  protocol: TCP\n  port: {POD_PORT}\nendpoints:{}\n",
            if count == 0 { " []" } else { "" },
        );
        for number in (1..=u8::MAX).take(count) {
            let _ = write!(
                text,
                "- addresses: [\"{}\"]\n  nodeName: demo-node\n  conditions: {{ready: true, serving: true, terminating: false}}\n",
                pod(number).of(family),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_hold_the_same_numbers() {
        assert_eq!(endpoints(FIRST), include_str!("../../../examples/manifests/endpoints.yaml"));
        let [(_, node), (_, service)] = MANIFESTS;
        for frontend in frontends(&[IpFamily::V4, IpFamily::V6]) {
            let (ip, port) = (frontend.address.ip(), frontend.address.port());
            let is_there = match frontend.kind {
                Kind::ClusterIp => {
                    service.contains(&format!("\n  - {ip}\n")) && service.contains(&format!(" port: {port}\n"))
                }
                Kind::NodePort => {
                    node.contains(&format!("address: {ip}\n")) && service.contains(&format!("nodePort: {port}\n"))
                }
                Kind::LoadBalancer => service.contains(&format!("- ip: {ip}\n")),
            };
            assert!(is_there, "{frontend:?}");
        }
        assert!(service.contains(&format!("targetPort: {POD_PORT}\n")));
    }

    #[test]
    fn no_endpoints_is_an_empty_list() {
        assert_eq!(endpoints(0).matches("endpoints: []\n").count(), 2);
        assert_eq!(endpoints(PODS).matches("- addresses:").count(), 2 * PODS);
    }
}
