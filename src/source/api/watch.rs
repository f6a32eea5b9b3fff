//! The life of one watch: list, follow, recover.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::backoff::{Backoff, HEALTHY};
use super::connection::Connection;
use super::decode::{self, Decoded, Identity, Line, Page, Status};
use super::exchange::{self, Failure, Lines};
use super::outage::Outage;
use super::request::{Freshness, PAGE, Resource};
use crate::cluster::Event;
use crate::model::Kind;
use crate::source::Events;

/// How long a server may take over the initial objects of a streaming list before it is taken for
/// one that does not know how to end it. Time in which we were busy ourselves does not count.
const STREAMING_LIMIT: Duration = Duration::from_secs(60);
/// So many streaming lists in a row may be cut short before lists are fetched in pages.
const CUT_SHORT_LIMIT: u32 = 3;
/// A healthy watch hears a bookmark every minute. Two missed, and the connection is taken for dead.
const IDLE_LIMIT: Duration = Duration::from_secs(150);
/// So many watches in a row may fail at the same version without a word before all is listed afresh.
const FRUITLESS_LIMIT: u32 = 3;
/// A watch that ends sooner has failed, however politely.
const SHORTEST: Duration = Duration::from_secs(1);
/// Seconds after which the server ends a watch: spread, so that nodes do not come back in step.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
/// However long a server asks to be left alone, we ask again after this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One resource, listed and watched until the receiver is gone.
pub(super) struct Watch<'a> {
    connection: &'a Connection,
    resource: Resource,
    node_name: &'a str,
    events: Events,
    /// Where the watch stands; without one, everything is listed.
    version: Option<String>,
    /// Whether the server streams lists, as far as we know.
    streaming: bool,
    /// Streaming lists that were cut short in a row.
    cut_short: u32,
    freshness: Freshness,
    /// Objects per page of a list.
    limit: Option<u32>,
    /// Whether the server forgot our version, and there was no long healthy time since.
    expired: bool,
    /// Where the server last broke a watch off with nonsense or an error.
    stuck_at: Option<String>,
    /// Watches that failed in a row without a word, though the server can be reached.
    fruitless: u32,
    /// When the server last said anything, within the present session.
    heard: Instant,
    backoff: Backoff,
    outage: Outage,
}

// === impl Watch ===

impl<'a> Watch<'a> {
    pub(super) fn new(connection: &'a Connection, resource: Resource, node_name: &'a str, events: Events) -> Self {
        let outage = Outage::new(resource.kind, connection.server());
        connection.liveness().begun(resource.kind);
        Watch {
            connection,
            resource,
            node_name,
            events,
            version: None,
            streaming: true,
            cut_short: 0,
            freshness: Freshness::Any,
            limit: Some(PAGE),
            expired: false,
            stuck_at: None,
            fruitless: 0,
            heard: Instant::now(),
            backoff: Backoff::default(),
            outage,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            self.heard = began;
            let end = self.session().await;
            let healthy_for = match &end {
                Ok(()) => began.elapsed(),
                Err(_) => self.heard.duration_since(began),
            };
            if healthy_for >= HEALTHY {
                self.backoff.reset();
                self.expired = false;
            }
            match end {
                Ok(()) => {}
                Err(Failure::ReceiverGone) => return,
                Err(failure) if failure.is_expired() && !self.expired => {
                    // Happens to every watch that was away for long, and is no trouble of the
                    // server's: no reason to wait, unless it happens again soon.
                    tracing::debug!(kind = %self.resource.kind, reason = %failure, "listing afresh");
                    self.expired = true;
                    self.version = None;
                }
                Err(failure) => {
                    self.learn_from(&failure, self.heard > began);
                    let asked = match &failure {
                        Failure::Refused { wait, .. } => (*wait).min(LONGEST_WAIT),
                        _ => Duration::ZERO,
                    };
                    sleep(self.backoff.next().max(asked)).await;
                }
            }
        }
    }

    /// From one request to its end; a list goes over into a watch where the server allows it.
    async fn session(&mut self) -> Result<(), Failure> {
        let lines = match self.version.clone() {
            Some(version) => self.ask(self.resource.watch(&version, watch_seconds())).await?,
            None if self.streaming => match self.list_streaming().await? {
                Some(lines) => lines,
                None => return self.list_in_pages().await,
            },
            None => return self.list_in_pages().await,
        };
        self.follow(lines).await
    }

    async fn ask(&self, url: String) -> Result<Lines, Failure> {
        tracing::debug!(kind = %self.resource.kind, url, "asking the API server");
        exchange::ask(self.connection, url).await
    }

    /// Lists by a watch that begins with all there is; that watch. `None` if the server does not
    /// stream lists.
    async fn list_streaming(&mut self) -> Result<Option<Lines>, Failure> {
        let mut lines = match self.ask(self.resource.streaming_list(watch_seconds())).await {
            Err(failure) if failure.is_rejection() => {
                self.stop_streaming(&failure.to_string());
                return Ok(None);
            }
            answer => answer?,
        };
        self.send(Event::Listing(self.resource.kind)).await?;
        let mut patience = STREAMING_LIMIT;
        loop {
            let asked = Instant::now();
            let Ok(line) = timeout(patience, lines.next()).await else {
                self.stop_streaming("the initial list does not end");
                return Ok(None);
            };
            patience = patience.saturating_sub(asked.elapsed());
            self.hear();
            let Some(line) = line? else {
                self.cut_short += 1;
                if self.cut_short >= CUT_SHORT_LIMIT {
                    self.stop_streaming("the initial list is always cut short");
                }
                return Err(Failure::Broken("the server closed the stream before the end of the initial list".into()));
            };
            match said(self.resource.kind, line, self.node_name)? {
                Said::Object(decoded) => self.take(decoded).await?,
                Said::Bookmark(bookmark) => {
                    let Some(version) = bookmark.version().filter(|_| bookmark.ends_initial_events()) else { continue };
                    self.version = Some(version);
                    self.cut_short = 0;
                    self.listed().await?;
                    return Ok(Some(lines));
                }
            }
        }
    }

    /// Lists page by page. No watch follows by itself.
    async fn list_in_pages(&mut self) -> Result<(), Failure> {
        let kind = self.resource.kind;
        let mut next: Option<String> = None;
        loop {
            let url = self.resource.list(self.freshness, self.limit, next.as_deref());
            let body = match self.ask(url).await {
                Ok(body) => body.whole().await?,
                Err(failure) => {
                    if failure.is_expired() && next.is_some() {
                        // We were too slow for the server's memory; paging again could go on for ever.
                        self.limit = None;
                    }
                    return Err(failure);
                }
            };
            self.hear();
            let page = page(&self.resource, &body)?;
            if next.is_none() {
                self.send(Event::Listing(kind)).await?;
            }
            for object in page.items.unwrap_or_default() {
                let decoded = decode::object(kind, object, self.node_name);
                self.send_all(decoded).await?;
            }
            next = page.metadata.next.filter(|token| !token.is_empty());
            if next.is_none() {
                let Some(version) = page.metadata.resource_version.filter(|version| !version.is_empty()) else {
                    return Err(Failure::Nonsense("a list without a resourceVersion".into()));
                };
                self.version = Some(version);
                self.limit = Some(PAGE);
                return self.listed().await;
            }
        }
    }

    /// Follows a watch until the server ends it.
    async fn follow(&mut self, mut lines: Lines) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            // A resumed watch says nothing while nothing happens: once it has lasted, all is well.
            let limit = if self.outage.is_on() { SHORTEST } else { IDLE_LIMIT };
            let line = match timeout(limit, lines.next()).await {
                Ok(line) => line?,
                Err(_) if self.outage.is_on() => {
                    self.connection.liveness().connected(self.resource.kind, true);
                    self.outage.over();
                    continue;
                }
                Err(_) => {
                    tracing::debug!(kind = %self.resource.kind, "the watch has gone quiet; asking again");
                    return Ok(());
                }
            };
            let Some(line) = line else {
                return match began.elapsed() < SHORTEST {
                    true => Err(Failure::ClosedAtOnce),
                    false => Ok(()),
                };
            };
            self.hear();
            match said(self.resource.kind, line, self.node_name)? {
                Said::Object(decoded) => self.take(decoded).await?,
                Said::Bookmark(bookmark) => self.version = bookmark.version().or(self.version.take()),
            }
            self.outage.over();
        }
    }

    /// An event other than a bookmark.
    async fn take(&mut self, decoded: Decoded) -> Result<(), Failure> {
        // Within an initial list the versions of objects are in no order; its end says one.
        if let (Some(_), Some(version)) = (&self.version, &decoded.version) {
            self.version = Some(version.clone());
        }
        self.send_all(decoded).await
    }

    /// The end of a listing.
    async fn listed(&mut self) -> Result<(), Failure> {
        self.freshness = Freshness::MostRecent;
        self.stuck_at = None;
        self.send(Event::Synced(self.resource.kind)).await
    }

    /// The server has said something.
    fn hear(&mut self) {
        self.heard = Instant::now();
        self.connection.liveness().heard(self.resource.kind);
    }

    fn stop_streaming(&mut self, reason: &str) {
        self.streaming = false;
        let (kind, server) = (self.resource.kind, self.connection.server());
        tracing::info!(%kind, server, reason, "the API server does not stream lists: listing in pages from now on");
    }

    /// Reports a failure and decides where to go on.
    fn learn_from(&mut self, failure: &Failure, heard: bool) {
        self.outage.failed(failure);
        self.connection.liveness().connected(self.resource.kind, false);
        self.fruitless = if heard || !failure.may_be_the_version() { 0 } else { self.fruitless + 1 };
        let in_the_stream = match failure {
            Failure::Nonsense(_) => true,
            Failure::Refused { in_watch, .. } => *in_watch,
            _ => false,
        };
        if failure.is_expired() {
            self.version = None;
        } else if in_the_stream {
            // The watch goes on where it stood, so that no change is missed; if it breaks at the
            // same place again, only a list helps.
            if self.stuck_at.is_some() && self.stuck_at == self.version {
                self.version = None;
            }
            self.stuck_at = self.version.clone();
        } else if self.fruitless >= FRUITLESS_LIMIT {
            // A server that was restored from a backup, say, has never seen that version.
            self.fruitless = 0;
            self.version = None;
        }
    }

    async fn send_all(&self, decoded: Decoded) -> Result<(), Failure> {
        for event in decoded.events {
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Failure> {
        self.events.send(event).await.map_err(|_| Failure::ReceiverGone)
    }
}

/// What a line of a watch says.
pub(super) enum Said {
    /// Something about an object.
    Object(Decoded),
    /// How far the watch is.
    Bookmark(Identity),
}

/// What a line says; an error if it breaks the watch off.
pub(super) fn said(kind: Kind, line: &[u8], node_name: &str) -> Result<Said, Failure> {
    if let Some(decoded) = decode::usual_line(kind, line, node_name) {
        return Ok(Said::Object(decoded));
    }
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
        Failure::Nonsense(format!("a line that is no event: {error}: {}", exchange::beginning(line)))
    })?;
    match &*line.kind {
        "BOOKMARK" => Ok(Said::Bookmark(Identity::of(line.object))),
        "ADDED" | "MODIFIED" => Ok(Said::Object(decode::object(kind, line.object, node_name))),
        "DELETED" => Ok(Said::Object(decode::deleted(kind, line.object))),
        "ERROR" => {
            let status: Status = serde_json::from_str(line.object.get()).unwrap_or_default();
            Err(Failure::from_event(status))
        }
        other => Err(Failure::Nonsense(format!("an event of type {other:?}"))),
    }
}

/// One page of a list.
pub(super) fn page<'b>(resource: &Resource, body: &'b [u8]) -> Result<Page<'b>, Failure> {
    let page: Page<'_> = serde_json::from_slice(body)
        .map_err(|error| Failure::Nonsense(format!("a list that cannot be read: {error}")))?;
    match page.kind == resource.list_kind {
        true => Ok(page),
        false => Err(Failure::Nonsense(format!("{:?} in place of {:?}", page.kind, resource.list_kind))),
    }
}

fn watch_seconds() -> u32 {
    fastrand::u32(WATCH_SECONDS)
}
