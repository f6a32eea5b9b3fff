//! The network of the demo: a client, a node, and pods on it.
//!
//! ```text
//! client eth0 --- uplink node web-1 --- eth0 web-1      (veth pairs)
//!                             ...
//!                             caller -- eth0 caller
//! ```

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::namespace::Namespace;
use super::processors::Processors;
use super::scene::{self, Addresses, CALLER, CLIENT, GATEWAY, NODE, PODS};
use crate::net::IpFamily;

/// The node's link to the client.
pub(super) const UPLINK: &str = "uplink";
/// The node's link to the pod that calls.
pub(super) const CALLER_LINK: &str = "caller";

/// The namespaces.
pub(super) struct Network {
    /// Outside the cluster.
    pub(super) client: Namespace,
    /// Where the proxy runs.
    pub(super) node: Namespace,
    /// A pod that calls others.
    pub(super) caller: Namespace,
    /// Pods that answer, web-1 first.
    pub(super) pods: Vec<Namespace>,
}

// === impl Network ===

impl Network {
    /// Makes the namespaces and the links between them, with addresses of these families.
    pub(super) async fn make(families: &[IpFamily]) -> anyhow::Result<Network> {
        let (client, node, caller) =
            (Namespace::make("client").await?, Namespace::make("node").await?, Namespace::make("caller").await?);
        let mut pods = Vec::new();
        for number in 1..=PODS {
            pods.push(Namespace::make(&scene::pod_name(number)).await?);
        }

        let mut commands = format!(
            "link set lo up\n\
             link add {UPLINK} type veth peer name eth0 netns {}\n\
             addr add {}/24 dev {UPLINK}\n\
             addr add {}/64 dev {UPLINK} nodad\n\
             link set {UPLINK} up\n\
             route add default via {}\n\
             route add default via {}\n",
            client.name(),
            NODE.v4,
            NODE.v6,
            CLIENT.v4,
            CLIENT.v6,
        );
        // Writing to a String cannot fail.
        for (link, namespace, addresses) in with_links(&caller, &pods) {
            let _ = write!(
                commands,
                "link add {link} type veth peer name eth0 netns {}\n\
                 addr add {} peer {} dev {link}\n\
                 addr add {}/64 dev {link} nodad\n\
                 link set {link} up\n\
                 route add {}/128 dev {link}\n",
                namespace.name(),
                GATEWAY.v4,
                addresses.v4,
                GATEWAY.v6,
                addresses.v6,
            );
        }
        node.ip(&only(families, &commands)).await?;
        let own = families.to_vec();
        node.within(move || forward(&own)).await?.context("letting the node forward packets")?;

        if let Some(processors) = Processors::choose() {
            processors.receive(node.name()).await;
        }

        let commands = end(&format!("{}/24", CLIENT.v4), &format!("{}/64", CLIENT.v6), NODE);
        client.ip(&only(families, &commands)).await?;
        for (_, namespace, own) in with_links(&caller, &pods) {
            let v4 = format!("{} peer {}", own.v4, GATEWAY.v4);
            let commands = end(&v4, &format!("{}/128", own.v6), GATEWAY);
            namespace.ip(&only(families, &commands)).await?;
        }
        Ok(Network { client, node, caller, pods })
    }
}

/// Pods with the names of the node's links to them, and their addresses.
fn with_links<'a>(
    caller: &'a Namespace,
    pods: &'a [Namespace],
) -> impl Iterator<Item = (String, &'a Namespace, Addresses)> {
    let answering =
        (1..=u8::MAX).zip(pods).map(|(number, pod)| (scene::pod_name(number.into()), pod, scene::pod(number)));
    std::iter::once((CALLER_LINK.to_owned(), caller, CALLER)).chain(answering)
}

/// What the far end of a link to the node needs.
fn end(v4: &str, v6: &str, gateway: Addresses) -> String {
    format!(
        "link set lo up\n\
         addr add {v4} dev eth0\n\
         addr add {v6} dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {}\n\
         route add default via {} dev eth0\n",
        gateway.v4, gateway.v6
    )
}

/// Those of the commands that concern these families; the other ones fail if the kernel lacks it.
fn only(families: &[IpFamily], commands: &str) -> String {
    let is_v6 = |line: &str| line.contains("::");
    let kept = commands.lines().filter(|line| families.contains(&IpFamily::V6) || !is_v6(line));
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// Lets a node forward packets, and refuse them as often as needed: the kernel would leave most of a
/// quick succession of refusals unsent. Settings are those of the thread's namespace.
fn forward(families: &[IpFamily]) -> std::io::Result<()> {
    let set = |(name, value): (&str, &str)| fs::write(Path::new("/proc/sys/net").join(name), value);
    [("ipv4/ip_forward", "1"), ("ipv4/icmp_ratemask", "0")].into_iter().try_for_each(set)?;
    if families.contains(&IpFamily::V6) {
        // Without the type "destination unreachable", which is 1.
        let limited = [("ipv6/conf/all/forwarding", "1"), ("ipv6/icmp/ratemask", "0,3-127")];
        limited.into_iter().try_for_each(set)?;
    }
    Ok(())
}
