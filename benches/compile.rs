//! From the Plan to the input of `iptables-restore`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench ends by a panic when something is not as expected")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferrule::backend::iptables::apply::{self, first_input, style};
use ferrule::backend::iptables::compile;
use ferrule::backend::iptables::diff::{self, Held, Part};
use ferrule::backend::iptables::netlink::Counters;
use ferrule::backend::iptables::restore::Input;
use ferrule::cluster::ClusterState;
use ferrule::fixtures::{self, NODE, cluster};
use ferrule::net::IpFamily;
use ferrule::plan::{Backend, Plan};

/// Numbers of Services, each with [`ENDPOINTS`].
const SIZES: [usize; 3] = [10, 1_000, 10_000];
const ENDPOINTS: usize = 10;

const IPTABLES: apply::Settings = apply::Settings {
    mark: 1 << 14,
    drop_invalid: true,
    layout: compile::Layout { bucketed_services: false, compact_endpoints: false },
};
const COUNTERS: Counters = Counters { invalid_dropped: true, localhost_accepted: true };

fn plan(services: usize) -> Plan {
    let mut state = ClusterState::new();
    for event in cluster(services, ENDPOINTS).events() {
        state.apply(event);
    }
    fixtures::plan(&state, &fixtures::settings(NODE, "10.128.0.0/9"), IpFamily::V4)
}

fn one_service(criterion: &mut Criterion) {
    let plan = plan(1);
    let (name, service) = plan.services().first_key_value().unwrap();
    let style = style(&plan.node, false, &IPTABLES, true, COUNTERS);
    let mut group = criterion.benchmark_group("compile/one-service-of-10-endpoints");
    group.bench_function("rules", |bencher| bencher.iter(|| compile::service(name, service, &style)));
    let mut changed = (**service).clone();
    let replaced = |(i, backend): (usize, Backend)| Backend { port: backend.port + u16::from(i == 0), ..backend };
    changed.cluster = changed.cluster.iter().enumerate().map(replaced).collect();
    group.bench_function("difference-as-text", |bencher| {
        bencher.iter(|| {
            let held = Held { plan: service, style: &style, certain: true, hooked: true };
            let changes = diff::service(name, Some(&held), Some(&changed), &style, Part::Whole);
            Input::render(std::iter::once(&changes)).text
        });
    });
}

fn everything(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile/everything-to-text");
    group.sample_size(10);
    for services in SIZES {
        let plan = plan(services);
        let text = first_input(&plan, &IPTABLES, true, COUNTERS);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| first_input(black_box(&plan), &IPTABLES, true, COUNTERS));
        });
    }
}

criterion_group!(benches, one_service, everything);
criterion_main!(benches);
