//! Backends: each translates the Plan into rules of one kernel mechanism and keeps the kernel there.

pub mod importance;
pub mod iptables;
pub mod ipvs;
pub mod nftables;

use std::collections::BTreeSet;
use std::future::Future;
use std::ops::{AddAssign, SubAssign};
use std::time::Duration;

use crate::model::{ServiceName, ServicePortName};
use crate::plan::Plan;

/// A kernel mechanism. `sync` and `check` are the only operations that touch the kernel.
pub trait Backend: Send {
    /// Brings the kernel to `plan`. `scope` names what may differ from the plan of the last
    /// successful call; everything else is taken to be right.
    ///
    /// Service ports whose rules the kernel refuses are left out and named in the report; that is
    /// not an error. After an error the backend itself remembers what it no longer knows, and
    /// looks after it in the next call whatever its scope is.
    ///
    /// What takes long is done in pieces, one in each call, so that a Service that changes meanwhile
    /// need not wait for all others: then [`Report::remaining`] is not zero, and the next call goes on,
    /// whatever its scope, with what that names first.
    fn sync(&mut self, plan: &Plan, scope: &Scope) -> impl Future<Output = Result<Report, ApplyError>> + Send;

    /// Before a sync about everything: these Services changed last. If it is done in pieces, they come soon.
    fn prefer(&mut self, recent: BTreeSet<ServiceName>) {
        let _ = recent;
    }

    /// Looks for signs that somebody else removed rules. If so, the next `sync` starts from what
    /// is really there; the answer says whether one is needed.
    fn check(&mut self) -> impl Future<Output = Result<Intact, ApplyError>> + Send;
}

/// What may differ from the plan last applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// These Service ports, and nothing that belongs to the node as a whole.
    Services(BTreeSet<ServicePortName>),
    /// Anything: compare all of it with what was applied.
    Everything,
    /// Anything, and the kernel may hold something else than what was applied: look at all of it,
    /// where that is affordable. (kube-proxy: the hourly full sync.)
    Audit,
}

/// Answer of [`Backend::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intact {
    /// Nothing is known to be missing.
    Yes,
    /// Rules are missing: sync again.
    No,
}

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many Service ports are still to be looked at; with none, the sync is finished.
    pub remaining: usize,
    /// Service ports whose rules were written or removed.
    pub written: usize,
    /// Service ports whose rules the kernel refused in this sync, with its own words. Their previous
    /// rules stay.
    pub refused: Vec<(ServicePortName, String)>,
    /// How many Service ports are set aside now: these, and those refused earlier that have not
    /// changed since. A sync of [`Scope::Everything`] tries them again.
    pub set_aside: usize,
    /// Programs run to write rules.
    pub restores: usize,
    /// Bytes given to them.
    pub bytes: usize,
    /// How many of these programs failed because the kernel refused what they were given.
    pub refusals: usize,
    /// How often the removal of what nobody needs any more failed. It stays, and does no harm.
    pub cleanup_failures: usize,
    /// Rules that the kernel holds now in the backend's own chains.
    pub holds: RuleCount,
    /// Rules written to those chains in this sync.
    pub rules: RuleCount,
    /// How long comparing took. The rest is writing.
    pub diffing: Duration,
}

/// Rules in chains of the backend's own, by table. All zero for mechanisms without such tables.
/// (kube-proxy: what it writes with `iptables-restore`, so not the jumps from built-in chains.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Table `filter`.
    pub filter: usize,
    /// Table `nat`.
    pub nat: usize,
}

/// Why a sync as a whole did not succeed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else holds the lock on the tables.
    #[error("{program}: the xtables lock is held by another program ({detail})")]
    Busy {
        /// Program that waited for it.
        program: String,
        /// Its first line of complaint.
        detail: String,
    },
    /// A program failed for a reason that no single Service explains.
    #[error("{program} failed: {detail}")]
    Failed {
        /// The program, with the arguments that matter.
        program: String,
        /// Its first line of complaint.
        detail: String,
    },
    /// A program could not be run at all, or not to its end.
    #[error(transparent)]
    Command(#[from] crate::command::CommandError),
}

// === impl ApplyError ===

impl ApplyError {
    /// Whether the program is not there at all.
    pub fn is_not_installed(&self) -> bool {
        use crate::command::CommandError::Start;
        matches!(self, ApplyError::Command(Start { source, .. }) if source.kind() == std::io::ErrorKind::NotFound)
    }
}

// === impl Report ===

impl Report {
    /// Whether nothing remains.
    pub fn is_finished(&self) -> bool {
        self.remaining == 0
    }

    /// What this piece of a sync and the pieces before it did together.
    pub fn after(self, before: Report) -> Report {
        let Report {
            remaining,
            written,
            refused,
            set_aside,
            restores,
            bytes,
            refusals,
            cleanup_failures,
            holds,
            rules,
            diffing,
        } = self;
        let mut all = Report {
            remaining,
            written: before.written + written,
            refused: before.refused,
            set_aside,
            restores: before.restores + restores,
            bytes: before.bytes + bytes,
            refusals: before.refusals + refusals,
            cleanup_failures: before.cleanup_failures + cleanup_failures,
            holds,
            rules: before.rules,
            diffing: before.diffing + diffing,
        };
        all.refused.extend(refused);
        all.rules += rules;
        all
    }
}

// === impl RuleCount ===

impl AddAssign for RuleCount {
    fn add_assign(&mut self, other: RuleCount) {
        self.filter += other.filter;
        self.nat += other.nat;
    }
}

impl SubAssign for RuleCount {
    /// Never below zero.
    fn sub_assign(&mut self, other: RuleCount) {
        self.filter = self.filter.saturating_sub(other.filter);
        self.nat = self.nat.saturating_sub(other.nat);
    }
}
