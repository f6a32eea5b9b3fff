//! The bare tool, fed with the rules of the whole cluster.

use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::nftables;
use crate::options::RulesLayout;
use crate::rules::Rules;
use crate::world::{Variant, World};

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bare {
    /// From the first start to the last end, in seconds.
    pub wall: f64,
    /// CPU seconds.
    pub cpu: f64,
    /// Longest single run, in seconds.
    pub longest: f64,
    /// Rules written; elements, where these are what counts.
    pub rules: usize,
}

/// Programs everything: for the nft tools of iptables with so many Services in each input.
pub fn start(world: &World, cluster: &Cluster, layout: RulesLayout, split: usize) -> Option<Bare> {
    let (inputs, rules) = match world.variant {
        Variant::Legacy | Variant::Nft => {
            let rules = Rules::new(cluster, layout);
            (rules.inputs(split), rules.count())
        }
        Variant::Nftables => {
            let text = nftables::text(cluster);
            let elements = text.lines().filter_map(nftables::of_element).count();
            (vec![text], elements)
        }
    };
    let before = crate::process::cpu(std::process::id()).1;
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    for input in &inputs {
        let took = write(world, input)?;
        longest = longest.max(took);
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu = (crate::process::cpu(std::process::id()).1 - before).as_secs_f64();
    Some(Bare { wall, cpu, longest: longest.as_secs_f64(), rules })
}

/// Runs the tool once: `iptables-restore` as ferrule does.
pub fn write(world: &World, input: &str) -> Option<Duration> {
    let (program, arguments): (_, &[&str]) = match world.variant {
        Variant::Legacy | Variant::Nft => ("iptables-restore", &["-w", "5", "--noflush", "--counters"]),
        Variant::Nftables => ("nft", &["-f", "-"]),
    };
    let began = Instant::now();
    let mut child = world
        .command(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tool is to start");
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
