//! A disk in memory that tears, forgets and fails, for crash tests of the log.
//!
//! Everything that it decides comes from its seed: the same calls in the same order find the same
//! disk. What a file holds becomes durable by `sync_data`, and a name by `sync_dir`. Names change
//! as in a journaling file system: the changes are one ordered list, a sync of any folder commits
//! all of it, and a power cut keeps some beginning of what was not committed. A sync of a file
//! commits no names.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "sim_disk/faults.rs"]
mod faults;
#[path = "sim_disk/inode.rs"]
mod inode;
#[path = "sim_disk/names.rs"]
mod names;
#[cfg(test)]
#[path = "sim_disk/tests.rs"]
mod tests;
#[path = "sim_disk/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgehub::store::disk::{Disk, DiskFile};

#[allow(unused_imports)]
pub use faults::{Calls, CrashMode, FaultKind, Faults, Rng};
#[allow(unused_imports)]
pub use inode::SECTOR_BYTES;
use world::World;

/// What was done to the disk since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Mutating calls.
    pub calls: u64,
    /// Reads.
    pub reads: u64,
    /// Writes, whole or not.
    pub writes: u64,
    /// Bytes of writes that reached the page cache.
    pub bytes_written: u64,
    /// Syncs of files, also those that failed.
    pub syncs: u64,
    /// Syncs of folders, also those that failed.
    pub dir_syncs: u64,
}

/// All content of a disk at one time; cheap to clone and to restore.
#[derive(Debug, Clone)]
pub struct SimState {
    files: world::Images,
    dirs: BTreeSet<String>,
}

/// The simulated disk, or one life of it (see [`SimDisk::mount`]).
pub struct SimDisk {
    world: Arc<Mutex<World>>,
    /// The only generation in which this works.
    generation: Option<u64>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SimDisk");
        shown.field("generation", &self.generation);
        shown.finish_non_exhaustive()
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// An empty disk, whose luck comes from `seed`.
    pub fn new(seed: u64, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::new(Mutex::new(World::new(seed, faults))),
            generation: None,
        })
    }

    /// The same disk for one life: after the next crash every call of [`Disk`] on it fails. On
    /// the disk itself they go on to work, so a store that outlives its crash should have this.
    pub fn mount(&self) -> Arc<Self> {
        let world = Arc::clone(&self.world);
        let generation = Some(self.world().generation);
        Arc::new(Self { world, generation })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    fn file(&self, (file, generation): (u64, u64)) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            world: Arc::clone(&self.world),
            file,
            generation,
        })
    }

    /// Ends this life of the disk: handles of before fail from now on. Faults stay set.
    pub fn crash(&self, mode: CrashMode) {
        self.world().crash(mode);
    }

    /// Starts a new life in which nothing is lost: a crash of the process only.
    pub fn reopen(&self) {
        self.crash(CrashMode::Kill);
    }

    /// Replaces what goes wrong; counting starts anew.
    pub fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// The faults that are still to come.
    pub fn faults(&self) -> Faults {
        self.world().faults.clone()
    }

    /// Whether `crash_at` was reached, and no crash or restore has followed yet.
    pub fn power_is_off(&self) -> bool {
        self.world().off
    }

    /// Mutating calls so far.
    pub fn calls(&self) -> u64 {
        self.counters().calls
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.world().counters
    }

    /// The paths of all files, in order.
    pub fn files(&self) -> Vec<String> {
        self.world().files().keys().cloned().collect()
    }

    /// Whether there is a file of this name.
    pub fn exists(&self, path: &str) -> bool {
        self.world().files().contains_key(&names::plain(path))
    }

    /// The length of a file that is there.
    pub fn file_len(&self, path: &str) -> u64 {
        self.world().named(path).len()
    }

    /// The content of a file that is there, as a read would find it.
    pub fn read_file(&self, path: &str) -> Vec<u8> {
        let mut world = self.world();
        let inode = world.named(path);
        let mut bytes = vec![0; inode.len() as usize];
        inode.read(&mut bytes, 0);
        bytes
    }

    /// Turns one bit over, on the disk and in the cache; its changes of length become durable.
    pub fn flip_bit(&self, path: &str, bit_index: u64) {
        let bit = 1 << (bit_index % 8);
        let flip = |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte ^= bit);
        self.world().named(path).corrupt(bit_index / 8, 1, flip);
    }

    /// Zeros a range, as [`SimDisk::flip_bit`] does it.
    pub fn zero(&self, path: &str, offset: u64, len: u64) {
        let mut world = self.world();
        world
            .named(path)
            .corrupt(offset, len, |bytes| bytes.fill(0));
    }

    /// Cuts or lengthens a file, durably.
    pub fn truncate(&self, path: &str, len: u64) {
        let mut world = self.world();
        let inode = world.named(path);
        inode.set_len(len);
        inode.commit_meta();
    }

    /// Removes a file durably, and with it commits all changes of names before.
    pub fn delete(&self, path: &str) {
        self.world().delete(path);
    }

    /// All that is on the disk now, durable or not.
    pub fn snapshot(&self) -> SimState {
        self.world().snapshot()
    }

    /// Brings a snapshot back, all of it durable. Handles of before fail from now on.
    pub fn restore(&self, state: &SimState) {
        self.world().restore(state);
    }
}

impl Disk for SimDisk {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.world().list(self.generation, dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.world().create_dir(self.generation, dir)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let opened = self.world().open(self.generation, path)?;
        Ok(self.file(opened))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let opened = self.world().create(self.generation, path)?;
        Ok(self.file(opened))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.world().rename(self.generation, from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.world().remove(self.generation, path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.world().sync_dir(self.generation, dir)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.world().free_bytes(self.generation)
    }
}

/// An open file of one life of the disk.
struct SimFile {
    world: Arc<Mutex<World>>,
    file: u64,
    generation: u64,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SimFile");
        shown.field("file", &self.file);
        shown.field("generation", &self.generation);
        shown.finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        lock(&self.world).close(self.generation, self.file);
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        lock(&self.world).size(self.generation, self.file)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        lock(&self.world).read(self.generation, self.file, buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        lock(&self.world).write(self.generation, self.file, parts, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        lock(&self.world).sync_data(self.generation, self.file)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        lock(&self.world).allocate(self.generation, self.file, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        lock(&self.world).set_len(self.generation, self.file, len)
    }
}
