//! Whether `nft` and the kernel can do what nftables mode takes.
//!
//! | feature | Linux | where |
//! |---|---|---|
//! | sets and maps with keys of several fields (`NFT_SET_MAP`), comments of elements | 4.1 | everything |
//! | maps that rules add to (`NFT_SET_EVAL`, `NFT_SET_TIMEOUT`) | 4.3 | `client-ip-endpoints` |
//! | `numgen random` | 4.9 | drawing an endpoint |
//! | `fib`; labels of connections (`ct label set`, `NF_CONNTRACK_LABELS`) | 4.10 | node ports on all addresses, connections from this node; session affinity |
//! | ranges in keys of several fields (`NFT_SET_INTERVAL`, `NFTA_SET_ELEM_KEY_END`) | 5.6 | `allowed-sources` |
//! | what kube-proxy asks for | 5.13 | |
//!
//! What `nft` cannot say ([`crate::backend::nftables::compile::base`]) is not part of the look at the start.

use crate::backend::nftables::compile::{Style, base};
use crate::backend::nftables::render::Script;
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
    /// Something of the kernel.
    #[error(
        "{family}: the kernel refuses what nftables mode needs ({complaint}): it takes Linux 5.13 or later with nf_tables, \
         nft_nat, nft_numgen, nft_fib and nft_reject; set mode: iptables where that cannot be"
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

/// Has the kernel look at everything that is ever written besides elements, and write nothing.
///
/// # Errors
///
/// It refuses some of it.
pub async fn check<R: Run>(run: &R, family: IpFamily, style: &Style) -> Result<(), Missing> {
    let mut script = Script::new(family);
    script.base(&base(&NodePlan::unknown(family), style, &[1].into()));
    let command = Command::new("nft", &["--check", "-f", "-"]).with_stdin(script.into_text().into_bytes());
    let output = run.run(command, &mut |_| {}).await?;
    match output.success() {
        true => Ok(()),
        false => Err(Missing::Kernel { family, complaint: output.complaint().to_owned() }),
    }
}

/// Whether `nft --version` said 1.0.1 or later. (kube-proxy: the same.)
fn is_recent(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    !number.is_empty() && !number.starts_with("0.") && number != "1.0.0"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert!(is_recent("nftables v1.0.6 (Lester Gooch #5)"));
        assert!(is_recent("nftables v1.1.3 (Commodore Bullmoose #4)"));
        assert!(!is_recent("nftables v1.0.0 (Fearless Fosdick #2)"));
        assert!(!is_recent("nftables v0.9.8 (E.D.S.)"));
        assert!(!is_recent(""));
    }
}
