//! Text of rules: byte for byte what `iptables-save` prints, which `iptables-restore` reads back.

use std::fmt::{self, Formatter, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;

use super::ruleset::{Addresses, ConnStates, Is, Marking, Match, Rule, Target};
use crate::net::IpFamily;
use crate::plan::Backend;

/// The text after `-A CHAIN `.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text);
        f.write_str(&text)
    }
}

impl Rule {
    /// Adds the text after `-A CHAIN `. (A start of a big cluster writes hundreds of thousands of rules: the
    /// machinery of `fmt` would take most of the time.)
    pub fn write(&self, text: &mut String) {
        let start = text.len();
        // The tools leave out a network that holds every address.
        let holds_all = |net: &IpNet| net.prefix_len() == 0;
        if let Some(Is { not, value }) = self.source.as_ref().filter(|side| side.not || !holds_all(&side.value)) {
            text.extend([bang(*not), "-s "]);
            net(text, value);
            text.push(' ');
        }
        match &self.destination {
            Some(Is { not: false, value: Addresses::Net(net) }) if holds_all(net) => {}
            Some(Is { not, value }) => {
                text.extend([bang(*not), "-d "]);
                addresses(text, value);
                text.push(' ');
            }
            None => {}
        }
        if let Some(Is { not, value }) = &self.in_interface {
            text.extend([bang(*not), "-i ", value, " "]);
        }
        if let Some(protocol) = self.protocol {
            text.extend(["-p ", protocol.lower(), " "]);
        }
        for condition in &self.matches {
            text.push_str("-m ");
            condition.write(text);
            text.push(' ');
        }
        if let Some(to) = &self.target {
            text.push_str("-j ");
            to.write(text);
        } else if text.len() > start {
            // The last space.
            text.pop();
        }
    }
}

impl Match {
    /// Adds the text after `-m `.
    fn write(&self, text: &mut String) {
        match self {
            Match::Comment(comment) => {
                text.push_str("comment --comment ");
                quoted(text, comment);
            }
            Match::ConnState(Is { not, value }) => {
                text.extend(["conntrack ", bang(*not), "--ctstate "]);
                states(text, *value);
            }
            // The tools print two spaces here.
            Match::Nfacct(name) => text.extend(["nfacct --nfacct-name  ", name]),
            Match::Mark(Is { not, value }) => {
                text.extend(["mark ", bang(*not), "--mark "]);
                marking(text, *value);
            }
            Match::SourceIsLocal => text.push_str("addrtype --src-type LOCAL"),
            Match::SourceIsNotLocal => text.push_str("addrtype ! --src-type LOCAL"),
            Match::DestinationIsLocal => text.push_str("addrtype --dst-type LOCAL"),
            Match::NotFromBridge => text.push_str("physdev ! --physdev-is-in"),
            Match::InSet { set, sides } => text.extend(["set --match-set ", set, " ", sides]),
            Match::ThroughVirtualServer { ip, protocol, port } => {
                text.push_str("ipvs --vproto ");
                number(text, protocol.number());
                text.push_str(" --vaddr ");
                address(text, *ip);
                text.push_str(" --vport ");
                number(text, *port);
            }
            Match::ToItself(family) => text.extend(["bpf --bytecode \"", to_itself(*family), "\""]),
            Match::Transport(protocol, port) => {
                text.push_str(protocol.lower());
                if let Some(port) = port {
                    text.push_str(" --dport ");
                    number(text, *port);
                }
            }
            Match::OneIn(n) => {
                text.push_str("statistic --mode random --probability ");
                probability(text, *n);
            }
            Match::RecentlySeen { list, seconds, family } => {
                text.push_str("recent --rcheck --seconds ");
                number(text, *seconds);
                text.extend([" --reap --name ", list.as_str(), " --mask ", recent_mask(*family), " --rsource"]);
            }
            Match::Remember { list, family } => {
                text.extend(["recent --set --name ", list.as_str(), " --mask ", recent_mask(*family), " --rsource"]);
            }
        }
    }
}

impl Target {
    /// Adds the text after `-j `.
    fn write(&self, text: &mut String) {
        match self {
            Target::Jump(chain) => text.push_str(chain.as_str()),
            Target::Accept => text.push_str("ACCEPT"),
            Target::Drop => text.push_str("DROP"),
            Target::Return => text.push_str("RETURN"),
            Target::Reject(IpFamily::V4) => text.push_str("REJECT --reject-with icmp-port-unreachable"),
            Target::Reject(IpFamily::V6) => text.push_str("REJECT --reject-with icmp6-port-unreachable"),
            Target::SetMark(Marking { value, mask }) => {
                plain(text, format_args!("MARK --set-xmark {value:#x}/{mask:#x}"));
            }
            Target::Masquerade { random_fully: false } => text.push_str("MASQUERADE"),
            Target::Masquerade { random_fully: true } => text.push_str("MASQUERADE --random-fully"),
            Target::Dnat(backend) => {
                text.push_str("DNAT --to-destination ");
                self::backend(text, backend);
            }
        }
    }
}

/// Where nothing depends on the time it takes.
fn plain(text: &mut String, arguments: fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = text.write_fmt(arguments);
}

fn number(text: &mut String, value: impl itoa::Integer) {
    text.push_str(itoa::Buffer::new().format(value));
}

fn address(text: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (i, octet) in ip.octets().into_iter().enumerate() {
                text.push_str(if i == 0 { "" } else { "." });
                number(text, octet);
            }
        }
        IpAddr::V6(ip) => plain(text, format_args!("{ip}")),
    }
}

fn net(text: &mut String, net: &IpNet) {
    address(text, net.addr());
    text.push('/');
    number(text, net.prefix_len());
}

fn addresses(text: &mut String, addresses: &Addresses) {
    match addresses {
        Addresses::Net(of) => net(text, of),
        Addresses::Bits { value, mask } => {
            address(text, *value);
            text.push('/');
            address(text, *mask);
        }
    }
}

/// Adds `10.0.0.1:80` or `[fd00::1]:80`.
pub(super) fn backend(text: &mut String, Backend { ip, port }: &Backend) {
    match ip {
        IpAddr::V4(_) => address(text, *ip),
        IpAddr::V6(_) => {
            text.push('[');
            address(text, *ip);
            text.push(']');
        }
    }
    text.push(':');
    number(text, *port);
}

fn marking(text: &mut String, Marking { value, mask }: Marking) {
    match mask {
        u32::MAX => plain(text, format_args!("{value:#x}")),
        mask => plain(text, format_args!("{value:#x}/{mask:#x}")),
    }
}

fn states(text: &mut String, states: ConnStates) {
    for (i, name) in states.names().enumerate() {
        text.extend([if i == 0 { "" } else { "," }, name]);
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

/// Adds text in double quotes, unless it is a single plain word.
fn quoted(text: &mut String, comment: &str) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !comment.is_empty() && comment.bytes().all(plain) {
        return text.push_str(comment);
    }
    text.push('"');
    for part in comment.split_inclusive(['"', '\\', '\'']) {
        match part.char_indices().next_back() {
            Some((at, special @ ('"' | '\\' | '\''))) => {
                text.extend([part.get(..at).unwrap_or_default(), "\\"]);
                text.push(special);
            }
            _ => text.push_str(part),
        }
    }
    text.push('"');
}

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

/// Adds one in so many, as the tools print it.
fn probability(text: &mut String, one_in: u32) {
    // At most 2^31, and whole.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a number of units")]
    let units = kernel_probability(one_in) as u64;
    // What is exactly in the middle goes to the even neighbour, as in C.
    let (scaled, half) = (u128::from(units) * DECIMALS, 1u128 << 30);
    let (whole, rest) = (scaled >> 31, scaled & (2 * half - 1));
    let rounded = whole + u128::from(rest > half || (rest == half && whole % 2 == 1));
    number(text, rounded / DECIMALS);
    text.push('.');
    let digits = rounded % DECIMALS;
    let mut below = DECIMALS / 10;
    while below > digits.max(1) {
        text.push('0');
        below /= 10;
    }
    number(text, digits);
}

/// So many digits follow the point.
const DECIMALS: u128 = 10u128.pow(11);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_probability(one_in: u32, expected: &str) {
        let mut text = String::new();
        probability(&mut text, one_in);
        assert_eq!(text, expected);
    }

    #[test]
    fn probabilities_are_printed_as_the_kernel_keeps_them() {
        check_probability(2, "0.50000000000");
        check_probability(3, "0.33333333349");
        check_probability(4, "0.25000000000");
        check_probability(100, "0.00999999978");
        check_probability(1, "1.00000000000");
        check_probability(u32::MAX, "0.00000000000");
    }

    #[test]
    fn probabilities_are_rounded_as_the_tools_do() {
        for one_in in (1..5_000).chain([10_000, 46_341, 65_536, 1_000_000, 1 << 31]) {
            let printed = format!("{:.11}", kernel_probability(one_in) / UNIT);
            check_probability(one_in, &printed);
        }
    }
}
