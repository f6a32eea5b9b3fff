//! What is asked for on the command line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::BIG;
use crate::figures::Section;
use crate::report::thousands;
use crate::run::Limits;
use crate::world::Variant;

const USAGE: &str = "usage: cargo bench --bench scale -- [WORD...] [--quick] [--dual-stack] [--test]

WORDs choose what is measured; of each sort, without one: what targets are about.
  section   start, connect, change, churn, restart, memory, compile
  tools     legacy, nft (iptables mode), nftables (nftables mode)
  size      SERVICES or SERVICESxENDPOINTS, as 10000x10
  layout    compact, bucketed: ferrule's optional layouts of rules in iptables mode
  scale     this bench and no other (for `make bench`)

--quick        1,000 Services, and less of everything
--dual-stack   Services of both families
--test         100 Services: only whether it works";

/// Endpoints of a Service where nothing else is said.
const ENDPOINTS: usize = 10;

/// A size, and what is measured of it.
type Size = (usize, usize, &'static [Section]);

/// What is measured of iptables mode by default.
const IPTABLES: [Size; 6] = [
    (100, ENDPOINTS, &[Section::Change]),
    (1_000, ENDPOINTS, &[Section::Start, Section::Change, Section::Memory]),
    (5_000, ENDPOINTS, &[Section::Start, Section::Memory]),
    (10_000, ENDPOINTS, &Section::ALL),
    CONNECTS[0],
    CONNECTS[1],
];

/// What is measured of it in other layouts, too: sizes that nftables mode is measured at.
const CONNECTS: [Size; 2] = [(1_000, 2, &[Section::Connect]), (8_000, 2, &[Section::Connect])];

/// What is measured of nftables mode by default.
const NFTABLES: [Size; 5] = [
    (1_000, 2, &[Section::Start, Section::Connect, Section::Change, Section::Memory]),
    (8_000, 2, &[Section::Start, Section::Connect, Section::Change, Section::Memory]),
    (16_000, 2, &[Section::Start, Section::Connect, Section::Change, Section::Memory]),
    (44_000, 2, &[Section::Start, Section::Connect, Section::Change, Section::Memory, Section::Restart]),
    (10_000, 10, &[Section::Churn]),
];

/// The command line.
#[derive(Clone, Debug)]
pub struct Options {
    sections: Vec<Section>,
    variants: Vec<Variant>,
    sizes: Vec<(usize, usize)>,
    /// Words that mean nothing here.
    foreign: bool,
    pub dual_stack: bool,
    rules: RulesLayout,
    pub smoke: bool,
    pub limits: Limits,
}

/// Where rules stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesLayout {
    /// `--ferrule-endpoint-layout=compact`
    pub compact: bool,
    /// `--ferrule-service-dispatch=bucketed`
    pub bucketed: bool,
}

/// One variant and one size.
#[derive(Clone, Debug)]
pub struct Case {
    pub variant: Variant,
    pub rules: RulesLayout,
    pub services: usize,
    pub endpoints: usize,
    pub sections: Vec<Section>,
}

// === impl RulesLayout ===

impl RulesLayout {
    /// The flags that ask for it.
    pub fn flags(self) -> impl Iterator<Item = &'static str> {
        let compact = self.compact.then_some("--ferrule-endpoint-layout=compact");
        compact.into_iter().chain(self.bucketed.then_some("--ferrule-service-dispatch=bucketed"))
    }
}

// === impl Case ===

impl Case {
    /// What it is called.
    pub fn label(&self) -> String {
        format!("{} {} x {}", tools(self.variant, self.rules), thousands(self.services), self.endpoints)
    }
}

/// With what rules are written, and where.
pub fn tools(variant: Variant, rules: RulesLayout) -> String {
    let words = [(rules.compact, " compact"), (rules.bucketed, " bucketed")];
    words.into_iter().filter(|(is_so, _)| *is_so).fold(variant.name().to_owned(), |name, (_, word)| name + word)
}

// === impl Options ===

impl Options {
    pub fn read(words: impl Iterator<Item = String>) -> Result<Options, String> {
        let limits = Limits {
            changes: 20,
            churn: Duration::from_secs(60),
            steps: BIG / 100,
            connects: 3_000,
            quiet: Duration::from_secs(2),
            rules: Duration::from_secs(300),
        };
        let mut options = Options {
            sections: Vec::new(),
            variants: Vec::new(),
            sizes: Vec::new(),
            foreign: false,
            dual_stack: false,
            rules: RulesLayout::default(),
            smoke: false,
            limits,
        };
        let (mut quick, mut bench) = (false, false);
        for word in words {
            let section = Section::ALL.into_iter().find(|section| section.name() == word);
            let variant = Variant::ALL.into_iter().find(|variant| variant.name() == word);
            match word.as_str() {
                "--bench" => bench = true,
                "--quick" => quick = true,
                "--dual-stack" => options.dual_stack = true,
                "--test" => options.smoke = true,
                "--help" | "-h" => return Err(USAGE.to_owned()),
                "scale" => {}
                "compact" => options.rules.compact = true,
                "bucketed" => options.rules.bucketed = true,
                _ if section.is_some() => options.sections.extend(section),
                _ if variant.is_some() => options.variants.extend(variant),
                _ if word.starts_with('-') => return Err(format!("scale: {word}?\n{USAGE}")),
                _ => match size(&word) {
                    Some(size) => options.sizes.push(size),
                    None => options.foreign = true,
                },
            }
        }
        // Not run by `cargo bench`: `cargo test --benches` wants to know whether it works.
        options.smoke |= !bench;
        if options.smoke || quick {
            options.limits.changes = if options.smoke { 2 } else { 6 };
            options.limits.churn = Duration::from_secs(if options.smoke { 2 } else { 10 });
            options.limits.steps = if options.smoke { 2 } else { BIG / 100 };
            options.limits.connects = if options.smoke { 50 } else { 1_000 };
            options.limits.quiet = Duration::from_millis(if options.smoke { 300 } else { 1_500 });
            options.limits.rules = Duration::from_secs(60);
            if options.sizes.is_empty() {
                options.sizes.push(if options.smoke { (100, 2) } else { (1_000, ENDPOINTS) });
            }
        }
        Ok(options)
    }

    /// What is to be measured.
    pub fn cases(&self) -> Vec<Case> {
        if self.foreign {
            return Vec::new();
        }
        let wanted = |section: &Section| self.sections.is_empty() || self.sections.contains(section);
        let bucketed = RulesLayout { bucketed: true, ..self.rules };
        let mut cases = Vec::new();
        for variant in Variant::ALL {
            if !self.variants.is_empty() && !self.variants.contains(&variant) {
                continue;
            }
            let (sizes, rules) = match variant {
                Variant::Legacy | Variant::Nft => (&IPTABLES[..], self.rules),
                Variant::Nftables => (&NFTABLES[..], RulesLayout::default()),
            };
            let mut all: Vec<(RulesLayout, Size)> = Vec::new();
            if self.sizes.is_empty() {
                all.extend(sizes.iter().map(|size| (rules, *size)));
                if variant != Variant::Nftables && rules != bucketed {
                    all.extend(CONNECTS.map(|size| (bucketed, size)));
                }
            }
            all.extend(
                self.sizes.iter().map(|(services, endpoints)| (rules, (*services, *endpoints, &Section::ALL[..]))),
            );
            // What is compiled without a kernel is compiled for iptables mode.
            let is_there = |section: &Section| variant != Variant::Nftables || *section != Section::Compile;
            cases.extend(all.into_iter().map(|(rules, (services, endpoints, sections))| {
                let sections = sections.iter().copied().filter(wanted).filter(is_there).collect();
                Case { variant, rules, services, endpoints, sections }
            }));
        }
        cases.retain(|case| !case.sections.is_empty());
        cases
    }

    /// The most that a case may take.
    pub fn case_limit(&self) -> Duration {
        let changes = u32::try_from(self.limits.changes).unwrap();
        self.limits.rules * 4 + self.limits.churn * 2 + Duration::from_secs(5) * changes + Duration::from_secs(120)
    }
}

fn size(word: &str) -> Option<(usize, usize)> {
    let (services, endpoints) = word.split_once('x').unwrap_or((word, "10"));
    let (services, endpoints) = (services.parse().ok()?, endpoints.parse().ok()?);
    (services >= 2 && endpoints >= 1).then_some((services, endpoints))
}
