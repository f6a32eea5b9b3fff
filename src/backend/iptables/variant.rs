//! Which variant of the iptables programs to use where nobody has decided.
//!
//! On a host, `iptables` is one of the variants: whoever installed it has decided. In an image that
//! has to run on any host it must be the variant that the host uses, or rules end up in tables nobody
//! expects. Such an image has the programs under their full names only (`iptables-nft`,
//! `iptables-legacy`), and the host's rules decide. (kube-proxy's image: `iptables-wrapper`, whose
//! rules these are. It rewrites links in the image, which a read-only root file system forbids.)

use super::tools::Variant;
use crate::command::{Command, CommandError, Run};
use crate::net::IpFamily;

/// Chains that the kubelet makes in the variant that the host uses (since Kubernetes 1.17).
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// What one variant holds, of both families.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Whether a chain of the kubelet's is there.
    kubelet: bool,
    /// How many rules there are.
    rules: usize,
}

/// The variant that the host's rules speak for; `None` if no programs are installed.
///
/// With chains of the kubelet's it is theirs; else the variant with more rules, nft if both have as
/// many. Both families are looked at together: a node has one variant.
///
/// # Errors
///
/// If a program neither answers nor is missing.
pub(super) async fn choose<R: Run>(run: &R) -> Result<Option<Variant>, CommandError> {
    // One table first: to print all of them takes minutes where there are very many rules.
    let mangle = saved(run, Variant::Nft, &["-t", "mangle"]).await?;
    if mangle.is_some_and(|found| found.kubelet) {
        return Ok(Some(Variant::Nft));
    }
    // Never with `-t`: asked for a table, the legacy program makes it.
    let legacy = saved(run, Variant::Legacy, &[]).await?;
    let (Some(_), Some(legacy)) = (mangle, legacy) else {
        return Ok(mangle.map(|_| Variant::Nft).or(legacy.map(|_| Variant::Legacy)));
    };
    if legacy.kubelet {
        return Ok(Some(Variant::Legacy));
    }
    if legacy.rules == 0 {
        return Ok(Some(Variant::Nft));
    }
    let nft = saved(run, Variant::Nft, &[]).await?.unwrap_or_default();
    Ok(Some(if legacy.rules > nft.rules { Variant::Legacy } else { Variant::Nft }))
}

/// The name of a program: `plain` is its usual one, such as `iptables-save`.
pub(super) fn full_name(plain: &str, variant: Variant) -> String {
    let variant = match variant {
        Variant::Legacy => "legacy",
        Variant::Nft => "nft",
    };
    match plain.split_once('-') {
        Some((program, suffix)) => format!("{program}-{variant}-{suffix}"),
        None => format!("{plain}-{variant}"),
    }
}

/// What the `-save` programs of a variant print; `None` if it has none. A program that fails (no
/// such family in the kernel, say) has found nothing.
async fn saved<R: Run>(run: &R, variant: Variant, args: &[&str]) -> Result<Option<Found>, CommandError> {
    let mut found = None;
    for family in IpFamily::BOTH {
        let plain = match family {
            IpFamily::V4 => "iptables-save",
            IpFamily::V6 => "ip6tables-save",
        };
        let mut here = Found::default();
        let mut count = |line: &str| {
            here.rules += usize::from(line.starts_with('-'));
            let chain = line.strip_prefix(':').and_then(|rest| rest.split(' ').next());
            here.kubelet |= chain.is_some_and(|chain| KUBELET_CHAINS.contains(&chain));
        };
        match run.run(Command::new(&full_name(plain, variant), args), &mut count).await {
            Ok(_) => {
                let sum: Found = found.unwrap_or_default();
                found = Some(Found { kubelet: sum.kubelet || here.kubelet, rules: sum.rules + here.rules });
            }
            Err(error) if error.is_not_installed() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::command::Output;

    /// What each program prints; those not named are not installed.
    struct Programs(Vec<(&'static str, &'static str)>);

    impl Run for Programs {
        async fn run(&self, command: Command, line: &mut (dyn FnMut(&str) + Send)) -> Result<Output, CommandError> {
            let asked = format!("{} {}", command.program, command.args.join(" "));
            let asked = asked.trim_end();
            let printed = self.0.iter().filter(|(call, _)| *call == asked);
            let text: Vec<&str> = printed.map(|(_, text)| *text).collect();
            if text.is_empty() {
                let source = io::Error::from(io::ErrorKind::NotFound);
                return Err(CommandError::Start { program: command.program, source });
            }
            text.iter().flat_map(|text| text.lines()).for_each(line);
            Ok(Output::default())
        }
    }

    const NFT_MANGLE: &str = "iptables-nft-save -t mangle";
    const NFT: &str = "iptables-nft-save";
    const LEGACY: &str = "iptables-legacy-save";
    const HINT: &str = "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const ONE: &str = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n";
    const TWO: &str = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n";

    #[track_caller]
    fn check(programs: &[(&'static str, &'static str)], expected: Option<Variant>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let chosen = runtime.block_on(choose(&Programs(programs.to_vec()))).unwrap();
        assert_eq!(chosen, expected, "{programs:?}");
    }

    #[test]
    fn the_kubelets_chains_decide_then_the_number_of_rules() {
        check(&[(NFT_MANGLE, HINT), (LEGACY, TWO), (NFT, "")], Some(Variant::Nft));
        check(&[(NFT_MANGLE, ""), (LEGACY, HINT), (NFT, TWO)], Some(Variant::Legacy));
        let canary = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
        check(&[(NFT_MANGLE, ""), (LEGACY, canary), (NFT, TWO)], Some(Variant::Legacy));
        check(&[(NFT_MANGLE, ""), (LEGACY, TWO), (NFT, ONE)], Some(Variant::Legacy));
        check(&[(NFT_MANGLE, ""), (LEGACY, ONE), (NFT, ONE)], Some(Variant::Nft));
        check(&[(NFT_MANGLE, ""), (LEGACY, ""), (NFT, "")], Some(Variant::Nft));
        // A chain whose name only begins so is somebody else's.
        let other = "*mangle\n:KUBE-IPTABLES-HINTS - [0:0]\nCOMMIT\n";
        check(&[(NFT_MANGLE, other), (LEGACY, ONE), (NFT, other)], Some(Variant::Legacy));
    }

    #[test]
    fn either_family_decides() {
        check(
            &[(NFT_MANGLE, ""), ("ip6tables-nft-save -t mangle", HINT), (LEGACY, TWO), (NFT, "")],
            Some(Variant::Nft),
        );
        let both = [(LEGACY, ONE), ("ip6tables-legacy-save", ONE)];
        check(&[[(NFT_MANGLE, ""), (NFT, ONE)], both].concat(), Some(Variant::Legacy));
    }

    #[test]
    fn what_is_installed_is_used() {
        check(&[(NFT_MANGLE, ""), (NFT, "")], Some(Variant::Nft));
        check(&[(LEGACY, "")], Some(Variant::Legacy));
        check(&[], None);
    }

    #[test]
    fn full_names() {
        assert_eq!(full_name("iptables", Variant::Nft), "iptables-nft");
        assert_eq!(full_name("ip6tables-restore", Variant::Legacy), "ip6tables-legacy-restore");
    }
}
