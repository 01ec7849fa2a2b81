//! Many seeded lives of a store on the simulated disk, compared with a model.
//!
//! `cargo bench --bench store_sim [-- --schedules N --first SEED --seconds-max N --threads N]`
//!
//! 100,000 from seed 1 on, no more than 1,500 seconds, two threads where nothing is said.
//!
//! With `--model memory`, `drop-oldest` or `disk`: random operations without faults, each compared
//! with an exact model; `[--operations 1000000] [--first 1]`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "../../tests/store/model.rs"]
mod model;
#[path = "../../tests/store/rig.rs"]
mod rig;
#[path = "../../tests/store/schedule.rs"]
mod schedule;
#[path = "../../tests/store/sim_disk.rs"]
mod sim_disk;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::{Done, Kind, Op};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use schedule::{Life, Plan, Seen};

/// What all threads found together.
#[derive(Default)]
struct Found {
    done: u64,
    failed: Vec<u64>,
    seen: Seen,
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn number(name: &str, default: u64) -> u64 {
    argument(name).map_or(default, |value| value.parse().expect("a number"))
}

fn main() {
    match argument("--model").as_deref() {
        None => schedules(),
        Some("memory") => agree(Kind::Memory { drop_oldest: false }),
        Some("drop-oldest") => agree(Kind::Memory { drop_oldest: true }),
        Some("disk") => agree(Kind::Disk),
        Some(other) => panic!("--model {other}: memory, drop-oldest or disk"),
    }
}

/// Lives of up to 300 operations each, until there were so many.
fn agree(kind: Kind) {
    let (first, most) = (number("--first", 1), number("--operations", 1_000_000));
    let limit = Duration::from_secs(number("--seconds-max", 1500));
    let began = Instant::now();
    let mut all = Done::default();
    let mut seed = first;
    while all.ops < most && began.elapsed() < limit {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let mut tree = model::ops(300).new_tree(&mut runner).expect("operations");
        match lives(kind, &tree.current()) {
            Some(done) => all.add(&done),
            None => {
                let ops = smallest(kind, &mut tree);
                panic!("seed {seed} of {kind:?}; the same with {ops:#?}");
            }
        }
        seed += 1;
    }
    let (lives, seconds) = (seed - first, began.elapsed().as_secs());
    println!("{kind:?}: {lives} lives agree with the model, {seconds} s: {all:?}");
    assert!(all.ops >= most, "stopped by --seconds-max");
}

fn lives(kind: Kind, ops: &[Op]) -> Option<Done> {
    std::panic::catch_unwind(|| model::run(kind, ops)).ok()
}

/// Leaves out what the failure does not need.
fn smallest(kind: Kind, tree: &mut impl ValueTree<Value = Vec<Op>>) -> Vec<Op> {
    std::panic::set_hook(Box::new(|_| {}));
    let mut fails = true;
    while if fails {
        tree.simplify()
    } else {
        tree.complicate()
    } {
        fails = lives(kind, &tree.current()).is_none();
    }
    let _ = std::panic::take_hook();
    tree.current()
}

fn schedules() {
    let (first, count) = (number("--first", 1), number("--schedules", 100_000));
    let threads = number("--threads", 2);
    let limit = Duration::from_secs(number("--seconds-max", 1500));
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let found = Mutex::new(Found::default());
    let work = || {
        while began.elapsed() < limit {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            // A schedule that disagrees panics with its seed; the others go on.
            let seen = std::panic::catch_unwind(|| {
                let mut life = Life::new(seed, Plan::of(seed));
                life.run();
                life.seen
            });
            let mut found = found.lock().expect("nobody panics with it");
            found.done += 1;
            match seen {
                Ok(seen) => found.seen.add(&seen),
                Err(_) => found.failed.push(seed),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let found = found.into_inner().expect("nobody panicked with it");
    let (done, seconds) = (found.done, began.elapsed().as_secs());
    if done < count {
        println!("stopped by --seconds-max");
    }
    println!(
        "{done} schedules from seed {first} in {seconds} s: {:?}",
        found.seen
    );
    println!(
        "{} disagree with the model: {:?}",
        found.failed.len(),
        found.failed
    );
    assert!(done > 0 && found.failed.is_empty());
}
