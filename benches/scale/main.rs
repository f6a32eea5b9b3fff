//! The built ferrule at scale: as a process of its own, beside an API server that serves a big
//! cluster, with the real programs that write rules, in network namespaces made for it. See README.md in the
//! folder above.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench ends by a panic when something is not as expected"
)]

mod api;
mod bare;
mod cluster;
mod compile;
mod connect;
mod figures;
mod nftables;
mod options;
mod process;
mod proxy;
mod report;
mod rules;
mod run;
mod world;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bare::Bare;
use figures::Figure;
use options::{Case, Options};
use proxy::Subject;
use run::Order;
use world::Variant;

/// The argument by which this program starts itself.
const ORDER: &str = "--order";

/// Numbers of Services in an input of the bare nft tool, of which the best is what counts. The last
/// ones are left out once they are clearly worse.
const SPLITS: [usize; 4] = [50, 100, 250, 500];
/// Everything in one input.
const SINGLE: usize = usize::MAX;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(ORDER) {
        let order: Order = serde_json::from_str(&arguments.next().expect("an order")).expect("an order");
        run::obey(order);
        return ExitCode::SUCCESS;
    }
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let cases = options.cases();
    if cases.is_empty() {
        println!("scale: nothing here matches");
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("scale: network namespaces need root");
        return ExitCode::FAILURE;
    }
    let dir = tempfile::Builder::new().prefix("ferrule-scale-").tempdir().expect("a directory for temporary files");
    let began = Instant::now();
    let mut figures = Vec::new();
    for case in &cases {
        figures.extend(measure(case, &options, dir.path()));
    }
    eprintln!("scale: {:.0} s", began.elapsed().as_secs_f64());
    report::print(&figures::compared(&figures));
    // How fast it is only a look at the table can tell; but it must have been measured, and the
    // rules must be right.
    let complaints = report::complaints(&cases, &figures);
    complaints.iter().for_each(|complaint| eprintln!("scale: {complaint}"));
    if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One variant and size, with all its sections and what it is compared with.
fn measure(case: &Case, options: &Options, dir: &std::path::Path) -> Vec<Figure> {
    let Case { variant, rules, services, endpoints, sections } = case.clone();
    let label = case.label();
    let order = |subject, bare, split| Order {
        dir: dir.to_owned(),
        subject,
        variant,
        services,
        endpoints,
        dual_stack: options.dual_stack,
        rules,
        sections: sections.clone(),
        limits: options.limits,
        bare,
        split,
    };
    let mut best: Option<Bare> = None;
    if sections.contains(&figures::Section::Start) {
        let splits = match variant {
            Variant::Legacy | Variant::Nftables => vec![SINGLE],
            Variant::Nft => SPLITS.into_iter().filter(|split| *split < services).chain([SINGLE]).collect(),
        };
        for split in splits {
            process::await_quiet_machine(Duration::from_secs(20));
            let lines = give(&order(Subject::Ferrule, None, Some(split)), Duration::from_secs(120));
            let took: Option<Bare> = lines.iter().find_map(|line| serde_json::from_str(line).ok());
            let name = if split == SINGLE { "one input".to_owned() } else { format!("{split} Services each") };
            match took {
                Some(took) => eprintln!(
                    "scale: {label}: bare tool, {name}: {:.2} s, {:.2} s of CPU, longest {:.0} ms, {} {}",
                    took.wall,
                    took.cpu,
                    1e3 * took.longest,
                    took.rules,
                    if variant == Variant::Nftables { "elements" } else { "rules" },
                ),
                None => eprintln!("scale: {label}: bare tool, {name}: no result"),
            }
            let clearly_worse = matches!((best, took), (Some(best), Some(took)) if took.wall > 1.2 * best.wall);
            best = [best, took].into_iter().flatten().min_by(|a, b| a.wall.total_cmp(&b.wall));
            if clearly_worse {
                break;
            }
        }
    }
    let mut subjects = vec![Subject::Ferrule];
    if std::env::var_os("KUBE_PROXY").is_some() {
        subjects.push(Subject::KubeProxy);
    }
    let mut figures = Vec::new();
    for subject in subjects {
        eprintln!("scale: {label}: {}", subject.name());
        let bare = best.filter(|_| subject == Subject::Ferrule);
        let lines = give(&order(subject, bare, None), options.case_limit());
        figures.extend(lines.iter().filter_map(|line| serde_json::from_str::<Figure>(line).ok()));
    }
    figures
}

/// Starts this program once more with an order, and gives what it printed. It ends with this one.
fn give(order: &Order, limit: Duration) -> Vec<String> {
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args([ORDER, &serde_json::to_string(order).unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("setpriv (package util-linux) is to start");
    let stdout = child.stdout.take().unwrap();
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + limit;
    let mut got = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => got.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!("scale: given up after {} s", limit.as_secs());
                let _ = child.kill();
                break;
            }
        }
    }
    let _ = child.wait();
    got
}
