//! What is particular to nftables mode: all that has to be in the table, and how the kernel is asked whether it is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ferrule::backend::nftables::kernel::Table;
use ferrule::backend::nftables::ruleset::Set;
use ferrule::cli::render;
use ferrule::net::IpFamily;

use crate::cluster::{Cluster, cluster_ip};
use crate::proxy::Proxy;
use crate::rules;
use crate::world::{World, call};

/// Elements by set.
pub struct Elements(BTreeMap<Set, usize>);

/// `nft monitor`, which prints what anybody writes.
pub struct Monitor {
    child: Child,
    elements: Arc<AtomicUsize>,
}

/// Services that are asked whether they answer before the whole table is read.
const SAMPLE: usize = 64;

/// Everything a proxy of this cluster has to write, as input of `nft -f -`.
pub fn text(cluster: &Cluster) -> String {
    render::nftables(rules::events(cluster), &rules::settings(), 1 << 14, IpFamily::V4)
}

/// The set or map to which a line of such a text adds an element.
pub fn of_element(line: &str) -> Option<&str> {
    line.strip_prefix("add element ip kube-proxy ")?.split(' ').next()
}

/// Waits until the kernel holds all elements, and says since when. Services answer then, but only the kernel knows whether
/// there is something else to come: so it is asked, once, as that takes time from the proxy.
pub fn await_elements(elements: &Elements, cluster: &Cluster, proxy: &mut Proxy, limit: Duration) -> Option<Instant> {
    // The last one by its name is among them.
    let last = (0..cluster.services).max_by_key(|service| Cluster::key(*service));
    let mut waiting: Vec<usize> =
        (0..cluster.services).step_by(cluster.services.div_ceil(SAMPLE)).chain(last).collect();
    while let Some(service) = waiting.last() {
        match call(cluster_ip(*service)) {
            Some(_) => {
                waiting.pop();
            }
            None if proxy.is_lost(limit) => return None,
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
    let served = Instant::now();
    let mut was_in = true;
    while !elements.are_in(&mut Table::new(IpFamily::V4)) {
        if proxy.is_lost(limit) {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
        was_in = false;
    }
    Some(if was_in { served } else { Instant::now() })
}

// === impl Elements ===

impl Elements {
    /// What a text adds. On which of its addresses a node serves node ports is left aside.
    pub fn of(text: &str) -> Elements {
        let mut sets = BTreeMap::new();
        for set in text.lines().filter_map(of_element).filter_map(Set::named).filter(|set| *set != Set::NodePortIps) {
            *sets.entry(set).or_default() += 1;
        }
        Elements(sets)
    }

    fn are_in(&self, table: &mut Table) -> bool {
        self.0.iter().all(|(set, many)| table.elements(*set).is_ok_and(|found| found.len() == *many))
    }
}

// === impl Monitor ===

impl Monitor {
    /// Begins to listen. It takes a moment, in which it reads the whole table.
    pub fn start(world: &World) -> Monitor {
        let mut child = world
            .command("setpriv")
            .args(["--pdeathsig", "KILL", "--", "nft", "monitor", "elements"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nft monitor");
        let (stdout, elements) = (child.stdout.take().unwrap(), Arc::new(AtomicUsize::new(0)));
        let seen = elements.clone();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            // Addresses for node ports are written along with rules.
            let is_of_service = |line: &String| line.contains(" element ") && !line.contains(" nodeport-ips ");
            for _ in lines.filter(is_of_service) {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        Monitor { child, elements }
    }

    /// Elements that came or went.
    pub fn stop(mut self) -> Option<usize> {
        let ended_by_itself = self.child.try_wait().unwrap().is_some();
        let _ = self.child.kill();
        let _ = self.child.wait();
        (!ended_by_itself).then(|| self.elements.load(Ordering::Relaxed))
    }
}
