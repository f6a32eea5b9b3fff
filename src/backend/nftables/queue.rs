//! Service ports that are still to be looked at, the most important ones first.

use std::collections::BTreeSet;

use crate::backend::importance::importance;
use crate::model::{ServiceName, ServicePortName};
use crate::plan::{Plan, ServicePlan};

/// Service ports that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    pending: BTreeSet<(u8, ServicePortName)>,
    /// Services that changed last.
    recent: BTreeSet<ServiceName>,
}

// === impl Queue ===

impl Queue {
    /// These Services changed last, and come soon.
    pub fn prefer(&mut self, recent: BTreeSet<ServiceName>) {
        let names: Vec<ServicePortName> = std::mem::take(&mut self.pending).into_iter().map(|(_, name)| name).collect();
        self.recent = recent;
        self.extend(&names);
    }

    /// These wait, too.
    pub fn extend<'a>(&mut self, names: impl IntoIterator<Item = &'a ServicePortName>) {
        self.pending.extend(names.into_iter().map(|name| (importance(name, &self.recent), name.clone())));
    }

    /// These wait, before all others.
    pub fn put_first<'a>(&mut self, names: impl IntoIterator<Item = &'a ServicePortName>) {
        for name in names {
            self.pending.remove(&(importance(name, &self.recent), name.clone()));
            self.pending.insert((0, name.clone()));
        }
    }

    /// Nobody waits.
    pub fn clear(&mut self) {
        self.pending.clear();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The first ones, which have about so many elements, at least one.
    pub fn next(&mut self, plan: &Plan, elements: usize) -> Vec<ServicePortName> {
        let (mut names, mut many) = (Vec::new(), 0);
        while many < elements
            && let Some((_, name)) = self.pending.pop_first()
        {
            many += plan.services().get(&name).map_or(1, |plan| size(plan));
            names.push(name);
        }
        names
    }
}

/// About how many elements a Service port has.
fn size(plan: &ServicePlan) -> usize {
    plan.frontends.len() * (2 + plan.cluster.len() + plan.local.len())
}
