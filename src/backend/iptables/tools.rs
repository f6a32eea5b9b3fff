//! The iptables programs of one family: running them, and what their answers mean.

use std::collections::BTreeSet;
use std::time::Duration;

use super::diff::JUMPS;
use super::names::{self, ChainName};
use super::parse;
use super::ruleset::{Match, Rule, Table, Target};
use super::snapshot::Snapshot;
use super::variant::{choose, full_name};
use crate::backend::ApplyError;
use crate::backend::iptables::compile::{Layout, Shared};
use crate::command::{Command, CommandError, Output, Run};
use crate::net::IpFamily;

/// Exit code of the iptables programs when it is not the input that is wrong. (iptables:
/// `RESOURCE_PROBLEM`.)
const RESOURCE_PROBLEM: i32 = 4;

/// How often a family is looked for.
const PROBES: usize = 3;
/// The pause in between.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// Chains of ours with rules that belong to no Service.
const FIXED: [(Table, ChainName); 6] = [
    (Table::Nat, names::POSTROUTING),
    (Table::Nat, names::MARK_MASQ),
    (Table::Nat, names::CANARY),
    (Table::Filter, names::FORWARD),
    (Table::Filter, names::FIREWALL),
    (Table::Filter, names::CANARY),
];

/// The programs of one family.
#[derive(Clone, Debug)]
pub struct Tools<R> {
    run: R,
    family: IpFamily,
    /// The variant whose full names they are called by; without one, by their plain names.
    full_names: Option<Variant>,
    /// What they can do.
    pub features: Features,
}

/// What a version of the programs can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Variant of the programs.
    pub variant: Variant,
    /// `MASQUERADE --random-fully` (1.6.2).
    pub random_fully: bool,
    /// `iptables-restore -w SECONDS` (1.6.2).
    pub restore_waits: bool,
    /// Addresses under any mask. (Some nft programs before 1.8.8 lose one that begins with a zero byte.)
    pub any_mask: bool,
}

/// The two variants of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Swaps whole tables in the kernel.
    Legacy,
    /// Translates to nftables, rule by rule.
    Nft,
}

/// How a restore that did not succeed should be looked at.
#[derive(Debug)]
pub enum RestoreError {
    /// Input refused: by the program or by the kernel.
    Refused {
        /// What the program said.
        detail: String,
        /// The line it named, from 1; a hint, no proof.
        line: Option<usize>,
    },
    /// Everything else: try again later.
    Other(ApplyError),
}

// === impl Features ===

impl Features {
    /// Reads `iptables v1.8.9 (nf_tables)`.
    pub fn parse(version: &str) -> Option<Features> {
        let number = version.split(' ').find_map(|word| word.strip_prefix('v'))?;
        let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
        let version_number = (parts.next()??, parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0));
        let modern = version_number >= (1, 6, 2);
        let variant = if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy };
        let any_mask = variant == Variant::Legacy || version_number >= (1, 8, 8);
        Some(Features { variant, random_fully: modern, restore_waits: modern, any_mask })
    }
}

// === impl Tools ===

impl<R: Run> Tools<R> {
    /// Asks the programs of a family for their version, and whether the kernel has its nat table.
    /// (kube-proxy: the family is supported if `iptables -S POSTROUTING -t nat` works.)
    ///
    /// `iptables` is whatever it is on this system; where there is none, but the variants are there
    /// under their full names, the one that the host uses. (kube-proxy: `iptables-wrapper`.)
    ///
    /// `is_there` may know without a program that the legacy kernel has the table: these programs read
    /// the whole of it whatever they are asked. [`is_loaded`] does.
    pub async fn probe(run: R, family: IpFamily, is_there: fn(IpFamily) -> bool) -> Result<Tools<R>, ApplyError> {
        let (tools, _) = Tools::find(run, family).await?;
        if tools.features.variant == Variant::Legacy && is_there(family) {
            return Ok(tools);
        }
        let args = ["-w", "5", "-S", "POSTROUTING", "-t", "nat"];
        let output = tools.run.run(tools.command("", &args), &mut |_| {}).await?;
        if output.success() {
            return Ok(tools);
        }
        match tools.failed(&format!("{} {}", tools.program(""), args.join(" ")), &output) {
            // Whoever holds the lock works on these very tables: they are there.
            ApplyError::Busy { .. } => Ok(tools),
            error => Err(error),
        }
    }

    /// The same, but a failure that may pass is looked at again: a family that is there must not be
    /// given up because of a bad moment.
    pub async fn probe_patiently(
        run: R,
        family: IpFamily,
        is_there: fn(IpFamily) -> bool,
    ) -> Result<Tools<R>, ApplyError>
    where
        R: Clone,
    {
        let mut tries = 1;
        loop {
            match Tools::probe(run.clone(), family, is_there).await {
                Err(error) if tries < PROBES && !error.is_not_installed() => {
                    tracing::debug!(%family, %error, "trying again");
                    tries += 1;
                    tokio::time::sleep(PROBE_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// The programs of a family and what they say about their version. The kernel is not asked for
    /// any table.
    ///
    /// # Errors
    ///
    /// If they are not installed or do not answer.
    pub async fn find(run: R, family: IpFamily) -> Result<(Tools<R>, String), ApplyError> {
        let unknown = Features { variant: Variant::Legacy, random_fully: true, restore_waits: true, any_mask: true };
        let mut tools = Tools { run, family, full_names: None, features: unknown };
        let (output, version) = match tools.version().await {
            Err(missing) if missing.is_not_installed() => {
                tools.full_names = Some(choose(&tools.run).await?.ok_or(missing)?);
                tools.version().await?
            }
            answer => answer?,
        };
        tools.features = Features::parse(&version).filter(|_| output.success()).ok_or_else(|| ApplyError::Failed {
            program: format!("{} --version", tools.program("")),
            detail: if version.is_empty() { output.complaint().to_owned() } else { version.clone() },
        })?;
        Ok((tools, version))
    }

    async fn version(&self) -> Result<(Output, String), CommandError> {
        let mut version = String::new();
        let output = self.run.run(self.command("", &["--version"]), &mut |line| version.push_str(line)).await?;
        Ok((output, version))
    }

    /// Writes. The kernel takes each table as a whole or not at all, one after the other. The input comes
    /// in parts, about so many bytes in all.
    pub async fn restore(
        &self,
        bytes: usize,
        parts: &mut (dyn FnMut() -> Option<String> + Send),
    ) -> Result<(), RestoreError> {
        let args: &[&str] = match self.features.restore_waits {
            true => &["-w", "5", "--noflush", "--counters"],
            false => &["--noflush", "--counters"],
        };
        let program = self.program("-restore");
        let command = self.command("-restore", args).within(restore_limit(bytes));
        let output = self.run.run_fed(command, parts, &mut |_| {}).await.map_err(|e| RestoreError::Other(e.into()))?;
        if output.success() {
            return Ok(());
        }
        let line = named_line(&output.stderr);
        match self.failed(&program, &output) {
            // "Resource problem", and no rule is named (the nft programs name one when they mean it):
            // no fault of any Service.
            error @ ApplyError::Failed { .. } if output.code == RESOURCE_PROBLEM && line.is_none() => {
                Err(RestoreError::Other(error))
            }
            ApplyError::Failed { detail, .. } => Err(RestoreError::Refused { line, detail }),
            other => Err(RestoreError::Other(other)),
        }
    }

    /// The same with input that is all there.
    pub async fn restore_text(&self, text: String) -> Result<(), RestoreError> {
        let (bytes, mut once) = (text.len(), Some(text));
        self.restore(bytes, &mut || once.take()).await
    }

    /// Reads every chain of the nat and filter tables.
    pub async fn read_all(&self) -> Result<Snapshot, ApplyError> {
        let mut snapshot = Snapshot::new(true);
        for table in [Table::Nat, Table::Filter] {
            snapshot.begin(table);
            self.save(table, &mut |line| snapshot.line(line)).await?;
        }
        Ok(snapshot)
    }

    /// Reads a table, in the form in which `restore` takes it.
    pub async fn save(&self, table: Table, line: &mut (dyn FnMut(&str) + Send)) -> Result<(), ApplyError> {
        let program = self.program("-save");
        let output = self.run.run(self.command("-save", &["-t", table.as_str()]), line).await?;
        match output.success() {
            true => Ok(()),
            false => Err(self.failed(&format!("{program} -t {table}"), &output)),
        }
    }

    /// Reads the shared chains of a layout; `None` if one is missing, or if to read all chains costs less.
    pub async fn read_shared(&self, layout: Layout) -> Result<Option<Snapshot>, ApplyError> {
        // Each listing costs the legacy program a copy of the whole table.
        if layout.bucketed_services && self.features.variant == Variant::Legacy {
            return Ok(None);
        }
        let mut snapshot = Snapshot::new(false);
        for shared in Shared::of(layout) {
            snapshot.begin(shared.table());
            let chain = shared.chain();
            let listed = self.list(shared.table(), chain.as_str(), &mut |line| snapshot.line(line)).await?;
            if !listed {
                return Ok(None);
            }
        }
        Ok(Some(snapshot))
    }

    /// Reads every chain of the nat and filter tables that is no Service port's own, one by one: those
    /// of others may be many. Of the shared chains, the ones that are wanted.
    pub async fn read_fixed(&self, is_wanted: fn(&Shared) -> bool) -> Result<Snapshot, ApplyError> {
        let mut snapshot = Snapshot::new(true);
        let shared = Shared::ALWAYS.into_iter().filter(is_wanted).map(|shared| (shared.table(), shared.chain()));
        let built_in = JUMPS.iter().map(|jump| (jump.table, ChainName::from(jump.from)));
        for (table, chain) in FIXED.into_iter().chain(shared).chain(built_in).collect::<BTreeSet<_>>() {
            snapshot.begin(table);
            self.list(table, chain.as_str(), &mut |line| snapshot.line(line)).await?;
        }
        Ok(snapshot)
    }

    /// Whether rules can recognise packets to their own source, which takes the match `bpf` of program and
    /// kernel: asks for such a rule, which is not there. Writes nothing.
    ///
    /// # Errors
    ///
    /// If they cannot, with the program's words.
    pub async fn recognises_own_source(&self) -> Result<(), ApplyError> {
        let rule = Rule::to(Target::Return).with(Match::ToItself(self.family)).to_string();
        let asked: Vec<String> = parse::words(&rule).collect();
        let mut args = vec!["-w", "5", "-C", "POSTROUTING", "-t", Table::Nat.as_str()];
        args.extend(asked.iter().map(String::as_str));
        let output = self.run.run(self.command("", &args), &mut |_| {}).await?;
        match self.failed(&format!("{} -m bpf", self.program("")), &output) {
            _ if output.code <= 1 => Ok(()),
            // The program looks for the match before it waits for the lock.
            ApplyError::Busy { .. } => Ok(()),
            error => Err(error),
        }
    }

    /// Whether the canary chain of a table is there.
    pub async fn has_canary(&self, table: Table) -> Result<bool, ApplyError> {
        self.list(table, names::CANARY.as_str(), &mut |_| {}).await
    }

    /// Lists a chain; false if there is no such chain. Its declaration (`-N`) comes first.
    pub async fn list(
        &self,
        table: Table,
        chain: &str,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<bool, ApplyError> {
        let program = self.program("");
        let args = ["-w", "5", "-S", chain, "-t", table.as_str()];
        let output = self.run.run(self.command("", &args), line).await?;
        match output.code {
            0 => Ok(true),
            1 => Ok(false),
            _ => Err(self.failed(&format!("{program} {}", args.join(" ")), &output)),
        }
    }

    fn command(&self, suffix: &str, args: &[&str]) -> Command {
        Command::new(&self.program(suffix), args)
    }

    fn program(&self, suffix: &str) -> String {
        let plain = match self.family {
            IpFamily::V4 => format!("iptables{suffix}"),
            IpFamily::V6 => format!("ip6tables{suffix}"),
        };
        match self.full_names {
            Some(variant) => full_name(&plain, variant),
            None => plain,
        }
    }

    fn failed(&self, program: &str, output: &Output) -> ApplyError {
        let detail = detail(&output.stderr);
        let program = program.to_owned();
        match output.stderr.contains("xtables lock") {
            true => ApplyError::Busy { program, detail },
            false => ApplyError::Failed { program, detail: format!("{detail} (exit code {})", output.code) },
        }
    }
}

/// Whether the legacy kernel has the nat table of a family in the network namespace of the calling
/// thread. (kernel: `xt_proto_init`; a table comes into being when it is first asked for.)
pub fn is_loaded(family: IpFamily) -> bool {
    let file = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let tables = std::fs::read_to_string(file).unwrap_or_default();
    tables.lines().any(|table| table == Table::Nat.as_str())
}

/// How long a restore may take: many times what a slow node needs for so much (160,000 rules in one
/// input of the nft program: a minute), and short enough that one that hangs is soon given up and
/// tried again.
fn restore_limit(bytes: usize) -> Duration {
    const LEAST: Duration = Duration::from_secs(60);
    /// About a thousand rules.
    const BYTES_PER_SECOND: u64 = 100_000;
    LEAST + Duration::from_secs(bytes as u64 / BYTES_PER_SECOND)
}

/// The first thing of substance in what a program complained: warnings about the other variant's
/// tables and the program's own name and version aside.
fn detail(stderr: &str) -> String {
    let lines = stderr.lines().filter(|line| !line.starts_with("# Warning"));
    let mut said = lines.map(|line| match line.split_once("): ").or_else(|| line.split_once("):")) {
        Some((head, rest)) if head.contains("tables") => rest.trim(),
        _ => line.trim(),
    });
    said.find(|line| !line.is_empty()).unwrap_or("it gave no reason").to_owned()
}

/// The number in `line 7 failed`, `line 7: RULE_APPEND failed` or `Error occurred at line: 7`.
fn named_line(stderr: &str) -> Option<usize> {
    stderr.match_indices("line").find_map(|(at, _)| {
        let rest = stderr.get(at + "line".len()..)?.trim_start_matches([':', ' ']);
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let able = Features { variant: Variant::Nft, random_fully: true, restore_waits: true, any_mask: true };
        assert_eq!(Features::parse("iptables v1.8.9 (nf_tables)"), Some(able));
        let no_masks = Features { any_mask: false, ..able };
        assert_eq!(Features::parse("iptables v1.8.7 (nf_tables)"), Some(no_masks));
        let legacy = Features { variant: Variant::Legacy, ..able };
        assert_eq!(Features::parse("ip6tables v1.8.7 (legacy)"), Some(legacy));
        let old = Features { random_fully: false, restore_waits: false, ..legacy };
        assert_eq!(Features::parse("iptables v1.4.22"), Some(old));
        assert_eq!(Features::parse("command not found"), None);
    }

    #[track_caller]
    fn check(stderr: &str, line: Option<usize>, said: &str) {
        assert_eq!((named_line(stderr), detail(stderr).as_str()), (line, said));
    }

    #[test]
    fn complaints() {
        check("iptables-restore: line 4 failed\n", Some(4), "iptables-restore: line 4 failed");
        check(
            "# Warning: iptables-legacy tables present, use iptables-legacy to see them\niptables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (Invalid argument): rule in chain X\n",
            Some(3),
            "line 3: RULE_APPEND failed (Invalid argument): rule in chain X",
        );
        check(
            "iptables-restore v1.8.9 (legacy): unknown option \"--nope\"\nError occurred at line: 12\nTry `iptables-restore -h'\n",
            Some(12),
            "unknown option \"--nope\"",
        );
        check("", None, "it gave no reason");
    }
}
