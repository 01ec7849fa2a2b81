//! The way up: a real hub, a cloud that writes down what it gets, and a network between them on
//! which everything goes wrong.
//!
//! `cargo bench --bench upstream -- chaos [--seconds 900] [--seed S] [--kind mqtt|iothub|bridge]
//! [--rate N]`
//!
//! Three modules send numbered messages of 256 bytes with two priorities. Every few seconds
//! something goes wrong for 0.1 to 15 seconds, see `chaos.rs`; now and then the hub or the cloud is
//! killed. At the end all is healed and drained, and what the cloud wrote down is compared with
//! what was acknowledged to the modules (`tests/cloud/checks.rs`). With a fault the exit code is 1.
//! With `--kind bridge` a module of this program takes the place of the hub's forwarder, to try the
//! proof itself.
//!
//! `… -- outages [--seconds 0,15,60,120] [--kind …]`: the way is cut for so long, refused and as a
//! black hole; from healing to CONNACK at most 2 s, then 100 ms to the first message.
//!
//! `… -- rtt [--ms 100] [--kind …]`: a drain with a round trip of so long, at least 0.9 of window /
//! round trip.
//!
//! `… -- drain [--messages 1000000] [--kind …]`: a backlog of messages of 256 bytes into mosquitto,
//! at least 0.8 of what a load generator alone gets into it in the same run; live messages of
//! priority 0 meanwhile, p99 at most 200 ms.
//!
//! These exit with 1 where a target is missed.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod bridge;
mod broker;
mod chaos;
#[path = "../../tests/cloud/mod.rs"]
mod cloud;
#[path = "../../tests/common/mod.rs"]
mod common;
mod drain;
#[path = "../hub/load.rs"]
mod load;
mod memory;
mod outages;
mod rtt;
mod scene;
mod sink;
#[path = "../support/mod.rs"]
mod support;
#[path = "../backlog/watch.rs"]
mod watch;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chaos::Chaos;
use cloud::faults::Mode;
use scene::Kind;
use support::Options;
use support::targets::Targets;

/// Beyond the time that was asked for, a run takes no longer.
const MORE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let options = Options::read();
    let commands = ["sink", "chaos", "outages", "rtt", "drain"];
    let command = commands.into_iter().find(|name| options.flag(name));
    match command {
        Some("sink") => sink::serve(&options),
        Some("chaos") => run_chaos(&options),
        Some(command) => measure(command, &options),
        None => {
            println!("one of: {}", commands.join(", "));
            ExitCode::from(64)
        }
    }
}

/// The commands that measure.
fn measure(command: &str, options: &Options) -> ExitCode {
    let dir = support::folder(options);
    let root = dir.path().canonicalize().unwrap();
    let mut targets = Targets::strict();
    let ran = support::runtime(2).block_on(async {
        match command {
            "outages" => outages(options, &root, &mut targets).await,
            "rtt" => {
                let trip = Duration::from_millis(options.number("--ms", 100));
                rtt::drain(kind(options), &root, trip, &mut targets).await
            }
            _ => {
                let messages = options.number("--messages", 1_000_000);
                drain::drain(kind(options), &root, messages, &mut targets).await
            }
        }
    });
    if let Err(why) = ran {
        println!("FAILED {why}");
        return ExitCode::FAILURE;
    }
    targets.exit_code()
}

async fn outages(options: &Options, root: &Path, targets: &mut Targets) -> Result<(), String> {
    let lengths = options.text("--seconds").unwrap_or("0,15,60,120");
    for mode in [Mode::Refuse, Mode::BlackHole] {
        for length in lengths.split(',') {
            let seconds = length.parse().map_err(|_| format!("--seconds {length}"))?;
            let dir = root.join(format!("{mode:?}-{seconds}"));
            fs::create_dir(&dir).map_err(|error| error.to_string())?;
            outages::outage(kind(options), &dir, mode, seconds, targets).await?;
        }
    }
    Ok(())
}

fn kind(options: &Options) -> Kind {
    Kind::read(options.text("--kind").unwrap_or("mqtt"))
}

fn run_chaos(options: &Options) -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = options.number("--seed", now.as_secs());
    let seconds = options.number("--seconds", 900);
    println!("seed {seed}, {seconds} s");
    let dir = support::folder(options);
    let dir = dir.path().canonicalize().unwrap();
    let runtime = support::runtime(2);
    let _guard = runtime.enter();
    let mut chaos = match Chaos::new(kind(options), &dir, seed, options.number("--rate", 100)) {
        Ok(chaos) => chaos,
        Err(why) => {
            println!("FAILED {why}");
            return ExitCode::FAILURE;
        }
    };
    let began = Instant::now();
    let limit = Duration::from_secs(seconds) + MORE;
    let ran = runtime.block_on(async { tokio::time::timeout(limit, chaos.run(seconds)).await });
    let ran = ran.unwrap_or_else(|_| Err("not over in time".to_owned()));
    println!("took {:.0} s", began.elapsed().as_secs_f64());
    let good = ran.and_then(|()| chaos.report());
    match good {
        Ok(true) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Ok(false) => failed(&chaos, seed),
        Err(why) => {
            println!("FAULT {why}");
            let _ = chaos.report();
            failed(&chaos, seed)
        }
    }
}

fn failed(chaos: &Chaos, seed: u64) -> ExitCode {
    println!("FAILED (seed {seed})\n{}", chaos.log_end());
    ExitCode::FAILURE
}
