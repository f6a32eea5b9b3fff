//! Stale UDP flows: what the kernel's connection tracking remembers about a frontend and its endpoint
//! is removed when it no longer agrees with the Plan.
//!
//! The kernel translates the first datagram of a flow by the rules, and all later ones by what it
//! remembers. A client that keeps its source port would go on talking to an endpoint that is gone
//! for as long as it sends. (TCP and SCTP clients notice and connect anew; their flows are left
//! alone, as by kube-proxy.)
//!
//! | UDP flow to a frontend | |
//! |---|---|
//! | sent to an endpoint that is gone or does not serve, or to an old port | deleted |
//! | the same, after the last endpoint of the Service went | deleted; kube-proxy keeps it |
//! | sent to an endpoint through a frontend that is gone: Service deleted, address or node port withdrawn | deleted; kube-proxy keeps it |
//! | not sent to any endpoint, because it is older than the rules | deleted once an endpoint serves |
//! | the same, nowhere to go | kept |
//! | sent to an endpoint that serves, though terminating, on another node, or against a hint | kept |
//! | to a port number that is a node port, but neither to an address with node ports nor translated | kept; kube-proxy deletes it |
//! | to a port number that is a node port, at a Service's own address | by that Service; kube-proxy deletes it |
//!
//! A translated flow to the number of a node port counts as the node port's even if the node does not
//! have that address: it may have had it when the flow began.
//!
//! Flows of a frontend that was withdrawn while no ferrule ran stay: what was translated by whose
//! rules cannot be told from the flow.
//!
//! [`frontends`] decides, and is pure; [`netlink`] reads and deletes; [`reconciler`] joins them to
//! the loop. (kube-proxy: `pkg/proxy/conntrack`; kernel: `nf_conntrack_netlink`.)

pub mod frontends;
pub mod netlink;
pub mod reconciler;

use std::net::SocketAddr;
use std::time::Duration;

use crate::net::IpFamily;
use crate::plan::Backend;

/// What decides about a UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where its sender sends to: the destination in the original direction.
    pub destination: SocketAddr,
    /// Where that leads to: the source in the reply direction. The same, if nothing was translated.
    pub endpoint: Backend,
}

/// What a look through a family's flows came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The family.
    pub family: IpFamily,
    /// How long it took, from the list to the last deletion.
    pub took: Duration,
    /// Flows deleted.
    pub deleted: usize,
}

// === impl Flow ===

impl Flow {
    /// Whether it was sent elsewhere than it was addressed to.
    pub fn is_translated(&self) -> bool {
        (self.endpoint.ip, self.endpoint.port) != (self.destination.ip(), self.destination.port())
    }
}
