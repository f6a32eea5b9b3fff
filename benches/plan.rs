//! From an event to the backend's door: planning what one event changed, and planning everything.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench ends by a panic when something is not as expected")]

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ferrule::backend::{ApplyError, Backend, Intact, Report, Scope};
use ferrule::cluster::{ClusterState, Event};
use ferrule::fixtures::{self, NODE, cluster};
use ferrule::model::{Endpoint, EndpointSlice};
use ferrule::net::IpFamily;
use ferrule::plan::Plan;
use ferrule::sync::Pipeline;
use ferrule::sync::pacer::Pace;
use futures::FutureExt as _;

/// Numbers of Services, each with [`ENDPOINTS`].
const SIZES: [usize; 3] = [10, 1_000, 10_000];
const ENDPOINTS: usize = 10;

/// Nothing here waits.
const PACE: Pace = Pace { min: Duration::ZERO, retry: Duration::from_secs(30), max: Duration::from_secs(3600) };

/// A backend without a kernel: takes what it is given.
struct Door;

impl Backend for Door {
    async fn sync(&mut self, plan: &Plan, scope: &Scope) -> Result<Report, ApplyError> {
        black_box((plan, scope));
        let written = match scope {
            Scope::Services(services) => services.len(),
            Scope::Everything | Scope::Audit => plan.services().len(),
        };
        Ok(Report { written, ..Report::default() })
    }

    async fn check(&mut self) -> Result<Intact, ApplyError> {
        Ok(Intact::Yes)
    }
}

/// A pipeline that has planned a cluster.
fn planned(services: usize) -> (ClusterState, Pipeline<Door>) {
    let mut state = ClusterState::new();
    for event in cluster(services, ENDPOINTS).events() {
        state.apply(event);
    }
    assert!(state.is_synced());
    let settings = fixtures::settings(NODE, "10.128.0.0/9");
    let mut pipeline = Pipeline::new(IpFamily::V4, Arc::new(settings), PACE, Door);
    pipeline.mark_everything();
    assert_eq!(sync(&state, &mut pipeline), services);
    (state, pipeline)
}

/// Syncs, and says how many Service ports were written.
fn sync(state: &ClusterState, pipeline: &mut Pipeline<Door>) -> usize {
    let done = pipeline.begin(state, Duration::ZERO).unwrap().run().now_or_never().unwrap();
    pipeline.end(done, Duration::ZERO).unwrap().written
}

fn one_endpoint_replaced(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan/one-endpoint-replaced");
    for services in SIZES {
        let (mut state, mut pipeline) = planned(services);
        let slice = cluster(services, ENDPOINTS).slices(services / 2).remove(0).model(NODE);
        let versions = ["10.255.0.1", "10.255.0.2"].map(|ip| {
            let first = Endpoint { ip: ip.parse::<IpAddr>().unwrap(), ..slice.endpoints.iter().next().unwrap() };
            let endpoints = std::iter::once(first).chain(slice.endpoints.iter().skip(1)).collect();
            Arc::new(EndpointSlice { endpoints, ..slice.clone() })
        });
        let mut versions = versions.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| {
                let event = Event::EndpointSlice(versions.next().unwrap().clone());
                assert!(pipeline.mark(&state.apply(event)));
                assert_eq!(sync(&state, &mut pipeline), 1);
            });
        });
    }
}

fn everything(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan/everything");
    group.sample_size(20);
    for services in SIZES {
        let (state, mut pipeline) = planned(services);
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| {
                pipeline.mark_everything();
                assert_eq!(sync(&state, &mut pipeline), services);
            });
        });
    }
}

fn first_listing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan/first-listing");
    group.sample_size(20);
    for services in SIZES {
        let events = cluster(services, ENDPOINTS).events();
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| {
                let mut state = ClusterState::new();
                for event in &events {
                    black_box(state.apply(event.clone()));
                }
                state
            });
        });
    }
}

criterion_group!(benches, one_endpoint_replaced, everything, first_listing);
criterion_main!(benches);
