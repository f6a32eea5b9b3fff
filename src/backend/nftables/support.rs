//! Whether `nft` and the kernel can do what nftables mode takes.
//!
//! | feature | Linux | where |
//! |---|---|---|
//! | sets and maps with keys of several fields, comments of elements | 4.1 | everything |
//! | setting labels of connections (`ct label set`, `NF_CONNTRACK_LABELS`; commit 1ad8f48df6f6) | 4.7 | session affinity |
//! | `numgen random` | 4.9 | drawing an endpoint |
//! | `fib` | 4.10 | node ports on all addresses, connections from this node |
//! | translation beside that of iptables | 4.18 | taking over from another mode |
//! | rules that look up in maps that rules add to (`NFT_SET_EVAL`; commit acab71317737) | 5.4 | `client-ip-endpoints` |
//! | ranges in keys of several fields (`NFT_SET_INTERVAL`, `NFTA_SET_ELEM_KEY_END`) | 5.6 | `allowed-sources` |
//! | comments of tables and sets, which older ones do not keep | 5.10 | for people |
//! | what kube-proxy asks for | 5.13 | |
//!
//! At the start the kernel is shown all of it and keeps nothing: what `nft` writes by `nft --check`, and what it cannot write
//! ([`crate::backend::nftables::compile::base`]) over netlink.

use crate::backend::nftables::compile::{Base, Style, base};
use crate::backend::nftables::kernel::{Table, Transaction};
use crate::backend::nftables::render::{self, Script};
use crate::backend::nftables::ruleset::Rule;
use crate::command::{Command, CommandError, Run};
use crate::net::IpFamily;
use crate::plan::NodePlan;

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// The program.
    #[error("nft is not installed: install the package nftables, 1.0.1 or later, or set mode: iptables")]
    Program,
    /// A program that is recent enough.
    #[error("nft {0} is too old: install nftables 1.0.1 or later, or set mode: iptables")]
    Version(String),
    /// A program that knows the language.
    #[error("nft cannot read what nftables mode needs ({0}): install nftables 1.0.1 or later, or set mode: iptables")]
    Language(String),
    /// Something of the kernel.
    #[error(
        "{family}: the kernel refuses what nftables mode needs ({complaint}): it takes Linux 5.13 or later with nf_tables, \
         nft_ct, nft_nat, nft_masq, nft_numgen, nft_fib and nft_reject; set mode: iptables where that cannot be"
    )]
    Kernel {
        /// Where.
        family: IpFamily,
        /// The first line about it.
        complaint: String,
    },
    /// The program does not run.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Looks for `nft`.
///
/// # Errors
///
/// It is not there, or too old.
pub async fn check_version<R: Run>(run: &R) -> Result<(), Missing> {
    let mut said = String::new();
    match run.run(Command::new("nft", &["--version"]), &mut |line| said.push_str(line)).await {
        Ok(_) if is_recent(&said) => Ok(()),
        Ok(_) => Err(Missing::Version(said)),
        Err(CommandError::Start { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(Missing::Program)
        }
        Err(error) => Err(error.into()),
    }
}

/// Has `nft` and the kernel look at everything that is ever written besides elements, and write nothing. It is shown in a
/// table that is not there, so that what is in ours has no part in it.
///
/// # Errors
///
/// Some of it is refused.
pub async fn check<R: Run>(run: &R, family: IpFamily, style: &Style) -> Result<(), Missing> {
    let base = base(&NodePlan::unknown(family), style, &[1].into());
    let mut script = Script::trial(family);
    script.base(&base);
    let text = script.into_text();
    let command = Command::new("nft", &["--check", "-f", "-"]).with_stdin(text.clone().into_bytes());
    let output = run.run(command, &mut |_| {}).await?;
    if !output.success() {
        return Err(refused(family, &with_words(&text, output.complaint())));
    }
    let by_netlink = tokio::task::spawn_blocking(move || check_netlink(family, &base)).await;
    by_netlink.unwrap_or_else(|lost| Err(Missing::Kernel { family, complaint: lost.to_string() }))
}

/// What is missing where `nft` says this. Of what the kernel refuses it says so or names what the kernel may lack.
fn refused(family: IpFamily, complaint: &str) -> Missing {
    let is_about_words = ["Error: syntax error", "Error: unknown "].iter().any(|begin| complaint.contains(begin));
    match is_about_words {
        true => Missing::Language(complaint.to_owned()),
        false => Missing::Kernel { family, complaint: complaint.to_owned() },
    }
}

/// A complaint of `nft` about a script, with the words that it is about in the place of their position.
fn with_words(script: &str, complaint: &str) -> String {
    let quoted = || {
        let (line, rest) = complaint.strip_prefix("/dev/stdin:")?.split_once(':')?;
        let (columns, why) = rest.split_once(": ")?;
        let (from, to) = columns.split_once('-')?;
        let (line, from, to): (usize, usize, usize) = (line.parse().ok()?, from.parse().ok()?, to.parse().ok()?);
        let words = script.lines().nth(line.checked_sub(1)?)?.get(from.checked_sub(1)?..to)?;
        Some(format!("{}: {why}", words.trim()))
    };
    quoted().unwrap_or_else(|| complaint.to_owned())
}

/// [`check`] for rules that are written over netlink. Blocks.
///
/// # Errors
///
/// The kernel refuses some of it.
pub fn check_netlink(family: IpFamily, base: &Base) -> Result<(), Missing> {
    let mut shown = Vec::new();
    let mut transaction = Transaction::trial(family);
    // Of ranges, these rules ask nothing.
    for set in base.sets.iter().filter(|set| !set.shape().interval) {
        transaction.add_set(*set, shown.len());
        shown.push(set.name());
    }
    for chain in &base.netlink_chains {
        transaction.add_chain(&chain.name, shown.len());
        shown.push(chain.name.clone());
        let mut rules: Vec<&Rule> = chain.rules.iter().collect();
        rules.dedup();
        for rule in rules {
            transaction.add_rule(&chain.name, rule, shown.len());
            shown.push(render::rule(family, rule));
        }
    }
    let complaint = match Table::new(family).try_out(transaction) {
        // What lacks a set or a chain that was refused is refused as well.
        Ok(refused) => match refused.into_iter().min_by_key(|refusal| refusal.owner) {
            None => return Ok(()),
            Some(refusal) => format!("{}: {refusal}", shown.get(refusal.owner).map_or("table", String::as_str)),
        },
        Err(error) => format!("nf_tables: {error}"),
    };
    Err(Missing::Kernel { family, complaint })
}

/// Whether `nft --version` said 1.0.1 or later. (kube-proxy: the same.)
fn is_recent(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    !number.is_empty() && !number.starts_with("0.") && number != "1.0.0"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There `nft` has the kernel turn its one byte, which some kernels refuse.
    #[test]
    fn the_packets_protocol_is_in_no_key_of_ranges() {
        let mut script = Script::new(IpFamily::V6);
        script.base(&base(&NodePlan::unknown(IpFamily::V6), &Style { mark: 0x4000 }, &[1].into()));
        let script = script.into_text();
        let (_, ranges) = script.split_once(" flags interval ").unwrap();
        assert_eq!(ranges.matches(" flags interval ").count(), 0, "one set has ranges");
        let mut rules = script.lines().filter(|line| line.contains("@allowed-sources"));
        let key = rules.next().unwrap().split_once("@restricted-services ").unwrap().1;
        assert!(key.starts_with("ip6 daddr . ct protocol . th dport"), "{key}");
        assert_eq!(rules.next(), None);
    }

    #[test]
    fn versions() {
        assert!(is_recent("nftables v1.0.6 (Lester Gooch #5)"));
        assert!(is_recent("nftables v1.1.3 (Commodore Bullmoose #4)"));
        assert!(!is_recent("nftables v1.0.0 (Fearless Fosdick #2)"));
        assert!(!is_recent("nftables v0.9.8 (E.D.S.)"));
        assert!(!is_recent(""));
    }

    #[test]
    fn complaints_name_what_is_missing() {
        let script = "add table ip t\nadd rule ip t c ip daddr fib daddr type local jump d\n";
        let refusal = "/dev/stdin:2:26-45: Error: Could not process rule: No such file or directory";
        assert_eq!(
            with_words(script, refusal),
            "fib daddr type local: Error: Could not process rule: No such file or directory"
        );
        for other in ["netlink: Error: cache initialization failed", "/dev/stdin:9999:1-2: Error", "/dev/stdin:1:2"] {
            assert_eq!(with_words(script, other), other);
        }
    }

    #[test]
    fn whose_fault_it_is() {
        // What 1.0.6 and 1.1.7 say.
        for of_the_kernel in [
            "/dev/stdin:2:1-55: Error: Could not process rule: Operation not supported",
            "/dev/stdin:2:20-51: Error: Chain of type \"nat\" is not supported, perhaps kernel support is missing?",
            "Error: Operation not permitted (perhaps you must be root?)",
        ] {
            assert!(matches!(refused(IpFamily::V4, of_the_kernel), Missing::Kernel { .. }), "{of_the_kernel}");
        }
        for of_the_program in [
            "/dev/stdin:3:41-46: Error: syntax error, unexpected random",
            "/dev/stdin:2:23-28: Error: unknown datatype nosuch",
        ] {
            assert!(matches!(refused(IpFamily::V4, of_the_program), Missing::Language(_)), "{of_the_program}");
        }
    }
}
