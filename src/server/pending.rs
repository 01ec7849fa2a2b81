//! Connections that have not logged in yet: so many at most, and the oldest makes room for the
//! newest, so that a flood of half-open sockets keeps nobody out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mailbox::{EVICTED, Mailbox};

/// All connections before login, by age.
#[derive(Debug, Default, Clone)]
pub struct PendingSet(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_age: BTreeMap<u64, Arc<Mailbox>>,
}

/// One connection's place; dropping it gives the place back.
#[derive(Debug)]
pub struct Pending {
    set: PendingSet,
    number: u64,
}

impl PendingSet {
    /// Takes a place for a new connection; beyond `max` the oldest one is told to go.
    #[must_use]
    pub fn enter(&self, mailbox: &Arc<Mailbox>, max: usize) -> Pending {
        let mut entries = self.lock();
        let number = entries.next;
        entries.next += 1;
        entries.by_age.insert(number, Arc::clone(mailbox));
        while entries.by_age.len() > max.max(1) {
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
        oldest.raise(EVICTED);
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
        let first = set.enter(&boxes[0], 2);
        let second = set.enter(&boxes[1], 2);
        assert_eq!(boxes[0].take(Waker::noop()), 0);
        let _third = set.enter(&boxes[2], 2);
        assert_eq!(boxes[0].take(Waker::noop()), EVICTED);
        drop(first);
        drop(second);
        assert!(set.evict_oldest());
        assert_eq!(boxes[1].take(Waker::noop()), 0);
        assert_eq!(boxes[2].take(Waker::noop()), EVICTED);
        assert!(!set.evict_oldest());
    }
}
