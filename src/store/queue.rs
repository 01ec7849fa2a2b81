//! One endpoint's queue: a lane per priority, the messages in flight, and who waits for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Bounds, Copy, Full, Loss, LossReason, lock};
use crate::mailbox::{DELIVERY, Mailbox, SPACE};
use crate::message::{Endpoint, Message, Priority};

/// A message handed out for delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its place in the order of all messages.
    pub seq: u64,
    /// The lane it came from.
    pub priority: Priority,
    /// Whether it was handed out before.
    pub redelivered: bool,
    /// The message.
    pub message: Arc<Message>,
}

/// What one lane of a queue holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The lane.
    pub priority: Priority,
    /// Messages waiting or in flight.
    pub messages: usize,
    /// Of these, handed out and not acknowledged.
    pub in_flight: usize,
    /// Bytes of the messages that wait.
    pub bytes: u64,
}

/// The queue of one endpoint.
#[derive(Debug)]
pub struct Queue {
    endpoint: Endpoint,
    state: Mutex<State>,
}

impl Queue {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            state: Mutex::default(),
        }
    }

    /// Whose queue it is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether it is an input of a module.
    #[must_use]
    pub fn is_of(&self, module: &str) -> bool {
        matches!(&self.endpoint, Endpoint::Input { module: own, .. } if &**own == module)
    }

    /// The input's name; empty for upstream.
    #[must_use]
    pub fn input(&self) -> &str {
        match &self.endpoint {
            Endpoint::Input { input, .. } => input,
            Endpoint::Upstream => "",
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn full(&self) -> Full {
        Full {
            endpoint: self.endpoint.clone(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().messages == 0
    }

    pub(super) fn status(&self) -> Vec<QueueStatus> {
        let state = self.lock();
        let mut rows = Vec::new();
        for (index, lane) in state.lanes.iter().enumerate() {
            let priority = Priority::new(index as u64).unwrap_or(Priority::DEFAULT);
            let in_flight = state
                .in_flight
                .iter()
                .filter(|flight| flight.delivery.priority == priority && !flight.acknowledged)
                .count();
            if lane.is_empty() && in_flight == 0 && priority != Priority::DEFAULT {
                continue;
            }
            rows.push(QueueStatus {
                endpoint: self.endpoint.clone(),
                priority,
                messages: lane.len() + in_flight,
                in_flight,
                bytes: lane
                    .iter()
                    .map(|entry| entry.delivery.message.bytes())
                    .sum(),
            });
        }
        rows
    }
}

#[derive(Debug)]
struct Entry {
    delivery: Delivery,
    expires_ms: u64,
}

#[derive(Debug)]
struct InFlight {
    delivery: Delivery,
    expires_ms: u64,
    acknowledged: bool,
}

/// What a queue's lock guards.
#[derive(Debug, Default)]
pub(super) struct State {
    lanes: [VecDeque<Entry>; Priority::COUNT],
    in_flight: VecDeque<InFlight>,
    messages: usize,
    bytes: u64,
    /// No entry expires before this; 0 makes the next sweep look.
    next_expiry_ms: u64,
    /// The receiver found the queue empty and wants to be woken.
    idle: Option<Arc<Mailbox>>,
    waiters: Vec<Arc<Mailbox>>,
}

impl State {
    /// Whether a message of `bytes` fits, after dropping the oldest where that is the policy.
    pub(super) fn make_room(
        &mut self,
        bytes: u64,
        bounds: &Bounds,
        used_bytes: &AtomicU64,
        losses: &mut Vec<Loss>,
    ) -> bool {
        loop {
            let fits = self.bytes + bytes <= bounds.endpoint_max_bytes
                && self.messages < bounds.endpoint_max_messages;
            let crowded =
                used_bytes.load(Ordering::Relaxed) + bytes > bounds.max_bytes && bounds.drop_oldest;
            if fits && !crowded {
                return true;
            }
            let dropped = bounds.drop_oldest.then(|| self.drop_oldest()).flatten();
            let Some(entry) = dropped else {
                return fits;
            };
            used_bytes.fetch_sub(entry.delivery.message.bytes(), Ordering::AcqRel);
            losses.push(Loss {
                reason: LossReason::DroppedOldest,
                message: entry.delivery.message,
            });
        }
    }

    pub(super) fn push(
        &mut self,
        seq: u64,
        message: &Arc<Message>,
        copy: &Copy,
        idle: &mut Vec<Arc<Mailbox>>,
    ) {
        let Some(lane) = self.lanes.get_mut(copy.priority.index()) else {
            return;
        };
        lane.push_back(Entry {
            delivery: Delivery {
                seq,
                priority: copy.priority,
                redelivered: false,
                message: Arc::clone(message),
            },
            expires_ms: copy.expires_ms,
        });
        self.messages += 1;
        self.bytes += message.bytes();
        self.next_expiry_ms = self.next_expiry_ms.min(copy.expires_ms);
        idle.extend(self.idle.take());
    }

    /// Moves messages into flight, most urgent lane first. Returns the bytes freed by expiry.
    pub(super) fn fetch(
        &mut self,
        consumer: &Arc<Mailbox>,
        (mut room, mut room_bytes): (usize, u64),
        now_ms: u64,
        out: &mut Vec<Delivery>,
        losses: &mut Vec<Loss>,
    ) -> u64 {
        let mut freed = 0;
        while room > 0 && room_bytes > 0 {
            let Some(entry) = self.lanes.iter_mut().find_map(VecDeque::pop_front) else {
                self.idle = Some(Arc::clone(consumer));
                break;
            };
            if entry.expires_ms <= now_ms {
                freed += self.lose(entry.delivery.message, LossReason::Expired, losses);
                continue;
            }
            let bytes = entry.delivery.message.bytes();
            out.push(entry.delivery.clone());
            self.in_flight.push_back(InFlight {
                delivery: entry.delivery,
                expires_ms: entry.expires_ms,
                acknowledged: false,
            });
            room -= 1;
            room_bytes = room_bytes.saturating_sub(bytes);
        }
        freed
    }

    /// Removes a message in flight; returns the bytes freed.
    pub(super) fn acknowledge(&mut self, seq: u64) -> u64 {
        let Some(flight) = self
            .in_flight
            .iter_mut()
            .find(|flight| flight.delivery.seq == seq && !flight.acknowledged)
        else {
            return 0;
        };
        flight.acknowledged = true;
        let bytes = flight.delivery.message.bytes();
        while self.in_flight.front().is_some_and(|f| f.acknowledged) {
            self.in_flight.pop_front();
        }
        self.messages -= 1;
        self.bytes -= bytes;
        bytes
    }

    /// Puts messages in flight back to their places in their lanes.
    pub(super) fn release(&mut self, seqs: &[u64]) {
        let mut kept = VecDeque::new();
        while let Some(flight) = self.in_flight.pop_back() {
            if flight.acknowledged || !seqs.contains(&flight.delivery.seq) {
                kept.push_front(flight);
                continue;
            }
            let lane = self.lanes.get_mut(flight.delivery.priority.index());
            if let Some(lane) = lane {
                let seq = flight.delivery.seq;
                let place = lane.partition_point(|entry| entry.delivery.seq < seq);
                let delivery = Delivery {
                    redelivered: true,
                    ..flight.delivery
                };
                let expires_ms = flight.expires_ms;
                lane.insert(
                    place,
                    Entry {
                        delivery,
                        expires_ms,
                    },
                );
            }
        }
        self.in_flight = kept;
        self.next_expiry_ms = 0;
    }

    /// Gives up what has expired; returns the bytes freed.
    pub(super) fn expire(&mut self, now_ms: u64, losses: &mut Vec<Loss>) -> u64 {
        if self.next_expiry_ms > now_ms {
            return 0;
        }
        let mut next = u64::MAX;
        let mut expired = Vec::new();
        for lane in &mut self.lanes {
            lane.retain(|entry| {
                let alive = entry.expires_ms > now_ms;
                if alive {
                    next = next.min(entry.expires_ms);
                } else {
                    expired.push(Arc::clone(&entry.delivery.message));
                }
                alive
            });
        }
        self.next_expiry_ms = next;
        expired
            .into_iter()
            .map(|message| self.lose(message, LossReason::Expired, losses))
            .sum()
    }

    /// Registers a held-back sender once, and forgets those whose connection has gone.
    pub(super) fn wait(&mut self, waiter: &Arc<Mailbox>) {
        self.waiters
            .retain(|other| Arc::strong_count(other) > 1 && !Arc::ptr_eq(other, waiter));
        self.waiters.push(Arc::clone(waiter));
    }

    pub(super) fn wake_waiters(&mut self, bounds: &Bounds) {
        if self.waiters.is_empty()
            || self.bytes > Bounds::low(bounds.endpoint_max_bytes)
            || self.messages as u64 > Bounds::low(bounds.endpoint_max_messages as u64)
        {
            return;
        }
        for waiter in self.waiters.drain(..) {
            waiter.raise(SPACE);
        }
    }

    fn lose(&mut self, message: Arc<Message>, reason: LossReason, losses: &mut Vec<Loss>) -> u64 {
        let bytes = message.bytes();
        self.messages -= 1;
        self.bytes -= bytes;
        losses.push(Loss { reason, message });
        bytes
    }

    fn drop_oldest(&mut self) -> Option<Entry> {
        let entry = self.lanes.iter_mut().rev().find_map(VecDeque::pop_front)?;
        self.messages -= 1;
        self.bytes -= entry.delivery.message.bytes();
        Some(entry)
    }
}

/// Wakes receivers whose queues got messages.
pub fn wake(idle: &mut Vec<Arc<Mailbox>>) {
    for consumer in idle.drain(..) {
        consumer.raise(DELIVERY);
    }
}
