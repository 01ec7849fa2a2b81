//! Summaries: count and sum since the start, and quantiles of the last minute or two, in a few
//! KiB for each series however its values spread.
//!
//! The exporter's own summaries take up to 750 KiB for a series, too much on a device with some
//! hundred modules; only its text format is used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{HistogramFn, Key};
use metrics_exporter_prometheus::formatting;
use sketches_ddsketch::{Config, DDSketch};

/// Those of the system we replace (facts §9.1).
const QUANTILES: [f64; 4] = [0.1, 0.5, 0.9, 0.99];
/// A quantile is off by at most this part of its value.
const ERROR: f64 = 0.02;
/// 8 bytes each; from a microsecond to an hour are 550 of them.
const BINS_MAX: u32 = 1024;
/// What is less counts as 0: a nanosecond, where values are seconds.
const VALUE_MIN: f64 = 1e-9;

/// The values of one series.
pub(super) struct Summary(Mutex<Values>);

struct Values {
    count: u64,
    sum: f64,
    /// Since the last turn.
    current: DDSketch,
    /// From the turn before it to the last one.
    previous: DDSketch,
}

fn empty() -> DDSketch {
    DDSketch::new(Config::new(ERROR, BINS_MAX, VALUE_MIN))
}

impl Default for Summary {
    fn default() -> Self {
        Self(Mutex::new(Values {
            count: 0,
            sum: 0.0,
            current: empty(),
            previous: empty(),
        }))
    }
}

impl HistogramFn for Summary {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        let mut values = self.lock();
        values.count += count as u64;
        values.sum += value * count as f64;
        for _ in 0..count {
            values.current.add(value);
        }
    }
}

impl Summary {
    fn lock(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) {
        let mut values = self.lock();
        values.previous = std::mem::replace(&mut values.current, empty());
    }

    /// Without a value in the window, quantiles are NaN (facts §9.1).
    fn write(&self, text: &mut String, series: &Series<'_>) {
        let values = self.lock();
        let (count, sum) = (values.count, values.sum);
        let mut window = values.previous.clone();
        // Sketches of one configuration always merge.
        let _ = window.merge(&values.current);
        drop(values);
        for quantile in QUANTILES {
            let value = window.quantile(quantile).ok().flatten();
            let label = Some(("quantile", quantile));
            series.line(text, None, label, value.unwrap_or(f64::NAN));
        }
        series.line(text, Some("sum"), None, sum);
        series.line(text, Some("count"), None, count);
    }
}

struct Series<'a> {
    name: &'a str,
    labels: &'a [String],
}

impl Series<'_> {
    fn line(
        &self,
        text: &mut String,
        suffix: Option<&'static str>,
        label: Option<(&'static str, f64)>,
        value: impl std::fmt::Display,
    ) {
        formatting::write_metric_line(text, self.name, suffix, self.labels, label, value, None);
    }
}

/// The series of all summaries.
pub(super) struct Summaries {
    described: &'static [(&'static str, &'static str)],
    /// Labels that all series carry, as in `name="value"`.
    common: Vec<String>,
    /// By name, then by the series' own labels.
    series: Mutex<BTreeMap<&'static str, Named>>,
}

type Named = BTreeMap<Vec<String>, Arc<Summary>>;

impl Summaries {
    pub(super) fn new(described: &'static [(&'static str, &'static str)], common: &Key) -> Self {
        Self {
            described,
            common: formatting::key_to_parts(common, None).1,
            series: Mutex::default(),
        }
    }

    /// The series of that name and those labels.
    pub(super) fn series(&self, name: &'static str, key: &Key) -> Arc<Summary> {
        let labels = formatting::key_to_parts(key, None).1;
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let named = series.entry(name).or_default();
        Arc::clone(named.entry(labels).or_default())
    }

    /// Forgets the values, for quantiles, that are older than the last turn.
    pub(super) fn turn(&self) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let all = series.values().flat_map(BTreeMap::values);
        all.for_each(|summary| summary.turn());
    }

    /// Appends the Prometheus text of all of them.
    pub(super) fn write(&self, text: &mut String) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, description) in self.described {
            let Some(named) = series.get(name) else {
                continue;
            };
            formatting::write_help_line(text, name, description);
            formatting::write_type_line(text, name, "summary");
            for (own, summary) in named {
                let labels = [self.common.as_slice(), own].concat();
                let labels = &labels;
                summary.write(text, &Series { name, labels });
            }
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIBED: &[(&str, &str)] = &[("took_seconds", "How long")];

    fn value(summaries: &Summaries, start: &str) -> f64 {
        let mut text = String::new();
        summaries.write(&mut text);
        let line = text.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    #[test]
    fn quantiles_are_within_two_percent_and_last_two_turns() {
        let common = Key::from_parts("", vec![metrics::Label::new("device", "d\"1")]);
        let summaries = Summaries::new(DESCRIBED, &common);
        let own = Key::from_parts("", vec![metrics::Label::new("id", "a")]);
        let series = summaries.series("took_seconds", &own);
        for thousandth in 1..=1000 {
            series.record(f64::from(thousandth) / 1000.0);
        }
        let quantile = |q| {
            let start = format!(r#"took_seconds{{device="d\"1",id="a",quantile="{q}"}}"#);
            value(&summaries, &start)
        };
        let is_near = |q: f64| (quantile(q) / q - 1.0).abs() < 0.025;
        assert!(QUANTILES.into_iter().all(is_near));
        summaries.turn();
        series.record_many(5.0, 9000);
        assert!((quantile(0.5) / 5.0 - 1.0).abs() < 0.025);
        assert!((quantile(0.1) - 0.99).abs() < 0.05, "{}", quantile(0.1));
        summaries.turn();
        summaries.turn();
        assert!(quantile(0.5).is_nan());
        assert_eq!(value(&summaries, "took_seconds_count{"), 10_000.0);
        assert!((value(&summaries, "took_seconds_sum{") - 45_500.5).abs() < 1e-6);
    }

    #[test]
    fn a_series_of_any_spread_stays_small() {
        let summary = Summary::default();
        for exponent in -12..16 {
            summary.record(10f64.powi(exponent));
        }
        assert!(summary.lock().current.length() <= BINS_MAX as usize + 2);
        assert_eq!(summary.lock().current.count(), 28);
    }
}
