//! Real connections, and the servers that answer them with their names.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::network::Network;
use super::processors::Processors;
use super::scene::{self, Frontend, Kind, POD_PORT, PODS};
use crate::net::IpFamily;

/// A connection that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between connections to one address while a change is watched.
const STEP: Duration = Duration::from_millis(3);
/// Connections to one address at a time afterwards.
const AT_ONCE: usize = 10;

/// How a connection went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A pod answered: its number.
    Answered(usize),
    /// It was refused.
    Refused,
    /// Anything else, in words.
    Failed(String),
}

/// A connection that was made.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// To which frontend, by its place in the list.
    pub(super) frontend: usize,
    /// When it was begun.
    pub(super) begun: Instant,
    /// When it was over.
    pub(super) over: Instant,
    /// How it went.
    pub(super) outcome: Outcome,
}

/// Connections that go on until told to stop.
pub(super) struct Stream {
    samples: mpsc::Receiver<Sample>,
    stop: watch::Sender<bool>,
}

/// Addresses with their places in the list of frontends.
type Targets = Vec<(usize, SocketAddr)>;

// === impl Stream ===

impl Stream {
    /// The next connection that is over; none once all are.
    pub(super) async fn next(&mut self) -> Option<Sample> {
        self.samples.recv().await
    }

    /// Begins no further connection. Those under way still end.
    pub(super) fn stop(&self) {
        // Whoever has stopped already need not be told.
        let _ = self.stop.send(true);
    }
}

/// Makes each pod answer with its name.
pub(super) async fn serve(network: &Network, families: &[IpFamily]) -> anyhow::Result<()> {
    let any = match families {
        [IpFamily::V4] => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    for (number, pod) in (1..).zip(&network.pods) {
        let listen = move || {
            let listener = TcpListener::bind(SocketAddr::new(any, POD_PORT))?;
            thread::Builder::new().name(format!("server {number}")).spawn(move || answer(&listener, number))
        };
        let name = scene::pod_name(number);
        pod.within(listen).await?.with_context(|| format!("{name} cannot listen on port {POD_PORT}"))?;
    }
    Ok(())
}

fn answer(listener: &TcpListener, number: usize) {
    for mut stream in listener.incoming().flatten() {
        // A client that went away misses its answer and says so itself.
        let _ = stream.write_all(scene::pod_name(number).as_bytes());
    }
}

/// Connects to each of the frontends again and again.
pub(super) async fn connect_on(network: &Network, frontends: &[Frontend]) -> anyhow::Result<Stream> {
    let (stop, stopped) = watch::channel(false);
    let connect = |targets: Targets, samples: mpsc::Sender<Sample>| {
        let mut stopped = stopped.clone();
        async move {
            let mut open = JoinSet::new();
            let mut clock = interval(STEP);
            clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let going = async {
                loop {
                    clock.tick().await;
                    while open.try_join_next().is_some() {}
                    targets.iter().for_each(|&target| drop(open.spawn(report(target, samples.clone()))));
                }
            };
            tokio::select! {
                () = going => {}
                // The sender may be gone as well, with the demo.
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
            while open.join_next().await.is_some() {}
        }
    };
    Ok(Stream { samples: from_origins(network, frontends, connect).await?, stop })
}

/// Makes so many connections to each frontend, and waits for all of them.
pub(super) async fn connect_each(
    network: &Network,
    frontends: &[Frontend],
    count: usize,
) -> anyhow::Result<Vec<Sample>> {
    let connect = |targets: Targets, samples: mpsc::Sender<Sample>| async move {
        let rounds: Vec<usize> = (0..count).collect();
        for round in rounds.chunks(AT_ONCE) {
            let connections = round.iter().flat_map(|_| &targets).map(|&target| report(target, samples.clone()));
            let mut open: JoinSet<()> = connections.collect();
            while open.join_next().await.is_some() {}
        }
    };
    let mut samples = from_origins(network, frontends, connect).await?;
    let mut all = Vec::new();
    while let Some(sample) = samples.recv().await {
        all.push(sample);
    }
    Ok(all)
}

/// Runs `connect` where connections to the frontends come from: ClusterIPs are for pods, everything
/// else for clients outside. There are no more samples when all connections are over.
async fn from_origins<F, A>(
    network: &Network,
    frontends: &[Frontend],
    connect: F,
) -> anyhow::Result<mpsc::Receiver<Sample>>
where
    F: Fn(Targets, mpsc::Sender<Sample>) -> A,
    A: Future<Output = ()> + Send + 'static,
{
    let targets_of = |from_pod: bool| {
        let all =
            frontends.iter().enumerate().filter(move |(_, frontend)| (frontend.kind == Kind::ClusterIp) == from_pod);
        all.map(|(place, frontend)| (place, frontend.address)).collect::<Targets>()
    };
    let (samples, receiver) = mpsc::channel(1_024);
    for (namespace, from_pod) in [(&network.caller, true), (&network.client, false)] {
        let work = connect(targets_of(from_pod), samples.clone());
        let start = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let run = move || {
                if let Some(processors) = Processors::choose() {
                    processors.pin_client();
                }
                runtime.block_on(work);
            };
            thread::Builder::new().name("connections".to_owned()).spawn(run).map(drop)
        };
        namespace.within(start).await?.context("starting to connect")?;
    }
    Ok(receiver)
}

/// Makes a connection and says how it went.
async fn report((frontend, address): (usize, SocketAddr), samples: mpsc::Sender<Sample>) {
    let begun = Instant::now();
    let outcome = match timeout(PATIENCE, connect(address)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Outcome::Refused,
        Ok(Err(error)) => Outcome::Failed(format!("{address}: {error}")),
        Err(_) => Outcome::Failed(format!("{address}: no answer within {} s", PATIENCE.as_secs())),
    };
    // Nobody wants to know any more if the demo was interrupted.
    let _ = samples.send(Sample { frontend, begun, over: Instant::now(), outcome }).await;
}

async fn connect(address: SocketAddr) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect(address).await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await?;
    let pod = (1..=PODS).find(|number| scene::pod_name(*number) == name);
    Ok(pod.map_or_else(|| Outcome::Failed(format!("{address} answered {name:?}")), Outcome::Answered))
}
