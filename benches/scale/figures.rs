//! What was measured, and what was to be reached.

use serde::{Deserialize, Serialize};

use crate::options::RulesLayout;
use crate::proxy::Subject;
use crate::world::Variant;

/// One figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub section: Section,
    pub variant: Variant,
    pub rules: RulesLayout,
    pub services: usize,
    pub endpoints: usize,
    pub subject: Subject,
    pub name: String,
    pub value: f64,
    pub unit: Unit,
    /// What the bare tool took in the same run.
    pub bare: Option<f64>,
}

/// Parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Section {
    Start,
    Connect,
    Change,
    Churn,
    Restart,
    Memory,
    Compile,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    Seconds,
    Mebibytes,
    Number,
    Times,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The figure itself, at most.
    Value(f64),
    /// So many times what the bare tool took, at most.
    TimesBare(f64),
}

// === impl Section ===

impl Section {
    pub const ALL: [Section; 7] = [
        Section::Start,
        Section::Connect,
        Section::Change,
        Section::Churn,
        Section::Restart,
        Section::Memory,
        Section::Compile,
    ];

    /// By this it is chosen on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Section::Start => "start",
            Section::Connect => "connect",
            Section::Change => "change",
            Section::Churn => "churn",
            Section::Restart => "restart",
            Section::Memory => "memory",
            Section::Compile => "compile",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Section::Start => "Start into an empty kernel",
            Section::Connect => "First packet of a connection",
            Section::Change => "One endpoint replaced",
            Section::Churn => "20 slice changes per second",
            Section::Restart => "Restart over rules that are right",
            Section::Memory => "Memory",
            Section::Compile => "Compile from nothing, without a kernel",
        }
    }
}

// === impl Unit ===

impl Unit {
    pub fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds if value != 0.0 && value.abs() < 0.001 => format!("{:.0} µs", value * 1e6),
            Unit::Seconds if value < 0.01 => format!("{:.2} ms", value * 1e3),
            Unit::Seconds if value < 0.1 => format!("{:.1} ms", value * 1e3),
            Unit::Seconds if value < 1.0 => format!("{:.0} ms", value * 1e3),
            Unit::Seconds if value < 100.0 => format!("{value:.2} s"),
            Unit::Seconds => format!("{value:.0} s"),
            Unit::Mebibytes => format!("{value:.1} MiB"),
            Unit::Number => format!("{value:.0}"),
            Unit::Times => format!("{value:.2} x"),
        }
    }
}

// === impl Target ===

impl Target {
    pub fn show(self, unit: Unit) -> String {
        match self {
            Target::Value(value) => format!("≤ {}", unit.show(value)),
            Target::TimesBare(times) => format!("≤ {times} x bare"),
        }
    }

    /// Whether it is reached; `None` without the figure it refers to.
    pub fn is_met(self, figure: &Figure) -> Option<bool> {
        let times = |times: f64| figure.bare.map(|bare| times * bare);
        let limit = match self {
            Target::Value(value) => value,
            Target::TimesBare(factor) => times(factor)?,
        };
        Some(figure.value <= limit)
    }
}

// Names of figures that have targets.
pub const GAVE_UP: &str = "gave up after (no figure)";
pub const RULES_IN: &str = "until all rules are in";
pub const LONGEST: &str = "longest program run (restore)";
pub const TRANSACTION: &str = "longest transaction (its own clock)";
pub const CONNECT: &str = "connect to a cluster IP, median";
pub const CONNECT_FAILED: &str = "connections that failed";
pub const FIRST_KUBERNETES: &str = "until default/kubernetes answers";
pub const FIRST_DNS: &str = "until DNS answers";
pub const CHANGE: &str = "event to a connection to the new endpoint, median";
pub const CHANGE_CPU: &str = "CPU per change: the proxy itself";
pub const GROWTH: &str = "the same, compared with that at the smallest size";
pub const CHANGE_PLAN: &str = "of that, planning and comparing (its own clock)";
pub const RESTART_CPU: &str = "CPU with the tools until all is checked";
pub const RESTART_WRITTEN: &str = "elements written (as nft monitor sees it)";
pub const RESTART_FAILED: &str = "connections that failed meanwhile";
pub const SERVED_EARLY: &str = "change 0.5 s after the start: until served";
pub const SERVED_LATER: &str = "change 2 s after the start: until served";
pub const SERVED_LAST: &str = "change 4 s after the start: until served";
pub const RSS: &str = "resident after the first sync";
pub const PEAK: &str = "peak of the proxy";
pub const CHILD: &str = "largest program it ran";
pub const CHURN_CPU: &str = "CPU in total";
pub const CHURN_LAG: &str = "lag of the last change";
pub const WRONG: &str = "Services that do not lead to their endpoints";
pub const COMPILE: &str = "plan and rules of one family: CPU";
pub const ROLLING: &str = "rolling update of 1,000 endpoints: slowest step";

/// Figures that come of comparing sizes: whether what one change costs depends on the cluster, and in nftables mode how
/// long it takes and what a connection takes.
pub fn compared(figures: &[Figure]) -> Vec<Figure> {
    let grows = |figure: &Figure| {
        let name = figure.name.as_str();
        name == CHANGE_CPU || figure.variant == Variant::Nftables && [CHANGE, CONNECT].contains(&name)
    };
    let mut all = Vec::new();
    for figure in figures {
        all.push(figure.clone());
        let alike = figures
            .iter()
            .filter(|other| other.name == figure.name && other.subject_and_tools() == figure.subject_and_tools());
        let least = alike.min_by_key(|other| other.services * other.endpoints);
        if let Some(least) = least.filter(|least| grows(figure) && least.services < figure.services) {
            let value = figure.value / least.value;
            all.push(Figure { name: GROWTH.to_owned(), value, unit: Unit::Times, bare: None, ..figure.clone() });
        }
    }
    all
}

impl Figure {
    fn subject_and_tools(&self) -> (Subject, Variant, RulesLayout) {
        (self.subject, self.variant, self.rules)
    }

    /// What is to be reached, where anything is. Seconds, MiB or a number, as the figure itself.
    pub fn target(&self) -> Option<Target> {
        use Variant::{Legacy, Nft, Nftables};
        let big = self.services >= 5_000;
        match (self.name.as_str(), self.variant) {
            (RULES_IN, Nft) if big => Some(Target::TimesBare(1.3)),
            (RULES_IN, Legacy) => Some(Target::TimesBare(1.2)),
            // Of the largest cluster that is measured.
            (RULES_IN, Nftables) if self.services >= 44_000 => Some(Target::Value(5.0)),
            (LONGEST | TRANSACTION, Nft | Nftables) => Some(Target::Value(0.3)),
            (FIRST_KUBERNETES | FIRST_DNS, _) => Some(Target::Value(1.0)),
            (CHANGE, Nft) => Some(Target::Value(0.06)),
            (CHANGE, Nftables) => Some(Target::Value(0.02)),
            (CHANGE, Legacy) => Some(Target::TimesBare(1.15)),
            (CHANGE_PLAN, _) => Some(Target::Value(0.001)),
            // Equal within noise.
            (GROWTH, _) => Some(Target::Value(1.5)),
            (RESTART_CPU, Legacy) => Some(Target::Value(1.5)),
            (RESTART_FAILED | RESTART_WRITTEN | CONNECT_FAILED | WRONG, _) => Some(Target::Value(0.0)),
            (SERVED_EARLY | SERVED_LATER | SERVED_LAST, Nft | Nftables) => Some(Target::Value(0.2)),
            (RSS, _) => Some(Target::Value(40.0)),
            (PEAK, _) => Some(Target::Value(64.0)),
            (CHILD, Nft | Nftables) => Some(Target::Value(32.0)),
            // A tenth of 2 x 13.9 s and 60 % of 2 x 20.7 s: what kube-proxy took for 30 s.
            (CHURN_CPU, Nft) if big => Some(Target::Value(2.8)),
            (CHURN_CPU, Legacy) if big => Some(Target::Value(24.8)),
            (CHURN_LAG, Nft | Nftables) => Some(Target::Value(crate::world::INTERVAL.as_secs_f64())),
            (COMPILE, _) => Some(Target::Value(0.3)),
            (ROLLING, _) => Some(Target::Value(2.0 * crate::world::INTERVAL.as_secs_f64())),
            _ => None,
        }
    }
}
