//! Interim: what run needs; replaced by the real configuration.
#![allow(missing_docs, reason = "interim")]
use std::path::PathBuf;
use std::time::Duration;
use crate::plan::build::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode { Iptables, Ipvs, Nftables }
impl std::fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
}
#[derive(Clone, Debug)]
pub struct Config {
    pub mode: ProxyMode, pub planning: Settings, pub masquerade_bit: u32,
    pub sync_period: Duration, pub min_sync_period: Duration, pub manifests: Vec<PathBuf>,
}
