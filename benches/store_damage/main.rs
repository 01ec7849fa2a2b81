//! The long run of damages to the store: `cargo bench --bench store_damage -- [--only PART]
//! [--bytes 262144] [--flips all|N] [--zeros N] [--operations 10000] [--calls N]
//! [--messages 1000000] [--jobs J] [--seed S]`
//!
//! * `flips`: every bit of every file is turned over, or every `N`th.
//! * `zeros`: every sector and every page of the segments is zeroed, or every `N`th.
//! * `files`: every file is deleted, and cut at every page.
//! * `calls`: every mutating call of the disk fails, or every `N`th, once and three in a row.
//! * `expiry`: messages expire all at once.
//!
//! Exit code 1 where a promise was broken; each case is printed that can be tried again.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/store/damage.rs"]
mod damage;
#[path = "../../tests/store/expiry.rs"]
mod expiry;
#[path = "../../tests/store/failing.rs"]
mod failing;
#[path = "../../tests/store/rig.rs"]
mod rig;
#[path = "../../tests/store/sim_disk.rs"]
mod sim_disk;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use damage::{Built, Damage, Ended, Total, build};
use failing::{Fault, Seen};
use sim_disk::{FaultKind, Faults, SimDisk};

const PAGE: u64 = 4096;
const SECTOR: u64 = 512;
/// Failed cases that are printed.
const PRINTED_MAX: u64 = 40;
/// Cases that a thread takes at a time.
const CHUNK: usize = 256;
/// For a million messages.
const EXPIRY_MAX: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Flips,
    Zeros,
    Files,
    Calls,
    Expiry,
}

/// Damages to the store.
#[derive(Parser, Debug)]
#[command(name = "store_damage")]
struct Arguments {
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Bytes of the segments that are damaged
    #[arg(long, default_value_t = 262_144)]
    bytes: u64,
    /// `all` bits, or one in so many
    #[arg(long, default_value = "61", value_parser = every)]
    flips: u64,
    /// One sector and one page in so many
    #[arg(long, default_value_t = 1)]
    zeros: u64,
    /// Operations of the run in which calls fail
    #[arg(long, default_value_t = 10_000)]
    operations: u64,
    /// One call in so many fails
    #[arg(long, default_value_t = 1)]
    calls: u64,
    /// Messages that expire
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// What the stores are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn every(text: &str) -> Result<u64, String> {
    if text == "all" {
        return Ok(1);
    }
    let number = text.parse().map_err(|_| "a number, or all".to_owned())?;
    (number > 0)
        .then_some(number)
        .ok_or_else(|| "at least 1".to_owned())
}

/// Counts what went wrong.
#[derive(Debug, Default)]
struct Failures(AtomicU64);

impl Failures {
    fn add(&self, case: &str, why: &str) {
        if self.0.fetch_add(1, Ordering::Relaxed) < PRINTED_MAX {
            println!("FAILED {case}: {why}");
        }
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let failures = Failures::default();
    let wants = |part| arguments.only.is_none_or(|only| only == part);
    for ended in [Ended::Closed, Ended::Killed, Ended::Repacked] {
        if wants(Part::Flips) || wants(Part::Zeros) || wants(Part::Files) {
            damage(&arguments, ended, &wants, &failures);
        }
    }
    if wants(Part::Calls) {
        calls(&arguments, &failures);
    }
    if wants(Part::Expiry) {
        expiry(&arguments, &failures);
    }
    println!("{} failed", failures.count());
    if failures.count() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn damage(arguments: &Arguments, ended: Ended, wants: &dyn Fn(Part) -> bool, failures: &Failures) {
    let built = build(arguments.seed, arguments.bytes, ended);
    let bytes: u64 = built.files.iter().map(|(_, len)| len).sum();
    println!(
        "{ended:?}: {} copies of messages, {} files, {bytes} bytes",
        built.messages(),
        built.files.len()
    );
    let run = |name: &str, damages: Vec<Damage>| {
        let began = Instant::now();
        let total = check_all(arguments, &built, &damages, failures);
        let seconds = began.elapsed().as_secs();
        println!("{ended:?}, {name}: {total:?} in {seconds} s");
    };
    if wants(Part::Flips) {
        for file in 0..built.files.len() {
            let bits = (0..built.files[file].1 * 8).step_by(arguments.flips as usize);
            let flips = bits.map(|bit| Damage::Flip { file, bit }).collect();
            run(&format!("flips in {}", built.files[file].0), flips);
        }
    }
    if wants(Part::Zeros) {
        run("pages", zeros(&built, PAGE, arguments.zeros));
        run("sectors", zeros(&built, SECTOR, arguments.zeros));
    }
    if wants(Part::Files) {
        let files = 0..built.files.len();
        let deleted = files.clone().map(|file| Damage::Delete { file });
        run("deleted", deleted.collect());
        let cut = files.flat_map(|file| {
            let lengths = (0..built.files[file].1).step_by(PAGE as usize / 3);
            lengths.map(move |len| Damage::Cut { file, len })
        });
        run("cut", cut.collect());
    }
}

fn zeros(built: &Built, len: u64, every: u64) -> Vec<Damage> {
    let files = 0..built.files.len();
    let all = files.flat_map(|file| {
        let places = (0..built.files[file].1).step_by(len as usize);
        places.map(move |at| Damage::Zero { file, at, len })
    });
    all.step_by(every as usize).collect()
}

/// Tries all of them, by several threads.
fn check_all(
    arguments: &Arguments,
    built: &Built,
    damages: &[Damage],
    failures: &Failures,
) -> Total {
    let chunks: Vec<_> = damages.chunks(CHUNK).collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Total::default());
    let work = || {
        let mut own = Total::default();
        let disk = SimDisk::new(arguments.seed, Faults::default());
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            for damage in *chunk {
                let checked = catch_unwind(AssertUnwindSafe(|| built.check(&disk, *damage)));
                match checked.unwrap_or_else(|panic| Err(format!("panic: {}", said(&*panic)))) {
                    Ok(outcome) => own.add(outcome),
                    Err(why) => failures.add(&format!("{damage:?}"), &why),
                }
            }
        }
        total.lock().unwrap().join(own);
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap()
}

fn said(panic: &dyn std::any::Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_default()
}

fn calls(arguments: &Arguments, failures: &Failures) {
    let (seed, operations) = (arguments.seed, arguments.operations);
    let whole = failing::run(seed, operations, None).unwrap();
    println!("{operations} operations without faults: {whole:?}");
    for count in [1, 3] {
        for kind in [FaultKind::Io, FaultKind::NoSpace] {
            let began = Instant::now();
            let at = (0..whole.calls).step_by(arguments.calls as usize);
            let faults: Vec<_> = at.map(|at| Fault { at, kind, count }).collect();
            let total = fail(arguments, &faults, failures);
            let seconds = began.elapsed().as_secs();
            println!("{kind:?}, {count} in a row: {total:?} in {seconds} s");
        }
    }
}

/// Runs all operations once for each fault, by several threads.
fn fail(arguments: &Arguments, faults: &[Fault], failures: &Failures) -> Seen {
    let (seed, operations) = (arguments.seed, arguments.operations);
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Seen::default());
    let work = || {
        while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = || failing::run(seed, operations, Some(*fault));
            let run = catch_unwind(AssertUnwindSafe(run));
            match run.unwrap_or_else(|panic| Err(format!("panic: {}", said(&*panic)))) {
                Ok(seen) => total.lock().unwrap().add(seen),
                Err(why) => failures.add(&format!("{fault:?}"), &why),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap()
}

fn expiry(arguments: &Arguments, failures: &Failures) {
    let expired = expiry::expire(arguments.messages);
    println!("{expired:?}");
    let most = EXPIRY_MAX.mul_f64((arguments.messages as f64 / 1e6).max(0.01));
    let is_right = expired.reported == expired.messages
        && expired.waiting == 0
        && expired.reads + expired.reads_freeing == 0
        && expired.segments_after <= 1
        && expired.busy + expired.busy_freeing <= most;
    if !is_right {
        failures.add("expiry", &format!("{expired:?}"));
    }
}
