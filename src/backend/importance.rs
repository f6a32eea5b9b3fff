//! Which Service ports are written first, where there are many.

use std::collections::BTreeSet;

use crate::model::{ServiceName, ServicePortName};

/// Rank of Services whose loss would stop everything else: the API server's, and DNS.
pub const IMPORTANT: u8 = 1;
/// Rank of those that changed last: they may be out of date.
pub const RECENT: u8 = 2;

/// Rank of a Service port: lower ones are written first.
pub fn importance(name: &ServicePortName, recent: &BTreeSet<ServiceName>) -> u8 {
    match (&*name.service.namespace, &*name.service.name, &*name.port) {
        ("default", "kubernetes", _) => 0,
        ("kube-system", service, _) if service.contains("dns") => IMPORTANT,
        (_, _, "dns" | "dns-tcp") => IMPORTANT,
        _ if recent.contains(&name.service) => RECENT,
        _ => 3,
    }
}
