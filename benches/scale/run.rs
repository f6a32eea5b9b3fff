//! One run: one proxy, one variant, one size, in a namespace of its own, section after section.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ferrule::sync::pacer::LONGEST_PAUSE;
use serde::{Deserialize, Serialize};

use crate::api::{Api, Kind};
use crate::bare::{self, Bare};
use crate::cluster::{BIG_IP, Cluster, DNS, KUBERNETES, POD_PORT, cluster_ip};
use crate::compile::{self, Compiled};
use crate::connect::Connects;
use crate::figures::{self, Figure, Section, Unit};
use crate::nftables::{self, Elements, Monitor};
use crate::options::RulesLayout;
use crate::process::{Usage, await_quiet_machine, stolen};
use crate::proxy::{Proxy, Subject};
use crate::rules::Rules;
use crate::world::{INTERVAL, PROBES, Variant, World, await_endpoint, call, call_within};

/// What explains a figure that is worse than usual: the host had something else to do.
const STOLEN: &str = "taken by the host meanwhile (steal)";

/// What is to be done, as one process tells another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub dir: PathBuf,
    pub subject: Subject,
    pub variant: Variant,
    pub services: usize,
    pub endpoints: usize,
    pub dual_stack: bool,
    pub rules: RulesLayout,
    pub sections: Vec<Section>,
    pub limits: Limits,
    /// The bare tool's best start.
    pub bare: Option<Bare>,
    /// Services in one input of the bare tool, if that is all that is to be measured.
    pub split: Option<usize>,
}

/// How much is done of everything.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Changes one by one.
    pub changes: usize,
    /// Connections one by one.
    pub connects: usize,
    /// For so long Services change all the time.
    pub churn: Duration,
    /// The pause that counts as quiet where all must be over.
    pub quiet: Duration,
    /// Slices of the Service that is replaced step by step meanwhile.
    pub steps: usize,
    /// The longest wait for all rules.
    pub rules: Duration,
}

/// A pseudo-random order that is the same each time.
struct Dice(u64);

/// A run under way.
struct Run {
    order: Order,
    world: World,
    cluster: Cluster,
    api: Api,
    proxy: Option<Proxy>,
    dice: Dice,
}

/// What the process is there for that got an order.
pub fn obey(order: Order) {
    let world = World::enter(order.variant, &order.dir);
    let cluster = Cluster::new(order.services, order.endpoints, order.dual_stack);
    if let Some(split) = order.split {
        println!("{}", serde_json::to_string(&bare::start(&world, &cluster, order.rules, split)).unwrap());
        return;
    }
    world.wire();
    let api = Api::start(&cluster);
    let (service, slice) = (api.mean_size(Kind::Service), api.mean_size(Kind::EndpointSlice));
    if order.subject == Subject::Ferrule {
        eprintln!("scale:   objects of {service} (Service) and {slice} bytes (EndpointSlice)");
    }
    let mut run = Run { order, world, cluster, api, proxy: None, dice: Dice(42) };
    run.all();
}

// === impl Dice ===

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % sides as u64).unwrap()
    }
}

// === impl Run ===

impl Run {
    fn wants(&self, section: Section) -> bool {
        self.order.sections.contains(&section)
    }

    /// Hands a figure over at once, so that nothing is lost if the rest takes too long.
    fn note(&self, section: Section, name: &str, value: f64, unit: Unit, bare: Option<f64>) {
        if !self.wants(section) {
            return;
        }
        let Order { variant, rules, services, endpoints, subject, .. } = self.order;
        let name = name.to_owned();
        let figure = Figure { section, variant, rules, services, endpoints, subject, name, value, unit, bare };
        eprintln!("scale:   {}: {}", figure.name, unit.show(value));
        println!("{}", serde_json::to_string(&figure).unwrap());
        let _ = std::io::stdout().flush();
    }

    fn seconds(&self, section: Section, name: &str, value: Duration, bare: Option<f64>) {
        self.note(section, name, value.as_secs_f64(), Unit::Seconds, bare);
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it was started")
    }

    fn all(&mut self) {
        await_quiet_machine(Duration::from_secs(20));
        if self.wants(Section::Connect) {
            self.connect_without_rules();
        }
        let before = stolen();
        if !self.start() {
            return;
        }
        self.seconds(Section::Start, STOLEN, stolen() - before, None);
        let first = self.proxy().sampler.usage();
        self.mebibytes(figures::RSS, first.rss);
        self.mebibytes("peak until then", first.peak);
        if self.wants(Section::Connect) {
            let before = stolen();
            self.connect();
            self.seconds(Section::Connect, STOLEN, stolen() - before, None);
        }
        if self.wants(Section::Change) {
            let before = stolen();
            self.change();
            self.seconds(Section::Change, STOLEN, stolen() - before, None);
        }
        if self.wants(Section::Churn) {
            let before = stolen();
            self.churn();
            self.seconds(Section::Churn, STOLEN, stolen() - before, None);
        }
        let last = self.proxy().sampler.usage();
        self.mebibytes("resident at the end", last.rss);
        self.mebibytes(figures::PEAK, last.peak);
        self.mebibytes(figures::CHILD, last.child);
        self.mebibytes("peak of all together", last.group);
        if self.wants(Section::Restart) {
            let before = stolen();
            self.restart();
            self.seconds(Section::Restart, STOLEN, stolen() - before, None);
        }
        if let Some(proxy) = self.proxy.take() {
            proxy.terminate();
        }
        if self.wants(Section::Compile) && self.order.subject == Subject::Ferrule {
            await_quiet_machine(Duration::from_secs(20));
            let Compiled { plan, rules, text } = compile::measure(&self.cluster, self.order.rules);
            self.seconds(Section::Compile, figures::COMPILE, plan + rules, None);
            self.seconds(Section::Compile, "of that, the plan", plan, None);
            self.seconds(Section::Compile, "rules and their text, as one input", text, None);
        }
    }

    fn mebibytes(&self, name: &str, kibibytes: u64) {
        self.note(Section::Memory, name, kibibytes as f64 / 1024.0, Unit::Mebibytes, None);
    }

    /// Into an empty kernel.
    fn start(&mut self) -> bool {
        // Others than ferrule have other sets.
        let is_ours = (self.order.variant, self.order.subject) == (Variant::Nftables, Subject::Ferrule);
        let elements = is_ours.then(|| Elements::of(&nftables::text(&self.cluster)));
        let probers = [KUBERNETES, DNS].map(first_answer);
        self.proxy = Some(Proxy::start(self.order.subject, &self.world, &self.api.url(), self.order.rules));
        let (cluster, limit) = (&self.cluster, self.order.limits.rules);
        let proxy = self.proxy.as_mut().unwrap();
        let started = proxy.started;
        let done = match elements {
            Some(elements) => nftables::await_elements(&elements, cluster, proxy, limit),
            None => proxy.await_rules(cluster, limit),
        };
        let usage = proxy.sampler.usage();
        let answers = probers.map(Caller::stop);
        for (name, at) in [figures::FIRST_KUBERNETES, figures::FIRST_DNS].iter().zip(answers) {
            if let Some(at) = at {
                self.seconds(Section::Start, name, at - started, None);
            }
        }
        let Some(done) = done else {
            // What was used until it was given up is worth knowing.
            self.seconds(Section::Start, figures::GAVE_UP, started.elapsed(), None);
            self.cpu(Section::Start, &Usage::default(), &usage, None);
            return false;
        };
        self.seconds(Section::Start, figures::RULES_IN, done - started, self.order.bare.map(|bare| bare.wall));
        self.cpu(Section::Start, &Usage::default(), &usage, self.order.bare.map(|bare| bare.cpu));
        let bare_longest = self.order.bare.map(|bare| bare.longest);
        self.seconds(Section::Start, figures::LONGEST, usage.longest, bare_longest);
        if let Some(transaction) = self.proxy().transaction() {
            self.seconds(Section::Start, figures::TRANSACTION, transaction, None);
        }
        self.note(Section::Start, "programs run", usage.programs as f64, Unit::Number, None);
        let wrong = self.wrong_services();
        self.note(Section::Start, figures::WRONG, wrong as f64, Unit::Number, None);
        self.proxy().await_quiet(Duration::from_secs(1), Duration::from_secs(30));
        true
    }

    fn cpu(&self, section: Section, before: &Usage, after: &Usage, bare: Option<f64>) {
        let (own, tools) = (after.own - before.own, after.tools - before.tools);
        self.seconds(section, "CPU of the proxy itself", own, None);
        self.seconds(section, "CPU of the programs it ran", tools, bare);
    }

    /// Connects to every Service: how many do not answer, or with what is no endpoint of theirs.
    fn wrong_services(&self) -> usize {
        let is_right = |service: &usize| {
            // A second try, because a connection may get stuck on a busy machine.
            let reached = call(cluster_ip(*service)).or_else(|| call(cluster_ip(*service)));
            reached.is_some_and(|reached| self.cluster.pods(*service).any(|pod| pod == reached))
        };
        (0..self.cluster.services).filter(|service| !is_right(service)).count()
    }

    /// Connections to endpoints, where there are no rules yet.
    fn connect_without_rules(&mut self) {
        let mut connects = Connects::default();
        for _ in 0..self.order.limits.connects {
            connects.add(self.any_endpoint());
        }
        if let Some(time) = connects.percentile(50) {
            self.note(Section::Connect, "to an endpoint, before there are rules: median", time, Unit::Seconds, None);
        }
    }

    /// Connections to Services all over the cluster, each followed by one to an endpoint: that looks for a Service in vain.
    fn connect(&mut self) {
        let (mut services, mut endpoints) = (Connects::default(), Connects::default());
        for _ in 0..self.order.limits.connects {
            services.add(cluster_ip(self.dice.throw(self.cluster.services)));
            endpoints.add(self.any_endpoint());
        }
        let figures = [
            (figures::CONNECT, services.percentile(50)),
            ("the same, 99 of 100 within", services.percentile(99)),
            ("to an endpoint, past the rules: median", endpoints.percentile(50)),
            ("the same, 99 of 100 within", endpoints.percentile(99)),
        ];
        for (name, time) in figures {
            if let Some(time) = time {
                self.note(Section::Connect, name, time, Unit::Seconds, None);
            }
        }
        let failed = services.failed + endpoints.failed;
        self.note(Section::Connect, figures::CONNECT_FAILED, failed as f64, Unit::Number, None);
    }

    fn any_endpoint(&mut self) -> (Ipv4Addr, u16) {
        let service = self.dice.throw(self.cluster.services);
        (self.cluster.pods(service).next().expect("an endpoint"), POD_PORT)
    }

    /// One endpoint after the other is replaced, and the bare tool does the like to other Services.
    fn change(&mut self) {
        // In nftables mode, what somebody else takes away is put back: then both were to be measured together.
        let has_bare = self.order.subject == Subject::Ferrule && self.order.variant != Variant::Nftables;
        let rules = has_bare.then(|| Rules::new(&self.cluster, self.order.rules));
        let half = self.cluster.services / 2;
        let (mut times, mut bare, mut own, mut tools) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut stages = [(0.0, 0.0); 2];
        let stage = |proxy: &Proxy| {
            ["stage=\"plan\"", "stage=\"diff\""]
                .map(|stage| proxy.histogram("ferrule_change_stage_duration_seconds", stage))
        };
        let before_stages = stage(self.proxy());
        for n in 0..self.order.limits.changes {
            // The bare tool's turn is in between, so that both meet the same machine.
            if let Some(rules) = &rules {
                let service = half + (n / 2) % half.max(1);
                let address = cluster_ip(service);
                if let Some(inputs) = rules.replacement(&address.0.to_string(), "10.220.0.1") {
                    // Whoever waits for ferrule's change to be served takes time from the tool, too.
                    let prober = keep_calling(address, PROBES);
                    bare.extend(bare::write(&self.world, &inputs[n % 2]));
                    prober.stop();
                }
            }
            // The first change after a quiet time: ferrule pauses after a write that took long.
            let last = times.last().copied().unwrap_or_default();
            thread::sleep((INTERVAL + INTERVAL / 4).max(3 * last).min(LONGEST_PAUSE));
            let service = self.dice.throw(half.max(1));
            let before = self.proxy().sampler.usage();
            let (slice, pod) = self.cluster.replace_one(service);
            let written = Instant::now();
            self.api.put(Kind::EndpointSlice, slice.name, slice.object);
            match await_endpoint(cluster_ip(service), Duration::from_secs(60), |reached| reached == pod) {
                Some(at) => times.push(at - written),
                None => eprintln!("scale: a change was not served within a minute"),
            }
            self.proxy().await_quiet(Duration::from_millis(100), Duration::from_secs(20));
            let after = self.proxy().sampler.usage();
            own.push(after.own - before.own);
            tools.push(after.tools - before.tools);
        }
        for ((each, after), before) in stages.iter_mut().zip(stage(self.proxy())).zip(before_stages) {
            *each = (after.0 - before.0, after.1 - before.1);
        }
        let count = u32::try_from(times.len().max(1)).unwrap();
        let bare_median = median(&mut bare).map(|time| time.as_secs_f64());
        if let Some(time) = median(&mut times) {
            self.seconds(Section::Change, figures::CHANGE, time, bare_median);
            self.seconds(
                Section::Change,
                "the same, slowest",
                *times.last().unwrap(),
                bare.last().map(Duration::as_secs_f64),
            );
        }
        if let Some(own) = median(&mut own) {
            self.seconds(Section::Change, figures::CHANGE_CPU, own, None);
        }
        if stages[0].1 > 0.0 {
            let each = stages[0].0 / stages[0].1 + stages[1].0 / stages[1].1.max(1.0);
            self.note(Section::Change, figures::CHANGE_PLAN, each, Unit::Seconds, None);
        }
        let tools = tools.iter().sum::<Duration>() / count;
        self.seconds(Section::Change, "CPU per change: programs it ran", tools, None);
    }

    /// Services change all the time, and in the middle of it a big one is replaced step by step.
    fn churn(&mut self) {
        const RATE: u32 = 20;
        let steps = self.order.limits.steps;
        let (key, object) = Cluster::big_service();
        self.api.put(Kind::Service, key.clone(), object);
        let mut first = Vec::new();
        for at in 0..steps {
            let (slice, pods) = Cluster::big_slice(at, 0);
            self.api.put(Kind::EndpointSlice, slice.name, slice.object);
            first = pods;
        }
        if await_endpoint(BIG_IP, Duration::from_secs(60), |reached| first.contains(&reached)).is_none() {
            eprintln!("scale: the big Service was not served within a minute");
        }
        self.proxy().await_quiet(self.order.limits.quiet, Duration::from_secs(60));
        let before = self.proxy().sampler.usage();
        let length = self.order.limits.churn;
        let began = Instant::now();
        let total = usize::try_from(length.as_millis() * u128::from(RATE) / 1000).unwrap();
        let shared = Arc::new(self.api.handle());
        let waiting: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let rolling = thread::spawn({
            let (api, waiting) = (shared, waiting.clone());
            // Steps are spread over the middle half.
            let (pause, begin) = (length / 2 / u32::try_from(steps).unwrap(), length / 4);
            move || {
                thread::sleep(begin);
                for at in 0..steps {
                    let (slice, pods) = Cluster::big_slice(at, 1);
                    let written = Instant::now();
                    api.put(Kind::EndpointSlice, slice.name, slice.object);
                    let served = await_endpoint(BIG_IP, Duration::from_secs(30), |reached| pods.contains(&reached));
                    waiting.lock().unwrap().push(served.map_or(Duration::from_secs(30), |at| at - written));
                    thread::sleep(pause.saturating_sub(written.elapsed()));
                }
            }
        });
        let mut last = (0, Ipv4Addr::UNSPECIFIED);
        for n in 0..total {
            let due = began + Duration::from_secs(1) / RATE * u32::try_from(n).unwrap();
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let service = self.dice.throw(self.cluster.services);
            let (slice, pod) = self.cluster.replace_one(service);
            last = (service, pod);
            self.api.put(Kind::EndpointSlice, slice.name, slice.object);
        }
        let written = Instant::now();
        let served = await_endpoint(cluster_ip(last.0), Duration::from_secs(120), |reached| reached == last.1);
        let _ = rolling.join();
        self.proxy().await_quiet(INTERVAL + INTERVAL / 2, Duration::from_secs(60));
        let after = self.proxy().sampler.usage();
        let (own, tools) = (after.own - before.own, after.tools - before.tools);
        self.seconds(Section::Churn, figures::CHURN_CPU, own + tools, None);
        self.seconds(Section::Churn, "of that, the proxy itself", own, None);
        if let Some(served) = served {
            self.seconds(Section::Churn, figures::CHURN_LAG, served - written, None);
        }
        let mut waited = waiting.lock().unwrap().clone();
        if let Some(middle) = median(&mut waited) {
            self.seconds(Section::Churn, figures::ROLLING, *waited.last().unwrap(), None);
            self.seconds(Section::Churn, "rolling update: median step", middle, None);
        }
        self.note(Section::Churn, figures::WRONG, self.wrong_services() as f64, Unit::Number, None);
        for at in 0..steps {
            self.api.delete(Kind::EndpointSlice, &Cluster::big_slice(at, 1).0.name);
        }
        self.api.delete(Kind::Service, &key);
        // Until its chains are gone, or a restart would find them left.
        thread::sleep(LONGEST_PAUSE);
        self.proxy().await_quiet(self.order.limits.quiet, Duration::from_secs(60));
    }

    /// Ends it and starts it again: once undisturbed, then while a Service changes.
    fn restart(&mut self) {
        let changes = [(500, figures::SERVED_EARLY), (2_000, figures::SERVED_LATER), (4_000, figures::SERVED_LAST)];
        for change in std::iter::once(None).chain(changes.into_iter().map(Some)) {
            if let Some(proxy) = self.proxy.take() {
                proxy.terminate();
            }
            let monitor =
                (change.is_none() && self.order.variant == Variant::Nftables).then(|| Monitor::start(&self.world));
            await_quiet_machine(Duration::from_secs(10));
            let prober = keep_calling(cluster_ip(self.cluster.services / 2), Duration::from_millis(2));
            self.proxy = Some(Proxy::start(self.order.subject, &self.world, &self.api.url(), self.order.rules));
            let (started, limit) = (self.proxy().started, self.order.limits.rules);
            if let Some((after, name)) = change {
                thread::sleep((started + Duration::from_millis(after)).saturating_duration_since(Instant::now()));
                let service = self.dice.throw(self.cluster.services);
                let (slice, pod) = self.cluster.replace_one(service);
                let written = Instant::now();
                self.api.put(Kind::EndpointSlice, slice.name, slice.object);
                let served = await_endpoint(cluster_ip(service), limit, |reached| reached == pod);
                self.seconds(Section::Restart, name, served.map_or(limit, |at| at - written), None);
            }
            let proxy = self.proxy.as_mut().unwrap();
            let done = proxy.await_rules(&self.cluster, limit);
            let at_done = proxy.sampler.usage();
            let Some(done) = done else {
                self.seconds(Section::Restart, figures::GAVE_UP, started.elapsed(), None);
                prober.stop();
                return;
            };
            self.proxy().await_quiet(self.order.limits.quiet, limit);
            let at_rest = self.proxy().sampler.usage();
            let calls = prober.stop();
            let (made, failed) = (calls.made as f64, calls.failed as f64);
            if let Some((after, _)) = change {
                let name = format!("the same with the change after {:.1} s", after as f64 / 1e3);
                self.note(Section::Restart, &name, failed, Unit::Number, None);
                continue;
            }
            self.seconds(Section::Restart, "until the first sync is done", done - started, None);
            self.seconds(Section::Restart, "CPU with the tools until then", at_done.own + at_done.tools, None);
            self.seconds(Section::Restart, figures::RESTART_CPU, at_rest.own + at_rest.tools, None);
            self.seconds(Section::Restart, "of that, the proxy itself", at_rest.own, None);
            if self.order.variant == Variant::Nftables {
                self.seconds(Section::Restart, figures::LONGEST, at_rest.longest, None);
            }
            if let Some(written) = monitor.map(Monitor::stop) {
                let written = written.expect("nft monitor ends when it is told to");
                self.note(Section::Restart, figures::RESTART_WRITTEN, written as f64, Unit::Number, None);
            }
            self.mebibytes("restart: peak of the proxy", at_rest.peak);
            self.mebibytes("restart: largest program it ran", at_rest.child);
            self.note(Section::Restart, "connections made meanwhile", made, Unit::Number, None);
            self.note(Section::Restart, figures::RESTART_FAILED, failed, Unit::Number, None);
        }
        self.note(Section::Restart, figures::WRONG, self.wrong_services() as f64, Unit::Number, None);
    }
}

/// Sorts; the one in the middle.
fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

/// Somebody who calls all the time, on a thread of their own.
struct Caller<T> {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<T>,
}

/// How connections went.
struct Calls {
    made: usize,
    failed: usize,
}

impl<T> Caller<T> {
    fn stop(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic")
    }
}

/// Calls until there is an answer: when that was.
fn first_answer(to: (Ipv4Addr, u16)) -> Caller<Option<Instant>> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let thread = thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            if call(to).is_some() {
                return Some(Instant::now());
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    });
    Caller { stop, thread }
}

/// Calls all the time, with this pause in between.
fn keep_calling(to: (Ipv4Addr, u16), pause: Duration) -> Caller<Calls> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let made = Arc::new(AtomicUsize::new(0));
    let thread = thread::spawn(move || {
        let mut failed = 0;
        while !told.load(Ordering::Relaxed) {
            made.fetch_add(1, Ordering::Relaxed);
            // A busy machine may make a connection wait, but not for that long.
            failed += usize::from(call_within(to, Duration::from_millis(200)).is_none());
            thread::sleep(pause);
        }
        Calls { made: made.load(Ordering::Relaxed), failed }
    });
    Caller { stop, thread }
}
