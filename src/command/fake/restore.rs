//! `iptables-restore`.

use super::operation::{Operation, Refused};
use super::tables::{Content, Tables};
use super::words::Tool;
use super::{Refusal, table_named};
use crate::command::Output;

/// One run of `iptables-restore`.
pub(super) struct Restore<'a> {
    tool: Tool<'a>,
    tables: Tables,
    refusals: &'a [(String, Refusal)],
    /// `--noflush`: what the input does not mention stays.
    keep: bool,
    /// `--test`: nothing is committed.
    test: bool,
    /// `-T`: the only table of the input that counts.
    only: Option<String>,
    /// Ends after the first COMMIT.
    pub(super) stop_after_commit: bool,
}

impl<'a> Restore<'a> {
    pub(super) fn new(
        tool: Tool<'a>,
        tables: Tables,
        refusals: &'a [(String, Refusal)],
        args: &[String],
    ) -> Restore<'a> {
        let has = |names: [&str; 2]| args.iter().any(|arg| names.contains(&arg.as_str()));
        let only = args.iter().skip_while(|arg| !matches!(arg.as_str(), "-T" | "--table")).nth(1).cloned();
        let (keep, test) = (has(["-n", "--noflush"]), has(["-t", "--test"]));
        Restore { tool, tables, refusals, keep, test, only, stop_after_commit: false }
    }

    /// Reads the input. Answers with the state after each COMMIT, and how the tool ends.
    pub(super) fn run(mut self, input: &str) -> (Vec<Tables>, Output) {
        let mut states = Vec::new();
        let output = self.read(input, &mut states);
        if self.test {
            states.clear();
        }
        (states, output)
    }

    fn read(&mut self, input: &str, states: &mut Vec<Tables>) -> Output {
        let mut content: Option<Content> = None;
        let mut skipping = false;
        let mut lines = (1..).zip(input.lines());
        let mut last = 0;
        while let Some((number, line)) = lines.next() {
            last = number;
            let refused = |refused: Refused| {
                let mut rest = lines.clone();
                let commit = rest.find(|(_, line)| *line == "COMMIT").map_or(number, |(number, _)| number);
                self.tool.line_refused(&refused, number, commit)
            };
            match (line, &mut content) {
                ("", _) => {}
                (line, _) if line.starts_with('#') => {}
                ("COMMIT", _) if skipping => skipping = false,
                (_, _) if skipping => {}
                ("COMMIT", Some(_)) => {
                    if let Some(content) = content.take() {
                        self.tables.commit(content);
                    }
                    states.push(self.tables.clone());
                    if self.stop_after_commit {
                        return Output::default();
                    }
                }
                (line, None) => match line.strip_prefix('*') {
                    Some(name) if self.only.as_deref().is_some_and(|only| only != name) => skipping = true,
                    Some(name) => {
                        let table = table_named(name);
                        let Some(table) = table else { return self.tool.no_table_at(name, number) };
                        content = match self.keep {
                            true => self.tables.content(table).cloned(),
                            false => Some(Content::new(table, self.tables.family())),
                        };
                    }
                    None => return refused(Refused::Syntax(format!("{line:?} outside of a table"))),
                },
                (line, Some(content)) => {
                    let done = Operation::from_line(line, content.family())
                        .and_then(|operation| self.judge(line, &operation).and_then(|()| operation.apply(content)));
                    match done {
                        Ok(()) => {}
                        Err(Refused::Elsewhere) => return self.tool.failed_somewhere(),
                        Err(other) => return refused(other),
                    }
                }
            }
        }
        match content {
            None => Output::default(),
            Some(_) => self.tool.no_commit(last + 1),
        }
    }

    /// Whether a test wants this line refused.
    fn judge(&self, line: &str, operation: &Operation) -> Result<(), Refused> {
        let (Operation::Append(chain, _) | Operation::Insert(chain, ..)) = operation else { return Ok(()) };
        match self.refusals.iter().find(|(text, _)| line.contains(text)) {
            None => Ok(()),
            Some((_, Refusal::AtLine)) => Err(Refused::Syntax("this line is refused by a test".to_owned())),
            Some((_, Refusal::AtCommit)) => Err(Refused::Kernel(chain.clone())),
            Some((_, Refusal::Somewhere)) => Err(Refused::Elsewhere),
        }
    }
}
