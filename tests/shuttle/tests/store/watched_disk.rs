//! A disk in memory that knows the highest seq that was synced.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use edgehub::store::disk::{Disk, DiskFile};
use edgehub::store::frame::{SYNC_WORD, read_u64};

use super::memory_disk::MemoryDisk;

#[derive(Debug, Default)]
pub struct WatchedDisk {
    disk: MemoryDisk,
    synced: Arc<AtomicU64>,
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    written: AtomicU64,
    synced: Arc<AtomicU64>,
}

impl WatchedDisk {
    /// The highest seq that was synced.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::SeqCst)
    }

    fn watch(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(WatchedFile {
            file,
            written: AtomicU64::new(0),
            synced: Arc::clone(&self.synced),
        })
    }
}

impl Disk for WatchedDisk {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.watch(self.disk.open(path)?))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.watch(self.disk.create(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

impl DiskFile for WatchedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        for at in (0..bytes.len()).step_by(8) {
            if bytes[at..].starts_with(&SYNC_WORD.to_le_bytes()) {
                let seq = read_u64(&bytes, at + 8).unwrap_or(0);
                self.written.fetch_max(seq, Ordering::SeqCst);
            }
        }
        self.file.write_at(parts, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        let written = self.written.load(Ordering::SeqCst);
        self.synced.fetch_max(written, Ordering::SeqCst);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
