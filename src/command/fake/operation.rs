//! What a line of restore input, or a call of `iptables`, does to a table; and why it may not.

use super::tables::{Content, KernelRule};
use crate::backend::iptables::parse::words;
use crate::backend::iptables::ruleset::{Rule, Table, Target};
use crate::net::IpFamily;

/// The longest name of a chain.
const CHAIN_NAME_MAX: usize = 28;

/// One thing to do to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// `:CHAIN - [0:0]`: makes a chain, or empties it. Of a built-in chain it sets the policy.
    Declare { chain: String, policy: Option<String> },
    /// `-N`
    New(String),
    /// `-X`
    Remove(String),
    /// `-F`
    Flush(String),
    /// `-A`
    Append(String, Rule),
    /// `-I`; places count from 1.
    Insert(String, usize, Rule),
    /// `-D` with a rule.
    Delete(String, Rule),
    /// `-D` with a place.
    DeleteAt(String, usize),
    /// `-C`
    Check(String, Rule),
}

/// Why an operation is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The chain is not there.
    NoChain,
    /// The chain is there already.
    Exists,
    /// The chain to jump to is not there.
    NoTarget(String),
    /// No such rule.
    NoRule,
    /// The chain has rules.
    NotEmpty(String),
    /// Rules jump to the chain.
    InUse(String),
    /// Built-in chains stay.
    BuiltIn,
    /// A place to insert at beyond the end.
    InsertBeyond,
    /// A place to delete at beyond the end.
    DeleteBeyond,
    /// The name of a chain is too long.
    NameTooLong(String),
    /// The tools keep this target out of the nat table.
    DropInNat,
    /// The tools cannot read it.
    Syntax(String),
    /// The kernel takes no such rule in this chain.
    Kernel(String),
    /// Something fails that has nothing to do with a line.
    Elsewhere,
}

// === impl Operation ===

impl Operation {
    /// Reads a line of restore input.
    pub(super) fn from_line(line: &str, family: IpFamily) -> Result<Operation, Refused> {
        if let Some(declared) = line.strip_prefix(':') {
            let mut parts = declared.split_ascii_whitespace();
            let chain = parts.next().ok_or_else(|| Refused::Syntax("chain name invalid".into()))?.to_owned();
            let policy = parts.next().ok_or_else(|| Refused::Syntax("policy invalid".into()))?;
            return Ok(Operation::Declare { chain, policy: Some(policy.to_owned()).filter(|policy| policy != "-") });
        }
        Operation::from_args(&words(line).collect::<Vec<_>>(), family)
    }

    /// Reads an operation with its arguments, without `-t` and `-w`.
    pub(super) fn from_args(args: &[String], family: IpFamily) -> Result<Operation, Refused> {
        let syntax = |text: String| Refused::Syntax(text);
        let (operation, args) = args.split_first().ok_or_else(|| syntax("no command specified".into()))?;
        if !operation.starts_with('-') {
            return Err(syntax(format!("Bad argument `{operation}'")));
        }
        let (chain, args) =
            args.split_first().ok_or_else(|| syntax(format!("option \"{operation}\" requires an argument")))?;
        let chain = chain.clone();
        let place = args.first().and_then(|place| place.parse().ok());
        let rule = |args: &[String]| Rule::parse_args(args, family).map_err(|error| Refused::Syntax(error.to_string()));
        Ok(match (operation.as_str(), place) {
            ("-N", _) if args.is_empty() => Operation::New(chain),
            ("-X", _) if args.is_empty() => Operation::Remove(chain),
            ("-F", _) if args.is_empty() => Operation::Flush(chain),
            ("-A", _) => Operation::Append(chain, rule(args)?),
            ("-I", None) => Operation::Insert(chain, 1, rule(args)?),
            ("-I", Some(place)) => Operation::Insert(chain, place, rule(args.get(1..).unwrap_or_default())?),
            ("-D", None) => Operation::Delete(chain, rule(args)?),
            ("-D", Some(place)) if args.len() == 1 => Operation::DeleteAt(chain, place),
            ("-C", None) => Operation::Check(chain, rule(args)?),
            _ => return Err(syntax(format!("unknown option \"{operation}\""))),
        })
    }

    /// Does it.
    pub(super) fn apply(self, content: &mut Content) -> Result<(), Refused> {
        match self {
            Operation::Declare { chain, policy: Some(policy) } => content.set_policy(&chain, policy),
            Operation::Declare { chain, policy: None } => match content.get(&chain) {
                Some(_) => content.remove_rules(&chain, ..),
                None => new_chain(content, &chain)?,
            },
            Operation::New(chain) => match content.get(&chain) {
                Some(_) => return Err(Refused::Exists),
                None => new_chain(content, &chain)?,
            },
            Operation::Remove(name) => {
                let chain = content.get(&name).ok_or(Refused::NoChain)?;
                if chain.policy.is_some() {
                    return Err(Refused::BuiltIn);
                }
                if !chain.rules.is_empty() {
                    return Err(Refused::NotEmpty(name));
                }
                if content.is_referenced(&name) {
                    return Err(Refused::InUse(name));
                }
                content.remove_chain(&name);
            }
            Operation::Flush(chain) => {
                content.get(&chain).ok_or(Refused::NoChain)?;
                content.remove_rules(&chain, ..);
            }
            Operation::Append(chain, rule) => {
                check_target(content, &chain, &rule)?;
                let end = content.get(&chain).ok_or(Refused::NoChain)?.rules.len();
                content.add_rule(&chain, end, KernelRule::Known(rule));
            }
            Operation::Insert(chain, place, rule) => {
                check_target(content, &chain, &rule)?;
                let end = content.get(&chain).ok_or(Refused::NoChain)?.rules.len();
                let at = place.checked_sub(1).filter(|at| *at <= end).ok_or(Refused::InsertBeyond)?;
                content.add_rule(&chain, at, KernelRule::Known(rule));
            }
            Operation::Delete(chain, rule) => {
                let at = find(content, &chain, rule)?;
                content.remove_rules(&chain, at..=at);
            }
            Operation::DeleteAt(chain, place) => {
                let end = content.get(&chain).ok_or(Refused::NoChain)?.rules.len();
                let at = place.checked_sub(1).filter(|at| *at < end).ok_or(Refused::DeleteBeyond)?;
                content.remove_rules(&chain, at..=at);
            }
            Operation::Check(chain, rule) => {
                find(content, &chain, rule)?;
            }
        }
        Ok(())
    }
}

fn new_chain(content: &mut Content, name: &str) -> Result<(), Refused> {
    if name.len() > CHAIN_NAME_MAX {
        return Err(Refused::NameTooLong(name.to_owned()));
    }
    content.add_chain(name, None);
    Ok(())
}

/// The place of the first rule that is the same.
fn find(content: &Content, chain: &str, rule: Rule) -> Result<usize, Refused> {
    if let Some(Target::Jump(target)) = &rule.target
        && content.get(target.as_str()).is_none()
    {
        return Err(Refused::NoTarget(target.to_string()));
    }
    let rule = KernelRule::Known(rule);
    let rules = content.get(chain).map(|chain| chain.rules.as_slice()).unwrap_or_default();
    rules.iter().position(|known| *known == rule).ok_or(Refused::NoRule)
}

/// Whether a rule's target may be used in a chain.
fn check_target(content: &Content, chain: &str, rule: &Rule) -> Result<(), Refused> {
    let (nat, filter) = (content.table() == Table::Nat, content.table() == Table::Filter);
    match &rule.target {
        Some(Target::Jump(target)) => match content.get(target.as_str()) {
            Some(known) if known.policy.is_none() => Ok(()),
            _ => Err(Refused::NoTarget(target.to_string())),
        },
        Some(Target::Drop) if nat => Err(Refused::DropInNat),
        Some(Target::Dnat(_) | Target::Masquerade { .. }) if !nat => Err(Refused::Kernel(chain.to_owned())),
        Some(Target::Reject(_)) if !filter => Err(Refused::Kernel(chain.to_owned())),
        _ => Ok(()),
    }
}
