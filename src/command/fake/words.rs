//! The words of the tools: what they complain with, and how they exit (iptables 1.8.9).

use super::Variant;
use super::operation::Refused;
use crate::backend::iptables::ruleset::Table;
use crate::command::Output;

/// A tool that is running.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool<'a> {
    /// Which of the two.
    pub(super) variant: Variant,
    /// Its name, as it was called.
    pub(super) program: &'a str,
}

impl Tool<'_> {
    /// `iptables v1.8.9 (legacy)`
    pub(super) fn version(&self) -> String {
        let variant = match self.variant {
            Variant::Legacy => "legacy",
            Variant::Nft => "nf_tables",
        };
        format!("{} v1.8.9 ({variant})", self.program)
    }

    /// How a single operation ends that is refused.
    pub(super) fn refused(&self, refused: &Refused) -> Output {
        let program = self.program;
        if let Some((code, text)) = self.usage(refused) {
            let stderr =
                format!("{}: {text}\nTry `{program} -h' or '{program} --help' for more information.\n", self.version());
            return Output { code, stderr };
        }
        match (self.variant, self.batch(refused)) {
            (Variant::Nft, Some(detail)) => Output { code: 4, stderr: format!("{}:  {detail}\n", self.version()) },
            _ => Output { code: 1, stderr: format!("{program}: {}\n", self.detail(refused)) },
        }
    }

    /// How a restore ends of which a line is refused. `commit` is the line of the table's COMMIT.
    pub(super) fn line_refused(&self, refused: &Refused, line: usize, commit: usize) -> Output {
        let program = self.program;
        if let Some((code, text)) = self.usage(refused) {
            let stderr = format!(
                "{}: {text}\nError occurred at line: {line}\nTry `{program} -h' or '{program} --help' for more information.\n",
                self.version()
            );
            return Output { code, stderr };
        }
        match (self.variant, self.batch(refused), refused) {
            (Variant::Nft, Some(detail), _) => {
                Output { code: 4, stderr: format!("{}: \nline {line}: {detail}\n", self.version()) }
            }
            (Variant::Nft, None, _) => {
                Output { code: 1, stderr: format!("{program}: line {line} failed: {}\n", self.detail(refused)) }
            }
            // Here the table is handed over as a whole.
            (Variant::Legacy, _, Refused::Kernel(_)) => {
                Output { code: 1, stderr: format!("{program}: line {commit} failed\n") }
            }
            (Variant::Legacy, ..) => Output { code: 1, stderr: format!("{program}: line {line} failed\n") },
        }
    }

    /// How the lock is waited for in vain. (Only the legacy variant has one.)
    pub(super) fn locked(&self) -> Output {
        let stderr = "Can't lock /run/xtables.lock: Resource temporarily unavailable\n\
            Another app is currently holding the xtables lock. Stopped waiting after 5s.\n";
        Output { code: 4, stderr: stderr.to_owned() }
    }

    /// A failure that names no line.
    pub(super) fn failed_somewhere(&self) -> Output {
        Output { code: 1, stderr: format!("{}: Memory allocation problem.\n", self.program) }
    }

    /// The table of `-t` is none.
    pub(super) fn no_table(&self) -> Output {
        let stderr = match self.variant {
            Variant::Legacy => {
                format!(
                    "{}: can't initialize iptables table: Table does not exist (do you need to insmod?)\n",
                    self.version()
                )
            }
            Variant::Nft => format!("{}: table does not exist\n", self.version()),
        };
        Output { code: 3, stderr }
    }

    /// The table named in restore input is none.
    pub(super) fn no_table_at(&self, name: &str, line: usize) -> Output {
        let program = self.program;
        let text = match self.variant {
            Variant::Legacy => format!("{program}: unable to initialize table '{name}'\n"),
            Variant::Nft => format!("{program}: line {line} table name '{name}' invalid"),
        };
        self.line_refused(&Refused::Syntax(text), line, line)
    }

    /// `-S` of a chain that is not there.
    pub(super) fn no_such_chain(&self, table: Table, name: &str) -> Output {
        let stderr = match self.variant {
            Variant::Legacy => format!("{}: No chain/target/match by that name.\n", self.program),
            Variant::Nft => {
                format!("{}: chain `{name}' in table `{table}' is incompatible, use 'nft' tool.\n", self.version())
            }
        };
        Output { code: 1, stderr }
    }

    /// Restore input that ends within a table.
    pub(super) fn no_commit(&self, line: usize) -> Output {
        Output { code: 1, stderr: format!("{}: COMMIT expected at line {line}\n", self.program) }
    }

    /// What the tools find out while they read their input; they then exit with 2.
    fn usage(&self, refused: &Refused) -> Option<(i32, String)> {
        let text = match refused {
            Refused::NoTarget(chain) => match self.variant {
                Variant::Legacy => format!("Couldn't load target `{chain}':No such file or directory\n"),
                Variant::Nft => format!("Chain '{chain}' does not exist"),
            },
            Refused::NameTooLong(name) => match self.variant {
                Variant::Legacy => format!("Invalid chain name `{name}' (28 chars max)"),
                Variant::Nft => format!("chain name `{name}' too long (must be under 29 chars)"),
            },
            Refused::DropInNat => {
                "\nThe \"nat\" table is not intended for filtering, the use of DROP is therefore inhibited.\n\n".into()
            }
            Refused::Syntax(text) => text.clone(),
            _ => return None,
        };
        Some((2, text))
    }

    /// What only the kernel finds out, in the nf_tables variant.
    fn batch(&self, refused: &Refused) -> Option<String> {
        Some(match refused {
            Refused::NotEmpty(chain) | Refused::InUse(chain) => {
                format!("CHAIN_DEL failed (Device or resource busy): chain {chain}")
            }
            Refused::Kernel(chain) => format!("RULE_APPEND failed (Invalid argument): rule in chain {chain}"),
            _ => return None,
        })
    }

    fn detail(&self, refused: &Refused) -> &'static str {
        match refused {
            Refused::NoChain => "No chain/target/match by that name.",
            Refused::Exists => "Chain already exists.",
            Refused::NoRule => "Bad rule (does a matching rule exist in that chain?).",
            Refused::NotEmpty(_) => "Directory not empty.",
            Refused::InUse(_) => "Too many links.",
            Refused::BuiltIn if self.variant == Variant::Nft => "No chain/target/match by that name.",
            Refused::InsertBeyond => "Index of insertion too big.",
            Refused::DeleteBeyond => "Index of deletion too big.",
            _ => "Invalid argument. Run `dmesg' for more information.",
        }
    }
}
