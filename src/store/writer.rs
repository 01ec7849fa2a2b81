//! The writer: one stream, one batch after the other. While a batch is on its way to the disk, the
//! next one gathers in [`super::log::Front`].

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Store;
use super::batch::{Batch, Pending, last_bytes};
use super::checkpoint::{changed_cursors, checkpoint, note};
use super::control::Control;
use super::disk::{DiskFile, PAGE_BYTES};
use super::frame;
use super::index::{ENTRY_BYTES_MAX, Entry, ListsByLane, SUMMARY_BYTES};
use super::layout::{SegmentHeader, salt};
use super::lock;
use super::log::{Log, SyncPolicy};
use super::segment::Segment;
use crate::mailbox::SPACE;

/// Cursors ride along with messages no more often than this.
const NOTE_EVERY_MS: u64 = 50;
/// Tries with another file before the log counts as failed.
const TRIES_MAX: u32 = 3;
/// Between two tries after that.
const RETRY_EVERY_MS: u64 = 10_000;
/// Sync times kept until they are collected.
const SAMPLES_MAX: usize = 4096;

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub segment: Arc<Segment>,
    pub file: Arc<dyn DiskFile>,
    /// Where the next write begins: a page.
    pub end: u64,
    /// What is in that page already.
    pub tail: Vec<u8>,
    pub frames: u64,
    /// As in [`super::log::Spare`].
    pub old: u64,
}

impl Active {
    /// Where its frames end.
    fn data_end(&self) -> u64 {
        self.end + self.tail.len() as u64
    }

    /// Bytes that frames and their lists may take where so many pages stay free.
    fn room(&self, free_pages: u64) -> u64 {
        let used = self.data_end() + self.segment.seal_bytes();
        let size = self.segment.size.load(Ordering::Acquire);
        size.saturating_sub(used + free_pages * PAGE_BYTES as u64)
    }
}

/// The writing end.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub active: Option<Active>,
    /// The newest segment and the last seq in it.
    pub last: (u64, u64),
    batch: Batch,
    /// Frames of the batch that are written.
    done: usize,
    /// The log was durable up to here.
    durable_seq: u64,
    noted_ms: u64,
    synced_ms: u64,
    is_unsynced: bool,
    failures: u32,
    retry_ms: u64,
    /// Segments that a note in the batch gives up.
    freeing: Vec<u64>,
}

/// What a step left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing waits.
    Idle,
    /// There may be more.
    Done,
    /// The disk is full or refuses; what waits is tried again then, or when there is room.
    Blocked {
        /// Milliseconds of the hub's clock.
        until_ms: u64,
    },
}

impl Writer {
    pub fn new(active: Option<Active>, last: (u64, u64), durable_seq: u64) -> Self {
        Self {
            active,
            last,
            durable_seq,
            ..Self::default()
        }
    }

    /// Whether there is a segment to end.
    pub fn has_active(&self) -> bool {
        self.active.is_some()
    }

    /// When an unsynced write has to be synced.
    pub fn sync_due_ms(&self, sync: SyncPolicy) -> Option<u64> {
        match sync {
            SyncPolicy::Interval { ms } if self.is_unsynced => Some(self.synced_ms + ms),
            _ => None,
        }
    }

    /// When the wear budget allows the next sync.
    pub fn may_sync_ms(&self, log: &Log) -> u64 {
        let options = log.options();
        match options.max_syncs_per_second {
            0 => 0,
            budget if options.sync == SyncPolicy::Always => {
                self.synced_ms + 1000_u64.div_ceil(u64::from(budget))
            }
            _ => 0,
        }
    }

    /// Writes what waits. `ends` asks for the note that the log was closed in good order.
    pub fn step(&mut self, store: &Store, log: &Log, now_ms: u64, ends: bool) -> Step {
        if self.retry_ms > now_ms && !ends {
            return Step::Blocked {
                until_ms: self.retry_ms,
            };
        }
        let sync = log.options().sync;
        if self.sync_due_ms(sync).is_some_and(|due| due <= now_ms) || (ends && self.is_unsynced) {
            self.sync_interval(log, now_ms);
        }
        if self.done == self.batch.frames().len() {
            self.take(store, log, now_ms, ends);
        }
        if self.batch.is_empty() {
            return Step::Idle;
        }
        match self.place(store, log, now_ms) {
            Ok(true) => log.is_blocked.store(false, Ordering::Release),
            Ok(false) => {
                log.is_blocked.store(true, Ordering::Release);
                log.wake_keeper();
                return Step::Blocked {
                    until_ms: now_ms + 1000,
                };
            }
            Err(error) => return self.failed(log, &error, now_ms),
        }
        if self.failures > 0 {
            tracing::info!("the store can be written again");
        }
        self.failures = 0;
        log.has_failed.store(false, Ordering::Release);
        let last_seq = self.batch.frames().last().map_or(0, |frame| frame.seq);
        self.batch.clear();
        self.done = 0;
        lock(&log.freed).append(&mut self.freeing);
        log.keep(last_seq);
        self.tell_room(log);
        let starves = !lock(&log.wanted).is_empty() || lock(&log.spares).len() < 3;
        if starves || !lock(&log.freed).is_empty() {
            log.wake_keeper();
        }
        Step::Done
    }

    /// Takes the waiting batch over, and adds a note if one is due.
    fn take(&mut self, store: &Store, log: &Log, now_ms: u64, ends: bool) {
        self.batch.clear();
        self.done = 0;
        let has_cursors = !lock(&log.dirty).is_empty();
        let mut control = Control {
            closed: ends,
            ..Control::default()
        };
        let mut front = log.front();
        std::mem::swap(&mut front.batch, &mut self.batch);
        let may_note = has_cursors && now_ms >= self.noted_ms + NOTE_EVERY_MS;
        let notes = std::mem::take(&mut front.note)
            || ends
            || !front.freed.is_empty()
            || (!self.batch.is_empty() && (may_note || !front.endpoints.is_empty()));
        let seq = front.next_seq;
        if notes {
            front.next_seq += 1;
            control.freed = std::mem::take(&mut front.freed);
            control.endpoints = std::mem::take(&mut front.endpoints);
        }
        let busy = std::mem::take(&mut front.busy);
        drop(front);
        for waiter in busy {
            waiter.raise(SPACE);
        }
        if notes {
            self.noted_ms = now_ms;
            self.freeing.clone_from(&control.freed);
            control.cursors = changed_cursors(log);
            control.clock = Some(store.clock().save(now_ms));
            let payload = control.encode();
            let parts = note(store.trusted_ms(now_ms), &payload);
            self.batch.push(seq, &parts, parts.body_crc(), None, 0);
        }
    }

    /// Writes the rest of the batch; false if there is no segment to write it to.
    fn place(&mut self, store: &Store, log: &Log, now_ms: u64) -> io::Result<bool> {
        while self.done < self.batch.frames().len() {
            let fitting = self.fitting();
            if fitting == 0 {
                if !self.roll(store, log, now_ms)? {
                    return Ok(false);
                }
                if self.fitting() == 0 {
                    return Err(io::Error::other("a message larger than a segment"));
                }
                continue;
            }
            self.write(log, self.done..self.done + fitting, now_ms)?;
            self.done += fitting;
        }
        Ok(true)
    }

    /// How many of the next frames the active segment takes.
    fn fitting(&self) -> usize {
        let Some(active) = &self.active else {
            return 0;
        };
        let mut room = active.room(2);
        let frames = self.batch.frames().get(self.done..).unwrap_or_default();
        let fits = frames.iter().take_while(|frame| {
            let bytes = frame.frame_bytes() as u64 + list_bytes(self.batch.lanes(frame).count());
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        });
        fits.count()
    }

    fn write(&mut self, log: &Log, some: Range<usize>, now_ms: u64) -> io::Result<()> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let sync = log.options().sync;
        let durable_seq = match sync {
            SyncPolicy::Os => self.last.1,
            SyncPolicy::Always | SyncPolicy::Interval { .. } => self.durable_seq,
        };
        let salt = salt(log.store_id, active.segment.id);
        self.batch.seal(some.clone(), salt, durable_seq);
        let slices = self.batch.slices(some.clone(), &active.tail);
        let written: usize = slices.iter().map(|slice| slice.len()).sum();
        active.file.write_at(&slices, active.end)?;
        log.counters
            .written_bytes
            .fetch_add(written as u64, Ordering::Relaxed);
        let frames = self.batch.frames().get(some).unwrap_or_default();
        let only_notes = frames.iter().all(|frame| frame.message_bytes == 0);
        let start = active.data_end();
        let bytes: usize = frames.iter().map(Pending::frame_bytes).sum();
        let data_end = start + bytes as u64;
        let syncs = sync == SyncPolicy::Always
            || (only_notes && !self.freeing.is_empty() && sync != SyncPolicy::Os);
        if syncs {
            sync_file(log, &*active.file)?;
            self.synced_ms = now_ms;
            self.is_unsynced = false;
            active.end = data_end.next_multiple_of(PAGE_BYTES as u64);
            active.tail.clear();
        } else {
            let page = PAGE_BYTES as u64;
            let used = (data_end % page) as usize;
            let skip = written - (data_end - active.end) as usize;
            let tail = last_bytes(&slices, used, skip);
            drop(slices);
            active.tail = tail;
            active.end = data_end / page * page;
            self.is_unsynced = true;
        }
        let mut offset = start;
        let mut message_bytes = 0;
        let batch = &self.batch;
        active.segment.data_end.store(data_end, Ordering::Release);
        active.segment.add(frames.iter().flat_map(|frame| {
            let entry = Entry {
                seq: frame.seq,
                offset,
                bytes: u64::from(frame.message_bytes),
            };
            offset += frame.frame_bytes() as u64;
            message_bytes += entry.bytes;
            let lanes = batch.lanes(frame);
            lanes.map(move |lane| (lane.lane, entry, lane.expires_s))
        }));
        log.counters
            .message_bytes
            .fetch_add(message_bytes, Ordering::Relaxed);
        active.frames += frames.len() as u64;
        if let Some(last) = frames.last() {
            self.last = (active.segment.id, last.seq);
            if syncs {
                self.durable_seq = last.seq;
                log.reached(self.last);
            }
        }
        Ok(())
    }

    /// Seals the active segment and begins a new one; false if there is no spare.
    fn roll(&mut self, store: &Store, log: &Log, now_ms: u64) -> io::Result<bool> {
        self.seal(log)?;
        let Some(spare) = lock(&log.spares).pop_front() else {
            return Ok(false);
        };
        log.wake_keeper();
        let next = self.batch.frames().get(self.done);
        let base_seq = next.map_or(self.last.1 + 1, |frame| frame.seq);
        let header = SegmentHeader {
            store_id: log.store_id,
            id: spare.id,
            base_seq,
            previous_id: self.last.0,
            previous_last_seq: self.last.1,
            time_ms: store.trusted_ms(now_ms),
            repacked: false,
        };
        let mut bytes = header.encode();
        let payload = checkpoint(store, log, now_ms).encode();
        let parts = note(header.time_ms, &payload);
        // It comes before the first frame, and so does its seq.
        parts.encode(base_seq - 1, &mut bytes);
        if let Some(frame) = bytes.get_mut(PAGE_BYTES..) {
            // The segment before was synced, where anything is.
            frame::seal(frame, salt(log.store_id, spare.id), base_seq - 1);
        }
        let data_end = bytes.len() as u64;
        bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
        let written = spare.file.write_at(&[IoSlice::new(&bytes)], 0);
        if let Err(error) = written {
            log.doubt(spare.id, spare.old);
            return Err(error);
        }
        log.counters
            .written_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let ends = (spare.size, data_end);
        let begun = (base_seq, header.time_ms);
        let segment = Segment::growing(spare.id, begun, ends, ListsByLane::new());
        let segment = Arc::new(segment);
        log.catalog().insert(spare.id, Arc::clone(&segment));
        self.active = Some(Active {
            segment,
            file: spare.file,
            end: bytes.len() as u64,
            tail: Vec::new(),
            frames: 1,
            old: spare.old,
        });
        Ok(true)
    }

    /// Ends the active segment.
    fn seal(&mut self, log: &Log) -> io::Result<()> {
        if self.is_unsynced
            && log.options().sync != SyncPolicy::Os
            && let Some(active) = &self.active
        {
            sync_file(log, &*active.file)?;
            self.is_unsynced = false;
            self.durable_seq = self.last.1;
        }
        let Some(active) = self.active.take() else {
            return Ok(());
        };
        let last = (self.last.1, active.frames);
        if let Err(error) = active.segment.seal(&*active.file, last, false) {
            // Its lists stay in memory, and are made anew at the next start.
            tracing::warn!(%error, segment = active.segment.id, "a segment could not be sealed");
        } else if log.options().sync != SyncPolicy::Os
            && let Err(error) = sync_file(log, &*active.file)
        {
            // The messages in it were synced before.
            tracing::warn!(%error, segment = active.segment.id, "the end of a segment");
        }
        Ok(())
    }

    /// The file is not to be trusted any more: what was on its way goes to another one.
    fn failed(&mut self, log: &Log, error: &io::Error, now_ms: u64) -> Step {
        log.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.failures += 1;
        self.is_unsynced = false;
        if let Some(active) = self.active.take() {
            active.segment.close();
            if active.frames <= 1 {
                log.catalog().remove(&active.segment.id);
                log.doubt(active.segment.id, active.old);
            }
            tracing::error!(%error, segment = active.segment.id, "the store could not be written");
        }
        log.wake_keeper();
        if self.failures < TRIES_MAX {
            return Step::Done;
        }
        if !log.has_failed.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the store refuses messages until it can be written again");
        }
        self.retry_ms = now_ms + RETRY_EVERY_MS;
        Step::Blocked {
            until_ms: self.retry_ms,
        }
    }

    /// Syncs what the interval policy has acknowledged already.
    fn sync_interval(&mut self, log: &Log, now_ms: u64) {
        let Some(active) = &mut self.active else {
            return;
        };
        self.is_unsynced = false;
        self.synced_ms = now_ms;
        if let Err(error) = sync_file(log, &*active.file) {
            // What this interval acknowledged may be lost, and nothing can bring it back.
            self.failed(log, &error, now_ms);
            return;
        }
        self.durable_seq = self.last.1;
        log.reached(self.last);
        active.end += active.tail.len().next_multiple_of(PAGE_BYTES) as u64;
        active.tail.clear();
    }

    /// Works out how much may be accepted, and tells those who wait for it.
    pub fn tell_room(&self, log: &Log) {
        let options = log.options();
        let own = self.active.as_ref().map_or(0, |active| active.room(3));
        // As long as the disk has room for more, what is ready need not be the reserve.
        let is_roomy = log.is_roomy.load(Ordering::Relaxed);
        let reserve = if is_roomy {
            0
        } else {
            options.reserve_segments()
        };
        let spares: u64 = {
            let spares = lock(&log.spares);
            let usable = spares.len().saturating_sub(reserve);
            spares
                .iter()
                .take(usable)
                .map(|spare| usable_bytes(spare.size))
                .sum()
        };
        let has_failed = log.has_failed.load(Ordering::Acquire);
        let mut front = log.front();
        let pending = front.batch.bytes() + self.batch.bytes();
        let room = if has_failed { 0 } else { own + spares };
        front.room = room.saturating_sub(pending as u64);
        // The tail of a segment may be too short for the next message.
        let enough = front.room >= options.message_bytes_max.min(options.segment_bytes / 8);
        drop(front);
        if enough {
            log.wake_full();
        }
    }
}

/// Bytes of a whole segment that frames and lists may take.
fn usable_bytes(size: u64) -> u64 {
    size.saturating_sub(8 * PAGE_BYTES as u64)
}

/// What the lists take for a frame of so many lanes, at the most.
pub(super) fn list_bytes(lanes: usize) -> u64 {
    lanes as u64 * (ENTRY_BYTES_MAX + SUMMARY_BYTES as u64 / 8)
}

pub(super) fn sync_file(log: &Log, file: &dyn DiskFile) -> io::Result<()> {
    let began = Instant::now();
    let synced = file.sync_data();
    log.counters.syncs.fetch_add(1, Ordering::Relaxed);
    let mut samples = lock(&log.sync_samples);
    if samples.len() < SAMPLES_MAX {
        samples.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    synced
}
