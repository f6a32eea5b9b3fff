//! The syntax of kube-proxy's command line (that of Go's pflag library): `--name=value`,
//! `--name value`, `-v4`, `-v=4`, `-v 4`, bare booleans, `--` before what is no flag.
//!
//! clap reads definitions and values, but not this syntax: it would take `--nosuch` after `--help`
//! for granted, refuse values that look like flags, and name other things in its errors. So
//! arguments are rewritten here to `--name=value`, and errors of form are found here.

use clap::{Arg, Command};

/// Arguments in the one form clap is given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    /// `--name=value` each, in the order given.
    pub(super) flags: Vec<String>,
    /// What is no flag.
    pub(super) positional: Vec<String>,
    /// The first error of form. What came before it is in `flags` and may hold an error of value,
    /// which then comes first.
    pub(super) error: Option<String>,
}

/// Rewrites arguments by the flags a command defines.
pub(super) fn read(command: &Command, args: &[String]) -> Tokens {
    let mut tokens = Tokens::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let read = match arg.strip_prefix('-') {
            None | Some("") => {
                tokens.positional.push(arg.clone());
                continue;
            }
            Some("-") => {
                tokens.positional.extend(args.cloned());
                break;
            }
            Some(rest) => match rest.strip_prefix('-') {
                Some(long) => read_long(command, arg, long, &mut args, &mut tokens),
                None => read_short(command, rest, &mut args, &mut tokens),
            },
        };
        if let Err(error) = read {
            tokens.error = Some(error);
            break;
        }
    }
    tokens
}

type Rest<'a> = std::slice::Iter<'a, String>;

fn read_long(command: &Command, arg: &str, long: &str, rest: &mut Rest<'_>, tokens: &mut Tokens) -> Result<(), String> {
    let (name, value) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (long, None),
    };
    if name.is_empty() || name.starts_with('-') {
        return Err(format!("bad flag syntax: {arg}"));
    }
    let canonical = name.replace('_', "-");
    let flag = command.get_arguments().find(|flag| flag.get_long() == Some(&canonical));
    let flag = flag.ok_or_else(|| format!("unknown flag: --{name}"))?;
    let value = match value {
        Some(value) => value,
        None if stands_alone(flag) => "true",
        None => rest.next().ok_or_else(|| format!("flag needs an argument: {arg}"))?,
    };
    tokens.flags.push(format!("--{canonical}={value}"));
    Ok(())
}

/// One-letter flags; several may share a dash if all but the last stand alone.
fn read_short(command: &Command, letters: &str, rest: &mut Rest<'_>, tokens: &mut Tokens) -> Result<(), String> {
    let mut letters = letters;
    while let Some(letter) = letters.chars().next() {
        let after = letters.get(letter.len_utf8()..).unwrap_or_default();
        let flag = command.get_arguments().find(|flag| flag.get_short() == Some(letter));
        let long = flag.and_then(Arg::get_long);
        let (Some(flag), Some(long)) = (flag, long) else {
            return Err(format!("unknown shorthand flag: '{letter}' in -{letters}"));
        };
        let (value, left) = match after.strip_prefix('=') {
            Some(value) if !value.is_empty() => (value, ""),
            _ if stands_alone(flag) => ("true", after),
            _ if !after.is_empty() => (after, ""),
            _ => {
                let value = rest.next();
                (value.ok_or_else(|| format!("flag needs an argument: '{letter}' in -{letters}"))?.as_str(), "")
            }
        };
        tokens.flags.push(format!("--{long}={value}"));
        letters = left;
    }
    Ok(())
}

/// Whether a flag means something without a value, as booleans do.
fn stands_alone(flag: &Arg) -> bool {
    flag.get_num_args().is_some_and(|count| count.min_values() == 0)
}

/// A flag as messages name it: `--cleanup`, or `-v, --v` if it has a letter.
pub(super) fn display_name(flag: &Arg) -> String {
    let long = flag.get_long().unwrap_or_default();
    match flag.get_short() {
        Some(letter) => format!("-{letter}, --{long}"),
        None => format!("--{long}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, flags: &str, positional: &str, error: Option<&str>) {
        let switch = |name| Arg::new(name).long(name).num_args(0..=1).require_equals(true);
        let mut command = Command::new("x")
            .disable_help_flag(true)
            .arg(switch("cleanup"))
            .arg(switch("help").short('h'))
            .arg(Arg::new("v").short('v').long("v").num_args(1))
            .arg(Arg::new("proxy-mode").long("proxy-mode").num_args(1));
        command.build();
        let args: Vec<String> = line.split_whitespace().map(|arg| arg.replace('~', "")).collect();
        let tokens = read(&command, &args);
        let found = (tokens.flags.join(" "), tokens.positional.join("|"), tokens.error.as_deref());
        assert_eq!(found, (flags.to_owned(), positional.to_owned(), error), "{line}");
    }

    #[test]
    fn forms() {
        check("--proxy-mode=a --proxy-mode b", "--proxy-mode=a --proxy-mode=b", "", None);
        check(
            "--proxy_mode=a_b --proxy-mode= --proxy-mode ~",
            "--proxy-mode=a_b --proxy-mode= --proxy-mode=",
            "",
            None,
        );
        check("--cleanup --cleanup=false", "--cleanup=true --cleanup=false", "", None);
        check("-v 4 -v=5 -v6 --v=7 --v 8", "--v=4 --v=5 --v=6 --v=7 --v=8", "", None);
        check("-hv2 -h=false", "--help=true --v=2 --help=false", "", None);
        check("--proxy-mode --cleanup", "--proxy-mode=--cleanup", "", None);
        check("--proxy-mode=a=b", "--proxy-mode=a=b", "", None);
        check("a --cleanup false - ~", "--cleanup=true", "a|false|-|", None);
        check("--cleanup -- --cleanup b", "--cleanup=true", "--cleanup|b", None);
    }

    #[test]
    fn errors_of_form() {
        check("--cleanup --nosuch=1 -x", "--cleanup=true", "", Some("unknown flag: --nosuch"));
        check("--no_such", "", "", Some("unknown flag: --no_such"));
        check("-x", "", "", Some("unknown shorthand flag: 'x' in -x"));
        check("-config=x", "", "", Some("unknown shorthand flag: 'c' in -config=x"));
        check("-hx", "--help=true", "", Some("unknown shorthand flag: 'x' in -x"));
        check("--proxy-mode", "", "", Some("flag needs an argument: --proxy-mode"));
        check("-v", "", "", Some("flag needs an argument: 'v' in -v"));
        check("--=x", "", "", Some("bad flag syntax: --=x"));
        check("---x", "", "", Some("bad flag syntax: ---x"));
    }
}
