//! What nftables mode sets up.

use anyhow::Context;

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
    const COMPLAINT: &str = "can't use the nftables proxier";
    support::check_version(&System).await.context(COMPLAINT)?;
    let style = style(config);
    let able = super::in_each_family(sysctls, COMPLAINT, async |family| support::check(&System, family, &style).await);
    Ok(able.await?.into_iter().map(|(family, ())| family).collect())
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
