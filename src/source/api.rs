//! An API server as the source: Services, EndpointSlices and the one Node, listed and watched.
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
mod liveness;
mod outage;
mod proxy;
mod request;
mod target;
mod watch;

pub use connection::{Connection, ConnectionError, Settings};
pub use liveness::{Liveness, WatchState};

use self::request::Resource;
use self::watch::Watch;
use super::Events;

/// Lists and watches all kinds and sends what there is to know. Ends only when the receiver is
/// gone: every failure is logged and tried again.
pub async fn run(connection: &Connection, node_name: &str, events: Events) {
    let watch = |resource| Watch::new(connection, resource, node_name, events.clone()).run();
    let watches = async {
        tokio::join!(watch(Resource::node(node_name)), watch(Resource::services()), watch(Resource::endpoint_slices()))
    };
    tokio::select! {
        _ = watches => {}
        () = events.closed() => {}
    }
}
