//! A bound of so many in a second: messages to the cloud, messages of a client, logins.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// A token bucket that holds what may come in some time, and one at the least.
#[derive(Debug)]
pub struct Pace {
    /// 0: no bound.
    per_second: AtomicU32,
    holds_ms: u64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// In thousandths of a message.
    millis: u64,
    filled_ms: u64,
}

impl Pace {
    /// So many messages in a second, of which a tenth may come at once; 0: no bound.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self::holding(100, per_second)
    }

    /// So many in a second, all of which may come at once; 0: no bound.
    #[must_use]
    pub fn at_once(per_second: u32) -> Self {
        Self::holding(1000, per_second)
    }

    fn holding(holds_ms: u64, per_second: u32) -> Self {
        Self {
            per_second: AtomicU32::new(per_second),
            holds_ms,
            bucket: Mutex::new(Bucket {
                millis: capacity(per_second, holds_ms),
                filled_ms: 0,
            }),
        }
    }

    /// From here on so many.
    pub fn set(&self, per_second: u32) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    fn per_second(&self) -> u32 {
        self.per_second.load(Ordering::Relaxed)
    }

    /// How many messages may be sent now, `wanted` at the most.
    #[must_use]
    pub fn take(&self, wanted: usize, now_ms: u64) -> usize {
        let per_second = self.per_second();
        if per_second == 0 {
            return wanted;
        }
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed_ms = now_ms.saturating_sub(bucket.filled_ms);
        let filled = passed_ms.saturating_mul(u64::from(per_second));
        bucket.millis = bucket
            .millis
            .saturating_add(filled)
            .min(capacity(per_second, self.holds_ms));
        bucket.filled_ms = now_ms.max(bucket.filled_ms);
        let taken = (bucket.millis / 1000).min(wanted as u64);
        bucket.millis -= taken * 1000;
        taken as usize
    }

    /// Gives back what was taken and not sent.
    pub fn give_back(&self, unused: usize) {
        if self.per_second() > 0 && unused > 0 {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.millis += unused as u64 * 1000;
        }
    }

    /// When to ask again after nothing could be taken.
    #[must_use]
    pub fn next_ms(&self, now_ms: u64) -> u64 {
        now_ms + 1000_u64.div_ceil(u64::from(self.per_second().max(1)))
    }
}

/// In thousandths of a message.
fn capacity(per_second: u32, holds_ms: u64) -> u64 {
    (u64::from(per_second) * holds_ms).max(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_no_more_messages_than_it_may() {
        for per_second in [1, 7, 100, 5000] {
            let pace = Pace::new(per_second);
            let mut sent = 0;
            for now_ms in 0..10_000 {
                let taken = pace.take(50, now_ms);
                let unused = taken / 3;
                pace.give_back(unused);
                sent += taken - unused;
            }
            let expected = per_second as usize * 10;
            let burst = (per_second as usize / 10).max(1);
            assert!(
                (expected - 1..=expected + burst).contains(&sent),
                "{per_second} a second: {sent} in 10 s"
            );
        }
        assert_eq!(Pace::new(0).take(50, 0), 50);
    }

    #[test]
    fn nothing_is_saved_up_while_nothing_is_sent() {
        let pace = Pace::new(100);
        assert_eq!(pace.take(1000, 3_600_000), 10);
        assert_eq!(pace.take(1000, 3_600_000), 0);
        assert_eq!(pace.next_ms(3_600_000), 3_600_010);
        let pace = Pace::at_once(100);
        assert_eq!(pace.take(1000, 3_600_000), 100);
        assert_eq!(pace.take(1000, 3_600_010), 1);
    }
}
