//! An API server as the source: Services, EndpointSlices, the one Node and, if wanted, ServiceCIDRs, listed and watched.
//!
//! We drive kube's [`Client`](kube::Client) ourselves rather than through `kube::runtime::watcher`,
//! which cannot do what is needed here: its streaming list begins at version 0 (any replica's cache,
//! so possibly older than what is in the kernel) and has no fallback; its watch timeout is the same
//! for every watch; a server that closes the first watch at once makes it spin; and one broken line
//! or object fails what it came with.
//!
//! A lost server is no news about objects: nothing is sent until it is back. What it sends again
//! then is dropped by [`ClusterState`](crate::cluster::ClusterState) if it is the same.

mod backoff;
mod connection;
mod decode;
mod exchange;
mod limit;
mod liveness;
mod observed;
mod outage;
mod proxy;
mod request;
mod target;
mod watch;

pub use connection::{Connection, ConnectionError, Settings};
pub use limit::Rate;
pub use liveness::{Liveness, WatchState};

use self::request::Resource;
use self::watch::Watch;
use super::Events;
#[cfg(feature = "fixtures")]
use crate::{cluster::Event, model::Kind};

/// What to watch besides Services and EndpointSlices.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// The name of the one Node.
    pub node_name: &'a str,
    /// Whether it is of interest which networks Services get their addresses from. (kube-proxy asks in any mode, and
    /// needs it in nftables mode.)
    pub service_cidrs: bool,
}

/// Lists and watches all kinds and sends what there is to know; Services and EndpointSlices only once
/// `begin` has ended, because they may be many and nobody takes them before. Ends only when the
/// receiver is gone: every failure is logged and tried again.
pub async fn run(connection: &Connection, interest: Interest<'_>, events: Events, begin: impl Future<Output = ()>) {
    let watch = |resource| Watch::new(connection, resource, interest.node_name, events.clone());
    let (services, slices) = (watch(Resource::services()), watch(Resource::endpoint_slices()));
    let others = async {
        begin.await;
        tokio::join!(services.run(), slices.run())
    };
    let node = watch(Resource::node(interest.node_name));
    let service_cidrs = interest.service_cidrs.then(|| watch(Resource::service_cidrs()));
    let service_cidrs = async {
        if let Some(watch) = service_cidrs {
            watch.run().await;
        }
    };
    let watches = async { tokio::join!(node.run(), service_cidrs, others) };
    tokio::select! {
        _ = watches => {}
        () = events.closed() => {}
    }
}

/// What one line of a watch of a kind says; an error if it breaks the watch off.
#[cfg(feature = "fixtures")]
pub fn read_line(kind: Kind, line: &[u8], node_name: &str) -> Result<Vec<Event>, String> {
    match watch::said(kind, line, node_name) {
        Ok(watch::Said::Object(decoded)) => Ok(decoded.events),
        Ok(watch::Said::Bookmark(_)) => Ok(Vec::new()),
        Err(failure) => Err(failure.to_string()),
    }
}

/// What the objects of one page of a list say; an error if the page cannot be used.
#[cfg(feature = "fixtures")]
pub fn read_page(kind: Kind, body: &[u8], node_name: &str) -> Result<Vec<Event>, String> {
    let resource = match kind {
        Kind::Service => Resource::services(),
        Kind::EndpointSlice => Resource::endpoint_slices(),
        Kind::Node => Resource::node(node_name),
        Kind::ServiceCidr => Resource::service_cidrs(),
    };
    let page = watch::page(&resource, body).map_err(|failure| failure.to_string())?;
    let objects = page.items.unwrap_or_default().into_iter();
    Ok(objects.flat_map(|object| decode::object(kind, object, node_name).events).collect())
}
