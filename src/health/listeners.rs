//! The sockets of health check node ports of one family, opened and closed as ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::node_ports::{Answer, Order};
use super::{Health, Moment, answer};
use crate::events::{Happening, Recorder};
use crate::http::{self, Respond};
use crate::model::ServiceName;
use crate::net::IpFamily;

/// When ports that could not be had are tried again, if no sync comes first.
const RETRY: Duration = Duration::from_secs(5);
/// When somebody is told again of one that is still missing.
const REMIND: Duration = Duration::from_secs(600);

/// The listeners of one family.
pub(super) struct Listeners {
    family: IpFamily,
    health: Health,
    recorder: Recorder,
    addresses: BTreeSet<IpAddr>,
    ports: BTreeMap<ServiceName, Port>,
    /// Services that lack a listener.
    failing: BTreeSet<ServiceName>,
}

/// One Service's.
struct Port {
    number: u16,
    local_endpoints: Arc<AtomicUsize>,
    respond: Arc<Respond>,
    open: BTreeMap<IpAddr, JoinHandle<()>>,
    /// Tries in a row that failed.
    failures: u32,
    /// What was said about a failure that lasts, and when.
    told: Option<(String, Instant)>,
}

/// Why a port is not open everywhere.
struct Refused {
    error: String,
    /// It may pass by itself: an address that is not there yet (IPv6 has to make sure that it is unique)
    /// or no longer.
    may_pass: bool,
}

// === impl Listeners ===

impl Listeners {
    pub(super) fn new(family: IpFamily, health: Health, recorder: Recorder) -> Listeners {
        let (addresses, ports, failing) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        Listeners { family, health, recorder, addresses, ports, failing }
    }

    /// Follows orders until nobody gives any more; then all is closed.
    pub(super) async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Vec<Order>>) {
        loop {
            let patience = if self.failing.is_empty() { Duration::MAX } else { RETRY };
            match tokio::time::timeout(patience, orders.recv()).await {
                Ok(Some(mut batch)) => {
                    while let Ok(more) = orders.try_recv() {
                        batch.extend(more);
                    }
                    self.follow(batch).await;
                }
                Ok(None) => break,
                Err(_) => self.open(self.failing.clone()).await,
            }
        }
        for port in self.ports.values_mut() {
            port.close(|_| true).await;
        }
    }

    /// Everything that is to be closed is, before anything is opened: a port may go from one Service
    /// to another.
    async fn follow(&mut self, orders: Vec<Order>) {
        let mut concerned = self.failing.clone();
        for order in orders {
            match order {
                Order::Addresses(addresses) => {
                    self.addresses = addresses.into_iter().collect();
                    for port in self.ports.values_mut() {
                        port.close(|ip| !self.addresses.contains(ip)).await;
                    }
                    concerned.extend(self.ports.keys().cloned());
                }
                Order::Service(service, answer) => {
                    let known = self.ports.get_mut(&service);
                    match (known, answer) {
                        (Some(port), Some(Answer { port: number, local_endpoints })) if port.number == number => {
                            port.local_endpoints.store(local_endpoints, Ordering::Relaxed);
                        }
                        (known, answer) => {
                            if let Some(port) = known {
                                tracing::debug!(%service, port = port.number, family = %self.family, "closing health check");
                                port.close(|_| true).await;
                                self.ports.remove(&service);
                            }
                            if let Some(answer) = answer {
                                let port = self.port(&service, answer);
                                self.ports.insert(service.clone(), port);
                            }
                            concerned.insert(service);
                        }
                    }
                }
            }
        }
        self.open(concerned).await;
    }

    fn port(&self, service: &ServiceName, answer: Answer) -> Port {
        let local_endpoints = Arc::new(AtomicUsize::new(answer.local_endpoints));
        let (service, count, health) = (service.clone(), local_endpoints.clone(), self.health.clone());
        let respond = move |_: &http::Request| {
            let healthy = health.verdict(Moment::now()).healthy;
            answer::node_port_answer(&service, count.load(Ordering::Relaxed), healthy)
        };
        Port {
            number: answer.port,
            local_endpoints,
            respond: Arc::new(respond),
            open: BTreeMap::new(),
            failures: 0,
            told: None,
        }
    }

    /// Opens what is missing of some Services.
    async fn open(&mut self, services: BTreeSet<ServiceName>) {
        for service in services {
            self.failing.remove(&service);
            let Some(port) = self.ports.get_mut(&service) else { continue };
            match port.open(&self.addresses).await {
                Ok(0) => {}
                Ok(opened) => {
                    (port.failures, port.told) = (0, None);
                    tracing::debug!(%service, port = port.number, family = %self.family, opened, "health check is open");
                }
                Err(refused) => {
                    port.failures += 1;
                    if port.should_tell(&refused) {
                        let error = refused.error;
                        tracing::warn!(
                            %service, port = port.number, family = %self.family, %error,
                            "load balancers cannot ask for the Service's endpoints here: end the program that has the port, or have the Service allocate another spec.healthCheckNodePort; trying again"
                        );
                        let (service, port) = (service.clone(), port.number);
                        self.recorder.record(Happening::HealthCheckNodePortFailed { service, port, error });
                    }
                    self.failing.insert(service);
                }
            }
        }
    }
}

// === impl Port ===

impl Port {
    /// Listens on those of the addresses where it does not yet, and says on how many. A Service that
    /// had no listener gets all or none (kube-proxy: the same); one that had keeps what it has.
    async fn open(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, Refused> {
        let (had_none, mut opened, mut failed) = (self.open.is_empty(), 0, None);
        for ip in addresses {
            if self.open.contains_key(ip) {
                continue;
            }
            let address = SocketAddr::new(*ip, self.number);
            match http::listen_in_family(address) {
                Ok(listener) => {
                    self.open.insert(*ip, tokio::spawn(http::serve(listener, self.respond.clone())));
                    opened += 1;
                }
                Err(error) => {
                    let may_pass = error.kind() == ErrorKind::AddrNotAvailable;
                    failed.get_or_insert(Refused { error: http::refusal(address, &error), may_pass });
                }
            }
        }
        match failed {
            None => Ok(opened),
            Some(refused) => {
                if had_none {
                    self.close(|_| true).await;
                }
                Err(refused)
            }
        }
    }

    /// Ends listeners and waits until their sockets are gone.
    async fn close(&mut self, which: impl Fn(&IpAddr) -> bool) {
        for (_, listener) in self.open.extract_if(.., |ip, _| which(ip)) {
            listener.abort();
            let _ = listener.await;
        }
    }

    /// Whether somebody should hear of a failure now: once, and again from time to time while it lasts.
    /// (kube-proxy: after every sync.)
    fn should_tell(&mut self, Refused { error, may_pass }: &Refused) -> bool {
        let now = Instant::now();
        let is_known = self.told.as_ref().is_some_and(|(told, at)| told == error && now - *at < REMIND);
        if is_known || (*may_pass && self.failures == 1) {
            return false;
        }
        self.told = Some((error.clone(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    struct Rig {
        orders: mpsc::UnboundedSender<Vec<Order>>,
        happenings: mpsc::Receiver<Happening>,
        port: u16,
    }

    impl Rig {
        /// Listeners on 127.0.0.1, and a port that is free there.
        async fn start() -> Rig {
            let (orders, receiver) = mpsc::unbounded_channel();
            let (recorder, happenings) = Recorder::new(16);
            let health = Health::new(Duration::from_secs(60));
            tokio::spawn(Listeners::new(IpFamily::V4, health, recorder).run(receiver));
            let port = free(1).await;
            let rig = Rig { orders, happenings, port };
            rig.order(Order::Addresses(vec![local(1)]));
            rig
        }

        fn order(&self, order: Order) {
            self.orders.send(vec![order]).unwrap();
        }

        fn answer(&self, service: &str, port: u16, local_endpoints: usize) {
            self.order(Order::Service(ServiceName::new("ns", service), Some(Answer { port, local_endpoints })));
        }

        /// Waits for an answer with these words; `None`: for nobody to answer any more.
        async fn until(&self, ip: IpAddr, words: Option<&str>) {
            loop {
                let said = ask(ip, self.port).await;
                match (&said, words) {
                    (None, None) => return,
                    (Some(said), Some(words)) if said.contains(words) => return,
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        }
    }

    fn local(n: u8) -> IpAddr {
        [127, 0, 0, n].into()
    }

    async fn free(n: u8) -> u16 {
        TcpListener::bind((local(n), 0)).await.unwrap().local_addr().unwrap().port()
    }

    async fn ask(ip: IpAddr, port: u16) -> Option<String> {
        let mut stream = TcpStream::connect((ip, port)).await.ok()?;
        stream.write_all(b"PUT /any/path HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    #[tokio::test]
    async fn a_service_comes_changes_and_goes() {
        let rig = Rig::start().await;
        rig.answer("a", rig.port, 2);
        rig.until(local(1), Some("x-load-balancing-endpoint-weight: 2\r\n")).await;
        rig.answer("a", rig.port, 0);
        rig.until(local(1), Some("HTTP/1.1 503 Service Unavailable\r\n")).await;
        // To another Service, in the unlucky order.
        let [new, old] = ["a", "b"].map(|name| ServiceName::new("ns", name));
        let answer = Answer { port: rig.port, local_endpoints: 1 };
        rig.orders.send(vec![Order::Service(old.clone(), Some(answer)), Order::Service(new, None)]).unwrap();
        rig.until(local(1), Some("\"name\": \"b\"")).await;
        rig.order(Order::Service(old, None));
        rig.until(local(1), None).await;
    }

    #[tokio::test]
    async fn addresses_come_and_go() {
        let rig = Rig::start().await;
        rig.answer("a", rig.port, 1);
        rig.until(local(1), Some("200 OK")).await;
        rig.order(Order::Addresses(vec![local(1), local(2)]));
        rig.until(local(2), Some("200 OK")).await;
        rig.order(Order::Addresses(vec![local(2)]));
        rig.until(local(1), None).await;
        rig.until(local(2), Some("200 OK")).await;
    }

    #[tokio::test]
    async fn a_taken_port_is_told_once_and_had_when_it_is_free() {
        let mut rig = Rig::start().await;
        rig.order(Order::Addresses(vec![local(1), local(2), local(3)]));
        let taken = TcpListener::bind((local(3), rig.port)).await.unwrap();
        rig.answer("a", rig.port, 1);
        let Some(Happening::HealthCheckNodePortFailed { service, port, error }) = rig.happenings.recv().await else {
            panic!("it is told")
        };
        assert_eq!((service, port), (ServiceName::new("ns", "a"), rig.port));
        assert_eq!(error, format!("listen tcp 127.0.0.3:{port}: bind: address already in use"));
        assert_eq!(ask(local(1), rig.port).await, None, "all addresses or none");
        // A sync.
        rig.orders.send(Vec::new()).unwrap();
        // An address that comes later is no reason to give up the others.
        rig.order(Order::Addresses(vec![local(1)]));
        rig.until(local(1), Some("200 OK")).await;
        assert!(rig.happenings.try_recv().is_err(), "it was told");
        rig.order(Order::Addresses(vec![local(1), local(3)]));
        drop(taken);
        // No sync follows.
        rig.until(local(3), Some("200 OK")).await;
        rig.until(local(1), Some("200 OK")).await;
    }

    /// No address of this machine, as a new one is not for a moment.
    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_not_there_yet_is_told_if_that_lasts() {
        let mut rig = Rig::start().await;
        rig.order(Order::Addresses(vec![[192, 0, 2, 1].into()]));
        let start = Instant::now();
        rig.answer("a", rig.port, 1);
        let told = rig.happenings.recv().await;
        assert!(matches!(told, Some(Happening::HealthCheckNodePortFailed { .. })), "{told:?}");
        assert_eq!(start.elapsed().as_secs(), RETRY.as_secs());
        // And again, rarely.
        assert!(rig.happenings.recv().await.is_some());
        assert!(start.elapsed() >= REMIND, "{:?}", start.elapsed());
    }
}
