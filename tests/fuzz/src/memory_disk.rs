//! A disk in memory that does what it is told, and quickly: files are plain bytes.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edgehub::store::disk::{Disk, DiskFile};

/// No file becomes longer.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Default)]
pub struct MemoryDisk {
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
}

#[derive(Debug, Default)]
struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

#[allow(dead_code)]
impl MemoryDisk {
    /// A disk with these files.
    pub fn with<'a>(files: impl Iterator<Item = (&'a str, &'a [u8])>) -> Arc<Self> {
        let file = |(name, bytes): (&str, &[u8])| {
            let bytes = Mutex::new(bytes.to_vec());
            (name.to_owned(), Arc::new(MemoryFile { bytes }))
        };
        let files = Mutex::new(files.map(file).collect());
        Arc::new(Self { files })
    }
}

impl Disk for MemoryDisk {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let files = lock(&self.files);
        let own = files
            .keys()
            .filter_map(|name| name.strip_prefix(dir)?.strip_prefix('/'));
        Ok(own.map(str::to_owned).collect())
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = lock(&self.files).get(path).cloned();
        file.map(|file| file as Arc<dyn DiskFile>)
            .ok_or_else(not_found)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.files);
        let file = Arc::clone(files.entry(path.to_owned()).or_default());
        lock(&file.bytes).clear();
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or_else(not_found)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        lock(&self.files)
            .remove(path)
            .map(drop)
            .ok_or_else(not_found)
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

impl DiskFile for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(&self.bytes).len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = lock(&self.bytes);
        // As the system has it: a place is a signed number.
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)? as usize;
        let rest = bytes.get(offset..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let end = offset.saturating_add(total as u64);
        if end > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = lock(&self.bytes);
        if bytes.len() < end as usize {
            bytes.resize(end as usize, 0);
        }
        let mut at = offset as usize;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        let len = bytes.len().max(len.min(FILE_BYTES_MAX) as usize);
        bytes.resize(len, 0);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        lock(&self.bytes).resize(len.min(FILE_BYTES_MAX) as usize, 0);
        Ok(())
    }
}
