//! The writing end of the state: no thread, no clock, driven from outside.
//!
//! What was put waits until [`Writer::write`] has returned `Ok`; only then it is kept. After a
//! failed write the same bytes are tried again at the same place. After a failed sync the file is
//! not trusted any more, and everything goes into a new generation.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use super::format::{self, Chain, Entry};
use super::read::{self, Values};
use crate::store::disk::{Disk, DiskFile, PAGE_BYTES};

/// The file is not written anew below twice what lives in it and this.
pub const REWRITE_BYTES_MIN: u64 = 256 * 1024;
/// Bytes of a snapshot that are written at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// The file that is appended to.
#[derive(Debug)]
struct Current {
    file: Arc<dyn DiskFile>,
    /// Where the next batch goes.
    end: u64,
    chain: Chain,
    /// Whether a mark is the last frame.
    marked: bool,
}

/// Writes the state.
#[derive(Debug)]
pub struct Writer {
    disk: Arc<dyn Disk>,
    store_id: u64,
    sync: bool,
    /// `None`: only a new generation can make anything durable.
    current: Option<Current>,
    /// The highest that was ever tried.
    generation: u64,
    /// What the current file says; without one, what the next is to say.
    live: Values,
    live_bytes: u64,
    pending: BTreeMap<String, Option<Bytes>>,
    /// After a failed rewrite, none is tried again below this.
    rewrite_at: u64,
    /// Whether the folder itself is durable.
    founded: bool,
    /// Generations that are to be kept for support.
    damaged: BTreeSet<u64>,
}

impl Writer {
    /// Reads the state and writes it into a new generation. Where that cannot be, the old one
    /// goes on.
    ///
    /// # Errors
    /// The state cannot be read, or nothing can be written for another reason than a full disk.
    pub fn open(
        disk: Arc<dyn Disk>,
        store_id: u64,
        sync: bool,
    ) -> io::Result<(Self, Values, Vec<String>)> {
        let loaded = read::load(&*disk, store_id)?;
        let live = loaded.values;
        let mut writer = Self {
            disk,
            store_id,
            sync,
            current: None,
            generation: loaded.highest,
            live_bytes: live
                .iter()
                .map(|(key, value)| format::frame_bytes(key, value))
                .sum(),
            live,
            pending: BTreeMap::new(),
            rewrite_at: 0,
            founded: false,
            damaged: loaded.damaged,
        };
        if let Err(error) = writer.rewrite() {
            match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    return Err(error);
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {}
                _ if loaded.highest > 0 => {}
                _ => return Err(error),
            }
            tracing::warn!(%error, "the small state cannot be written anew");
            // A new generation that may have a name already must not be undercut.
            if writer.is_newest(loaded.highest)
                && let Some(tail) = loaded.tail
                && let Err(error) = writer.go_on(tail)
            {
                tracing::warn!(%error, "the small state's file cannot go on");
            }
        }
        let values = writer.live.clone();
        Ok((writer, values, loaded.damage))
    }

    /// A key has another value, or with `None` none any more. It is kept once the next
    /// [`Writer::write`] has returned `Ok`.
    pub fn put(&mut self, key: String, value: Option<Bytes>) {
        self.pending.insert(key, value);
    }

    /// Whether all that was put and read is kept.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.current.is_some() && self.pending.is_empty()
    }

    /// Writes what waits; `Ok`: all that was put is kept.
    ///
    /// # Errors
    /// Whatever the disk answers. What waits is written with the next call.
    pub fn write(&mut self) -> io::Result<()> {
        if self.current.is_none() {
            self.apply();
            return self.rewrite();
        }
        self.append()
    }

    /// Writes the file anew if it has grown beyond what lives in it.
    ///
    /// # Errors
    /// Whatever the disk answers; the file then goes on growing.
    pub fn compact(&mut self) -> io::Result<()> {
        let limit = (2 * self.live_bytes + REWRITE_BYTES_MIN).max(self.rewrite_at);
        let end = match &self.current {
            Some(current) if current.end > limit && self.pending.is_empty() => current.end,
            _ => return Ok(()),
        };
        let done = self.rewrite();
        if done.is_err() {
            self.rewrite_at = 2 * end;
        }
        done
    }

    /// Notes at the end of the file that all before it was acknowledged, so that a damaged last
    /// frame does not pass for a torn one.
    pub fn close(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        let Some(current) = self.current.as_mut().filter(|current| !current.marked) else {
            return;
        };
        let mut bytes = Vec::new();
        current.chain.push(Entry::Mark, &mut bytes);
        // It is only a help; without it the file is as after a crash.
        let _ = current.file.write_at(&[IoSlice::new(&bytes)], current.end);
        self.current = None;
    }

    /// Appends what waits to the current file.
    fn append(&mut self) -> io::Result<()> {
        let Some(current) = self.current.as_mut().filter(|_| !self.pending.is_empty()) else {
            return Ok(());
        };
        let mut chain = current.chain;
        let mut bytes = Vec::new();
        for (key, value) in &self.pending {
            chain.push(Entry::of(key, value.as_deref()), &mut bytes);
        }
        if self.sync {
            pad(&mut bytes);
        }
        let written = current.file.write_at(&[IoSlice::new(&bytes)], current.end);
        if written.is_err() {
            // What a failed write left would only take room.
            let _ = current.file.set_len(current.end);
            return written;
        }
        if self.sync
            && let Err(error) = current.file.sync_data()
        {
            // It may be seen and yet not be there; nobody shall find it.
            let _ = current.file.set_len(current.end);
            self.current = None;
            return Err(error);
        }
        chain.acked = chain.seq;
        current.chain = chain;
        current.end += bytes.len() as u64;
        current.marked = false;
        self.apply();
        Ok(())
    }

    /// What waits becomes what lives.
    fn apply(&mut self) {
        for (key, value) in std::mem::take(&mut self.pending) {
            let old = self.live.get(&key);
            self.live_bytes -= old.map_or(0, |old| format::frame_bytes(&key, old));
            if let Some(value) = value {
                self.live_bytes += format::frame_bytes(&key, &value);
                self.live.insert(key, value);
            } else {
                self.live.remove(&key);
            }
        }
    }

    /// Writes all that lives into a new generation and removes the older ones.
    fn rewrite(&mut self) -> io::Result<()> {
        // A number that was tried is not used again, so that what is left of it never validates.
        self.generation += 1;
        let path = format::path_of(self.generation);
        let written = self.write_new();
        let named = match &written {
            Ok(_) => self.disk.rename(format::UNFINISHED, &path),
            Err(_) => Ok(()),
        };
        if written.is_err() || named.is_err() {
            let _ = self.disk.remove(format::UNFINISHED);
        }
        let current = written?;
        if named.is_err() {
            if !self.is_newest(self.generation - 1) {
                self.current = None;
            }
            return named;
        }
        // From here on the new generation may be what the next start finds.
        self.current = None;
        self.disk.sync_dir(format::DIR)?;
        self.current = Some(current);
        self.rewrite_at = 0;
        self.remove_older();
        Ok(())
    }

    /// Makes the folder, durably.
    fn found(&mut self) -> io::Result<()> {
        if !self.founded {
            self.disk.create_dir(format::DIR)?;
            self.disk.sync_dir("")?;
            self.founded = true;
        }
        Ok(())
    }

    /// The new generation under its temporary name, synced.
    fn write_new(&mut self) -> io::Result<Current> {
        self.found()?;
        let file = self.disk.create(format::UNFINISHED)?;
        let keys = self.live.len() as u64;
        let mut bytes = format::header_page(self.store_id, self.generation, keys);
        let mut chain = Chain::new(format::salt_of(self.store_id, self.generation));
        let mut end = 0;
        for (key, value) in &self.live {
            chain.push(Entry::Set(key, value), &mut bytes);
            if bytes.len() >= CHUNK_BYTES {
                file.write_at(&[IoSlice::new(&bytes)], end)?;
                end += bytes.len() as u64;
                bytes.clear();
            }
        }
        // The file counts only with its name, and gets that after its sync.
        chain.acked = chain.seq;
        chain.push(Entry::Mark, &mut bytes);
        chain.acked = chain.seq;
        // `end` may be within a page.
        let whole = (end + bytes.len() as u64).next_multiple_of(PAGE_BYTES as u64);
        bytes.resize((whole - end) as usize, 0);
        file.write_at(&[IoSlice::new(&bytes)], end)?;
        file.sync_data()?;
        Ok(Current {
            file,
            end: whole,
            chain,
            marked: true,
        })
    }

    /// Goes on behind the last good frame of an old file.
    fn go_on(&mut self, tail: read::Tail) -> io::Result<()> {
        let mut end = tail.end;
        if self.sync {
            end = end.next_multiple_of(PAGE_BYTES as u64);
        }
        if tail.file.size()? > end {
            tail.file.set_len(end)?;
        }
        // Neither content nor name may have been durable when an earlier process ended.
        tail.file.sync_data()?;
        self.found()?;
        self.disk.sync_dir(format::DIR)?;
        // An earlier process may have seen a sync of the last batch fail.
        for key in tail.unproven {
            let value = self.live.get(&key).cloned();
            self.pending.insert(key, value);
        }
        self.rewrite_at = 2 * end;
        self.current = Some(Current {
            file: tail.file,
            end,
            chain: tail.chain,
            marked: false,
        });
        self.append()
    }

    /// Whether no generation above this has a file.
    fn is_newest(&self, generation: u64) -> bool {
        let above = |name: &String| format::generation_of(name).is_some_and(|n| n > generation);
        let names = self.disk.list(format::DIR);
        names.is_ok_and(|names| !names.iter().any(above))
    }

    /// Removes the generations before the current one, but keeps the last damaged one.
    fn remove_older(&mut self) {
        let names = self.disk.list(format::DIR).unwrap_or_default();
        let mut older: Vec<_> = names
            .iter()
            .filter_map(|name| format::generation_of(name))
            .filter(|generation| *generation < self.generation)
            .collect();
        older.sort_unstable();
        for generation in older {
            let path = format::path_of(generation);
            let gone = if self.damaged.contains(&generation) {
                self.disk.rename(&path, format::DAMAGED)
            } else {
                self.disk.remove(&path)
            };
            if let Err(error) = gone {
                tracing::warn!(%error, path, "an old file of the small state is left");
            }
        }
        self.damaged.clear();
    }
}

/// Fills the page up.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
}

#[cfg(test)]
impl Writer {
    /// Writes the file anew if nothing waits, whatever its length.
    pub fn force_rewrite(&mut self) {
        if self.is_written() {
            let _ = self.rewrite();
        }
    }
}
