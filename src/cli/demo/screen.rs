//! What the demo shows: text of at most 80 columns, with bars, good in a log file too.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::scene::{self, PODS};
use super::tally::Tally;

/// Cells of the longest bar.
const BAR: usize = 6;

/// Where the demo writes, and what may be written there.
pub(super) struct Screen<W> {
    out: W,
    /// Colours, on a terminal whose user wants them.
    pub(super) has_color: bool,
    /// Characters beyond ASCII.
    pub(super) has_unicode: bool,
}

/// How text looks on a terminal with colours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// Headings.
    Bold,
    /// What is not there.
    Dim,
    /// Answers, and success.
    Green,
    /// Refusals.
    Yellow,
    /// Failure.
    Red,
}

/// One line of a table: where connections to one kind of address landed.
pub(super) struct Row {
    /// Kind of address.
    pub(super) kind: &'static str,
    /// Its family, or both.
    pub(super) family: &'static str,
    /// Where they landed.
    pub(super) tally: Tally,
}

// === impl Screen ===

impl Screen<io::Stdout> {
    /// Standard output, with what its terminal and the user's settings allow.
    pub(super) fn stdout() -> Screen<io::Stdout> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let out = io::stdout();
        let is_plain = set("NO_COLOR").is_some() || set("TERM").is_none_or(|term| term == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
        let locale = locale.to_string_lossy().to_lowercase();
        Screen {
            has_color: out.is_terminal() && !is_plain,
            has_unicode: locale.contains("utf-8") || locale.contains("utf8"),
            out,
        }
    }
}

impl<W: Write> Screen<W> {
    /// A line of text.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", text.trim_end())?;
        self.out.flush()
    }

    /// An empty line and a heading.
    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        let text = self.painted(Look::Bold, text);
        self.line("")?;
        self.line(&text)
    }

    /// Text in a colour, if there are colours.
    pub(super) fn painted(&self, look: Look, text: &str) -> String {
        if !self.has_color || text.is_empty() {
            return text.to_owned();
        }
        let code = match look {
            Look::Bold => 1,
            Look::Dim => 2,
            Look::Green => 32,
            Look::Yellow => 33,
            Look::Red => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A table of where connections landed.
    pub(super) fn table(&mut self, rows: &[Row]) -> io::Result<()> {
        let names: String = (1..=PODS).map(|number| format!("{:>6}{:7}", scene::pod_name(number), "")).collect();
        let header = format!("{:19}{names}refused", "");
        let header = self.painted(Look::Dim, &header);
        self.line(&header)?;
        for row in rows {
            let mut line = format!("  {:<12} {:<4}", row.kind, row.family);
            let total = row.tally.total();
            for count in row.tally.answered {
                line.push_str(&self.cell(count, total));
            }
            let refused = format!(
                "{:>7}",
                if row.tally.refused == 0 { self.nothing().to_owned() } else { row.tally.refused.to_string() }
            );
            line.push_str(&self.painted(if row.tally.refused == 0 { Look::Dim } else { Look::Yellow }, &refused));
            self.line(&line)?;
        }
        Ok(())
    }

    /// A count and its bar, thirteen columns wide.
    fn cell(&self, count: usize, total: usize) -> String {
        if count == 0 {
            return self.painted(Look::Dim, &format!("{:>6}{:7}", self.nothing(), ""));
        }
        let bar = self.bar(count, total);
        let padding = " ".repeat(BAR.saturating_sub(bar.chars().count()));
        format!("{count:>6} {}{padding}", self.painted(Look::Green, &bar))
    }

    /// A bar as long as the part of the total, but never empty.
    fn bar(&self, count: usize, total: usize) -> String {
        const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let parts = if self.has_unicode { 8 } else { 1 };
        let length = (count * BAR * parts).div_ceil(total.max(1)).min(BAR * parts);
        let full = if self.has_unicode { "█" } else { "#" };
        let rest = EIGHTHS.get(length % parts).copied().unwrap_or_default();
        full.repeat(length / parts) + rest
    }

    fn nothing(&self) -> &'static str {
        if self.has_unicode { "·" } else { "-" }
    }
}

/// A span in words, three digits of it: `7.21 ms`, `352 ms`, `1.35 s`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds * 1e3 {
        millis if millis < 10.0 => format!("{millis:.1} ms"),
        millis if millis < 1e3 => format!("{millis:.0} ms"),
        _ => format!("{seconds:.2} s"),
    }
}

/// A number with a comma before each three digits.
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(has_color: bool, has_unicode: bool) -> String {
        let mut out = Vec::new();
        let mut screen = Screen { out: &mut out, has_color, has_unicode };
        let tally = |answered, refused| Tally { answered, refused, ..Tally::default() };
        let rows = [
            Row { kind: "LoadBalancer", family: "IPv6", tally: tally([30, 29, 1, 0], 0) },
            Row { kind: "NodePort", family: "both", tally: tally([12_345, 0, 0, 0], 99_999) },
        ];
        screen.table(&rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_are_plain_text_of_eighty_columns() {
        let expected = "                    web-1        web-2        web-3        web-4       refused
  LoadBalancer IPv6    30 ###       29 ###        1 #          -             -
  NodePort     both 12345 #          -            -            -         99999
";
        assert_eq!(shown(false, false), expected);
        for line in shown(false, true).lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let mut plain = shown(true, true);
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[33m"] {
            plain = plain.replace(code, "");
        }
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(&plain), trimmed(&shown(false, true)));
        assert!(shown(true, true).contains("\x1b[32m█"));
    }

    #[test]
    fn bars_and_numbers() {
        let screen = Screen { out: Vec::new(), has_color: false, has_unicode: true };
        assert_eq!(screen.bar(30, 60), "███");
        assert_eq!(screen.bar(1, 1_000), "▏");
        assert_eq!(screen.bar(60, 60), "██████");
        assert_eq!(screen.bar(35, 60), "███▌");
        for (millis, text) in [(7.2, "7.2 ms"), (352.1, "352 ms"), (1_352.0, "1.35 s")] {
            assert_eq!(span(Duration::from_secs_f64(millis / 1e3)), text);
        }
        for (number, text) in [(7, "7"), (123, "123"), (1_234, "1,234"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
