//! Running other programs. Nothing else in ferrule starts a process.

pub mod background;
#[cfg(feature = "fixtures")]
pub mod fake;

use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// A program with its arguments and input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Name, looked up in `PATH`.
    pub program: String,
    /// Arguments, each given as it is: no shell is involved.
    pub args: Vec<String>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// The program is killed after this time.
    pub timeout: Duration,
}

/// How a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Why there is no [`Output`]: whether the program did anything is then unknown.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("{program} cannot be run: {source}; is it installed and in PATH?")]
    Start {
        /// The program.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {seconds} s and was killed")]
    Timeout {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It was ended by a signal.
    #[error("{program} was ended by a signal ({detail})")]
    Signal {
        /// The program.
        program: String,
        /// How the system describes it.
        detail: String,
    },
    /// Its pipes broke.
    #[error("{program}: reading or writing its pipes failed: {source}")]
    Pipe {
        /// The program.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Runs programs. [`System`] does; tests have a kernel in memory instead.
pub trait Run: Send + Sync {
    /// Runs a program to its end and hands each line of its standard output, without the line end,
    /// to `line`.
    fn run(
        &self,
        command: Command,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> impl Future<Output = Result<Output, CommandError>> + Send;

    /// The same, with input that is made while the program reads it: `parts` follow the command's own
    /// input until there are none.
    fn run_fed(
        &self,
        mut command: Command,
        parts: &mut (dyn FnMut() -> Option<String> + Send),
        line: &mut (dyn FnMut(&str) + Send),
    ) -> impl Future<Output = Result<Output, CommandError>> + Send {
        async move {
            while let Some(part) = parts() {
                command.stdin.extend(part.into_bytes());
            }
            self.run(command, line).await
        }
    }
}

/// The programs of this system.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

// === impl CommandError ===

impl CommandError {
    /// Whether there is no such program.
    pub fn is_not_installed(&self) -> bool {
        matches!(self, CommandError::Start { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

// === impl Command ===

impl Command {
    /// A command without input, limited to five minutes (kube-proxy's limit for `iptables -C`).
    pub fn new(program: &str, args: &[&str]) -> Command {
        Command {
            program: program.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            stdin: Vec::new(),
            timeout: Duration::from_secs(300),
        }
    }

    /// Limited to another time.
    pub fn within(mut self, limit: Duration) -> Command {
        self.timeout = limit;
        self
    }

    /// With standard input.
    pub fn with_stdin(mut self, stdin: Vec<u8>) -> Command {
        self.stdin = stdin;
        self
    }
}

// === impl Output ===

impl Output {
    /// Whether the program reported success.
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// The first line of its complaint that says something.
    pub fn complaint(&self) -> &str {
        let mut lines = self.stderr.lines().map(str::trim);
        lines.find(|line| !line.is_empty()).unwrap_or("no message")
    }
}

// === impl System ===

impl Run for System {
    async fn run(&self, command: Command, line: &mut (dyn FnMut(&str) + Send)) -> Result<Output, CommandError> {
        self.run_fed(command, &mut || None, line).await
    }

    async fn run_fed(
        &self,
        command: Command,
        parts: &mut (dyn FnMut() -> Option<String> + Send),
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Output, CommandError> {
        let Command { program, args, stdin, timeout } = command;
        let pipe = |source| CommandError::Pipe { program: program.clone(), source };
        let mut child = tokio::process::Command::new(&program)
            .args(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let (input, output, complaints) = (child.stdin.take(), child.stdout.take(), child.stderr.take());

        // All three pipes at once, or a program that fills one while we wait on another never ends.
        let write = async {
            let Some(mut input) = input else { return };
            // A program that fails early stops reading; its exit code says more than EPIPE.
            let mut written = input.write_all(&stdin).await;
            while written.is_ok()
                && let Some(part) = parts()
            {
                written = input.write_all(part.as_bytes()).await;
            }
        };
        let read = async {
            let Some(output) = output else { return Ok::<_, std::io::Error>(()) };
            let mut reader = BufReader::with_capacity(64 * 1024, output);
            // Lines are handed over by the block they came in: a big table has a hundred thousand.
            let mut begun = Vec::new();
            loop {
                let block = reader.fill_buf().await?;
                let length = block.len();
                if length == 0 {
                    break;
                }
                match block.iter().rposition(|byte| *byte == b'\n') {
                    Some(end) => {
                        let (whole, rest) = block.split_at(end);
                        begun.extend_from_slice(whole);
                        String::from_utf8_lossy(&begun).split('\n').for_each(&mut *line);
                        begun.clear();
                        begun.extend_from_slice(rest.get(1..).unwrap_or_default());
                    }
                    None => begun.extend_from_slice(block),
                }
                reader.consume(length);
            }
            if !begun.is_empty() {
                line(&String::from_utf8_lossy(&begun));
            }
            Ok(())
        };
        let complain = async {
            let mut text = Vec::new();
            if let Some(mut complaints) = complaints {
                complaints.read_to_end(&mut text).await?;
            }
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        let all = async {
            let ((), read, stderr) = tokio::join!(write, read, complain);
            read?;
            Ok::<_, std::io::Error>((child.wait().await?, stderr?))
        };
        let (status, stderr) = tokio::time::timeout(timeout, all)
            .await
            .map_err(|_| CommandError::Timeout { program: program.clone(), seconds: timeout.as_secs() })?
            .map_err(pipe)?;
        match status.code() {
            Some(code) => Ok(Output { code, stderr }),
            None => Err(CommandError::Signal { program, detail: status.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(script: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let command = Command::new("sh", &["-c", script]);
        let output = System.run(command, &mut |line| lines.push(line.to_owned())).await.unwrap();
        assert!(output.success(), "{}", output.stderr);
        lines
    }

    #[tokio::test]
    async fn each_line_is_handed_over_once_and_whole() {
        assert_eq!(lines("printf 'a\\n\\nb\\n'").await, ["a", "", "b"]);
        assert_eq!(lines("printf 'a\\nb'").await, ["a", "b"], "the last one needs no end");
        assert_eq!(lines("printf ''").await, [""; 0]);
        assert_eq!(lines("printf '\\377x\\n'").await, ["\u{fffd}x"]);
        assert_eq!(
            lines("printf be; sleep 0.05; printf 'gun\\nand'; sleep 0.05; printf ' so on\\n'").await,
            ["begun", "and so on"]
        );
        // Many blocks, of lines that are longer and shorter than what a pipe hands over at once.
        let long = lines("i=0; while [ $i -lt 300 ]; do printf '%0*d\\n' $((i * 97 + 1)) $i; i=$((i + 1)); done").await;
        assert_eq!(long.len(), 300);
        for (i, line) in long.iter().enumerate() {
            assert_eq!((line.len(), line.trim_start_matches('0').parse().unwrap_or(0)), (i * 97 + 1, i));
        }
    }
}
