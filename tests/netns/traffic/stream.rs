//! A long-lived TCP connection that is used all the time.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use super::{Answer, Call};
use crate::world::{Namespace, eventually};

/// A connection over which something is sent and comes back every few milliseconds.
pub struct Stream {
    /// Whom it is connected to.
    pub answer: Answer,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    #[allow(dead_code, reason = "for tests/vm/")]
    abort: Arc<AtomicBool>,
    error: Arc<Mutex<String>>,
    thread: Option<JoinHandle<()>>,
}

// === impl Stream ===

impl Stream {
    /// Opens the connection and begins to use it.
    pub fn open(netns: &Namespace, call: Call) -> Stream {
        let (mut stream, answer) = netns.run(|| call.open()).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (abort, error) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(String::new())));
        let (counter, stopped, report) = (Arc::clone(&rounds), Arc::clone(&stop), Arc::clone(&error));
        let aborted = Arc::clone(&abort);
        let thread = std::thread::spawn(move || {
            stream.set_nodelay(true).unwrap();
            // Long enough for several retransmissions, short enough for a test to end.
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let round = counter.load(Ordering::Relaxed);
                let sent = round.to_be_bytes();
                let mut back = [0; 8];
                let echo = stream.write_all(&sent).and_then(|()| stream.read_exact(&mut back));
                let wrong = match echo {
                    Ok(()) if back == sent => None,
                    Ok(()) => Some(format!("round {round}: {back:?} came back for {sent:?}")),
                    Err(error) => Some(format!("round {round}: {error}")),
                };
                if let Some(wrong) = wrong {
                    *report.lock().unwrap() = wrong;
                    return;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
            if aborted.load(Ordering::Relaxed) {
                set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            }
        });
        Stream { answer, rounds, stop, abort, error, thread: Some(thread) }
    }

    /// Waits until more has come back than so far: the connection works at this moment.
    #[track_caller]
    pub fn works(&self, when: &str) {
        // What is under way now may have been answered before; the next one was not.
        let target = self.rounds.load(Ordering::Relaxed) + 2;
        let what = format!("the open connection to {} goes on {when}", self.answer.endpoint);
        eventually(Duration::from_secs(12), &what, || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended, "{what}: {}", self.error.lock().unwrap());
            (self.rounds.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    /// Ends it so that nobody waits for what may still be under way: the kernel forgets it soon.
    #[allow(dead_code, reason = "for tests/vm/")]
    #[track_caller]
    pub fn break_off(self) {
        self.abort.store(true, Ordering::Relaxed);
        self.finish();
    }

    /// Ends it; a connection that broke is a failure of the test.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        assert_eq!(*self.error.lock().unwrap(), "", "the long-lived connection to {} broke", self.answer.endpoint);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
