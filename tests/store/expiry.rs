//! A long queue without a receiver that expires all at once.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use bytes::Bytes;
use edgehub::store::LossReason;
use rustix::time::{ClockId, clock_gettime};

use super::rig::{ENDPOINTS, LANES, Rig, Target, WALL_MS, options};
use super::sim_disk::{Faults, SimDisk};

const SEGMENT_BYTES: u64 = 8 << 20;
const TTL_MS: u64 = 1000;
/// Messages of one batch.
const BATCH: u64 = 1000;

/// What expiring took.
#[derive(Debug, Clone, Copy)]
pub struct Expired {
    pub messages: u64,
    /// Reported as expired.
    pub reported: u64,
    pub segments_before: usize,
    pub segments_after: usize,
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// Processor time of the sweep and the keeper's step.
    pub busy: Duration,
    /// Reads of the disk meanwhile.
    pub reads: u64,
    /// The same for giving the space back.
    pub busy_freeing: Duration,
    pub reads_freeing: u64,
    pub waiting: usize,
}

fn busy() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Queues so many messages that live for a second, and lets them expire.
pub fn expire(messages: u64) -> Expired {
    let disk = SimDisk::new(1, Faults::default());
    let time = (1000, WALL_MS + 1000);
    let (mut rig, _) = Rig::open(disk.mount(), options(SEGMENT_BYTES), time).unwrap();
    let payload = Bytes::from(vec![7; 100]);
    let mut last = 0;
    for n in 0..messages {
        let target = Target {
            endpoints: &[n as usize % ENDPOINTS],
            lane: n as usize / ENDPOINTS % LANES.len(),
            ttl_ms: Some(TTL_MS),
        };
        last = rig.append(target, &payload).unwrap();
        if n % BATCH == BATCH - 1 || n + 1 == messages {
            rig.write();
            rig.store.keep_step(rig.now_ms, false);
        }
    }
    assert!(rig.store.kept() >= last);
    assert_eq!(rig.waiting() as u64, messages);
    let (bytes_before, segments_before) = rig.store.disk_usage();
    rig.now_ms += TTL_MS + 2000;
    let mut losses = Vec::new();
    let (began, reads) = (busy(), disk.counters().reads);
    let time = (rig.now_ms, WALL_MS + rig.now_ms);
    rig.store.sweep(time, &mut losses);
    rig.store.keep_step(rig.now_ms, true);
    rig.store.sweep(time, &mut losses);
    let (expired, read) = (busy(), disk.counters().reads);
    // The note that gives them up, and then the files.
    for _ in 0..3 {
        rig.store.write_step(rig.now_ms);
        rig.store.keep_step(rig.now_ms, true);
    }
    let (bytes_after, segments_after) = rig.store.disk_usage();
    let own = losses.iter().filter(|l| l.reason == LossReason::Expired);
    Expired {
        messages,
        reported: own.map(|loss| loss.messages as u64).sum(),
        segments_before,
        segments_after,
        bytes_before,
        bytes_after,
        busy: expired.saturating_sub(began),
        reads: read - reads,
        busy_freeing: busy().saturating_sub(expired),
        reads_freeing: disk.counters().reads - read,
        waiting: rig.waiting(),
    }
}
