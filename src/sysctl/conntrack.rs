//! Which values the settings of connection tracking are to have.

use std::num::ParseIntError;
use std::time::Duration;

use crate::config::Conntrack;

/// Size of the table's hash, below `/sys`.
pub(super) const HASHSIZE: &str = "module/nf_conntrack/parameters/hashsize";

/// No table is made bigger on account of the number of processors. (kube-proxy: the same limit; it holds
/// against a larger minimum too, if processors alone would exceed it.)
const MAX_BY_CPUS: u64 = 1_048_576;

/// A value to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Name below `/proc/sys`.
    pub(super) name: &'static str,
    pub(super) value: u64,
    /// Entries the hash must have after that.
    pub(super) hashsize: Option<u64>,
    /// What in the configuration makes us leave it alone.
    pub(super) leave_alone: &'static str,
}

/// What to set, in order.
pub(super) fn settings(wanted: &Conntrack, cpus: u32) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(max) = max(wanted, cpus) {
        settings.push(Setting {
            name: "net/netfilter/nf_conntrack_max",
            value: max,
            hashsize: Some(max / 4),
            leave_alone: "conntrack.maxPerCore: 0",
        });
    }
    let mut add = |value: Option<u64>, name, leave_alone| {
        settings.extend(value.map(|value| Setting { name, value, hashsize: None, leave_alone }));
    };
    let seconds = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs());
    add(
        seconds(wanted.tcp_established_timeout),
        "net/netfilter/nf_conntrack_tcp_timeout_established",
        "conntrack.tcpEstablishedTimeout: 0s",
    );
    add(
        seconds(wanted.tcp_close_wait_timeout),
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
        "conntrack.tcpCloseWaitTimeout: 0s",
    );
    add(
        wanted.tcp_be_liberal.then_some(1),
        "net/netfilter/nf_conntrack_tcp_be_liberal",
        "conntrack.tcpBeLiberal: false",
    );
    add(seconds(wanted.udp_timeout), "net/netfilter/nf_conntrack_udp_timeout", "conntrack.udpTimeout: 0s");
    add(
        seconds(wanted.udp_stream_timeout),
        "net/netfilter/nf_conntrack_udp_timeout_stream",
        "conntrack.udpStreamTimeout: 0s",
    );
    settings
}

/// Connections the table is to hold at most; `None` to leave it as it is.
fn max(wanted: &Conntrack, cpus: u32) -> Option<u64> {
    let scaled = u64::from(wanted.max_per_core?) * u64::from(cpus);
    let max = if scaled > MAX_BY_CPUS { MAX_BY_CPUS } else { scaled.max(u64::from(wanted.min)) };
    Some(max).filter(|max| *max > 0)
}

/// Whether a hash has fewer entries than it should.
pub(super) fn is_smaller(present: &str, wanted: u64) -> Result<bool, ParseIntError> {
    Ok(present.trim().parse::<u64>()? < wanted)
}

/// How many numbers a list like `0-3,6` names.
pub(super) fn count_ranges(text: &str) -> Option<u32> {
    text.trim().split(',').try_fold(0u32, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}
