//! One endpoint's queue: a lane per priority, who reads from it, and who waits for room in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::clock::TrustedClock;
use super::control::priority_at;
use super::lane::{InFlight, Lane, Request, Waiting};
use super::{Bounds, Full, Loss, LossReason, Place, lock};
use crate::mailbox::{DELIVERY, Mailbox, SPACE};
use crate::message::{Endpoint, Message, Priority};

/// Acknowledged messages behind one that is not, beyond which nothing more is handed out: the
/// cursor would not hold them.
const ACKED_SPAN_MAX: usize = 1024;
/// A lane with fewer messages in memory, and more on disk, is read on.
const READY_MIN: usize = 256;

/// A message handed out for delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its place in the order of all messages.
    pub seq: u64,
    /// The lane it came from.
    pub priority: Priority,
    /// In seconds of the trusted clock, for [`super::Store::time_left_ms`]; 0: never.
    pub expires_s: u32,
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
    /// The endpoint's number in the log.
    pub(super) number: u32,
    state: Mutex<State>,
}

impl Queue {
    pub(super) fn new(endpoint: Endpoint, number: u32, keeps_messages: bool) -> Self {
        let only_kept = matches!(endpoint, Endpoint::Session { .. });
        Self {
            endpoint,
            number,
            state: Mutex::new(State {
                keeps_messages,
                only_kept,
                ..State::default()
            }),
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
            _ => "",
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn full(&self) -> Full {
        Full {
            place: Place::Queue(self.endpoint.clone()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// The newest message that it ever had.
    pub(super) fn last_seq(&self) -> u64 {
        let state = self.lock();
        let newest = state.lanes.iter().map(|lane| lane.last_seq);
        newest.max().unwrap_or(0)
    }

    /// Bytes of the messages that wait or are in flight.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Messages that wait or are in flight.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.lock().messages
    }

    pub(super) fn status(&self) -> Vec<QueueStatus> {
        let state = self.lock();
        let mut rows = Vec::new();
        for (index, lane) in state.lanes.iter().enumerate() {
            let priority = priority_at(index);
            if lane.is_empty() && priority != Priority::DEFAULT {
                continue;
            }
            rows.push(QueueStatus {
                endpoint: self.endpoint.clone(),
                priority,
                messages: lane.waiting() + lane.in_flight.len(),
                in_flight: lane.in_flight.len(),
                bytes: lane.waiting_bytes(),
            });
        }
        rows
    }
}

/// Memory for messages that are on disk too.
#[derive(Debug, Default)]
pub(super) struct Cache {
    used: AtomicU64,
}

impl Cache {
    /// All queues together: what is above it is read from disk.
    const BYTES_MAX: u64 = 4 << 20;
    /// One queue.
    const QUEUE_BYTES_MAX: u64 = 1 << 20;

    pub fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < Self::BYTES_MAX
    }
}

/// What a queue's lock guards.
#[derive(Debug, Default)]
pub(super) struct State {
    pub lanes: [Lane; Priority::COUNT],
    pub messages: usize,
    pub bytes: u64,
    /// There is no disk: messages stay in memory until they are acknowledged.
    keeps_messages: bool,
    /// Messages are handed out once they are kept. What a client has of QoS 2 is known by their
    /// seqs, and one that a crash takes away gives its seq to another.
    pub(super) only_kept: bool,
    /// Bytes of this queue in the cache.
    pub cached: u64,
    /// No message in memory expires before this; 0 makes the next sweep look.
    pub next_expiry_s: u32,
    /// Who reads from it.
    pub consumer: Option<Arc<Mailbox>>,
    /// The reader found nothing and wants to be woken.
    pub idle: bool,
    waiters: Vec<Arc<Mailbox>>,
    /// The queue is on the list of those whose cursors changed.
    pub is_listed: bool,
    /// The queue is on the list of those that have to be read on.
    pub is_wanted: bool,
}

impl State {
    /// Whether a message of `bytes` fits.
    pub fn has_room(&self, bytes: u64, bounds: &Bounds) -> bool {
        self.bytes + bytes <= bounds.endpoint_max_bytes
            && self.messages < bounds.endpoint_max_messages
    }

    /// Adds a new message; `idle` gets the reader that must be woken.
    pub fn push(
        &mut self,
        (seq, priority, expires_s): (u64, Priority, u32),
        message: &Arc<Message>,
        cache: &Cache,
        idle: &mut Vec<Arc<Mailbox>>,
    ) {
        let bytes = message.bytes();
        let has_room = || self.cached + bytes <= Cache::QUEUE_BYTES_MAX && cache.has_room();
        let cached = self.keeps_messages || (self.consumer.is_some() && has_room());
        let Some(lane) = self.lanes.get_mut(priority.index()) else {
            return;
        };
        let forgotten = if cached { 0 } else { lane.forget_tail() };
        let waiting = Waiting {
            seq,
            expires_s,
            message: Arc::clone(message),
        };
        if lane.push(waiting, cached) && !self.keeps_messages {
            self.cached += bytes;
            cache.take(bytes);
        }
        self.forgotten(forgotten, cache);
        self.messages += 1;
        self.bytes += bytes;
        self.next_expiry_s = earlier(self.next_expiry_s, expires_s);
        if std::mem::take(&mut self.idle) {
            idle.extend(self.consumer.clone());
        }
    }

    /// The most urgent lane with something that waits.
    pub fn most_urgent(&self) -> Option<Priority> {
        let mut lanes = self.lanes.iter();
        let first = lanes.position(|lane| lane.waiting() > 0);
        first.map(priority_at)
    }

    /// Has the consumer woken by the next message; false if something waits already.
    pub fn listen(&mut self, consumer: &Arc<Mailbox>) -> bool {
        self.attach(consumer);
        self.idle = self.most_urgent().is_none();
        self.idle
    }

    /// Moves messages into flight, most urgent lane first. True if the disk has to be read.
    pub fn fetch(
        &mut self,
        consumer: &Arc<Mailbox>,
        (mut room, mut room_bytes): (usize, u64),
        (clock, now_ms, kept): (&TrustedClock, u64, u64),
        cache: &Cache,
        (out, losses): (&mut Vec<Delivery>, &mut Vec<Loss>),
    ) -> bool {
        self.attach(consumer);
        let mut given_back = 0;
        let mut reads = false;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let priority = priority_at(index);
            if is_held(lane) {
                continue;
            }
            while room > 0 && room_bytes > 0 && !is_held(lane) {
                let is_early = |next: &Waiting| self.only_kept && next.seq > kept;
                if lane.ready.front().is_some_and(is_early) {
                    break;
                }
                let Some(waiting) = lane.ready.pop_front() else {
                    break;
                };
                let bytes = waiting.message.bytes();
                given_back += bytes;
                if lane.is_expired((clock, now_ms), (waiting.expires_s, waiting.seq)) {
                    self.messages -= 1;
                    self.bytes -= bytes;
                    lane.done(waiting.seq);
                    losses.push(Loss::of(LossReason::Expired, waiting.seq, &waiting.message));
                    continue;
                }
                out.push(hand_out(lane, priority, waiting, self.keeps_messages));
                room -= 1;
                room_bytes = room_bytes.saturating_sub(bytes);
            }
            if lane.gap.is_some() && is_low(lane, self.cached) {
                reads = true;
                let is_written = lane.gap.as_ref().is_some_and(|gap| gap.from <= kept);
                if lane.ready.is_empty() && is_written {
                    // Nothing less urgent before what the disk is read for.
                    break;
                }
            }
            if room == 0 || room_bytes == 0 {
                break;
            }
        }
        self.forgotten(given_back, cache);
        self.idle = out.is_empty();
        reads
    }

    /// Takes one message into flight, by its seq: `Err(true)` if the disk has to be read first,
    /// `Err(false)` if it is gone.
    pub fn fetch_one(
        &mut self,
        consumer: &Arc<Mailbox>,
        (priority, seq): (Priority, u64),
        (clock, now_ms): (&TrustedClock, u64),
        cache: &Cache,
    ) -> Result<Delivery, bool> {
        self.attach(consumer);
        let lane = self.lanes.get_mut(priority.index()).ok_or(false)?;
        let found = lane.ready.binary_search_by_key(&seq, |waiting| waiting.seq);
        let found = found.ok();
        let is_expired =
            |waiting: &Waiting| lane.is_expired((clock, now_ms), (waiting.expires_s, seq));
        if found
            .and_then(|at| lane.ready.get(at))
            .is_some_and(is_expired)
        {
            // The next sweep gives it up.
            self.next_expiry_s = 0;
            return Err(false);
        }
        let Some(waiting) = found.and_then(|at| lane.ready.remove(at)) else {
            let may_come = lane.gap.as_ref().is_some_and(|gap| gap.from <= seq);
            self.idle |= may_come;
            return Err(may_come && lane.awaits(seq));
        };
        let bytes = waiting.message.bytes();
        let delivery = hand_out(lane, priority, waiting, self.keeps_messages);
        self.forgotten(bytes, cache);
        Ok(delivery)
    }

    /// Removes a message in flight; returns the bytes freed.
    pub fn acknowledge(&mut self, priority: Priority, seq: u64) -> Option<u64> {
        let lane = self.lanes.get_mut(priority.index())?;
        let bytes = lane.acknowledge(seq)?;
        self.messages -= 1;
        self.bytes -= bytes;
        Some(bytes)
    }

    /// Puts messages in flight back to their places.
    pub fn release(&mut self, priority: Priority, seqs: &[u64], cache: &Cache) {
        if let Some(lane) = self.lanes.get_mut(priority.index()) {
            let forgotten = lane.release(seqs);
            self.forgotten(forgotten, cache);
        }
        self.next_expiry_s = 0;
    }

    /// The reader is here: what arrives may stay in memory for it.
    fn attach(&mut self, consumer: &Arc<Mailbox>) {
        let known = self.consumer.as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(known, consumer)) {
            self.consumer = Some(Arc::clone(consumer));
        }
    }

    /// The reader has gone: nothing stays in memory that is on disk.
    pub fn detach(&mut self, consumer: &Arc<Mailbox>, cache: &Cache) {
        let known = self.consumer.as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(known, consumer)) {
            return;
        }
        self.consumer = None;
        self.idle = false;
        if !self.keeps_messages {
            let forgotten = self.lanes.iter_mut().map(Lane::forget).sum();
            self.forgotten(forgotten, cache);
        }
    }

    /// Messages of so many bytes are no longer in memory.
    pub(super) fn forgotten(&mut self, bytes: u64, cache: &Cache) {
        if !self.keeps_messages {
            self.cached -= bytes;
            cache.give_back(bytes);
        }
    }

    /// The lane that has to be read on, if any: the most urgent that can be, as far as the log is
    /// written, else one that cannot be yet.
    pub fn wanted(&self, kept: u64) -> Option<(usize, Request)> {
        self.consumer.as_ref()?;
        let lanes = self.lanes.iter().enumerate();
        let wanted = lanes.filter(|(_, lane)| is_low(lane, self.cached));
        let mut wanted = wanted.filter_map(|(index, lane)| Some((index, lane.request()?)));
        let first = wanted.next()?;
        let mut all = std::iter::once(first).chain(wanted);
        Some(
            all.find(|(_, request)| request.from <= kept)
                .unwrap_or(first),
        )
    }

    /// Registers a held-back sender.
    pub fn wait(&mut self, waiter: &Arc<Mailbox>) {
        register(&mut self.waiters, waiter);
    }

    /// Whether a held-back sender waits for room.
    pub fn has_waiters(&self) -> bool {
        any_present(&self.waiters)
    }

    /// Tells held-back senders when there is room again.
    pub fn wake_waiters(&mut self, bounds: &Bounds) {
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
}

/// Whether a lane with messages on disk is to be read on: few are in memory, and few bytes.
fn is_low(lane: &Lane, cached: u64) -> bool {
    let is_small = cached < Cache::QUEUE_BYTES_MAX;
    lane.ready.is_empty() || (lane.ready.len() < READY_MIN && is_small)
}

/// Whether a lane waits for its oldest message to be acknowledged. One whose oldest message waits
/// itself goes on: nothing else would ever move its cursor.
fn is_held(lane: &Lane) -> bool {
    let oldest = lane.in_flight.front().map(|flight| flight.seq);
    lane.acked.len() >= ACKED_SPAN_MAX && oldest == Some(lane.oldest())
}

/// Takes a message into flight, which it stays in until it is acknowledged.
fn hand_out(lane: &mut Lane, priority: Priority, waiting: Waiting, keeps_it: bool) -> Delivery {
    let Waiting {
        seq,
        expires_s,
        message,
    } = waiting;
    lane.launch(InFlight {
        seq,
        bytes: message.bytes(),
        expires_s,
        message: keeps_it.then(|| Arc::clone(&message)),
    });
    Delivery {
        seq,
        priority,
        expires_s,
        message,
    }
}

/// The earlier of two expiries; the second may be 0: never.
pub(super) fn earlier(next_s: u32, expires_s: u32) -> u32 {
    if expires_s == 0 {
        next_s
    } else {
        next_s.min(expires_s)
    }
}

/// Puts a held-back sender on a list once, and takes off those whose connection has gone.
pub(super) fn register(waiters: &mut Vec<Arc<Mailbox>>, waiter: &Arc<Mailbox>) {
    waiters.retain(|other| is_present(other) && !Arc::ptr_eq(other, waiter));
    waiters.push(Arc::clone(waiter));
}

/// Whether any of the held-back senders still has its connection.
pub(super) fn any_present(waiters: &[Arc<Mailbox>]) -> bool {
    waiters.iter().any(is_present)
}

fn is_present(waiter: &Arc<Mailbox>) -> bool {
    Arc::strong_count(waiter) > 1
}

/// Wakes receivers whose queues got messages.
pub fn wake(idle: &mut Vec<Arc<Mailbox>>) {
    for consumer in idle.drain(..) {
        consumer.raise(DELIVERY);
    }
}
