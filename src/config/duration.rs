//! Durations as kube-proxy's flags and configuration file write them: `1h2m3.5s`, `300ms`, `0`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::go::quote;

/// A signed duration in nanoseconds. Negative ones can be written, and validation refuses them
/// with the text they were written as; what is left converts to [`Duration`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GoDuration(pub(crate) i64);

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

// === impl GoDuration ===

impl GoDuration {
    /// No time at all: in most fields "not set".
    pub(crate) const ZERO: GoDuration = GoDuration(0);

    /// Whole seconds.
    pub(crate) const fn seconds(seconds: i64) -> GoDuration {
        GoDuration(seconds * 1_000_000_000)
    }

    /// The same for code that has no use for negative times: they become zero.
    pub(crate) fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }

    /// `None` for zero and less, which in timeouts means "leave the kernel's value alone".
    pub(crate) fn positive(self) -> Option<Duration> {
        Some(self.to_std()).filter(|duration| !duration.is_zero())
    }
}

impl FromStr for GoDuration {
    type Err = String;

    /// Errors are those of Go's `time.ParseDuration`.
    fn from_str(text: &str) -> Result<GoDuration, String> {
        let invalid = || format!("time: invalid duration {}", quote(text));
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration::ZERO);
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (whole, after) = digits(rest);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => digits(after),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(invalid());
            }
            let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
            let (unit_name, after) = after.split_at(unit_end);
            if unit_name.is_empty() {
                return Err(format!("time: missing unit in duration {}", quote(text)));
            }
            let unit = unit(unit_name)
                .ok_or_else(|| format!("time: unknown unit {} in duration {}", quote(unit_name), quote(text)))?;
            let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
            let nanos = whole.checked_mul(unit).and_then(|nanos| nanos.checked_add(fraction_of(fraction, unit)));
            total = nanos.and_then(|nanos| total.checked_add(nanos)).ok_or_else(invalid)?;
            rest = after;
        }
        match negative {
            true => 0i64.checked_sub_unsigned(total),
            false => i64::try_from(total).ok(),
        }
        .map(GoDuration)
        .ok_or_else(invalid)
    }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        // Both the micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
        "ms" => MILLISECOND,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        _ => return None,
    })
}

/// `0.<digits>` of a unit, cut (not rounded) to whole nanoseconds.
fn fraction_of(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0u128, 1u128);
    // More than 18 digits are far below one nanosecond of an hour.
    for digit in digits.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    u64::try_from(value * u128::from(unit) / scale).unwrap_or(0)
}

impl fmt::Display for GoDuration {
    /// As Go prints it: `15m0s`, `24h0m0s`, `1.5s`, `500ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..MICROSECOND => write!(f, "{nanos}ns"),
            MICROSECOND..MILLISECOND => write!(f, "{}\u{b5}s", decimal(nanos, MICROSECOND)),
            MILLISECOND..SECOND => write!(f, "{}ms", decimal(nanos, MILLISECOND)),
            _ => {
                let (hours, minutes) = (nanos / HOUR, nanos % HOUR / MINUTE);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                write!(f, "{}s", decimal(nanos % MINUTE, SECOND))
            }
        }
    }
}

/// `nanos / unit` with as many decimals as it takes.
fn decimal(nanos: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let text = format!("{}.{:0width$}", nanos / unit, nanos % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let parsed = text.parse::<GoDuration>();
        assert_eq!(parsed.map(|d| d.to_string()).as_deref().map_err(String::as_str), expected, "{text:?}");
    }

    #[test]
    fn read_and_printed_as_go_does() {
        check("0", Ok("0s"));
        check("-0", Ok("0s"));
        check("0s", Ok("0s"));
        check("30s", Ok("30s"));
        check("15m", Ok("15m0s"));
        check("24h", Ok("24h0m0s"));
        check("1h2m3.5s", Ok("1h2m3.5s"));
        check("90s", Ok("1m30s"));
        check("300ms", Ok("300ms"));
        check("1500ms", Ok("1.5s"));
        check("1.5h", Ok("1h30m0s"));
        check(".5s", Ok("500ms"));
        check("5.s", Ok("5s"));
        check("-1s", Ok("-1s"));
        check("+1m1m", Ok("2m0s"));
        check("1us1ns", Ok("1.001\u{b5}s"));
        check("1\u{3bc}s", Ok("1\u{b5}s"));
        check("0.333333333333333333333s", Ok("333.333333ms"));
        check("9223372036854775807ns", Ok("2562047h47m16.854775807s"));
        check("-9223372036854775808ns", Ok("-2562047h47m16.854775808s"));
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_reads_back(nanos: i64) {
            let text = GoDuration(nanos).to_string();
            proptest::prop_assert_eq!(text.parse(), Ok(GoDuration(nanos)), "{}", text);
        }
    }

    #[test]
    fn refused_with_the_words_of_go() {
        check("", Err(r#"time: invalid duration """#));
        check("10", Err(r#"time: missing unit in duration "10""#));
        check("1m30", Err(r#"time: missing unit in duration "1m30""#));
        check("3d", Err(r#"time: unknown unit "d" in duration "3d""#));
        check("1 s", Err(r#"time: unknown unit " s" in duration "1 s""#));
        check("s", Err(r#"time: invalid duration "s""#));
        check(".s", Err(r#"time: invalid duration ".s""#));
        check("-", Err(r#"time: invalid duration "-""#));
        check("9223372036854775808ns", Err(r#"time: invalid duration "9223372036854775808ns""#));
        check("99999999999999999999h", Err(r#"time: invalid duration "99999999999999999999h""#));
    }
}
