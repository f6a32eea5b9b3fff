//! Joins the decision about flows to the loop: an observer that says what was planned and written, and
//! for each family a task that lists and deletes flows, so that the loop never waits for it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::Instant;

use super::frontends::{Change, Due, Frontends};
use super::netlink::{Deletion, End, Kernel, Listing, Table};
use super::{Flow, Outcome};
use crate::backend::Scope;
use crate::cluster::Event;
use crate::model::ServicePortName;
use crate::net::{IpFamily, Protocol};
use crate::sync::notice::{Notice, Observer, Sync};

/// How many stale flows are held in memory at once, a few hundred bytes each.
const BATCH: usize = 65_536;
/// How soon it is tried again after a failure the first time; then ever more rarely.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Watches the loop and has stale flows removed.
pub struct Reconciler<F> {
    lines: Vec<(IpFamily, UnboundedSender<News>)>,
    start: F,
}

/// What a family's task is told.
enum News {
    /// The node has these addresses.
    Addresses(Arc<[IpAddr]>),
    /// A sync is about to begin.
    Planned(Change),
    /// It has succeeded, but for these Service ports.
    Applied(Vec<ServicePortName>),
    /// It is not finished, but it has seen to these Service ports.
    Served(Vec<ServicePortName>),
    /// Rules were found to be missing.
    Drifted,
}

/// What one family's task remembers.
struct Line<T> {
    family: IpFamily,
    table: T,
    frontends: Frontends,
    /// Being looked at, or to be looked at again.
    owed: Due,
    news: UnboundedReceiver<News>,
}

/// How a look at the flows ended.
struct Look {
    /// `None` if they could not be listed.
    deleted: Option<usize>,
    /// What kept it from being complete.
    trouble: Option<String>,
    /// Whether there are more stale flows than were held in memory at once.
    more: bool,
}

/// A reconciler of the kernel's flows; `outcome` is told of every look at them. Its tasks run on the
/// current runtime and end with it.
pub fn reconciler(outcome: impl Fn(Outcome) + Clone + Send + 'static) -> impl Observer {
    with_table(Kernel::default, outcome)
}

fn with_table<T: Table>(
    table: impl Fn() -> T + Send,
    outcome: impl Fn(Outcome) + Clone + Send + 'static,
) -> impl Observer {
    let start = move |family, news| {
        let line = Line { family, table: table(), frontends: Frontends::default(), owed: Due::default(), news };
        tokio::spawn(run(line, outcome.clone()));
    };
    Reconciler { lines: Vec::new(), start }
}

// === impl Reconciler ===

impl<F: Fn(IpFamily, UnboundedReceiver<News>) + Send> Observer for Reconciler<F> {
    fn notice(&mut self, notice: &Notice<'_>) {
        match notice {
            Notice::Started(family) => {
                let (sender, receiver) = mpsc::unbounded_channel();
                self.lines.push((*family, sender));
                (self.start)(*family, receiver);
            }
            Notice::Event { event: Event::Addresses(addresses), .. } => {
                for (family, _) in &self.lines {
                    self.tell(*family, News::Addresses(addresses.clone()));
                }
            }
            Notice::Planned { family, scope, plan } => self.tell(*family, News::Planned(Change::of(plan, scope))),
            Notice::Ended(Sync { family, result: Ok(report), scope, unfinished: true, .. }) => {
                let Scope::Services(names) = scope else { return };
                let is_refused = |name: &ServicePortName| report.refused.iter().any(|(refused, _)| refused == name);
                let served = names.iter().filter(|name| name.protocol == Protocol::Udp && !is_refused(name));
                self.tell(*family, News::Served(served.cloned().collect()));
            }
            Notice::Ended(Sync { family, result: Ok(report), .. }) => {
                let refused = report.refused.iter().map(|(name, _)| name.clone()).collect();
                self.tell(*family, News::Applied(refused));
            }
            Notice::Drifted(family) => self.tell(*family, News::Drifted),
            _ => {}
        }
    }
}

impl<F> Reconciler<F> {
    fn tell(&self, family: IpFamily, news: News) {
        if let Some((_, line)) = self.lines.iter().find(|(known, _)| *known == family) {
            // Nobody listens after a task has panicked, which it has told about.
            let _ = line.send(news);
        }
    }
}

async fn run<T: Table>(mut line: Line<T>, outcome: impl Fn(Outcome)) {
    let family = line.family;
    let mut failures = 0_u32;
    let mut again: Option<Instant> = None;
    loop {
        let fresh = line.frontends.take_due();
        let is_time = !fresh.is_empty() || again.is_some_and(|at| at <= Instant::now());
        line.owed.extend(fresh);
        if !is_time {
            let wait = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                news = line.news.recv() => match news {
                    Some(news) => line.take(news),
                    None => return,
                },
                () = wait => {}
            }
            continue;
        }
        let began = Instant::now();
        let look = match look(line).await {
            Ok((back, look)) => {
                line = back;
                look
            }
            Err(error) => return tracing::error!(%family, %error, "stale UDP flows are no longer removed"),
        };
        if let Some(deleted) = look.deleted {
            let took = began.elapsed();
            tracing::debug!(%family, deleted, ?took, "looked for stale UDP flows");
            outcome(Outcome { family, took, deleted });
        }
        match look.trouble {
            Some(error) => {
                if failures == 0 {
                    tracing::warn!(%family, %error, "stale UDP flows were not all removed: clients that keep their \
                        source port may still be sent to endpoints that are gone; retrying. This needs the capability \
                        NET_ADMIN and the kernel's nf_conntrack_netlink");
                } else {
                    tracing::debug!(%family, %error, "stale UDP flows were not all removed");
                }
                again = Some(Instant::now() + LAST_RETRY.min(FIRST_RETRY * 2_u32.pow(failures.min(16))));
                failures += 1;
            }
            None if look.more => again = Some(began),
            None => {
                if failures > 0 {
                    tracing::info!(%family, "stale UDP flows are removed again");
                }
                (failures, again) = (0, None);
                line.owed = Due::default();
            }
        }
    }
}

/// Lists what is stale, looks whether it still is, and deletes it.
async fn look<T: Table>(mut line: Line<T>) -> Result<(Line<T>, Look), JoinError> {
    let (back, listing) = spawn_blocking(move || {
        let mut stale = line.frontends.judge(&line.owed);
        let listing = line.table.list(line.family, &mut |flow: &Flow| stale(flow), BATCH);
        drop(stale);
        (line, listing)
    })
    .await?;
    line = back;
    let Listing { mut entries, end } = match listing {
        Ok(listing) => listing,
        Err(error) => {
            let trouble = Some(format!("cannot list flows: {error}"));
            return Ok((line, Look { deleted: None, trouble, more: false }));
        }
    };
    // Meanwhile a sync may have begun, and flows that were listed may go by its rules already.
    while let Ok(news) = line.news.try_recv() {
        line.take(news);
    }
    let mut stale = line.frontends.judge(&line.owed);
    entries.retain(|entry| stale(&entry.flow));
    drop(stale);
    let (line, Deletion { deleted, error }) = spawn_blocking(move || {
        let deletion = line.table.delete(line.family, &entries);
        (line, deletion)
    })
    .await?;
    let trouble = match (error, end) {
        (Some(error), _) => Some(format!("cannot delete a flow: {error}")),
        (None, End::Interrupted) => Some("the list of flows was interrupted".to_owned()),
        (None, End::All | End::Limit) => None,
    };
    Ok((line, Look { deleted: Some(deleted), trouble, more: end == End::Limit }))
}

// === impl Line ===

impl<T> Line<T> {
    fn take(&mut self, news: News) {
        match news {
            News::Addresses(addresses) => self.frontends.set_addresses(&addresses),
            News::Planned(change) => self.frontends.planned(change),
            News::Applied(refused) => self.frontends.applied(&refused),
            News::Served(names) => names.into_iter().for_each(|name| self.frontends.served(name)),
            News::Drifted => self.frontends.drifted(),
        }
    }
}

#[cfg(test)]
mod tests;
