//! The addresses of this node's interfaces, and their changes, over rtnetlink.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, MulticastGroup};

use super::Events;
use crate::cluster::Event;

/// Changes come in bursts when an interface is set up: they are read together.
const SETTLE: Duration = Duration::from_millis(50);
/// How long to wait after netlink failed.
const RETRY: Duration = Duration::from_secs(5);

/// Says which addresses there are, at once and after every change. Ends when nobody listens.
pub async fn run(events: Events) {
    let (mut complained, mut heard) = (false, false);
    loop {
        match follow(&events, &mut heard).await {
            Ok(()) => return,
            Err(error) if !complained => {
                complained = true;
                tracing::error!(%error, "cannot read the addresses of this node; node ports may be missing; retrying");
                // Whoever waits for the first word on them shall not wait for ever.
                if !heard && events.send(Event::Addresses([].into())).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "cannot read the addresses of this node"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(events: &Events, heard: &mut bool) -> Result<(), rtnetlink::Error> {
    let failed = |error: std::io::Error| rtnetlink::Error::NamespaceError(error.to_string());
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = rtnetlink::new_multicast_connection(&groups).map_err(failed)?;
    let connection = tokio::spawn(connection);
    let result = async {
        loop {
            let addresses: Vec<IpAddr> = list(&handle).await?.into_iter().collect();
            if events.send(Event::Addresses(addresses.into())).await.is_err() {
                return Ok(());
            }
            *heard = true;
            if changes.next().await.is_none() {
                return Err(rtnetlink::Error::RequestFailed);
            }
            tokio::time::sleep(SETTLE).await;
            while futures::FutureExt::now_or_never(changes.next()).flatten().is_some() {}
        }
    }
    .await;
    connection.abort();
    result
}

async fn list(handle: &Handle) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
    let mut addresses = BTreeSet::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        // On a point-to-point link `Address` is the other end and `Local` this one.
        let mut local = None;
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        addresses.extend(local.or(address));
    }
    Ok(addresses)
}
