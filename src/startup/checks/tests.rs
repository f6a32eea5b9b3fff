use super::*;
use crate::config;
use crate::config::flags::{self, Invocation};
use crate::net::{parse_cidr, parse_ip};

fn config(args: &str) -> Config {
    let args: Vec<String> = std::iter::once("ferrule").chain(args.split_whitespace()).map(str::to_owned).collect();
    let Invocation::Proxy(flags) = flags::parse(&args).unwrap().invocation else { panic!("no proxy") };
    config::load(&flags).config.unwrap()
}

fn node(addresses: &str, pod_cidrs: &str) -> Node {
    Node {
        name: "n".into(),
        addresses: addresses.split_whitespace().map(|ip| parse_ip(ip).unwrap()).collect(),
        pod_cidrs: pod_cidrs.split_whitespace().map(|net| parse_cidr(net).unwrap()).collect(),
        ..Node::default()
    }
}

const V4: &str = "192.0.2.1";
const V6: &str = "2001:db8::1";
const BOTH: &str = "192.0.2.1 2001:db8::1";

#[track_caller]
fn check_primary(args: &str, addresses: &str, expected: IpFamily) {
    assert_eq!(primary_family(&config(args).planning, &node(addresses, "")), expected, "{args}, {addresses}");
}

#[test]
fn the_primary_family() {
    check_primary("", "", IpFamily::V4);
    check_primary("", BOTH, IpFamily::V4);
    check_primary("", "2001:db8::1 192.0.2.1", IpFamily::V6);
    check_primary("--bind-address=::", BOTH, IpFamily::V4);
    check_primary("--bind-address=2001:db8::7", BOTH, IpFamily::V6);
    check_primary("--bind-address=0.0.0.0", V6, IpFamily::V6);
    check_primary("--bind-address=192.0.2.7", V6, IpFamily::V4);
}

#[track_caller]
fn check_incomplete(args: &str, addresses: &str, pod_cidrs: &str, expected: Option<&str>) {
    let actual = incomplete(&config(args), &node(addresses, pod_cidrs));
    assert_eq!(actual.as_deref(), expected, "{args}, {addresses}");
}

#[test]
fn node_port_addresses() {
    let unset = Some(
        "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. \
         Consider using `--nodeport-addresses primary`",
    );
    check_incomplete("", V4, "", unset);
    // Nothing is known to put in its place.
    check_incomplete("--nodeport-addresses=primary", "", "", unset);
    check_incomplete("--nodeport-addresses=primary", V4, "", None);
    check_incomplete("--nodeport-addresses=primary", BOTH, "10.0.0.0/24 fd00::/64", None);
    let dual = Some(
        "cluster appears to be dual-stack but nodePortAddresses contains only IPv4 addresses; \
         NodePort connections will be accepted on all local IPv6 IPs",
    );
    check_incomplete("--nodeport-addresses=192.0.2.0/24", V4, "10.0.0.0/24 fd00::/64", dual);
    check_incomplete("--nodeport-addresses=192.0.2.0/24 --cluster-cidr=10.0.0.0/8,fd00::/48", V4, "", dual);
    check_incomplete("--nodeport-addresses=192.0.2.0/24 --cluster-cidr=10.0.0.0/8", V4, "", None);
    check_incomplete("--nodeport-addresses=192.0.2.0/24,2001:db8::/64", BOTH, "10.0.0.0/24 fd00::/64", None);
    let other = Some(
        "cluster appears to be IPv4-primary but nodePortAddresses contains only IPv6 addresses; \
         NodePort connections will be accepted on all local IPv4 IPs",
    );
    check_incomplete("--nodeport-addresses=2001:db8::/64", V4, "", other);
}

#[track_caller]
fn check_misfit(args: &str, addresses: &str, pod_cidrs: &str, is_dual_stack: bool, expected: Option<(&str, bool)>) {
    let actual = misfit(&config(args), &node(addresses, pod_cidrs), is_dual_stack);
    let actual = actual.as_ref().map(|misfit| (misfit.reason.as_str(), misfit.fatal));
    assert_eq!(actual, expected, "{args}, {addresses}, {pod_cidrs}, {is_dual_stack}");
}

#[test]
fn networks_of_the_wrong_family() {
    let by_cluster_cidr = "cluster is IPv4-only but clusterCIDRs contains only IPv6 addresses";
    check_misfit("--cluster-cidr=fd00::/48", V4, "", false, Some((by_cluster_cidr, true)));
    let dual = "cluster is IPv4-primary but clusterCIDRs contains only IPv6 addresses";
    check_misfit("--cluster-cidr=fd00::/48", V4, "", true, Some((dual, false)));
    // It decides nothing there.
    let bridge = "--cluster-cidr=fd00::/48 --detect-local-mode=BridgeInterface --pod-bridge-interface=cni0";
    check_misfit(bridge, V4, "", false, Some((by_cluster_cidr, false)));
    check_misfit("--cluster-cidr=fd00::/48,10.0.0.0/8", V4, "", false, None);
    check_misfit("--cluster-cidr=10.0.0.0/8", V4, "", false, None);
    check_misfit("", V4, "", false, None);

    let node_cidr = "--detect-local-mode=NodeCIDR";
    let pods = "cluster is IPv4-only but node.spec.podCIDRs contains only IPv6 addresses";
    check_misfit(node_cidr, V4, "fd00::/64", false, Some((pods, true)));
    check_misfit("", V4, "fd00::/64", false, Some((pods, false)));
    let pods = "cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses";
    check_misfit(node_cidr, V4, "fd00::/64", true, Some((pods, true)));
    check_misfit("", V4, "fd00::/64", true, Some((pods, false)));
    check_misfit(node_cidr, V4, "fd00::/64 10.0.0.0/24", false, None);
    let pods = "cluster is IPv6-only but node.spec.podCIDRs contains only IPv4 addresses";
    let metrics = format!("{node_cidr} --metrics-bind-address=[::1]:10249");
    check_misfit(&metrics, V6, "10.0.0.0/24", false, Some((pods, true)));
}

#[test]
fn addresses_of_the_wrong_family() {
    let servers = "--healthz-bind-address=[::1]:10256 --metrics-bind-address=[::1]:10249";
    let both = "[cluster is IPv4-only but healthzBindAddress is IPv6, \
                cluster is IPv4-only but metricsBindAddress is IPv6]";
    check_misfit(servers, V4, "", false, Some((both, false)));
    check_misfit(servers, V4, "", true, None);
    check_misfit(servers, V6, "", false, None);
    let unspecified = "--healthz-bind-address=[::]:10256 --metrics-bind-address=[::]:10249";
    check_misfit(unspecified, V4, "", false, None);
    // The default of the metrics, on a node with IPv6 only.
    let metrics = "cluster is IPv6-only but metricsBindAddress is IPv4";
    check_misfit("", V6, "", false, Some((metrics, false)));

    let mut ipvs = config("");
    ipvs.ipvs.exclude_cidrs = vec![parse_cidr("fd00::/8").unwrap()];
    let excluded = "cluster is IPv4-only but ipvs.excludeCIDRs contains only IPv6 addresses";
    let found = misfit(&ipvs, &node(V4, ""), false);
    assert_eq!(found, Some(Misfit { reason: excluded.to_owned(), fatal: false }));
    assert_eq!(misfit(&ipvs, &node(V4, ""), true), None);
}

#[track_caller]
fn check_start(args: &str, addresses: &str, families: &[IpFamily], expected: Result<(), &str>) {
    let result = crate::startup::check(&config(args), &node(addresses, ""), families);
    assert_eq!(result.map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{args}, {addresses}");
}

#[test]
fn families_of_the_host() {
    let (v4, v6) = ([IpFamily::V4], [IpFamily::V6]);
    check_start("", V4, &v4, Ok(()));
    check_start("", V6, &IpFamily::BOTH, Ok(()));
    check_start("", "", &v4, Ok(()));
    check_start("", V4, &v6, Err("no support for primary IP family \"IPv4\""));
    check_start("", V6, &v4, Err("no support for primary IP family \"IPv6\""));
    check_start("--bind-address=2001:db8::7", V4, &v4, Err("no support for primary IP family \"IPv6\""));
    let wrong =
        "kube-proxy configuration is incorrect: cluster is IPv4-only but clusterCIDRs contains only IPv6 addresses";
    check_start("--cluster-cidr=fd00::/48", V4, &v4, Err(wrong));
    check_start("--cluster-cidr=fd00::/48", V4, &IpFamily::BOTH, Ok(()));
}
