//! The two clocks, read in one place.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::hub::Now;

/// The hub's clock; milliseconds count from its making.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// The time by both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            ms: self.start.elapsed().as_millis() as u64,
            unix: unix.map_or(0, |since| since.as_secs()),
        }
    }

    /// The instant of a time in milliseconds; one far away where it is never.
    #[must_use]
    pub fn instant(&self, ms: u64) -> tokio::time::Instant {
        const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
        let at = Duration::from_millis(ms).min(self.start.elapsed() + NEVER);
        (self.start + at).into()
    }
}
