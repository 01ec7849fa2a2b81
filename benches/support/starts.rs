//! The starts of a hub that is killed again and again.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::rng::Rng;
use super::{start, start_cut_off};
use crate::common::Hub;

/// Counts them; as text what the report says of them.
#[derive(Default)]
pub struct Starts {
    cut_off: u32,
    ready: Vec<Duration>,
}

impl Starts {
    /// Starts the hub of a folder; now and then it is killed while it starts, first.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn next(&mut self, dir: &Path, rng: &mut Rng) -> Result<Hub, String> {
        if rng.one_in(8) {
            let after = Duration::from_millis(rng.between(0, 30));
            start_cut_off(dir, after);
            self.cut_off += 1;
        }
        let began = Instant::now();
        let hub = start(dir)?;
        self.ready.push(began.elapsed());
        Ok(hub)
    }
}

impl fmt::Display for Starts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = self.ready.iter().sum::<Duration>() / self.ready.len().max(1) as u32;
        let slowest = self.ready.iter().max().copied().unwrap_or_default();
        write!(
            f,
            "{} starts cut off, restart to ready mean {:.1} ms, max {:.1} ms",
            self.cut_off,
            mean.as_secs_f64() * 1e3,
            slowest.as_secs_f64() * 1e3,
        )
    }
}
