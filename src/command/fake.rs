//! A kernel in memory behind the iptables tools, for tests and benches.
//!
//! It understands the calls ferrule and kube-proxy make of `iptables`, `iptables-restore`,
//! `iptables-save` and the `ip6tables` ones, and refuses what the real tools refuse, in their words.
//! Rules are compared by meaning, as the kernel does. [`FakeKernel::inject`] makes calls fail.

mod operation;
mod restore;
mod tables;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use self::operation::Operation;
use self::restore::Restore;
use self::words::Tool;
use super::{Command, CommandError, Output, Run};
use crate::backend::iptables::ruleset::Table;
use crate::net::IpFamily;

pub use tables::{Chain, KernelRule, Tables};

/// Which variant of the tools is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// iptables-legacy: each restore swaps whole tables.
    Legacy,
    /// iptables-nft: a batch of nf_tables operations.
    Nft,
}

/// More calls than any test needs: what makes them is going round in circles.
const CALLS_MAX: usize = 10_000;

/// A fault of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Somebody else holds the lock for too long.
    Locked,
    /// The tool dies before it has done anything.
    KilledBefore,
    /// It dies when the first table is committed; a restore of one table is then complete.
    KilledBetween,
    /// It dies when all is done.
    KilledAfter,
}

/// How rules that mention some text are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// While the tool reads its input: it names the line.
    AtLine,
    /// When the table is handed over: the legacy variant names the line of the COMMIT.
    AtCommit,
    /// Without saying where.
    Somewhere,
}

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    /// What was called.
    pub command: Command,
    /// How it ended; `None` if by a signal or not begun.
    pub output: Option<Output>,
}

/// A kernel in memory. Clones are the same kernel.
#[derive(Clone, Debug)]
pub struct FakeKernel(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    variant: Variant,
    tables: BTreeMap<IpFamily, Tables>,
    calls: Vec<Call>,
    /// Faults, by the number of the writing call they are for.
    faults: BTreeMap<usize, Fault>,
    /// Writing calls so far.
    writes: usize,
    refusals: Vec<(String, Refusal)>,
    /// Every state so far, if it is kept.
    history: Option<Vec<Tables>>,
}

/// What a call asks for, as far as it is understood.
struct Asked {
    family: IpFamily,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Operation,
    Restore,
    Save,
}

impl Run for FakeKernel {
    async fn run(&self, command: Command, line: &mut (dyn FnMut(&str) + Send)) -> Result<Output, CommandError> {
        let mut printed = Vec::new();
        let result = self.state().run(&command, &mut printed);
        self.state().calls.push(Call { command, output: result.as_ref().ok().cloned() });
        printed.iter().flat_map(|text| text.lines()).for_each(line);
        result
    }
}

/// The call as a terminal would show it.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {} {}", self.command.program, self.command.args.join(" "))?;
        write!(f, "{}", String::from_utf8_lossy(&self.command.stdin))?;
        match &self.output {
            Some(Output { code, stderr }) => writeln!(f, "=> {code} {stderr}"),
            None => writeln!(f, "=> killed, or not begun"),
        }
    }
}

// === impl FakeKernel ===

impl FakeKernel {
    /// A kernel with built-in chains only, in both families.
    pub fn new(variant: Variant) -> FakeKernel {
        let tables = IpFamily::BOTH.map(|family| (family, Tables::new(family))).into();
        FakeKernel(Arc::new(Mutex::new(State {
            variant,
            tables,
            calls: Vec::new(),
            faults: BTreeMap::new(),
            writes: 0,
            refusals: Vec::new(),
            history: None,
        })))
    }

    /// Replaces the tables of a family.
    pub fn load(&self, tables: Tables) {
        self.state().put(tables);
    }

    /// The tables of a family, as they are now.
    pub fn tables(&self, family: IpFamily) -> Tables {
        self.state().tables(family)
    }

    /// Every call so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Forgets the calls so far, and returns them. (Only so many are answered before that.)
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    /// Makes a later call fail: the next that writes, or the one that comes so many after it. Calls
    /// that write are all but `-save`, `-S` and `--version`.
    pub fn inject(&self, after: usize, fault: Fault) {
        let mut state = self.state();
        let number = state.writes + after;
        state.faults.insert(number, fault);
    }

    /// Takes back the faults that have not happened yet; says how many those were.
    pub fn clear_faults(&self) -> usize {
        std::mem::take(&mut self.state().faults).len()
    }

    /// From now on refuses to add rules that mention a text.
    pub fn refuse(&self, text: &str, refusal: Refusal) {
        self.state().refusals.push((text.to_owned(), refusal));
    }

    /// Refuses nothing any more.
    pub fn accept_all(&self) {
        self.state().refusals.clear();
    }

    /// From now on keeps every state: one after each COMMIT, and after each operation.
    pub fn keep_history(&self) {
        self.state().history = Some(Vec::new());
    }

    /// The states since [`FakeKernel::keep_history`], or since the last call of this.
    pub fn take_history(&self) -> Vec<Tables> {
        self.state().history.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panics elsewhere leaves no half-done change here.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn tables(&self, family: IpFamily) -> Tables {
        self.tables.get(&family).cloned().unwrap_or_else(|| Tables::new(family))
    }

    fn put(&mut self, tables: Tables) {
        if let Some(history) = &mut self.history {
            history.push(tables.clone());
        }
        self.tables.insert(tables.family(), tables);
    }

    fn run(&mut self, command: &Command, printed: &mut Vec<String>) -> Result<Output, CommandError> {
        let Some(asked) = Asked::of(&command.program) else {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(CommandError::Start { program: command.program.clone(), source });
        };
        if self.calls.len() >= CALLS_MAX {
            let source = std::io::Error::other("there are more calls than any test needs");
            return Err(CommandError::Start { program: command.program.clone(), source });
        }
        let tool = Tool { variant: self.variant, program: &command.program };
        if command.args.iter().any(|arg| arg == "--version" || arg == "-V") {
            printed.push(tool.version());
            return Ok(Output::default());
        }
        match asked.kind {
            Kind::Save => Ok(self.save(asked.family, &command.args, tool, printed)),
            Kind::Operation if command.args.iter().any(|arg| arg == "-S") => {
                Ok(self.list(asked.family, &command.args, tool, printed))
            }
            kind => self.write(asked.family, kind, command, tool),
        }
    }

    fn write(
        &mut self,
        family: IpFamily,
        kind: Kind,
        command: &Command,
        tool: Tool<'_>,
    ) -> Result<Output, CommandError> {
        let fault = self.faults.remove(&self.writes);
        self.writes += 1;
        let killed =
            || CommandError::Signal { program: command.program.clone(), detail: "signal: 9 (SIGKILL)".to_owned() };
        match fault {
            Some(Fault::Locked) => return Ok(tool.locked()),
            Some(Fault::KilledBefore) => return Err(killed()),
            _ => {}
        }
        let output = match kind {
            Kind::Restore => {
                let mut restore = Restore::new(tool, self.tables(family), &self.refusals, &command.args);
                restore.stop_after_commit = fault == Some(Fault::KilledBetween);
                let (states, output) = restore.run(&String::from_utf8_lossy(&command.stdin));
                for tables in states {
                    self.put(tables);
                }
                output
            }
            Kind::Operation | Kind::Save => self.operate(family, &command.args, tool),
        };
        match fault {
            None => Ok(output),
            Some(_) => Err(killed()),
        }
    }

    /// `-N`, `-I` and the like.
    fn operate(&mut self, family: IpFamily, args: &[String], tool: Tool<'_>) -> Output {
        let (table, rest) = table_and_rest(args);
        let mut tables = self.tables(family);
        let Some(mut content) = table.and_then(|table| tables.content(table).cloned()) else {
            return tool.no_table();
        };
        let done = Operation::from_args(&rest, family).and_then(|operation| {
            let writes = !matches!(operation, Operation::Check(..));
            operation.apply(&mut content).map(|()| writes)
        });
        match done {
            Ok(true) => {
                tables.commit(content);
                self.put(tables);
                Output::default()
            }
            Ok(false) => Output::default(),
            Err(refused) => tool.refused(&refused),
        }
    }

    fn list(&self, family: IpFamily, args: &[String], tool: Tool<'_>, printed: &mut Vec<String>) -> Output {
        let (Some(table), rest) = table_and_rest(args) else { return tool.no_table() };
        let tables = self.tables(family);
        let name = rest.iter().skip_while(|arg| *arg != "-S").nth(1).map(String::as_str).unwrap_or_default();
        let Some(chain) = tables.chain(table, name) else { return tool.no_such_chain(table, name) };
        printed.push(match &chain.policy {
            Some(policy) => format!("-P {name} {policy}"),
            None => format!("-N {name}"),
        });
        printed.extend(chain.rules.iter().map(|rule| format!("-A {name} {rule}")));
        Output::default()
    }

    fn save(&self, family: IpFamily, args: &[String], tool: Tool<'_>, printed: &mut Vec<String>) -> Output {
        let tables = match table_and_rest(args) {
            (None, _) => return tool.no_table(),
            (Some(table), _) if args.iter().any(|arg| arg == "-t") => vec![table],
            _ => vec![Table::Mangle, Table::Filter, Table::Nat],
        };
        let state = self.tables(family);
        for table in tables {
            printed.push(format!("# Generated by {} on Thu Jan  1 00:00:00 1970", tool.version()));
            printed.push(state.table_text(table));
            printed.push("# Completed on Thu Jan  1 00:00:00 1970".to_owned());
        }
        Output::default()
    }
}

// === impl Asked ===

impl Asked {
    /// `ip6tables-nft-restore`, `iptables`, …
    fn of(program: &str) -> Option<Asked> {
        let (family, rest) = match program.strip_prefix("ip6tables") {
            Some(rest) => (IpFamily::V6, rest),
            None => (IpFamily::V4, program.strip_prefix("iptables")?),
        };
        let rest = rest.strip_prefix("-legacy").or(rest.strip_prefix("-nft")).unwrap_or(rest);
        let kind = match rest {
            "" => Kind::Operation,
            "-restore" => Kind::Restore,
            "-save" => Kind::Save,
            _ => return None,
        };
        Some(Asked { family, kind })
    }
}

/// The table of `-t`, filter if there is none, `None` if it is not a table; and the other
/// arguments without `-w` and its value.
fn table_and_rest(args: &[String]) -> (Option<Table>, Vec<String>) {
    let mut table = Some(Table::Filter);
    let mut rest = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-t" | "--table" => table = args.next().and_then(|name| table_named(name)),
            "-w" | "--wait" => {
                args.next_if(|seconds| seconds.bytes().all(|b| b.is_ascii_digit()));
            }
            _ => rest.push(arg.clone()),
        }
    }
    (table, rest)
}

fn table_named(name: &str) -> Option<Table> {
    [Table::Mangle, Table::Filter, Table::Nat].into_iter().find(|table| table.as_str() == name)
}
