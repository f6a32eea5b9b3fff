//! The command line: what its flags come to, with and without a file.

use std::time::Duration;

use ferrule::config::flags::{Invocation, Refused};
use ferrule::config::{Action, Config, ConfigError, Layout, LogFormat, ProxyMode};
use ferrule::net::IpFamily;
use ferrule::plan::build::{DetectLocal, NodePortSetting};

use super::{config, document, load_flags, load_text, parse};

/// A command line, and what must hold of its configuration but not of that of an empty one.
type Effect = (&'static str, fn(&Config) -> bool);

const EFFECTS: &[Effect] = &[
    ("--hostname-override= Node-A", |c| *c.planning.node_name == *"node-a"),
    ("--init-only", |c| c.action == Action::InitOnly),
    ("--cleanup", |c| c.action == Action::Cleanup),
    ("--cleanup --init-only", |c| c.action == Action::Cleanup),
    ("--cleanup --write-config-to=/x", |c| c.action == Action::WriteConfig("/x".into())),
    ("--feature-gates=AllowServiceExternalIPs=false", |c| !c.planning.external_ips),
    ("--feature-gates=NativeHistograms=false --feature-gates=NativeHistograms=true", |c| {
        c.feature_gates.enabled("NativeHistograms")
    }),
    ("--version=v1.36.2-mine", |c| c.version == "v1.36.2-mine"),
    ("--manifests=/a --manifests /b,/c", |c| c.manifests == ["/a", "/b", "/c"].map(Into::<std::path::PathBuf>::into)),
    ("--ferrule-service-dispatch=bucketed", |c| c.layout.bucketed_services && !c.layout.compact_endpoints),
    ("--ferrule-endpoint-layout=compact", |c| c.layout.compact_endpoints && !c.layout.bucketed_services),
    ("--ferrule-localhost-nodeports --iptables-localhost-nodeports=f --proxy-mode=nftables", |c| {
        c.mode == ProxyMode::Nftables && c.planning.localhost_node_ports
    }),
    ("--iptables-localhost-nodeports --proxy-mode=nftables", |c| !c.planning.localhost_node_ports),
    ("--ferrule-localhost-nodeports --iptables-localhost-nodeports=f", |c| !c.planning.localhost_node_ports),
    ("--kubeconfig=/k", |c| c.api.kubeconfig.as_deref() == Some("/k".as_ref())),
    ("--master=https://m", |c| c.api.master.as_deref() == Some("https://m")),
    ("--kube-api-qps=-1", |c| c.api.qps.is_none()),
    ("--kube-api-qps=7.5", |c| c.api.qps == Some(7.5)),
    ("--kube-api-burst=0", |c| c.api.burst == 0),
    ("--kube-api-content-type=x", |c| c.api.content_type == "x"),
    ("--config-sync-period=1h", |c| c.config_sync_period == Duration::from_secs(3600)),
    ("--proxy-mode=ipvs", |c| c.mode == ProxyMode::Ipvs),
    ("--proxy-mode=nftables", |c| c.mode == ProxyMode::Nftables),
    ("--proxy-mode=nftables", |c| c.planning.node_port_addresses == NodePortSetting::Primary),
    ("--detect-local-mode=NodeCIDR", |c| c.planning.detect_local == DetectLocal::NodeCidr),
    ("--detect-local-mode=BridgeInterface --pod-bridge-interface=b", |c| {
        c.planning.detect_local == DetectLocal::BridgeInterface("b".to_owned())
    }),
    ("--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=p", |c| {
        c.planning.detect_local == DetectLocal::InterfaceNamePrefix("p".to_owned())
    }),
    ("--cluster-cidr=10.0.0.0/8,fd00::/48", |c| {
        c.planning.detect_local
            == DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap()])
    }),
    ("--nodeport-addresses=primary", |c| c.planning.node_port_addresses == NodePortSetting::Primary),
    ("--nodeport-addresses=10.0.0.0/8 --nodeport-addresses=fd00::/64", |c| {
        c.planning.node_port_addresses
            == NodePortSetting::Cidrs(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()])
    }),
    ("--iptables-localhost-nodeports=f", |c| !c.planning.localhost_node_ports),
    ("--masquerade-all", |c| c.planning.masquerade_all),
    ("--masquerade-all=T --proxy-mode=nftables", |c| c.planning.masquerade_all),
    ("--iptables-masquerade-bit=0", |c| c.masquerade_mark == 1),
    ("--iptables-masquerade-bit=3 --proxy-mode=ipvs", |c| c.masquerade_mark == 8),
    ("--bind-address=010.0.0.1", |c| c.planning.bind_address == Some("10.0.0.1".parse().unwrap())),
    ("--iptables-sync-period=1m", |c| c.sync_period == Duration::from_secs(60)),
    ("--iptables-sync-period=2m --proxy-mode=nftables", |c| c.sync_period == Duration::from_secs(120)),
    ("--iptables-min-sync-period=0", |c| c.min_sync_period.is_zero()),
    ("--iptables-min-sync-period=3s --proxy-mode=nftables", |c| c.min_sync_period == Duration::from_secs(3)),
    ("--ipvs-sync-period=1m --iptables-sync-period=9s --proxy-mode=ipvs", |c| c.sync_period == Duration::from_secs(60)),
    ("--ipvs-min-sync-period=5s --proxy-mode=ipvs", |c| c.min_sync_period == Duration::from_secs(5)),
    ("--ipvs-scheduler=sh", |c| c.ipvs.scheduler == "sh"),
    ("--ipvs-exclude-cidrs=10.9.0.0/16,10.8.0.0/16", |c| c.ipvs.exclude_cidrs.len() == 2),
    ("--ipvs-strict-arp", |c| c.ipvs.strict_arp),
    ("--ipvs-tcp-timeout=1s", |c| c.ipvs.tcp_timeout == Some(Duration::from_secs(1))),
    ("--ipvs-tcpfin-timeout=2s", |c| c.ipvs.tcp_fin_timeout == Some(Duration::from_secs(2))),
    ("--ipvs-udp-timeout=3s", |c| c.ipvs.udp_timeout == Some(Duration::from_secs(3))),
    ("--conntrack-max-per-core=0", |c| c.conntrack.max_per_core.is_none()),
    ("--conntrack-min=0x10", |c| c.conntrack.min == 16),
    ("--conntrack-tcp-timeout-established=0s", |c| c.conntrack.tcp_established_timeout.is_none()),
    ("--conntrack-tcp-timeout-close-wait=1m", |c| c.conntrack.tcp_close_wait_timeout == Some(Duration::from_secs(60))),
    ("--conntrack-tcp-be-liberal", |c| c.conntrack.tcp_be_liberal),
    ("--conntrack-udp-timeout=1s", |c| c.conntrack.udp_timeout == Some(Duration::from_secs(1))),
    ("--conntrack-udp-timeout-stream=2s", |c| c.conntrack.udp_stream_timeout == Some(Duration::from_secs(2))),
    ("--oom-score-adj=-1000", |c| c.oom_score_adj == -1000),
    ("--healthz-bind-address=::", |c| c.servers.healthz == Some("[::]:10256".parse().unwrap())),
    ("--healthz-bind-address=1.2.3.4 --healthz-port=9", |c| c.servers.healthz == Some("1.2.3.4:9".parse().unwrap())),
    ("--healthz-port=0", |c| c.servers.healthz.is_none()),
    ("--metrics-bind-address=0.0.0.0:1", |c| c.servers.metrics == "0.0.0.0:1".parse().unwrap()),
    ("--metrics-bind-address=1.2.3.4 --metrics-port=9", |c| c.servers.metrics == "1.2.3.4:9".parse().unwrap()),
    ("--bind-address-hard-fail", |c| c.servers.bind_address_hard_fail),
    ("--profiling", |c| c.servers.profiling),
    ("--show-hidden-metrics-for-version=1.35", |c| c.servers.show_hidden_metrics),
    ("-v=4", |c| c.logging.verbosity == 4),
    ("-v 1 --v 5", |c| c.logging.verbosity == 5),
    ("--vmodule=a=1,b*=2", |c| c.logging.vmodule == [("a".to_owned(), 1), ("b*".to_owned(), 2)]),
    ("--logging-format=json", |c| c.logging.format == LogFormat::Json),
    ("--log-flush-frequency=1m", |c| c.logging.flush_frequency == Duration::from_secs(60)),
    ("--log-text-split-stream --feature-gates=LoggingAlphaOptions=true", |c| c.logging.split_stream),
    ("--log-json-split-stream --logging-format=json --feature-gates=LoggingAlphaOptions=1", |c| c.logging.split_stream),
];

#[test]
fn every_flag_has_its_effect() {
    let plain = config(&[]);
    assert_eq!(plain.layout, Layout::default());
    for (line, holds) in EFFECTS {
        // Blanks separate, except the one that a value begins with.
        let args: Vec<String> = line.replace("= ", "=~").split(' ').map(|arg| arg.replace('~', " ")).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert!(holds(&config(&args)), "{line}");
        assert!(!holds(&plain), "{line}: also without");
    }
}

#[test]
fn what_has_no_effect() {
    let plain = config(&[]);
    for line in [
        "--boot-id-file=x --machine-id-file=y",
        "--bind-address= --healthz-bind-address= --metrics-bind-address=",
        "--config= --write-config-to= --cluster-cidr= --nodeport-addresses= --manifests=",
        "--cleanup=false --init-only=0 --help=false --version=false",
        "--healthz-port=1 --metrics-port=2",
        "--ipvs-sync-period=1m --ipvs-min-sync-period=2s",
        "--iptables_sync_period=30s --iptables-sync_period 30s",
        "--log-text-info-buffer-size=0",
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        // What was given is still listed as given.
        assert_eq!(Config { flags: plain.flags.clone(), ..config(&args) }, plain, "{line}");
    }
    assert_eq!(config(&["--", ""]), plain);
}

#[test]
fn with_a_file_few_flags_count() {
    let text = document(
        "mode: iptables\nhostnameOverride: from-file\noomScoreAdj: 1\nlogging: {verbosity: 1, vmodule: [{filePattern: b, verbosity: 2}]}",
    );
    let load = |line: &str| load_text(&text, &line.split_whitespace().collect::<Vec<_>>()).config.unwrap();
    let ignored = load(
        "--proxy-mode=ipvs --oom-score-adj=5 --masquerade-all --kubeconfig=/k --healthz-port=0 \
         --feature-gates=AllowServiceExternalIPs=false --bind-address=1.2.3.4 --iptables-sync-period=9s --profiling",
    );
    let plain = load("");
    let (config_file, flags) = (plain.config_file.clone(), plain.flags.clone());
    assert_eq!(Config { config_file, flags, ..ignored }, plain);
    assert_eq!((&*plain.planning.node_name, plain.oom_score_adj, plain.mode), ("from-file", 1, ProxyMode::Iptables));

    let counts = load(
        "--hostname-override=Flag --master=https://m --manifests=/m --ferrule-endpoint-layout=compact -v=3 --vmodule=a=1 --logging-format=text \
         --log-flush-frequency=1s --init-only --version=v1.36.2+x",
    );
    assert_eq!(*counts.planning.node_name, *"flag");
    assert_eq!(counts.api.master.as_deref(), Some("https://m"));
    assert_eq!(counts.manifests, [std::path::PathBuf::from("/m")]);
    assert!(counts.layout.compact_endpoints);
    assert_eq!(counts.logging.verbosity, 3);
    assert_eq!(counts.logging.vmodule, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    assert_eq!(counts.logging.flush_frequency, Duration::from_secs(1));
    assert_eq!((counts.action, counts.version.as_str()), (Action::InitOnly, "v1.36.2+x"));
    assert_eq!(load("--cleanup").action, Action::Cleanup);
    // Wrong values are refused even where right ones would be ignored.
    assert!(parse(&["--config=/x", "--oom-score-adj=x"]).is_err());
}

#[test]
fn a_node_without_a_name() {
    let blank = document("hostnameOverride: '  '");
    let error = load_text(&blank, &[]).config.unwrap_err();
    assert!(error.is_of_running() && error.to_string() == "empty hostname is invalid", "{error}");
    // What ends before the proxy would run does not ask for the name.
    assert!(load_text(&blank, &["--cleanup"]).config.is_ok());
    assert!(load_text(&blank, &["--write-config-to=/x"]).config.is_ok());
    let error = load_flags(&["--hostname-override= "]).config.unwrap_err();
    assert_eq!(error, ConfigError::Complete("empty hostname-override is invalid".to_owned()));
}

#[track_caller]
fn check_refused(args: &[&str], expected: &str) -> Refused {
    let refused = parse(args).unwrap_err();
    assert_eq!(refused.error, expected, "{args:?}");
    refused
}

#[test]
fn the_first_error_is_told() {
    let bad_bool =
        "invalid argument \"maybe\" for \"--cleanup\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax";
    check_refused(&["--cleanup=maybe", "--nosuch"], bad_bool);
    check_refused(&["--nosuch", "--cleanup=maybe"], "unknown flag: --nosuch");
    check_refused(&["--cleanup=maybe", "--cleanup=true"], bad_bool);
    check_refused(&["foo", "--help", "--cleanup=maybe"], bad_bool);
    check_refused(
        &["--oom-score-adj=x", "--cleanup=maybe"],
        "invalid argument \"x\" for \"--oom-score-adj\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
    );
    check_refused(
        &["-v=x"],
        "invalid argument \"x\" for \"-v, --v\" flag: strconv.ParseUint: parsing \"x\": invalid syntax",
    );
    check_refused(
        &["--cleanup="],
        "invalid argument \"\" for \"--cleanup\" flag: strconv.ParseBool: parsing \"\": invalid syntax",
    );
    check_refused(&["--cleanup", "maybe"], "\"kube-proxy\" does not take any arguments, got [\"maybe\"]");
    check_refused(&["a", "", "--", "--b"], "\"kube-proxy\" does not take any arguments, got [\"a\" \"\" \"--b\"]");
    check_refused(
        &["--log-text-info-buffer-size=1x"],
        "invalid argument \"1x\" for \"--log-text-info-buffer-size\" flag: quantities must match the regular expression \
         '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    check_refused(
        &["--nodeport-addresses=a\"b"],
        "invalid argument \"a\\\"b\" for \"--nodeport-addresses\" flag: parse error on line 1, column 2: bare \" in non-quoted field",
    );
    for windows_only in ["--windows-service", "--source-vip=x", "--enable-dsr", "--network-name=x"] {
        let name = windows_only.split('=').next().unwrap();
        check_refused(&[windows_only], &format!("unknown flag: {name}"));
    }
    let refused = check_refused(&["--healthz-port=0", "--x"], "unknown flag: --x");
    assert!(refused.to_string().starts_with("Flag --healthz-port has been deprecated, "), "{refused}");
}

#[test]
fn help_and_version() {
    let print = |args: &[&str]| match parse(args).unwrap().invocation {
        Invocation::Print(text) => text,
        other => panic!("{args:?}: {other:?}"),
    };
    let help = print(&["-h"]);
    assert_eq!(help, print(&["--cleanup", "--help", "foo", "--version"]));
    assert!(help.starts_with("Programs Kubernetes Services"), "{help}");
    for hidden in ["--healthz-port", "--metrics-port"] {
        assert!(!help.contains(&format!("{hidden} ")), "{hidden}");
    }
    for variable in
        ["FERRULE_MANIFESTS", "FERRULE_SERVICE_DISPATCH", "FERRULE_ENDPOINT_LAYOUT", "FERRULE_LOCALHOST_NODEPORTS"]
    {
        assert!(help.contains(variable), "{variable}: {help}");
    }
    assert_eq!(print(&["--version"]), "Kubernetes v1.36.2\n");
    assert_eq!(print(&["--version=true", "--config=/nosuch"]), "Kubernetes v1.36.2\n");
    check_refused(&["--version", "foo"], "\"kube-proxy\" does not take any arguments, got [\"foo\"]");
}

#[test]
fn subcommands() {
    let Invocation::Render { flags, ip_family } = parse(&[
        "render",
        "--manifests=/m",
        "--ip-family",
        "IPv6",
        "--hostname_override=N",
        "--cluster-cidr=10.0.0.0/8",
    ])
    .unwrap()
    .invocation
    else {
        panic!()
    };
    assert_eq!(ip_family, Some(IpFamily::V6));
    let config = ferrule::config::load(&flags).config.unwrap();
    assert_eq!((&*config.planning.node_name, config.manifests.len()), ("n", 1));
    assert_eq!(config.planning.detect_local, DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().unwrap()]));
    let Invocation::Render { ip_family: None, .. } = parse(&["render"]).unwrap().invocation else { panic!() };

    for (args, expected) in
        [(&["demo"][..], ProxyMode::Iptables), (&["demo", "--proxy-mode", "nftables"], ProxyMode::Nftables)]
    {
        let Invocation::Demo { mode } = parse(args).unwrap().invocation else { panic!() };
        assert_eq!(mode, expected);
    }
    check_refused(
        &["demo", "--proxy-mode=x"],
        "invalid argument \"x\" for \"--proxy-mode\" flag: must be iptables, ipvs or nftables",
    );
    check_refused(&["demo", "--manifests=x"], "unknown flag: --manifests");
    check_refused(
        &["render", "--ip-family=5"],
        "invalid argument \"5\" for \"--ip-family\" flag: must be IPv4 or IPv6",
    );
    check_refused(&["render", "x"], "\"ferrule render\" does not take any arguments, got [\"x\"]");
    // Only as the first argument: elsewhere it is kube-proxy's command line.
    check_refused(&["-v=1", "render"], "\"kube-proxy\" does not take any arguments, got [\"render\"]");
    for subcommand in ["render", "demo"] {
        let Invocation::Print(help) = parse(&[subcommand, "-h"]).unwrap().invocation else { panic!() };
        assert!(help.contains(&format!("Usage: ferrule {subcommand} [flags]")), "{help}");
        assert!(help.contains("--proxy-mode") && !help.contains("--oom-score-adj"), "{help}");
    }
}
