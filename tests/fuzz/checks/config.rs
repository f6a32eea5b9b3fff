//! The configuration file: any text comes to a configuration that is in order, or to a message.

use std::sync::LazyLock;
use std::time::Duration;

use ferrule::config::flags::{self, Flags, Invocation};
use ferrule::config::{Config, ConfigError, Loaded, Remark, load_text};
use serde_json::json;

const KIND: &str = "KubeProxyConfiguration";
const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// Flags that say where the file is.
static FLAGS: LazyLock<Box<Flags>> = LazyLock::new(|| {
    let args = ["kube-proxy", "--config=config.conf"].map(str::to_owned);
    match flags::parse(&args).map(|parsed| parsed.invocation) {
        Ok(Invocation::Proxy(flags)) => flags,
        other => panic!("{other:?}"),
    }
});

/// The text of a configuration file.
pub(super) fn file(input: &[u8]) {
    let loaded = load_text(&FLAGS, input);
    assert_in_order(&loaded);
    let Ok(config) = loaded.config else { return };
    if input.trim_ascii_start().starts_with(b"{") {
        // JSON is YAML, too, and means the same there if it is read.
        let yaml = load_text(&FLAGS, &[b"---\n", input].concat());
        assert!(yaml.config.is_err() || yaml.config.as_ref() == Ok(&config), "{config:#?}\n{yaml:#?}");
    } else {
        // Only the first document counts, whatever follows.
        let longer = load_text(&FLAGS, &[input, b"\n--- [\n"].concat());
        assert_eq!(longer.config, Ok(config));
    }
}

/// A duration, as the value of some field.
pub(super) fn duration(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let document = json!({"kind": KIND, "apiVersion": API_VERSION, "configSyncPeriod": text});
    let config = load_text(&FLAGS, document.to_string().as_bytes()).config;
    match nanoseconds(&text) {
        // Nothing, which is "not set".
        Some(0) => assert_eq!(config.map(|config| config.config_sync_period), Ok(Duration::from_secs(15 * 60))),
        Some(nanos) if nanos > 0 => {
            let read = config.map(|config| config.config_sync_period.as_nanos());
            // Fractions are cut at some digit.
            assert!(
                read.as_ref().is_ok_and(|read| read.abs_diff(nanos.unsigned_abs().into()) <= 1),
                "{nanos}: {read:?}"
            );
        }
        Some(_) => assert!(matches!(&config, Err(ConfigError::Validate(_))), "{text:?}: {config:?}"),
        None => {
            let refused = config.expect_err(&text).to_string();
            assert!(refused.starts_with("failed complete: failed to decode: time: "), "{refused}");
        }
    }
}

/// What must hold of every configuration, and of every message.
#[track_caller]
pub(super) fn assert_in_order(loaded: &Loaded) {
    match &loaded.config {
        Ok(Config { masquerade_mark, sync_period, min_sync_period, planning, .. }) => {
            assert!(masquerade_mark.is_power_of_two(), "{masquerade_mark:#x}");
            assert!(*sync_period > Duration::ZERO && min_sync_period <= sync_period);
            assert_eq!(*planning.node_name, *planning.node_name.trim().to_lowercase());
            assert!(!planning.node_name.is_empty());
        }
        Err(error) => assert!(!error.to_string().trim().is_empty(), "{error:?} says nothing"),
    }
    for remark in loaded.completing.iter().chain(&loaded.checking) {
        match remark {
            Remark::LenientDecoding { complaint: said, .. } | Remark::GateSet { name: said, .. } => {
                assert!(!said.trim().is_empty(), "{remark:?}");
            }
            // Nothing is a name as well, of a gate that does not exist.
            Remark::UnknownGate(_) | Remark::ModeChosen | Remark::GatesUpdated(_) => {}
        }
    }
    for place in &loaded.places {
        let mut parts = place.rsplit(':');
        assert!(parts.by_ref().take(2).all(|part| part.parse::<usize>().is_ok_and(|n| n > 0)), "{place}");
    }
}

/// The same as `time.ParseDuration` of Go, by another way: as a sum of decimal fractions.
fn nanoseconds(text: &str) -> Option<i64> {
    let units = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() || unsigned.is_empty() {
        let number = &rest[..rest.find(|c: char| c != '.' && !c.is_ascii_digit())?];
        let after = &rest[number.len()..];
        let name = &after[..after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len())];
        let (_, unit) = units.iter().find(|(known, _)| *known == name)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
        // More digits than these say nothing of nanoseconds.
        let fraction = &fraction[..fraction.len().min(20)];
        let part = digits(fraction)? * unit / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        total = digits(whole)?.checked_mul(*unit)?.checked_add(part)?.checked_add(total)?;
        rest = &after[name.len()..];
    }
    i64::try_from(if text.starts_with('-') { -total } else { total }).ok()
}
