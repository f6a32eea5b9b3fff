//! What real packets met, compared with what the tracer reads from node A's rules.
//!
//! The rules are those that the kernel prints, the requests are real ones. They must agree in
//! everything that both can tell: who answers and whom it sees, or whether it is a refusal or
//! silence; which rules applied, as the kernel's counters tell; and which `recent` lists the client
//! was put on. A rule that a packet comes to and that cannot be read is a difference as well.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::scope;
use std::time::Instant;

use ferrule::backend::iptables::ruleset::{ConnStates, Match, Rule, Table, Target};
use ferrule::command::fake::{KernelRule, Tables};
use ferrule::net::{IpFamily, Protocol};

use self::kernel::{At, Counts, Entry, Lists};
use crate::tracer::{self, Packet, Place, Seen, Verdict, Way};
use crate::traffic::{Call, Outcome, Proto};
use crate::world::{Family, Namespace, POD_PORT, World};

/// What comes of a request, as its sender and the pods can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// A pod answers, and sees this address.
    Answer {
        /// Name of the pod.
        endpoint: String,
        /// Where the request came from, for the pod.
        seen: IpAddr,
    },
    /// It is refused.
    Refused,
    /// Nothing comes back.
    Silence,
    /// None of these.
    Failed(String),
}

/// Requests that are made, and what the tracer says about them.
pub struct Comparison<'w> {
    world: &'w World,
    /// The rules the tracer is told.
    tables: Tables,
    node: tracer::World,
    /// What the kernel has counted before these requests.
    counts: Counts,
    /// Whom the kernel remembered before these requests.
    lists: Lists,
    /// Whom it remembered when that was last looked at.
    latest: Lists,
    /// When an entry of a list was last seen to have changed.
    changed: BTreeMap<Entry, Instant>,
    asked: Vec<Asked>,
    /// Whether the tracer can read the rules: those of iptables.
    is_traced: bool,
}

/// A request that was made, perhaps several times.
struct Asked {
    packet: Packet,
    seen: Seen,
    fates: BTreeSet<Fate>,
    /// Made so often that everything that can come of it has.
    exhaustive: bool,
}

// === impl Comparison ===

impl<'w> Comparison<'w> {
    /// With the rules node A has now.
    pub fn begin(world: &'w World) -> Comparison<'w> {
        let saved = if world.tools.are_unused() { String::new() } else { kernel::save(world) };
        Comparison::new(world, &saved, &saved)
    }

    /// With rules as the save program prints them, which need not be node A's.
    pub fn with(world: &'w World, saved: &str) -> Comparison<'w> {
        Comparison::new(world, saved, &kernel::save(world))
    }

    fn new(world: &'w World, told: &str, counted: &str) -> Comparison<'w> {
        let family = match world.family() {
            Family::V4 => IpFamily::V4,
            Family::V6 => IpFamily::V6,
        };
        Comparison {
            world,
            tables: kernel::tables(family, told),
            node: tracer::World { addresses: kernel::addresses(world) },
            counts: Counts::read(counted),
            lists: Lists::read(world),
            latest: Lists::read(world),
            changed: BTreeMap::new(),
            asked: Vec::new(),
            is_traced: !world.tools.are_unused(),
        }
    }

    /// Makes a request. What comes of it is for [`Comparison::holds`] to compare.
    pub fn ask(&mut self, netns: &Namespace, call: Call) -> Outcome {
        let (packet, seen) = self.packet(netns, call);
        let outcome = call.make_in(netns);
        // Now, so that it is known when somebody was put on a list.
        self.read_lists();
        self.note(packet, seen, [&outcome], false);
        outcome
    }

    /// Makes many requests at once: one that is refused takes a second with TCP. (Not to Services that
    /// remember their clients.)
    pub fn ask_at_once(&mut self, calls: &[(&Namespace, Call)]) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = scope(|scope| {
            let threads: Vec<_> = calls.iter().map(|(netns, call)| scope.spawn(|| call.make_in(netns))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for ((netns, call), outcome) in calls.iter().zip(&outcomes) {
            let (packet, seen) = self.packet(netns, *call);
            self.note(packet, seen, [outcome], false);
        }
        outcomes
    }

    /// Takes note of a request that was made already, so often that everything that can come of it has
    /// come. (Not to a Service that remembers its clients.)
    pub fn asked_often<'o>(&mut self, netns: &Namespace, call: Call, outcomes: impl IntoIterator<Item = &'o Outcome>) {
        let (packet, seen) = self.packet(netns, call);
        self.note(packet, seen, outcomes, true);
    }

    fn note<'o>(
        &mut self,
        packet: Packet,
        seen: Seen,
        outcomes: impl IntoIterator<Item = &'o Outcome>,
        exhaustive: bool,
    ) {
        let fate = |outcome: &Outcome| {
            if let Outcome::Answer(answer) = outcome {
                assert_eq!(answer.source, packet.source, "{packet:?} was sent from another address");
            }
            Fate::of(outcome)
        };
        let fates = outcomes.into_iter().map(fate).collect();
        self.asked.push(Asked { packet, seen, fates, exhaustive });
    }

    /// What can come of a request, each with its chance.
    pub fn expected(&mut self, netns: &Namespace, call: Call) -> BTreeMap<Fate, f64> {
        let (packet, seen) = self.packet(netns, call);
        let mut chances = BTreeMap::new();
        for way in tracer::ways(&self.tables, &self.node, &packet, &seen).unwrap() {
            *chances.entry(self.fate(&packet, way.verdict)).or_default() += way.chance;
        }
        chances
    }

    /// How far what came of equal requests is from the chances that the tracer reads from the rules:
    /// Pearson's chi-square. Without end if something came that has no chance.
    pub fn chi_square(&mut self, netns: &Namespace, call: Call, outcomes: &[Outcome]) -> f64 {
        if !self.is_traced {
            return 0.0;
        }
        let expected = self.expected(netns, call);
        let fates: Vec<Fate> = outcomes.iter().map(Fate::of).collect();
        if fates.iter().any(|fate| !expected.contains_key(fate)) {
            return f64::INFINITY;
        }
        let squares = expected.iter().map(|(fate, chance)| {
            let (count, mean) = (fates.iter().filter(|came| *came == fate).count(), chance * fates.len() as f64);
            (count as f64 - mean).powi(2) / mean
        });
        squares.sum()
    }

    /// Fails if the requests so far met anything that the tracer does not see in the rules, or the
    /// other way round.
    #[track_caller]
    pub fn holds(&mut self) {
        let differences = self.differences();
        assert!(differences.is_empty(), "packets and tracer differ:\n{}", differences.join("\n"));
    }

    /// How the requests since the last comparison differ from what the tracer says.
    pub fn differences(&mut self) -> Vec<String> {
        let asked = std::mem::take(&mut self.asked);
        if !self.is_traced {
            return Vec::new();
        }
        let (counts, lists) = (Counts::read(&kernel::save(self.world)), self.read_lists());
        let (counted, noted) = (counts.grown_since(&self.counts), lists.changed_since(&self.lists));
        (self.counts, self.lists) = (counts, lists);
        let counted = match counted {
            Ok(counted) => counted,
            Err(error) => return vec![error],
        };
        let mut differences = Vec::new();
        let (mut may_count, mut may_note) = (BTreeSet::new(), BTreeSet::new());
        for one in &asked {
            let mut complain =
                |what: String| differences.push(format!("{:?}, on lists {:?}: {what}", one.packet, one.seen));
            match tracer::ways(&self.tables, &self.node, &one.packet, &one.seen) {
                Ok(ways) => {
                    self.compare(one, &ways, &counted, &noted).into_iter().for_each(complain);
                    for way in &ways {
                        may_count.extend(self.telling(way).map(|place| at(&place)));
                        may_note.extend(entries(way, &one.packet));
                    }
                }
                Err(error) => complain(error),
            }
        }
        for (table, chain, number) in counted.difference(&may_count) {
            let place = Place { table: *table, chain, number: *number };
            if self.tells(place) {
                let rule = self.show(place);
                differences.push(format!("this rule has counted packets, in whose way it is not: {rule}"));
            }
        }
        differences.extend(noted.difference(&may_note).map(|(list, ip)| format!("{ip} was put on the list {list}")));
        differences
    }

    /// How a request differs from all ways that the tracer sees for it, by the rules that have counted
    /// packets and the lists that somebody was put on.
    fn compare(&self, one: &Asked, ways: &[Way<'_>], counted: &BTreeSet<At>, noted: &BTreeSet<Entry>) -> Vec<String> {
        let fate = |way: &Way<'_>| self.fate(&one.packet, way.verdict);
        let is_missing = |place: &Place<'_>| !counted.contains(&at(place));
        let possible: BTreeSet<Fate> = ways.iter().map(fate).collect();
        let mut differences = Vec::new();
        if !one.fates.is_subset(&possible) || (one.exhaustive && one.fates != possible) {
            differences.push(format!("came to {:?}; the tracer says {possible:?}", one.fates));
        }
        for met in one.fates.intersection(&possible) {
            let alike = || ways.iter().filter(|way| fate(way) == *met);
            let mut taken = alike().filter(|way| !self.telling(way).any(|place| is_missing(&place))).peekable();
            if taken.peek().is_none() {
                let missing = alike().flat_map(|way| self.telling(way)).filter(is_missing);
                let missing: Vec<String> = missing.map(|place| self.show(place)).collect();
                differences.push(format!("came to {met:?}, but not by these rules: {missing:#?}"));
            } else if !taken.any(|way| entries(way, &one.packet).all(|entry| noted.contains(&entry))) {
                differences.push(format!("came to {met:?}, but was not put on the lists it should be on"));
            }
        }
        differences
    }

    /// The first packet of a request as it comes to node A, and the lists its source is on.
    fn packet(&mut self, netns: &Namespace, call: Call) -> (Packet, Seen) {
        let source = call.from.unwrap_or_else(|| netns.run(|| source_for(call.to)));
        let packet = Packet {
            protocol: match call.proto {
                Proto::Tcp => Protocol::Tcp,
                Proto::Udp => Protocol::Udp,
                Proto::Sctp => Protocol::Sctp,
            },
            interface: self.world.entrance(netns),
            source,
            destination: call.to.ip(),
            port: call.to.port(),
        };
        let lists = self.read_lists();
        let seen = lists.with(source).map(|list| {
            // Whole seconds, of which one that has begun counts.
            let age = self.changed.get(&(list.to_owned(), source)).map_or(0, |since| since.elapsed().as_secs() + 1);
            (list.into(), u32::try_from(age).unwrap())
        });
        (packet, seen.collect())
    }

    fn read_lists(&mut self) -> Lists {
        let lists = Lists::read(self.world);
        let now = Instant::now();
        self.changed.extend(lists.changed_since(&self.latest).into_iter().map(|entry| (entry, now)));
        self.latest = lists.clone();
        lists
    }

    /// What a verdict means for the sender. Beyond node A's rules a packet goes where this world's
    /// routes lead it.
    fn fate(&self, packet: &Packet, verdict: Verdict) -> Fate {
        let (to, masqueraded) = match verdict {
            Verdict::Rejected => return Fate::Refused,
            Verdict::Dropped => return Fate::Silence,
            Verdict::Delivered { backend, masqueraded, .. } => (SocketAddr::new(backend.ip, backend.port), masqueraded),
            Verdict::Untouched { masqueraded } => (SocketAddr::new(packet.destination, packet.port), masqueraded),
        };
        let family = self.world.family();
        if let Some(pod) = self.world.pods.iter().find(|pod| pod.ip(family) == to.ip()) {
            if to.port() != POD_PORT {
                return Fate::Refused;
            }
            let seen = if masqueraded { self.world.masqueraded(pod) } else { packet.source };
            return Fate::Answer { endpoint: pod.name.clone(), seen };
        }
        // Nobody listens on the nodes and on the client. All else is sent to the client, which drops it.
        let closed = self.node.is_local(to.ip()) || self.world.is_client(to.ip());
        if closed { Fate::Refused } else { Fate::Silence }
    }

    /// The rules of a way of which the kernel's counters tell whether a request came by.
    fn telling<'t>(&self, way: &Way<'t>) -> impl Iterator<Item = Place<'t>> {
        way.rules.iter().copied().filter(|place| self.tells(*place))
    }

    /// Whether a rule's counter tells about first packets of connections: those of the nat table see
    /// no others; elsewhere what stops packets does.
    fn tells(&self, place: Place<'_>) -> bool {
        let stops = |rule: &Rule| {
            // A stray packet of a connection that has ended may meet those for other packets.
            let first = [ConnStates::NEW, ConnStates::NEW.or(ConnStates::DNAT)];
            let for_first = |found: &Match| match found {
                Match::ConnState(states) => first.iter().any(|now| states.value.intersects(*now) != states.not),
                _ => true,
            };
            matches!(rule.target, Some(Target::Drop | Target::Reject(_))) && rule.matches.iter().all(for_first)
        };
        place.table == Table::Nat || matches!(self.rule(place), Some(KernelRule::Known(rule)) if stops(rule))
    }

    fn rule(&self, place: Place<'_>) -> Option<&KernelRule> {
        self.tables.chain(place.table, place.chain)?.rules.get(place.number)
    }

    fn show(&self, place: Place<'_>) -> String {
        let rule = self.rule(place).map_or_else(|| format!("the rule of number {}", place.number), ToString::to_string);
        format!("{} {} {rule}", place.table, place.chain)
    }
}

/// A rule's place, apart from the rules.
fn at(place: &Place<'_>) -> At {
    (place.table, place.chain.to_owned(), place.number)
}

/// What a way leaves on lists.
fn entries(way: &Way<'_>, packet: &Packet) -> impl Iterator<Item = Entry> {
    way.lists.iter().map(|list| (list.to_string(), packet.source))
}

// === impl Fate ===

impl Fate {
    fn of(outcome: &Outcome) -> Fate {
        match outcome {
            Outcome::Answer(answer) => Fate::Answer { endpoint: answer.endpoint.clone(), seen: answer.seen },
            Outcome::Refused => Fate::Refused,
            Outcome::Silence => Fate::Silence,
            Outcome::Failed(why) => Fate::Failed(why.clone()),
        }
    }
}

/// The address that the kernel chooses for a request from the thread's namespace.
fn source_for(to: SocketAddr) -> IpAddr {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap_or_else(|error| panic!("no route to {to}: {error}"));
    socket.local_addr().unwrap().ip()
}
