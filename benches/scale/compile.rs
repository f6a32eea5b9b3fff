//! Planning a cluster and compiling its rules, in this process: what that takes without a kernel.

use std::fs;
use std::hint::black_box;
use std::time::Duration;

use ferrule::backend::iptables::apply::{first_input, style};
use ferrule::backend::iptables::compile;
use ferrule::backend::iptables::netlink::Counters;
use ferrule::cluster::ClusterState;
use ferrule::fixtures;
use ferrule::net::IpFamily;

use crate::cluster::Cluster;
use crate::options::RulesLayout;
use crate::rules;

/// CPU times, each the middle one of several.
pub struct Compiled {
    /// Of planning every Service port of IPv4 from nothing.
    pub plan: Duration,
    /// Of compiling the rules of each.
    pub rules: Duration,
    /// Of the input for `iptables-restore`, which compiles them too.
    pub text: Duration,
}

const TIMES: usize = 5;

/// Plans and compiles everything that the cluster has, time and again.
pub fn measure(cluster: &Cluster, layout: RulesLayout) -> Compiled {
    let (settings, iptables) = (rules::settings(), rules::iptables(layout));
    let mut state = ClusterState::new();
    for event in rules::events(cluster) {
        state.apply(event);
    }
    let counters = Counters::default();
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..TIMES {
        let (plan, took) = timed(|| fixtures::plan(&state, &settings, IpFamily::V4));
        times[0].push(took);
        let style = style(&plan.node, true, &iptables, true, counters);
        let ((), took) = timed(|| {
            for (name, service) in plan.services() {
                black_box(compile::service(name, service, &style));
            }
        });
        times[1].push(took);
        times[2].push(timed(|| black_box(first_input(&plan, &iptables, true, counters)).len()).1);
    }
    let [plan, rules, text] = times.map(|mut times| {
        times.sort();
        times[TIMES / 2]
    });
    Compiled { plan, rules, text }
}

/// What it gives, and the CPU time of this thread that it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let ran = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the time this thread ran");
        Duration::from_nanos(text.split(' ').next().and_then(|text| text.parse().ok()).expect("a number"))
    };
    let before = ran();
    let result = work();
    (result, ran() - before)
}
