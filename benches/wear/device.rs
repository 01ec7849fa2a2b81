//! What a block device has been asked for, as the kernel counts it.

use std::fs::{self, File};
use std::ops::Sub;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor, stat, syncfs};

const SECTOR_BYTES: u64 = 512;
/// Fields of `stat`, from 0 on (the kernel's `Documentation/block/stat.rst`).
const WRITE_SECTORS: usize = 6;
const FLUSHES: usize = 15;

/// Bytes written and flushes.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub bytes: u64,
    pub flushes: u64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            flushes: self.flushes - earlier.flushes,
        }
    }
}

/// The device below a mounted file system.
pub struct Device {
    mount: PathBuf,
    stat: PathBuf,
}

impl Device {
    pub fn of(mount: &Path) -> Result<Self, String> {
        let number = stat(mount).map_err(|error| error.to_string())?.st_dev;
        let (major, minor) = (major(number), minor(number));
        Ok(Self {
            mount: mount.to_owned(),
            stat: PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat")),
        })
    }

    /// What was counted, once everything that the system holds back is on the device.
    pub fn counts(&self) -> Result<Counts, String> {
        let mount = File::open(&self.mount).map_err(|error| error.to_string())?;
        syncfs(&mount).map_err(|error| error.to_string())?;
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", self.stat.display());
        let text = fs::read_to_string(&self.stat).map_err(|error| at(&error))?;
        let fields: Vec<u64> = text
            .split_whitespace()
            .map_while(|field| field.parse().ok())
            .collect();
        match (fields.get(WRITE_SECTORS), fields.get(FLUSHES)) {
            (Some(sectors), Some(flushes)) => Ok(Counts {
                bytes: sectors * SECTOR_BYTES,
                flushes: *flushes,
            }),
            _ => Err(at(&"no count of flushes (Linux 5.5 has one)")),
        }
    }
}
