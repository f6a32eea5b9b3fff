//! Servers that fail, lie or vanish.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ferrule::cluster::Changed;
use ferrule::model::Kind;
use serde_json::json;
use tokio::time::Instant;

use super::follower::{Follower, objects, requests_for, service, slice};
use super::server::answer::{Core, Fault, On, Seen};

const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

/// The most requests of one kind in so many seconds that a back-off of 0.8 s doubling to 30 s makes.
fn most_requests(seconds: f64) -> usize {
    let (mut count, mut wait, mut at) = (1, 0.8f64, 0.0);
    while at <= seconds {
        at += wait;
        wait = (wait * 2.0).min(30.0);
        count += 1;
    }
    count
}

/// The pauses between requests.
fn pauses(seen: &[Seen]) -> Vec<f64> {
    seen.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect()
}

/// What is logged while it lives, at `info` and above.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

#[derive(Clone)]
struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> Log {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = LogWriter(text.clone());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Log { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.text.lock().expect("the log").clone()).expect("UTF-8");
        text.lines().map(str::to_string).collect()
    }
}

/// Ten minutes without the server: nothing is deleted, nothing is said twice, and all is well after.
#[tokio::test(start_paused = true)]
async fn ten_minutes_without_the_server() {
    for forgotten in [false, true] {
        let log = Log::start();
        let core = Core::new(objects());
        let mut follower = Follower::start(&core);
        follower.until_synced().await;
        let before = core.requests().len();

        core.set_down(true);
        let down_at = Instant::now();
        assert_eq!(follower.within(Duration::from_secs(600)).await, [], "the outage itself is no event");
        assert_eq!(core.requests().len(), before, "a server that is down sees no requests");
        core.delete("Service", "t", "s07");
        core.apply(service("new", "10.0.0.1"));
        if forgotten {
            core.advance_to(100_000);
            core.compact();
        }
        core.set_down(false);
        let events = follower.within(Duration::from_secs(61)).await;
        follower.assert_equals_server();
        assert!(down_at.elapsed() < Duration::from_secs(662));

        // Only what really changed is a change.
        let changes: Vec<_> = events.iter().filter(|(_, changed)| *changed != Changed::Nothing).collect();
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!(changes.iter().any(|(event, _)| event == "Service t/new"), "{changes:?}");
        let repeated = events.len() - changes.len();
        assert_eq!(repeated > 80, forgotten, "{repeated} events say what was known");

        let lines = log.lines();
        for kind in KINDS {
            let of_kind: Vec<&String> = lines.iter().filter(|line| line.contains(&format!("kind={kind} "))).collect();
            assert_eq!(of_kind.len(), 2, "one line for the loss and one for the recovery: {of_kind:?}");
            assert!(of_kind[0].contains("INFO") && of_kind[0].contains("the API server is lost"), "{}", of_kind[0]);
            assert!(of_kind[0].contains("http://fake") && of_kind[0].contains("made to break off"), "{}", of_kind[0]);
            assert!(
                of_kind[1].contains("the API server is back") && of_kind[1].contains("seconds=6"),
                "{}",
                of_kind[1]
            );
        }
        assert_eq!(lines.len(), 6, "{lines:?}");
    }
}

/// Who looks at metrics sees a watch that is lost, and one that says nothing.
#[tokio::test(start_paused = true)]
async fn how_watches_are_is_seen() {
    let core = Core::new(objects());
    let mut follower = Follower::start(&core);
    assert!(follower.liveness.read().iter().all(|watch| !watch.connected && watch.silent.is_none()), "at the start");
    follower.until_synced().await;
    follower.within(Duration::from_secs(600)).await;
    for watch in follower.liveness.read() {
        assert!(watch.connected, "{watch:?}");
        assert!(watch.silent.expect("bookmarks are heard") <= Duration::from_secs(61), "{watch:?}");
    }
    core.set_down(true);
    follower.within(Duration::from_secs(120)).await;
    for watch in follower.liveness.read() {
        assert!(!watch.connected, "{watch:?}");
        assert!(watch.silent.expect("it was heard once") >= Duration::from_secs(119), "{watch:?}");
    }
    core.set_down(false);
    follower.within(Duration::from_secs(61)).await;
    assert!(follower.liveness.read().iter().all(|watch| watch.connected), "{:?}", follower.liveness.read());
    // A watch that was only ever silent shows by its silence.
    core.set_fault(On::Watch, Fault::Stall);
    follower.within(Duration::from_secs(900)).await;
    let silent = follower.liveness.read().into_iter().map(|watch| watch.silent.expect("it was heard"));
    let silent: Vec<_> = silent.collect();
    assert!(silent.len() == 3 && silent.iter().all(|silent| *silent >= Duration::from_secs(150)), "{silent:?}");
}

/// Trap: kube's watcher takes a first watch that is closed at once for no error, and spins.
#[tokio::test(start_paused = true)]
async fn a_server_that_closes_at_once() {
    for after in [0, 1] {
        let core = Core::new([service("a", "10.0.0.1")]);
        core.set_fault(On::InitialWatch, Fault::CloseAfter(after));
        core.set_fault(On::Watch, Fault::CloseAfter(0));
        let mut follower = Follower::start(&core);
        let events = follower.within(Duration::from_secs(3600)).await;
        for kind in KINDS {
            let seen = requests_for(&core, kind);
            // Four of them belong to finding out that this server lists in pages only.
            let most = most_requests(3600.0) + 5;
            assert!((60..=most).contains(&seen.len()), "{kind}: {} requests in an hour, {most} at most", seen.len());
        }
        // After three watches each, all is listed afresh, or nothing would ever be heard again: of a
        // Service, that is three events.
        let listings = events.iter().filter(|(event, _)| event.starts_with("Listing ")).count();
        assert!((60..=3 * (most_requests(3600.0) / 4 + 4)).contains(&listings), "{listings} listings");
        assert_eq!(follower.state.services().count(), 1, "the list by pages has come");
    }
}

/// A server that lists, and has forgotten what it said at once.
#[tokio::test(start_paused = true)]
async fn a_server_that_forgets_at_once() {
    let log = Log::start();
    let core = Core::new([service("a", "10.0.0.1")]);
    core.set_streaming_lists(false);
    core.set_fault(On::Watch, Fault::Status(410, "Expired"));
    let mut follower = Follower::start(&core);
    follower.within(Duration::from_secs(3600)).await;
    assert_eq!(follower.state.services().count(), 1);
    for kind in KINDS {
        // Every attempt is a list and a watch; the first failure is free.
        let (seen, most) = (requests_for(&core, kind).len(), 2 * most_requests(3600.0) + 4);
        assert!((120..=most).contains(&seen), "{kind}: {seen} requests in an hour, {most} at most");
    }
    assert_eq!(log.lines().len(), 6, "the fallback and the loss, once a kind: {:?}", log.lines());
}

/// The same where nothing works at all.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_everything() {
    let endless = format!("{{\"kind\":\"ServiceList\",\"metadata\":{{}},\"items\":[{}", "x".repeat(9000));
    for (fault, reason) in [
        (Fault::Status(500, "InternalError"), "500 InternalError"),
        (Fault::Status(503, "ServiceUnavailable"), "503 ServiceUnavailable"),
        (Fault::Status(403, "Forbidden"), "403 Forbidden"),
        (Fault::Status(404, "NotFound"), "404 NotFound"),
        (Fault::Status(400, "BadRequest"), "400 BadRequest"),
        (Fault::Text("<html>Sign in to the network</html>".into()), "<html>"),
        (Fault::Text("<html>\n</html>\n".into()), "no event: expected value"),
        (Fault::Text("{}\n".into()), "no event: missing field"),
        (Fault::Text("{\"kind\":\"ServiceList\",\"items\":[]}\n".into()), "no event: missing field"),
        (Fault::Text(endless), "the stream ends within a line"),
    ] {
        for streaming in [true, false] {
            fails_everything(&fault, reason, streaming).await;
        }
    }
}

async fn fails_everything(fault: &Fault, reason: &str, streaming: bool) {
    let core = Core::new([service("a", "10.0.0.1"), slice("a-1", "a", "10.1.0.1")]);
    core.set_streaming_lists(streaming);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    follower.within(Duration::from_secs(2)).await;
    let log = Log::start();
    core.set_fault(On::Anything, fault.clone());
    core.close_watches();
    let began = Instant::now();
    let events = follower.within(Duration::from_secs(1800)).await;
    let harmless = |(event, changed): &(String, Changed)| *changed == Changed::Nothing && !event.starts_with("Synced");
    assert!(events.iter().all(harmless), "{fault:?}: {events:?}");
    for kind in KINDS {
        let seen: Vec<Seen> = requests_for(&core, kind).into_iter().filter(|seen| seen.at >= began).collect();
        // One more for finding out that lists are not streamed.
        assert!((30..=most_requests(1800.0) + 1).contains(&seen.len()), "{fault:?}: {} requests", seen.len());
    }
    let said: Vec<String> = log.lines().into_iter().filter(|line| line.contains("kind=Service ")).collect();
    assert!(said[0].contains(reason), "{fault:?}: {said:?}");
    assert!(said.len() <= 3, "said again and again: {said:?}");
    // Trap: kube logs the whole body of an answer it cannot read.
    assert!(log.lines().iter().all(|line| line.len() < 500), "{:?}", log.lines());

    core.clear_faults();
    core.apply(service("b", "10.0.0.2"));
    follower.until("Service t/b").await;
    follower.within(Duration::from_secs(61)).await;
    follower.assert_equals_server();
}

/// Waits grow from 0.8 s to 30 s, spread up to double, and start anew after a healthy time.
#[tokio::test(start_paused = true)]
async fn waits_between_failures() {
    let core = Core::new([]);
    core.set_fault(On::Anything, Fault::Status(500, "InternalError"));
    let mut follower = Follower::start(&core);
    follower.within(Duration::from_secs(600)).await;
    let pauses = pauses(&requests_for(&core, Kind::Service));
    let expected = [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0];
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!((expected..2.0 * expected + 0.01).contains(pause), "{pause} where {expected} is due: {pauses:?}");
    }
    // Two minutes of health.
    core.clear_faults();
    follower.until_synced().await;
    follower.within(Duration::from_secs(125)).await;
    core.set_fault(On::Anything, Fault::Status(500, "InternalError"));
    core.close_watches();
    let began = Instant::now();
    follower.within(Duration::from_secs(3)).await;
    let seen: Vec<Seen> = requests_for(&core, Kind::Service).into_iter().filter(|seen| seen.at >= began).collect();
    assert!(seen.len() >= 2, "the first wait is a short one again");
}

/// A line that is no event: the watch starts again where it stood, so that nothing is missed.
#[tokio::test(start_paused = true)]
async fn a_garbage_line() {
    for garbage in [
        "!!!",
        "{",
        r#"{"type":"ADDED","object":{"metadata":{"name":"x"#,
        r#"{"type":"SURPRISE","object":{}}"#,
        r#"{"type":"ADDED"}"#,
        "[]",
        "\u{0}",
    ] {
        let core = Core::new([service("a", "10.0.0.1")]);
        let mut follower = Follower::start(&core);
        follower.until_synced().await;
        core.apply(service("b", "10.0.0.2"));
        follower.until("Service t/b").await;
        core.send_line("Service", garbage);
        core.apply(service("c", "10.0.0.3"));
        assert_eq!(follower.next().await.0, "Service t/c", "after {garbage:?}");
        let seen = requests_for(&core, Kind::Service);
        assert_eq!(seen.len(), 2, "{garbage:?}: {seen:?}");
        assert!(seen[1].query.contains("resourceVersion=2"), "from where it stood: {}", seen[1].query);
        assert_eq!(requests_for(&core, Kind::EndpointSlice).len(), 1, "no other kind suffers");
    }
}

/// A server that refuses every watch from our version, or ends it at once, but lists: it may have been
/// restored from a backup, or a proxy in between may be at fault.
#[tokio::test(start_paused = true)]
async fn watches_that_fail_without_a_word_end_in_a_list() {
    let faults = [Fault::Status(400, "BadRequest"), Fault::Status(504, "Timeout"), Fault::CloseAfter(0)];
    for fault in faults {
        let core = Core::new([service("a", "10.0.0.1")]);
        let mut follower = Follower::start(&core);
        follower.until_synced().await;
        core.set_fault(On::Watch, fault.clone());
        core.close_watches();
        let began = Instant::now();
        // Lost on the way, as the watch cannot be resumed.
        core.apply(service("b", "10.0.0.2"));
        follower.until("Service t/b").await;
        assert!(began.elapsed() < Duration::from_secs(30), "{fault:?}: {:?}", began.elapsed());
        follower.assert_equals_server();
    }
}

/// A server that breaks at the same place every time is asked for everything again.
#[tokio::test(start_paused = true)]
async fn garbage_at_the_same_place_every_time() {
    for garbage in
        ["!!!".to_string(), json!({ "type": "ERROR", "object": { "code": 500, "message": "etcd" } }).to_string()]
    {
        let core = Core::new([service("a", "10.0.0.1")]);
        let mut follower = Follower::start(&core);
        follower.until_synced().await;
        core.set_fault(On::Watch, Fault::Text(format!("{garbage}\n")));
        core.send_line("Service", &garbage);
        core.apply(service("b", "10.0.0.2"));
        let events = follower.until("Synced Service").await;
        assert_eq!(events, ["Listing Service", "Service t/a", "Service t/b"]);
        let seen = requests_for(&core, Kind::Service);
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}

/// Trap: a line may be of any length; ours may not.
#[tokio::test(start_paused = true)]
async fn an_endless_line() {
    let log = Log::start();
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    core.send_line("Service", &"x".repeat(33 << 20));
    core.apply(service("b", "10.0.0.2"));
    assert_eq!(follower.next().await.0, "Service t/b");
    assert!(log.lines()[0].contains("reason=a line of more than 32 MiB"), "{:?}", log.lines());
    assert_eq!(requests_for(&core, Kind::Service).len(), 2);
}

/// A server that takes requests and says nothing, or stops in the middle, is left for a new attempt.
#[tokio::test(start_paused = true)]
async fn a_server_that_stands_still() {
    let core = Core::new([service("a", "10.0.0.1")]);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    // A dead connection: no end, no bookmark.
    core.set_fault(On::Watch, Fault::Stall);
    core.close_watches();
    follower.within(Duration::from_secs(1)).await;
    core.clear_faults();
    core.apply(service("b", "10.0.0.2"));
    let began = Instant::now();
    let events = follower.within(Duration::from_secs(200)).await;
    assert!(events.iter().any(|(event, _)| event == "Service t/b"), "{events:?}");
    assert!(began.elapsed() <= Duration::from_secs(200));

    // No answer at all.
    core.set_fault(On::Anything, Fault::Hang);
    core.close_watches();
    follower.within(Duration::from_secs(1)).await;
    core.clear_faults();
    core.apply(service("c", "10.0.0.3"));
    let events = follower.within(Duration::from_secs(90)).await;
    assert!(events.iter().any(|(event, _)| event == "Service t/c"), "{events:?}");
    assert_eq!(requests_for(&core, Kind::Service).iter().filter(|seen| seen.query.contains("sendInitial")).count(), 1);
}

/// A list that breaks off proves nothing about the objects it did not reach.
#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off() {
    let core = Core::new((0..20).map(|i| service(&format!("s{i:02}"), &format!("10.0.0.{i}"))));
    core.set_streaming_lists(false);
    let mut follower = Follower::start(&core);
    follower.until_synced().await;
    core.advance_to(1000);
    core.compact();
    core.set_fault(On::List, Fault::Truncate);
    core.set_fault(On::Watch, Fault::Status(410, "Expired"));
    core.close_watches();
    let events = follower.within(Duration::from_secs(300)).await;
    assert!(
        events.iter().all(|(event, changed)| !event.starts_with("Synced") && *changed == Changed::Nothing),
        "{events:?}"
    );
    assert_eq!(follower.state.services().count(), 20);
    core.clear_faults();
    core.delete("Service", "t", "s07");
    follower.until("Synced Service").await;
    assert_eq!(follower.state.services().count(), 19);
}

/// A server that asks to be left alone is left alone, within reason.
#[tokio::test(start_paused = true)]
async fn a_busy_server_names_a_time() {
    for (asked, least, most) in [(20, 20.0, 21.0), (4000, 60.0, 61.0)] {
        let core = Core::new([]);
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "TooManyRequests", "code": 429,
            "message": "busy", "details": { "retryAfterSeconds": asked },
        });
        core.set_fault(On::Anything, Fault::Answer(429, status.to_string()));
        let mut follower = Follower::start(&core);
        follower.within(Duration::from_secs(70)).await;
        let pause = pauses(&requests_for(&core, Kind::Service))[0];
        assert!((least..most).contains(&pause), "{pause} s where {asked} s were asked for");
    }
}
