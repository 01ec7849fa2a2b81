//! The store on a simulated disk that tears, forgets and fails, against a model. The long run is
//! `cargo bench --bench store_sim`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "store/rig.rs"]
mod rig;
#[path = "store/schedule.rs"]
mod schedule;
#[path = "store/sim_disk.rs"]
mod sim_disk;

use schedule::{Life, Plan, Seen};

/// Schedules that once failed.
const FAILED: &[u64] = &[
    11, 30, 149, 334, 578, 1343, 2511, 3316, 4763, 9336, 21303, 22917, 23926, 37090, 37182, 61315,
    67279, 89518, 204680, 275918, 364434, 16099, 24547,
];

fn run(seed: u64) -> Seen {
    let mut life = Life::new(seed, Plan::of(seed));
    life.run();
    life.seen
}

#[test]
fn seeded_schedules_agree_with_the_model() {
    let first: u64 = std::env::var("SEED").map_or(1, |s| s.parse().unwrap());
    let count: u64 = std::env::var("SEEDS").map_or(600, |s| s.parse().unwrap());
    let mut all = Seen::default();
    for seed in FAILED.iter().copied().chain(first..first + count) {
        all.add(&run(seed));
    }
    println!("{count} schedules: {all:?}");
    assert!(count < 100 || (all.crashes > 0 && all.faults > 0 && all.delivered > all.again));
}
