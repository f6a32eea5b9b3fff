//! Prometheus' text format 0.0.4, byte for byte as Go's client library writes it: the crate's own encoder
//! prints numbers in another way, and `le` labels are compared as text.

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

/// Content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// Writes families in order of their names; those without a series are left out.
pub fn text(mut families: Vec<MetricFamily>) -> String {
    families.retain(|family| !family.get_metric().is_empty());
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = String::new();
    for family in &families {
        self::family(&mut text, family);
    }
    text
}

/// A number as Go's `strconv.FormatFloat(n, 'g', -1, 64)` prints it: the shortest text that reads back
/// as the same number, with an exponent from 1e6 and below 1e-4.
pub fn number(n: f64) -> String {
    if n.is_nan() {
        return "NaN".to_owned();
    }
    if n.is_infinite() {
        return if n > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{n:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{n}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn family(text: &mut String, family: &MetricFamily) {
    let name = family.name();
    let kind = match family.get_field_type() {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    };
    let help = family.help().replace('\\', "\\\\").replace('\n', "\\n");
    // Writing to a String cannot fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for metric in family.get_metric() {
        match family.get_field_type() {
            MetricType::COUNTER => sample(text, name, metric, None, metric.get_counter().get_value()),
            MetricType::HISTOGRAM => histogram(text, name, metric),
            _ => sample(text, name, metric, None, metric.get_gauge().get_value()),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts beyond 2^53 do not occur")]
fn histogram(text: &mut String, name: &str, metric: &Metric) {
    let histogram = metric.get_histogram();
    let (bucket, total) = (format!("{name}_bucket"), histogram.get_sample_count() as f64);
    for at in histogram.get_bucket().iter().filter(|at| at.upper_bound().is_finite()) {
        sample(text, &bucket, metric, Some(at.upper_bound()), at.cumulative_count() as f64);
    }
    sample(text, &bucket, metric, Some(f64::INFINITY), total);
    sample(text, &format!("{name}_sum"), metric, None, histogram.get_sample_sum());
    sample(text, &format!("{name}_count"), metric, None, total);
}

fn sample(text: &mut String, name: &str, metric: &Metric, bound: Option<f64>, value: f64) {
    text.push_str(name);
    let mut labels: Vec<(&str, String)> = metric.get_label().iter().map(label).collect();
    labels.sort();
    // Comes last, whatever its name.
    labels.extend(bound.map(|bound| ("le", number(bound))));
    for (i, (name, value)) in labels.iter().enumerate() {
        let _ = write!(text, "{}{name}=\"{value}\"", if i == 0 { '{' } else { ',' });
    }
    if !labels.is_empty() {
        text.push('}');
    }
    let _ = writeln!(text, " {}", number(value));
}

fn label(pair: &LabelPair) -> (&str, String) {
    (pair.name(), pair.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

    use super::*;

    #[test]
    fn numbers() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (0.001, "0.001"),
            (16.384, "16.384"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000_005, "5e-06"),
            (2.714e-6, "2.714e-06"),
            (65_536.0, "65536"),
            (262_144.0, "262144"),
            (999_999.0, "999999"),
            (1e6, "1e+06"),
            (1_048_576.0, "1.048576e+06"),
            (1_795_209_091.674_963, "1.795209091674963e+09"),
            (18_446_744_073_709_551_615.0, "1.8446744073709552e+19"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ];
        for (n, expected) in cases {
            assert_eq!(number(n), expected);
        }
    }

    #[test]
    fn a_whole_text() {
        let counter = IntCounterVec::new(Opts::new("b_total", "With a \\ and\na line"), &["x", "a"]).unwrap();
        counter.with_label_values(&["1", "say \"hi\""]).inc();
        let options = HistogramOpts::new("a_seconds", "Times").buckets(vec![0.0, 0.5, 1.0]);
        let histogram = HistogramVec::new(options, &["zone"]).unwrap();
        histogram.with_label_values(&["z"]).observe(0.25);
        histogram.with_label_values(&["z"]).observe(3.0);
        let unused = IntCounterVec::new(Opts::new("c_total", "Never seen"), &["x"]).unwrap();
        let families = [counter.collect(), histogram.collect(), unused.collect()].concat();
        let expected = "\
# HELP a_seconds Times
# TYPE a_seconds histogram
a_seconds_bucket{zone=\"z\",le=\"0\"} 0
a_seconds_bucket{zone=\"z\",le=\"0.5\"} 1
a_seconds_bucket{zone=\"z\",le=\"1\"} 1
a_seconds_bucket{zone=\"z\",le=\"+Inf\"} 2
a_seconds_sum{zone=\"z\"} 3.25
a_seconds_count{zone=\"z\"} 2
# HELP b_total With a \\\\ and\\na line
# TYPE b_total counter
b_total{a=\"say \\\"hi\\\"\",x=\"1\"} 1
";
        assert_eq!(text(families), expected);
    }
}
