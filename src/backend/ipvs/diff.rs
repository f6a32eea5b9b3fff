//! From what Service ports have to what they shall have. The cost is that of the Service ports that change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::compile::{ServiceRules, Style, real_server, service};
use super::netlink::{Address, RealServer, VirtualServer};
use super::ruleset::{Entry, Set, Sets};
use crate::model::ServicePortName;
use crate::plan::{Backend, NodePlan, ServicePlan};

/// What Service ports ask for, and how many of them ask for the same.
#[derive(Clone, Debug)]
pub struct Asked {
    style: Style,
    node: Arc<NodePlan>,
    services: BTreeMap<ServicePortName, Arc<ServicePlan>>,
    entries: Counts<(Set, Entry)>,
    guards: Counts<Address>,
    /// How many entries each set has.
    sizes: BTreeMap<Set, usize>,
    /// Who wants a virtual server there. The first one has it.
    owners: HashMap<Address, BTreeSet<ServicePortName>>,
}

/// What is to be done in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries to add, and those to remove.
    pub entries: Difference<(Set, Entry)>,
    /// Addresses of the link.
    pub addresses: Difference<IpAddr>,
    /// Virtual servers that this node may not use, or may again ([`super::compile::guard`]).
    pub guards: Difference<Address>,
    /// Virtual servers, each once.
    pub servers: Vec<ServerChange>,
}

/// What comes and what goes. Nothing does both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<T> {
    /// What comes.
    pub add: Vec<T>,
    /// What goes.
    pub remove: Vec<T>,
}

/// What is to be done about one virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerChange {
    /// It is new, with these real servers.
    Add(VirtualServer, Vec<RealServer>),
    /// It is another one now, if `set` says so, and has other real servers.
    Change {
        /// Its address.
        address: Address,
        /// What it is now, if that has changed.
        set: Option<VirtualServer>,
        /// Its real servers.
        reals: Difference<RealServer>,
    },
    /// It goes, with its real servers.
    Remove(Address),
}

/// How many there are of each.
#[derive(Clone, Debug)]
struct Counts<T> {
    now: HashMap<T, u32>,
    /// What was changed since the last difference, and how many there were before.
    before: BTreeMap<T, u32>,
}

/// What Service ports come to.
type Compiled = BTreeMap<ServicePortName, ServiceRules>;

/// A virtual server as it stands, with its endpoints.
type Standing = (VirtualServer, Vec<Backend>);

// === impl Asked ===

impl Asked {
    /// Nothing yet.
    pub fn new(node: Arc<NodePlan>, style: Style) -> Asked {
        Asked {
            style,
            node,
            services: BTreeMap::new(),
            entries: Counts::new(),
            guards: Counts::new(),
            sizes: BTreeMap::new(),
            owners: HashMap::new(),
        }
    }

    /// Sets that have entries.
    pub fn used(&self) -> Sets {
        self.sizes.iter().filter(|(_, size)| **size > 0).map(|(set, _)| *set).collect()
    }

    /// The node that all this is for.
    pub fn node(&self) -> &Arc<NodePlan> {
        &self.node
    }

    /// Service ports that ask for something.
    pub fn names(&self) -> impl Iterator<Item = &ServicePortName> {
        self.services.keys()
    }

    /// Entries of sets.
    pub fn entries(&self) -> impl Iterator<Item = (Set, Entry)> {
        self.entries.now.keys().copied()
    }

    /// Addresses of the link.
    pub fn links(&self) -> impl Iterator<Item = IpAddr> {
        self.entries().filter_map(link)
    }

    /// Virtual servers that this node may not use, in order.
    pub fn guards(&self) -> Vec<Address> {
        let mut guards: Vec<Address> = self.guards.now.keys().copied().collect();
        guards.sort_unstable();
        guards
    }

    /// Every virtual server, with its real ones.
    pub fn servers(&self) -> impl Iterator<Item = (VirtualServer, Vec<RealServer>)> {
        self.services.iter().flat_map(move |(name, plan)| {
            let servers = service(name, plan, &self.node, &self.style).servers.into_iter();
            let own = servers.filter(move |(server, _)| self.owner(server.address) == Some(name));
            own.map(|(server, pool)| (server, plan.pool(pool).into_iter().map(real_server).collect()))
        })
    }

    /// The virtual server at an address, with its real ones.
    pub fn server(&self, address: Address) -> Option<(VirtualServer, Vec<RealServer>)> {
        let (server, pool) = self.standing(address, &mut Compiled::new())?;
        Some((server, pool.into_iter().map(real_server).collect()))
    }

    /// How many entries each set has.
    pub fn sizes(&self) -> BTreeMap<Set, usize> {
        Set::all().map(|set| (set, self.sizes.get(&set).copied().unwrap_or_default())).collect()
    }

    /// The Service port whose virtual server stands there.
    pub fn owner(&self, address: Address) -> Option<&ServicePortName> {
        self.owners.get(&address)?.first()
    }

    /// Service ports that ask for any of these entries. Looks at all of them.
    pub fn askers<'a>(&'a self, entries: &'a BTreeSet<(Set, Entry)>) -> impl Iterator<Item = &'a ServicePortName> {
        let asks = |name: &ServicePortName, plan: &ServicePlan| {
            service(name, plan, &self.node, &self.style).entries.iter().any(|entry| entries.contains(entry))
        };
        self.services.iter().filter(move |(name, plan)| asks(name, plan)).map(|(name, _)| name)
    }

    /// Addresses of the virtual servers of a Service port.
    pub fn addresses_of(&self, name: &ServicePortName) -> Vec<Address> {
        let Some(plan) = self.services.get(name) else { return Vec::new() };
        let rules = service(name, plan, &self.node, &self.style);
        rules.servers.iter().map(|(server, _)| server.address).collect()
    }

    /// These entries are not there after all: whoever asks for one next gets it.
    pub fn forget(&mut self, entries: &BTreeSet<(Set, Entry)>) {
        for entry in entries {
            if self.entries.now.remove(entry).is_some() {
                self.sizes.entry(entry.0).and_modify(|size| *size -= 1);
            }
        }
    }

    /// Changes what these Service ports ask for, or forgets them.
    pub fn set<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a ServicePortName, Option<&'a Arc<ServicePlan>>)>,
    ) -> Changes {
        let wanted: BTreeMap<_, _> =
            wanted.into_iter().filter(|(name, plan)| self.services.get(*name) != *plan).collect();
        let compile = |name, plan: Option<&Arc<ServicePlan>>| {
            plan.map(|plan| service(name, plan, &self.node, &self.style)).unwrap_or_default()
        };
        let (mut before, mut after) = (Compiled::new(), Compiled::new());
        for (name, plan) in &wanted {
            before.insert((*name).clone(), compile(name, self.services.get(*name)));
            after.insert((*name).clone(), compile(name, *plan));
        }
        let servers = before.values().chain(after.values()).flat_map(|rules| &rules.servers);
        let addresses: BTreeSet<Address> = servers.map(|(server, _)| server.address).collect();
        let stood: Vec<_> = addresses.iter().map(|address| self.standing(*address, &mut before)).collect();
        let mut changes = Changes::default();
        for (name, plan) in wanted {
            self.take_over(name, plan, before.get(name), after.get(name));
        }
        for (address, stood) in addresses.into_iter().zip(stood) {
            let stands = self.standing(address, &mut after);
            if stands.is_none() {
                self.owners.remove(&address);
            }
            changes.servers.extend(server_change(address, stood, stands));
        }
        changes.entries = self.entries.difference();
        changes.addresses = changes.entries.links();
        changes.guards = self.guards.difference();
        for (set, _) in &changes.entries.add {
            *self.sizes.entry(*set).or_default() += 1;
        }
        for (set, _) in &changes.entries.remove {
            self.sizes.entry(*set).and_modify(|size| *size -= 1);
        }
        changes
    }

    fn take_over(
        &mut self,
        name: &ServicePortName,
        plan: Option<&Arc<ServicePlan>>,
        before: Option<&ServiceRules>,
        after: Option<&ServiceRules>,
    ) {
        if let Some(rules) = before {
            for (server, _) in &rules.servers {
                self.owners.entry(server.address).and_modify(|owners| _ = owners.remove(name));
            }
            rules.entries.iter().for_each(|entry| self.entries.remove(*entry));
            rules.guards.iter().for_each(|guard| self.guards.remove(*guard));
        }
        if let Some(rules) = after {
            for (server, _) in &rules.servers {
                self.owners.entry(server.address).or_default().insert(name.clone());
            }
            rules.entries.iter().for_each(|entry| self.entries.add(*entry));
            rules.guards.iter().for_each(|guard| self.guards.add(*guard));
        }
        match plan {
            Some(plan) => drop(self.services.insert(name.clone(), plan.clone())),
            None => drop(self.services.remove(name)),
        }
    }

    /// The virtual server at an address, by the plan of the first Service port that wants it. What is compiled for that
    /// is kept.
    fn standing(&self, address: Address, compiled: &mut Compiled) -> Option<Standing> {
        let name = self.owners.get(&address)?.first()?;
        let plan = self.services.get(name)?;
        let rules = compiled.entry(name.clone()).or_insert_with(|| service(name, plan, &self.node, &self.style));
        let (server, pool) = rules.servers.iter().find(|(server, _)| server.address == address)?;
        Some((*server, plan.pool(*pool)))
    }
}

/// The address of the link that comes with an entry.
fn link((set, entry): (Set, Entry)) -> Option<IpAddr> {
    match (set, entry) {
        (Set::IpvsIps, Entry::Ip(ip)) => Some(ip),
        _ => None,
    }
}

fn server_change(address: Address, before: Option<Standing>, after: Option<Standing>) -> Option<ServerChange> {
    match (before, after) {
        (None, None) => None,
        (None, Some((server, pool))) => Some(ServerChange::Add(server, pool.into_iter().map(real_server).collect())),
        (Some(_), None) => Some(ServerChange::Remove(address)),
        (Some((old, old_pool)), Some((new, new_pool))) => {
            let (had, has): (BTreeSet<_>, BTreeSet<_>) = (old_pool.iter().collect(), new_pool.iter().collect());
            let only = |pool: &[Backend], other: &BTreeSet<&Backend>| {
                pool.iter().filter(|backend| !other.contains(backend)).map(|backend| real_server(*backend)).collect()
            };
            let reals = Difference { add: only(&new_pool, &had), remove: only(&old_pool, &has) };
            let set = (old != new).then_some(new);
            (set.is_some() || reals != Difference::default()).then_some(ServerChange::Change { address, set, reals })
        }
    }
}

// === impl Changes ===

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

// === impl ServerChange ===

impl ServerChange {
    /// Where the virtual server is.
    pub fn address(&self) -> Address {
        match self {
            ServerChange::Add(server, _) => server.address,
            ServerChange::Change { address, .. } | ServerChange::Remove(address) => *address,
        }
    }
}

// === impl Difference ===

impl Difference<(Set, Entry)> {
    /// The addresses of the link that come and go with these entries.
    fn links(&self) -> Difference<IpAddr> {
        let links = |entries: &[(Set, Entry)]| entries.iter().copied().filter_map(link).collect();
        Difference { add: links(&self.add), remove: links(&self.remove) }
    }
}

impl<T> Default for Difference<T> {
    fn default() -> Difference<T> {
        Difference { add: Vec::new(), remove: Vec::new() }
    }
}

// === impl Counts ===

impl<T: Copy + Eq + Hash + Ord> Counts<T> {
    fn new() -> Counts<T> {
        Counts { now: HashMap::new(), before: BTreeMap::new() }
    }

    fn add(&mut self, value: T) {
        let count = self.now.entry(value).or_default();
        self.before.entry(value).or_insert(*count);
        *count += 1;
    }

    fn remove(&mut self, value: T) {
        let Some(count) = self.now.get_mut(&value) else { return };
        self.before.entry(value).or_insert(*count);
        *count -= 1;
        if *count == 0 {
            self.now.remove(&value);
        }
    }

    /// What has come and what has gone since the last call.
    fn difference(&mut self) -> Difference<T> {
        let mut difference = Difference::default();
        for (value, before) in std::mem::take(&mut self.before) {
            match (before > 0, self.now.contains_key(&value)) {
                (false, true) => difference.add.push(value),
                (true, false) => difference.remove.push(value),
                (false, false) | (true, true) => {}
            }
        }
        difference
    }
}
