//! Families that are made up at a scrape, from what is read then.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// A family of one series without labels.
pub(crate) fn alone(kind: MetricType, name: &str, help: &str, value: f64) -> MetricFamily {
    family(kind, name, help, [(Vec::new(), value)])
}

/// A family of series, each with its labels.
pub(crate) fn family(
    kind: MetricType,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>,
) -> MetricFamily {
    let metrics = series.into_iter().map(|(labels, value)| {
        let labels = labels.into_iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            pair
        });
        let mut metric = Metric::from_label(labels.collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.collect());
    family
}
