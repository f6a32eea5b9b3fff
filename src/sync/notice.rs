//! What the loop tells those who want to know: health, metrics, conntrack.

use std::time::Duration;

use super::pacer::Occasion;
use crate::backend::{ApplyError, Report, Scope};
use crate::cluster::{Changed, Event};
use crate::net::IpFamily;
use crate::plan::Plan;

/// Something that happened in the loop. One way: nothing comes back.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The loop begins to serve a family; nothing is known yet.
    Started(IpFamily),
    /// A source said something.
    Event {
        /// What it said.
        event: &'a Event,
        /// What that may change in the rules of any family.
        changed: &'a Changed,
    },
    /// A family has something to sync that it had not when its last sync began; said for each such
    /// event, once rules may be written at all.
    Requested(IpFamily),
    /// A sync begins; it serves all that was requested so far.
    Begun(IpFamily),
    /// What that sync is to bring the kernel to; told before anything is written.
    Planned {
        /// Its family.
        family: IpFamily,
        /// What may differ from what was applied before.
        scope: &'a Scope,
        /// The plan.
        plan: &'a Plan,
    },
    /// A sync, or a piece of one, has ended.
    Ended(Sync<'a>),
    /// Rules were found to be missing that somebody else must have removed; a sync follows.
    Drifted(IpFamily),
}

/// A sync that has ended, or one of its pieces. The last piece tells of all of them together, but for
/// `scope` and `triggers`, which are told with the piece that saw to them.
#[derive(Clone, Copy, Debug)]
pub struct Sync<'a> {
    /// Its family.
    pub family: IpFamily,
    /// Why it began.
    pub occasion: Occasion,
    /// What it was about: in pieces after the first, what has changed meanwhile.
    pub scope: &'a Scope,
    /// Whether all of it was about everything.
    pub whole: bool,
    /// Whether there are more pieces.
    pub unfinished: bool,
    /// What the kernel was to be brought to.
    pub plan: &'a Plan,
    /// How it ended.
    pub result: Result<&'a Report, &'a ApplyError>,
    /// How long the oldest request it served had waited, if there was one.
    pub waited: Option<Duration>,
    /// How long planning took.
    pub planning: Duration,
    /// How long the backend took, from plan to kernel.
    pub applying: Duration,
    /// When the endpoint changes it served were caused, as their slices say (RFC 3339). Those of a sync
    /// that failed are told again with the next one.
    pub triggers: &'a [Box<str>],
}

/// Somebody who wants to know. Called within the loop: must not wait for anything.
pub trait Observer: Send {
    /// Takes note.
    fn notice(&mut self, notice: &Notice<'_>);
}

/// Nobody.
impl Observer for () {
    fn notice(&mut self, _: &Notice<'_>) {}
}

/// All of them, in order.
impl Observer for Vec<Box<dyn Observer>> {
    fn notice(&mut self, notice: &Notice<'_>) {
        self.iter_mut().for_each(|observer| observer.notice(notice));
    }
}
