//! Failed logins: guessing gets slow, and nobody is locked out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::identity;

/// Addresses and identities whose failed logins are remembered.
const FAILURES_MAX: usize = 4096;
/// The longest that the answer to a failed login is held back.
const FAILURE_DELAY_MS_MAX: u64 = 5_000;
/// After this time without another one, failed logins are forgotten.
const FAILURES_FORGOTTEN_MS: u64 = 60_000;

/// Failed logins by address and claimed identity.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<(IpAddr, String), (u32, u64)>>);

impl Failures {
    /// Counts one more and says how long to hold the answer back.
    pub(super) fn count(&self, address: IpAddr, claimed: &str, now_ms: u64) -> u64 {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= FAILURES_MAX {
            failures.retain(|_, (_, last_ms)| *last_ms + FAILURES_FORGOTTEN_MS > now_ms);
            if failures.len() >= FAILURES_MAX {
                return FAILURE_DELAY_MS_MAX;
            }
        }
        let claimed = claimed.chars().take(identity::ID_BYTES_MAX).collect();
        let (count, last_ms) = failures.entry((address, claimed)).or_insert((0, now_ms));
        if *last_ms + FAILURES_FORGOTTEN_MS <= now_ms {
            *count = 0;
        }
        *last_ms = now_ms;
        *count += 1;
        match *count {
            0 | 1 => 0,
            n => (50_u64 << n.min(10)).min(FAILURE_DELAY_MS_MAX),
        }
    }

    /// The right credentials were shown.
    pub(super) fn forget(&self, address: IpAddr, claimed: &str) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.is_empty() {
            failures.remove(&(address, claimed.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_get_slower_and_are_forgotten() {
        let failures = Failures::default();
        let here = IpAddr::from([127, 0, 0, 1]);
        let delays: Vec<_> = (0..8).map(|n| failures.count(here, "d/m", n)).collect();
        assert_eq!(delays, [0, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(failures.count(here, "d/other", 8), 0);
        failures.forget(here, "d/m");
        assert_eq!(failures.count(here, "d/m", 9), 0);
        assert_eq!(failures.count(here, "d/m", 10 + FAILURES_FORGOTTEN_MS), 0);
    }
}
