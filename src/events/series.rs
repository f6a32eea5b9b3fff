//! Repeats of an Event become one series, so that what fails with every sync is one line. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// After so long without a repeat, the next one is an Event of its own. (client-go: `finishTime`.)
const QUIET: SignedDuration = SignedDuration::from_mins(6);
/// A series that goes on is written again that often. (client-go: `refreshTime`.)
const REFRESH: SignedDuration = SignedDuration::from_mins(30);

/// Events so far that may be repeated.
#[derive(Debug, Default)]
pub(super) struct SeriesBook {
    open: BTreeMap<Key, Series>,
}

/// What makes two Events the same but for time and note.
type Key = (Option<String>, Option<String>, Option<String>, Option<String>);

#[derive(Debug)]
struct Series {
    event: Event,
    /// How often it was seen.
    count: i32,
    last: Timestamp,
    /// How often it was seen when it was last written, and when that was.
    written: (i32, Timestamp),
}

/// What to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// A new Event.
    Create(Event),
    /// A new state of the `series` of one that was sent.
    Update(Event),
}

// === impl SeriesBook ===

impl SeriesBook {
    /// Takes an Event in that happened at `at`: what to send now.
    pub(super) fn take(&mut self, event: Event, at: Timestamp) -> Option<Write> {
        match self.open.get_mut(&key(&event)) {
            Some(series) => {
                series.count = series.count.saturating_add(1);
                series.last = at;
                // The second one shows that there is a series; what comes after can wait.
                (series.written.0 == 1).then(|| series.update(at))
            }
            None => {
                let series = Series { event: event.clone(), count: 1, last: at, written: (1, at) };
                self.open.insert(key(&event), series);
                Some(Write::Create(event))
            }
        }
    }

    /// What to send because time has passed.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Write> {
        let mut writes = Vec::new();
        self.open.retain(|_, series| {
            let is_over = now.duration_since(series.last) >= QUIET;
            let is_old = now.duration_since(series.written.1) >= REFRESH;
            if series.count > series.written.0 && (is_over || is_old) {
                writes.push(series.update(now));
            }
            !is_over
        });
        writes
    }
}

// === impl Series ===

impl Series {
    fn update(&mut self, now: Timestamp) -> Write {
        self.written = (self.count, now);
        let mut event = self.event.clone();
        event.series = Some(EventSeries { count: self.count, last_observed_time: MicroTime(self.last) });
        Write::Update(event)
    }
}

fn key(event: &Event) -> Key {
    let regarding = event.regarding.as_ref();
    (
        event.reason.clone(),
        regarding.and_then(|object| object.kind.clone()),
        regarding.and_then(|object| object.namespace.clone()),
        regarding.and_then(|object| object.name.clone()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Happening;
    use super::super::wire::{Reporter, event};
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + 60 * minute).unwrap()
    }

    fn failed(minute: i64, port: &str) -> Event {
        let reporter = Reporter { node: "n".to_owned(), host: "h".to_owned() };
        event(&reporter, &Happening::MetricsServerFailed(port.to_owned()), at(minute))
    }

    /// Which Event was written, by its time, and its count.
    fn shown(writes: impl IntoIterator<Item = Write>) -> Vec<(Timestamp, Option<(i32, Timestamp)>)> {
        let shown = |event: Event| {
            (event.event_time.unwrap().0, event.series.map(|series| (series.count, series.last_observed_time.0)))
        };
        writes
            .into_iter()
            .map(|write| match write {
                Write::Create(event) | Write::Update(event) => shown(event),
            })
            .collect()
    }

    #[test]
    fn repeats() {
        let mut book = SeriesBook::default();
        let first = book.take(failed(0, "a"), at(0));
        assert!(matches!(first, Some(Write::Create(_))));
        assert_eq!(shown(first), [(at(0), None)]);
        // The note does not make it another one.
        let second = book.take(failed(1, "b"), at(1));
        assert!(matches!(second, Some(Write::Update(_))));
        assert_eq!(shown(second), [(at(0), Some((2, at(1))))]);
        for minute in 2..31 {
            assert_eq!(book.take(failed(minute, "a"), at(minute)), None);
            assert_eq!(book.due(at(minute)), []);
        }
        assert_eq!(shown(book.due(at(31))), [(at(0), Some((31, at(30))))]);
        // Over: said once, and the next one is new.
        assert_eq!(book.take(failed(32, "a"), at(32)), None);
        assert_eq!(shown(book.due(at(38))), [(at(0), Some((32, at(32))))]);
        assert_eq!(book.due(at(39)), []);
        assert!(matches!(book.take(failed(40, "a"), at(40)), Some(Write::Create(_))));
    }

    #[test]
    fn other_reasons_and_objects() {
        let mut book = SeriesBook::default();
        let reporter = Reporter { node: "n".to_owned(), host: "h".to_owned() };
        assert!(book.take(failed(0, "a"), at(0)).is_some());
        let starting = event(&reporter, &Happening::Starting, at(0));
        assert!(matches!(book.take(starting, at(0)), Some(Write::Create(_))));
        let other = Reporter { node: "m".to_owned(), ..reporter };
        let elsewhere = event(&other, &Happening::MetricsServerFailed("a".to_owned()), at(0));
        assert!(matches!(book.take(elsewhere, at(0)), Some(Write::Create(_))));
    }
}
