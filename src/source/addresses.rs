//! The addresses of this node's interfaces, and their changes, over rtnetlink.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, MulticastGroup};

use super::Events;
use crate::cluster::Event;

/// Changes come in bursts when an interface is set up: they are read together.
const SETTLE: Duration = Duration::from_millis(50);
/// How long to wait after netlink failed.
const RETRY: Duration = Duration::from_secs(5);

/// Says which addresses there are, at once and after every change. Those of the link named `without` do not count: it has
/// the addresses of virtual servers. Ends when nobody listens.
pub async fn run(events: Events, without: &str) {
    let (mut complained, mut heard) = (false, false);
    loop {
        match follow(&events, without, &mut heard).await {
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

async fn follow(events: &Events, without: &str, heard: &mut bool) -> Result<(), rtnetlink::Error> {
    let failed = |error: std::io::Error| rtnetlink::Error::NamespaceError(error.to_string());
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = rtnetlink::new_multicast_connection(&groups).map_err(failed)?;
    let connection = tokio::spawn(connection);
    let result = async {
        loop {
            let link = index(&handle, without).await;
            let addresses: Vec<IpAddr> = list(&handle, link).await?.into_iter().collect();
            if events.send(Event::Addresses(addresses.into())).await.is_err() {
                return Ok(());
            }
            *heard = true;
            loop {
                match changes.next().await {
                    None => return Err(rtnetlink::Error::RequestFailed),
                    // They come and go with Services, and may be many: not worth a look at all addresses.
                    Some((message, _)) if link.is_some() && changed_link(&message) == link => {}
                    Some(_) => break,
                }
            }
            tokio::time::sleep(SETTLE).await;
            while futures::FutureExt::now_or_never(changes.next()).flatten().is_some() {}
        }
    }
    .await;
    connection.abort();
    result
}

/// The index of a link, if it is there.
async fn index(handle: &Handle, link: &str) -> Option<u32> {
    // An error is that there is none.
    let found = handle.link().get().match_name(link.to_owned()).execute().try_next().await;
    found.ok().flatten().map(|link| link.header.index)
}

/// The link of which an address has come or gone.
fn changed_link(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<u32> {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        ) => Some(address.header.index),
        _ => None,
    }
}

async fn list(handle: &Handle, without: Option<u32>) -> Result<BTreeSet<IpAddr>, rtnetlink::Error> {
    let mut addresses = BTreeSet::new();
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        if without == Some(message.header.index) {
            continue;
        }
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
