//! The table.

use std::fs;
use std::process::Command;

use crate::figures::{Figure, GAVE_UP, Section, WRONG};
use crate::options::{Case, tools};
use crate::proxy::Subject;
use crate::world::Variant;

/// Prints everything as Markdown.
pub fn print(figures: &[Figure]) {
    println!("{}", machine());
    let compared = figures.iter().any(|figure| figure.subject == Subject::KubeProxy);
    let (mut met, mut missed) = (0, 0);
    for section in Section::ALL {
        let rows: Vec<&Figure> =
            figures.iter().filter(|f| f.section == section && f.subject == Subject::Ferrule).collect();
        if rows.is_empty() {
            continue;
        }
        println!("\n### {}\n", section.title());
        let (head, line) = match compared {
            true => (" kube-proxy | ratio |", "---:|---:|"),
            false => ("", ""),
        };
        println!("| tools | Services x endpoints | figure | ferrule | bare tool | ratio |{head} target | |");
        println!("|---|---:|---|---:|---:|---:|{line}---|---|");
        for figure in rows {
            let times = |other: Option<f64>| match other {
                Some(other) if other > 0.0 => format!("{:.2}", figure.value / other),
                _ => String::new(),
            };
            let shown = |value: Option<f64>| value.map_or(String::new(), |value| figure.unit.show(value));
            let other = figures.iter().find(|other| {
                other.subject == Subject::KubeProxy
                    && (other.variant, other.rules, other.services, other.endpoints)
                        == (figure.variant, figure.rules, figure.services, figure.endpoints)
                    && (other.section, &other.name) == (figure.section, &figure.name)
            });
            let other = other.map(|other| other.value);
            let of_other = if compared { format!(" {} | {} |", shown(other), times(other)) } else { String::new() };
            let target = figure.target();
            let verdict = match target.and_then(|target| target.is_met(figure)) {
                Some(true) => "PASS",
                Some(false) => "MISS",
                None => "",
            };
            met += usize::from(verdict == "PASS");
            missed += usize::from(verdict == "MISS");
            println!(
                "| {} | {} x {} | {} | {} | {} | {} |{of_other} {} | {verdict} |",
                tools(figure.variant, figure.rules),
                thousands(figure.services),
                figure.endpoints,
                figure.name,
                figure.unit.show(figure.value),
                shown(figure.bare),
                times(figure.bare),
                target.map_or(String::new(), |target| target.show(figure.unit)),
            );
        }
    }
    println!("\n{met} targets met, {missed} missed.");
}

/// What of it cannot be right, or is missing.
pub fn complaints(cases: &[Case], figures: &[Figure]) -> Vec<String> {
    let mut complaints = Vec::new();
    for case in cases {
        let label = case.label();
        let of_case = |figure: &&Figure| {
            figure.subject == Subject::Ferrule
                && (figure.variant, figure.rules, figure.services, figure.endpoints)
                    == (case.variant, case.rules, case.services, case.endpoints)
        };
        for section in &case.sections {
            let mut here = figures.iter().filter(of_case).filter(|figure| figure.section == *section).peekable();
            if here.peek().is_none() {
                complaints.push(format!("{label}: nothing was measured of {}", section.name()));
            }
            for figure in here {
                match figure.name.as_str() {
                    WRONG if figure.value > 0.0 => {
                        complaints.push(format!("{label}: {}: {} {WRONG}", section.name(), figure.value));
                    }
                    GAVE_UP => complaints.push(format!("{label}: {}: not all rules came in", section.name())),
                    _ => {}
                }
            }
        }
    }
    complaints
}

/// 10000 as 10,000.
pub fn thousands(number: usize) -> String {
    match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1_000), number % 1_000),
    }
}

/// On what this was measured.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split(':').nth(1))
            .map(|v| v.trim().to_owned())
    };
    let processor = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let version = |variant: Variant| {
        let output = match variant {
            Variant::Legacy | Variant::Nft => Command::new(variant.binary()?).args(["iptables", "--version"]).output(),
            Variant::Nftables => Command::new("nft").arg("--version").output(),
        };
        Some(String::from_utf8_lossy(&output.ok()?.stdout).trim().to_owned())
    };
    let tools: Vec<String> = Variant::ALL.into_iter().filter_map(version).collect();
    format!(
        "{processor}, {cores} cores, {:.0} GiB, kernel {}; {}; ferrule {}",
        memory.unwrap_or(0.0) / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        tools.join(", "),
        env!("CARGO_PKG_VERSION"),
    )
}
