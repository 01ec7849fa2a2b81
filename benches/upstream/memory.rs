//! Whether the hub's memory stays flat.

use std::time::{Duration, Instant};

use crate::watch::resident;

/// What a start takes is over by then.
const SETTLED: Duration = Duration::from_secs(3);
/// The last quarter may have this much more than the first.
const GROWTH_MAX: f64 = 1.25;
const GROWTH_MIB: f64 = 4.0;
/// With fewer samples nothing is said.
const SAMPLES_MIN: usize = 40;

/// Resident MiB over all starts of the hub.
#[derive(Default)]
pub struct Memory {
    samples: Vec<f64>,
}

impl Memory {
    /// Looks at a hub that was started then.
    pub fn sample(&mut self, pid: u32, started: Instant) {
        let now = resident(pid).all;
        if started.elapsed() >= SETTLED && now > 0.0 {
            self.samples.push(now);
        }
    }

    /// One line, and whether it is flat.
    pub fn judge(&self) -> (String, bool) {
        let samples = &self.samples;
        let Some(last) = samples.last() else {
            return ("no samples of memory".to_owned(), true);
        };
        let least = samples.iter().copied().fold(f64::MAX, f64::min);
        let most = samples.iter().copied().fold(0.0, f64::max);
        let quarter = (samples.len() / 4).max(1);
        let first = median(&samples[..quarter]);
        let end = median(&samples[samples.len() - quarter..]);
        let flat = samples.len() < SAMPLES_MIN || end <= first * GROWTH_MAX + GROWTH_MIB;
        let line = format!(
            "resident MiB: min {least:.1}, max {most:.1}, last {last:.1}, median of the first \
             quarter {first:.1}, of the last {end:.1}, {} samples",
            samples.len()
        );
        (line, flat)
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
