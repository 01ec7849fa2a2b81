//! What the store writes to a device, and how often it flushes: flash memory wears by bytes, and
//! each flush takes milliseconds.
//!
//! `cargo bench --bench wear [-- --check]`
//!
//! The store is used through the library with `sync = "always"`, on an ext4 image of its own behind
//! a loop device; bytes and flushes are the kernel's counts for that device. Before each figure the
//! store has its spare segments ready and everything is synced; what the file system writes until
//! everything is synced again counts as well.
//!
//! `--check` exits with 1 where a target is missed. Needs root (77 otherwise) and e2fsprogs.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod device;
#[path = "../support/direct.rs"]
mod direct;
#[path = "../power/stop.rs"]
mod stop;
#[path = "../support/mod.rs"]
mod support;
#[path = "../full/volume.rs"]
mod volume;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use device::{Counts, Device};
use direct::Direct;
use stop::Failure;
use support::Options;
use support::targets::Targets;
use volume::Volume;

const NOT_ROOT: u8 = 77;
const LIMIT: Duration = Duration::from_secs(300);
const STORE_BYTES: u64 = 200 << 20;
const ONE_BY_ONE: usize = 3_000;
const BATCH: usize = 64;
/// Messages in batches: whole batches, fewer bytes than the segments that wait to be used again.
const SMALL_MESSAGES: usize = 300 * BATCH;
const LARGE_MESSAGES: usize = 80 * BATCH;
/// Messages of 4 KiB: more than the segments that are kept for later.
const BACKLOG: usize = 320 * BATCH;

/// In use when nothing waits: the one that is written, and one that a cursor may be needed for.
const SEGMENTS_MAX: usize = 2;
const ONE_BYTES_MAX: f64 = 4_300.0;
const ONE_FLUSHES_MAX: f64 = 1.05;
const SMALL_RATIO_MAX: f64 = 1.35;
const LARGE_RATIO_MAX: f64 = 1.03;
const DELETE_SHARE_MAX: f64 = 0.01;

/// Other engines, one message per sync, ext4 on a loop device as here: bytes and flushes per
/// message of 256 bytes. Measured with a prototype of each on 2026-11-22.
const OTHERS_ONE: [(&str, f64, f64); 4] = [
    ("fjall", 5_963.0, 1.08),
    ("SQLite", 14_493.0, 1.3),
    ("RocksDB", 16_695.0, 2.0),
    ("redb", 32_119.0, 1.07),
];
/// The same with three endpoints, acknowledgements and deletions (bytes).
const OTHERS_TAKEN: [(&str, f64); 4] = [
    ("fjall", 6_805.0),
    ("SQLite", 17_732.0),
    ("RocksDB", 16_763.0),
    ("redb", 37_853.0),
];

struct Bench {
    device: Device,
    direct: Direct,
    targets: Targets,
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        println!("not root: nothing is measured");
        return ExitCode::from(NOT_ROOT);
    }
    let options = Options::read();
    let runtime = support::runtime(1);
    stop::watch(&runtime, LIMIT).unwrap();
    match run(Targets::new(&options)) {
        Ok(targets) => targets.exit_code(),
        Err(why) => {
            println!("FAILED {why:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(targets: Targets) -> Result<Targets, Failure> {
    let volume = Volume::image()?;
    let mut bench = Bench {
        device: Device::of(&volume.dir)?,
        direct: Direct::open(&volume.dir.join("store"), direct::options(STORE_BYTES))?,
        targets,
    };
    let ran = bench.all();
    let Bench {
        direct, targets, ..
    } = bench;
    direct.close();
    ran.map(|()| targets)
}

fn payload(bytes: usize) -> Bytes {
    Bytes::from(vec![b'x'; bytes])
}

impl Bench {
    fn all(&mut self) -> Result<(), Failure> {
        println!(
            "{:<40} {:>10} {:>8} {:>8} {:>8}",
            "", "bytes/msg", "flushes", "syncs", "x needed"
        );
        self.new_segments()?;
        self.one_by_one()?;
        self.batches()?;
        self.deletion()
    }

    /// What the device was asked for meanwhile, per message.
    fn span(
        &mut self,
        name: &str,
        (messages, size): (usize, usize),
        act: impl FnOnce(&mut Direct) -> Result<(), Failure>,
    ) -> Result<Span, Failure> {
        self.direct.settle()?;
        let syncs_of = |direct: &Direct| {
            let syncs = &direct.store.counters().unwrap().syncs;
            syncs.load(Ordering::Relaxed)
        };
        let synced = syncs_of(&self.direct);
        let before = self.device.counts()?;
        act(&mut self.direct)?;
        let Counts { bytes, flushes } = self.device.counts()? - before;
        let each = |count: u64| count as f64 / messages as f64;
        let span = Span {
            bytes: each(bytes),
            flushes: each(flushes),
            ratio: each(bytes) / self.direct.needed_bytes(size) as f64,
        };
        let syncs = each(syncs_of(&self.direct) - synced);
        println!(
            "{name:<40} {:>10.0} {:>8.3} {syncs:>8.3} {:>8.3}",
            span.bytes, span.flushes, span.ratio
        );
        Ok(span)
    }

    /// A store that grows makes its segments: for comparison. Then some wait to be used again,
    /// whose blocks were all written before: with syncs as small as these a new one is filled.
    fn new_segments(&mut self) -> Result<(), Failure> {
        let small = payload(256);
        let what = (ONE_BY_ONE, 256);
        self.span("256 B one by one, into new segments", what, |direct| {
            direct.append_all(ONE_BY_ONE, 1, &small)
        })?;
        let large = payload(4096);
        self.direct.append_all(LARGE_MESSAGES * 2, 1, &large)?;
        self.direct.drain()
    }

    fn one_by_one(&mut self) -> Result<(), Failure> {
        let small = payload(256);
        let what = (ONE_BY_ONE, 256);
        let name = "256 B one by one, no receiver";
        let kept = self.span(name, what, |direct| {
            direct.append_all(ONE_BY_ONE, 1, &small)
        })?;
        self.direct.drain()?;
        let taken_name = "256 B one by one, each acknowledged";
        let taken = self.span(taken_name, what, |direct| {
            direct.append_and_take(ONE_BY_ONE, &small)
        })?;
        for (name, bytes, flushes) in OTHERS_ONE {
            println!("  {name:<38} {bytes:>10.0} {flushes:>8.2}   kept");
        }
        for (name, bytes) in OTHERS_TAKEN {
            println!("  {name:<38} {bytes:>10.0}            acknowledged");
        }
        for (name, span) in [(name, kept), (taken_name, taken)] {
            let targets = &mut self.targets;
            targets.at_most(&format!("{name}: bytes"), span.bytes, ONE_BYTES_MAX, "B");
            targets.at_most(
                &format!("{name}: flushes"),
                span.flushes,
                ONE_FLUSHES_MAX,
                "",
            );
        }
        Ok(())
    }

    fn batches(&mut self) -> Result<(), Failure> {
        let kinds = [
            (256, SMALL_MESSAGES, SMALL_RATIO_MAX),
            (4096, LARGE_MESSAGES, LARGE_RATIO_MAX),
        ];
        for (size, messages, bound) in kinds {
            let name = format!("{size} B in batches of {BATCH}");
            let body = payload(size);
            let span = self.span(&name, (messages, size), |direct| {
                direct.append_all(messages, BATCH, &body)
            })?;
            self.direct.drain()?;
            let what = format!("{name}: bytes, times the needed");
            self.targets.at_most(&what, span.ratio, bound, "x");
        }
        Ok(())
    }

    /// A backlog is delivered and acknowledged, and its segments are given back.
    fn deletion(&mut self) -> Result<(), Failure> {
        let size = 4096;
        self.direct.append_all(BACKLOG, BATCH, &payload(size))?;
        let before = self.direct.store.disk_usage();
        let name = "delivering and deleting a backlog";
        let span = self.span(name, (BACKLOG, size), |direct| {
            direct.drain()?;
            direct.settle()
        })?;
        let what = format!("{name}: share of its bytes");
        self.targets
            .at_most(&what, span.ratio, DELETE_SHARE_MAX, "x");
        let after = self.direct.store.disk_usage();
        println!("bytes of files and segments in use: {before:?} before, {after:?} after");
        self.targets
            .holds("its segments were given back", after.1 <= SEGMENTS_MAX);
        Ok(())
    }
}

/// Per message.
#[derive(Clone, Copy)]
struct Span {
    bytes: f64,
    flushes: f64,
    /// Bytes in bytes of payload, topic, properties and header.
    ratio: f64,
}
