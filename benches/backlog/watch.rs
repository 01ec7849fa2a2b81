//! Memory of a process, and size of a folder, while something goes on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(20);
const MIB: f64 = 1024.0 * 1024.0;

/// Resident memory in MiB: all, and without pages of files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resident {
    pub all: f64,
    pub own: f64,
}

impl std::fmt::Display for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>7.1} MiB, own {:>6.1}", self.all, self.own)
    }
}

/// What a process has now; nothing where it has gone.
pub fn resident(pid: u32) -> Resident {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mib = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    };
    Resident {
        all: mib("VmRSS:"),
        own: mib("RssAnon:"),
    }
}

/// MiB that the files of a folder take on disk.
pub fn folder_mib(path: &Path) -> f64 {
    fn bytes(path: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(path) else {
            return 0;
        };
        let of = |entry: fs::DirEntry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        };
        entries.flatten().map(of).sum()
    }
    bytes(path) as f64 / MIB
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// KiB.
    all: AtomicU64,
    own: AtomicU64,
}

/// Remembers the most memory that a process had.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn new(pid: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !seen.stop.load(Ordering::Relaxed) {
                let now = resident(pid);
                let kib = |mib: f64| (mib * 1024.0) as u64;
                seen.all.fetch_max(kib(now.all), Ordering::Relaxed);
                seen.own.fetch_max(kib(now.own), Ordering::Relaxed);
                thread::sleep(EVERY);
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The most since the last call.
    pub fn most(&self) -> Resident {
        let mib = |kib: &AtomicU64| kib.swap(0, Ordering::Relaxed) as f64 / 1024.0;
        Resident {
            all: mib(&self.shared.all),
            own: mib(&self.shared.own),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
