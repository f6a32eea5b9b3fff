//! What happens in the demo, in order, and what is said about it.

use std::fs::{self, File};
use std::io::Stdout;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::network::Network;
use super::processors::Processors;
use super::scene::{self, FIRST, Frontend, Kind, PODS};
use super::screen::{Look, Row, Screen, grouped, span};
use super::tally::{Tally, Watch, tallies};
use super::traffic::{self, Sample, Stream};
use crate::command::Command;
use crate::command::background::Background;
use crate::config::ProxyMode;
use crate::net::IpFamily;

/// Connections to each address after a change.
const CONNECTIONS: usize = 60;
/// Connections to all addresses together before a manifest is changed under them.
const BEFORE_CHANGE: usize = 120;
/// A change that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between changes: the proxy syncs at most once a second, as kube-proxy does.
const PAUSE: Duration = Duration::from_millis(1_500);
/// Lines of the proxy's log that are shown when something went wrong.
const LOG_LINES: usize = 15;

/// The changes after the start: title, endpoints, what the time until it is reached means.
const CHANGES: [(&str, usize, &str); 4] = [
    ("Scaled up", PODS, "a new endpoint answers"),
    ("Scaled down", 1, "the removed endpoints are out of use"),
    ("Scaled to zero", 0, "every connection is refused"),
    ("Scaled up again", FIRST, "an endpoint answers"),
];

/// The demo, as far as it has got.
pub(super) struct Story {
    /// Where it is shown.
    pub(super) screen: Screen<Stdout>,
    mode: ProxyMode,
    tools: String,
    folder: PathBuf,
    families: Vec<IpFamily>,
    frontends: Vec<Frontend>,
    changes: Vec<Change>,
    connections: usize,
    problems: usize,
}

/// A change of the number of endpoints, as it went.
struct Change {
    title: &'static str,
    before: usize,
    after: usize,
    /// Time until it was reached in each family, if it was.
    took: Vec<Option<Duration>>,
}

// === impl Story ===

impl Story {
    /// Nothing told yet. Files go to `folder`; `tools` is what iptables says about itself.
    pub(super) fn new(screen: Screen<Stdout>, mode: ProxyMode, tools: String, folder: PathBuf) -> Story {
        let has_v6 = fs::exists("/proc/sys/net/ipv6").unwrap_or(false);
        let families =
            IpFamily::BOTH.into_iter().filter(|family| *family == IpFamily::V4 || has_v6).collect::<Vec<_>>();
        let frontends = scene::frontends(&families);
        let changes = Vec::new();
        Story { screen, mode, tools, folder, families, frontends, changes, connections: 0, problems: 0 }
    }

    /// Shows everything, from the first namespace to the end of the proxy.
    pub(super) async fn tell(&mut self) -> anyhow::Result<()> {
        self.introduce()?;
        let network = Network::make(&self.families).await?;
        traffic::serve(&network, &self.families).await?;

        fs::create_dir(self.folder.join("manifests"))?;
        fs::write(self.folder.join("config.yaml"), scene::config(self.mode))?;
        for (name, text) in scene::MANIFESTS {
            fs::write(self.folder.join("manifests").join(name), text)?;
        }
        self.scale(FIRST)?;

        let started = Instant::now();
        let mut proxy = self.start_proxy(&network).await?;
        let told = tokio::select! {
            told = self.all_changes(&network, started) => told,
            ended = proxy.ended() => bail!("the proxy ended by itself ({})", ended?),
        };
        proxy.stop(Duration::from_secs(5)).await?;
        told
    }

    fn introduce(&mut self) -> anyhow::Result<()> {
        let title = format!("ferrule {} as a node's service proxy, on real packets", env!("CARGO_PKG_VERSION"));
        let title = self.screen.painted(Look::Bold, &title);
        let both =
            if self.families.contains(&IpFamily::V6) { "IPv4 and IPv6" } else { "IPv4 (this kernel has no IPv6)" };
        let lines = [
            title,
            format!("  rules     {}, {both}", self.tools),
            "  network   a client outside, a node, and on it a pod that calls and pods web-1".to_owned(),
            "            to web-4 that answer: namespaces made for this demo; this host's own".to_owned(),
            "            network and rules stay as they are".to_owned(),
            "  Service   demo/web, with some of web-1 to web-4 as its endpoints:".to_owned(),
        ];
        for line in lines {
            self.screen.line(&line)?;
        }
        for of_kind in self.frontends.chunk_by(|a, b| a.kind == b.kind) {
            let Some(kind) = of_kind.first().map(|frontend| frontend.kind) else { continue };
            let from = if kind == Kind::ClusterIp { "from the pod" } else { "from the client" };
            let addresses: Vec<String> = of_kind.iter().map(|frontend| frontend.address.to_string()).collect();
            self.screen.line(&format!("    {:<13} {:<39} {from}", kind.name(), addresses.join("  ")))?;
        }
        self.screen.line("  times     from writing a manifest to the first connection that shows it")?;
        if Processors::choose().is_none() {
            self.screen.line("            (on one processor, IPv6 clients learn of a refusal a second late)")?;
        }
        Ok(())
    }

    async fn start_proxy(&self, network: &Network) -> anyhow::Result<Background> {
        let program = std::env::current_exe().context("finding the program of ferrule itself")?;
        let path = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let args = ["--config", &path("config.yaml"), "--manifests", &path("manifests"), "-v=2"];
        let command = Command::new(&program.to_string_lossy(), &args);
        let log = File::create(self.folder.join("proxy.log"))?;
        let runtime = Handle::current();
        let start = move || {
            let _runtime = runtime.enter();
            Background::start(&command, &log)
        };
        Ok(network.node.within(start).await??)
    }

    async fn all_changes(&mut self, network: &Network, started: Instant) -> anyhow::Result<()> {
        self.screen.heading(&format!("1. Started with {}", endpoints(FIRST)))?;
        // Until there are rules, the node itself refuses at its port; elsewhere there is no answer.
        let at_node: Vec<Frontend> =
            self.frontends.iter().copied().filter(|frontend| frontend.kind == Kind::NodePort).collect();
        let mut stream = traffic::connect_on(network, &at_node).await?;
        let mut watch = Watch::new(&at_node, started, 0, FIRST);
        self.follow(&mut stream, &mut watch).await;
        self.note("Started", 0, FIRST, &watch, "the first answer since the start")?;
        self.show_after(network, FIRST).await?;

        let mut before = FIRST;
        for (number, (title, after, meaning)) in (2..).zip(CHANGES) {
            sleep(PAUSE).await;
            self.screen.heading(&format!("{number}. {title}: from {before} to {}", endpoints(after)))?;
            let mut stream = traffic::connect_on(network, &self.frontends).await?;
            let mut during = Vec::new();
            while during.len() < BEFORE_CHANGE {
                during.push(stream.next().await.context("nothing connects any more")?);
            }
            let mut watch = Watch::new(&self.frontends, Instant::now(), before, after);
            self.scale(after)?;
            during.extend(self.follow(&mut stream, &mut watch).await);
            self.note(title, before, after, &watch, meaning)?;
            self.show_during(&during, before, after)?;
            self.show_after(network, after).await?;
            before = after;
        }
        Ok(())
    }

    /// Makes the first `count` pods endpoints, in one step as an editor or the kubelet replaces a file.
    fn scale(&self, count: usize) -> anyhow::Result<()> {
        let manifests = self.folder.join("manifests");
        let new = self.folder.join("endpoints.new");
        fs::write(&new, scene::endpoints(count))?;
        fs::rename(new, manifests.join(scene::ENDPOINTS))?;
        Ok(())
    }

    /// Looks at connections until the change is over, or for too long, and waits for those under way.
    async fn follow(&self, stream: &mut Stream, watch: &mut Watch) -> Vec<Sample> {
        let mut seen = Vec::new();
        let until_over = async {
            while !watch.is_over()
                && let Some(sample) = stream.next().await
            {
                watch.see(&sample);
                seen.push(sample);
            }
        };
        // If time runs out, the change lacks its time of arrival.
        let _ = timeout(PATIENCE, until_over).await;
        stream.stop();
        while let Some(sample) = stream.next().await {
            seen.push(sample);
        }
        seen
    }

    /// Says how long a change took.
    fn note(
        &mut self,
        title: &'static str,
        before: usize,
        after: usize,
        watch: &Watch,
        meaning: &str,
    ) -> anyhow::Result<()> {
        let took: Vec<Option<Duration>> = self.families.iter().map(|family| watch.took(*family)).collect();
        let each: Vec<String> =
            self.families.iter().zip(&took).map(|(family, took)| format!("{} ({family})", in_words(*took))).collect();
        self.screen.line(&format!("  After {}: {meaning}", each.join(", ")))?;
        if !watch.is_over() {
            self.problem(&format!("not reached by every address within {} s", PATIENCE.as_secs()))?;
        }
        self.changes.push(Change { title, before, after, took });
        Ok(())
    }

    fn show_during(&mut self, samples: &[Sample], before: usize, after: usize) -> anyhow::Result<()> {
        self.connections += samples.len();
        let slowest = samples.iter().map(|sample| sample.over.saturating_duration_since(sample.begun)).max();
        let slowest = span(slowest.unwrap_or_default());
        self.screen
            .line(&format!("  Meanwhile, {} connections; the slowest took {slowest}:", grouped(samples.len())))?;
        let tallies = tallies(&self.frontends, samples);
        let each: Vec<(Frontend, Tally)> = self.frontends.iter().copied().zip(tallies).collect();
        let of_kind = |of_kind: &[(Frontend, Tally)]| {
            let kind = of_kind.first()?.0.kind.name();
            let tally = of_kind.iter().fold(Tally::default(), |sum, (_, tally)| sum.plus(tally));
            Some(Row { kind, family: if of_kind.len() > 1 { "both" } else { "IPv4" }, tally })
        };
        let rows: Vec<Row> = each.chunk_by(|a, b| a.0.kind == b.0.kind).filter_map(of_kind).collect();
        self.screen.table(&rows)?;
        for row in &rows {
            if let Some(problem) = row.tally.problem_during(before, after) {
                self.problem(&format!("{} while {before} endpoints became {after}: {problem}", row.kind))?;
            }
        }
        Ok(())
    }

    async fn show_after(&mut self, network: &Network, expected: usize) -> anyhow::Result<()> {
        let samples = traffic::connect_each(network, &self.frontends, CONNECTIONS).await?;
        self.connections += samples.len();
        self.screen.line(&format!("  Then, {CONNECTIONS} connections to each address:"))?;
        let tallies = tallies(&self.frontends, &samples);
        let row = |(frontend, tally): (&Frontend, Tally)| Row {
            kind: frontend.kind.name(),
            family: frontend.family.as_str(),
            tally,
        };
        let rows: Vec<Row> = self.frontends.iter().zip(tallies).map(row).collect();
        self.screen.table(&rows)?;
        let mut is_fine = true;
        for row in &rows {
            if let Some(problem) = row.tally.problem(expected) {
                is_fine = false;
                self.problem(&format!("{} {}: {problem}", row.kind, row.family))?;
            }
        }
        if is_fine {
            let words = match expected {
                0 => "all refused: there is no endpoint".to_owned(),
                1 => "all answered by the one endpoint".to_owned(),
                _ => format!("all answered, by each of the {expected} endpoints"),
            };
            let good = self.screen.painted(Look::Green, "ok");
            self.screen.line(&format!("  {good}: {words}"))?;
        }
        Ok(())
    }

    fn problem(&mut self, text: &str) -> anyhow::Result<()> {
        self.problems += 1;
        let mark = self.screen.painted(Look::Red, "NOT AS EXPECTED");
        self.screen.line(&format!("  {mark}: {text}"))?;
        Ok(())
    }

    /// Whether nothing was otherwise than expected.
    pub(super) fn is_as_expected(&self) -> bool {
        self.problems == 0
    }

    /// The end of the proxy's log, with a heading; nothing if it was never started.
    pub(super) fn proxy_log(&self) -> String {
        let Ok(text) = fs::read_to_string(self.folder.join("proxy.log")) else { return String::new() };
        let lines: Vec<&str> = text.lines().collect();
        let (_, last) = lines.split_at(lines.len().saturating_sub(LOG_LINES));
        match last {
            [] => "\nThe proxy logged nothing.".to_owned(),
            _ => format!("\nThe proxy's log ends:\n{}", last.join("\n")),
        }
    }

    /// Says how it all went.
    pub(super) fn summary(&mut self) -> anyhow::Result<()> {
        let families: String = self.families.iter().map(|family| format!("{:>12}", family.as_str())).collect();
        self.screen.heading(&format!("{:<37}{families}", "Summary: from change to effect"))?;
        for change in &self.changes {
            let times: String = change.took.iter().map(|took| format!("{:>12}", in_words(*took))).collect();
            let line = format!("  {:<16} {} -> {} endpoints{times}", change.title, change.before, change.after);
            self.screen.line(&line)?;
        }
        let all = grouped(self.connections);
        let verdict = match self.problems {
            0 => self.screen.painted(Look::Green, &format!("All {all} connections went where they should.")),
            1 => self.screen.painted(Look::Red, "One thing was NOT AS EXPECTED, see above."),
            more => self.screen.painted(Look::Red, &format!("{more} things were NOT AS EXPECTED, see above.")),
        };
        self.screen.line(&format!("{verdict} What the demo had made is removed."))?;
        Ok(())
    }
}

fn in_words(took: Option<Duration>) -> String {
    took.map_or_else(|| "never".to_owned(), span)
}

fn endpoints(count: usize) -> String {
    match count {
        0 => "none".to_owned(),
        1 => "one endpoint".to_owned(),
        _ => format!("{count} endpoints"),
    }
}
