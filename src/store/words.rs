//! The words of the store: what is appended, what is lost, what has no room.

use std::sync::Arc;

use super::Store;
use super::queue::{Delivery, Queue};
use crate::mailbox::Mailbox;
use crate::message::{Endpoint, Message, Origin, Priority};

/// Why a queued message was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// Its time to live passed before it could be delivered.
    Expired,
    /// It made room for a newer one (`when_full = "drop-oldest"`).
    DroppedOldest,
    /// It cannot be read from disk any more.
    Damaged,
    /// `edgehub store purge`.
    Purged,
}

/// Queued messages that were given up; counted and logged by the hub.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Why.
    pub reason: LossReason,
    /// The first and the last seq.
    pub seqs: (u64, u64),
    /// How many.
    pub messages: usize,
    /// Who sent it, where that is known without reading.
    pub origin: Option<Arc<Origin>>,
    /// Whose queue they were in, where it is known.
    pub endpoint: Option<Endpoint>,
}

impl Loss {
    pub(super) fn of(reason: LossReason, seq: u64, message: &Message) -> Self {
        Self {
            origin: Some(Arc::clone(&message.origin)),
            ..Self::unread(reason, (seq, seq), 1)
        }
    }

    pub(super) fn unread(reason: LossReason, seqs: (u64, u64), messages: usize) -> Self {
        Self {
            reason,
            seqs,
            messages,
            origin: None,
            endpoint: None,
        }
    }
}

/// What the queues may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of all queues together, where they are in memory.
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
    pub(super) fn low(limit: u64) -> u64 {
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
    /// How long it lives, in milliseconds; `None`: for ever.
    pub ttl_ms: Option<u64>,
}

impl Copy {
    /// One in the lane of messages whose route names no priority.
    #[must_use]
    pub fn of(queue: &Arc<Queue>, ttl_ms: Option<u64>) -> Self {
        Self {
            queue: Arc::clone(queue),
            priority: Priority::DEFAULT,
            ttl_ms,
        }
    }
}

/// What had no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A queue, which is at its quota.
    Queue(Endpoint),
    /// The store as a whole.
    Store,
    /// The writer has not taken the last batch yet; it will in a moment.
    Writer,
}

/// There was no room for a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no room: {place:?}")]
pub struct Full {
    /// Where.
    pub place: Place,
}

/// A message to append, and who appends it.
#[derive(Debug)]
pub struct Append<'a> {
    /// The message.
    pub message: &'a Arc<Message>,
    /// Its copies, sorted in one order for all messages, which keeps the locks in one order.
    pub copies: &'a [Copy],
    /// Gets [`crate::mailbox::SPACE`] when it is worth trying again.
    pub waiter: &'a Arc<Mailbox>,
    /// Whether it waits for room. One that does not waits for the writer only.
    pub is_patient: bool,
    /// The sender has gone: it cannot be asked again, so the writer's bounds do not count.
    pub is_last: bool,
    /// Milliseconds of the hub's clock.
    pub now_ms: u64,
}

impl<'a> Append<'a> {
    /// One copy of a message whose sender is not asked again: it has room, or is lost.
    #[must_use]
    pub fn unasked(
        (message, copy): (&'a Arc<Message>, &'a Copy),
        waiter: &'a Arc<Mailbox>,
        now_ms: u64,
    ) -> Self {
        Self {
            message,
            copies: std::slice::from_ref(copy),
            waiter,
            is_patient: false,
            is_last: true,
            now_ms,
        }
    }
}

impl Store {
    /// How long a message still has, in milliseconds; `None`: for ever.
    #[must_use]
    pub fn time_left_ms(&self, delivery: &Delivery, now_ms: u64) -> Option<u64> {
        let clock = self.clock();
        let at_s = u64::from(delivery.expires_s) + u64::from(clock.shift_s(delivery.seq));
        (delivery.expires_s != 0).then(|| (at_s * 1000).saturating_sub(clock.now_ms(now_ms)))
    }
}
