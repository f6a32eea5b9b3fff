//! `process_*`: what the kernel says about this process. (Go's client library: `process_collector`.)

use std::fs;

use prometheus::proto::{MetricFamily, MetricType};
use rustix::param::{clock_ticks_per_second, page_size};

use super::sample;

/// Everything that can be read; what cannot is left out.
pub(super) fn families() -> Vec<MetricFamily> {
    let mut found = Vec::new();
    let mut add = |kind, name: &str, help: &str, value: Option<f64>| {
        found.extend(value.map(|value| sample::alone(kind, name, help, value)));
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let netstat = fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    // Numbers of fields are those of proc(5), from 1.
    let field = |number: usize| stat_field(&stat, number);
    let (counter, gauge) = (MetricType::COUNTER, MetricType::GAUGE);
    let ticks = clock_ticks_per_second() as f64;
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks);
    add(counter, "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", cpu);
    let started = field(22).zip(boot_time(&boot)).map(|(since, boot)| boot + since / ticks);
    add(gauge, "process_start_time_seconds", "Start time of the process since unix epoch in seconds.", started);
    add(gauge, "process_virtual_memory_bytes", "Virtual memory size in bytes.", field(23));
    let resident = field(24).map(|pages| pages * page_size() as f64);
    add(gauge, "process_resident_memory_bytes", "Resident memory size in bytes.", resident);
    let max_memory = limit(&limits, "Max address space");
    add(gauge, "process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.", max_memory);
    let max_fds = limit(&limits, "Max open files");
    add(gauge, "process_max_fds", "Maximum number of open file descriptors.", max_fds);
    // One of them is the directory itself.
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
    add(gauge, "process_open_fds", "Number of open file descriptors.", open);
    add(
        counter,
        "process_network_receive_bytes_total",
        "Number of bytes received by the process over the network.",
        octets(&netstat, "InOctets"),
    );
    add(
        counter,
        "process_network_transmit_bytes_total",
        "Number of bytes sent by the process over the network.",
        octets(&netstat, "OutOctets"),
    );
    found
}

/// A field of `/proc/PID/stat`. The second one, the name in brackets, may hold anything.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// When the system was started, as Unix time.
fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// A soft limit of `/proc/PID/limits`; none is the largest number there is.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        soft => soft.parse().ok(),
    }
}

/// A number of the `IpExt` lines of `/proc/PID/net/netstat`. It is of the network namespace, not of the
/// process alone; so is Go's.
fn octets(netstat: &str, name: &str) -> Option<f64> {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|known| known == name)?;
    values.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel() {
        let stat = "1 (a b) c) S 0 1 1 0 -1 4194560 1 2 3 4 25 17 5 6 20 0 1 0 4242 1000 7 99";
        assert_eq!((stat_field(stat, 14), stat_field(stat, 15)), (Some(25.0), Some(17.0)));
        assert_eq!(
            (stat_field(stat, 22), stat_field(stat, 23), stat_field(stat, 24)),
            (Some(4242.0), Some(1000.0), Some(7.0))
        );
        assert_eq!((stat_field(stat, 99), stat_field("", 14)), (None, None));
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\nprocesses 5\n"), Some(1_700_000_000.0));
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  4096  files\nMax address space  unlimited  unlimited  bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(18_446_744_073_709_551_615.0));
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 1 22 33\n";
        assert_eq!((octets(netstat, "InOctets"), octets(netstat, "OutOctets")), (Some(22.0), Some(33.0)));
    }

    #[test]
    fn this_process() {
        let families = families();
        assert_eq!(families.len(), 9, "{families:?}");
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((0.0..86_400.0).contains(&(now - value("process_start_time_seconds"))));
    }
}
