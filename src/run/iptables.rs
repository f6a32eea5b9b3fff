//! What iptables mode sets up.

use crate::backend::iptables::apply::{self, Iptables};
use crate::backend::iptables::compile::Layout;
use crate::backend::iptables::netlink::Counters;
use crate::backend::iptables::nft;
use crate::backend::iptables::tools::{Tools, Variant};
use crate::command::System;
use crate::config::{self, Config};
use crate::net::IpFamily;
use crate::sysctl::Sysctls;

/// The backend of a family.
pub(super) async fn backend(
    config: &Config,
    sysctls: &Sysctls,
    family: IpFamily,
    tools: Tools<System>,
) -> Iptables<System> {
    let (variant, mark) = (tools.features.variant, format!("{:#010x}", config.masquerade_mark));
    let (min, period) = (config.min_sync_period, config.sync_period);
    tracing::info!(%family, tools = ?variant, mark, minSyncPeriod = ?min, syncPeriod = ?period, "iptables mode");
    let settings = apply::Settings {
        mark: config.masquerade_mark,
        drop_invalid: !sysctls.conntrack_is_liberal(),
        layout: layout(config, family, &tools).await,
    };
    let backend = Iptables::new(tools, settings, Counters::ensure);
    match variant {
        Variant::Legacy => backend,
        Variant::Nft => backend.with_chains(nft::Kernel::new(family)),
    }
}

/// Where rules go, as configured and as far as the node can do it. (A node that cannot serves all the same:
/// no packet can tell layouts apart.)
async fn layout(config: &Config, family: IpFamily, tools: &Tools<System>) -> Layout {
    let config::Layout { mut bucketed_services, mut compact_endpoints } = config.layout;
    if bucketed_services && !tools.features.any_mask {
        tracing::warn!(
            %family,
            "no bucketed service dispatch: iptables of nf_tables takes masks of addresses from 1.8.8 on; Services are found one by one"
        );
        bucketed_services = false;
    }
    if compact_endpoints && let Err(error) = tools.recognises_own_source().await {
        tracing::warn!(
            %family, %error,
            "no compact endpoint layout: it takes the match bpf of iptables and the kernel (module xt_bpf); endpoints have chains"
        );
        compact_endpoints = false;
    }
    if bucketed_services || compact_endpoints {
        tracing::info!(%family, bucketed_services, compact_endpoints, "rules are laid out otherwise than kube-proxy's");
    }
    Layout { bucketed_services, compact_endpoints }
}
