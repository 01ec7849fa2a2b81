//! The keeper: reads for those who fell behind, has spare segments ready, gives back what nobody
//! needs any more.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::control::{lane_number, of_lane};
use super::disk::PAGE_BYTES;
use super::index::{Position, Summary};
use super::layout::{FREE, SEGMENTS, free_path, segment_path};
use super::lock;
use super::log::{Log, Options, Spare, SyncPolicy};
use super::queue::{Queue, State};
use super::reader::Reader;
use super::recover::SPARE_MAGIC;
use super::segment::Segment;
use super::writer::reserve_segments;
use super::{Loss, LossReason, Store};
use crate::mailbox::DELIVERY;

/// Spares that are kept ready beside the reserve.
const SPARES: usize = 2;
/// Files that wait in `free/`; more are removed.
const POOL_MAX: usize = 4;
/// Lanes whose reading place is remembered.
const READERS_MAX: usize = 64;
/// Between two looks at what can be given back.
const TICK_MS: u64 = 1000;
/// The same while the store is full.
const FULL_TICK_MS: u64 = 50;
/// Below this mean, syncs cost less in blocks that were written before than in new ones.
const ZERO_FILL_BELOW_BYTES: u64 = 12 * 1024;

/// Housekeeping.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    pub(super) readers: HashMap<u32, Reader>,
    pub(super) next_segment: u64,
    pub(super) pool: Vec<(u64, u64)>,
    /// Sizes of segments that were given up and not removed yet.
    pub(super) freeing: HashMap<u64, u64>,
    tick_ms: u64,
}

impl Keeper {
    pub fn new(next_segment: u64, pool: Vec<(u64, u64)>) -> Self {
        Self {
            next_segment,
            pool,
            ..Self::default()
        }
    }

    /// Does what is to be done; true if there is more. With `tick`, looks at everything.
    pub fn step(&mut self, store: &Store, log: &Log, now_ms: u64, tick: bool) -> bool {
        let more = self.refill(store, log, now_ms);
        self.recycle(log);
        self.supply(log);
        let every = if log.is_full.load(Ordering::Relaxed) {
            FULL_TICK_MS
        } else {
            TICK_MS
        };
        if tick || now_ms >= self.tick_ms + every {
            self.tick_ms = now_ms;
            self.expire(store, log, now_ms);
            if self.free(store, log) == 0 && log.is_full.load(Ordering::Relaxed) {
                let repacked = self.repack(store, log, now_ms);
                if !repacked && log.options().drop_oldest && self.drop_oldest(store, log) {
                    self.free(store, log);
                }
            } else if self.is_crowded(log) {
                self.repack(store, log, now_ms);
            }
        }
        more
    }

    /// Has the first spare ready, so that nobody has to wait for it after the start.
    pub fn begin(&mut self, log: &Log) {
        let options = log.options();
        if !lock(&log.spares).is_empty() {
            return;
        }
        if let Ok(Some(spare)) = self.spare(log, &options) {
            lock(&log.spares).push_back(spare);
            log.is_roomy.store(true, Ordering::Relaxed);
        }
    }

    /// When [`Keeper::step`] is due, in milliseconds of the hub's clock.
    pub fn due_ms(&self, log: &Log) -> u64 {
        let is_full = log.is_full.load(Ordering::Relaxed);
        self.tick_ms + if is_full { FULL_TICK_MS } else { TICK_MS }
    }

    /// Reads one window for each queue that asked; true if one asks for more.
    fn refill(&mut self, store: &Store, log: &Log, now_ms: u64) -> bool {
        let queues = std::mem::take(&mut *lock(&log.wanted));
        let mut again = Vec::new();
        let mut more = false;
        if self.readers.len() > READERS_MAX {
            self.readers.clear();
        }
        for queue in queues {
            let Some((index, request)) = queue.lock().wanted(log.kept()) else {
                queue.lock().is_wanted = false;
                continue;
            };
            let lane = lane_number(queue.number, index);
            let reader = self
                .readers
                .entry(lane)
                .or_insert_with(|| Reader::new(lane));
            let trusted_ms = store.trusted_ms(now_ms);
            let received_ms =
                |time_ms: u64| now_ms.saturating_sub(trusted_ms.saturating_sub(time_ms));
            let window = match reader.window(log, request, &received_ms) {
                Ok(window) => window,
                Err(error) => {
                    tracing::error!(%error, "a queue could not be read");
                    self.readers.remove(&lane);
                    again.push(queue);
                    continue;
                }
            };
            let found = !window.0.is_empty() || window.2;
            let mut losses = Vec::new();
            let (woken, wanted) = {
                let clock = store.clock();
                let mut state = queue.lock();
                let at = (index, request);
                let woken = state.refill(at, window, (&clock, now_ms), &store.cache, &mut losses);
                let wanted = state.wanted(log.kept()).is_some();
                state.is_wanted = wanted;
                (woken, wanted)
            };
            store.lose(&queue, losses);
            if let Some(consumer) = woken {
                consumer.raise(DELIVERY);
            }
            if wanted {
                // What was not found is about to be written; the writer calls again.
                more |= found;
                again.push(queue);
            }
        }
        lock(&log.wanted).append(&mut again);
        more
    }

    /// Turns segments whose end is noted into spares, or removes them.
    fn recycle(&mut self, log: &Log) {
        for id in std::mem::take(&mut *lock(&log.suspect)) {
            let size = log
                .disk
                .open(&segment_path(id))
                .and_then(|file| file.size());
            if log.disk.remove(&segment_path(id)).is_ok() {
                log.file_bytes
                    .fetch_sub(size.unwrap_or(0), Ordering::Relaxed);
            }
        }
        let mut freed = std::mem::take(&mut *lock(&log.freed));
        if log.is_blocked.load(Ordering::Acquire) {
            // There is nowhere to note it. The file itself will tell whose it was.
            let whole = log.options().segment_bytes;
            let left = self.freeing.iter().filter(|(_, size)| **size == whole);
            freed.extend(left.map(|(id, _)| *id).take(1));
        }
        if freed.is_empty() {
            return;
        }
        let whole = log.options().segment_bytes;
        for id in freed {
            let Some(size) = self.freeing.remove(&id) else {
                continue;
            };
            let keeps = size == whole && self.pool.len() < POOL_MAX;
            let path = segment_path(id);
            let done = if keeps {
                log.disk.rename(&path, &free_path(id))
            } else {
                log.disk.remove(&path)
            };
            match done {
                Ok(()) if keeps => self.pool.push((id, size)),
                Ok(()) => {
                    log.file_bytes.fetch_sub(size, Ordering::Relaxed);
                }
                Err(error) => {
                    tracing::warn!(%error, path, "a segment nobody needs could not be removed");
                }
            }
        }
        if let Err(error) = log
            .disk
            .sync_dir(SEGMENTS)
            .and_then(|()| log.disk.sync_dir(FREE))
        {
            tracing::warn!(%error, "the store's folder could not be synced");
        }
    }

    /// Has spare segments ready, from the pool or new.
    fn supply(&mut self, log: &Log) {
        let options = log.options();
        let wanted = SPARES + reserve_segments(&options);
        let used = log.file_bytes.load(Ordering::Relaxed);
        let left = options.max_bytes.saturating_sub(used);
        let free = log.disk.free_bytes().unwrap_or(0);
        let left = left.min(free.saturating_sub(options.min_free_bytes));
        let reserve = wanted as u64 * options.segment_bytes;
        log.is_roomy.store(left >= reserve, Ordering::Relaxed);
        let mut made = false;
        let mut failed = None;
        while lock(&log.spares).len() < wanted {
            match self.spare(log, &options) {
                Ok(Some(spare)) => {
                    lock(&log.spares).push_back(spare);
                    made = true;
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let is_full = lock(&log.spares).len() <= reserve_segments(&options);
        let was_full = log.is_full.swap(is_full, Ordering::Relaxed);
        if is_full && !was_full {
            let why = failed.map_or_else(
                || "max_bytes or min_free_bytes is reached".to_owned(),
                |error| error.to_string(),
            );
            tracing::warn!(why, "the store is nearly full");
        }
        if made {
            log.wake_writer(log.front());
        }
    }

    /// One spare; `None`: the bounds forbid it.
    fn spare(&mut self, log: &Log, options: &Options) -> io::Result<Option<Spare>> {
        let id = self.next_segment;
        let path = segment_path(id);
        let size = options.segment_bytes;
        if let Some((old, _)) = self.pool.pop() {
            let file = log.disk.open(&free_path(old))?;
            file.write_at(&[IoSlice::new(&spare_page(old))], 0)?;
            log.disk.rename(&free_path(old), &path)?;
            self.next_segment += 1;
            log.disk.sync_dir(SEGMENTS)?;
            return Ok(Some(Spare { id, size, file }));
        }
        let used = log.file_bytes.load(Ordering::Relaxed);
        if used + size > options.max_bytes
            || log.disk.free_bytes()? < size.saturating_add(options.min_free_bytes)
        {
            return Ok(None);
        }
        let file = log.disk.create(&path)?;
        let prepared = prepare(log, &*file, options);
        let synced = prepared.and_then(|()| log.disk.sync_dir(SEGMENTS));
        if let Err(error) = synced {
            // Half a segment only takes room.
            let _ = log.disk.remove(&path);
            return Err(error);
        }
        self.next_segment += 1;
        log.file_bytes.fetch_add(size, Ordering::Relaxed);
        Ok(Some(Spare { id, size, file }))
    }

    /// Gives up parts of segments in which a lane's messages have all expired, without reading.
    fn expire(&self, store: &Store, log: &Log, now_ms: u64) {
        let segments = log.segments();
        for queue in store.queues() {
            let mut losses = Vec::new();
            {
                let clock = store.clock();
                let state = queue.lock();
                let lanes: Vec<_> = (0..state.lanes.len())
                    .filter(|index| state.lanes.get(*index).is_some_and(|l| l.gap.is_some()))
                    .collect();
                drop(state);
                for index in lanes {
                    let lane = lane_number(queue.number, index);
                    for segment in &segments {
                        let Some(part) = segment.summary(lane) else {
                            continue;
                        };
                        if clock.is_expired(now_ms, part.expires_s, part.first_seq)
                            && clock.is_expired(now_ms, part.expires_s, part.last_seq)
                        {
                            give_up(log, &queue, index, segment, &part, &mut losses);
                        }
                    }
                }
            }
            for loss in &mut losses {
                loss.reason = LossReason::Expired;
            }
            store.lose(&queue, losses);
        }
    }

    /// Gives up segments that no lane needs; returns how many.
    fn free(&mut self, store: &Store, log: &Log) -> usize {
        let queues = by_number(store);
        let mut freed = Vec::new();
        for segment in log.segments() {
            if segment.is_sealed() && pinned(&queues, &segment).is_empty() {
                freed.push(segment.id);
                self.freeing
                    .insert(segment.id, segment.size.load(Ordering::Acquire));
            }
        }
        if freed.is_empty() {
            return 0;
        }
        let mut catalog = log.catalog();
        for id in &freed {
            catalog.remove(id);
        }
        drop(catalog);
        let count = freed.len();
        let mut front = log.front();
        front.freed.append(&mut freed);
        front.note = true;
        log.wake_writer(front);
        count
    }

    fn is_crowded(&self, log: &Log) -> bool {
        let spares: u64 = lock(&log.spares).iter().map(|spare| spare.size).sum();
        let pool: u64 = self.pool.iter().map(|(_, size)| size).sum();
        let used = log.file_bytes.load(Ordering::Relaxed);
        used.saturating_sub(spares + pool) > log.options().max_bytes / 2
    }

    /// Gives up the segment whose most urgent message is the least urgent, the oldest such.
    fn drop_oldest(&self, store: &Store, log: &Log) -> bool {
        let queues = by_number(store);
        let mut victim: Option<(usize, Arc<Segment>)> = None;
        for segment in log.segments() {
            if !segment.is_sealed() {
                continue;
            }
            let parts = pinned(&queues, &segment);
            let urgent = parts.iter().map(|part| of_lane(part.lane).1).min();
            if let Some(urgent) = urgent
                && victim.as_ref().is_none_or(|(best, _)| urgent > *best)
            {
                victim = Some((urgent, segment));
            }
        }
        let Some((_, segment)) = victim else {
            return false;
        };
        for part in pinned(&queues, &segment) {
            let (number, index) = of_lane(part.lane);
            let Some(queue) = queues.get(&number) else {
                continue;
            };
            let mut losses = Vec::new();
            give_up(log, queue, index, &segment, &part, &mut losses);
            store.lose(queue, losses);
        }
        true
    }
}

/// The first page of a spare, which was another segment before.
fn spare_page(old: u64) -> Vec<u8> {
    let mut page = SPARE_MAGIC.to_vec();
    page.extend_from_slice(&old.to_le_bytes());
    page.resize(PAGE_BYTES, 0);
    page
}

/// Takes the blocks of a new file. Written ones where syncs are small: those of unwritten blocks
/// write the file system's own notes as well.
fn prepare(log: &Log, file: &dyn super::disk::DiskFile, options: &Options) -> io::Result<()> {
    file.allocate(options.segment_bytes)?;
    let syncs = log.counters.syncs.load(Ordering::Relaxed);
    let written = log.counters.written_bytes.load(Ordering::Relaxed);
    let small = written / syncs.max(1) < ZERO_FILL_BELOW_BYTES;
    if options.sync == SyncPolicy::Always && small {
        let zeros = vec![0; 256 * 1024];
        let mut at = 0;
        while at < options.segment_bytes {
            let length = (options.segment_bytes - at).min(zeros.len() as u64) as usize;
            let part = zeros.get(..length).unwrap_or_default();
            file.write_at(&[IoSlice::new(part)], at)?;
            at += length as u64;
        }
    }
    file.write_at(&[IoSlice::new(&spare_page(0))], 0)?;
    file.sync_data()
}

pub(super) type Queues = HashMap<u32, Arc<Queue>>;

pub(super) fn by_number(store: &Store) -> Queues {
    let queues = store.queues().into_iter();
    queues.map(|queue| (queue.number, queue)).collect()
}

/// The parts of a segment that are still needed.
pub(super) fn pinned(queues: &Queues, segment: &Segment) -> Vec<Summary> {
    let mut parts = segment.summaries();
    parts.retain(|part| {
        let (number, index) = of_lane(part.lane);
        let Some(queue) = queues.get(&number) else {
            // Nobody knows the endpoint yet.
            return true;
        };
        let state = queue.lock();
        let lane = state.lanes.get(index);
        lane.is_some_and(|lane| lane.pins(part.first_seq, part.last_seq))
    });
    parts
}

/// Gives up what waits on disk of one part of a lane.
fn give_up(
    log: &Log,
    queue: &Arc<Queue>,
    index: usize,
    segment: &Segment,
    whole: &Summary,
    losses: &mut Vec<Loss>,
) {
    let mut state = queue.lock();
    let Some(lane) = state.lanes.get(index) else {
        return;
    };
    // What is in memory or in flight is given up where it is met.
    let mut part = *whole;
    if let Some(request) = lane.request() {
        part.last_seq = part.last_seq.min(request.to - 1);
    }
    let in_flight = lane.in_flight.iter().map(|flight| flight.seq);
    if in_flight.into_iter().any(|seq| seq >= part.first_seq) {
        return;
    }
    let known = (part.first_seq, part.last_seq);
    let Some(request) = lane.request().filter(|_| !lane.dropped.contains(&known)) else {
        return;
    };
    if request.from > part.last_seq || !lane.pins(part.first_seq, part.last_seq) {
        return;
    }
    let (mut messages, mut bytes) = (part.messages as usize, part.bytes);
    if request.from > part.first_seq || whole.last_seq > part.last_seq || lane.has_exceptions(&part)
    {
        let Ok(list) = segment.list(&*log.disk, part.lane, 0) else {
            return;
        };
        (messages, bytes) = (0, 0);
        let entries = Position::default().entries_of(&list);
        let asked = request.from..request.to.min(part.last_seq + 1);
        for entry in entries.filter(|e| asked.contains(&e.seq) && lane.awaits(e.seq)) {
            messages += 1;
            bytes += entry.bytes;
        }
    }
    let Some(lane) = state.lanes.get_mut(index) else {
        return;
    };
    lane.drop_part(&part, messages, bytes);
    state.messages -= messages;
    state.bytes = state.bytes.saturating_sub(bytes);
    if messages > 0 {
        losses.push(Loss::unread(LossReason::DroppedOldest, known, messages));
    }
    if !std::mem::replace(&mut state.is_listed, true) {
        log.note_cursor(queue);
    }
}

/// Gives up the oldest messages on disk of a queue's least urgent lane, until an eighth of its
/// quota is free: lists are read for it, so it is not done for each message.
pub(super) fn drop_from_disk(
    log: &Log,
    number: u32,
    state: &mut State,
    (wanted_bytes, wanted_messages): (u64, usize),
) -> Option<Loss> {
    let lanes = state.lanes.iter().enumerate().rev();
    let (index, lane) = lanes.into_iter().find(|(_, lane)| lane.waiting() > 0)?;
    let request = lane.request()?;
    let mut in_flight = lane.in_flight.iter();
    if in_flight.any(|flight| flight.seq >= request.from) {
        return None;
    }
    let number = lane_number(number, index);
    let (mut messages, mut bytes, mut last) = (0, 0, 0);
    'segments: for segment in log.segments() {
        let part = segment.summary(number);
        if part.is_none_or(|part| part.last_seq < request.from) {
            continue;
        }
        let list = segment.list(&*log.disk, number, 0).ok()?;
        for entry in Position::default().entries_of(&list) {
            let enough = messages > 0 && (messages >= wanted_messages || bytes >= wanted_bytes);
            if enough || entry.seq >= request.to {
                break 'segments;
            }
            if entry.seq >= request.from && lane.awaits(entry.seq) {
                messages += 1;
                bytes += entry.bytes;
                last = entry.seq;
            }
        }
    }
    if messages == 0 {
        return None;
    }
    let lane = state.lanes.get_mut(index)?;
    lane.epoch += 1;
    lane.advance(last + 1, messages, bytes);
    // What is in flight before it may have to be read again.
    lane.all_done(request.from, last);
    state.messages -= messages;
    state.bytes = state.bytes.saturating_sub(bytes);
    let seqs = (request.from, last);
    Some(Loss::unread(LossReason::DroppedOldest, seqs, messages))
}
