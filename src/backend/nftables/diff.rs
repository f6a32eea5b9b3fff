//! From what Service ports have to what they shall have. The cost is that of the Service ports that change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::compile::{ServiceElements, frontends, label, service};
use super::ruleset::{Element, Frontend, Key, Label, Set, Value};
use crate::model::ServicePortName;
use crate::plan::{Backend, PoolKind, ServicePlan};

/// What the kernel holds of Service ports.
#[derive(Clone, Debug, Default)]
pub struct Held {
    services: BTreeMap<ServicePortName, Arc<ServicePlan>>,
    /// How many want an element that several may want.
    shared: HashMap<(Set, Key), u32>,
    /// Who wants a frontend, in order. The first one has it.
    claims: HashMap<Frontend, SmallVec<[ServicePortName; 1]>>,
    /// How many keep clients with their endpoints for so long.
    timeouts: BTreeMap<u32, u32>,
    /// What was there at the beginning and has not found its owner yet.
    found: Option<HashMap<(Set, Key), Found>>,
    /// Of that, who could use restricted frontends.
    found_sources: HashMap<Frontend, Vec<IpNet>>,
}

/// What was found under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    value: Option<Value>,
    comment: Option<Box<str>>,
}

/// What is to be done about one Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub name: ServicePortName,
    /// Elements that go, in order.
    pub remove: Vec<Element>,
    /// Elements that come, in order. One that has another value now is among both.
    pub add: Vec<Element>,
    /// Whether clients may no longer be with the endpoints they were with.
    pub is_unsettled: bool,
}

/// Names of Services consist of ASCII.
const COMMENT_MAX: usize = 127;

// === impl Held ===

impl Held {
    /// Of a table where these elements were found with their comments, which belong to nobody known yet.
    pub fn of(found: impl IntoIterator<Item = (Element, Option<Box<str>>)>) -> Held {
        let found =
            found.into_iter().map(|(Element { set, key, value }, comment)| ((set, key), Found { value, comment }));
        let found: HashMap<_, _> = found.collect();
        let mut found_sources: HashMap<Frontend, Vec<IpNet>> = HashMap::new();
        for (_, key) in found.keys() {
            if let Key::Allowed(frontend, net) = key {
                found_sources.entry(*frontend).or_default().push(*net);
            }
        }
        Held { found: Some(found), found_sources, ..Held::default() }
    }

    /// Service ports that have elements.
    pub fn names(&self) -> impl Iterator<Item = &ServicePortName> {
        self.services.keys()
    }

    /// For how many seconds clients stay with their endpoints.
    pub fn timeouts(&self) -> BTreeSet<u32> {
        self.timeouts.keys().copied().collect()
    }

    /// Who has a frontend.
    pub fn owner(&self, frontend: Frontend) -> Option<&ServicePortName> {
        self.claims.get(&frontend)?.first()
    }

    /// What was found and belongs to nobody, once all are known: it goes.
    pub fn take_leftovers(&mut self) -> Vec<Element> {
        let found = self.found.take().unwrap_or_default();
        self.found_sources = HashMap::new();
        let mut left: Vec<Element> =
            found.into_iter().map(|((set, key), Found { value, .. })| Element { set, key, value }).collect();
        left.sort_unstable();
        left
    }

    /// What was found of a Service port stays, though it is not known what it has.
    pub fn leave_alone(&mut self, name: &ServicePortName, plan: &ServicePlan) {
        let Some(found) = &mut self.found else { return };
        let frontends = frontends(name, plan);
        let shared = service(name, plan, |_| false).shared;
        found.retain(|(set, key), _| match key {
            Key::Frontend(frontend) | Key::Slot(frontend, _) | Key::Allowed(frontend, _) => {
                !frontends.contains(frontend)
            }
            Key::Label(of) => PoolKind::ALL.iter().all(|pool| *of != label(name, *pool)),
            Key::Ip(_) | Key::Hairpin(..) | Key::Client(..) => {
                !shared.iter().any(|element| (element.set, element.key) == (*set, *key))
            }
        });
    }

    /// Of clients that were found in [`Set::Clients`], those that are with an endpoint that their Service port no longer has.
    pub fn stale_clients(&self, clients: impl IntoIterator<Item = Element>) -> Vec<Element> {
        let keeps = self.services.iter().filter(|(_, plan)| plan.affinity_seconds.is_some());
        let pools = keeps.flat_map(|(name, plan)| {
            let pool = |kind| (label(name, kind), plan.pool(kind).into_iter().collect());
            PoolKind::ALL.map(pool)
        });
        let known: HashMap<Label, BTreeSet<Backend>> = pools.collect();
        let stays = |client: &Element| match (client.key, client.value) {
            (Key::Client(label, _), Some(Value::Endpoint(endpoint))) => {
                known.get(&label).is_some_and(|endpoints| endpoints.contains(&endpoint))
            }
            _ => false,
        };
        clients.into_iter().filter(|client| !stays(client)).collect()
    }

    /// Everything that Service ports have.
    pub fn elements(&self) -> impl Iterator<Item = (Element, Option<&ServicePortName>)> {
        let own = self.services.iter().flat_map(|(name, plan)| {
            let elements = self.compile(name, plan).own;
            elements.into_iter().map(move |element| (element, Some(name)))
        });
        let shared = self.shared.keys().map(|(set, key)| (Element { set: *set, key: *key, value: None }, None));
        own.chain(shared)
    }

    /// Changes what these Service ports have, or forgets them. Service ports that lose a frontend to one of these, or get it
    /// from one, change, too.
    pub fn set<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a ServicePortName, Option<&'a Arc<ServicePlan>>)>,
    ) -> Vec<Change> {
        let wanted: BTreeMap<_, _> =
            wanted.into_iter().filter(|(name, plan)| self.services.get(*name) != *plan).collect();
        let mut names: BTreeSet<ServicePortName> = wanted.keys().copied().cloned().collect();
        for (name, plan) in &wanted {
            let before = self.services.get(*name).map(|plan| frontends(name, plan));
            let after = plan.map(|plan| frontends(name, plan));
            for frontend in before.into_iter().chain(after).flatten() {
                names.extend(self.claims.get(&frontend).into_iter().flatten().cloned());
            }
        }
        let compile = |this: &Held, name: &ServicePortName| {
            this.services.get(name).map(|plan| this.compile(name, plan)).unwrap_or_default()
        };
        let before: Vec<ServiceElements> = names.iter().map(|name| compile(self, name)).collect();
        let had: Vec<_> = names.iter().map(|name| self.services.get(name).cloned()).collect();
        for (name, plan) in &wanted {
            self.claim(name, *plan);
        }
        let mut changes = Vec::new();
        for ((name, before), had) in names.into_iter().zip(before).zip(had) {
            let after = compile(self, &name);
            let mut change = Change { name, remove: Vec::new(), add: Vec::new(), is_unsettled: false };
            let comment = comment(&change.name);
            self.compare(&before.own, &after.own, &comment, &mut change);
            self.share(&before.shared, &after.shared, &mut change);
            let now = self.services.get(&change.name).map(|plan| &**plan);
            change.is_unsettled = had.is_some_and(|had| is_unsettled(&had, now));
            if !change.remove.is_empty() || !change.add.is_empty() {
                changes.push(change);
            }
        }
        changes
    }

    fn compile(&self, name: &ServicePortName, plan: &ServicePlan) -> ServiceElements {
        service(name, plan, |frontend| self.owner(frontend) == Some(name))
    }

    /// Notes who wants which frontend.
    fn claim(&mut self, name: &ServicePortName, plan: Option<&Arc<ServicePlan>>) {
        let before = match plan {
            Some(plan) => self.services.insert(name.clone(), plan.clone()),
            None => self.services.remove(name),
        };
        if let Some(before) = before {
            for frontend in frontends(name, &before) {
                if let Some(claims) = self.claims.get_mut(&frontend) {
                    claims.retain(|claim| claim != name);
                    if claims.is_empty() {
                        self.claims.remove(&frontend);
                    }
                }
            }
            if let Some(count) = before.affinity_seconds.and_then(|seconds| self.timeouts.get_mut(&seconds)) {
                *count -= 1;
            }
        }
        if let Some(plan) = plan {
            for frontend in frontends(name, plan) {
                let claims = self.claims.entry(frontend).or_default();
                claims.push(name.clone());
                claims.sort_unstable();
            }
            if let Some(seconds) = plan.affinity_seconds {
                *self.timeouts.entry(seconds).or_default() += 1;
            }
        }
        self.timeouts.retain(|_, count| *count > 0);
    }

    /// Both in order.
    fn compare(&mut self, before: &[Element], after: &[Element], comment: &str, change: &mut Change) {
        let place = |element: &&Element| (element.set, element.key);
        let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
        loop {
            match (before.peek().map(place), after.peek().map(place)) {
                (None, None) => return,
                (Some(old), Some(new)) if old == new => {
                    if let (Some(old), Some(new)) = (before.next(), after.next())
                        && old != new
                    {
                        change.remove.push(*old);
                        change.add.push(*new);
                    }
                }
                (Some(old), new) if new.is_none_or(|new| old < new) => change.remove.extend(before.next()),
                _ => {
                    if let Some(new) = after.next() {
                        self.add(*new, Some(comment), change);
                    }
                }
            }
        }
    }

    /// An element comes, unless it is there.
    fn add(&mut self, element: Element, comment: Option<&str>, change: &mut Change) {
        let there = self.found.as_mut().and_then(|found| found.remove(&(element.set, element.key)));
        match there {
            Some(Found { value, comment: said }) if value == element.value && said.as_deref() == comment => {}
            Some(Found { value, .. }) => {
                change.remove.push(Element { value, ..element });
                change.add.push(element);
            }
            None => {
                self.make_way(element, change);
                change.add.push(element);
            }
        }
    }

    /// The kernel refuses ranges that overlap: those that were found go before others come.
    fn make_way(&mut self, element: Element, change: &mut Change) {
        let (Key::Allowed(frontend, net), Some(found)) = (element.key, &mut self.found) else { return };
        for other in self.found_sources.get(&frontend).into_iter().flatten() {
            let key = Key::Allowed(frontend, *other);
            let overlaps = net.contains(other) || other.contains(&net);
            if overlaps && found.remove(&(element.set, key)).is_some() {
                change.remove.push(Element { key, ..element });
            }
        }
    }

    fn share(&mut self, before: &[Element], after: &[Element], change: &mut Change) {
        // First those that come: what stays is never without anybody who wants it.
        for element in after {
            let count = self.shared.entry((element.set, element.key)).or_default();
            *count += 1;
            if *count == 1 {
                self.add(*element, None, change);
            }
        }
        for element in before {
            let place = (element.set, element.key);
            let Some(count) = self.shared.get_mut(&place) else { continue };
            *count -= 1;
            if *count == 0 {
                self.shared.remove(&place);
                change.remove.push(*element);
            }
        }
    }
}

/// What is said about the elements of a Service port. (`nft` takes no more than 127 characters.)
pub fn comment(name: &ServicePortName) -> String {
    let mut comment = name.to_string();
    comment.truncate(COMMENT_MAX);
    comment
}

/// Whether a pool no longer has an endpoint that it had, or no longer keeps its clients, if it did.
fn is_unsettled(before: &ServicePlan, after: Option<&ServicePlan>) -> bool {
    let keeps = |plan: &ServicePlan| plan.affinity_seconds.is_some();
    let Some(after) = after.filter(|after| keeps(after)) else { return keeps(before) };
    let lost = |kind| {
        let now: BTreeSet<Backend> = after.pool(kind).into_iter().collect();
        !before.pool(kind).iter().all(|endpoint| now.contains(endpoint))
    };
    keeps(before) && PoolKind::ALL.into_iter().any(lost)
}
