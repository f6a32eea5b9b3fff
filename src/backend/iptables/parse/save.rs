//! Reading the output of `iptables-save`, a line at a time.

use super::ParseError;
use crate::backend::iptables::ruleset::Table;

/// What one line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved<'a> {
    /// A chain there is.
    Chain {
        /// Its table.
        table: Table,
        /// Its name.
        name: &'a str,
        /// What happens to packets that come to its end; only built-in chains have that.
        default: Option<&'a str>,
    },
    /// The next rule of a chain.
    Rule {
        /// The table of its chain.
        table: Table,
        /// Its chain.
        chain: &'a str,
        /// What [`Rule::parse`](crate::backend::iptables::ruleset::Rule::parse) takes.
        text: &'a str,
    },
    /// The table is complete.
    Commit(Table),
}

/// Reads `iptables-save` output line by line. Passes over comments and over tables in which ferrule
/// has nothing.
#[derive(Debug, Default)]
pub struct SaveReader(Within);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Nothing,
    Ours(Table),
    Other,
}

impl SaveReader {
    /// Reads the next line, without its end. `None` if it says nothing of interest.
    pub fn line<'a>(&mut self, line: &'a str) -> Result<Option<Saved<'a>>, ParseError> {
        let unexpected = || ParseError(format!("not a line of iptables-save: {line:?}"));
        let line = line.trim_end();
        let table = match (self.0, line.strip_prefix('*')) {
            _ if line.is_empty() || line.starts_with('#') => return Ok(None),
            (Within::Nothing, Some(name)) => {
                let ours = [Table::Mangle, Table::Filter, Table::Nat].into_iter().find(|table| table.as_str() == name);
                self.0 = ours.map_or(Within::Other, Within::Ours);
                return Ok(None);
            }
            (Within::Nothing, None) | (_, Some(_)) => return Err(unexpected()),
            (Within::Other, None) => {
                if line == "COMMIT" {
                    self.0 = Within::Nothing;
                }
                return Ok(None);
            }
            (Within::Ours(table), None) => table,
        };
        if line == "COMMIT" {
            self.0 = Within::Nothing;
            return Ok(Some(Saved::Commit(table)));
        }
        if let Some(chain) = line.strip_prefix(':') {
            let (name, rest) = chain.split_once(' ').ok_or_else(unexpected)?;
            let default = rest.split(' ').next().filter(|default| *default != "-");
            return Ok(Some(Saved::Chain { table, name, default }));
        }
        // With `-c`, counters stand before rules.
        let rule = match line.strip_prefix('[') {
            Some(counted) => counted.split_once("] ").map(|(_, rule)| rule),
            None => Some(line),
        };
        let rule = rule.and_then(|rule| rule.strip_prefix("-A ")).ok_or_else(unexpected)?;
        let (chain, text) = rule.split_once(' ').unwrap_or((rule, ""));
        Ok(Some(Saved::Rule { table, chain, text }))
    }

    /// Fails if the output broke off within a table.
    pub fn finish(self) -> Result<(), ParseError> {
        match self.0 {
            Within::Nothing => Ok(()),
            _ => Err(ParseError("the output of iptables-save ends within a table".into())),
        }
    }
}
