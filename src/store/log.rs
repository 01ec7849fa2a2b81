//! The log as its parts share it: what waits to be written, what is written, what is spare.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::batch::Batch;
use super::control::Cursor;
use super::disk::{Disk, DiskFile};
use super::keeper::Keeper;
use super::layout::{QUARANTINE, segment_path};
use super::lock;
use super::queue::{Queue, State};
use super::segment::{Catalog, Segment};
use super::writer::Writer;
use crate::mailbox::{DURABLE, Mailbox, SPACE};

/// Bytes that may wait for the writer; more is held back until it has taken them.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;
/// Messages that may wait for the writer.
pub(super) const BATCH_MESSAGES_MAX: usize = 8192;
/// Damaged places that are kept for support.
const QUARANTINE_MAX: u64 = 16;

/// When a message counts as kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// After `fdatasync`: survives a loss of power.
    Always,
    /// After the write, with an `fdatasync` at least every so many milliseconds: a loss of power
    /// costs at most that much.
    Interval {
        /// Milliseconds.
        ms: u64,
    },
    /// After the write: survives the end of the process, not that of the system.
    Os,
}

/// How the log writes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// When a message counts as kept.
    pub sync: SyncPolicy,
    /// At most so many syncs a second, for flash media; 0: no limit.
    pub max_syncs_per_second: u32,
    /// Bytes of all files.
    pub max_bytes: u64,
    /// Bytes that stay free on the volume.
    pub min_free_bytes: u64,
    /// Bytes of one file.
    pub segment_bytes: u64,
    /// What one message may need at the most.
    pub message_bytes_max: u64,
    /// A full log gives up its oldest messages, the least urgent first.
    pub drop_oldest: bool,
}

impl Options {
    /// Spares that only notes and repacking may take, so that a full store can still acknowledge.
    pub(super) fn reserve_segments(&self) -> usize {
        if self.max_bytes >= 8 * self.segment_bytes {
            2
        } else {
            1
        }
    }
}

/// What appends and the writer share.
#[derive(Debug, Default)]
pub(super) struct Front {
    pub batch: Batch,
    pub next_seq: u64,
    /// Bytes that may be taken for frames and their lists.
    pub room: u64,
    /// Held back until the writer has taken the batch.
    pub busy: Vec<Arc<Mailbox>>,
    /// Held back until there is room.
    pub full: Vec<Arc<Mailbox>>,
    /// Told when what they appended is kept.
    pub waiters: Vec<(u64, Arc<Mailbox>)>,
    /// Segments that the next note gives up.
    pub freed: Vec<u64>,
    /// A note is due, whatever else there is to write.
    pub note: bool,
    /// Endpoints with numbers that no note has yet.
    pub endpoints: Vec<(u32, String)>,
    /// There are spares that the writer has not counted as room.
    pub supplied: bool,
    pub stop: bool,
    pub writer_sleeps: bool,
}

/// An empty segment file, ready to be written.
#[derive(Debug)]
pub(super) struct Spare {
    pub id: u64,
    pub size: u64,
    pub file: Arc<dyn DiskFile>,
    /// The segment that it was, if no note says yet that it was given up; else 0.
    pub old: u64,
}

/// A segment whose first write failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    pub id: u64,
    /// As in [`Spare`].
    pub old: u64,
}

/// Numbers that only grow, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes handed to the disk.
    pub written_bytes: AtomicU64,
    /// Bytes of messages among them.
    pub message_bytes: AtomicU64,
    /// Syncs.
    pub syncs: AtomicU64,
    /// Errors of the disk.
    pub errors: AtomicU64,
    /// Segments repacked.
    pub repacked: AtomicU64,
}

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    pub disk: Arc<dyn Disk>,
    pub store_id: u64,
    pub options: Mutex<Options>,
    pub front: Mutex<Front>,
    pub writer_wakes: Condvar,
    kept: AtomicU64,
    catalog: Mutex<Catalog>,
    pub spares: Mutex<VecDeque<Spare>>,
    /// Bytes of all files, in use and not.
    pub file_bytes: AtomicU64,
    pub writer: Mutex<Writer>,
    pub keeper: Mutex<Keeper>,
    /// Queues whose cursors changed.
    pub dirty: Mutex<Vec<Arc<Queue>>>,
    /// Queues that have to be read on.
    pub wanted: Mutex<Vec<Arc<Queue>>>,
    /// Segments whose end is noted on disk.
    pub freed: Mutex<Vec<u64>>,
    /// Files of segments that could not be written.
    pub suspect: Mutex<Vec<Suspect>>,
    /// The newest segment with something durable in it, and the first such seq.
    pub reached: Mutex<(u64, u64)>,
    pub keeper_wakes: (Mutex<bool>, Condvar),
    /// Cursors of endpoints whose names are not known.
    pub orphans: Mutex<Vec<Cursor>>,
    /// Nothing more can be written until the disk works again.
    pub has_failed: AtomicBool,
    pub is_full: AtomicBool,
    /// There is room on the disk for more segments than the reserve.
    pub is_roomy: AtomicBool,
    /// The writer has no segment to write to.
    pub is_blocked: AtomicBool,
    quarantined: AtomicU64,
    pub counters: Counters,
    /// Microseconds of recent syncs.
    pub sync_samples: Mutex<Vec<u32>>,
}

impl Log {
    pub fn new(
        disk: Arc<dyn Disk>,
        store_id: u64,
        options: Options,
        next_seq: u64,
        catalog: Catalog,
        writer: Writer,
        keeper: Keeper,
    ) -> Self {
        let front = Front {
            next_seq,
            ..Front::default()
        };
        Self {
            disk,
            store_id,
            options: Mutex::new(options),
            front: Mutex::new(front),
            writer_wakes: Condvar::new(),
            kept: AtomicU64::new(next_seq - 1),
            catalog: Mutex::new(catalog),
            spares: Mutex::default(),
            file_bytes: AtomicU64::new(0),
            writer: Mutex::new(writer),
            keeper: Mutex::new(keeper),
            dirty: Mutex::default(),
            wanted: Mutex::default(),
            freed: Mutex::default(),
            suspect: Mutex::default(),
            reached: Mutex::default(),
            keeper_wakes: (Mutex::new(false), Condvar::new()),
            orphans: Mutex::default(),
            has_failed: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            is_roomy: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            quarantined: AtomicU64::new(0),
            counters: Counters::default(),
            sync_samples: Mutex::default(),
        }
    }

    /// Everything up to here is kept, as the policy has it.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Acquire)
    }

    pub fn options(&self) -> Options {
        *lock(&self.options)
    }

    pub fn front(&self) -> MutexGuard<'_, Front> {
        lock(&self.front)
    }

    pub fn catalog(&self) -> MutexGuard<'_, Catalog> {
        lock(&self.catalog)
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.catalog().values().cloned().collect()
    }

    /// The last spare, unless it alone tells of a segment that was given up.
    pub fn last_spare(&self) -> Option<Spare> {
        let mut spares = lock(&self.spares);
        spares.back().filter(|spare| spare.old == 0)?;
        spares.pop_back()
    }

    /// The first write to a segment failed: it is not used.
    pub fn doubt(&self, id: u64, old: u64) {
        lock(&self.suspect).push(Suspect { id, old });
    }

    /// Has it noted that a segment was begun: one that vanishes is missed then.
    pub fn reached(&self, (segment, seq): (u64, u64)) {
        let mut reached = lock(&self.reached);
        if segment > reached.0 {
            *reached = (segment, seq);
        }
    }

    /// Removes a file of segments; its bytes are free.
    pub fn remove_file(&self, path: &str, size: u64) -> io::Result<()> {
        self.disk.remove(path)?;
        self.file_bytes.fetch_sub(size, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the writer that the spares are not those it has looked at.
    pub fn tell_supplied(&self) {
        let mut front = self.front();
        front.supplied = true;
        self.wake_writer(front);
    }

    /// A segment's file has gone, and with it what it held.
    pub fn vanished(&self, segment: &Segment) {
        if self.catalog().remove(&segment.id).is_none() {
            return;
        }
        let size = segment.size.load(Ordering::Acquire);
        self.file_bytes.fetch_sub(size, Ordering::Relaxed);
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        let lanes = segment.summaries();
        let first_seq = lanes.iter().map(|lane| lane.first_seq).min();
        let last_seq = lanes.iter().map(|lane| lane.last_seq).max();
        let file = segment_path(segment.id);
        tracing::error!(file, first_seq, last_seq, "a file of the store has gone");
    }

    /// Everything up to `seq` is kept: those who wait for it are told.
    pub fn keep(&self, seq: u64) {
        self.kept.fetch_max(seq, Ordering::AcqRel);
        let told: Vec<_> = {
            let mut front = self.front();
            front
                .waiters
                .extract_if(.., |(upto, _)| *upto <= seq)
                .collect()
        };
        for (_, waiter) in told {
            waiter.raise(DURABLE | SPACE);
        }
    }

    /// Asks to be told when `seq` is kept, unless it is. Starts the writer in any case.
    pub fn await_kept(&self, seq: u64, waiter: &Arc<Mailbox>) {
        self.tell_when_kept(self.front(), seq, waiter, DURABLE);
    }

    /// Asks to be told, with `SPACE` too, when all that was appended is kept.
    pub fn await_all(&self, waiter: &Arc<Mailbox>) {
        let front = self.front();
        let seq = front.next_seq - 1;
        self.tell_when_kept(front, seq, waiter, SPACE);
    }

    /// Raises `if_kept` now where `seq` is kept already.
    fn tell_when_kept(
        &self,
        mut front: MutexGuard<'_, Front>,
        seq: u64,
        waiter: &Arc<Mailbox>,
        if_kept: u32,
    ) {
        if self.kept() >= seq {
            drop(front);
            waiter.raise(if_kept);
            return;
        }
        front.waiters.push((seq, Arc::clone(waiter)));
        self.wake_writer(front);
    }

    /// Has what waits written now.
    pub fn wake_writer(&self, mut front: MutexGuard<'_, Front>) {
        if std::mem::take(&mut front.writer_sleeps) {
            drop(front);
            self.writer_wakes.notify_one();
        }
    }

    pub fn wake_keeper(&self) {
        let mut woken = lock(&self.keeper_wakes.0);
        if !*woken {
            *woken = true;
            drop(woken);
            self.keeper_wakes.1.notify_one();
        }
    }

    /// Lets those held back try again.
    pub fn wake_full(&self) {
        let waiters = std::mem::take(&mut self.front().full);
        for waiter in waiters {
            waiter.raise(SPACE);
        }
    }

    /// Puts a queue on the list of those whose cursors changed, once.
    pub fn note_cursor(&self, queue: &Arc<Queue>, state: &mut State) {
        if !std::mem::replace(&mut state.is_listed, true) {
            lock(&self.dirty).push(Arc::clone(queue));
        }
    }

    /// Puts a queue on the list of those that have to be read on, once.
    pub fn want(&self, queue: &Arc<Queue>, state: &mut State) {
        if !std::mem::replace(&mut state.is_wanted, true) {
            lock(&self.wanted).push(Arc::clone(queue));
            self.wake_keeper();
        }
    }

    /// Keeps damaged bytes for support, as far as there is room for them.
    pub fn quarantine(&self, segment: u64, offset: u64, bytes: &[u8]) {
        if self.quarantined.fetch_add(1, Ordering::Relaxed) >= QUARANTINE_MAX {
            return;
        }
        let path = format!("{QUARANTINE}/{segment:016x}-{offset:08x}.bin");
        let kept = |path: &str| -> io::Result<()> {
            self.disk.create_dir(QUARANTINE)?;
            self.disk.create(path)?.write_at(&[IoSlice::new(bytes)], 0)
        };
        if kept(&path).is_err() {
            // Half a copy only takes room.
            let _ = self.disk.remove(&path);
        }
    }
}
