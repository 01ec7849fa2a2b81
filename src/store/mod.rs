//! Messages that wait for their receivers: one queue per endpoint, a lane per priority.
//!
//! In this version queues are in memory. The interface is the durable log's: a message is
//! appended once with all its copies, a receiver fetches from its queue's cursor and acknowledges,
//! and what was fetched but never acknowledged is released and delivered again. A sender is
//! acknowledged once [`Store::append`] has returned.
//!
//! Invariants:
//! - a message is in every queue that it was appended to, or in none;
//! - a queue delivers a lane in the order of appending, lower priority numbers first;
//! - no queue exceeds its quota, and all together do not exceed `max_bytes`.

pub mod journal;
mod queue;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::mailbox::{Mailbox, SPACE};
use crate::message::{Endpoint, Message, Priority};

pub use queue::{Delivery, Queue, QueueStatus, wake};

/// Why a queued message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// Its time to live passed before it could be delivered.
    Expired,
    /// It made room for a newer one (`when_full = "drop-oldest"`).
    DroppedOldest,
}

/// A queued message that was given up; counted and logged by the hub.
#[derive(Debug)]
pub struct Loss {
    /// Why.
    pub reason: LossReason,
    /// The message.
    pub message: Arc<Message>,
}

/// What the queues may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all queues together.
    pub max_bytes: u64,
    /// Bytes of one queue.
    pub endpoint_max_bytes: u64,
    /// Messages of one queue.
    pub endpoint_max_messages: usize,
    /// Whether a full queue gives up its oldest messages instead of refusing new ones.
    pub drop_oldest: bool,
}

impl Bounds {
    /// Usage at which a full queue takes messages again: an eighth below its limit, so that a
    /// held-back sender is not woken for every single message.
    fn low(limit: u64) -> u64 {
        limit - limit / 8
    }
}

/// One copy of a message to append.
#[derive(Debug, Clone)]
pub struct Copy {
    /// The queue it goes to.
    pub queue: Arc<Queue>,
    /// Its lane.
    pub priority: Priority,
    /// When it expires, in milliseconds of the hub's clock; `u64::MAX` never.
    pub expires_ms: u64,
}

/// A queue or the store as a whole has no room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("queue {endpoint} is full")]
pub struct Full {
    /// The endpoint whose queue refused.
    pub endpoint: Endpoint,
}

/// All queues.
#[derive(Debug)]
pub struct Store {
    bounds: RwLock<Bounds>,
    used_bytes: AtomicU64,
    next_seq: AtomicU64,
    queues: RwLock<HashMap<Endpoint, Arc<Queue>>>,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Arc<Mailbox>>>,
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds: RwLock::new(bounds),
            used_bytes: AtomicU64::new(0),
            next_seq: AtomicU64::new(1),
            queues: RwLock::default(),
            has_waiters: AtomicBool::new(false),
            waiters: Mutex::default(),
        }
    }

    /// Changes the bounds; what is queued already stays.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) = bounds;
        self.wake_waiters();
    }

    /// The queue of an endpoint, made at first use.
    #[must_use]
    pub fn queue(&self, endpoint: &Endpoint) -> Arc<Queue> {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            queues
                .entry(endpoint.clone())
                .or_insert_with(|| Arc::new(Queue::new(endpoint.clone()))),
        )
    }

    /// Appends one message to all its queues, or to none.
    ///
    /// `copies` are sorted by the caller in one order for all messages (the route table's), which
    /// keeps the locks in one order. `idle` collects the receivers that must be woken; the caller
    /// wakes them once its batch is done. Where there is no room, `waiter` is registered and gets
    /// [`SPACE`] when it is worth trying again.
    ///
    /// # Errors
    /// [`Full`] names the queue that had no room; nothing was appended.
    pub fn append(
        &self,
        message: &Arc<Message>,
        copies: &[Copy],
        waiter: Option<&Arc<Mailbox>>,
        idle: &mut Vec<Arc<Mailbox>>,
        losses: &mut Vec<Loss>,
    ) -> Result<u64, Full> {
        let bounds = *self.bounds.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = message.bytes();
        let mut locked = Vec::with_capacity(copies.len());
        for copy in copies {
            let mut state = copy.queue.lock();
            if !state.make_room(bytes, &bounds, &self.used_bytes, losses) {
                if let Some(waiter) = waiter {
                    state.wait(waiter);
                }
                return Err(copy.queue.full());
            }
            locked.push(state);
        }
        let total = bytes * copies.len() as u64;
        if self.used_bytes.fetch_add(total, Ordering::AcqRel) + total > bounds.max_bytes {
            self.used_bytes.fetch_sub(total, Ordering::AcqRel);
            if let Some(waiter) = waiter {
                self.wait(waiter);
                // What was freed before the waiter was there told nobody.
                if self.used_bytes() + total <= bounds.max_bytes {
                    waiter.raise(SPACE);
                }
            }
            return Err(copies.first().map_or_else(
                || Full {
                    endpoint: Endpoint::Upstream,
                },
                |copy| copy.queue.full(),
            ));
        }
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        for (copy, state) in copies.iter().zip(&mut locked) {
            state.push(seq, message, copy, idle);
        }
        Ok(seq)
    }

    /// Takes messages from a queue for delivery, up to so many and so many bytes (the last one may
    /// go beyond). `consumer` is woken when there are new ones after this found the queue empty.
    pub fn fetch(
        &self,
        queue: &Queue,
        consumer: &Arc<Mailbox>,
        room: (usize, u64),
        now_ms: u64,
        out: &mut Vec<Delivery>,
        losses: &mut Vec<Loss>,
    ) {
        let freed = queue.lock().fetch(consumer, room, now_ms, out, losses);
        self.free(queue, freed);
    }

    /// Removes a delivered message.
    pub fn acknowledge(&self, queue: &Queue, seq: u64) {
        let freed = queue.lock().acknowledge(seq);
        self.free(queue, freed);
    }

    /// Puts fetched messages back in their places; the next receiver gets them first.
    pub fn release(&self, queue: &Queue, seqs: &[u64]) {
        queue.lock().release(seqs);
    }

    /// Gives up expired messages and forgets empty queues that nothing else refers to.
    pub fn sweep(&self, now_ms: u64, losses: &mut Vec<Loss>) {
        let queues: Vec<_> = {
            let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
            queues.values().cloned().collect()
        };
        for queue in queues {
            let freed = queue.lock().expire(now_ms, losses);
            self.free(&queue, freed);
        }
        self.queues
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, queue| Arc::strong_count(queue) > 1 || !queue.is_empty());
    }

    /// What is queued, per endpoint and priority.
    #[must_use]
    pub fn status(&self) -> Vec<QueueStatus> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let mut status: Vec<_> = queues.values().flat_map(|queue| queue.status()).collect();
        status.sort_by(|a, b| (&a.endpoint, a.priority).cmp(&(&b.endpoint, b.priority)));
        status
    }

    /// Bytes of all queued messages.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn free(&self, queue: &Queue, freed: u64) {
        if freed == 0 {
            return;
        }
        let used = self.used_bytes.fetch_sub(freed, Ordering::AcqRel) - freed;
        let bounds = *self.bounds.read().unwrap_or_else(PoisonError::into_inner);
        queue.lock().wake_waiters(&bounds);
        if self.has_waiters.load(Ordering::Acquire) && used <= Bounds::low(bounds.max_bytes) {
            self.wake_waiters();
        }
    }

    fn wait(&self, waiter: &Arc<Mailbox>) {
        let mut waiters = lock(&self.waiters);
        waiters.retain(|other| Arc::strong_count(other) > 1 && !Arc::ptr_eq(other, waiter));
        waiters.push(Arc::clone(waiter));
        self.has_waiters.store(true, Ordering::Release);
    }

    fn wake_waiters(&self) {
        let waiters = {
            let mut waiters = lock(&self.waiters);
            self.has_waiters.store(false, Ordering::Release);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters {
            waiter.raise(SPACE);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
