//! Many seeded lives of a store on the simulated disk, compared with a model.
//!
//! `cargo bench --bench store_sim [-- --schedules N --first SEED --seconds-max N --threads N]`
//!
//! 100,000 from seed 1 on, no more than 1,500 seconds, two threads where nothing is said.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "../../tests/store/rig.rs"]
mod rig;
#[path = "../../tests/store/schedule.rs"]
mod schedule;
#[path = "../../tests/store/sim_disk.rs"]
mod sim_disk;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schedule::{Life, Plan, Seen};

/// What all threads found together.
#[derive(Default)]
struct Found {
    done: u64,
    failed: Vec<u64>,
    seen: Seen,
}

fn main() {
    let number = |name: &str, default: u64| {
        let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
        args.next()
            .map_or(default, |value| value.parse().expect("a number"))
    };
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
