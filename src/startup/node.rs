//! Waiting for the Node object, which says what addresses this node has and which are its pods'.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::cluster::Event;
use crate::model::{Kind, Node};
use crate::sync::notice::{Notice, Observer};

/// How long a Node may be without addresses before we go on without them. (kube-proxy: the same.)
pub const ADDRESS_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may be without pod CIDRs after that, where rules depend on them. (kube-proxy: the same.)
pub const POD_CIDR_PATIENCE: Duration = Duration::from_secs(300);
/// How often the log says what is waited for.
const REMINDER: Duration = Duration::from_secs(15);

/// What is waited for once the source has said whether there is a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Addresses, for so long; they can be done without.
    pub addresses: Duration,
    /// Pod CIDRs, for so long; without them it is an error. `None` if nobody asks for them.
    pub pod_cidrs: Option<Duration>,
}

/// What was said until then.
#[derive(Debug, Default)]
pub struct Early {
    /// The Node, if there is one.
    pub node: Option<Arc<Node>>,
    /// All events, in order: for the loop that comes after.
    pub events: Vec<Event>,
    synced: bool,
}

/// Why rules cannot be made for this node. (kube-proxy: these messages.)
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no such Node.
    #[error("timeout waiting for node \"{0}\" to exist")]
    NoNode(Arc<str>),
    /// Nobody gave it pod CIDRs.
    #[error("timeout waiting for PodCIDR allocation on node \"{0}\"")]
    NoPodCidrs(Arc<str>),
}

/// Waits until the source has listed the Node, however long that takes, and then for what is needed
/// of it.
pub async fn wait(events: &mut mpsc::Receiver<Event>, name: &Arc<str>, needs: Needs) -> Result<Early, NodeError> {
    let mut early = Early::default();
    early.until(events, "the Node object", name, |early| early.synced).await;
    let has_addresses = |early: &Early| early.node.as_ref().is_some_and(|node| !node.addresses.is_empty());
    if !has_addresses(&early) && !needs.addresses.is_zero() {
        tracing::info!(node = %name, seconds = needs.addresses.as_secs(), "waiting for addresses of the node");
        let wait = early.until(events, "addresses of the node", name, has_addresses);
        let _ = timeout(needs.addresses, wait).await;
    }
    match &early.node {
        Some(node) if has_addresses(&early) => {
            tracing::info!(NodeIPs = ?node.addresses, "Successfully retrieved NodeIPs");
        }
        Some(_) => tracing::error!(node = %name, "the Node object has no InternalIP or ExternalIP; going on without"),
        None => {
            tracing::error!(node = %name, "there is no such Node object; going on without: is --hostname-override right?");
        }
    }
    let Some(patience) = needs.pod_cidrs else { return Ok(early) };
    let has_pod_cidrs = |early: &Early| early.node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
    if !has_pod_cidrs(&early) {
        let seconds = patience.as_secs();
        tracing::info!(node = %name, seconds, "waiting for spec.podCIDRs of the node (detectLocalMode: NodeCIDR)");
        let wait = early.until(events, "spec.podCIDRs of the node (detectLocalMode: NodeCIDR)", name, has_pod_cidrs);
        let _ = timeout(patience, wait).await;
    }
    match &early.node {
        Some(_) if has_pod_cidrs(&early) => Ok(early),
        Some(_) => Err(NodeError::NoPodCidrs(name.clone())),
        None => Err(NodeError::NoNode(name.clone())),
    }
}

// === impl Early ===

impl Early {
    /// Takes events in until it is `enough`, or no more can come.
    async fn until(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        what: &str,
        name: &str,
        enough: impl Fn(&Early) -> bool,
    ) {
        let begin = Instant::now();
        let mut reminder = interval_at(begin + REMINDER, REMINDER);
        reminder.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !enough(self) {
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.take(event);
                }
                _ = reminder.tick() => {
                    tracing::info!(node = name, seconds = begin.elapsed().as_secs(), "waiting for {what}; rules stay as they are");
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match &event {
            // A deletion changes nothing: the last known object stands. (kube-proxy: the same.)
            Event::Node(node) => self.node = Some(node.clone()),
            Event::Synced(Kind::Node) => self.synced = true,
            _ => {}
        }
        self.events.push(event);
    }
}

/// Says in the log what becomes of the Node. Rules follow it while we run: kube-proxy keeps the
/// addresses it found at its start, and ends when pod CIDRs change in NodeCIDR mode.
#[derive(Debug)]
pub struct NodeLog {
    node: Option<Arc<Node>>,
}

// === impl NodeLog ===

impl NodeLog {
    /// Compares with the Node as it was at the start.
    pub fn new(node: Option<Arc<Node>>) -> NodeLog {
        NodeLog { node }
    }
}

impl Observer for NodeLog {
    fn notice(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Event { event: Event::Node(node), .. } => {
                for remark in self.node.iter().flat_map(|old| remarks(old, node)) {
                    tracing::warn!(node = %node.name, "{remark}");
                }
                self.node = Some(node.clone());
            }
            Notice::Event { event: Event::Deleted(object), .. } if object.kind == Kind::Node => {
                tracing::warn!(%object, "the Node object was deleted; rules stay as it said last");
            }
            _ => {}
        }
    }
}

/// What is worth saying of a change.
fn remarks(old: &Node, new: &Node) -> Vec<String> {
    let ips = |node: &Node| node.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let nets = |node: &Node| node.pod_cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
    let changed = |what: &str, old: String, new: String| {
        // Nothing is no reason to change rules: `ClusterState` keeps what there was.
        let consequence = if new.is_empty() { "rules stay as they are" } else { "rules follow" };
        (old != new).then(|| format!("{what} changed from [{old}] to [{new}]; {consequence}"))
    };
    let addresses = changed("addresses of the node", ips(old), ips(new));
    addresses.into_iter().chain(changed("pod CIDRs of the node", nets(old), nets(new))).collect()
}

#[cfg(test)]
mod tests;
