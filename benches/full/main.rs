//! The volume runs full, the hub starts again on it, everything is delivered; and again.
//!
//! `cargo bench --bench full [-- --cycles N --dir DIR --seed S --sync always|interval|os
//! --segment-bytes SIZE --max-bytes SIZE --publishers N --spare-hub --check]`
//!
//! As root the command makes a volume of 256 MiB (ext4 in an image) and removes it at the end;
//! otherwise `--dir` names a folder on a small volume. A cycle: with the consumer away publishers
//! fill the volume until no PUBACK comes for two seconds; the hub is started again, by turns after
//! SIGTERM and SIGKILL, and filled to the brim once more; the consumer comes and drains it, and the
//! publishers that were held back get their PUBACKs.
//!
//! A fault, and exit code 1, is: a message lost or out of order, a start that fails, a publisher
//! that is never taken up again. With `--check` also: less payload on the full volume than
//! promised (of what was free when it was empty), and a first PUBACK more than a second after the
//! drain began, or after space came back where the volume shows that. With `--spare-hub` the hub
//! is not started again, and with `--max-bytes` its own bound is what runs full: so the command can
//! be tried with a store that keeps nothing.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;
mod volume;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::{Hub, Setup};
use support::clients::{CALM, Consumer, Pace, Phase, Publisher, Scene, all};
use support::ledger::Ledger;
use support::plan::{Plan, to};
use support::rng::Rng;
use support::{Options, drained, start};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use volume::Volume;

/// Publishers are held back when nothing was acknowledged for so long.
const HELD: Duration = Duration::from_secs(2);
/// For the volume to be full.
const FILL_LIMIT: Duration = Duration::from_secs(300);
/// For everything to be delivered.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// For a publisher to be taken up again.
const TAKEN_UP_LIMIT: Duration = Duration::from_secs(30);
/// From space to the first PUBACK.
const PUBACK_MAX: Duration = Duration::from_secs(1);
/// Lengths of bodies by turns, and the share of the volume that they fill at least.
const SIZES: [(usize, f64); 2] = [(4096, 0.90), (256, 0.75)];
const WINDOW: usize = 64;

fn main() -> ExitCode {
    let options = Options::read();
    support::checks::can_fail();
    let volume = match options.text("--dir") {
        Some(dir) => Volume::folder(Path::new(dir)),
        None => Volume::image(),
    };
    let volume = match volume {
        Ok(volume) => volume,
        Err(why) => {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut proof = Proof::new(&options, volume);
    let ran = runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt()).unwrap();
        let mut terminated = signal(SignalKind::terminate()).unwrap();
        tokio::select! {
            ran = proof.run(options.number("--cycles", 20)) => ran,
            _ = interrupted.recv() => Err("interrupted".to_owned()),
            _ = terminated.recv() => Err("terminated".to_owned()),
        }
    });
    proof.ledger().check_breaks();
    proof.ledger().print();
    if let Err(why) = &ran {
        println!("FAULT {why}");
    }
    if ran.is_err() || proof.ledger().faults.any() {
        println!("FAILED\n{}", support::log_end(proof.setup.dir.path()));
        return ExitCode::FAILURE;
    }
    println!("ok");
    ExitCode::SUCCESS
}

struct Proof {
    setup: Setup,
    plan: Plan,
    ledger: Arc<Mutex<Ledger>>,
    publishers: Vec<Publisher>,
    consumer: Option<Consumer>,
    rng: Rng,
    check: bool,
    spare: bool,
    /// What is free on the empty volume.
    empty: u64,
    /// The last to be dropped: the hub writes there.
    volume: Volume,
}

/// What a cycle showed.
#[derive(Default)]
struct Row {
    bytes: usize,
    signal: &'static str,
    payload: u64,
    free: u64,
    ready: Duration,
    refilled: u64,
    puback: Duration,
    space: Option<Duration>,
    drain: Duration,
}

impl Proof {
    fn new(options: &Options, volume: Volume) -> Self {
        let plan = Plan {
            publishers: options.number("--publishers", 4) as usize,
            consumers: 1,
            outputs: vec![vec![to(0, 0, None)]],
            idle: Vec::new(),
        };
        let modules = plan.modules();
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        let mut setup = Setup::new("{}", &modules);
        setup.write_manifest(&plan.routes(), &modules, 7 * 86_400);
        let data = volume.dir.join("data");
        setup.listeners = format!("data_dir = {data:?}\n{}", setup.listeners);
        let sync = options.text("--sync").unwrap_or("always");
        let max = options.text("--max-bytes").unwrap_or("64GiB");
        let segment = options.text("--segment-bytes").unwrap_or("4MiB");
        setup.extra = format!(
            "[store]\nsync = \"{sync}\"\nsegment_bytes = \"{segment}\"\nmin_free_bytes = 0\n\
             max_bytes = \"{max}\"\n[limits]\nmax_message_bytes = \"64KiB\"\n\
             endpoint_max_bytes = \"64GiB\"\nendpoint_max_messages = 1_000_000_000\n\
             publish_stall_seconds = 300\n[log]\nlevel = \"warn\"\n"
        );
        setup.write_config();
        Self {
            setup,
            ledger: Arc::new(Mutex::new(Ledger::new(&plan))),
            publishers: Vec::new(),
            consumer: None,
            rng: Rng::new(options.number("--seed", 1)),
            check: options.flag("--check"),
            spare: options.flag("--spare-hub"),
            empty: volume.free(),
            volume,
            plan,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    async fn run(&mut self, cycles: u64) -> Result<(), String> {
        let (size, free) = self.volume.bytes();
        println!("volume of {:.1} MiB, {:.1} MiB free", mib(size), mib(free));
        println!(
            "cycle  bytes  signal    ready ms  payload MiB  share %  free KiB  refilled KiB  \
             puback ms  space ms  drain s"
        );
        let mut hub = start(self.setup.dir.path())?;
        self.hire(&hub).await?;
        let mut begun = self.ledger().acknowledged_bytes;
        for cycle in 0..cycles {
            self.ledger().begin_round();
            let (bytes, share_min) = SIZES[cycle as usize / 2 % SIZES.len()];
            let pace = Pace {
                window: WINDOW,
                gap: Duration::ZERO,
                messages: u64::MAX,
                bytes: Some(bytes),
            };
            let mut row = Row {
                bytes,
                signal: ["SIGTERM", "SIGKILL"][cycle as usize % 2],
                ..Row::default()
            };
            hub = self.fill(hub, pace, begun, &mut row).await?;
            begun += row.payload;
            hub = self.refill_and_drain(hub, pace, begun, &mut row).await?;
            self.ledger().settle();
            begun = self.ledger().acknowledged_bytes;
            let share = row.payload as f64 / self.empty as f64;
            self.tell(cycle, &row, share);
            if self.check && share < share_min {
                let what = format!("cycle {cycle}: payload {share:.3}, at least {share_min}");
                self.ledger().faults.other(what);
            }
        }
        hub.kill();
        Ok(())
    }

    /// Everybody gets a key, the consumer a session.
    async fn hire(&mut self, hub: &Hub) -> Result<(), String> {
        for index in 0..self.plan.publishers {
            let key = hub.key(&format!("edge-1/p{index}"));
            let rng = self.rng.split();
            let publisher = Publisher::new(index, key, self.plan.outputs.len(), rng);
            self.publishers.push(publisher);
        }
        let consumer = Consumer::new(0, hub.key("edge-1/c0"));
        let scene = self.scene(hub);
        let consuming = tokio::spawn(consumer.run(Arc::clone(&scene), CALM));
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.phase.send_replace(Phase::Over);
        self.consumer = all(vec![consuming]).await?.pop();
        self.ledger().clock.stop();
        Ok(())
    }

    fn scene(&self, hub: &Hub) -> Arc<Scene> {
        let scene = Scene::new(hub.tcp(), &self.ledger);
        let mut ledger = scene.ledger();
        ledger.clock.start();
        ledger.last_ack = Instant::now();
        drop(ledger);
        scene
    }

    /// Has all publishers begin.
    fn publish(&mut self, scene: &Arc<Scene>, pace: Pace) -> Vec<JoinHandle<Publisher>> {
        let publishers = self.publishers.drain(..);
        publishers
            .map(|publisher| tokio::spawn(publisher.run(Arc::clone(scene), pace)))
            .collect()
    }

    /// Publishes until the volume is full, and starts the hub again on it.
    async fn fill(
        &mut self,
        hub: Hub,
        pace: Pace,
        begun: u64,
        row: &mut Row,
    ) -> Result<Hub, String> {
        let scene = self.scene(&hub);
        let publishing = self.publish(&scene, pace);
        self.held_back(&scene, begun).await?;
        row.payload = scene.ledger().acknowledged_bytes - begun;
        row.free = self.volume.free();
        if self.spare {
            scene.phase.send_replace(Phase::Cut);
            self.publishers = all(publishing).await?;
            self.ledger().hub_broke();
            return Ok(hub);
        }
        scene.down();
        if row.signal == "SIGKILL" {
            hub.kill();
        } else {
            // Its clients go on meanwhile.
            let ended = tokio::task::spawn_blocking(|| hub.terminate()).await;
            let code = ended.map_err(|error| error.to_string())?;
            if code != Some(0) {
                let what = format!("SIGTERM: exit code {code:?}");
                scene.ledger().faults.other(what);
            }
        }
        self.publishers = all(publishing).await?;
        self.ledger().hub_broke();
        let began = Instant::now();
        let hub = start(self.setup.dir.path())?;
        row.ready = began.elapsed();
        Ok(hub)
    }

    /// Waits until nothing is acknowledged any more.
    async fn held_back(&self, scene: &Scene, begun: u64) -> Result<(), String> {
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (idle, bytes) = {
                let ledger = scene.ledger();
                (ledger.last_ack.elapsed(), ledger.acknowledged_bytes - begun)
            };
            if idle > HELD {
                return Ok(());
            }
            if bytes > self.volume.bytes().0 {
                return Err("more was acknowledged than the volume can hold".to_owned());
            }
            if began.elapsed() > FILL_LIMIT {
                return Err("the volume does not get full".to_owned());
            }
        }
    }

    async fn refill_and_drain(
        &mut self,
        hub: Hub,
        pace: Pace,
        begun: u64,
        row: &mut Row,
    ) -> Result<Hub, String> {
        let scene = self.scene(&hub);
        let publishing = self.publish(&scene, pace);
        self.held_back(&scene, begun).await?;
        row.refilled = scene.ledger().acknowledged_bytes - begun;
        scene.phase.send_replace(Phase::Finish);
        let began = Instant::now();
        let consumer = self.consumer.take().ok_or("no consumer")?;
        let consuming = tokio::spawn(consumer.run(Arc::clone(&scene), CALM));
        self.taken_up(&scene, began, row).await;
        let empty = drained(&hub, &scene, DRAIN_LIMIT).await;
        row.drain = began.elapsed();
        if !empty {
            let what = format!("the queues do not drain: {} wait", support::queued(&hub));
            scene.ledger().faults.other(what);
            scene.ledger().settle();
            return Err("a cycle did not end".to_owned());
        }
        self.publishers = all(publishing).await?;
        scene.phase.send_replace(Phase::Over);
        self.consumer = all(vec![consuming]).await?.pop();
        let open: usize = self.publishers.iter().map(Publisher::open).sum();
        if open > 0 {
            let what = format!("{open} messages were never acknowledged");
            scene.ledger().faults.other(what);
        }
        Ok(hub)
    }

    /// Waits for the first PUBACK.
    async fn taken_up(&self, scene: &Scene, began: Instant, row: &mut Row) {
        let before = (scene.ledger().acknowledged, self.volume.free());
        while scene.ledger().acknowledged == before.0 {
            if row.space.is_none() && self.volume.free() > before.1 {
                row.space = Some(began.elapsed());
            }
            if began.elapsed() > TAKEN_UP_LIMIT {
                scene.ledger().faults.other("publishers stay held back");
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        row.puback = began.elapsed();
        let waited = row.puback - row.space.unwrap_or_default();
        if self.check && waited > PUBACK_MAX {
            let what = format!("the first PUBACK took {waited:?}");
            scene.ledger().faults.other(what);
        }
    }

    fn tell(&self, cycle: u64, row: &Row, share: f64) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let space = row.space.map(|at| format!("{:.0}", ms(at)));
        let space = space.as_deref().unwrap_or("-");
        print!("{cycle:>5}  {:>5}  {}", row.bytes, row.signal);
        print!("  {:>9.1}  {:>11.1}", ms(row.ready), mib(row.payload));
        print!("  {:>7.1}  {:>8}", share * 100.0, row.free >> 10);
        print!("  {:>12}  {:>9.0}", row.refilled >> 10, ms(row.puback));
        println!("  {space:>8}  {:>7.1}", row.drain.as_secs_f64());
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
