//! Memory that a burst took and that nobody needs any more goes back to the system. glibc keeps
//! much of it otherwise: after a few thousand connections or subscriptions some 15 MiB, which is
//! twice what the idle hub needs.

use std::fs;
use std::time::Duration;

use rustix::param::page_size;
use rustix::time::{ClockId, clock_gettime};

/// The hub has little to do if it took no more processor time since the last look.
const QUIET: Duration = Duration::from_millis(100);
/// So much more than after the last time has to be there for another one.
const GROWN_KIB: u64 = 1024;

/// When it is worth the while.
#[derive(Debug)]
pub struct Heap {
    /// Resident memory after the last time.
    floor_kib: u64,
    /// Processor time so far.
    cpu: Duration,
}

impl Heap {
    /// From now on.
    pub fn new() -> Self {
        glibc::limit();
        Self {
            floor_kib: resident_kib().unwrap_or(u64::MAX),
            cpu: cpu(),
        }
    }

    /// Gives back what is free, once the hub has grown and is quiet. Called each second: a walk
    /// over the heap holds up whoever allocates, for some milliseconds where much is free.
    pub fn upkeep(&mut self) {
        let before = std::mem::replace(&mut self.cpu, cpu());
        let Some(now_kib) = resident_kib() else {
            return;
        };
        if now_kib < self.floor_kib.saturating_add(GROWN_KIB) {
            self.floor_kib = self.floor_kib.min(now_kib);
        } else if self.cpu.saturating_sub(before) <= QUIET {
            glibc::trim();
            self.floor_kib = resident_kib().unwrap_or(now_kib);
        }
    }
}

/// Resident memory of this process; `None` where the system does not say.
fn resident_kib() -> Option<u64> {
    let sizes = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = sizes.split(' ').nth(1)?.parse().ok()?;
    Some(pages * (page_size() as u64 / 1024))
}

/// Processor time of all threads so far.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
mod glibc {
    /// What may be free at the end of each heap.
    const TRIM_BYTES: libc::c_int = 1 << 20;
    /// Larger ones get pages of their own. The most that 32 bit takes.
    const MMAP_BYTES: libc::c_int = 512 << 10;

    /// Ends of heaps are out of reach of [`trim`], but for the main one. How much may stay there
    /// grows with the largest piece that was ever freed, unless it is set.
    pub(super) fn limit() {
        // SAFETY: these options take any number; it may be called at any time.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_BYTES);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_BYTES);
        }
    }

    /// Gives back all whole pages in free pieces.
    pub(super) fn trim() {
        // SAFETY: it asks nothing of its caller; other threads may allocate meanwhile.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Other allocators do so by themselves, or cannot.
#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn limit() {}
    pub(super) fn trim() {}
}
