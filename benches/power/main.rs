//! Power cuts on a real file system: nothing that the hub has acknowledged may be lost.
//!
//! `cargo bench --bench power -- --mode shutdown|cuts|garbage [--cuts N] [--seed S]
//! [--sync always|interval|os] [--interval-ms M] [--limit-seconds T] [--keep DIR]`
//!
//! Publishers send through the real hub, whose store is on an ext4 of its own; at a random moment
//! the disk loses its power, the hub is killed, the file system mounted again, the hub started
//! again. Publishers send again what was not acknowledged; consumers take everything and compare.
//!
//! * `shutdown`: the kernel forgets what it has not written (ext4's shutdown ioctl).
//! * `cuts`: the disk keeps or loses each sector that was not flushed, by chance.
//! * `garbage`: also, pages of the store's files that were in flight come back as noise in part.
//!
//! Needs root, loop devices, /dev/fuse and e2fsprogs; `shutdown` also needs Python. Exit codes: 0
//! all is well, 1 the hub broke a promise, 69 this machine cannot do it, 77 not root, 130 stopped.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod cache;
#[path = "../../tests/common/mod.rs"]
mod common;
mod disk;
mod fake_disk;
mod hub;
mod ledger;
mod load;
mod mount;
mod payload;
mod report;
#[path = "../support/rng.rs"]
#[allow(dead_code)]
mod rng;
mod rounds;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::disk::{Disk, FakeDisk, ShutdownDisk};
use crate::report::Report;
use crate::rounds::Run;
use crate::stop::Failure;

const NOT_POSSIBLE: u8 = 69;
const NOT_ROOT: u8 = 77;
const INTERRUPTED: u8 = 130;
/// One sync more than the interval, on a machine that does other things as well.
const SYNC_TIME_MAX: Duration = Duration::from_millis(250);
/// What a cut may take on average before the run stops by itself.
const SECONDS_PER_CUT: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Shutdown,
    Cuts,
    Garbage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sync {
    Always,
    Interval,
    Os,
}

/// Power cuts on a real file system.
#[derive(Parser, Debug)]
#[command(name = "power")]
struct Options {
    /// What a power cut is
    #[arg(long, value_enum, default_value = "cuts")]
    mode: Mode,
    /// How many
    #[arg(long, default_value_t = 50)]
    cuts: u64,
    /// What chance starts from; the clock by default
    #[arg(long)]
    seed: Option<u64>,
    /// `sync` of the hub's store
    #[arg(long, value_enum, default_value = "always")]
    sync: Sync,
    /// `interval_ms` of the hub's store, for `--sync interval`
    #[arg(long, default_value_t = 200)]
    interval_ms: u64,
    /// After this time no more cuts are made; 30 s and 5 s a cut by default
    #[arg(long)]
    limit_seconds: Option<u64>,
    /// Stop at the first cut that breaks a promise, and leave there what the hub found after it
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Serve a fake disk at this mount point, as the child of another such process
    #[arg(long, hide = true)]
    fake_disk: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 0)]
    bytes: usize,
}

impl Options {
    /// How long before a cut a message may have been acknowledged and be lost; `None`: any time.
    fn bound(&self) -> Option<Duration> {
        match self.sync {
            Sync::Always => Some(Duration::ZERO),
            Sync::Interval => Some(Duration::from_millis(self.interval_ms) + SYNC_TIME_MAX),
            Sync::Os => None,
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(common::unix_now);
    if let Some(point) = &options.fake_disk {
        return match fake_disk::serve(point, options.bytes, seed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("power: fake disk: {error}");
                ExitCode::from(NOT_POSSIBLE)
            }
        };
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("power: only root may make and mount file systems; run it as root");
        return ExitCode::from(NOT_ROOT);
    }
    let mut report = Report::new(&options, seed);
    let ended = run(&options, seed, &mut report);
    report.summary(&ended);
    match ended {
        _ if report.is_broken() => ExitCode::FAILURE,
        Err(Failure::Hub(_)) => ExitCode::FAILURE,
        Err(Failure::System(_)) => ExitCode::from(NOT_POSSIBLE),
        Err(Failure::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Failure::TimeIsUp) if report.is_empty() => ExitCode::from(NOT_POSSIBLE),
        Err(Failure::TimeIsUp) | Ok(()) => ExitCode::SUCCESS,
    }
}

/// Everything that is made is undone at the end of this function, whatever ends it.
fn run(options: &Options, seed: u64, report: &mut Report) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let limit = 30 + SECONDS_PER_CUT * options.cuts;
    let limit = Duration::from_secs(options.limit_seconds.unwrap_or(limit));
    stop::watch(&runtime, limit).map_err(|error| error.to_string())?;
    let mut disk: Box<dyn Disk> = match options.mode {
        Mode::Shutdown => Box::new(ShutdownDisk::new()?),
        Mode::Cuts => Box::new(FakeDisk::new(seed, false)?),
        Mode::Garbage => Box::new(FakeDisk::new(seed, true)?),
    };
    let mut run = Run::new(options, seed, &runtime, &mut *disk);
    let ended = run.cuts(options.cuts, report);
    if report.is_broken() || matches!(ended, Err(Failure::Hub(_))) {
        report.log(&run.log());
    }
    ended
}
