//! The two clocks, read in one place.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::hub::Now;

/// The wall clock may be set: an expiry is compared with it at least this often.
const EXPIRY_CHECK_MS: u64 = 60_000;

/// The hub's clock; milliseconds count from its making, and go on while the device sleeps.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start_ms: u64,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start_ms: boot_ms(),
        }
    }

    /// Milliseconds since its making.
    #[must_use]
    pub fn ms(&self) -> u64 {
        boot_ms().saturating_sub(self.start_ms)
    }

    /// The time by both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall_ms = unix.map_or(0, |since| since.as_millis() as u64);
        Now {
            ms: self.ms(),
            unix: wall_ms / 1000,
            wall_ms,
        }
    }

    /// The instant of a time in milliseconds; one far away where it is never.
    #[must_use]
    pub fn instant(&self, ms: u64) -> tokio::time::Instant {
        const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
        let in_ms = Duration::from_millis(ms.saturating_sub(self.ms())).min(NEVER);
        (Instant::now() + in_ms).into()
    }
}

/// Milliseconds since the device started, asleep or awake.
fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// When to compare an expiry, in seconds since 1970, with the wall clock again.
#[must_use]
pub fn expiry_check_ms(expires_unix: Option<u64>, now: Now) -> u64 {
    expires_unix.map_or(u64::MAX, |expires| {
        let behind = expires.saturating_add(1);
        let left_ms = behind.saturating_sub(now.unix).saturating_mul(1000);
        now.ms + left_ms.min(EXPIRY_CHECK_MS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_checked_just_after_it_and_at_least_every_minute() {
        let now = Now {
            ms: 500,
            unix: 1_000,
            wall_ms: 1_000_000,
        };
        assert_eq!(expiry_check_ms(None, now), u64::MAX);
        assert_eq!(expiry_check_ms(Some(1_004), now), 500 + 5_000);
        assert_eq!(expiry_check_ms(Some(900), now), 500);
        // A token may say any number.
        for far in [u64::MAX - 1, u64::MAX] {
            assert_eq!(expiry_check_ms(Some(far), now), 500 + EXPIRY_CHECK_MS);
        }
    }
}
