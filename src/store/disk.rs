//! The one way to the disk: a small trait, and the real thing.
//!
//! Everything that the log does to files goes through [`Disk`] and [`DiskFile`], so the same code
//! runs on a simulated disk that tears, forgets and fails. Paths are relative to the store's
//! folder and use `/`.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What a page is to the log: it writes whole ones, aligned, and never again one that was synced.
pub const PAGE_BYTES: usize = 4096;

/// Bytes that are read of a small text file.
const TEXT_BYTES_MAX: usize = 256;
/// Slices that one `pwritev` takes.
const IOV_MAX: usize = 1024;

/// A folder on a disk.
pub trait Disk: Debug + Send + Sync {
    /// The names in a folder; an empty list where there is no such folder.
    ///
    /// # Errors
    /// Whatever the system answers, as with all of these.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes a folder where there is none.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Opens a file that exists.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file, or empties the one that is there.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name, replacing what has it; durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Bytes that the volume has left.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn size(&self) -> io::Result<u64>;
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all parts, one behind the other.
    ///
    /// # Errors
    /// See [`Disk::list`]; any part may have been written.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes the content durable (`fdatasync`).
    ///
    /// # Errors
    /// See [`Disk::list`]; what was not durable before may then be lost, and must never be
    /// confirmed by a later sync of the same file.
    fn sync_data(&self) -> io::Result<()>;
    /// Takes the blocks for `len` bytes, so that writing them cannot find the disk full.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts the file, or lengthens it by a hole.
    ///
    /// # Errors
    /// See [`Disk::list`].
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Replaces a file in the store's folder whole and durably, or leaves the one that is there.
///
/// # Errors
/// See [`Disk::list`].
pub fn replace(disk: &dyn Disk, path: &str, text: &str) -> io::Result<()> {
    let new = format!("{path}.new");
    let file = disk.create(&new)?;
    file.write_at(&[IoSlice::new(text.as_bytes())], 0)?;
    file.sync_data()?;
    disk.rename(&new, path)?;
    disk.sync_dir("")
}

/// The text of a small file.
///
/// # Errors
/// See [`Disk::list`].
pub fn read_text(file: &dyn DiskFile) -> io::Result<String> {
    let mut bytes = [0; TEXT_BYTES_MAX];
    let read = file.read_at(&mut bytes, 0)?;
    let text = bytes.get(..read).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// A folder of the file system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The disk below `root`, which is made (mode 0700) where it is missing.
    ///
    /// # Errors
    /// The folder can be neither found nor made.
    pub fn new(root: &Path) -> io::Result<Self> {
        make_dir(root)?;
        Ok(Self::existing(root))
    }

    /// The disk below `root`, as it is.
    #[must_use]
    pub fn existing(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Names the file in an error of the system; its kind stays.
fn named(path: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

impl Disk for RealDisk {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(named(dir, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        make_dir(&self.root.join(dir)).map_err(|error| named(dir, error))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.root.join(name);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = match opened {
            // `inspect` and `verify` read stores that they may not write.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(&path).map_err(|_| named(name, error))?
            }
            opened => opened.map_err(|error| named(name, error))?,
        };
        Ok(Arc::new(RealFile { file }))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.root.join(path))
            .map_err(|error| named(path, error))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to)).map_err(|error| named(from, error))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.root.join(path)).map_err(|error| named(path, error))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.root.join(dir))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let volume = statvfs(&self.root)?;
        Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        for some in parts.chunks(IOV_MAX) {
            let mut some = some.to_vec();
            let mut rest = some.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match rustix::io::pwritev(&self.file, rest, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        offset += written as u64;
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            // The file system cannot; then the blocks come as they are written.
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(len),
            done => done.map_err(io::Error::from),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
