//! The API server as a source, against a fake one.

mod connecting;
mod events;
mod follower;
mod listing;
mod recorded;
pub(crate) mod server;
mod trouble;
mod watching;
