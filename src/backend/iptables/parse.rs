//! Rules from their text: the inverse of `render`.
//!
//! Reads what `iptables-save` prints and what kube-proxy gives to `iptables-restore`: options in any
//! place, addresses without a length, `--or-mark` and the like, unquoted comments. What means the
//! same to the kernel gives the same [`Rule`]. A rule with anything that ferrule never writes is an
//! error: it is somebody else's.

mod save;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use super::render::{UNIT, one_in_for, to_itself};
use super::ruleset::{Addresses, ConnStates, Is, Marking, Match, Rule, Target};
use crate::net::{IpFamily, Protocol, host_net};
use crate::plan::Backend;

pub use save::{SaveReader, Saved};

/// Why a text is not one of ferrule's rules. Only says so; the rule may be a good one of others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

/// Targets of the tools' extensions that look like a jump when they carry no option. (`-j LOG`.)
const FOREIGN_TARGETS: [&str; 24] = [
    "AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CT", "DSCP", "ECN", "HL", "HMARK", "LOG", "NETMAP", "NFLOG",
    "NFQUEUE", "NOTRACK", "QUEUE", "REDIRECT", "SECMARK", "SET", "SNAT", "TCPMSS", "TEE", "TPROXY", "TRACE", "TTL",
];

impl Rule {
    /// Reads the text after `-A CHAIN `. The family settles what the text leaves open: what a bare
    /// `-j REJECT` answers, how long an address without a length is.
    pub fn parse(text: &str, family: IpFamily) -> Result<Rule, ParseError> {
        Parser::new(family).read(words(text).map(Cow::Owned))
    }

    /// The same from arguments already split, as `iptables -C CHAIN` takes them.
    pub fn parse_args<S: AsRef<str>>(args: &[S], family: IpFamily) -> Result<Rule, ParseError> {
        Parser::new(family).read(args.iter().map(|arg| Cow::Borrowed(arg.as_ref())))
    }
}

struct Parser {
    family: IpFamily,
    /// A `!` was read that waits for its option.
    not: bool,
    rule: Rule,
    matches: Vec<Draft>,
    target: Option<DraftTarget>,
}

/// A match whose options are still being read: they may come any time after its `-m`.
enum Draft {
    Comment(Option<String>),
    Conntrack(Option<Is<ConnStates>>),
    Nfacct(Option<String>),
    Mark(Option<Is<Marking>>),
    Addrtype(Option<Match>),
    Bpf(Option<Match>),
    Physdev(Option<Match>),
    Set(Option<(String, String)>),
    Ipvs { ip: Option<IpAddr>, protocol: Option<Protocol>, port: Option<u16> },
    Transport(Protocol, Option<u16>),
    Statistic { random: bool, one_in: Option<u32> },
    Recent(Recent),
}

#[derive(Default)]
struct Recent {
    name: Option<String>,
    set: bool,
    rcheck: bool,
    reap: bool,
    seconds: Option<u32>,
}

/// A target whose options are still being read.
enum DraftTarget {
    Done(Target),
    Mark(Option<Marking>),
    Dnat(Option<Backend>),
}

// === impl ParseError ===

impl ParseError {
    fn foreign(what: &str) -> ParseError {
        ParseError(format!("{what:?} is nothing that ferrule writes"))
    }

    fn incomplete(what: &str) -> ParseError {
        ParseError(format!("{what} is incomplete"))
    }

    fn bad(option: &str, value: &str) -> ParseError {
        ParseError(format!("{option}: {value:?} cannot be read"))
    }
}

// === impl Parser ===

impl Parser {
    fn new(family: IpFamily) -> Parser {
        Parser { family, not: false, rule: Rule::default(), matches: Vec::new(), target: None }
    }

    fn read<'a>(mut self, mut words: impl Iterator<Item = Cow<'a, str>>) -> Result<Rule, ParseError> {
        while let Some(option) = words.next() {
            if option == "!" && !self.not {
                self.not = true;
                continue;
            }
            let mut value = || words.next().ok_or_else(|| ParseError::incomplete(&option));
            match &*option {
                "--set" => self.recent(&option)?.set = true,
                "--rcheck" => self.recent(&option)?.rcheck = true,
                "--reap" => self.recent(&option)?.reap = true,
                "--rsource" => drop(self.recent(&option)?),
                "--physdev-is-in" if std::mem::take(&mut self.not) => {
                    self.fill(&option, Match::NotFromBridge, |draft| match draft {
                        Draft::Physdev(found) => Some(found),
                        _ => None,
                    })?;
                }
                "--match-set" => {
                    let set = plain(&value()?).ok_or_else(|| ParseError::foreign(&option))?;
                    let sides = plain(&value()?).ok_or_else(|| ParseError::foreign(&option))?;
                    self.fill(&option, (set, sides), |draft| match draft {
                        Draft::Set(found) => Some(found),
                        _ => None,
                    })?;
                }
                "--random-fully" => match &mut self.target {
                    Some(DraftTarget::Done(Target::Masquerade { random_fully })) => *random_fully = true,
                    _ => return Err(ParseError::foreign(&option)),
                },
                _ => self.option(&option, &value()?)?,
            }
            if self.not {
                return Err(ParseError::foreign(&format!("! {option}")));
            }
        }
        if self.not {
            return Err(ParseError::incomplete("!"));
        }
        self.finish()
    }

    fn option(&mut self, option: &str, value: &str) -> Result<(), ParseError> {
        let bad = || ParseError::bad(option, value);
        match option {
            "-s" | "--source" | "--src" => {
                let Some(Addresses::Net(net)) = self.addresses(value) else { return Err(bad()) };
                let net = self.take_not(net);
                put(&mut self.rule.source, net, option)
            }
            "-d" | "--destination" | "--dst" => {
                let addresses = self.addresses(value).ok_or_else(bad)?;
                let addresses = self.take_not(addresses);
                put(&mut self.rule.destination, addresses, option)
            }
            "-i" | "--in-interface" => {
                let name = self.take_not(plain(value).ok_or_else(bad)?);
                put(&mut self.rule.in_interface, name, option)
            }
            "-p" | "--protocol" | "--proto" => {
                let protocol = protocol(value).ok_or_else(bad)?;
                put(&mut self.rule.protocol, protocol, option)
            }
            "-m" | "--match" => {
                self.matches.push(Draft::new(value)?);
                Ok(())
            }
            "-j" | "--jump" => put(&mut self.target, DraftTarget::new(value, self.family)?, option),
            "--comment" => self.fill(option, value.to_owned(), |draft| match draft {
                Draft::Comment(text) => Some(text),
                _ => None,
            }),
            "--nfacct-name" => self.fill(option, plain(value).ok_or_else(bad)?, |draft| match draft {
                Draft::Nfacct(name) => Some(name),
                _ => None,
            }),
            "--ctstate" => {
                let states = self.take_not(ConnStates::parse(value).ok_or_else(bad)?);
                self.fill(option, states, |draft| match draft {
                    Draft::Conntrack(states) => Some(states),
                    _ => None,
                })
            }
            "--mark" => {
                let mark = self.take_not(marking(value).ok_or_else(bad)?);
                self.fill(option, mark, |draft| match draft {
                    Draft::Mark(mark) => Some(mark),
                    _ => None,
                })
            }
            "--src-type" | "--dst-type" if value == "LOCAL" => {
                let local = match (option, self.not) {
                    ("--src-type", false) => Match::SourceIsLocal,
                    ("--src-type", true) => Match::SourceIsNotLocal,
                    _ => Match::DestinationIsLocal,
                };
                self.not &= local != Match::SourceIsNotLocal;
                self.fill(option, local, |draft| match draft {
                    Draft::Addrtype(side) => Some(side),
                    _ => None,
                })
            }
            "--bytecode" if value == to_itself(self.family) => {
                self.fill(option, Match::ToItself(self.family), |draft| match draft {
                    Draft::Bpf(program) => Some(program),
                    _ => None,
                })
            }
            "--vaddr" => {
                let virtual_ip = value.parse().ok().filter(|ip| IpFamily::of(*ip) == self.family).ok_or_else(bad)?;
                self.fill(option, virtual_ip, |draft| match draft {
                    Draft::Ipvs { ip, .. } => Some(ip),
                    _ => None,
                })
            }
            "--vproto" => self.fill(
                option,
                protocol(value).or_else(|| Protocol::from_number(number(value)?)).ok_or_else(bad)?,
                |draft| match draft {
                    Draft::Ipvs { protocol, .. } => Some(protocol),
                    _ => None,
                },
            ),
            "--vport" => self.fill(option, number(value).ok_or_else(bad)?, |draft| match draft {
                Draft::Ipvs { port, .. } => Some(port),
                _ => None,
            }),
            "--dport" | "--destination-port" => self.destination_port(option, number(value).ok_or_else(bad)?),
            "--mode" if value == "random" => match self.matches.iter_mut().rev().find_map(Draft::statistic) {
                Some((random, _)) => {
                    *random = true;
                    Ok(())
                }
                None => Err(ParseError::foreign(option)),
            },
            "--probability" => {
                let one_in = one_in(value).ok_or_else(bad)?;
                self.fill(option, one_in, |draft| draft.statistic().map(|(_, one_in)| one_in))
            }
            "--name" => put(&mut self.recent(option)?.name, plain(value).ok_or_else(bad)?, option),
            "--seconds" => put(&mut self.recent(option)?.seconds, number(value).ok_or_else(bad)?, option),
            "--mask" => match value.parse() == Ok(all_ones(self.family)) {
                true => self.recent(option).map(drop),
                false => Err(bad()),
            },
            "--reject-with" => match &self.target {
                Some(DraftTarget::Done(Target::Reject(family))) if value == port_unreachable(*family) => Ok(()),
                _ => Err(bad()),
            },
            "--set-xmark" | "--set-mark" | "--or-mark" | "--xor-mark" | "--and-mark" => match &mut self.target {
                Some(DraftTarget::Mark(slot)) => put(slot, set_mark(option, value).ok_or_else(bad)?, option),
                _ => Err(bad()),
            },
            "--to-destination" => {
                let to: SocketAddr = value.parse().map_err(|_| bad())?;
                match &mut self.target {
                    Some(DraftTarget::Dnat(slot)) if IpFamily::of(to.ip()) == self.family => {
                        put(slot, Backend { ip: to.ip(), port: to.port() }, option)
                    }
                    _ => Err(bad()),
                }
            }
            _ => Err(ParseError::foreign(option)),
        }
    }

    fn finish(mut self) -> Result<Rule, ParseError> {
        let everything = self.family.everything();
        // The tools neither keep nor print a network that holds every address.
        self.rule.source.take_if(|side| *side == Is::so(everything));
        self.rule.destination.take_if(|side| *side == Is::so(Addresses::Net(everything)));
        for draft in self.matches {
            let found = draft.finish(&self.rule, self.family)?;
            self.rule.matches.push(found);
        }
        self.rule.target = match self.target {
            None => None,
            Some(DraftTarget::Done(target)) => Some(target),
            Some(DraftTarget::Mark(mark)) => Some(Target::SetMark(mark.ok_or(ParseError::incomplete("-j MARK"))?)),
            Some(DraftTarget::Dnat(to)) => Some(Target::Dnat(to.ok_or(ParseError::incomplete("-j DNAT"))?)),
        };
        Ok(self.rule)
    }

    /// The `!` that was read before an option, if any, goes with its value.
    fn take_not<T>(&mut self, value: T) -> Is<T> {
        Is { not: std::mem::take(&mut self.not), value }
    }

    /// `10.0.0.1`, `10.0.0.0/8` or `0.0.0.5/0.0.0.255`
    fn addresses(&self, text: &str) -> Option<Addresses> {
        let (ip, rest) = text.split_once('/').map_or((text, None), |(ip, rest)| (ip, Some(rest)));
        let ip: IpAddr = ip.parse().ok().filter(|ip| IpFamily::of(*ip) == self.family)?;
        match rest {
            None => Some(Addresses::Net(host_net(ip))),
            Some(mask) if mask.contains(['.', ':']) => Addresses::under_mask(ip, mask.parse().ok()?),
            Some(length) => Some(Addresses::Net(IpNet::new(ip, number(length)?).ok()?.trunc())),
        }
    }

    /// Gives an option to the last match it can belong to.
    fn fill<T>(
        &mut self,
        option: &str,
        value: T,
        slot: impl FnMut(&mut Draft) -> Option<&mut Option<T>>,
    ) -> Result<(), ParseError> {
        match self.matches.iter_mut().rev().find_map(slot) {
            Some(slot) => put(slot, value, option),
            None => Err(ParseError::foreign(option)),
        }
    }

    fn recent(&mut self, option: &str) -> Result<&mut Recent, ParseError> {
        let mut drafts = self.matches.iter_mut().rev();
        let recent = drafts.find_map(|draft| match draft {
            Draft::Recent(recent) => Some(recent),
            _ => None,
        });
        recent.ok_or_else(|| ParseError::foreign(option))
    }

    /// `-p tcp --dport 80` loads the protocol's match without being asked.
    fn destination_port(&mut self, option: &str, port: u16) -> Result<(), ParseError> {
        let is_transport = |draft: &Draft| matches!(draft, Draft::Transport(..));
        if let (Some(protocol), false) = (self.rule.protocol, self.matches.iter().any(is_transport)) {
            self.matches.push(Draft::Transport(protocol, None));
        }
        self.fill(option, port, |draft| match draft {
            Draft::Transport(_, port) => Some(port),
            _ => None,
        })
    }
}

// === impl Draft ===

impl Draft {
    fn new(name: &str) -> Result<Draft, ParseError> {
        Ok(match name {
            "comment" => Draft::Comment(None),
            "conntrack" => Draft::Conntrack(None),
            "nfacct" => Draft::Nfacct(None),
            "mark" => Draft::Mark(None),
            "addrtype" => Draft::Addrtype(None),
            "bpf" => Draft::Bpf(None),
            "physdev" => Draft::Physdev(None),
            "set" => Draft::Set(None),
            "ipvs" => Draft::Ipvs { ip: None, protocol: None, port: None },
            "statistic" => Draft::Statistic { random: false, one_in: None },
            "recent" => Draft::Recent(Recent::default()),
            _ => Draft::Transport(protocol(name).ok_or_else(|| ParseError::foreign(name))?, None),
        })
    }

    fn statistic(&mut self) -> Option<(&mut bool, &mut Option<u32>)> {
        match self {
            Draft::Statistic { random, one_in } => Some((random, one_in)),
            _ => None,
        }
    }

    fn finish(self, rule: &Rule, family: IpFamily) -> Result<Match, ParseError> {
        match self {
            Draft::Comment(text) => text.map(|text| Match::Comment(text.into())),
            Draft::Conntrack(states) => states.map(Match::ConnState),
            Draft::Nfacct(name) => name.map(|name| Match::Nfacct(name.into())),
            Draft::Mark(mark) => mark.map(Match::Mark),
            Draft::Addrtype(found) | Draft::Bpf(found) | Draft::Physdev(found) => found,
            Draft::Set(found) => found.map(|(set, sides)| Match::InSet { set: set.into(), sides: sides.into() }),
            Draft::Ipvs { ip: Some(ip), protocol: Some(protocol), port: Some(port) } => {
                Some(Match::ThroughVirtualServer { ip, protocol, port })
            }
            Draft::Ipvs { .. } => None,
            Draft::Transport(protocol, port) => {
                (rule.protocol == Some(protocol)).then_some(Match::Transport(protocol, port))
            }
            Draft::Statistic { random, one_in } => one_in.filter(|_| random).map(Match::OneIn),
            Draft::Recent(Recent { name: Some(name), set: true, rcheck: false, reap: false, seconds: None }) => {
                Some(Match::Remember { list: name.into(), family })
            }
            Draft::Recent(Recent {
                name: Some(name),
                set: false,
                rcheck: true,
                reap: true,
                seconds: Some(seconds),
            }) => Some(Match::RecentlySeen { list: name.into(), seconds, family }),
            Draft::Recent(_) => None,
        }
        .ok_or_else(|| ParseError::incomplete("a match"))
    }
}

// === impl DraftTarget ===

impl DraftTarget {
    fn new(name: &str, family: IpFamily) -> Result<DraftTarget, ParseError> {
        Ok(DraftTarget::Done(match name {
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "RETURN" => Target::Return,
            "REJECT" => Target::Reject(family),
            "MASQUERADE" => Target::Masquerade { random_fully: false },
            "MARK" => return Ok(DraftTarget::Mark(None)),
            "DNAT" => return Ok(DraftTarget::Dnat(None)),
            foreign if FOREIGN_TARGETS.contains(&foreign) => return Err(ParseError::foreign(foreign)),
            chain => Target::Jump(plain(chain).ok_or_else(|| ParseError::foreign(chain))?.into()),
        }))
    }
}

/// Splits a line as `iptables-restore` does: at blanks, except within double quotes, where a
/// backslash makes the next character an ordinary one.
pub fn words(line: &str) -> impl Iterator<Item = String> {
    Words(line.chars().peekable())
}

struct Words<'a>(std::iter::Peekable<std::str::Chars<'a>>);

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let blank = |c: &char| matches!(c, ' ' | '\t' | '\n');
        while self.0.next_if(blank).is_some() {}
        self.0.peek()?;
        let mut word = String::new();
        let mut quoted = false;
        while let Some(c) = self.0.next() {
            match c {
                '\\' if quoted => word.extend(self.0.next()),
                // A closing quote ends the word.
                '"' if quoted => break,
                '"' => quoted = true,
                c if !quoted && blank(&c) => break,
                c => word.push(c),
            }
        }
        Some(word)
    }
}

fn put<T>(slot: &mut Option<T>, value: T, option: &str) -> Result<(), ParseError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ParseError(format!("{option} is given twice"))),
    }
}

/// A name that needs no quotes.
fn plain(text: &str) -> Option<String> {
    let good = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\'' | '\\');
    (!text.is_empty() && text.chars().all(good)).then(|| text.to_owned())
}

fn protocol(text: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.lower() == text)
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `0x00004000` or `16384`
fn bits(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => number(text),
    }
}

/// `value/mask`; without a mask, all bits count.
fn marking(text: &str) -> Option<Marking> {
    match text.split_once('/') {
        Some((value, mask)) => Some(Marking { value: bits(value)?, mask: bits(mask)? }),
        None => Some(Marking { value: bits(text)?, mask: u32::MAX }),
    }
}

/// All of them are kept as "mark := (mark and not mask) xor value".
fn set_mark(option: &str, text: &str) -> Option<Marking> {
    Some(match option {
        "--set-xmark" => marking(text)?,
        "--set-mark" => {
            let Marking { value, mask } = marking(text)?;
            Marking { value, mask: mask | value }
        }
        "--or-mark" => Marking { value: bits(text)?, mask: bits(text)? },
        "--xor-mark" => Marking { value: bits(text)?, mask: 0 },
        "--and-mark" => Marking { value: 0, mask: !bits(text)? },
        _ => return None,
    })
}

/// The number that gives this probability.
fn one_in(text: &str) -> Option<u32> {
    let decimal = |b: u8| b.is_ascii_digit() || b == b'.';
    let probability: f64 = Some(text).filter(|text| text.bytes().all(decimal))?.parse().ok()?;
    one_in_for((probability * UNIT).round())
}

fn all_ones(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::from([0xff; 4]),
        IpFamily::V6 => IpAddr::from([0xff; 16]),
    }
}

fn port_unreachable(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "icmp-port-unreachable",
        IpFamily::V6 => "icmp6-port-unreachable",
    }
}
