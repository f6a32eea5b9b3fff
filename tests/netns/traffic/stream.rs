//! A long-lived TCP connection that is used all the time.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Answer, Call};
use crate::world::{Namespace, eventually};

/// A connection over which something is sent and comes back every few milliseconds.
pub struct Stream {
    /// Whom it is connected to.
    pub answer: Answer,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

// === impl Stream ===

impl Stream {
    /// Opens the connection and begins to use it.
    pub fn open(netns: &Namespace, call: Call) -> Stream {
        let (mut stream, answer) = netns.run(|| call.open()).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            stream.set_nodelay(true).unwrap();
            // Long enough for several retransmissions, short enough for a test to end.
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let round = counter.load(Ordering::Relaxed);
                let sent = round.to_be_bytes();
                let mut back = [0; 8];
                let echo = stream.write_all(&sent).and_then(|()| stream.read_exact(&mut back));
                echo.map_err(|error| format!("round {round}: {error}"))?;
                if back != sent {
                    return Err(format!("round {round}: {back:?} came back for {sent:?}"));
                }
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
            Ok(())
        });
        Stream { answer, rounds, stop, thread: Some(thread) }
    }

    /// Waits until more has come back than so far: the connection works at this moment.
    #[track_caller]
    pub fn works(&self, when: &str) {
        // What is under way now may have been answered before; the next one was not.
        let target = self.rounds.load(Ordering::Relaxed) + 2;
        eventually(Duration::from_secs(12), &format!("the open connection goes on {when}"), || {
            (self.rounds.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    /// Ends it; a connection that broke is a failure of the test.
    #[track_caller]
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().unwrap().join().unwrap();
        assert_eq!(result, Ok(()), "the long-lived connection to {} broke", self.answer.endpoint);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
