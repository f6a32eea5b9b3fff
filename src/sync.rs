//! One turn of the line, for one IP family: dirty Services are planned, and the plan is applied.
//!
//! A [`Pipeline`] stays with the task that owns the cluster state; its [`Worker`] (the plan and the
//! backend) is lent to a task of its own while the kernel is being written, and meanwhile the
//! pipeline only notes what becomes dirty.

pub mod drive;
pub mod notice;
pub mod pacer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::backend::{ApplyError, Backend, Intact, Report, Scope};
use crate::cluster::{Changed, ClusterState};
use crate::model::{Node, ServiceName, ServicePortName};
use crate::net::IpFamily;
use crate::plan::build::{PlanContext, Settings, node_plan};
use crate::plan::{NodePlan, Plan};
use pacer::{Ended, Instant, Occasion, Pace, Pacer};

/// What one IP family does with events.
pub struct Pipeline<B> {
    family: IpFamily,
    settings: Arc<Settings>,
    dirty: Dirty,
    /// When to sync.
    pub pacer: Pacer,
    worker: Option<Worker<B>>,
}

/// How many Services that changed last come first where everything is to be looked at: more than change
/// while the proxy is started anew, few enough that others do not wait for them.
const PREFERRED: usize = 32;

/// What became dirty since the last planning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dirty {
    services: BTreeSet<ServiceName>,
    /// The node's own properties or addresses.
    node: bool,
    /// All of it.
    everything: bool,
}

/// What is lent while the kernel is being written.
pub struct Worker<B> {
    context: Option<PlanContext>,
    plan: Plan,
    backend: B,
}

/// A worker with its order.
pub struct Job<B> {
    worker: Worker<B>,
    occasion: Occasion,
    scope: Scope,
}

/// How a job ended; the worker comes back with it.
pub struct Done<B> {
    worker: Worker<B>,
    /// Why it began.
    pub occasion: Occasion,
    /// What it was about.
    pub scope: Scope,
    /// The backend's answer.
    pub result: Result<Report, ApplyError>,
}

// === impl Pipeline ===

impl<B: Backend> Pipeline<B> {
    /// A pipeline that has not planned anything yet.
    pub fn new(family: IpFamily, settings: Arc<Settings>, pace: Pace, backend: B) -> Pipeline<B> {
        let node = Arc::new(NodePlan::unknown(family));
        let plan = Plan::new(node, BTreeMap::new());
        let worker = Worker { context: None, plan, backend };
        let dirty = Dirty { everything: true, ..Dirty::default() };
        Pipeline { family, settings, dirty, pacer: Pacer::new(pace), worker: Some(worker) }
    }

    /// The family served.
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// Notes what an event changed; true if it concerns this family, which then wants a sync.
    pub fn mark(&mut self, changed: &Changed) -> bool {
        let concerned = match changed {
            Changed::Nothing => false,
            Changed::Service(name, families) => {
                let concerned = families.contains(self.family);
                if concerned {
                    self.dirty.services.insert(name.clone());
                }
                concerned
            }
            Changed::Services(names) => {
                self.dirty.services.extend(names.iter().cloned());
                !names.is_empty()
            }
            Changed::Node => {
                self.dirty.node = true;
                true
            }
        };
        if concerned {
            self.pacer.request();
        }
        concerned
    }

    /// The kernel may not hold what it should, or the node's addresses may have changed: compare
    /// everything in the next sync.
    pub fn mark_everything(&mut self) {
        self.dirty.everything = true;
        self.pacer.request();
    }

    /// Whether the worker is here.
    pub fn is_idle(&self) -> bool {
        self.worker.is_some()
    }

    /// Plans what is dirty and hands the worker out; `None` if it is out already.
    pub fn begin(&mut self, state: &ClusterState, now: Instant) -> Option<Job<B>> {
        let mut worker = self.worker.take()?;
        let goes_on = self.pacer.is_unfinished();
        let occasion = self.pacer.begin(now);
        self.dirty.everything |= !goes_on && occasion != Occasion::Request;
        let dirty = std::mem::take(&mut self.dirty);
        let scope = match worker.plan(self.family, &self.settings, state, dirty) {
            Scope::Everything if occasion == Occasion::Audit => Scope::Audit,
            scope => scope,
        };
        if !matches!(scope, Scope::Services(_)) {
            worker.backend.prefer(state.recent(PREFERRED));
        }
        Some(Job { worker, occasion, scope })
    }

    /// Takes the worker back.
    pub fn end(&mut self, done: Done<B>, now: Instant) -> Result<Report, ApplyError> {
        self.worker = Some(done.worker);
        self.pacer.end(
            now,
            match &done.result {
                Ok(report) if !report.is_finished() => Ended::Unfinished,
                Ok(Report { set_aside: 0, .. }) => Ended::Complete,
                Ok(Report { refused, .. }) => Ended::Incomplete { anew: !refused.is_empty() },
                Err(_) => Ended::Failed,
            },
        );
        done.result
    }

    /// Lends the worker without an order, to look whether the kernel still holds its rules.
    pub fn lend(&mut self) -> Option<Worker<B>> {
        self.worker.take()
    }

    /// Takes back what was lent.
    pub fn give_back(&mut self, worker: Worker<B>) {
        self.worker = Some(worker);
    }
}

// === impl Worker ===

impl<B: Backend> Worker<B> {
    fn plan(&mut self, family: IpFamily, settings: &Settings, state: &ClusterState, mut dirty: Dirty) -> Scope {
        let unknown = Node::default();
        let node = state.node().map_or(&unknown, |node| &**node);
        if dirty.node || dirty.everything {
            let addresses = state.addresses().unwrap_or_default();
            let node_plan = node_plan(family, settings, node, addresses, &state.service_cidrs());
            if *self.plan.node != node_plan {
                self.plan.node = Arc::new(node_plan);
            }
            let context = PlanContext::new(family, settings, node);
            if self.context.as_ref() != Some(&context) {
                self.context = Some(context);
                dirty.everything = true;
            }
        }
        let context = self.context.get_or_insert_with(|| PlanContext::new(family, settings, node));
        if dirty.everything {
            let planned = state.services().flat_map(|(service, slices)| context.plan(service, slices));
            let mut services: BTreeMap<_, _> = planned.map(|(name, plan)| (name, Arc::new(plan))).collect();
            // Equal plans stay the same object, which makes comparing them free.
            for (name, plan) in &mut services {
                if let Some(known) = self.plan.services().get(name).filter(|known| *known == plan) {
                    *plan = known.clone();
                }
            }
            self.plan = Plan::new(self.plan.node.clone(), services);
            return Scope::Everything;
        }
        let mut touched = BTreeSet::new();
        for name in &dirty.services {
            let known: Vec<ServicePortName> = self.plan.ports_of(name).cloned().collect();
            let planned: Vec<_> =
                state.service(name).into_iter().flat_map(|(service, slices)| context.plan(service, slices)).collect();
            for port in known {
                if !planned.iter().any(|(name, _)| *name == port) {
                    self.plan.set(port.clone(), None);
                    touched.insert(port);
                }
            }
            for (port, plan) in planned {
                if self.plan.services().get(&port).is_none_or(|known| **known != plan) {
                    self.plan.set(port.clone(), Some(Arc::new(plan)));
                    touched.insert(port);
                }
            }
        }
        Scope::Services(touched)
    }

    /// Whether the kernel still holds its rules, as far as a short look can tell.
    pub async fn check(&mut self) -> Result<Intact, ApplyError> {
        self.backend.check().await
    }
}

// === impl Job ===

impl<B: Backend> Job<B> {
    /// What it is about.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What the kernel is to be brought to.
    pub fn plan(&self) -> &Plan {
        &self.worker.plan
    }

    /// Writes the kernel.
    pub async fn run(mut self) -> Done<B> {
        let result = self.worker.backend.sync(&self.worker.plan, &self.scope).await;
        Done { worker: self.worker, occasion: self.occasion, scope: self.scope, result }
    }
}

// === impl Done ===

impl<B> Done<B> {
    /// What the kernel was to be brought to.
    pub fn plan(&self) -> &Plan {
        &self.worker.plan
    }
}

#[cfg(test)]
mod tests;
