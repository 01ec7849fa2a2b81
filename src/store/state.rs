//! Small state on disk: a map from key to value, kept as a snapshot and a journal behind it.
//!
//! ```text
//! state/{generation:016x}.log
//!    0 header page: 8 bytes magic, u32 version, u32 salt, u64 generation, u64 store id,
//!      u64 keys of the snapshot, zeros, at 4092 u32 CRC-32C of the 4092 bytes before
//! 4096 frames of `Kind::State`, seq from 1: the snapshot's keys, a mark, zeros to the next page
//!      the journal: one frame per change; with sync, each batch ends with zeros to the next page
//! ```
//!
//! A frame's topic is the key, its payload the value. Properties are empty, or `-` where the key
//! is removed. A mark has no topic: all before it is complete. The first lane place holds the
//! key's hash (FNV-1a, high half and low half), the second that of the frame before, so that a
//! damaged frame still tells whose value is lost. The salt comes from store id and generation.
//! `durable_seq` is the last frame that was acknowledged.
//!
//! A generation is written whole as `state/new`, synced, and only then named; older ones go after
//! that. A page that was synced is never written again. At start, and when it has grown to twice
//! what lives in it, the file is written anew. What cannot be written is tried again until it can;
//! until then nobody is told that it is kept. One thread writes; changes that wait together share
//! one sync, and of one key only the last is written.

pub mod format;
pub mod read;
#[cfg(test)]
mod tests;
pub mod write;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::mailbox::{DURABLE, Mailbox};
use crate::store::disk::Disk;
use read::Values;
use write::Writer;

/// Between two tries while the disk refuses.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// A key has at most these bytes.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// A value has at most these bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 30;

/// What waits for the writer.
#[derive(Debug, Default)]
struct Waiting {
    /// The newest version.
    newest: u64,
    changes: BTreeMap<String, Option<Bytes>>,
    /// By address, so that each is there once.
    waiters: BTreeMap<usize, Arc<Mailbox>>,
    stop: bool,
}

impl Waiting {
    fn add(&mut self, waiter: &Arc<Mailbox>) {
        let address = Arc::as_ptr(waiter).addr();
        self.waiters
            .entry(address)
            .or_insert_with(|| Arc::clone(waiter));
    }
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Told when `settled` has grown.
    has_settled: Condvar,
    durable: AtomicU64,
    /// On disk, or refused by it and kept in memory until it is not.
    settled: AtomicU64,
}

impl Shared {
    /// Tells those who wait how far the state is settled.
    fn settle(&self, version: u64, waiters: &BTreeMap<usize, Arc<Mailbox>>) {
        self.settled.fetch_max(version, Ordering::AcqRel);
        drop(self.lock());
        self.has_settled.notify_all();
        for waiter in waiters.values() {
            waiter.raise(DURABLE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for changes or the end; while the disk refuses, for the next try or the end.
    fn wait(&self, failing: bool) -> MutexGuard<'_, Waiting> {
        let waiting = self.lock();
        if failing {
            let retry = |waiting: &mut Waiting| !waiting.stop;
            let woken = self.wake.wait_timeout_while(waiting, RETRY_EVERY, retry);
            return woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let idle = |waiting: &mut Waiting| {
            waiting.changes.is_empty() && waiting.waiters.is_empty() && !waiting.stop
        };
        let woken = self.wake.wait_while(waiting, idle);
        woken.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state. Dropping it writes what waits.
#[derive(Debug)]
pub struct State {
    shared: Arc<Shared>,
    /// `None`: nothing is kept.
    thread: Option<JoinHandle<()>>,
}

impl State {
    /// Reads the state of a store and starts its writer; also returns the values, and a sentence
    /// for each that was lost. `sync` says whether a change is on disk before it counts as durable.
    ///
    /// # Errors
    /// Whatever the disk answers, except that it is full; damaged content is no error.
    pub fn open(
        disk: Arc<dyn Disk>,
        store_id: u64,
        sync: bool,
    ) -> io::Result<(Self, Values, Vec<String>)> {
        let (writer, values, damage) = Writer::open(disk, store_id, sync)?;
        let shared = Arc::new(Shared::default());
        // What was read is a version, too, where it is not known to be durable.
        shared.lock().newest = u64::from(!writer.is_written());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || run(writer, &of_thread))?;
        let state = Self {
            shared,
            thread: Some(thread),
        };
        Ok((state, values, damage))
    }

    /// A state that keeps nothing: every version is durable at once.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            shared: Arc::default(),
            thread: None,
        }
    }

    /// Records a key's value, or with `None` that it has none any more. Returns a version; it
    /// is settled once [`State::settled`] has reached it, and `waiter` then gets [`DURABLE`].
    ///
    /// # Errors
    /// The key is empty, or key or value is longer than a frame takes.
    pub fn record(
        &self,
        key: &str,
        value: Option<Bytes>,
        waiter: &Arc<Mailbox>,
    ) -> io::Result<u64> {
        let bytes = value.as_ref().map_or(0, Bytes::len);
        if key.is_empty() || key.len() > KEY_BYTES_MAX || bytes > VALUE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut waiting = self.shared.lock();
        waiting.newest += 1;
        let version = waiting.newest;
        if self.thread.is_none() {
            self.shared.durable.store(version, Ordering::Release);
            self.shared.settled.store(version, Ordering::Release);
            drop(waiting);
            waiter.raise(DURABLE);
            return Ok(version);
        }
        waiting.changes.insert(key.to_owned(), value);
        waiting.add(waiter);
        drop(waiting);
        self.shared.wake.notify_one();
        Ok(version)
    }

    /// The newest version, for one who has nothing to record but waits for all before: `waiter`
    /// gets [`DURABLE`] once it is settled, unless it is already.
    pub fn watch(&self, waiter: &Arc<Mailbox>) -> u64 {
        let mut waiting = self.shared.lock();
        if waiting.newest > self.settled() {
            waiting.add(waiter);
            self.shared.wake.notify_one();
        }
        waiting.newest
    }

    /// Waits until everything that was recorded is settled.
    pub fn settle(&self) {
        let waiting = self.shared.lock();
        let is_open =
            |waiting: &mut Waiting| waiting.newest > self.shared.settled.load(Ordering::Acquire);
        drop(self.shared.has_settled.wait_while(waiting, is_open));
    }

    /// The newest version that was recorded.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.shared.lock().newest
    }

    /// The highest version that is on disk, or was refused by it and is tried again; it can be
    /// acknowledged, since without its subscriptions no receiver would empty a full disk.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.shared.settled.load(Ordering::Acquire)
    }

    /// The highest version that is on disk together with all before it.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut writer: Writer, shared: &Shared) {
    let mut failing = !writer.is_written();
    let mut waiters = BTreeMap::new();
    loop {
        let mut waiting = shared.wait(failing);
        let (newest, stop) = (waiting.newest, waiting.stop);
        waiters.append(&mut waiting.waiters);
        let changes = std::mem::take(&mut waiting.changes);
        drop(waiting);
        for (key, value) in changes {
            writer.put(key, value);
        }
        match writer.write() {
            Ok(()) => {
                if failing {
                    tracing::info!("sessions are kept on disk again");
                }
                failing = false;
                shared.durable.store(newest, Ordering::Release);
                shared.settle(newest, &waiters);
                waiters.clear();
            }
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "sessions cannot be kept on disk; \
                        they are in memory only until they can");
                }
                failing = true;
                // Whoever comes for its messages is not turned away for that; all are told again
                // once it is on disk.
                shared.settle(newest, &waiters);
                waiters.retain(|_, waiter| Arc::strong_count(waiter) > 1);
            }
        }
        if stop {
            break;
        }
        if let Err(error) = writer.compact() {
            tracing::warn!(%error, "the small state cannot be written anew; its file goes on");
        }
    }
    writer.close();
}
