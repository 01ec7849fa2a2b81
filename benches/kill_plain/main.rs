//! The hub is killed at a random moment, again and again, while clients of both versions use plain
//! topics: what it acknowledged of messages, retained messages, subscriptions and sessions is there
//! after each start, and QoS 2 stays exactly once.
//!
//! `cargo bench --bench kill_plain [-- --rounds N --seed S --seconds-max T]`
//!
//! A round: start the hub on the folder that the last one left (now and then it is killed while it
//! starts, first), let a fresh subscriber see what is retained, let everybody connect to their kept
//! sessions, and send SIGKILL 5 to 300 ms after the first acknowledgement. Clients send what was
//! not acknowledged again, under the same packet ids, and so PUBREL; they stay away for some
//! rounds, break off in the middle of one, or answer slowly. After the last round all queues are
//! drained, and sessions that were to end have ended. What counts as a fault stands in `ledger.rs`;
//! with one the exit code is 1.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod checks;
mod client;
#[path = "../../tests/common/mod.rs"]
mod common;
mod ledger;
mod proof;
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proof::Proof;
use support::Options;

fn main() -> ExitCode {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = options.number("--seed", now.as_secs());
    println!("seed {seed}");
    checks::can_fail();
    let mut proof = Proof::new(seed);
    let rounds = options.number("--rounds", 200) as u32;
    let seconds_max = options.number("--seconds-max", 1_500);
    let began = Instant::now();
    let ran = runtime.block_on(proof.run(rounds, seconds_max));
    proof.report(began.elapsed());
    if let Err(why) = &ran {
        println!("FAULT {why}");
    }
    if ran.is_err() || proof.ledger().faults.any() {
        println!("FAILED (seed {seed})\n{}", proof.log_end());
        return ExitCode::FAILURE;
    }
    println!("ok");
    ExitCode::SUCCESS
}
