//! What waits, as others look at it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Queue, QueueStatus, Store};
use crate::message::{Endpoint, Priority};

impl Store {
    /// The queues of all endpoints of a sort, those known from the disk included.
    #[must_use]
    pub fn queues_of(&self, sort: impl Fn(&Endpoint) -> bool) -> Vec<Arc<Queue>> {
        let mut queues = self.queues();
        queues.retain(|queue| sort(queue.endpoint()));
        queues
    }

    /// The most urgent lane of a queue with something that waits.
    #[must_use]
    pub fn most_urgent(&self, queue: &Queue) -> Option<Priority> {
        queue.lock().most_urgent()
    }

    /// What is queued, per endpoint and priority.
    #[must_use]
    pub fn status(&self) -> Vec<QueueStatus> {
        let mut status: Vec<_> = self
            .queues()
            .iter()
            .flat_map(|queue| queue.status())
            .collect();
        status.sort_by(|a, b| (&a.endpoint, a.priority).cmp(&(&b.endpoint, b.priority)));
        status
    }

    /// Bytes of all queued messages.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        if self.log.is_none() {
            return self.used_bytes.load(Ordering::Relaxed);
        }
        self.queues().iter().map(|queue| queue.lock().bytes).sum()
    }
}
