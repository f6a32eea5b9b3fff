//! The API server as a source, against a fake one.

mod connecting;
mod follower;
mod listing;
mod recorded;
pub(crate) mod server;
mod trouble;
mod watching;
