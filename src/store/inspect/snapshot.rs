//! A disk that cannot be written, and on which a file that was opened once stays the same file
//! though its name goes to another.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use crate::store::disk::{Disk, DiskFile};
use crate::store::lock;

/// One pass over a disk.
#[derive(Debug)]
pub(super) struct Snapshot {
    disk: Arc<dyn Disk>,
    files: Mutex<HashMap<String, Arc<dyn DiskFile>>>,
}

impl Snapshot {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            files: Mutex::default(),
        }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for Snapshot {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create_dir(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(path) {
            return Ok(Arc::clone(file));
        }
        let file: Arc<dyn DiskFile> = Arc::new(ReadFile(self.disk.open(path)?));
        files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn create(&self, _: &str) -> io::Result<Arc<dyn DiskFile>> {
        refused()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

#[derive(Debug)]
struct ReadFile(Arc<dyn DiskFile>);

impl DiskFile for ReadFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        refused()
    }
}
