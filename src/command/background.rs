//! A program that runs beside us until it is stopped.

use std::fs::File;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Command, CommandError};

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Background {
    program: String,
    child: tokio::process::Child,
}

// === impl Background ===

impl Background {
    /// Starts a program in the network namespace of the calling thread. What it prints goes to
    /// `log`; the input and the time limit of `command` are not used.
    pub fn start(command: &Command, log: &File) -> Result<Background, CommandError> {
        let program = command.program.clone();
        let start = || {
            tokio::process::Command::new(&command.program)
                .args(&command.args)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log.try_clone()?)
                .kill_on_drop(true)
                .spawn()
        };
        match start() {
            Ok(child) => Ok(Background { program, child }),
            Err(source) => Err(CommandError::Start { program, source }),
        }
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus, CommandError> {
        self.child.wait().await.map_err(|source| CommandError::Pipe { program: self.program.clone(), source })
    }

    /// Asks it to end (SIGTERM), and kills it if it has not done so after `patience`.
    pub async fn stop(mut self, patience: Duration) -> Result<(), CommandError> {
        // Until it is waited for, its id belongs to nobody else.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            let killed = self.child.kill().await;
            killed.map_err(|source| CommandError::Pipe { program: self.program.clone(), source })?;
        }
        Ok(())
    }
}
