//! Connections that have not logged in yet: so many at most, and the oldest makes room for the
//! newest, so that a flood of half-open sockets keeps nobody out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mailbox::{EVICTED, Mailbox};

/// For this long a connection stays, flood or not: enough for a handshake on a busy device.
const GRACE_MS: u64 = 250;
/// How far the set may outgrow its bound while all are within their grace.
const OVERFLOW: usize = 2;

/// All connections before login, by age.
#[derive(Debug, Default, Clone)]
pub struct PendingSet(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_age: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    since_ms: u64,
    mailbox: Arc<Mailbox>,
}

/// One connection's place; dropping it gives the place back.
#[derive(Debug)]
pub struct Pending {
    set: PendingSet,
    number: u64,
}

impl PendingSet {
    /// Takes a place for a new connection; beyond `max` the oldest ones are told to go, once they
    /// had their grace.
    #[must_use]
    pub fn enter(&self, mailbox: &Arc<Mailbox>, max: usize, now_ms: u64) -> Pending {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        let entry = Entry {
            since_ms: now_ms,
            mailbox: Arc::clone(mailbox),
        };
        entries.by_age.insert(number, entry);
        let max = max.max(1);
        loop {
            let count = entries.by_age.len();
            let oldest = entries.by_age.values().next();
            let in_grace = oldest.is_some_and(|oldest| oldest.since_ms + GRACE_MS > now_ms);
            if count <= max || (in_grace && count <= max * OVERFLOW) {
                break;
            }
            Self::evict(&mut entries);
        }
        Pending {
            set: self.clone(),
            number,
        }
    }

    /// Tells the oldest connection to go; false if there is none.
    pub fn evict_oldest(&self) -> bool {
        Self::evict(&mut self.lock())
    }

    fn evict(entries: &mut Entries) -> bool {
        let Some((_, oldest)) = entries.by_age.pop_first() else {
            return false;
        };
        oldest.mailbox.raise(EVICTED);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.set.lock().by_age.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let set = PendingSet::default();
        let boxes: Vec<Arc<Mailbox>> = (0..3).map(|_| Arc::default()).collect();
        let first = set.enter(&boxes[0], 2, 0);
        let second = set.enter(&boxes[1], 2, 0);
        assert_eq!(boxes[0].take(Waker::noop()), 0);
        let _third = set.enter(&boxes[2], 2, GRACE_MS);
        assert_eq!(boxes[0].take(Waker::noop()), EVICTED);
        drop(first);
        drop(second);
        assert!(set.evict_oldest());
        assert_eq!(boxes[1].take(Waker::noop()), 0);
        assert_eq!(boxes[2].take(Waker::noop()), EVICTED);
        assert!(!set.evict_oldest());
    }

    #[test]
    fn a_flood_evicts_nobody_within_their_grace_up_to_a_bound() {
        let set = PendingSet::default();
        let boxes: Vec<Arc<Mailbox>> = (0..=2 * OVERFLOW).map(|_| Arc::default()).collect();
        let last = GRACE_MS - 1;
        let enter = |mailbox| set.enter(mailbox, 2, last);
        let mut places: Vec<_> = boxes[..2 * OVERFLOW].iter().map(enter).collect();
        assert!(boxes.iter().all(|mailbox| mailbox.take(Waker::noop()) == 0));
        places.push(set.enter(&boxes[2 * OVERFLOW], 2, last));
        assert_eq!(boxes[0].take(Waker::noop()), EVICTED);
    }
}
