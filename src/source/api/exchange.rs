//! One request and its answer, in pieces, with a limit to every wait.

use std::pin::Pin;
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt};
use http::header::{ACCEPT, ACCEPT_ENCODING};
use tokio::time::timeout;

use super::connection::{Connection, with_causes};
use super::decode::Status;

/// How long the server may take to begin its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How long the body of a list may stand still.
const PIECE_LIMIT: Duration = Duration::from_secs(60);
/// The longest line we take in. etcd limits objects to 1.5 MiB.
const LINE_LIMIT: usize = 32 << 20;
/// A buffer that grew beyond this for one line is not kept.
const BUFFER_LIMIT: usize = 1 << 20;

/// Why a list or watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The server cannot be reached, or the connection broke.
    #[error("{0}")]
    Broken(String),
    /// The server ended the watch as soon as it began.
    #[error("the server closed the watch at once")]
    ClosedAtOnce,
    /// The server said no. The code is that of HTTP, or of an `ERROR` event.
    #[error("{code} {reason}: {message}")]
    Refused {
        code: u16,
        reason: String,
        message: String,
        /// How long the server asks to be left alone.
        wait: Duration,
        /// Whether it was said in the middle of a watch.
        in_watch: bool,
    },
    /// What the server sent makes no sense.
    #[error("{0}")]
    Nonsense(String),
    /// Nothing came for that long.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Nobody takes our events any more.
    #[error("the receiver is gone")]
    ReceiverGone,
}

/// The body of an answer, line by line.
pub(super) struct Lines {
    body: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    complete: bool,
}

/// Asks; an answer other than 2xx is a failure.
pub(super) async fn ask(connection: &Connection, url: String) -> Result<Lines, Failure> {
    let request = http::Request::get(url)
        .header(ACCEPT, "application/json")
        // A watch must not wait in a compressor.
        .header(ACCEPT_ENCODING, "identity")
        .body(Vec::new())
        .map_err(|error| Failure::Broken(error.to_string()))?;
    let answer = async { connection.client().await.request_stream(request).await };
    match timeout(ANSWER_LIMIT, answer).await {
        Err(_) => Err(Failure::Silent(ANSWER_LIMIT)),
        Ok(Err(error)) => {
            if matches!(&error, kube::Error::Api(status) if status.code == 401) {
                connection.refused().await;
            }
            Err(error.into())
        }
        Ok(Ok(body)) => Ok(Lines { body: Box::pin(body), line: Vec::new(), complete: false }),
    }
}

/// The beginning of a line, for the log.
pub(super) fn beginning(line: &[u8]) -> String {
    String::from_utf8_lossy(line.get(..80).unwrap_or(line)).into_owned()
}

// === impl Lines ===

impl Lines {
    /// The next line, without its end; `None` when the server has closed the stream. Can be called
    /// again after it was cancelled.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        if self.complete {
            self.complete = false;
            if self.line.capacity() > BUFFER_LIMIT {
                self.line = Vec::new();
            }
            self.line.clear();
        }
        loop {
            let piece = self.body.fill_buf().await.map_err(|error| Failure::Broken(with_causes(&error)))?;
            if piece.is_empty() {
                return match self.line.is_empty() {
                    true => Ok(None),
                    false => {
                        Err(Failure::Nonsense(format!("the stream ends within a line: {}", beginning(&self.line))))
                    }
                };
            }
            let (taken, end) = match piece.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (piece.len(), false),
            };
            self.line.extend_from_slice(piece.get(..taken).unwrap_or_default());
            self.body.as_mut().consume(taken);
            if self.line.len() > LINE_LIMIT {
                return Err(Failure::Nonsense(format!("a line of more than {} MiB", LINE_LIMIT >> 20)));
            }
            if end {
                self.line.pop();
                if self.line.is_empty() {
                    continue;
                }
                self.complete = true;
                return Ok(Some(&self.line));
            }
        }
    }

    /// All of the body.
    pub(super) async fn whole(mut self) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        loop {
            let piece = match timeout(PIECE_LIMIT, self.body.fill_buf()).await {
                Err(_) => return Err(Failure::Silent(PIECE_LIMIT)),
                Ok(piece) => piece.map_err(|error| Failure::Broken(with_causes(&error)))?,
            };
            if piece.is_empty() {
                return Ok(whole);
            }
            whole.extend_from_slice(piece);
            let taken = piece.len();
            self.body.as_mut().consume(taken);
        }
    }
}

// === impl Failure ===

impl Failure {
    /// An `ERROR` event of a watch.
    pub(super) fn from_event(status: Status) -> Failure {
        let Status { code, message, reason } = status;
        Failure::Refused { code, reason, message, wait: Duration::ZERO, in_watch: true }
    }

    /// Whether the version asked for is no longer known.
    pub(super) fn is_expired(&self) -> bool {
        matches!(self, Failure::Refused { code: 410, .. })
    }

    /// Whether another version might fare better: nothing says that the server is out of reach, busy,
    /// or has no trust in us.
    pub(super) fn may_be_the_version(&self) -> bool {
        match self {
            Failure::ClosedAtOnce => true,
            Failure::Refused { code, .. } => !matches!(code, 401 | 403 | 429 | 503),
            _ => false,
        }
    }

    /// Whether the server understood the request and will not have it in that form.
    pub(super) fn is_rejection(&self) -> bool {
        matches!(self, Failure::Refused { code: 400 | 422, in_watch: false, .. })
    }

    /// What kind of failure it is, so that the same one is reported once.
    pub(super) fn class(&self) -> (std::mem::Discriminant<Failure>, u16) {
        let code = match self {
            Failure::Refused { code, .. } => *code,
            _ => 0,
        };
        (std::mem::discriminant(self), code)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) => Failure::Refused {
                code: status.code,
                reason: status.reason.clone(),
                message: status.message.clone(),
                wait: Duration::from_secs(status.details.as_ref().map_or(0, |d| u64::from(d.retry_after_seconds))),
                in_watch: false,
            },
            error => Failure::Broken(with_causes(&error)),
        }
    }
}
