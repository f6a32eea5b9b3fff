//! What nftables mode sets up.

use anyhow::{Context, bail};

use crate::backend::nftables::apply::Maps;
use crate::backend::nftables::compile::Style;
use crate::backend::nftables::support;
use crate::cluster::Event;
use crate::command::System;
use crate::config::Config;
use crate::net::IpFamily;
use crate::source::Events;
use crate::sysctl::Sysctls;

pub(super) use crate::backend::nftables::watch::Watch;

/// Sees to it that the kernel and `nft` can do it; gives the families in which they can.
///
/// # Errors
///
/// In none. (kube-proxy ends for this, too.)
pub(super) async fn prepare(config: &Config, sysctls: &Sysctls) -> anyhow::Result<Vec<IpFamily>> {
    support::check_version(&System).await.context("can't use the nftables proxier")?;
    let style = style(config);
    let (mut families, mut reasons) = (Vec::new(), Vec::new());
    for family in IpFamily::BOTH {
        if family == IpFamily::V6 && !sysctls.kernel_has_ipv6() {
            reasons.push("the kernel has IPv6 disabled".to_owned());
            continue;
        }
        match support::check(&System, family, &style).await {
            Ok(()) => families.push(family),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if families.is_empty() {
        bail!("can't use the nftables proxier: {}", reasons.join("; "));
    }
    for reason in reasons {
        tracing::warn!(%reason, "one IP family is not served");
    }
    Ok(families)
}

/// Begins to listen to what others do to the tables.
pub(super) fn watch(events: Events) -> Watch {
    let watch = Watch::default();
    let listening = watch.clone();
    tokio::spawn(async move {
        let tell = |family| {
            let events = events.clone();
            async move { _ = events.send(Event::Disturbed(family)).await }
        };
        if let Err(error) = listening.run(tell).await {
            tracing::error!(%error, "cannot listen to changes of nftables: what others remove stays away until the next \
                full sync, within the hour");
        }
    });
    watch
}

/// The backend of a family.
pub(super) fn backend(config: &Config, family: IpFamily, watch: Watch) -> Maps<System> {
    let (min, period) = (config.min_sync_period, config.sync_period);
    let mark = format!("{:#010x}", config.masquerade_mark);
    tracing::info!(%family, mark, minSyncPeriod = ?min, syncPeriod = ?period, "nftables mode");
    Maps::new(System, family, style(config), watch)
}

fn style(config: &Config) -> Style {
    Style { mark: config.masquerade_mark }
}
