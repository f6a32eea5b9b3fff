//! Chains and jumps of iptables and ipvs modes.

use std::time::Duration;

use super::{Complaints, ask};
use crate::backend::ApplyError;
use crate::backend::iptables::diff::{Changes, JUMPS, Jump, Lines};
use crate::backend::iptables::names::{self, ChainName};
use crate::backend::iptables::restore::Input;
use crate::backend::iptables::ruleset::Table;
use crate::backend::iptables::tools::{RestoreError, Tools, Variant};
use crate::backend::ipvs;
use crate::command::{Command, Run};
use crate::net::IpFamily;

/// The tables with chains of ours.
const TABLES: [Table; 3] = [Table::Mangle, Table::Nat, Table::Filter];

/// Chains of iptables mode that do not belong to one Service port.
const CHAINS: [(Table, ChainName); 12] = [
    (Table::Nat, names::SERVICES),
    (Table::Nat, names::NODE_PORTS),
    (Table::Nat, names::POSTROUTING),
    (Table::Nat, names::MARK_MASQ),
    (Table::Nat, names::CANARY),
    (Table::Filter, names::SERVICES),
    (Table::Filter, names::EXTERNAL_SERVICES),
    (Table::Filter, names::FORWARD),
    (Table::Filter, names::NODE_PORTS),
    (Table::Filter, names::PROXY_FIREWALL),
    (Table::Filter, names::CANARY),
    (Table::Mangle, names::CANARY),
];

/// Of these, those that ipvs mode has as well.
const SHARED_CHAINS: [(Table, ChainName); 5] = [
    (Table::Nat, names::SERVICES),
    (Table::Nat, names::POSTROUTING),
    (Table::Nat, names::MARK_MASQ),
    (Table::Filter, names::FORWARD),
    (Table::Filter, names::PROXY_FIREWALL),
];

/// Further chains of ipvs mode.
const IPVS_CHAINS: [(Table, ChainName); 6] = [
    (Table::Nat, ipvs::names::NODE_PORT),
    (Table::Nat, ipvs::names::LOAD_BALANCER),
    (Table::Filter, ipvs::names::NODE_PORT),
    (Table::Filter, ipvs::names::SOURCE_RANGES_FIREWALL),
    (Table::Filter, ipvs::names::FILTER),
    (Table::Filter, ipvs::names::OUT_FILTER),
];

/// Which chains and jumps are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All; those of ipvs mode only where that can be.
    All {
        /// Whether it can.
        has_ipvs: bool,
    },
    /// Those that iptables mode has and ipvs mode has not.
    OnlyIptables,
    /// And the other way round.
    OnlyIpvs,
}

/// How often a lock held by somebody else is waited for, five seconds each (`-w 5`).
const TRIES: usize = 12;
/// The pause between two tries where the tools do not wait themselves.
const PAUSE: Duration = Duration::from_millis(500);

/// What is there to remove.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// Jumps to our chains, as often as they are there.
    jumps: Vec<(Table, ChainName, String)>,
    chains: Vec<(Table, ChainName)>,
}

/// Removes chains and jumps of a family. A family without tools, or without the kernel's nat table, has none.
pub(super) async fn remove<R: Run + Clone>(run: &R, family: IpFamily, which: Which) -> Complaints {
    let tools = match Tools::probe_patiently(run.clone(), family, |_| false).await {
        Ok(tools) => tools,
        Err(error) if error.is_not_installed() => return Vec::new(),
        Err(error) => {
            tracing::warn!(%family, %error, "iptables does not work here, so no rules of it are looked for");
            return Vec::new();
        }
    };
    let mut complaints = Vec::new();
    match find(&tools, which).await {
        Ok(found) => {
            let chains = found.chains.len();
            let left = take_away(&tools, found).await;
            if left.is_empty() && chains > 0 {
                tracing::info!(%family, chains, "removed the rules of {}", which.of_modes());
            }
            complaints.extend(left.into_iter().map(|complaint| format!("{family}: {complaint}")));
        }
        Err(error) => complaints.push(format!("{family}: {error}")),
    }
    if matches!(which, Which::All { .. }) {
        look_at_other_variant(run, family, tools.features.variant).await;
    }
    complaints
}

async fn find<R: Run>(tools: &Tools<R>, which: Which) -> Result<Found, ApplyError> {
    let mut found = Found::default();
    for table in TABLES {
        match tools.save(table, &mut |line| found.line(table, line, which)).await {
            // Some kernels have no such table, and then nothing is in it.
            Err(error) if table == Table::Mangle => tracing::debug!(%error, "the canary is not looked for"),
            result => result?,
        }
    }
    Ok(found)
}

/// Jumps go first, so that no packet meets a half of the rules; then all chains are emptied, because
/// they lead to each other; then they go.
async fn take_away<R: Run>(tools: &Tools<R>, found: Found) -> Complaints {
    let size = match tools.features.variant {
        Variant::Legacy => usize::MAX,
        // With nftables a big input takes more than its share.
        Variant::Nft => 3_000,
    };
    let pieces = || found.chains.chunks(size.min(found.chains.len().max(1)));
    let emptied = |piece: &[(Table, ChainName)]| Changes {
        replace: piece.iter().map(|(table, chain)| (*table, chain.clone(), Lines::default())).collect(),
        ..Changes::default()
    };
    let removed = |piece: &[(Table, ChainName)]| Changes { remove: piece.to_vec(), ..Changes::default() };
    let mut steps = vec![Changes { delete: found.jumps.clone(), ..Changes::default() }];
    steps.extend(pieces().map(emptied));
    steps.extend(pieces().map(removed));
    steps.reverse();

    let mut complaints = Vec::new();
    while let Some(step) = steps.pop() {
        if step.is_empty() {
            continue;
        }
        match restore(tools, &step).await {
            Ok(()) => {}
            Err(RestoreError::Refused { detail, .. }) => match step.clone().halved_removal() {
                Some(halves) => steps.extend(halves),
                None => match step.remove.first() {
                    Some((table, chain)) => complaints.push(format!(
                        "chain {chain} of table {table} stays, empty: {detail}; does a rule of somebody else lead to it? \
                         remove that rule first"
                    )),
                    None => complaints.push(detail),
                },
            },
            // Whatever it is, it is no fault of this step; the next one would meet it as well.
            Err(RestoreError::Other(error)) => {
                complaints.push(error.to_string());
                break;
            }
        }
    }
    complaints
}

async fn restore<R: Run>(tools: &Tools<R>, step: &Changes) -> Result<(), RestoreError> {
    let input = Input::render(std::iter::once(step));
    let mut tries = 1;
    loop {
        match tools.restore_text(input.text.clone()).await {
            Err(RestoreError::Other(error @ ApplyError::Busy { .. })) if tries < TRIES => {
                tracing::warn!(%error, "waiting for the lock");
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// The tools see the rules of their own variant only. Rules of the other one work as well, and may be
/// those of a proxy that ran with other tools.
async fn look_at_other_variant<R: Run>(run: &R, family: IpFamily, ours: Variant) {
    let program = match (family, ours) {
        (IpFamily::V4, Variant::Legacy) => "iptables-nft-save",
        (IpFamily::V4, Variant::Nft) => "iptables-legacy-save",
        (IpFamily::V6, Variant::Legacy) => "ip6tables-nft-save",
        (IpFamily::V6, Variant::Nft) => "ip6tables-legacy-save",
    };
    // Without a table named, the legacy tool lists those in use and makes none.
    let Ok(Some((output, saved))) = ask(run, Command::new(program, &[])).await else { return };
    if output.success() && saved.lines().any(|line| line.starts_with(":KUBE-SERVICES ")) {
        tracing::warn!(
            %family,
            "{program} shows rules of a proxy, too, made with the other variant of the tools, which stay: \
             run the cleanup with that variant as iptables in PATH, or restart the node"
        );
    }
}

// === impl Found ===

impl Found {
    /// Takes in one line of `iptables-save -t TABLE`.
    fn line(&mut self, table: Table, line: &str, which: Which) {
        if let Some(chain) = line.strip_prefix(':').and_then(|declared| declared.split(' ').next()) {
            let chain = ChainName::from(chain);
            if which.has_chain(table, &chain) {
                self.chains.push((table, chain));
            }
        } else if let Some((from, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' '))
            && which.has_jump(table, from, rule)
        {
            self.jumps.push((table, from.into(), rule.to_owned()));
        }
    }
}

// === impl Which ===

impl Which {
    fn of_modes(self) -> &'static str {
        match self {
            Which::All { has_ipvs: true } => "iptables and ipvs modes",
            Which::All { has_ipvs: false } | Which::OnlyIptables => "iptables mode",
            Which::OnlyIpvs => "ipvs mode",
        }
    }

    fn has_chain(self, table: Table, chain: &ChainName) -> bool {
        let is_listed = |listed: &[(Table, ChainName)]| listed.iter().any(|(t, c)| (*t, c) == (table, chain));
        let of_iptables = || table == Table::Nat && chain.is_per_service() || is_listed(&CHAINS);
        match self {
            Which::All { has_ipvs } => of_iptables() || has_ipvs && is_listed(&IPVS_CHAINS),
            Which::OnlyIptables => of_iptables() && !is_listed(&SHARED_CHAINS),
            Which::OnlyIpvs => is_listed(&IPVS_CHAINS),
        }
    }

    fn has_jump(self, table: Table, from: &str, rule: &str) -> bool {
        // KUBE-FIREWALL is the kubelet's as well.
        let of_iptables = JUMPS.iter().filter(|jump| jump.to != names::FIREWALL.as_str());
        let is_listed = |jump: &Jump| (jump.table, jump.from) == (table, from) && jump.rule() == rule;
        let (of_iptables, of_ipvs) = (of_iptables.clone().any(is_listed), ipvs::compile::JUMPS.iter().any(is_listed));
        match self {
            Which::All { has_ipvs } => of_iptables || has_ipvs && of_ipvs,
            Which::OnlyIptables => of_iptables && !of_ipvs,
            Which::OnlyIpvs => of_ipvs && !of_iptables,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(table: Table, line: &str, has_ipvs: bool, expected: bool) {
        let mut found = Found::default();
        found.line(table, line, Which::All { has_ipvs });
        assert_eq!(found != Found::default(), expected, "{table} {line}");
    }

    #[test]
    fn ours_and_others() {
        check(Table::Nat, ":KUBE-SERVICES - [0:0]", false, true);
        check(Table::Nat, ":KUBE-SVC-3T4VDPW52C6YN6SQ - [0:0]", false, true);
        check(Table::Nat, ":KUBE-PROXY-CANARY - [0:0]", false, true);
        check(Table::Mangle, ":KUBE-PROXY-CANARY - [0:0]", false, true);
        check(Table::Filter, ":KUBE-FORWARD - [0:0]", false, true);
        // A user's, and the kubelet's.
        check(Table::Filter, ":KUBE-SVC-OF-MINE - [0:0]", false, false);
        check(Table::Filter, ":KUBE-FIREWALL - [0:0]", true, false);
        check(Table::Nat, ":KUBE-MARK-DROP - [0:0]", true, false);
        check(Table::Mangle, ":KUBE-IPTABLES-HINT - [0:0]", true, false);
        check(Table::Mangle, ":KUBE-KUBELET-CANARY - [0:0]", true, false);
        check(Table::Nat, ":PREROUTING ACCEPT [5:280]", true, false);
        check(Table::Filter, "-A INPUT -j KUBE-FIREWALL", true, false);
        check(Table::Filter, "-A INPUT -j KUBE-FORWARD", true, false);
    }

    #[test]
    fn jumps_are_known_by_their_text() {
        let forward = "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD";
        check(Table::Filter, forward, false, true);
        check(Table::Nat, forward, false, false);
        check(Table::Filter, &forward.replace("FORWARD -m", "INPUT -m"), false, false);
        let services = "-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
        check(Table::Nat, services, false, true);
        check(Table::Filter, services, false, false);
        let new_only = services.replace("-m comment", "-m conntrack --ctstate NEW -m comment");
        check(Table::Filter, &new_only, false, true);
    }

    #[test]
    fn ipvs_mode_is_looked_for_only_where_it_can_be() {
        for (line, table) in [
            (":KUBE-LOAD-BALANCER - [0:0]", Table::Nat),
            (":KUBE-IPVS-OUT-FILTER - [0:0]", Table::Filter),
            ("-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT", Table::Filter),
            ("-A INPUT -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL", Table::Filter),
        ] {
            check(table, line, true, true);
            check(table, line, false, false);
        }
    }

    #[test]
    fn what_both_modes_have_stays_when_one_takes_over() {
        let found = |which: Which, table: Table, line: &str| {
            let mut found = Found::default();
            found.line(table, line, which);
            found != Found::default()
        };
        let check = |table: Table, line: &str, only_iptables: bool, only_ipvs: bool| {
            assert_eq!(found(Which::OnlyIptables, table, line), only_iptables, "{table} {line}");
            assert_eq!(found(Which::OnlyIpvs, table, line), only_ipvs, "{table} {line}");
        };
        check(Table::Nat, ":KUBE-SERVICES - [0:0]", false, false);
        check(Table::Filter, ":KUBE-SERVICES - [0:0]", true, false);
        check(Table::Filter, ":KUBE-PROXY-FIREWALL - [0:0]", false, false);
        check(Table::Nat, ":KUBE-SEP-3T4VDPW52C6YN6SQ - [0:0]", true, false);
        check(Table::Nat, ":KUBE-NODE-PORT - [0:0]", false, true);
        let jump =
            |from: &str, comment: &str, to: &str| format!("-A {from} -m comment --comment \"{comment}\" -j {to}");
        check(Table::Nat, &jump("OUTPUT", "kubernetes service portals", "KUBE-SERVICES"), false, false);
        check(Table::Filter, &jump("INPUT", "kubernetes health check service ports", "KUBE-NODEPORTS"), true, false);
        check(Table::Filter, &jump("INPUT", "kubernetes ipvs access filter", "KUBE-IPVS-FILTER"), false, true);
    }
}
