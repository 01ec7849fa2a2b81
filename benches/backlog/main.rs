//! A long backlog: what it costs in memory, how soon after a start its first message is delivered,
//! how long an urgent message waits behind it, how fast it drains and is deleted.
//!
//! `cargo bench --bench backlog [-- --messages 5000000 --sync always|interval|os --dir DIR
//! --check]`
//!
//! Publishers fill the queue of an absent module's input with messages of 256 bytes at QoS 1; the
//! hub is stopped by SIGTERM and started again (its files are in the page cache); the module comes
//! back. While it drains, a route of priority 0 brings it urgent messages through the same input:
//! first while it acknowledges slowly, then at full speed. Every message is compared with what was
//! sent, in order. For comparison, messages from one publisher to a receiver that is there, in the
//! same run, before the backlog and after it.
//!
//! `--check` exits with 1 where a target is missed.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod consumer;
#[path = "../power/stop.rs"]
mod stop;
#[path = "../support/mod.rs"]
mod support;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Hub, Setup};
use consumer::{BULK, Consumer, LIVE, Progress, URGENT};
use stop::Failure;
use support::plan::{Plan, to};
use support::pump::{Pump, Span};
use support::targets::Targets;
use support::{Options, start};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use watch::{Resident, Watch, folder_mib, resident};

const LIMIT: Duration = Duration::from_secs(1500);
const PUBLISHERS: usize = 4;
/// Of the publishers, who sends what is urgent and what is live.
const URGENT_BY: usize = 0;
const WINDOW: usize = 200;
const MESSAGE_BYTES: usize = 256;
const LIVE_MESSAGES: u32 = 200_000;
const URGENT_MESSAGES: usize = 20;
const URGENT_EVERY: Duration = Duration::from_millis(20);
/// How long a slow receiver waits before it acknowledges.
const SLOW: Duration = Duration::from_millis(2);
/// Spares and segments that wait to be used again, and small files.
const EMPTY_MIB_MAX: f64 = 81.0;
const EMPTY_LIMIT: Duration = Duration::from_secs(30);

const FIRST_MS_MAX: f64 = 200.0;
const URGENT_MS_MAX: f64 = 10.0;
const DRAIN_SHARE_MIN: f64 = 0.5;
const EMPTY_SECONDS_MAX: f64 = 5.0;
const MEMORY_MIB_MAX: f64 = 16.0;

struct Bench {
    setup: Setup,
    store: PathBuf,
    each: u32,
    targets: Targets,
    idle: Resident,
}

fn main() -> ExitCode {
    let options = Options::read();
    let dir = support::folder(&options);
    let runtime = support::runtime(2);
    stop::watch(&runtime, LIMIT).unwrap();
    let mut bench = Bench::new(&options, &dir.path().canonicalize().unwrap());
    let ran = runtime.block_on(async {
        tokio::select! {
            ran = bench.run() => ran.map_err(Failure::Hub),
            stopped = stop::stopped() => Err(stopped),
        }
    });
    match ran {
        Ok(()) => bench.targets.exit_code(),
        Err(why) => {
            println!(
                "FAILED {why:?}\n{}",
                support::log_end(bench.setup.dir.path())
            );
            ExitCode::FAILURE
        }
    }
}

impl Bench {
    fn new(options: &Options, dir: &Path) -> Self {
        let plan = Plan {
            publishers: PUBLISHERS,
            consumers: 2,
            outputs: vec![
                vec![to(0, 0, None)],
                vec![to(0, 0, Some(0))],
                vec![to(1, 0, None)],
            ],
            idle: Vec::new(),
        };
        let modules = plan.modules();
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        let mut setup = Setup::new("{}", &modules);
        setup.write_manifest(&plan.routes(), &modules, 7 * 86_400);
        let data = dir.join("data");
        setup.listeners = format!("data_dir = {data:?}\n{}", setup.listeners);
        let sync = options.text("--sync").unwrap_or("os");
        setup.extra = format!(
            "[store]\nsync = \"{sync}\"\nmax_bytes = \"16GiB\"\nmin_free_bytes = 0\n[limits]\n\
             endpoint_max_bytes = \"64GiB\"\nendpoint_max_messages = 1_000_000_000\n\
             publish_stall_seconds = 300\n[log]\nlevel = \"warn\"\n"
        );
        setup.write_config();
        let messages = options.number("--messages", 5_000_000);
        println!("{messages} messages of {MESSAGE_BYTES} bytes, sync = {sync}");
        Self {
            setup,
            store: data.join("store"),
            each: (messages / PUBLISHERS as u64) as u32,
            targets: Targets::new(options),
            idle: Resident::default(),
        }
    }

    fn messages(&self) -> u64 {
        u64::from(self.each) * PUBLISHERS as u64
    }

    async fn run(&mut self) -> Result<(), String> {
        let hub = start(self.setup.dir.path())?;
        for module in ["c0", "c1"] {
            Consumer::hire(&hub, module).await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.idle = resident(hub.child.id());
        println!("memory, idle                  {}", self.idle);
        let watch = Watch::new(hub.child.id());
        let before = live(&hub).await?;
        println!("memory, live                  {}", watch.most());
        self.fill(&hub).await?;
        self.memory("while queueing", watch.most());
        drop(watch);
        let stopped = Instant::now();
        let code = tokio::task::block_in_place(|| hub.terminate());
        let took = stopped.elapsed().as_secs_f64() * 1e3;
        println!("SIGTERM: exit code {code:?} after {took:.0} ms");
        let (hub, consumer) = self.restart().await?;
        let watch = Watch::new(hub.child.id());
        let rate = self.drain(&hub, consumer, &watch).await?;
        let after = live(&hub).await?;
        println!("live                          {before:>9.0} /s before, {after:.0} /s after");
        let share = rate / before.max(after);
        let what = "drain, share of the better live rate";
        self.targets.at_least(what, share, DRAIN_SHARE_MIN, "x");
        Ok(())
    }

    fn memory(&mut self, when: &str, most: Resident) {
        println!("memory, {when:<22}{most}");
        let above = most.all - self.idle.all;
        let what = format!("memory above idle, {when}");
        self.targets.at_most(&what, above, MEMORY_MIB_MAX, "MiB");
    }

    async fn fill(&self, hub: &Hub) -> Result<(), String> {
        let mut pumps = Vec::new();
        for number in 0..PUBLISHERS {
            pumps.push(Pump::connect(hub, number, BULK, MESSAGE_BYTES).await?);
        }
        let span = Span::count(self.each);
        let running: Vec<_> = pumps
            .into_iter()
            .map(|mut pump| {
                tokio::spawn(async move {
                    pump.run(WINDOW, span).await?;
                    pump.leave().await
                })
            })
            .collect();
        for run in running {
            run.await.map_err(|error| error.to_string())??;
        }
        let rate = self.messages() as f64 / span.from.elapsed().as_secs_f64();
        let size = folder_mib(&self.store);
        println!("queued                        {rate:>9.0} /s, {size:.0} MiB on disk");
        Ok(())
    }

    /// From the start of the process to the first message at the receiver.
    async fn restart(&mut self) -> Result<(Hub, Consumer), String> {
        let began = Instant::now();
        let hub = tokio::task::block_in_place(|| start(self.setup.dir.path()))?;
        let ready = began.elapsed().as_secs_f64() * 1e3;
        let mut consumer = Consumer::connect(&hub, "c0", PUBLISHERS).await?;
        consumer.take().await?;
        let first = began.elapsed().as_secs_f64() * 1e3;
        let memory = resident(hub.child.id());
        println!("start: ready after            {ready:>9.1} ms, first delivery {first:.1} ms");
        let what = "start to first delivery";
        self.targets.at_most(what, first, FIRST_MS_MAX, "ms");
        self.memory("after the start", memory);
        consumer.flush().await?;
        Ok((hub, consumer))
    }

    /// Everything to one receiver; how many a second once nothing urgent comes between.
    async fn drain(
        &mut self,
        hub: &Hub,
        mut consumer: Consumer,
        watch: &Watch,
    ) -> Result<f64, String> {
        let (tell, mut hear) = unbounded_channel();
        consumer.tell(tell);
        let progress = Arc::clone(&consumer.progress);
        let mut pump = Pump::connect(hub, URGENT_BY, URGENT, MESSAGE_BYTES).await?;
        progress
            .pause_us
            .store(SLOW.as_micros() as u64, Ordering::Relaxed);
        let running = tokio::spawn(consumer.run(self.messages()));
        let urgent = self.urgent(&mut pump, &mut hear, &progress).await;
        let (from, began) = (progress.received.load(Ordering::Relaxed), Instant::now());
        let consumer = running.await.map_err(|error| error.to_string())??;
        urgent?;
        let drained = Instant::now();
        let rest = self.messages() - from;
        let rate = rest as f64 / (drained - began).as_secs_f64();
        println!("drained                       {rate:>9.0} /s, the last {rest} of them");
        self.targets
            .holds("every message came, once and in order", true);
        self.memory("while draining", watch.most());
        self.deleted(drained).await?;
        pump.leave().await?;
        consumer.leave().await?;
        Ok(rate)
    }

    /// Urgent messages behind the backlog: while it drains slowly, then at full speed.
    async fn urgent(
        &mut self,
        pump: &mut Pump,
        hear: &mut UnboundedReceiver<(u32, Instant)>,
        progress: &Progress,
    ) -> Result<(), String> {
        for pace in ["slow", "fast"] {
            let mut times = Vec::new();
            let mut kept = Vec::new();
            for _ in 0..URGENT_MESSAGES {
                let sent = pump.one().await?;
                kept.push(sent.elapsed().as_secs_f64() * 1e3);
                let heard = hear.recv().await.ok_or("the receiver has ended")?;
                times.push((heard.1 - sent).as_secs_f64() * 1e3);
                tokio::time::sleep(URGENT_EVERY).await;
            }
            let received = progress.received.load(Ordering::Relaxed);
            progress.pause_us.store(0, Ordering::Relaxed);
            times.sort_by(f64::total_cmp);
            kept.sort_by(f64::total_cmp);
            let (median, most) = (times[URGENT_MESSAGES / 2], times[URGENT_MESSAGES - 1]);
            let left = self.messages().saturating_sub(received);
            println!(
                "urgent, {pace} receiver         {median:>9.2} ms median, {most:.2} most \
                 (PUBACK {:.2}), {left} before it at the end",
                kept[URGENT_MESSAGES / 2]
            );
            let what = format!("urgent message, {pace} receiver");
            self.targets.at_most(&what, median, URGENT_MS_MAX, "ms");
            self.targets
                .holds("there was a backlog in its way", left > 0);
        }
        Ok(())
    }

    /// Waits until the files of what was delivered have gone.
    async fn deleted(&mut self, since: Instant) -> Result<(), String> {
        loop {
            let size = folder_mib(&self.store);
            let took = since.elapsed();
            if size <= EMPTY_MIB_MAX || took > EMPTY_LIMIT {
                println!("on disk after the drain       {size:>9.1} MiB");
                let what = "drained to files deleted";
                let seconds = took.as_secs_f64();
                self.targets.at_most(what, seconds, EMPTY_SECONDS_MAX, "s");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Messages a second from one publisher to one receiver that is there.
async fn live(hub: &Hub) -> Result<f64, String> {
    let consumer = Consumer::connect(hub, "c1", PUBLISHERS).await?;
    let mut pump = Pump::connect(hub, URGENT_BY, LIVE, MESSAGE_BYTES).await?;
    let span = Span::count(LIVE_MESSAGES);
    let running = tokio::spawn(consumer.run(u64::from(LIVE_MESSAGES)));
    pump.run(WINDOW, span).await?;
    let consumer = running.await.map_err(|error| error.to_string())??;
    let rate = f64::from(LIVE_MESSAGES) / span.from.elapsed().as_secs_f64();
    pump.leave().await?;
    consumer.leave().await?;
    Ok(rate)
}
