//! The keeper: reads for those who fell behind, has spare segments ready, gives back what nobody
//! needs any more.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use super::control::{lane_number, of_lane};
use super::disk::{self, DiskFile, PAGE_BYTES};
use super::index::Summary;
use super::layout::{END, FREE, SEGMENTS, end_text, free_path, segment_path, spare_page};
use super::lock;
use super::log::{Log, Options, Spare, Suspect, SyncPolicy};
use super::queue::Queue;
use super::reader::Reader;
use super::segment::Segment;
use super::writer::sync_file;
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

/// Housekeeping.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    pub(super) readers: HashMap<u32, Reader>,
    pub(super) next_segment: u64,
    pub(super) pool: Vec<(u64, u64)>,
    /// Sizes of segments that were given up and not removed yet.
    pub(super) freeing: HashMap<u64, u64>,
    /// The newest segment that `END` names.
    noted_segment: u64,
    /// Segments whose first write failed, that no note has replaced yet.
    suspects: Vec<Suspect>,
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
        if log.is_blocked.load(Ordering::Acquire) {
            self.unblock(log);
        }
        self.supply(log);
        if tick || now_ms >= self.due_ms(log) {
            self.tick_ms = now_ms;
            // Each holds a file open, and a session that has ended never reads on.
            self.readers.retain(|_, reader| !reader.rests());
            self.note_reached(log);
            self.expire(store, log, now_ms);
            if self.free(store, log) == 0 && log.is_full.load(Ordering::Relaxed) {
                let repacked = self.repack(store, log);
                if !repacked && log.options().drop_oldest && self.drop_oldest(store, log) {
                    self.free(store, log);
                }
            } else if self.is_crowded(log) {
                self.repack(store, log);
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
        let kept = log.kept();
        let queues = std::mem::take(&mut *lock(&log.wanted));
        let mut again = Vec::new();
        let mut more = false;
        if self.readers.len() > READERS_MAX {
            self.readers.clear();
        }
        for queue in queues {
            let mut state = queue.lock();
            let Some((index, request)) = state.wanted(log.kept()) else {
                state.is_wanted = false;
                continue;
            };
            drop(state);
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
        let waits = !again.is_empty();
        lock(&log.wanted).append(&mut again);
        // What the writer finished meanwhile it did not call for: nobody was on the list.
        more || (waits && log.kept() > kept)
    }

    /// Turns segments whose end is noted into spares, or removes them.
    fn recycle(&mut self, log: &Log) {
        let whole = log.options().segment_bytes;
        let freed = std::mem::take(&mut *lock(&log.freed));
        self.suspects.append(&mut lock(&log.suspect));
        // Those that alone tell of a segment that was given up stay until a note does.
        let noted = |suspect: &mut Suspect| suspect.old == 0 || freed.contains(&suspect.old);
        for Suspect { id, .. } in self.suspects.extract_if(.., noted) {
            let path = segment_path(id);
            let size = log.disk.open(&path).and_then(|file| file.size());
            let _ = log.remove_file(&path, size.unwrap_or(0));
        }
        if freed.is_empty() {
            return;
        }
        for id in freed {
            let Some(size) = self.freeing.remove(&id) else {
                continue;
            };
            let keeps = size == whole && self.pool.len() < POOL_MAX;
            let path = segment_path(id);
            let done = if keeps {
                log.disk.rename(&path, &free_path(id))
            } else {
                log.remove_file(&path, size)
            };
            match done {
                Ok(()) if keeps => self.pool.push((id, size)),
                Ok(()) => {}
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

    /// Gives spares back where `max_bytes` was lowered.
    fn shrink(&mut self, log: &Log, options: &Options) {
        let mut shrunk = false;
        while log.file_bytes.load(Ordering::Relaxed) > options.max_bytes {
            let reserve = options.reserve_segments();
            let (path, size) = match self.pool.pop() {
                Some((id, size)) => (free_path(id), size),
                None if lock(&log.spares).len() <= reserve => break,
                None => match log.last_spare() {
                    Some(spare) => (segment_path(spare.id), spare.size),
                    None => break,
                },
            };
            shrunk = true;
            if log.remove_file(&path, size).is_err() {
                break;
            }
        }
        if shrunk {
            // There is less room than the writer has told.
            log.tell_supplied();
        }
    }

    /// Writes down how far the log has come, once a segment.
    fn note_reached(&mut self, log: &Log) {
        let reached = *lock(&log.reached);
        if reached.0 <= self.noted_segment {
            return;
        }
        // On a full disk it can wait.
        if disk::replace(&*log.disk, END, &end_text(reached)).is_ok() {
            self.noted_segment = reached.0;
        }
    }

    /// Makes a spare of a segment whose end could not be noted, for there is nowhere to note it:
    /// the file itself tells whose it was. If there is none, one that failed is tried again.
    fn unblock(&mut self, log: &Log) {
        if !lock(&log.spares).is_empty() {
            return;
        }
        let whole = log.options().segment_bytes;
        let mut left = self.freeing.iter().filter(|(_, size)| **size == whole);
        let left = left.next().map(|(id, _)| (*id, *id));
        let failed = || {
            self.suspects
                .first()
                .map(|suspect| (suspect.id, suspect.old))
        };
        let Some((id, old)) = left.or_else(failed) else {
            return;
        };
        match self.reuse(log, &segment_path(id), (old, whole)) {
            Ok(spare) => {
                self.freeing.remove(&id);
                self.suspects.retain(|suspect| suspect.id != id);
                lock(&log.spares).push_back(Spare { old, ..spare });
                log.tell_supplied();
            }
            Err(error) => tracing::warn!(%error, id, "a segment could not be used again"),
        }
    }

    /// Has spare segments ready, from the pool or new.
    fn supply(&mut self, log: &Log) {
        let options = log.options();
        let wanted = SPARES + options.reserve_segments();
        let used = log.file_bytes.load(Ordering::Relaxed);
        let left = options.max_bytes.saturating_sub(used);
        let free = log.disk.free_bytes().unwrap_or(0);
        let left = left.min(free.saturating_sub(options.min_free_bytes));
        let reserve = wanted as u64 * options.segment_bytes;
        log.is_roomy.store(left >= reserve, Ordering::Relaxed);
        self.shrink(log, &options);
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
        let is_full = lock(&log.spares).len() <= options.reserve_segments();
        let was_full = log.is_full.swap(is_full, Ordering::Relaxed);
        if is_full && !was_full {
            let (max_bytes, min_free_bytes) = (options.max_bytes, options.min_free_bytes);
            let error = failed.map(|error| error.to_string());
            tracing::warn!(
                used_bytes = used,
                max_bytes,
                free_bytes = free,
                min_free_bytes,
                error,
                "the store is full: no new segment"
            );
        } else if was_full && !is_full {
            tracing::info!("the store has room again");
        }
        if made {
            log.tell_supplied();
        }
    }

    /// One spare; `None`: the bounds forbid it.
    fn spare(&mut self, log: &Log, options: &Options) -> io::Result<Option<Spare>> {
        let id = self.next_segment;
        let path = segment_path(id);
        let size = options.segment_bytes;
        if let Some(old) = self.pool.pop() {
            return self.reuse(log, &free_path(old.0), old).map(Some);
        }
        let used = log.file_bytes.load(Ordering::Relaxed);
        if used + size > options.max_bytes
            || log.disk.free_bytes()? < size.saturating_add(options.min_free_bytes)
        {
            return Ok(None);
        }
        let file = log.disk.create(&path)?;
        let prepared = prepare(&*file, options);
        let synced = prepared.and_then(|()| log.disk.sync_dir(SEGMENTS));
        if let Err(error) = synced {
            // Half a segment only takes room.
            let _ = log.disk.remove(&path);
            return Err(error);
        }
        self.next_segment += 1;
        log.file_bytes.fetch_add(size, Ordering::Relaxed);
        let spare = Spare {
            id,
            size,
            file,
            old: 0,
        };
        Ok(Some(spare))
    }

    /// A spare from the file of an old segment.
    fn reuse(&mut self, log: &Log, path: &str, (old, size): (u64, u64)) -> io::Result<Spare> {
        let id = self.next_segment;
        let file = log.disk.open(path)?;
        // Twice: one is under the header, the other stays until the segment is sealed.
        let marker = spare_page(old);
        file.write_at(&[IoSlice::new(&marker)], 0)?;
        file.write_at(&[IoSlice::new(&marker)], size - PAGE_BYTES as u64)?;
        sync_file(log, &*file)?;
        log.disk.rename(path, &segment_path(id))?;
        self.next_segment += 1;
        log.disk.sync_dir(SEGMENTS)?;
        Ok(Spare {
            id,
            size,
            file,
            old: 0,
        })
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
}

/// Takes the blocks of a new file, and writes them once where each batch is synced: a sync into
/// blocks that were never written writes the file system's own notes as well.
fn prepare(file: &dyn DiskFile, options: &Options) -> io::Result<()> {
    file.allocate(options.segment_bytes)?;
    if options.sync == SyncPolicy::Always {
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
