//! Messages with a time to live on a device whose clock is wrong, jumps or stands still.

use std::sync::Arc;

use bytes::Bytes;

use super::rig::{Rig, Target, WALL_MS, options};
use super::sim_disk::{CrashMode, Faults, SimDisk};

const S: u64 = 1000;
const HOUR: u64 = 3600 * S;
const YEAR: u64 = 365 * 24 * HOUR;
const TTL_MS: u64 = 60 * S;
/// What a time may be off, and the sweep once a second.
const LATE_MS: u64 = 2 * S;

/// A device: its disk, a store, the times.
struct Device {
    disk: Arc<SimDisk>,
    rig: Rig,
    wall_ms: u64,
}

impl Device {
    fn new(now_ms: u64, wall_ms: u64) -> Self {
        let disk = SimDisk::new(1, Faults::default());
        let rig = Rig::open(disk.mount(), options(128 * 1024), (now_ms, wall_ms));
        Self {
            rig: rig.unwrap().0,
            disk,
            wall_ms,
        }
    }

    /// Starts again: after a while, with any time.
    fn restart(self, closes: bool, (now_ms, wall_ms): (u64, u64)) -> Self {
        let Self { disk, rig, .. } = self;
        if closes {
            rig.store.end(rig.now_ms);
        }
        drop(rig);
        disk.crash(CrashMode::Power { garbage: false });
        let rig = Rig::open(disk.mount(), options(128 * 1024), (now_ms, wall_ms));
        Self {
            rig: rig.unwrap().0,
            disk,
            wall_ms,
        }
    }

    /// A message for a queue without a receiver, and one for a queue with one, in memory.
    fn send(&self) {
        let endpoints = &[0, 1];
        self.rig.fetch(1, 1, &mut Vec::new());
        let target = Target {
            endpoints,
            lane: 1,
            ttl_ms: Some(TTL_MS),
        };
        let seq = self.rig.append(target, &Bytes::from_static(b"x")).unwrap();
        self.rig.write();
        assert!(self.rig.store.kept() >= seq);
    }

    /// Both clocks go on, with a look once a second. `asleep`: without one in between.
    fn pass(&mut self, ms: u64, asleep: bool) {
        let step = if asleep { ms } else { S };
        let mut left = ms;
        while left > 0 {
            let step = step.min(left);
            left -= step;
            self.rig.now_ms += step;
            self.wall_ms += step;
            self.look();
        }
    }

    /// Sets the system's clock.
    fn set(&mut self, wall_ms: u64) {
        self.wall_ms = wall_ms;
        self.look();
    }

    fn look(&mut self) {
        let mut losses = Vec::new();
        let time = (self.rig.now_ms, self.wall_ms);
        self.rig.store.sweep(time, &mut losses);
        self.rig.store.write_step(self.rig.now_ms);
        self.rig.store.keep_step(self.rig.now_ms, true);
    }

    /// Both copies live on for so long, and not much longer.
    fn expires_in(&mut self, ms: u64) {
        self.pass(ms - S, false);
        assert_eq!(self.rig.waiting(), 2, "{:?}", self.rig.store.status());
        self.pass(S + LATE_MS, false);
        assert_eq!(self.rig.waiting(), 0, "{:?}", self.rig.store.status());
    }
}

#[test]
fn a_time_to_live_is_kept_while_the_clock_is_right() {
    let mut device = Device::new(5 * S, WALL_MS);
    device.send();
    device.expires_in(TTL_MS);
}

#[test]
fn a_clock_that_starts_in_1970_expires_nothing_early() {
    for known_after in [0, 10 * S, 50 * S] {
        let mut device = Device::new(5 * S, 12 * S);
        device.send();
        device.pass(known_after, false);
        device.set(WALL_MS);
        device.expires_in(TTL_MS - known_after);
    }
}

#[test]
fn a_clock_that_steps_changes_nothing() {
    for step in [-(HOUR as i64), HOUR as i64, 10 * YEAR as i64] {
        let mut device = Device::new(5 * S, WALL_MS);
        device.pass(5 * S, false);
        device.send();
        device.pass(10 * S, false);
        device.set(device.wall_ms.wrapping_add_signed(step));
        device.expires_in(TTL_MS - 10 * S);
    }
}

#[test]
fn a_step_that_is_believed_at_last_expires_nothing_early() {
    let mut device = Device::new(5 * S, WALL_MS);
    device.pass(5 * S, false);
    device.set(WALL_MS + 10 * YEAR);
    device.pass(11 * 60 * S - 30 * S, false);
    // Believed meanwhile: what is stored now has the new time, as what was stored before.
    device.send();
    device.pass(10 * S, false);
    device.set(WALL_MS + 11 * YEAR);
    device.expires_in(TTL_MS - 10 * S);
}

#[test]
fn sleep_counts() {
    let mut device = Device::new(5 * S, WALL_MS);
    device.send();
    device.pass(30 * S, true);
    device.expires_in(30 * S);
    device.send();
    device.pass(HOUR, true);
    assert_eq!(device.rig.waiting(), 0);
}

#[test]
fn the_time_switched_off_counts_where_it_is_known() {
    for closes in [true, false] {
        let mut device = Device::new(5 * S, WALL_MS);
        device.pass(5 * S, false);
        device.send();
        device.pass(10 * S, false);
        let wall_ms = device.wall_ms + 20 * S;
        let mut device = device.restart(closes, (S, wall_ms));
        device.rig.fetch(1, 0, &mut Vec::new());
        device.expires_in(30 * S);
    }
}

#[test]
fn the_time_switched_off_does_not_count_where_it_is_not_known() {
    for closes in [true, false] {
        let mut device = Device::new(5 * S, WALL_MS);
        device.pass(5 * S, false);
        device.send();
        device.pass(10 * S, false);
        let (noted, known) = (if closes { 10 * S } else { 0 }, device.wall_ms);
        let mut device = device.restart(closes, (S, 3 * S));
        device.look();
        assert_eq!(device.rig.waiting(), 2);
        // What passed since the last note is not known after a cut.
        device.pass(TTL_MS - 10 * S - S, false);
        assert_eq!(device.rig.waiting(), 2, "closed {closes}");
        device.pass(10 * S - noted + S + LATE_MS, false);
        assert_eq!(device.rig.waiting(), 0, "closed {closes}");
        // What is stored in the meantime is not touched by the step to the right time.
        device.send();
        device.pass(20 * S, false);
        device.set(known + 5 * HOUR);
        device.expires_in(TTL_MS - 20 * S);
    }
}

#[test]
fn a_clock_that_is_wrong_after_a_restart_expires_nothing_early_and_in_time_once_it_is_right() {
    for wrong in [-(HOUR as i64), 10 * YEAR as i64] {
        let mut device = Device::new(5 * S, WALL_MS);
        device.pass(5 * S, false);
        device.send();
        device.pass(10 * S, false);
        let right_ms = device.wall_ms + 5 * S;
        let mut device = device.restart(true, (S, right_ms.wrapping_add_signed(wrong)));
        device.rig.fetch(1, 0, &mut Vec::new());
        device.pass(10 * S, false);
        assert_eq!(device.rig.waiting(), 2, "{wrong}");
        device.set(right_ms + 10 * S);
        device.expires_in(TTL_MS - 25 * S);
    }
}
