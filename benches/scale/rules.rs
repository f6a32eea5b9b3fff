//! The rules that a proxy of this cluster has to write, as input of `iptables-restore`: for the bare
//! tool that ferrule is compared with.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ferrule::backend::iptables::apply;
use ferrule::backend::iptables::compile::Layout;
use ferrule::cli::render;
use ferrule::cluster::Event;
use ferrule::fixtures;
use ferrule::model::{EndpointSlice, Node, Service, wire};
use ferrule::net::IpFamily;
use ferrule::plan::build::Settings;
use serde_json::Value;

use crate::cluster::{Cluster, NODE, PODS, node};
use crate::options::RulesLayout;

/// What the names of chains that split KUBE-SERVICES begin with.
const BUCKETS: &str = "KUBE-SVC-ADDR-";

/// All rules of IPv4, taken apart by Service.
pub struct Rules {
    /// What is no Service's own: tables, jumps, shared chains.
    base: Vec<(String, Vec<String>)>,
    /// Rules of each Service of the nat table.
    services: Vec<Piece>,
}

/// What one Service port has in the nat table.
#[derive(Clone, Debug, Default)]
struct Piece {
    ip: String,
    chains: Vec<String>,
    /// Rules of its own chains.
    own: Vec<String>,
    /// Rules of shared chains.
    shared: Vec<String>,
}

// === impl Rules ===

impl Rules {
    pub fn new(cluster: &Cluster, layout: RulesLayout) -> Rules {
        Rules::read(&render::iptables(events(cluster), &settings(), &iptables(layout), IpFamily::V4))
    }

    fn read(text: &str) -> Rules {
        let mut base: Vec<(String, Vec<String>)> = Vec::new();
        let mut at: HashMap<String, usize> = HashMap::new();
        let mut services: Vec<Piece> = Vec::new();
        // Which chain belongs to which Service is known from the rules that lead there.
        let mut nat = false;
        for line in text.lines() {
            nat = if line.starts_with('*') { line == "*nat" } else { nat };
            if !nat {
                continue;
            }
            let is_service = |chain: &&str| chain.starts_with("KUBE-SVC-") && !chain.starts_with(BUCKETS);
            let leads_there = |from: &str| from == "KUBE-SERVICES" || from.starts_with(BUCKETS);
            if let Some(chain) = target(line).filter(is_service)
                && self::chain(line).is_some_and(leads_there)
            {
                let ip = line.split(" -d ").nth(1).and_then(|rest| rest.split(['/', ' ']).next()).unwrap_or_default();
                at.insert(chain.to_owned(), services.len());
                services.push(Piece { ip: ip.to_owned(), ..Piece::default() });
            }
        }
        for line in text.lines() {
            if let Some(to) = target(line).filter(|chain| chain.starts_with("KUBE-SEP-"))
                && let Some(index) = chain(line).and_then(|from| at.get(from)).copied()
            {
                at.insert(to.to_owned(), index);
            }
        }
        for line in text.lines() {
            if line.starts_with('*') {
                base.push((line.to_owned(), Vec::new()));
                continue;
            }
            let owner = |name: Option<&str>| name.and_then(|name| at.get(name)).copied();
            match (owner(chain(line)), owner(target(line))) {
                (Some(index), _) if line.starts_with(':') => {
                    services[index].chains.push(chain(line).unwrap().to_owned());
                }
                (Some(index), _) => services[index].own.push(line.to_owned()),
                // At the head, so that what comes after the Services' rules stays there.
                (None, Some(index)) => services[index].shared.push(line.replacen("-A ", "-I ", 1)),
                (None, None) if line == "COMMIT" || line.starts_with('#') || base.is_empty() => {}
                (None, None) => base.last_mut().unwrap().1.push(without_counter(line)),
            }
        }
        Rules { base, services }
    }

    /// How many rules of Services' own chains and of shared chains there are.
    pub fn count(&self) -> usize {
        let of_base = self.base.iter().flat_map(|(_, lines)| lines).filter(|line| line.starts_with('-')).count();
        of_base + self.services.iter().map(|piece| piece.own.len() + piece.shared.len()).sum::<usize>()
    }

    /// Inputs that program all of it, with so many Services in each.
    pub fn inputs(&self, services: usize) -> Vec<String> {
        let chunks = self.services.chunks(services.max(1)).enumerate();
        let mut inputs: Vec<String> = chunks
            .map(|(i, chunk)| {
                let mut text = String::new();
                let mut nat = vec![String::new(); 2];
                if i == 0 {
                    for (table, lines) in &self.base {
                        if table == "*nat" {
                            for line in lines {
                                let section = usize::from(!line.starts_with(':'));
                                nat[section] += &format!("{line}\n");
                            }
                        } else {
                            text += &format!("{table}\n{}\nCOMMIT\n", lines.join("\n"));
                        }
                    }
                }
                text += "*nat\n";
                text += &nat[0];
                for piece in chunk {
                    piece.chains.iter().for_each(|chain| writeln!(text, ":{chain} - [0:0]").unwrap());
                }
                text += &nat[1];
                for piece in chunk {
                    piece.own.iter().chain(&piece.shared).for_each(|line| writeln!(text, "{line}").unwrap());
                }
                text + "COMMIT\n"
            })
            .collect();
        if inputs.is_empty() {
            inputs.push(String::new());
        }
        inputs
    }

    /// Inputs that replace an endpoint of the Service with this cluster IP by another, and put it back.
    pub fn replacement(&self, cluster_ip: &str, with: &str) -> Option<[String; 2]> {
        let piece = self.services.iter().find(|piece| piece.ip == cluster_ip)?;
        let old = piece.chains.iter().find(|chain| chain.starts_with("KUBE-SEP-"))?;
        let of_old: Vec<&String> = piece.own.iter().filter(|line| chain(line) == Some(old)).collect();
        let ip = of_old.iter().find_map(|line| line.split("--to-destination ").nth(1)?.split(':').next())?;
        let new = format!("KUBE-SEP-BENCH{}", &old[14..]);
        let of_service = piece.own.iter().filter(|line| chain(line).is_some_and(|name| !name.starts_with("KUBE-SEP-")));
        let service = chain(of_service.clone().next()?)?;
        let change = |add: &str, remove: &str| {
            let swap =
                |line: &String| if add == new { line.replace(old, &new).replace(ip, with) } else { line.clone() };
            let mut text = format!("*nat\n:{service} - [0:0]\n:{add} - [0:0]\n:{remove} - [0:0]\n");
            of_service.clone().chain(of_old.iter().copied()).for_each(|line| writeln!(text, "{}", swap(line)).unwrap());
            text + &format!("-X {remove}\nCOMMIT\n")
        };
        Some([change(&new, old), change(old, &new)])
    }
}

/// The chain of a rule or of a declaration.
fn chain(line: &str) -> Option<&str> {
    match line.strip_prefix(':') {
        Some(rest) => rest.split(' ').next(),
        None => line.strip_prefix("-A ").or_else(|| line.strip_prefix("-I "))?.split(' ').next(),
    }
}

/// A rule without its named counter, which would have to be made first.
fn without_counter(line: &str) -> String {
    match line.split_once(" -m nfacct --nfacct-name ").map(|(before, after)| (before, after.trim_start())) {
        Some((before, after)) => before.to_owned() + after.find(' ').map_or("", |at| &after[at..]),
        None => line.to_owned(),
    }
}

/// Where a rule leads.
fn target(line: &str) -> Option<&str> {
    line.rsplit_once(" -j ").and_then(|(_, rest)| rest.split(' ').next())
}

/// What every proxy is configured with.
pub fn settings() -> Settings {
    fixtures::settings(NODE, PODS)
}

/// The same of iptables mode.
pub fn iptables(layout: RulesLayout) -> apply::Settings {
    let layout = Layout { bucketed_services: layout.bucketed, compact_endpoints: layout.compact };
    apply::Settings { mark: 1 << 14, drop_invalid: true, layout }
}

/// Everything that a proxy is told about a cluster.
pub fn events(cluster: &Cluster) -> Vec<Event> {
    fn decode<'a, T: serde::Deserialize<'a>>(object: &'a Value) -> T {
        T::deserialize(object).unwrap()
    }
    let (_, node) = node();
    let mut events = vec![Event::Node(Arc::new(Node::from_wire(&decode::<wire::Node>(&node))))];
    events.extend(cluster.service_objects().iter().filter_map(|(_, object)| {
        Some(Event::Service(Arc::new(Service::from_wire(&decode::<wire::Service>(object)).0?)))
    }));
    events.extend(cluster.slice_objects().iter().filter_map(|(_, object)| {
        Some(Event::EndpointSlice(Arc::new(EndpointSlice::from_wire(&decode::<wire::EndpointSlice>(object), NODE).0?)))
    }));
    events
}
