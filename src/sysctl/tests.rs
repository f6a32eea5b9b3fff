use super::conntrack::{count_ranges, settings};
use super::*;

const NOTHING: Conntrack = Conntrack {
    max_per_core: None,
    min: 0,
    tcp_established_timeout: None,
    tcp_close_wait_timeout: None,
    tcp_be_liberal: false,
    udp_timeout: None,
    udp_stream_timeout: None,
};

#[track_caller]
fn check_max(max_per_core: u32, min: u32, cpus: u32, expected: Option<u64>) {
    let wanted = Conntrack { max_per_core: Some(max_per_core).filter(|max| *max > 0), min, ..NOTHING };
    let set = settings(&wanted, cpus);
    let max = set.first().map(|setting| (setting.name, setting.value, setting.hashsize));
    assert_eq!(max, expected.map(|max| ("net/netfilter/nf_conntrack_max", max, Some(max / 4))));
}

#[test]
fn size_of_the_table() {
    // Left alone, whatever the minimum.
    check_max(0, 0, 4, None);
    check_max(0, 131_072, 4, None);
    // By processors, but not less than the minimum.
    check_max(32_768, 131_072, 1, Some(131_072));
    check_max(32_768, 131_072, 4, Some(131_072));
    check_max(32_768, 131_072, 5, Some(163_840));
    check_max(32_768, 0, 1, Some(32_768));
    // Limited by the cap, but for a minimum above it.
    check_max(32_768, 131_072, 32, Some(1_048_576));
    check_max(32_768, 131_072, 64, Some(1_048_576));
    check_max(32_768, 2_000_000, 4, Some(2_000_000));
    // A quirk of kube-proxy's: with more processors the same minimum is not reached.
    check_max(32_768, 2_000_000, 64, Some(1_048_576));
    check_max(u32::MAX, u32::MAX, u32::MAX, Some(1_048_576));
}

#[test]
fn everything_configured() {
    let secs = |n: u64| Some(Duration::from_millis(n * 1_000 + 999));
    let wanted = Conntrack {
        max_per_core: Some(1),
        min: 8,
        tcp_established_timeout: secs(86_400),
        tcp_close_wait_timeout: secs(3_600),
        tcp_be_liberal: true,
        udp_timeout: secs(30),
        udp_stream_timeout: secs(120),
    };
    let set: Vec<_> = settings(&wanted, 2).iter().map(|setting| (setting.name, setting.value)).collect();
    let expected = [
        ("net/netfilter/nf_conntrack_max", 8),
        ("net/netfilter/nf_conntrack_tcp_timeout_established", 86_400),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", 3_600),
        ("net/netfilter/nf_conntrack_tcp_be_liberal", 1),
        ("net/netfilter/nf_conntrack_udp_timeout", 30),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", 120),
    ];
    assert_eq!(set, expected);
    assert_eq!(settings(&NOTHING, 2), []);
}

#[test]
fn lists_of_processors() {
    for (text, count) in [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-3,6,8-9", Some(7)), ("", None), ("3-0", None)] {
        assert_eq!(count_ranges(text), count, "{text:?}");
    }
}

/// A kernel as files.
struct Kernel {
    dir: tempfile::TempDir,
    sysctls: Sysctls,
}

impl Kernel {
    fn new(files: &[(&str, &str)]) -> Kernel {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sysctls = Sysctls::at(dir.path().join("proc"), dir.path().join("sys"));
        Kernel { dir, sysctls }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }
}

const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "sys/module/nf_conntrack/parameters/hashsize";

fn four_cpus(max: &str, buckets: &str) -> Kernel {
    Kernel::new(&[("sys/devices/system/cpu/online", "0-3\n"), (MAX, max), (BUCKETS, buckets)])
}

#[test]
fn the_table_and_its_hash_grow() {
    let wanted = Conntrack { max_per_core: Some(65_536), ..NOTHING };
    let kernel = four_cpus("1000\n", "250\n");
    kernel.sysctls.set_conntrack(&wanted).unwrap();
    assert_eq!((kernel.read(MAX).as_str(), kernel.read(BUCKETS).as_str()), ("262144", "65536"));

    // The hash never shrinks; the table does.
    let kernel = four_cpus("999999999\n", "99999999\n");
    kernel.sysctls.set_conntrack(&wanted).unwrap();
    assert_eq!((kernel.read(MAX).as_str(), kernel.read(BUCKETS).as_str()), ("262144", "99999999\n"));
}

#[test]
fn what_is_right_is_not_written() {
    let wanted = Conntrack { max_per_core: Some(65_536), ..NOTHING };
    let kernel = four_cpus("262144\n", "65536\n");
    kernel.sysctls.set_conntrack(&wanted).unwrap();
    // With the line ends they had.
    assert_eq!((kernel.read(MAX).as_str(), kernel.read(BUCKETS).as_str()), ("262144\n", "65536\n"));
}

#[test]
fn a_failure_names_setting_and_remedy() {
    let wanted = Conntrack { max_per_core: Some(65_536), ..NOTHING };
    // Not a file: cannot be read or written, not even by root.
    let kernel = Kernel::new(&[("proc/sys/net/netfilter/nf_conntrack_max/not", "")]);
    let error = format!("{:#}", kernel.sysctls.set_conntrack(&wanted).unwrap_err());
    let start = "could not set conntrack parameters from kube-proxy configuration: cannot set sysctl net/netfilter/nf_conntrack_max";
    assert!(error.starts_with(start), "{error}");
    assert!(error.ends_with("; with conntrack.maxPerCore: 0 it is left alone"), "{error}");

    let kernel = Kernel::new(&[(MAX, "262144"), ("sys/devices/system/cpu/online", "0-3")]);
    let error = format!("{:#}", kernel.sysctls.set_conntrack(&wanted).unwrap_err());
    assert!(error.contains("parameters/hashsize"), "{error}");
}

#[tokio::test]
async fn the_score_of_this_process() {
    let kernel = Kernel::new(&[("proc/self/oom_score_adj", "0\n")]);
    kernel.sysctls.set_oom_score(-999).await;
    assert_eq!(kernel.read("proc/self/oom_score_adj"), "-999");
    let kernel = Kernel::new(&[("proc/self/oom_score_adj", "-999\n")]);
    kernel.sysctls.set_oom_score(-999).await;
    assert_eq!(kernel.read("proc/self/oom_score_adj"), "-999\n");
    // Not worth failing for.
    Kernel::new(&[]).sysctls.set_oom_score(-999).await;
}
