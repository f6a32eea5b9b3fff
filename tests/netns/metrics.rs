//! What the running proxy says in `/metrics` is true.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::objects::{Endpoint, Objects, Service};
use crate::proxy::{Config, LONG, Proxy, write_same_marker};
use crate::rules::Rules;
use crate::traffic::{Call, Proto};
use crate::world::{Case, Fabric, Family, World, eventually};

matrix!(numbers_are_true, packets_are_counted);

/// Every series with its value.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub fn take(world: &World) -> Scrape {
        let text = world.node.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:10249").expect("the metrics server answers");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let series = body.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.replace("+Inf", "inf").parse().unwrap())
        });
        Scrape(series.collect())
    }

    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }
}

fn numbers_are_true(case: Case) {
    let world = case.world(Fabric::Bridge, 3, 1);
    let family = world.family();
    let name = family.name();
    let of = |metric: &str| format!("{metric}{{ip_family=\"{name}\"}}");
    let service = |n: u16| Service::new(&world, &format!("svc-{n}"), n, &["a0", "b0"]);
    let mut objects = Objects::new((1..=5).map(service));
    // Its only endpoint is elsewhere.
    let mut away = Service::new(&world, "away", 6, &["b0"]);
    away.internal_local = true;
    away.protocols = vec![Proto::Tcp];
    objects.services.push(away);
    let _proxy = Proxy::start(&world, &Config::default(), &objects);

    let partial = of("kubeproxy_sync_partial_proxy_rules_duration_seconds_count");
    let before = Scrape::take(&world);
    assert!(before.get(&of("kubeproxy_sync_full_proxy_rules_duration_seconds_count")) >= 1.0);
    assert_rules(&world, &before);
    let policy = |policy: &str| {
        let mut series = String::from("kubeproxy_sync_proxy_rules_no_local_endpoints_total");
        write!(series, "{{ip_family=\"{name}\",traffic_policy=\"{policy}\"}}").unwrap();
        series
    };
    assert_eq!((before.get(&policy("internal")), before.get(&policy("external"))), (1.0, 0.0));

    // One endpoint more, and the slice says since when.
    let changed = objects.service("svc-3");
    changed.endpoints.push(Endpoint::ready(world.pod("a1"), family));
    changed.changed_at = Some(now());
    write_same_marker(&world, &objects);
    let after = eventually(LONG, "the change is counted as a sync", || {
        let scrape = Scrape::take(&world);
        (scrape.get(&partial) > before.get(&partial)).then_some(scrape)
    });
    let grown = |series: &str| after.get(series) - before.get(series);
    assert_eq!(grown(&partial), 1.0);
    assert_eq!(grown(&of("kubeproxy_sync_full_proxy_rules_duration_seconds_count")), 0.0);
    // The manifests are read again as a whole, but only what changed is said.
    assert_eq!(grown("kubeproxy_sync_proxy_rules_endpoint_changes_total"), 1.0);
    assert_eq!(after.get("kubeproxy_sync_proxy_rules_endpoint_changes_pending"), 0.0);
    assert_eq!(grown(&of("kubeproxy_network_programming_duration_seconds_count")), 1.0);
    let latency = grown(&of("kubeproxy_network_programming_duration_seconds_sum"));
    assert!(latency > 0.0 && latency < LONG.as_secs_f64(), "{latency}");
    let stage =
        |stage: &str| format!("ferrule_change_stage_duration_seconds_count{{ip_family=\"{name}\",stage=\"{stage}\"}}");
    for name in ["queue", "plan", "diff", "apply"] {
        assert_eq!(grown(&stage(name)), 1.0, "{name}");
    }
    assert_eq!(grown(&of("ferrule_sync_restores_sum")), 1.0);
    assert!(grown(&of("ferrule_sync_restore_bytes_sum")) > 100.0);
    assert_eq!(after.get(&of("ferrule_oldest_change_seconds")), 0.0);
    assert_rules(&world, &after);
}

/// Counters of the kernel: connections to node ports of the loopback address, which IPv4 alone has, and
/// packets of no known connection.
fn packets_are_counted(case: Case) {
    const ACCEPTED: &str = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total";
    let world = case.world(Fabric::Bridge, 1, 1);
    let family = world.family();
    let service = Service::new(&world, "web", 1, &["a0", "b0"]).outside(1);
    let _proxy = Proxy::start(&world, &Config::default(), &Objects::new([service.clone()]));
    let before = Scrape::take(&world);
    for series in [ACCEPTED, "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"] {
        assert!(before.0.contains_key(series), "{series} is not there");
    }
    assert_eq!(before.get(ACCEPTED), 0.0);
    if family == Family::V4 {
        let to = SocketAddr::new(family.loopback(), service.node_port.unwrap());
        for _ in 0..3 {
            let outcome = Call::new(Proto::Tcp, to).make_in(&world.node);
            assert!(outcome.endpoint().is_some(), "{outcome}");
        }
        assert_eq!(Scrape::take(&world).get(ACCEPTED), 3.0, "one packet of each connection");
    }
}

/// As kube-proxy counts: every rule in its own chains, and none in the built-in ones.
#[track_caller]
fn assert_rules(world: &World, scrape: &Scrape) {
    let rules = Rules::read(world, world.family());
    for table in ["filter", "nat"] {
        let own = rules.chains.iter().filter(|((of, chain), _)| of == table && chain.starts_with("KUBE-"));
        let count: usize = own.map(|(_, rules)| rules.len()).sum();
        let series = format!(
            "kubeproxy_sync_proxy_rules_iptables_total{{ip_family=\"{}\",table=\"{table}\"}}",
            world.family().name()
        );
        assert_eq!(scrape.get(&series), count as f64, "{series}");
    }
}

/// The time as API servers write it.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}
