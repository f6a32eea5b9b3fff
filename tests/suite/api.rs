//! The API server as a source, against a fake one.

mod recordings;
pub(crate) mod server;
