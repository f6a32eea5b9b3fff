//! What happens between the configuration and the first rule: what this node is, and whether the
//! configuration can be right about it. (kube-proxy: `newProxyServer`.)

pub mod checks;
pub mod node;

use crate::config::Config;
use crate::model::Node;
use crate::net::IpFamily;

/// Says how the configuration fits this node, whose tools work for `families`; an error if it cannot
/// work. (kube-proxy: the same, with these messages.)
pub fn check(config: &Config, node: &Node, families: &[IpFamily]) -> anyhow::Result<()> {
    const DOUBTFUL: &str = "Kube-proxy configuration may be incomplete or incorrect";
    let primary = checks::primary_family(&config.planning, node);
    if config.planning.node_ip(primary, node).is_loopback() {
        tracing::info!(
            "Can't determine this node's IP, assuming loopback; if this is incorrect, please set the --bind-address flag"
        );
    }
    if let Some(err) = checks::incomplete(config, node) {
        tracing::error!(%err, "{DOUBTFUL}");
    }
    if !families.contains(&primary) {
        anyhow::bail!("no support for primary IP family {:?}", primary.as_str());
    }
    let is_dual_stack = families.contains(&primary.other());
    match is_dual_stack {
        true => tracing::info!(primary = %primary, "running in dual-stack mode"),
        false => tracing::info!(ipFamily = %primary, "running in single-stack mode"),
    }
    match checks::misfit(config, node, is_dual_stack) {
        Some(misfit) if misfit.fatal => {
            anyhow::bail!("kube-proxy configuration is incorrect: {}", misfit.reason)
        }
        Some(misfit) => tracing::error!(err = %misfit.reason, "{DOUBTFUL}"),
        None => {}
    }
    Ok(())
}
