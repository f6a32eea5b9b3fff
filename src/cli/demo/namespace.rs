//! Network namespaces with a thread inside, which does what must happen there.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::command::{Command, Run, System};

/// How names of all namespaces and files of all demos begin. The demo's process id follows.
pub(super) const PREFIX: &str = "ferrule-demo-";

/// Where `ip netns` puts names.
pub(super) const NAMES: &str = "/run/netns";

/// A network namespace and the thread inside.
pub(super) struct Namespace {
    name: String,
    orders: mpsc::Sender<Order>,
}

type Order = Box<dyn FnOnce() + Send>;

// === impl Namespace ===

impl Namespace {
    /// Makes a namespace for this process. It outlives this value: `leftovers`
    /// removes it, also when this fails.
    pub(super) async fn make(role: &str) -> anyhow::Result<Namespace> {
        let name = format!("{PREFIX}{}-{role}", std::process::id());
        ip(&["netns", "add", &name], "").await?;
        let file = File::open(Path::new(NAMES).join(&name)).with_context(|| format!("namespace {name}"))?;
        let (orders, inbox) = mpsc::channel::<Order>();
        let (entered, answer) = oneshot::channel();
        thread::Builder::new().name(role.to_owned()).spawn(move || {
            let is_inside = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            let go_on = is_inside.is_ok();
            let _ = entered.send(is_inside);
            if go_on {
                inbox.iter().for_each(|order| order());
            }
        })?;
        answer.await?.with_context(|| format!("entering namespace {name}"))?;
        Ok(Namespace { name, orders })
    }

    /// Its name, as `ip netns` lists it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Does something inside, after what was asked before.
    pub(super) async fn within<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (done, answer) = oneshot::channel();
        let order = Box::new(move || {
            // Nobody waits for the answer if the demo was interrupted.
            let _ = done.send(act());
        });
        self.orders.send(order).ok().context("the thread of a namespace is gone")?;
        answer.await.with_context(|| format!("the thread in {} failed", self.name))
    }

    /// Runs `ip` inside, with a list of its commands.
    pub(super) async fn ip(&self, commands: &str) -> anyhow::Result<()> {
        ip(&["-n", &self.name, "-batch", "-"], commands).await
    }
}

/// Runs `ip` with arguments and input.
pub(super) async fn ip(args: &[&str], input: &str) -> anyhow::Result<()> {
    let command = Command::new("ip", args).with_stdin(input.as_bytes().to_vec());
    let output = System.run(command, &mut |_| {}).await?;
    if !output.success() {
        bail!("ip {}: {}", args.join(" "), output.stderr.trim());
    }
    Ok(())
}
