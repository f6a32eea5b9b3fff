//! Against a real kube-proxy: the configurations it was given, what it made of them, and what it
//! says of its flags and gates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ferrule::config::flags::{self, Invocation};
use ferrule::config::{Action, Config, FeatureGates, LogFormat, ProxyMode};
use ferrule::plan::build::{DetectLocal, NodePortSetting};
use serde_json::Value;

use super::recorded_runs::{Case, cases, read};
use super::{config_flag, parse};
use crate::recordings;

/// What kube-proxy resolved a command line to, it wrote out whole. It must be what was resolved
/// here, field by field; and read from a file it must come to the same again.
#[test]
fn every_written_configuration() {
    let mut compared = 0;
    for case in cases() {
        let Some(written) = case.written.get("out.conf") else { continue };
        let config = config_of_case(&case);
        assert!(matches!(&config.action, Action::WriteConfig(path) if path.ends_with("out.conf")), "{}", case.name);
        check_fields(&case.name, &config, written);
        assert_eq!(config.document.to_yaml(), *written, "{}", case.name);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.conf");
        std::fs::write(&path, written).unwrap();
        let again = super::config(&[config_flag(&path).as_str()]);
        let expected =
            Config { action: Action::Run, config_file: Some(path.clone()), flags: again.flags.clone(), ..config };
        assert_eq!(again, expected, "{}", case.name);
        compared += 1;
    }
    assert!(compared >= 13, "only {compared} written configurations");
}

/// What a recorded command line comes to here.
fn config_of_case(case: &Case) -> Config {
    let directory = case.directory();
    let args = case.args_in(directory.path());
    super::config(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Compares a resolved configuration with a document that holds every field.
fn check_fields(case: &str, config: &Config, document: &str) {
    let document: Value = serde_saphyr::from_str(document).unwrap();
    let at = |path: &str| document.pointer(path).unwrap_or(&Value::Null);
    let text = |path: &str| at(path).as_str().unwrap_or_else(|| panic!("{case}: {path}: {}", at(path))).to_owned();
    let flag = |path: &str| at(path).as_bool().unwrap_or_else(|| panic!("{case}: {path}: {}", at(path)));
    let number = |path: &str| at(path).as_i64().unwrap_or_else(|| panic!("{case}: {path}: {}", at(path)));
    let time = |path: &str| duration(&text(path));
    let timeout = |path: &str| Some(time(path)).filter(|time| !time.is_zero());
    let strings = |path: &str| -> Vec<String> {
        let list = at(path).as_array().cloned().unwrap_or_default();
        list.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let path = |path: &str| Some(text(path)).filter(|text| !text.is_empty()).map(Into::into);
    let nets = |list: Vec<String>| -> Vec<ipnet::IpNet> {
        list.iter().map(|net| net.parse::<ipnet::IpNet>().unwrap().trunc()).collect()
    };

    let mode = text("/mode");
    assert_eq!(config.mode.as_str(), mode, "{case}");
    // ipvs mode takes these two from iptables' block.
    let block = if mode == "nftables" { "/nftables" } else { "/iptables" };
    assert_eq!(config.planning.masquerade_all, flag(&format!("{block}/masqueradeAll")), "{case}");
    assert_eq!(config.masquerade_mark, 1 << number(&format!("{block}/masqueradeBit")), "{case}");
    assert_eq!(config.sync_period, time(&format!("/{mode}/syncPeriod")), "{case}");
    assert_eq!(config.min_sync_period, time(&format!("/{mode}/minSyncPeriod")), "{case}");
    assert_eq!(config.config_sync_period, time("/configSyncPeriod"), "{case}");

    // nftables mode has a flag of its own for it, which is no part of the file.
    let localhost = mode != "nftables" && flag("/iptables/localhostNodePorts");
    assert_eq!(config.planning.localhost_node_ports, localhost, "{case}");
    let addresses = match strings("/nodePortAddresses") {
        list if list == ["primary"] => NodePortSetting::Primary,
        list => NodePortSetting::Cidrs(nets(list)),
    };
    assert_eq!(config.planning.node_port_addresses, addresses, "{case}");
    assert_eq!(text("/detectLocalMode"), "ClusterCIDR", "{case}: no other is among these");
    let cluster_cidr = text("/clusterCIDR").split(',').filter(|net| !net.is_empty()).map(str::to_owned).collect();
    assert_eq!(config.planning.detect_local, DetectLocal::ClusterCidr(nets(cluster_cidr)), "{case}");
    assert_eq!(config.planning.bind_address, ferrule::net::parse_ip(&text("/bindAddress")), "{case}");
    if !text("/hostnameOverride").is_empty() {
        assert_eq!(*config.planning.node_name, text("/hostnameOverride"), "{case}");
    }

    assert_eq!(config.api.kubeconfig, path("/clientConnection/kubeconfig"), "{case}");
    assert_eq!(config.api.content_type, text("/clientConnection/contentType"), "{case}");
    assert_eq!(config.api.accept_content_types, text("/clientConnection/acceptContentTypes"), "{case}");
    assert_eq!(i64::from(config.api.burst), number("/clientConnection/burst"), "{case}");
    assert_eq!(config.api.qps.map(f64::from), at("/clientConnection/qps").as_f64(), "{case}");

    let conntrack = config.conntrack;
    assert_eq!(i64::from(conntrack.max_per_core.unwrap_or(0)), number("/conntrack/maxPerCore"), "{case}");
    assert_eq!(i64::from(conntrack.min), number("/conntrack/min"), "{case}");
    assert_eq!(conntrack.tcp_established_timeout, timeout("/conntrack/tcpEstablishedTimeout"), "{case}");
    assert_eq!(conntrack.tcp_close_wait_timeout, timeout("/conntrack/tcpCloseWaitTimeout"), "{case}");
    assert_eq!(conntrack.tcp_be_liberal, flag("/conntrack/tcpBeLiberal"), "{case}");
    assert_eq!(conntrack.udp_timeout, timeout("/conntrack/udpTimeout"), "{case}");
    assert_eq!(conntrack.udp_stream_timeout, timeout("/conntrack/udpStreamTimeout"), "{case}");

    let scheduler = Some(text("/ipvs/scheduler")).filter(|name| !name.is_empty());
    assert_eq!(config.ipvs.scheduler, scheduler.unwrap_or("rr".to_owned()), "{case}");
    assert_eq!(config.ipvs.exclude_cidrs, nets(strings("/ipvs/excludeCIDRs")), "{case}");
    assert_eq!(config.ipvs.strict_arp, flag("/ipvs/strictARP"), "{case}");
    assert_eq!(config.ipvs.tcp_timeout, timeout("/ipvs/tcpTimeout"), "{case}");
    assert_eq!(config.ipvs.tcp_fin_timeout, timeout("/ipvs/tcpFinTimeout"), "{case}");
    assert_eq!(config.ipvs.udp_timeout, timeout("/ipvs/udpTimeout"), "{case}");

    let address = |path: &str| Some(text(path)).filter(|text| !text.is_empty()).map(|text| text.parse().unwrap());
    assert_eq!(config.servers.healthz, address("/healthzBindAddress"), "{case}");
    assert_eq!(Some(config.servers.metrics), address("/metricsBindAddress"), "{case}");
    assert_eq!(config.servers.bind_address_hard_fail, flag("/bindAddressHardFail"), "{case}");
    assert_eq!(config.servers.profiling, flag("/enableProfiling"), "{case}");
    assert_eq!(config.servers.show_hidden_metrics, !text("/showHiddenMetricsForVersion").is_empty(), "{case}");
    assert_eq!(i64::from(config.oom_score_adj), number("/oomScoreAdj"), "{case}");

    let format = if config.logging.format == LogFormat::Json { "json" } else { "text" };
    assert_eq!(format, text("/logging/format"), "{case}");
    assert_eq!(i64::from(config.logging.verbosity), number("/logging/verbosity"), "{case}");
    let flush = match at("/logging/flushFrequency").as_u64() {
        Some(nanos) => Duration::from_nanos(nanos),
        None => time("/logging/flushFrequency"),
    };
    assert_eq!(config.logging.flush_frequency, flush, "{case}");
    let vmodule = at("/logging/vmodule").as_array().cloned().unwrap_or_default();
    let vmodule: Vec<(String, u32)> = vmodule
        .iter()
        .map(|item| {
            (
                item["filePattern"].as_str().unwrap().to_owned(),
                u32::try_from(item["verbosity"].as_u64().unwrap()).unwrap(),
            )
        })
        .collect();
    assert_eq!(config.logging.vmodule, vmodule, "{case}");
    for (gate, value) in at("/featureGates").as_object().into_iter().flatten() {
        assert_eq!(Some(config.feature_gates.enabled(gate)), value.as_bool(), "{case}: {gate}");
    }
}

/// What `/configz` answered, with the configurations of all recordings that asked it.
#[test]
fn every_recorded_configz() {
    let mut seen = 0;
    for entry in std::fs::read_dir(recordings::path("")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(answer) = std::fs::read_to_string(path.join("http/configz.txt")) else { continue };
        let (_, body) = answer.split_once("\n\n").or_else(|| answer.split_once("\r\n\r\n")).unwrap();
        // They were made with this level.
        let config = super::config(&[config_flag(&path.join("config.yaml")).as_str(), "-v=2"]);
        let ours = format!("{{\"kubeproxy.config.k8s.io\":{}}}", config.document.to_configz_json());
        assert_eq!(ours, body.trim_end(), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3, "only {seen} answers recorded");
}

/// A duration as kube-proxy prints it: `1h2m3s`, `500ms`.
fn duration(text: &str) -> Duration {
    if let Some(millis) = text.strip_suffix("ms") {
        return Duration::from_millis(millis.parse().unwrap());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    for (unit, seconds) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((count, after)) = rest.split_once(unit) {
            total += Duration::from_secs(count.parse::<u64>().unwrap() * seconds);
            rest = after;
        }
    }
    assert_eq!(rest, "", "{text}");
    total
}

/// Every flag of kube-proxy's usage text is in ours, with the same default.
#[test]
fn every_recorded_flag_is_in_the_help() {
    let Ok(Invocation::Print(help)) = parse(&["--help"]).map(|parsed| parsed.invocation) else { panic!() };
    // A flag's line, then its description.
    let described: Vec<(&str, &str)> = help.lines().zip(help.lines().skip(1)).collect();
    let mut flags = 0;
    for line in read("flag-unknown").stderr.lines().filter(|line| line.trim_start().starts_with('-')) {
        let name = line.split([' ', '[', ',']).find(|word| word.starts_with("--")).unwrap();
        let found = described.iter().find(|(ours, _)| {
            ours.trim_start().starts_with('-') && ours.split([' ', '[', ',']).any(|word| word == name)
        });
        let (_, description) = found.unwrap_or_else(|| panic!("{name} is not in the help:\n{help}"));
        if let Some((_, default)) = line.split_once("(default ") {
            let default = default.trim_end_matches(')').trim_matches('"');
            let told = description.contains(&format!("[default: {default}]"))
                || description.contains(&format!("{default} (default)"))
                || description.contains(&format!("{default} if not set"));
            assert!(told, "{name}: default {default} is not in {description:?}");
        }
        flags += 1;
    }
    assert!(flags >= 57, "only {flags} flags recorded");
}

/// The configurations of all recordings.
#[test]
fn every_recorded_configuration() {
    let mut seen = 0;
    let directory = recordings::path("");
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let file = path.join("config.yaml");
        if !file.exists() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let (tools, case) = name.split_once('-').unwrap();
        let config = super::config(&[config_flag(&file).as_str()]);
        check_recorded(name, tools, case, &config);
        seen += 1;
    }
    assert!(seen >= 29, "only {seen} configurations in {}", directory.display());
}

fn check_recorded(name: &str, tools: &str, case: &str, config: &Config) {
    let mode = match tools {
        "ipvs" => ProxyMode::Ipvs,
        "nftables" => ProxyMode::Nftables,
        _ => ProxyMode::Iptables,
    };
    assert_eq!(config.mode, mode, "{name}");
    assert_eq!(*config.planning.node_name, *recordings::NODE, "{name}");
    assert_eq!(config.api.kubeconfig.as_deref(), Some("/var/lib/kube-proxy/kubeconfig.conf".as_ref()), "{name}");
    let conntrack = config.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min), (None, 0), "{name}");
    assert_eq!((conntrack.tcp_established_timeout, conntrack.tcp_close_wait_timeout), (None, None), "{name}");
    assert_eq!(config.servers.healthz, Some(SocketAddr::from(([0, 0, 0, 0], 10256))), "{name}");
    assert_eq!(config.servers.metrics, SocketAddr::from(([127, 0, 0, 1], 10249)), "{name}");
    assert_eq!(config.sync_period, Duration::from_secs(30), "{name}");
    // ipvs mode has no default for it, and one of its recordings sets it.
    let min = if tools == "ipvs" && case != "base" { 0 } else { 1 };
    assert_eq!(config.min_sync_period, Duration::from_secs(min), "{name}");

    let planning = &config.planning;
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    let detect_local = match case {
        "bridge" => DetectLocal::BridgeInterface("cni0".to_owned()),
        "ifprefix" => DetectLocal::InterfaceNamePrefix("veth".to_owned()),
        "nodecidr" => DetectLocal::NodeCidr,
        "nodetect" => DetectLocal::ClusterCidr(Vec::new()),
        _ => DetectLocal::ClusterCidr(nets(&["10.128.0.0/9", "fd00:10:128::/48"])),
    };
    assert_eq!(planning.detect_local, detect_local, "{name}");
    let addresses = match case {
        "npcidr" => NodePortSetting::Cidrs(nets(&["172.31.99.0/24"])),
        "npprimary" => NodePortSetting::Primary,
        _ if tools == "nftables" => NodePortSetting::Primary,
        _ => NodePortSetting::Cidrs(Vec::new()),
    };
    assert_eq!(planning.node_port_addresses, addresses, "{name}");
    assert_eq!(planning.masquerade_all, case == "masqall", "{name}");
    assert_eq!(planning.localhost_node_ports, case != "nolocalhost" && tools != "nftables", "{name}");
    assert_eq!(config.masquerade_mark, if case == "masqbit" { 1 << 20 } else { 1 << 14 }, "{name}");
    let scheduler = match (tools, case) {
        ("ipvs", "masqall") => "wrr",
        ("ipvs", "strictarp-exclude") => "sh",
        _ => "rr",
    };
    assert_eq!(config.ipvs.scheduler, scheduler, "{name}");
    assert_eq!(config.ipvs.strict_arp, case == "strictarp-exclude", "{name}");
}

/// Names, stages and defaults of feature gates, as a real kube-proxy exported them.
#[test]
fn every_recorded_feature_gate() {
    let metrics = recordings::read("legacy-base/http/metrics.txt");
    let recorded: BTreeMap<&str, (&str, bool)> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("kubernetes_feature_enabled{name=\""))
        .map(|line| {
            let (name, rest) = line.split_once("\",stage=\"").unwrap();
            let (stage, value) = rest.split_once("\"} ").unwrap();
            (name, (stage, value == "1"))
        })
        .collect();
    let gates = FeatureGates::default();
    let ours: BTreeMap<&str, (&str, bool)> =
        gates.all().map(|(name, stage, enabled)| (name, (stage.as_str(), enabled))).collect();
    for (name, gate) in &ours {
        assert_eq!(recorded.get(name), Some(gate), "{name}");
    }
    // The recorded program was built from a fork with three gates of its own.
    let missing: Vec<_> = recorded.keys().filter(|name| !ours.contains_key(*name)).collect();
    assert_eq!(missing.len(), 3, "{missing:?}");
}

/// The name the program is called by changes nothing but the usage line.
#[test]
fn invoked_as_kube_proxy_or_as_ferrule() {
    let parse = |program: &str, arg: &str| flags::parse(&[program.to_owned(), arg.to_owned()]);
    for program in ["/usr/local/bin/kube-proxy", "ferrule"] {
        let refused = parse(program, "foo").unwrap_err();
        assert_eq!(refused.to_string(), r#"Error: "kube-proxy" does not take any arguments, got ["foo"]"#);
        let refused = parse(program, "--nosuch").unwrap_err().to_string();
        let name = program.rsplit('/').next().unwrap();
        assert!(refused.starts_with(&format!("Usage: {name} [flags]\n\nGeneral:\n")), "{refused}");
        assert!(refused.ends_with("\n\nError: unknown flag: --nosuch"), "{refused}");
        assert!(!refused.contains("\n\n\n"), "{refused}");
    }
}
