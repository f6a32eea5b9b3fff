//! Values of flags: what is accepted, and kube-proxy's words for what is not.

use super::Version;
use crate::config::KUBERNETES_VERSION;
use crate::config::duration::GoDuration;
use crate::config::go::{parse_bool, quote, split_csv, split_host_port};
use crate::net::{IpFamily, parse_ip};

/// A list flag's value: comma-separated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List(pub(crate) Vec<String>);

/// A value of `--feature-gates`: `Name=true,Other=false`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gates(pub(crate) Vec<(String, bool)>);

/// A value of `--vmodule`: `pattern=level,other=level`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Levels(pub(crate) Vec<(String, u32)>);

/// One of two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) name: &'static str,
    /// Whether it is another one than kube-proxy's.
    pub(crate) departs: bool,
}

pub(super) fn duration(text: &str) -> Result<GoDuration, String> {
    text.parse()
}

pub(super) fn list(text: &str) -> Result<List, String> {
    split_csv(text).map(List)
}

/// An IP address, kept as typed; nothing means "not set".
pub(super) fn ip(text: &str) -> Result<String, String> {
    match text.is_empty() || parse_ip(text).is_some() {
        true => Ok(text.to_owned()),
        false => Err(format!("{} is not a valid IP address", quote(text))),
    }
}

/// An IP address with or without a port; nothing means "not set".
pub(super) fn ip_port(text: &str) -> Result<String, String> {
    if text.is_empty() || parse_ip(text).is_some() {
        return Ok(text.to_owned());
    }
    let (host, port) = split_host_port(text)
        .map_err(|error| format!("{} is not in a valid format (ip or ip:port): {error}", quote(text)))?;
    if parse_ip(host).is_none() {
        return Err(format!("{} is not a valid IP address", quote(host)));
    }
    match port.parse::<u16>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{} is not a valid number", quote(port))),
    }
}

pub(super) fn gates(text: &str) -> Result<Gates, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let parsed = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').ok_or("malformed pair, expect string=bool")?;
        let (name, value) = (name.trim(), value.trim());
        let value = parse_bool(value).map_err(|error| format!("invalid value of {name}: {value}, err: {error}"))?;
        Ok((name.to_owned(), value))
    });
    parsed.collect::<Result<_, String>>().map(Gates)
}

pub(super) fn levels(text: &str) -> Result<Levels, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let parsed = pairs.map(|pair| {
        let (pattern, level) =
            pair.split_once('=').ok_or_else(|| format!("{} does not have the pattern=N format", quote(pair)))?;
        let level = crate::config::go::parse_level(level)
            .map_err(|error| format!("parsing verbosity in {}: {error}", quote(pair)))?;
        Ok((pattern.to_owned(), level))
    });
    parsed.collect::<Result<_, String>>().map(Levels)
}

pub(super) fn version(text: &str) -> Result<Version, String> {
    if text == "raw" {
        return Ok(Version::Raw);
    }
    if text.starts_with('v') {
        // Only a suffix may be added: other components act on the reported numbers.
        let suffix =
            text.strip_prefix(KUBERNETES_VERSION).filter(|rest| rest.is_empty() || rest.starts_with(['-', '+']));
        return match suffix {
            Some(_) => Ok(Version::Override(text.to_owned())),
            None => Err(format!(
                "version {} must match major/minor/patch of default version {}",
                quote(text),
                quote(KUBERNETES_VERSION)
            )),
        };
    }
    parse_bool(text).map(|print| if print { Version::Print } else { Version::Default })
}

pub(super) fn ip_family(text: &str) -> Result<IpFamily, String> {
    let family = IpFamily::BOTH.into_iter().find(|family| family.as_str().eq_ignore_ascii_case(text));
    family.ok_or_else(|| "must be IPv4 or IPv6".to_owned())
}

pub(super) fn service_dispatch(text: &str) -> Result<Choice, String> {
    choice(text, "linear", "bucketed")
}

pub(super) fn endpoint_layout(text: &str) -> Result<Choice, String> {
    choice(text, "chains", "compact")
}

/// kube-proxy's way, which is that of no text as well, or the other one.
fn choice(text: &str, usual: &'static str, other: &'static str) -> Result<Choice, String> {
    match text {
        text if text == other => Ok(Choice { name: other, departs: true }),
        text if text == usual || text.is_empty() => Ok(Choice { name: usual, departs: false }),
        _ => Err(format!("must be {usual} or {other}")),
    }
}

pub(super) fn mode(text: &str) -> Result<crate::config::ProxyMode, String> {
    crate::config::ProxyMode::parse(text).ok_or_else(|| "must be iptables, ipvs or nftables".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: std::fmt::Debug>(result: Result<T, String>, expected: Result<&str, &str>) {
        let shown = result.map(|value| format!("{value:?}"));
        assert_eq!(shown.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn addresses() {
        for good in ["", "10.0.0.1", "010.0.0.1", "::1", "fd00::1"] {
            assert_eq!(ip(good).as_deref(), Ok(good));
        }
        for good in ["", "10.0.0.1", "::1", "10.0.0.1:80", "[::1]:80", "1.2.3.4:0"] {
            assert_eq!(ip_port(good).as_deref(), Ok(good));
        }
        check(ip("1.2.3.4:80"), Err(r#""1.2.3.4:80" is not a valid IP address"#));
        check(ip_port("localhost:80"), Err(r#""localhost" is not a valid IP address"#));
        check(ip_port("1.2.3.4:x"), Err(r#""x" is not a valid number"#));
        check(ip_port("1.2.3.4:99999"), Err(r#""99999" is not a valid number"#));
        check(
            ip_port("[::1]"),
            Err(r#""[::1]" is not in a valid format (ip or ip:port): address [::1]: missing port in address"#),
        );
    }

    #[test]
    fn maps() {
        check(gates("A=true, B = f ,,C=1"), Ok(r#"Gates([("A", true), ("B", false), ("C", true)])"#));
        check(gates("A"), Err("malformed pair, expect string=bool"));
        check(levels("proxier=4,a*=0"), Ok(r#"Levels([("proxier", 4), ("a*", 0)])"#));
        check(levels("proxier"), Err(r#""proxier" does not have the pattern=N format"#));
        check(levels("a=x"), Err(r#"parsing verbosity in "a=x": strconv.ParseUint: parsing "x": invalid syntax"#));
    }

    #[test]
    fn layouts() {
        check(service_dispatch("bucketed").map(|choice| choice.departs), Ok("true"));
        check(service_dispatch("").map(|choice| choice.name), Ok("\"linear\""));
        check(endpoint_layout("compact").map(|choice| choice.departs), Ok("true"));
        check(endpoint_layout("linear"), Err("must be chains or compact"));
    }

    #[test]
    fn versions() {
        check(version("true"), Ok("Print"));
        check(version("0"), Ok("Default"));
        check(version("raw"), Ok("Raw"));
        check(version("v1.36.2+mine"), Ok(r#"Override("v1.36.2+mine")"#));
        for bad in ["v1.2.3", "v1.36.20", "v1.36"] {
            let expected = format!("version {bad:?} must match major/minor/patch of default version \"v1.36.2\"");
            check(version(bad), Err(&expected));
        }
        check(version("x"), Err(r#"strconv.ParseBool: parsing "x": invalid syntax"#));
    }
}
