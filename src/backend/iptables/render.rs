//! Text of rules: byte for byte what `iptables-save` prints, which `iptables-restore` reads back.

use std::fmt::{self, Formatter};

use ipnet::IpNet;

use super::ruleset::{Addresses, ConnStates, Is, Marking, Match, Rule, Target};
use crate::net::IpFamily;

/// The text after `-A CHAIN `.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Every part begins with a space but the first.
        let mut first = true;
        let mut part = |f: &mut Formatter<'_>, text: fmt::Arguments<'_>| {
            let space = if std::mem::take(&mut first) { "" } else { " " };
            write!(f, "{space}{text}")
        };
        // The tools leave out a network that holds every address.
        let holds_all = |net: &IpNet| net.prefix_len() == 0;
        if let Some(Is { not, value }) = self.source.as_ref().filter(|side| side.not || !holds_all(&side.value)) {
            part(f, format_args!("{}-s {value}", bang(*not)))?;
        }
        match &self.destination {
            Some(Is { not: false, value: Addresses::Net(net) }) if holds_all(net) => {}
            Some(Is { not, value }) => part(f, format_args!("{}-d {value}", bang(*not)))?,
            None => {}
        }
        if let Some(Is { not, value }) = &self.in_interface {
            part(f, format_args!("{}-i {value}", bang(*not)))?;
        }
        if let Some(protocol) = self.protocol {
            part(f, format_args!("-p {}", protocol.lower()))?;
        }
        for condition in &self.matches {
            part(f, format_args!("-m {condition}"))?;
        }
        match &self.target {
            Some(target) => part(f, format_args!("-j {target}")),
            None => Ok(()),
        }
    }
}

/// The text after `-m `.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Match::Comment(text) => write!(f, "comment --comment {}", Quoted(text)),
            Match::ConnState(Is { not, value }) => write!(f, "conntrack {}--ctstate {value}", bang(*not)),
            // The tools print two spaces here.
            Match::Nfacct(name) => write!(f, "nfacct --nfacct-name  {name}"),
            Match::Mark(Is { not, value }) => write!(f, "mark {}--mark {value}", bang(*not)),
            Match::SourceIsLocal => f.write_str("addrtype --src-type LOCAL"),
            Match::DestinationIsLocal => f.write_str("addrtype --dst-type LOCAL"),
            Match::ToItself(family) => write!(f, "bpf --bytecode \"{}\"", to_itself(*family)),
            Match::Transport(protocol, None) => f.write_str(protocol.lower()),
            Match::Transport(protocol, Some(port)) => write!(f, "{} --dport {port}", protocol.lower()),
            Match::OneIn(n) => write!(f, "statistic --mode random --probability {}", Probability(*n)),
            Match::RecentlySeen { list, seconds, family } => {
                let mask = recent_mask(*family);
                write!(f, "recent --rcheck --seconds {seconds} --reap --name {list} --mask {mask} --rsource")
            }
            Match::Remember { list, family } => {
                write!(f, "recent --set --name {list} --mask {} --rsource", recent_mask(*family))
            }
        }
    }
}

/// The text after `-j `.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Target::Jump(chain) => chain.fmt(f),
            Target::Accept => f.write_str("ACCEPT"),
            Target::Drop => f.write_str("DROP"),
            Target::Return => f.write_str("RETURN"),
            Target::Reject(IpFamily::V4) => f.write_str("REJECT --reject-with icmp-port-unreachable"),
            Target::Reject(IpFamily::V6) => f.write_str("REJECT --reject-with icmp6-port-unreachable"),
            Target::SetMark(Marking { value, mask }) => write!(f, "MARK --set-xmark {value:#x}/{mask:#x}"),
            Target::Masquerade { random_fully: false } => f.write_str("MASQUERADE"),
            Target::Masquerade { random_fully: true } => f.write_str("MASQUERADE --random-fully"),
            Target::Dnat(backend) => write!(f, "DNAT --to-destination {backend}"),
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Addresses::Net(net) => net.fmt(f),
            Addresses::Bits { value, mask } => write!(f, "{value}/{mask}"),
        }
    }
}

impl fmt::Display for Marking {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.mask {
            u32::MAX => write!(f, "{:#x}", self.value),
            mask => write!(f, "{:#x}/{mask:#x}", self.value),
        }
    }
}

impl fmt::Display for ConnStates {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, name) in self.names().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn bang(not: bool) -> &'static str {
    if not { "! " } else { "" }
}

/// The program that takes packets whose source is their destination, word by word from the IP header,
/// which is where programs of `-m bpf` begin to count. One instruction is `code true false constant`, in the
/// kernel's classic form: 32 loads the word at an offset, 7 keeps it, 29 compares with what was kept and
/// jumps, 6 returns.
pub(super) fn to_itself(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "6,32 0 0 16,7 0 0 0,32 0 0 12,29 0 1 0,6 0 0 65535,6 0 0 0",
        IpFamily::V6 => {
            "18,32 0 0 36,7 0 0 0,32 0 0 20,29 0 13 0,32 0 0 32,7 0 0 0,32 0 0 16,29 0 9 0,\
             32 0 0 28,7 0 0 0,32 0 0 12,29 0 5 0,32 0 0 24,7 0 0 0,32 0 0 8,29 0 1 0,6 0 0 65535,6 0 0 0"
        }
    }
}

fn recent_mask(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "255.255.255.255",
        IpFamily::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// Text in double quotes, unless it is a single plain word.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !self.0.is_empty() && self.0.bytes().all(plain) {
            return f.write_str(self.0);
        }
        f.write_str("\"")?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

/// One in so many, as the tools print it.
struct Probability(u32);

/// The kernel's unit of probability.
pub(super) const UNIT: f64 = (1u64 << 31) as f64;

/// What the kernel keeps for one in so many, in units of 2^-31: kube-proxy writes ten decimals, the
/// tools round that to the nearest unit and print eleven decimals of it.
fn kernel_probability(one_in: u32) -> f64 {
    let written = (1e10 / f64::from(one_in)).round() / 1e10;
    (written * UNIT).round()
}

/// The number for which the kernel keeps this. From about 46,000 on several numbers share a value; the
/// smallest of them stands for all.
pub(super) fn one_in_for(wanted: f64) -> Option<u32> {
    if !(1.0..=UNIT).contains(&wanted) {
        return None;
    }
    // Smaller numbers have larger values: the first whose value is not above the wanted one.
    let (mut low, mut high) = (1u32, u32::MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        match kernel_probability(middle) <= wanted {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    (kernel_probability(low) == wanted).then_some(low)
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:.11}", kernel_probability(self.0) / UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_probability(one_in: u32, expected: &str) {
        assert_eq!(Probability(one_in).to_string(), expected);
    }

    #[test]
    fn probabilities_are_printed_as_the_kernel_keeps_them() {
        check_probability(2, "0.50000000000");
        check_probability(3, "0.33333333349");
        check_probability(4, "0.25000000000");
        check_probability(100, "0.00999999978");
    }
}
