//! As text that `nft` reads. (nft(8), from version 1.0.1.)

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;

use super::compile::{Base, Style, base};
use super::diff::{Held, comment};
use super::names::{TABLE, TRIAL, family};
use super::ruleset::{Action, CLIENTS_MAX, Chain, Element, Field, Frontend, Key, Label, Match, Of, Rule, Set, Value};
use crate::model::ServicePortName;
use crate::net::IpFamily;
use crate::plan::{Backend, Plan};

/// Commands for the table of a family. Run together, they happen at once.
#[derive(Debug)]
pub struct Script {
    family: IpFamily,
    table: &'static str,
    text: String,
}

/// Conditions and what is done, as rules of a family say it.
struct Words<'a>(IpFamily, &'a Rule);

/// What is looked up, and by which words the protocol is found.
struct Looked<'a>(&'static str, &'a [Of], &'static str);

/// As the packet has it.
const OF_PACKET: &str = "meta l4proto";
/// As connection tracking has it. To look for ranges, `nft` (1.0.6) turns the bytes of what is in the machine's order, even
/// if there is but one: `hton(reg, 2, 1)`, which kernels refuse of late (6.12.117: `EOPNOTSUPP`). This it takes for the
/// network's order.
const OF_CONNECTION: &str = "ct protocol";

/// A key of an element.
struct Keyed(Key);

/// Everything that is written into an empty kernel.
pub fn whole(plan: &Plan, style: &Style) -> String {
    let mut held = Held::default();
    held.set(plan.services().iter().map(|(name, plan)| (name, Some(plan))));
    let mut script = Script::new(plan.node.family);
    let base = base(&plan.node, style, &held.timeouts());
    script.base(&base);
    script.netlink_chains(&base.netlink_chains);
    let elements: BTreeMap<_, _> = held.elements().collect();
    for (element, owner) in elements {
        script.element(&element, owner);
    }
    script.into_text()
}

/// A rule as text.
pub fn rule(family: IpFamily, rule: &Rule) -> String {
    Words(family, rule).to_string()
}

// === impl Script ===

impl Script {
    /// The table, if it is not there.
    pub fn new(family: IpFamily) -> Script {
        Script::about(family, TABLE)
    }

    /// The same for one that is nobody's: what is there already has no part in what `nft` says to it.
    pub fn trial(family: IpFamily) -> Script {
        Script::about(family, TRIAL)
    }

    fn about(family: IpFamily, table: &'static str) -> Script {
        let mut script = Script { family, table, text: String::new() };
        script.line(format_args!("add table {} {{ comment \"rules for kube-proxy\" ; }}", script.table()));
        script
    }

    /// Sets, as far as they are not there.
    pub fn sets(&mut self, sets: &[Set]) {
        for set in sets {
            let (name, shape) = (set.name(), set.shape());
            let kind = if shape.value.is_some() { "map" } else { "set" };
            let mut definition = self.types(*set);
            if shape.interval {
                definition.push_str(" ; flags interval");
            }
            if shape.dynamic {
                let _ = write!(definition, " ; size {CLIENTS_MAX} ; flags dynamic,timeout");
            }
            self.line(format_args!(
                "add {kind} {} {name} {{ {definition} ; comment \"{}\" ; }}",
                self.table(),
                set.comment()
            ));
        }
    }

    /// All chains, with these rules and no others.
    pub fn chains(&mut self, chains: &[Chain]) {
        for chain in chains {
            match chain.hook {
                Some(hook) => self.line(format_args!(
                    "add chain {} {} {{ type {} hook {} priority {} ; }}",
                    self.table(),
                    chain.name,
                    hook.kind,
                    hook.hook,
                    hook.priority
                )),
                None => self.line(format_args!("add chain {} {}", self.table(), chain.name)),
            }
            self.line(format_args!("flush chain {} {}", self.table(), chain.name));
        }
        for chain in chains {
            for rule in &chain.rules {
                self.line(format_args!("add rule {} {} {}", self.table(), chain.name, Words(self.family, rule)));
            }
        }
    }

    /// Everything there is besides elements of Services.
    pub fn base(&mut self, base: &Base) {
        self.sets(&base.sets);
        self.node_port_ips(&base.node_port_ips);
        self.declare(&base.netlink_chains);
        self.chains(&base.chains);
    }

    /// Chains, as far as they are not there, with the rules that they have.
    pub fn declare(&mut self, chains: &[Chain]) {
        for chain in chains {
            self.line(format_args!("add chain {} {}", self.table(), chain.name));
        }
    }

    /// Chains that `nft` cannot read, for people.
    fn netlink_chains(&mut self, chains: &[Chain]) {
        for chain in chains {
            for rule in &chain.rules {
                let words = Words(self.family, rule);
                self.line(format_args!("# written over netlink: add rule {} {} {words}", self.table(), chain.name));
            }
        }
    }

    fn node_port_ips(&mut self, ips: &[IpAddr]) {
        let name = Set::NodePortIps.name();
        self.line(format_args!("flush set {} {name}", self.table()));
        for ip in ips {
            self.line(format_args!("add element {} {name} {{ {ip} }}", self.table()));
        }
    }

    /// An element, for a Service port or for several.
    pub fn element(&mut self, element: &Element, owner: Option<&ServicePortName>) {
        let Element { set, key, value } = element;
        let comment = owner.map(|owner| format!(" comment \"{}\"", comment(owner))).unwrap_or_default();
        let value = match value {
            None => String::new(),
            Some(Value::Endpoint(Backend { ip, port })) => format!(" : {ip} . {port}"),
            Some(Value::Label(label)) => format!(" : {label}"),
        };
        let (table, name, key) = (self.table(), set.name(), Keyed(*key));
        self.line(format_args!("add element {table} {name} {{ {key}{comment}{value} }}"));
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    fn table(&self) -> String {
        format!("{} {}", family(self.family), self.table)
    }

    /// The type of a set's elements.
    fn types(&self, set: Set) -> String {
        let shape = set.shape();
        let name = |field: &Field| match (field, self.family) {
            (Field::Address, IpFamily::V4) => "ipv4_addr",
            (Field::Address, IpFamily::V6) => "ipv6_addr",
            (Field::Protocol, _) => "inet_proto",
            (Field::Port, _) => "inet_service",
            (Field::Number, _) => "mark",
            (Field::Label, _) => "ipv6_addr",
        };
        let join = |fields: &[Field]| fields.iter().map(name).collect::<Vec<_>>().join(" . ");
        let value = shape.value.map(|value| format!(" : {}", join(value))).unwrap_or_default();
        format!("type {}{value}", join(shape.key))
    }
}

impl Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Words(family, rule) = self;
        let ip = super::names::family(*family);
        for condition in &rule.matches {
            match condition {
                Match::In { key, set, not } => {
                    let protocol = if set.shape().interval { OF_CONNECTION } else { OF_PACKET };
                    write!(f, "{} {}@{} ", Looked(ip, key, protocol), if *not { "!= " } else { "" }, set.name())?;
                }
                Match::Source(net) => write!(f, "{ip} saddr {} ", short(*net))?,
                Match::NotSource(net) => write!(f, "{ip} saddr != {} ", short(*net))?,
                Match::Destination(net) => write!(f, "{ip} daddr {} ", short(*net))?,
                Match::NotDestination(net) => write!(f, "{ip} daddr != {} ", short(*net))?,
                Match::InInterface { name, prefix, not } => {
                    let (not, any) = (if *not { "!= " } else { "" }, if *prefix { "*" } else { "" });
                    write!(f, "iifname {not}\"{name}{any}\" ")?;
                }
                Match::FromNode => f.write_str("fib saddr type local ")?,
                Match::ToNode => f.write_str("fib daddr type local ")?,
                Match::New => f.write_str("ct state new ")?,
                Match::NotEstablished => f.write_str("ct state != { established, related } ")?,
                Match::Translated => f.write_str("ct status dnat ")?,
                Match::NotTranslated => f.write_str("ct status ! dnat ")?,
                Match::Marked(mark) => write!(f, "meta mark & {mark:#010x} != 0 ")?,
            }
        }
        match &rule.action {
            Action::Jump(chain) => write!(f, "jump {chain}")?,
            Action::Goto(chain) => write!(f, "goto {chain}")?,
            Action::Mark(mark) => write!(f, "meta mark set meta mark | {mark:#010x}")?,
            Action::Unmark(mark) => write!(f, "meta mark set meta mark ^ {mark:#010x} masquerade fully-random")?,
            Action::Masquerade => f.write_str("masquerade fully-random")?,
            Action::Reject => f.write_str("reject")?,
            Action::Drop => f.write_str("drop")?,
            Action::Translate { key, below, map } => {
                write!(f, "dnat {ip} addr . port to {}", Looked(ip, key, OF_PACKET))?;
                if let Some(below) = below {
                    write!(f, " . numgen random mod {below}")?;
                }
                write!(f, " map @{}", map.name())?;
            }
            Action::Label(key, map) => write!(f, "ct label set {} map @{}", Looked(ip, key, OF_PACKET), map.name())?,
            Action::Remember(seconds) => {
                let client = Looked(ip, &[Of::Label, Of::Source], OF_PACKET);
                let endpoint = Looked(ip, &[Of::Destination, Of::Port], OF_PACKET);
                write!(f, "update @{} {{ {client} timeout {seconds}s : {endpoint} }}", Set::Clients.name())?;
            }
        }
        match rule.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl Display for Looked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Looked(ip, key, protocol) = self;
        for (i, of) in key.iter().enumerate() {
            if i > 0 {
                f.write_str(" . ")?;
            }
            match of {
                Of::Source => write!(f, "{ip} saddr")?,
                Of::Destination => write!(f, "{ip} daddr")?,
                Of::Protocol => f.write_str(protocol)?,
                Of::Port => f.write_str("th dport")?,
                Of::Label => f.write_str("ct label")?,
            }
        }
        Ok(())
    }
}

impl Display for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Key::Ip(ip) => write!(f, "{ip}"),
            Key::Frontend(frontend) => write!(f, "{frontend}"),
            Key::Slot(frontend, number) => write!(f, "{frontend} . {number:#010x}"),
            Key::Hairpin(ip, protocol, port) => write!(f, "{ip} . {ip} . {} . {port}", protocol.lower()),
            Key::Allowed(frontend, net) => write!(f, "{frontend} . {}", short(net)),
            Key::Label(label) => write!(f, "{label}"),
            Key::Client(label, client) => write!(f, "{label} . {client}"),
        }
    }
}

impl Display for Label {
    /// As `nft` shows it, which takes it for an address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::Ipv6Addr::from(self.0))
    }
}

impl Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frontend::Address(ip, protocol, port) => write!(f, "{ip} . {} . {port}", protocol.lower()),
            Frontend::NodePort(protocol, port) => write!(f, "{} . {port}", protocol.lower()),
        }
    }
}

/// A network of one address is written as that.
fn short(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}
