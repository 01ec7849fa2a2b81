//! Many seeded lives of a store on the simulated disk, compared with a model.
//!
//! `cargo bench --bench store_sim -- [--schedules 100000] [--first 1] [--seconds-max 1500]`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "../../tests/store/schedule.rs"]
mod schedule;
#[path = "../../tests/store/sim_disk.rs"]
mod sim_disk;

use std::time::{Duration, Instant};

use schedule::{Life, Plan, Seen};

fn main() {
    let number = |name: &str, default: u64| {
        let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
        args.next()
            .map_or(default, |value| value.parse().expect("a number"))
    };
    let (first, count) = (number("--first", 1), number("--schedules", 100_000));
    let limit = Duration::from_secs(number("--seconds-max", 1500));
    let began = Instant::now();
    let mut all = Seen::default();
    let mut done = 0;
    for seed in first..first + count {
        if began.elapsed() > limit {
            println!("stopped by --seconds-max");
            break;
        }
        let mut life = Life::new(seed, Plan::of(seed));
        life.run();
        all.add(&life.seen);
        done += 1;
    }
    let seconds = began.elapsed().as_secs();
    println!("{done} schedules from seed {first} agree with the model, {seconds} s: {all:?}");
    assert!(done > 0);
}
