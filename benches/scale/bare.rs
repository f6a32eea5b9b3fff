//! The bare tool, fed with the rules of the whole cluster.

use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::options::RulesLayout;
use crate::rules::Rules;
use crate::world::World;

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bare {
    /// From the first start to the last end, in seconds.
    pub wall: f64,
    /// CPU seconds.
    pub cpu: f64,
    /// Longest single run, in seconds.
    pub longest: f64,
    /// Rules written.
    pub rules: usize,
}

/// Programs everything, with so many Services in each input.
pub fn start(world: &World, cluster: &Cluster, layout: RulesLayout, split: usize) -> Option<Bare> {
    let rules = Rules::new(cluster, layout);
    let inputs = rules.inputs(split);
    let before = crate::process::cpu(std::process::id()).1;
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    for input in &inputs {
        let took = restore(world, input)?;
        longest = longest.max(took);
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu = (crate::process::cpu(std::process::id()).1 - before).as_secs_f64();
    Some(Bare { wall, cpu, longest: longest.as_secs_f64(), rules: rules.count() })
}

/// Runs `iptables-restore` once, as ferrule does.
pub fn restore(world: &World, input: &str) -> Option<Duration> {
    let began = Instant::now();
    let mut child = world
        .command("iptables-restore")
        .args(["-w", "5", "--noflush", "--counters"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iptables-restore");
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        child.wait_with_output().unwrap()
    });
    let took = began.elapsed();
    if !output.status.success() {
        eprintln!("scale: the bare tool failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(took)
}
