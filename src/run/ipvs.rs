//! What ipvs mode sets up.

use anyhow::{Context, anyhow};

use crate::backend::iptables::tools::Tools;
use crate::backend::ipvs::apply::{Settings, VirtualServers};
use crate::backend::ipvs::compile::Style;
use crate::backend::ipvs::drain;
use crate::backend::ipvs::netlink::{Scheduler, Timeouts};
use crate::backend::ipvs::support;
use crate::command::System;
use crate::config::{self, Config};
use crate::net::IpFamily;
use crate::sysctl::Sysctls;

/// Sees to it that the kernel can do it and has the settings for it.
///
/// # Errors
///
/// It cannot; a setting is refused. (kube-proxy ends for these, too.)
pub(super) async fn prepare(config: &Config, sysctls: &Sysctls) -> anyhow::Result<()> {
    let scheduler = scheduler(config)?;
    support::check(&System, scheduler).await.context("can't use the IPVS proxier")?;
    sysctls.set_virtual_servers(config.ipvs.strict_arp)?;
    let timeouts = timeouts(&config.ipvs);
    if timeouts != Timeouts::default()
        && let Err(error) = support::set_timeouts(timeouts).await
    {
        tracing::error!(%error, "Failed to configure IPVS timeouts");
    }
    Ok(())
}

/// The backend of a family.
pub(super) fn backend(
    config: &Config,
    family: IpFamily,
    tools: Tools<System>,
) -> anyhow::Result<VirtualServers<System>> {
    let scheduler = scheduler(config)?;
    let (min, period) = (config.min_sync_period, config.sync_period);
    let (variant, mark) = (tools.features.variant, format!("{:#010x}", config.masquerade_mark));
    tracing::info!(%family, %scheduler, tools = ?variant, mark, minSyncPeriod = ?min, syncPeriod = ?period, "ipvs mode");
    let style = Style { scheduler, mark: config.masquerade_mark, random_fully: tools.features.random_fully };
    let excluded = config.ipvs.exclude_cidrs.iter().copied().filter(|net| IpFamily::of(net.addr()) == family).collect();
    let settings = Settings { style, excluded, drain: drain::LONGEST };
    Ok(VirtualServers::new(System, tools, family, settings))
}

fn scheduler(config: &Config) -> anyhow::Result<Scheduler> {
    let name = match config.ipvs.scheduler.as_str() {
        "" => "rr",
        name => name,
    };
    name.parse().map_err(|error| anyhow!("ipvs.scheduler: {error}"))
}

/// Whole seconds; zero leaves the kernel's own.
fn timeouts(ipvs: &config::Ipvs) -> Timeouts {
    let seconds =
        |time: Option<std::time::Duration>| time.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let [tcp, tcp_fin, udp] = [ipvs.tcp_timeout, ipvs.tcp_fin_timeout, ipvs.udp_timeout].map(seconds);
    Timeouts { tcp, tcp_fin, udp }
}
