//! What waiting for the disk costs: time to the acknowledgement and messages per second with
//! `sync = "always"`, beside what the disk itself does in the same run.
//!
//! `cargo bench --bench acks [-- --dir DIR --seconds N --check]`
//!
//! * floor: one block of 4 KiB that was written before, and `fdatasync`, again and again;
//! * the store alone: one thread, 64 and then 1,024 messages of 256 bytes in flight;
//! * the hub over TCP: 64 publishers with 1 and then 16 messages in flight each, QoS 1, to an input
//!   that has no receiver; beside each the same publishers at a plain server, one thread that only
//!   reads, writes one block, syncs and answers: what sockets and publishers take by themselves.
//!
//! Everything is below one folder (`target` by default), so on one disk; the floor is measured
//! before each of the other two. `--check` exits with 1 where a target is missed.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../support/direct.rs"]
mod direct;
mod plain;
#[path = "../power/stop.rs"]
mod stop;
#[path = "../support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Hub, Setup};
use direct::Direct;
use edgehub::client::Hello;
use hdrhistogram::Histogram;
use stop::Failure;
use support::Options;
use support::pump::{Pump, Span, histogram, micros};
use support::targets::Targets;
use tokio::runtime::Runtime;

const LIMIT: Duration = Duration::from_secs(300);
const WARM_UP: Duration = Duration::from_secs(1);
const BLOCK_BYTES: usize = 4096;
/// Blocks of the floor's file.
const BLOCKS: u64 = 2048;
const MESSAGE_BYTES: usize = 256;
const STORE_BYTES: u64 = 4 << 30;
/// Messages in flight to the store, and how many a second at least.
const ALONE: [(usize, f64); 2] = [(64, 120_000.0), (1024, 600_000.0)];
const PUBLISHERS: usize = 64;
const HUB_WINDOWS: [usize; 2] = [1, 16];
/// The median acknowledgement of the hub, in medians of the floor.
const FLOORS_MAX: f64 = 3.0;
const HUB_RATE_MIN: f64 = 100_000.0;

/// What a run of one kind showed.
struct Row {
    times: Histogram<u64>,
    per_second: f64,
}

impl Row {
    fn print(&self, name: &str, floor: &Self) {
        let at = |percentile| micros(&self.times, percentile);
        println!(
            "{name:<34} {:>9.0} /s  {:>8.0} {:>8.0} {:>8.0}   {:>7.1}",
            self.per_second,
            at(50.0),
            at(99.0),
            at(99.9),
            self.per_second / floor.per_second
        );
    }
}

#[derive(Clone, Copy)]
enum Server {
    Plain,
    Hub,
}

struct Bench {
    dir: PathBuf,
    time: Duration,
    runtime: Runtime,
    targets: Targets,
}

fn main() -> ExitCode {
    let options = Options::read();
    let dir = support::folder(&options);
    let runtime = support::runtime(1);
    stop::watch(&runtime, LIMIT).unwrap();
    let mut bench = Bench {
        dir: dir.path().canonicalize().unwrap(),
        time: Duration::from_secs(options.number("--seconds", 3)),
        runtime,
        targets: Targets::new(&options),
    };
    match bench.run() {
        Ok(()) => bench.targets.exit_code(),
        Err(why) => {
            println!("FAILED {why:?}");
            ExitCode::FAILURE
        }
    }
}

impl Bench {
    fn run(&mut self) -> Result<(), Failure> {
        println!("{:<48} p50 us   p99 us p99.9 us   x floor", "");
        self.alone()?;
        self.hub()?;
        Ok(())
    }

    /// What the disk does with one block after the other.
    fn floor(&self) -> Result<Row, Failure> {
        let path = self.dir.join("floor");
        let at = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = write_blocks(&path).map_err(at)?;
        let block = [7_u8; BLOCK_BYTES];
        let mut times = histogram();
        let began = Instant::now();
        let mut number = 0;
        while began.elapsed() < self.time {
            stop::check()?;
            let each = Instant::now();
            let offset = number % BLOCKS * BLOCK_BYTES as u64;
            file.write_all_at(&block, offset).map_err(at)?;
            file.sync_data().map_err(at)?;
            times.saturating_record(each.elapsed().as_nanos() as u64);
            number += 1;
        }
        let per_second = number as f64 / began.elapsed().as_secs_f64();
        fs::remove_file(&path).map_err(at)?;
        let row = Row { times, per_second };
        row.print("floor: 4 KiB and fdatasync", &row);
        Ok(row)
    }

    fn alone(&mut self) -> Result<(), Failure> {
        for (window, rate_min) in ALONE {
            let floor = self.floor()?;
            let dir = self.dir.join("store");
            let mut direct = Direct::open(&dir, direct::options(STORE_BYTES))?;
            let row = in_flight(&mut direct, window, self.time);
            let held = direct.held;
            direct.close();
            clear(&dir)?;
            let row = row?;
            row.print(&format!("store alone, {window} in flight"), &floor);
            println!(
                "{:<34} {held:>9} times held back: no segment to write to",
                ""
            );
            let what = format!("store alone, {window} in flight");
            self.targets.at_least(&what, row.per_second, rate_min, "/s");
        }
        Ok(())
    }

    fn hub(&mut self) -> Result<(), Failure> {
        for window in HUB_WINDOWS {
            let floor = self.floor()?;
            let plain = self.publishing(Server::Plain, window)?;
            let what = format!("plain server, {PUBLISHERS} x {window} in flight");
            plain.print(&what, &floor);
            let row = self.publishing(Server::Hub, window)?;
            let what = format!("hub, {PUBLISHERS} x {window} in flight");
            row.print(&what, &floor);
            if window == 1 {
                let median = |row: &Row| micros(&row.times, 50.0);
                println!(
                    "{:<34} p50 {:.2} x the plain server's",
                    "",
                    median(&row) / median(&plain)
                );
                let floors = median(&row) / median(&floor);
                let what = format!("{what}: p50, times the floor's");
                self.targets.at_most(&what, floors, FLOORS_MAX, "x");
            } else {
                let rate = row.per_second;
                self.targets.at_least(&what, rate, HUB_RATE_MIN, "/s");
            }
        }
        Ok(())
    }

    /// All publishers at one server.
    fn publishing(&self, server: Server, window: usize) -> Result<Row, Failure> {
        let data = self.dir.join("data");
        let row = self.runtime.block_on(async {
            let run = async {
                match server {
                    Server::Plain => at_plain(&data, window, self.time).await,
                    Server::Hub => at_hub(&data, window, self.time).await,
                }
            };
            tokio::select! {
                row = run => row.map_err(Failure::Hub),
                stopped = stop::stopped() => Err(stopped),
            }
        });
        clear(&data)?;
        row
    }
}

/// Removes a folder, and has the disk done with it.
fn clear(dir: &Path) -> Result<(), Failure> {
    let _ = fs::remove_dir_all(dir);
    let parent = dir.parent().unwrap();
    let synced = File::open(parent).and_then(|dir| Ok(rustix::fs::syncfs(&dir)?));
    synced.map_err(|error| Failure::System(error.to_string()))?;
    stop::sleep(Duration::from_millis(500))
}

/// Keeps so many messages in flight to the store.
fn in_flight(direct: &mut Direct, window: usize, time: Duration) -> Result<Row, Failure> {
    let payload = Bytes::from(vec![b'x'; MESSAGE_BYTES]);
    let mut flying: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut times = histogram();
    let from = Instant::now() + WARM_UP;
    let until = from + time;
    loop {
        let kept = direct.store.kept();
        let now = Instant::now();
        while let Some((seq, at)) = flying.front() {
            if *seq > kept {
                break;
            }
            if now >= from {
                times.saturating_record((now - *at).as_nanos() as u64);
            }
            flying.pop_front();
        }
        if now >= until {
            break;
        }
        while flying.len() < window {
            let seq = direct.append(&payload)?;
            flying.push_back((seq, Instant::now()));
        }
        if let Some((oldest, _)) = flying.front() {
            direct.ask(*oldest);
            direct.wait()?;
        }
    }
    let per_second = times.len() as f64 / from.elapsed().as_secs_f64();
    if let Some((newest, _)) = flying.back() {
        direct.kept(*newest)?;
    }
    Ok(Row { times, per_second })
}

/// Many publishers with so many messages in flight each, through the real hub.
async fn at_hub(data: &Path, window: usize, time: Duration) -> Result<Row, String> {
    let modules: Vec<String> = (0..PUBLISHERS).map(|number| format!("p{number}")).collect();
    let mut modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    modules.push("c0");
    let route = r#"{"r":"FROM /messages/* INTO BrokeredEndpoint(\"/modules/c0/inputs/i0\")"}"#;
    let mut setup = Setup::new(route, &modules);
    setup.listeners = format!("data_dir = {data:?}\n{}", setup.listeners);
    setup.extra = "[store]\nsync = \"always\"\nmax_bytes = \"4GiB\"\n[limits]\n\
                   endpoint_max_bytes = \"64GiB\"\nendpoint_max_messages = 1_000_000_000\n\
                   [log]\nlevel = \"warn\"\n"
        .to_owned();
    setup.write_config();
    let hub: Hub = support::start(setup.dir.path())?;
    let mut pumps = Vec::new();
    for number in 0..PUBLISHERS {
        pumps.push(Pump::connect(&hub, number, 0, MESSAGE_BYTES).await?);
    }
    run_all(pumps, window, time).await
}

/// The same at the plain server.
async fn at_plain(data: &Path, window: usize, time: Duration) -> Result<Row, String> {
    let text = |error: std::io::Error| error.to_string();
    fs::create_dir_all(data).map_err(text)?;
    let file = data.join("plain");
    write_blocks(&file).map_err(text)?;
    let (address, server) = plain::serve(&file).map_err(text)?;
    let mut pumps = Vec::new();
    for number in 0..PUBLISHERS {
        let hello = Hello {
            client_id: format!("edge-1/p{number}"),
            username: None,
            password: None,
            clean_session: true,
            keep_alive_seconds: 0,
        };
        pumps.push(Pump::login(address, &hello, (number, 0), MESSAGE_BYTES).await?);
    }
    let row = run_all(pumps, window, time).await;
    let ended = tokio::task::spawn_blocking(|| server.join());
    ended
        .await
        .unwrap()
        .unwrap()
        .map_err(|error| format!("plain server: {error}"))?;
    row
}

async fn run_all(pumps: Vec<Pump>, window: usize, time: Duration) -> Result<Row, String> {
    let from = Instant::now() + WARM_UP;
    let span = Span {
        messages: u32::MAX,
        from,
        until: from + time,
    };
    let running: Vec<_> = pumps
        .into_iter()
        .map(|mut pump| tokio::spawn(async move { pump.run(window, span).await }))
        .collect();
    let mut times = histogram();
    for run in running {
        let ran = run.await.map_err(|error| error.to_string())?;
        times.add(ran?).map_err(|error| error.to_string())?;
    }
    let per_second = times.len() as f64 / time.as_secs_f64();
    Ok(Row { times, per_second })
}

/// A file whose blocks were all written once.
fn write_blocks(path: &Path) -> std::io::Result<File> {
    let file = File::create(path)?;
    for number in 0..BLOCKS {
        file.write_all_at(&[7; BLOCK_BYTES], number * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    Ok(file)
}
