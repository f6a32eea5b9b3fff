//! A client that opens a new connection every few milliseconds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Call, Outcome, Proto};
use crate::objects::{SERVICE_PORT, Service};
use crate::world::{Namespace, World, eventually};

/// A client at work.
pub struct Prober {
    netns: Namespace,
    call: Call,
    made: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Tally>>,
}

/// Clients of a Service in all ways: TCP and UDP, from outside through the node port, and from a pod
/// through the cluster IP.
pub struct Probers(Vec<Prober>);

/// What a prober has seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many connections each pod answered.
    pub answers: BTreeMap<String, u64>,
    /// What was not answered: when, after the start, and how it ended.
    pub failures: Vec<(Duration, String)>,
}

// === impl Prober ===

impl Prober {
    /// Starts a client in a namespace, which makes the call with a pause in between.
    pub fn start(netns: &Namespace, call: Call, pause: Duration) -> Prober {
        let (made, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&made), Arc::clone(&stop));
        let thread = netns.spawn(move || {
            let start = Instant::now();
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                let begun = start.elapsed();
                match call.make() {
                    Outcome::Answer(answer) => *tally.answers.entry(answer.endpoint).or_default() += 1,
                    other => tally.failures.push((begun, other.to_string())),
                }
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(pause);
            }
            tally
        });
        Prober { netns: netns.clone(), call, made, stop, thread: Some(thread) }
    }

    /// Waits until it has begun and ended `times` more connections.
    #[track_caller]
    pub fn go_on(&self, times: u64) {
        let target = self.made.load(Ordering::Relaxed) + times + 1;
        eventually(Duration::from_secs(60), &format!("{times} more of {:?}", self.call), || {
            (self.made.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    /// Ends it and tells what it has seen.
    pub fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }

    /// Ends it; a connection that failed is a failure of the test.
    #[track_caller]
    pub fn finish_unharmed(self) -> Tally {
        let call = self.call;
        let tally = self.finish();
        let total = tally.answers.values().sum::<u64>();
        assert!(total > 0, "{call:?}: never answered");
        assert!(
            tally.failures.is_empty(),
            "{call:?}: {} of {} connections failed, the first of them: {:?}",
            tally.failures.len(),
            total + tally.failures.len() as u64,
            &tally.failures[..tally.failures.len().min(10)]
        );
        tally
    }
}

// === impl Probers ===

impl Probers {
    /// Starts them; `pod` is the client inside.
    pub fn start(world: &World, service: &Service, pod: &str) -> Probers {
        const PAUSE: Duration = Duration::from_millis(3);
        let node_port = SocketAddr::new(service.family.node(), service.node_port.unwrap());
        let cluster = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
        let ways = [(&world.client, node_port), (&world.pod(pod).netns, cluster)];
        let probers = Proto::SOCKETS
            .into_iter()
            .flat_map(|proto| ways.map(|(netns, to)| Prober::start(netns, Call::new(proto, to), PAUSE)));
        let probers = Probers(probers.collect());
        probers.go_on(10);
        probers
    }

    /// Waits until each has begun and ended `times` more connections.
    #[track_caller]
    pub fn go_on(&self, times: u64) {
        self.0.iter().for_each(|prober| prober.go_on(times));
    }

    /// Ends them; one connection that failed, or a packet that had to be sent again, is a failure of
    /// the test. Gives what they have seen.
    #[track_caller]
    pub fn finish_unharmed(self) -> Vec<Tally> {
        let netns: Vec<Namespace> = self.0.iter().map(|prober| prober.netns.clone()).collect();
        let tallies = self.0.into_iter().map(|prober| prober.finish_unharmed()).collect();
        for netns in netns {
            assert_eq!(netns.tcp_counter("TCPSynRetrans"), 0, "{}: TCP had to ask twice", netns.name());
        }
        tallies
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
