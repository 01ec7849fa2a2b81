//! Messages that wait for their receivers: one queue per endpoint, a lane per priority, on disk.
//!
//! A message is appended once with all its copies: a frame of the log lists the lanes that it goes
//! to, and lanes are only cursors. A receiver fetches from its queue and acknowledges; what was
//! fetched but never acknowledged is released and delivered again. A sender is acknowledged once
//! its message is kept, as the sync policy has it ([`Store::await_kept`]).
//!
//! Who does what:
//! - those who append encode frames into the waiting batch (`batch`, `log`);
//! - the writer puts batches into segments and tells who waits (`writer`);
//! - the keeper reads for receivers that fell behind, prepares segments and gives them back
//!   (`keeper`);
//! - `recover` finds it all again at start.
//!
//! Invariants:
//! - a message is in every queue that it was appended to, or in none;
//! - a queue delivers a lane in the order of appending, lower priority numbers first;
//! - no queue exceeds its quota, and the files together do not exceed `max_bytes`;
//! - memory does not grow with what waits, except with `sync = "memory"`, where there is no log.

mod batch;
mod checkpoint;
pub mod clock;
mod control;
pub mod disk;
pub mod frame;
mod give_up;
mod index;
pub mod inspect;
pub mod journal;
mod keeper;
mod lane;
mod layout;
mod log;
mod notes;
mod open;
mod queue;
mod reader;
mod record;
mod recover;
mod repack;
mod scan;
mod segment;
pub mod state;
mod threads;
mod upkeep;
mod view;
mod words;
mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use smallvec::SmallVec;

use crate::mailbox::{Mailbox, SPACE};
use crate::message::{Endpoint, Priority};
use clock::TrustedClock;
use frame::{LANES_MAX, LaneRef, Parts};
use log::Log;
use queue::Cache;

pub use layout::FORMAT;
pub use log::{Counters, Options, SyncPolicy};
pub use open::Opened;
pub use queue::{Delivery, Queue, QueueStatus, wake};
pub use threads::NowMs;
pub use words::{Append, Bounds, Copy, Full, Loss, LossReason, Place};
pub use writer::Step;

/// All queues, and the log below them.
#[derive(Debug)]
pub struct Store {
    bounds: RwLock<Bounds>,
    used_bytes: AtomicU64,
    /// Without a log.
    next_seq: AtomicU64,
    queues: RwLock<HashMap<Endpoint, Arc<Queue>>>,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Arc<Mailbox>>>,
    clock: RwLock<TrustedClock>,
    cache: Cache,
    losses: Mutex<Vec<Loss>>,
    log: Option<Box<Log>>,
    /// What was found on disk for endpoints that have no queue yet.
    unclaimed: Mutex<HashMap<u32, open::Found>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl Store {
    /// An empty store in memory.
    #[must_use]
    pub fn memory(bounds: Bounds, (now_ms, wall_ms): (u64, u64)) -> Self {
        Self::new(bounds, TrustedClock::new(now_ms, wall_ms, 1, None), None)
    }

    fn new(bounds: Bounds, clock: TrustedClock, log: Option<Box<Log>>) -> Self {
        Self {
            bounds: RwLock::new(bounds),
            used_bytes: AtomicU64::new(0),
            next_seq: AtomicU64::new(1),
            queues: RwLock::default(),
            has_waiters: AtomicBool::new(false),
            waiters: Mutex::default(),
            clock: RwLock::new(clock),
            cache: Cache::default(),
            losses: Mutex::default(),
            log,
            unclaimed: Mutex::default(),
            threads: Mutex::default(),
        }
    }

    /// Changes the bounds; what is queued already stays.
    pub fn set_bounds(&self, bounds: Bounds) {
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) = bounds;
        self.wake_waiters();
        for queue in self.queues() {
            queue.lock().wake_waiters(&bounds);
        }
    }

    /// Whether a full queue gives up its oldest messages instead of refusing new ones.
    #[must_use]
    pub fn drops_oldest(&self) -> bool {
        self.bounds().drop_oldest
    }

    fn bounds(&self) -> Bounds {
        *self.bounds.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue of an endpoint, made at first use.
    #[must_use]
    pub fn queue(&self, endpoint: &Endpoint) -> Arc<Queue> {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(endpoint) {
            return Arc::clone(queue);
        }
        let number = self.number(&queues, endpoint);
        let queue = Arc::new(Queue::new(endpoint.clone(), number, self.log.is_none()));
        self.claim(&queue);
        queues.insert(endpoint.clone(), Arc::clone(&queue));
        queue
    }

    /// All queues.
    fn queues(&self) -> Vec<Arc<Queue>> {
        let queues = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        queues.values().cloned().collect()
    }

    fn clock(&self) -> RwLockReadGuard<'_, TrustedClock> {
        self.clock.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn trusted_ms(&self, now_ms: u64) -> u64 {
        self.clock().now_ms(now_ms)
    }

    /// Appends one message to all its queues, or to none. `idle` collects the receivers that must
    /// be woken; the caller wakes them once its batch is done.
    ///
    /// # Errors
    /// [`Full`] names what had no room; nothing was appended.
    pub fn append(
        &self,
        append: &Append<'_>,
        idle: &mut Vec<Arc<Mailbox>>,
        losses: &mut Vec<Loss>,
    ) -> Result<u64, Full> {
        let bounds = self.bounds();
        let bytes = append.message.bytes();
        // The clock before the queues, as everywhere: one that waits to set it holds readers up.
        let clock = self.clock();
        let mut locked = Vec::with_capacity(append.copies.len());
        for copy in append.copies {
            let mut state = copy.queue.lock();
            if !append.is_patient && state.has_waiters() {
                // Those who wait for room come first, or they would wait for ever.
                return Err(copy.queue.full());
            }
            if !self.make_room(copy, &mut state, bytes, &bounds, losses) {
                if let Some(log) = self.log.as_ref().filter(|_| bounds.drop_oldest) {
                    // The oldest are not written yet, so nothing can be dropped for a moment.
                    drop(locked);
                    drop(state);
                    log.await_all(append.waiter);
                    let place = Place::Writer;
                    return Err(Full { place });
                }
                if append.is_patient {
                    state.wait(append.waiter);
                }
                return Err(copy.queue.full());
            }
            locked.push(state);
        }
        let lane_of = |copy: &Copy| LaneRef {
            lane: control::lane_number(copy.queue.number, copy.priority.index()),
            expires_s: copy
                .ttl_ms
                .map_or(0, |ttl_ms| clock.expires_s(append.now_ms, ttl_ms)),
        };
        let lanes: SmallVec<[LaneRef; 8]> = append.copies.iter().map(lane_of).collect();
        let first_seq = match &self.log {
            None => self.take_memory(append, bytes, &bounds)?,
            Some(log) => take_log(log, append, &lanes, clock.now_ms(append.now_ms))?,
        };
        let copies = append.copies.iter().zip(&lanes).zip(&mut locked);
        for (at, ((copy, lane), state)) in copies.enumerate() {
            let seq = first_seq + (at / LANES_MAX) as u64;
            let place = (seq, copy.priority, lane.expires_s);
            state.push(place, append.message, &self.cache, idle);
        }
        Ok(first_seq + frames_of(&lanes) - 1)
    }

    /// Room in a queue, after dropping the oldest where that is the policy.
    fn make_room(
        &self,
        copy: &Copy,
        state: &mut queue::State,
        bytes: u64,
        bounds: &Bounds,
        losses: &mut Vec<Loss>,
    ) -> bool {
        let is_crowded = || {
            let used = self.used_bytes.load(Ordering::Relaxed);
            self.log.is_none() && bounds.drop_oldest && used + bytes > bounds.max_bytes
        };
        while !state.has_room(bytes, bounds) || is_crowded() {
            let before = state.bytes;
            let dropped = bounds
                .drop_oldest
                .then(|| state.drop_oldest(&self.cache))
                .flatten();
            let dropped = dropped.or_else(|| {
                let log = self.log.as_ref().filter(|_| bounds.drop_oldest)?;
                let wanted = (
                    bounds.endpoint_max_bytes / 8,
                    bounds.endpoint_max_messages / 8,
                );
                give_up::drop_from_disk(log, copy.queue.number, state, wanted)
            });
            let Some(mut loss) = dropped else {
                return state.has_room(bytes, bounds);
            };
            if self.log.is_none() {
                self.used_bytes
                    .fetch_sub(before - state.bytes, Ordering::AcqRel);
            }
            loss.endpoint = Some(copy.queue.endpoint().clone());
            losses.push(loss);
            self.note_cursor(&copy.queue, state);
        }
        true
    }

    fn take_memory(&self, append: &Append<'_>, bytes: u64, bounds: &Bounds) -> Result<u64, Full> {
        let total = bytes * append.copies.len() as u64;
        let waits_behind = !append.is_patient
            && self.has_waiters.load(Ordering::Acquire)
            && queue::any_present(&lock(&self.waiters));
        if waits_behind {
            let place = Place::Store;
            return Err(Full { place });
        }
        if self.used_bytes.fetch_add(total, Ordering::AcqRel) + total > bounds.max_bytes {
            self.used_bytes.fetch_sub(total, Ordering::AcqRel);
            if append.is_patient {
                self.wait(append.waiter);
                // What was freed before the waiter was there told nobody.
                if self.used_bytes() + total <= bounds.max_bytes {
                    append.waiter.raise(SPACE);
                }
            }
            let place = Place::Store;
            return Err(Full { place });
        }
        Ok(self.next_seq.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks to be told with [`crate::mailbox::DURABLE`] when everything up to `seq` is kept, and
    /// has it written now.
    pub fn await_kept(&self, seq: u64, waiter: &Arc<Mailbox>) {
        if let Some(log) = &self.log {
            log.await_kept(seq, waiter);
        }
    }

    /// Has what was appended written now; nobody waits for it.
    pub fn flush(&self) {
        if let Some(log) = &self.log {
            log.wake_writer(log.front());
        }
    }

    /// Everything up to this seq is kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.log.as_ref().map_or(u64::MAX, |log| log.kept())
    }

    /// Takes messages from a queue for delivery, up to so many and so many bytes (the last one may
    /// go beyond). `consumer` is woken when there are new ones after this found none, with
    /// [`crate::mailbox::DURABLE`] where they have to be kept first.
    pub fn fetch(
        &self,
        queue: &Arc<Queue>,
        consumer: &Arc<Mailbox>,
        room: (usize, u64),
        now_ms: u64,
        (out, losses): (&mut Vec<Delivery>, &mut Vec<Loss>),
    ) {
        let clock = self.clock();
        let lost = losses.len();
        let mut state = queue.lock();
        let before = state.bytes;
        let into = (&mut *out, &mut *losses);
        let kept = self.kept();
        let reads = state.fetch(consumer, room, (&*clock, now_ms, kept), &self.cache, into);
        let early = state.early(kept).filter(|_| out.is_empty());
        let freed = before - state.bytes;
        self.read_on(queue, &mut state, reads);
        if losses.len() > lost {
            self.note_cursor(queue, &mut state);
        }
        drop(state);
        drop(clock);
        self.free(queue, freed);
        if let Some(seq) = early {
            self.await_kept(seq, consumer);
        }
    }

    /// Has `consumer` woken with [`crate::mailbox::DELIVERY`] by the queue's next message; false
    /// if something waits already.
    #[must_use]
    pub fn listen(&self, queue: &Queue, consumer: &Arc<Mailbox>) -> bool {
        queue.lock().listen(consumer)
    }

    /// Takes one message for delivery again, by its seq: `Err(true)` if it has to be read from
    /// disk first, after which `consumer` is woken; `Err(false)` if it is gone.
    ///
    /// # Errors
    /// See above.
    pub fn fetch_one(
        &self,
        queue: &Arc<Queue>,
        consumer: &Arc<Mailbox>,
        place: (Priority, u64),
        now_ms: u64,
    ) -> Result<Delivery, bool> {
        let clock = self.clock();
        let mut state = queue.lock();
        let fetched = state.fetch_one(consumer, place, (&clock, now_ms), &self.cache);
        self.read_on(queue, &mut state, matches!(fetched, Err(true)));
        fetched
    }

    fn read_on(&self, queue: &Arc<Queue>, state: &mut queue::State, reads: bool) {
        if let Some(log) = self.log.as_ref().filter(|_| reads) {
            log.want(queue, state);
        }
    }

    /// Has a cursor noted that changed.
    fn note_cursor(&self, queue: &Arc<Queue>, state: &mut queue::State) {
        if let Some(log) = &self.log {
            log.note_cursor(queue, state);
        }
    }

    /// Removes a delivered message.
    pub fn acknowledge(&self, queue: &Arc<Queue>, priority: Priority, seq: u64) {
        let mut state = queue.lock();
        let freed = state.acknowledge(priority, seq);
        if freed.is_some() {
            self.note_cursor(queue, &mut state);
        }
        drop(state);
        self.free(queue, freed.unwrap_or(0));
    }

    /// Puts fetched messages back in their places; the next receiver gets them first.
    pub fn release(&self, queue: &Queue, priority: Priority, seqs: &[u64]) {
        queue.lock().release(priority, seqs, &self.cache);
    }

    /// The same for messages that the receiver may have: while this runs they do not expire.
    pub fn release_sent(&self, queue: &Queue, priority: Priority, seqs: &[u64]) {
        queue.lock().keep_sent(priority, seqs);
        self.release(queue, priority, seqs);
    }

    /// A receiver has gone, or no longer reads from this queue.
    pub fn detach(&self, queue: &Queue, consumer: &Arc<Mailbox>) {
        queue.lock().detach(consumer, &self.cache);
    }

    fn free(&self, queue: &Queue, freed: u64) {
        if freed == 0 {
            return;
        }
        let bounds = self.bounds();
        queue.lock().wake_waiters(&bounds);
        if self.log.is_some() {
            return;
        }
        let used = self.used_bytes.fetch_sub(freed, Ordering::AcqRel) - freed;
        if self.has_waiters.load(Ordering::Acquire) && used <= Bounds::low(bounds.max_bytes) {
            self.wake_waiters();
        }
    }

    /// Notes losses found by the log's own threads, until the hub asks for them.
    fn lose(&self, queue: &Arc<Queue>, losses: Vec<Loss>) {
        if losses.is_empty() {
            return;
        }
        let mut state = queue.lock();
        self.note_cursor(queue, &mut state);
        let bounds = self.bounds();
        state.wake_waiters(&bounds);
        drop(state);
        lock(&self.losses).extend(losses.into_iter().map(|loss| Loss {
            endpoint: Some(queue.endpoint().clone()),
            ..loss
        }));
    }

    fn wait(&self, waiter: &Arc<Mailbox>) {
        let mut waiters = lock(&self.waiters);
        queue::register(&mut waiters, waiter);
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

/// Encodes a message into the waiting batch; returns the seq of its first frame.
fn take_log(log: &Log, append: &Append<'_>, lanes: &[LaneRef], time_ms: u64) -> Result<u64, Full> {
    let message = append.message;
    let parts = record::parts(message, &[], time_ms);
    let body_crc = parts.body_crc();
    let mut front = log.front();
    let needs = parts.frame_bytes() as u64 * frames_of(lanes) + writer::list_bytes(lanes.len());
    let is_large = front.batch.bytes() as u64 + needs > log::BATCH_BYTES_MAX as u64;
    let is_long = front.batch.frames().len() >= log::BATCH_MESSAGES_MAX;
    if !front.batch.is_empty() && !append.is_last && (is_large || is_long) {
        front.busy.push(Arc::clone(append.waiter));
        log.wake_writer(front);
        let place = Place::Writer;
        return Err(Full { place });
    }
    if front.room < needs {
        // At the start, or after a burst, the next segment is on its way.
        let is_full = log.is_full.load(Ordering::Relaxed) || log.has_failed.load(Ordering::Relaxed);
        if append.is_patient || !is_full {
            queue::register(&mut front.full, append.waiter);
        }
        drop(front);
        log.wake_keeper();
        let place = if is_full { Place::Store } else { Place::Writer };
        return Err(Full { place });
    }
    front.room -= needs;
    let first_seq = front.next_seq;
    let bytes = u32::try_from(message.bytes()).unwrap_or(u32::MAX);
    for lanes in lanes.chunks(LANES_MAX) {
        let parts = Parts { lanes, ..parts };
        let seq = front.next_seq;
        front.next_seq += 1;
        front
            .batch
            .push(seq, &parts, body_crc, Some(&message.payload), bytes);
    }
    Ok(first_seq)
}

/// Frames that a message for so many lanes takes.
fn frames_of(lanes: &[LaneRef]) -> u64 {
    lanes.len().div_ceil(LANES_MAX).max(1) as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
