//! The configuration file: what its fields come to, and what is refused.

use std::time::Duration;

use ferrule::config::{ConfigError, Loaded, LogFormat, ProxyMode, Remark};
use ferrule::plan::build::{DetectLocal, NodePortSetting};

use super::{config_of, document, load_text};

#[test]
fn nothing_but_a_kind() {
    let config = config_of("");
    assert_eq!(config.mode, ProxyMode::Iptables);
    assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(30), Duration::from_secs(1)));
    assert_eq!(config.masquerade_mark, 0x4000);
    assert!(config.planning.localhost_node_ports && config.planning.external_ips && !config.planning.masquerade_all);
    assert_eq!(config.planning.detect_local, DetectLocal::ClusterCidr(Vec::new()));
    assert_eq!(config.planning.node_port_addresses, NodePortSetting::Cidrs(Vec::new()));
    assert_eq!(config.servers.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.servers.metrics, "127.0.0.1:10249".parse().unwrap());
    assert_eq!((config.api.qps, config.api.burst), (Some(5.0), 10));
    assert_eq!(config.api.content_type, "application/vnd.kubernetes.protobuf");
    assert_eq!((config.api.kubeconfig, config.api.master), (None, None));
    assert_eq!((config.conntrack.max_per_core, config.conntrack.min), (Some(32768), 131_072));
    assert_eq!(config.conntrack.tcp_established_timeout, Some(Duration::from_secs(86400)));
    assert_eq!(config.conntrack.tcp_close_wait_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((config.conntrack.udp_timeout, config.conntrack.udp_stream_timeout), (None, None));
    assert_eq!(config.oom_score_adj, -999);
    assert_eq!(config.config_sync_period, Duration::from_secs(900));
    assert_eq!((config.logging.format, config.logging.verbosity), (LogFormat::Text, 0));
    assert_eq!(config.logging.flush_frequency, Duration::from_secs(5));
    // Without an override, the node is what the system calls itself.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(*config.planning.node_name, host.trim().to_lowercase());
}

#[test]
fn every_field_at_once() {
    let config = config_of(
        "
mode: nftables
hostnameOverride: ' Node-7 '
bindAddress: 'fd00::7'
bindAddressHardFail: true
enableProfiling: true
showHiddenMetricsForVersion: '1.35'
healthzBindAddress: 010.1.2.3
metricsBindAddress: '[fd00::7]:9'
featureGates: {AllowServiceExternalIPs: false, LoggingAlphaOptions: true}
clientConnection: {kubeconfig: /k, acceptContentTypes: a, contentType: b, qps: -0.5, burst: 7}
logging: {format: json, flushFrequency: 2s, verbosity: 3, options: {json: {splitStream: true, infoBufferSize: 10Mi}}}
iptables: {masqueradeBit: 1, localhostNodePorts: false, syncPeriod: 9s}
nftables: {masqueradeBit: 31, masqueradeAll: true, syncPeriod: 1m, minSyncPeriod: 250ms}
detectLocalMode: InterfaceNamePrefix
detectLocal: {bridgeInterface: br, interfaceNamePrefix: veth}
clusterCIDR: 10.0.0.0/8
nodePortAddresses: [10.1.2.3/8, 'fd00::1/64']
oomScoreAdj: 5
conntrack: {maxPerCore: 1, min: 2, tcpEstablishedTimeout: 3s, tcpCloseWaitTimeout: 4s, tcpBeLiberal: true,
  udpTimeout: 5s, udpStreamTimeout: 6s}
configSyncPeriod: 7m
portRange: 1-2
winkernel: {networkName: net, sourceVip: v, enableDSR: true, rootHnsEndpointName: e, forwardHealthCheckVip: true}
windowsRunAsService: true
",
    );
    assert_eq!(config.mode, ProxyMode::Nftables);
    assert_eq!(*config.planning.node_name, *"node-7");
    assert_eq!(config.planning.bind_address, Some("fd00::7".parse().unwrap()));
    assert!(config.servers.bind_address_hard_fail && config.servers.profiling && config.servers.show_hidden_metrics);
    assert_eq!(config.servers.healthz, Some("10.1.2.3:10256".parse().unwrap()));
    assert_eq!(config.servers.metrics, "[fd00::7]:9".parse().unwrap());
    assert!(!config.planning.external_ips && config.feature_gates.enabled("LoggingAlphaOptions"));
    assert_eq!((config.api.qps, config.api.burst), (None, 7));
    assert_eq!((config.api.accept_content_types.as_str(), config.api.content_type.as_str()), ("a", "b"));
    assert_eq!(config.api.kubeconfig.as_deref(), Some("/k".as_ref()));
    assert_eq!((config.logging.format, config.logging.verbosity), (LogFormat::Json, 3));
    assert!(config.logging.split_stream && config.logging.flush_frequency == Duration::from_secs(2));
    assert_eq!(config.masquerade_mark, 1 << 31);
    assert!(config.planning.masquerade_all && !config.planning.localhost_node_ports);
    assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(60), Duration::from_millis(250)));
    assert_eq!(config.planning.detect_local, DetectLocal::InterfaceNamePrefix("veth".to_owned()));
    let nets = ["10.0.0.0/8", "fd00::/64"].map(|net| net.parse().unwrap());
    assert_eq!(config.planning.node_port_addresses, NodePortSetting::Cidrs(nets.to_vec()));
    assert_eq!(config.oom_score_adj, 5);
    let conntrack = config.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min, conntrack.tcp_be_liberal), (Some(1), 2, true));
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!((conntrack.tcp_established_timeout, conntrack.tcp_close_wait_timeout), (seconds(3), seconds(4)));
    assert_eq!((conntrack.udp_timeout, conntrack.udp_stream_timeout), (seconds(5), seconds(6)));
    assert_eq!(config.config_sync_period, Duration::from_secs(420));
    assert_eq!(config.config_file.unwrap().file_name().unwrap(), "config.conf");
}

#[test]
fn each_mode_has_its_own_periods() {
    let all = "
iptables: {syncPeriod: 10s, minSyncPeriod: 2s, masqueradeAll: true, masqueradeBit: 1}
ipvs: {syncPeriod: 20s, minSyncPeriod: 3s, tcpTimeout: 1s, tcpFinTimeout: 2s, udpTimeout: 3s}
nftables: {syncPeriod: 30s, minSyncPeriod: 4s, masqueradeBit: 2}";
    for (mode, sync, min, masquerade_all, mark) in
        [("", 10, 2, true, 2), ("iptables", 10, 2, true, 2), ("ipvs", 20, 3, true, 2), ("nftables", 30, 4, false, 4)]
    {
        let config = config_of(&format!("mode: '{mode}'{all}"));
        let seconds = (config.sync_period.as_secs(), config.min_sync_period.as_secs());
        assert_eq!(seconds, (sync, min), "{mode:?}");
        assert_eq!((config.planning.masquerade_all, config.masquerade_mark), (masquerade_all, mark), "{mode:?}");
    }
    // Zero is "not set", and only ipvs mode has no default for the shortest pause.
    let zero = "iptables: {minSyncPeriod: 0s, syncPeriod: 0s}\nipvs: {minSyncPeriod: 0s, syncPeriod: 0s}\n";
    for (mode, min) in [("iptables", 1), ("ipvs", 0)] {
        let config = config_of(&format!("{zero}mode: {mode}"));
        assert_eq!((config.sync_period.as_secs(), config.min_sync_period.as_secs()), (30, min), "{mode}");
    }
}

#[test]
fn the_family_of_listen_addresses_follows_bind_address() {
    for (bind, healthz, metrics) in [
        ("10.0.0.1", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("::", "[::]:10256", "[::1]:10249"),
        ("fd00::1", "[::]:10256", "[::1]:10249"),
    ] {
        let config = config_of(&format!("bindAddress: '{bind}'"));
        assert_eq!(config.servers.healthz, Some(healthz.parse().unwrap()), "{bind}");
        assert_eq!(config.servers.metrics, metrics.parse().unwrap(), "{bind}");
    }
}

#[test]
fn only_the_first_document_is_read() {
    let text = format!("{}---\nmode: [not, read\n", document("mode: ipvs"));
    assert_eq!(load_text(&text, &[]).config.unwrap().mode, ProxyMode::Ipvs);
}

#[test]
fn json_is_read_as_well() {
    let text = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables", "mode": "ipvs", "iptables": {"masqueradeBit": null}, "conntrack": {"min": 5}}"#;
    let loaded = load_text(text, &[]);
    check_complaint(&loaded, "strict decoding error: duplicate field \"mode\"", &[(2, 29)]);
    let config = loaded.config.unwrap();
    assert_eq!((config.mode, config.conntrack.min), (ProxyMode::Ipvs, 5));
}

#[test]
fn what_is_told_besides() {
    let loaded = load_text(&document("featureGates: {NoSuchGate: true, WinDSR: true}\nnope: 1\nmode: ''"), &[]);
    assert!(loaded.config.is_ok());
    check_complaint(&loaded, "strict decoding error: unknown field \"nope\"", &[(4, 1)]);
    let gate = Remark::GateSet { name: "WinDSR".to_owned(), value: true, deprecated: false };
    let unknown = Remark::UnknownGate("NoSuchGate".to_owned());
    assert_eq!(loaded.completing[1..], [Remark::ModeChosen, unknown, gate.clone()]);
    // Set again by the checks.
    assert_eq!(loaded.checking, [gate, Remark::GatesUpdated([("WinDSR".to_owned(), true)].into())]);
    // Also when nothing comes of it.
    let loaded = load_text(&document("nope: 1\noomScoreAdj: 2000"), &[]);
    assert!(loaded.config.is_err());
    check_complaint(&loaded, "strict decoding error: unknown field \"nope\"", &[(3, 1)]);
}

/// The complaint about the file, and its lines and columns.
#[track_caller]
fn check_complaint(loaded: &Loaded, expected: &str, at: &[(usize, usize)]) {
    let Some(Remark::LenientDecoding { complaint, places }) = loaded.completing.first() else { panic!("{loaded:?}") };
    assert_eq!(complaint, expected);
    check_places(places, at);
}

#[track_caller]
fn check_places(places: &[String], at: &[(usize, usize)]) {
    let expected: Vec<String> = at.iter().map(|(line, column)| format!("config.conf:{line}:{column}")).collect();
    let found: Vec<&str> = places.iter().map(|place| place.rsplit('/').next().unwrap()).collect();
    assert_eq!(found, expected);
}

/// Every error about a file says where it is.
#[test]
fn line_and_column() {
    let check = |text: &str, error: &str, line: usize, column: usize| {
        let loaded = load_text(text, &[]);
        let refused = loaded.config.unwrap_err().to_string();
        assert!(refused.contains(error), "{refused}");
        check_places(&loaded.places, &[(line, column)]);
    };
    check("", "Object 'Kind' is missing in ''", 1, 1);
    check("kind: KubeProxyConfiguration\n", "Object 'apiVersion' is missing", 1, 1);
    check("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: X\n", "no kind", 2, 1);
    check("apiVersion: v1\nkind: KubeProxyConfiguration\n", "no kind", 1, 1);
    check("x: 1\n\na: b: c", "yaml: line 3: mapping values", 3, 5);
    check("{\"kind\": \n 1,,}", "json parse error", 2, 4);
    check(&document("oomScoreAdj: x"), "cannot unmarshal string", 3, 1);
    check(&document("nope: 1\niptables:\n  syncPeriod: 30"), "cannot unmarshal number", 5, 3);
    check(&document("iptables: {syncPeriod: '30'}"), "missing unit in duration", 3, 12);
    check(&document("logging:\n  vmodule:\n  - {filePattern: a}\n  - {verbosity: x}"), "cannot unmarshal string", 6, 6);

    let loaded = load_text(&document("nope: 1\nmode: iptables\nlogging: {no: 1}\nmode: nftables"), &[]);
    let complaint = "strict decoding error: yaml: unmarshal errors:\n  line 6: key \"mode\" already set in map, \
                     unknown field \"logging.no\", unknown field \"nope\"";
    check_complaint(&loaded, complaint, &[(3, 1), (5, 11), (6, 1)]);
    assert!(loaded.places.is_empty() && loaded.config.unwrap().mode == ProxyMode::Nftables);
}

/// As large as nobody's is: what counts is at the end, and is found there.
#[test]
fn ten_megabytes() {
    let comment = format!("# {}\n", "x".repeat(997));
    let text = document(&format!("{}noSuch: 1\noomScoreAdj: -7", comment.repeat(10_000)));
    assert!(text.len() > 10_000_000);
    let loaded = load_text(&text, &[]);
    check_complaint(&loaded, "strict decoding error: unknown field \"noSuch\"", &[(10_003, 1)]);
    assert_eq!(loaded.config.unwrap().oom_score_adj, -7);

    let loaded = load_text(&text.replace("-7", "seven"), &[]);
    check_places(&loaded.places, &[(10_004, 1)]);
    assert!(loaded.config.unwrap_err().to_string().ends_with("oomScoreAdj of type int32"));

    // Many values instead of long ones, the last of them wrong.
    let networks = "- 10.0.0.0/8\n".repeat(200_000);
    let loaded = load_text(&document(&format!("nodePortAddresses:\n{networks}- 10.0.0.1")), &[]);
    assert_eq!(
        loaded.config.unwrap_err().to_string(),
        "failed validate: KubeProxyConfiguration.NodePortAddresses[200000]: Invalid value: \"10.0.0.1\": must be a valid CIDR"
    );
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    let error = load_text(text, &[]).config.unwrap_err();
    let message = error.to_string();
    // The file's own name is made up for the test.
    assert!(message == expected || message.ends_with(expected), "{text}\n{message}");
}

#[test]
fn what_is_no_configuration() {
    check_refused(
        "- a",
        "failed to decode: couldn't get version/kind; json parse error: json: cannot unmarshal array into an object",
    );
    check_refused(
        "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration",
        "no kind \"KubeProxyConfiguration\" is registered for version \"kubeproxy.config.k8s.io/v1\" in scheme \
         \"pkg/proxy/apis/config/scheme/scheme.go:29\"",
    );
    check_refused("kind: [", "failed to decode: yaml: unclosed bracket '['");
    check_refused(
        &document("iptables: {masqueradeBit: big}"),
        "failed complete: failed to decode: json: cannot unmarshal string into Go struct field \
         KubeProxyIPTablesConfiguration.iptables.masqueradeBit of type int32",
    );
    check_refused(&document("featureGates: {NFTablesProxyMode: false}"), "feature is locked to true");
    let directory = tempfile::tempdir().unwrap();
    let flag = super::config_flag(directory.path());
    let error = super::load_flags(&[&flag]).config.unwrap_err();
    assert_eq!(error, ConfigError::Complete(format!("read {}: is a directory", directory.path().display())));
}

/// Rules no recording shows.
#[test]
fn validation() {
    let check = |lines: &str, expected: &str| {
        let error = load_text(&document(lines), &[]).config.unwrap_err();
        assert_eq!(error, ConfigError::Validate(format!("KubeProxyConfiguration.{expected}")), "{lines}");
    };
    let not_negative = "must be greater than or equal to 0";
    let range = "must be within the range [0, 31]";
    check(
        "mode: ipvs\niptables: {masqueradeBit: -1}",
        &format!("KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: -1: {range}"),
    );
    check(
        "mode: nftables\nnftables: {masqueradeBit: 32}",
        &format!("KubeProxyNFTablesConfiguration.MasqueradeBit: Invalid value: 32: {range}"),
    );
    for (field, name) in
        [("tcpTimeout", "TCPTimeout"), ("tcpFinTimeout", "TCPFinTimeout"), ("udpTimeout", "UDPTimeout")]
    {
        check(
            &format!("mode: ipvs\nipvs: {{{field}: -1s}}"),
            &format!("KubeProxyIPVSConfiguration.{name}: Invalid value: \"-1s\": {not_negative}"),
        );
    }
    check(
        "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, 1.2.3.4]}",
        "KubeProxyIPVSConfiguration.ExcludeCidrs[1]: Invalid value: \"1.2.3.4\": must be a valid CIDR",
    );
    let conntrack = "KubeProxyLinuxConfiguration.KubeProxyConntrackConfiguration";
    check("conntrack: {maxPerCore: -1}", &format!("{conntrack}.MaxPerCore: Invalid value: -1: {not_negative}"));
    for (field, name) in [
        ("tcpCloseWaitTimeout", "TCPCloseWaitTimeout"),
        ("udpTimeout", "UDPTimeout"),
        ("udpStreamTimeout", "UDPStreamTimeout"),
    ] {
        check(
            &format!("conntrack: {{{field}: -1m}}"),
            &format!("{conntrack}.{name}: Invalid value: \"-1m0s\": {not_negative}"),
        );
    }
    check(
        "oomScoreAdj: 1001",
        "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 1001: must be within the range [-1000, 1000]",
    );
    check(
        "mode: Iptables",
        "Mode.ProxyMode: Invalid value: \"Iptables\": must be iptables, ipvs, nftables or blank (blank means the \
         best-available proxy [currently iptables])",
    );
    check("iptables: {minSyncPeriod: -1s}", &format!("MinSyncPeriod: Invalid value: \"-1s\": {not_negative}"));
    check(
        "ipvs: {minSyncPeriod: 31s}\nmode: ipvs",
        "SyncPeriod: Invalid value: \"31s\": must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod",
    );
    check(
        "bindAddress: '1.2.3.4:80'",
        "BindAddress: Invalid value: \"1.2.3.4:80\": not a valid textual representation of an IP address",
    );
    check("healthzBindAddress: host", "HealthzBindAddress: Invalid value: \"host\": must be IP:port");
    check("metricsBindAddress: '1.2.3.4:x'", "MetricsBindAddress: Invalid value: \"x\": must be a valid port");
    check(
        "nodePortAddresses: [primary, 10.0.0.0/8]",
        "NodePortAddresses[0]: Invalid value: \"primary\": can't use both 'primary' and CIDRs",
    );
    check("nodePortAddresses: [10.0.0.0]", "NodePortAddresses[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR");
    check(
        "detectLocalMode: InterfaceNamePrefix",
        "DetectLocalConfiguration.InterfacePrefix: Invalid value: \"\": must not be empty",
    );
    let pair = "must be a either a single CIDR or dual-stack pair of CIDRs (e.g. [10.100.0.0/16, fde4:8dba:82e1::/48]";
    check(
        "clusterCIDR: 10.0.0.0/8,fd00::/48,fd01::/48",
        &format!(
            "DetectLocalConfiguration.ClusterCIDRs: Invalid value: [\"10.0.0.0/8\",\"fd00::/48\",\"fd01::/48\"]: {pair}"
        ),
    );
    check(
        "clusterCIDR: fd00::/48,fd01::/48",
        &format!("DetectLocalConfiguration.ClusterCIDRs: Invalid value: [\"fd00::/48\",\"fd01::/48\"]: {pair}"),
    );
    check(
        "clusterCIDR: 10.0.0.0",
        "DetectLocalConfiguration.ClusterCIDRs[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR block \
         (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)",
    );
    // Of no consequence in other modes, so not looked at.
    let config = config_of(
        "ipvs: {tcpTimeout: -1s, excludeCIDRs: [x]}\nnftables: {masqueradeBit: 99}\nclusterCIDR: x\ndetectLocalMode: NodeCIDR",
    );
    assert_eq!(config.planning.detect_local, DetectLocal::NodeCidr);
}

#[test]
fn logging_is_judged_alone() {
    let check = |lines: &str, expected: &str| {
        let text = document(&format!("oomScoreAdj: 2000\nlogging: {lines}"));
        assert_eq!(load_text(&text, &[]).config.unwrap_err(), ConfigError::Logging(expected.to_owned()), "{lines}");
    };
    let alpha = "Forbidden: Feature LoggingAlphaOptions is disabled";
    check(
        "{format: json, vmodule: [{filePattern: a, verbosity: 1}]}",
        "logging.vmodule: Forbidden: Only supported for text log format",
    );
    check("{vmodule: [{verbosity: 1}]}", "logging.vmodule[0]: Required value: File pattern must not be empty");
    check(
        "{vmodule: [{filePattern: a}, {filePattern: 'a=b'}]}",
        "logging.vmodule[1]: Invalid value: \"a=b\": File pattern must not contain equal sign or comma",
    );
    check("{verbosity: 3000000000}", "logging.verbosity: Invalid value: 3000000000: Must be <= 2147483647");
    check(
        "{options: {text: {splitStream: true, infoBufferSize: 1Ki}, json: {splitStream: true}}}",
        &format!(
            "[logging.options.text.splitStream: {alpha}, logging.options.text.infoBufferSize: {alpha}, logging.options.json.splitStream: {alpha}]"
        ),
    );
    let text = document("featureGates: {LoggingBetaOptions: false}\nlogging: {format: json}");
    let error = load_text(&text, &[]).config.unwrap_err().to_string();
    assert!(
        error.ends_with("logging.format: Forbidden: Log format json is disabled, see LoggingBetaOptions feature"),
        "{error}"
    );
}
