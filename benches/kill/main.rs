//! The hub is killed at a random moment, again and again: nothing that it acknowledged may be
//! missing, come too late or come for no reason.
//!
//! `cargo bench --bench kill [-- --rounds N --seed S --seconds-max T --sync always|interval|os
//! --publishers N --spare-hub]`
//!
//! A round: start the hub on the folder that the last one left (now and then it is killed while it
//! starts, first), let everybody connect, and send SIGKILL 5 to 300 ms after the first PUBACK.
//! Publishers send what was not acknowledged again, as the same packets; consumers stay away for
//! some rounds, break off in the middle of one, or are slow to acknowledge. After the last round
//! all queues are drained. What counts as a fault stands in `support/ledger.rs`; with one the exit
//! code is 1. With `--sync memory` losses are what must be seen; with `--spare-hub` the hub lives
//! on and only the connections break, so that nothing may be lost with any store.
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

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Hub, Setup};
use support::clients::{CALM, Consumer, Habit, Pace, Phase, Publisher, Scene, all};
use support::ledger::Ledger;
use support::plan::{Plan, to};
use support::rng::Rng;
use support::starts::Starts;
use support::{Options, drained};
use tokio::task::JoinHandle;

/// The first PUBACK of a round comes within this, or the round is a fault.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(10);
/// The drain at the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(180);
/// With more copies than this in the queues, publishers hold back.
const BACKLOG_MAX: i64 = 40_000;
/// New messages of one publisher in one round.
const MESSAGES_MAX: u64 = 1_000;
/// New messages of one publisher in a round where it holds back.
const MESSAGES_MIN: u64 = 10;

fn main() -> ExitCode {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = options.number("--seed", now.as_secs());
    println!("seed {seed}");
    support::checks::can_fail();
    let mut proof = Proof::new(&options, seed);
    let began = Instant::now();
    let ran = runtime.block_on(proof.run(&options));
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

/// Three consumers with five inputs between them; one message to one, two or three of these.
fn plan(publishers: usize) -> Plan {
    let (urgent, middle, default) = (Some(0), Some(5), None);
    Plan {
        publishers,
        consumers: 3,
        outputs: vec![
            vec![to(0, 0, urgent)],
            vec![to(0, 0, middle)],
            vec![to(0, 0, default)],
            vec![to(1, 0, urgent)],
            vec![to(1, 0, middle)],
            vec![to(1, 0, default)],
            vec![to(0, 1, urgent), to(1, 1, middle)],
            vec![to(0, 1, default), to(1, 1, default), to(2, 0, urgent)],
            vec![to(2, 0, middle)],
            vec![to(2, 0, middle)],
        ],
        idle: vec![(9, to(2, 0, default))],
    }
}

struct Proof {
    setup: Setup,
    plan: Plan,
    ledger: Arc<Mutex<Ledger>>,
    publishers: Vec<Publisher>,
    consumers: Vec<Consumer>,
    /// Rounds that each consumer still stays away.
    away: Vec<u64>,
    rng: Rng,
    /// The hub that lives on from round to round, with `--spare-hub`.
    spared: Option<Hub>,
    spare: bool,
    rounds: u64,
    starts: Starts,
}

impl Proof {
    fn new(options: &Options, seed: u64) -> Self {
        let plan = plan(options.number("--publishers", 6) as usize);
        let modules = plan.modules();
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        let mut setup = Setup::new("{}", &modules);
        setup.write_manifest(&plan.routes(), &modules, 7 * 86_400);
        let sync = options.text("--sync").unwrap_or("always");
        setup.extra = format!(
            "[store]\nsync = \"{sync}\"\nsegment_bytes = \"1MiB\"\n\
             [limits]\nmax_message_bytes = \"64KiB\"\n[log]\nlevel = \"warn\"\n"
        );
        setup.write_config();
        Self {
            setup,
            ledger: Arc::new(Mutex::new(Ledger::new(&plan))),
            publishers: Vec::new(),
            consumers: Vec::new(),
            away: vec![0; plan.consumers],
            rng: Rng::new(seed),
            spared: None,
            spare: options.flag("--spare-hub"),
            rounds: 0,
            starts: Starts::default(),
            plan,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    fn log_end(&self) -> String {
        support::log_end(self.setup.dir.path())
    }

    async fn run(&mut self, options: &Options) -> Result<(), String> {
        let rounds = options.number("--rounds", 1_000);
        let end = Instant::now() + Duration::from_secs(options.number("--seconds-max", 1_500));
        self.hire()?;
        while self.rounds < rounds && Instant::now() < end {
            self.round().await?;
            self.rounds += 1;
            if self.rounds.is_multiple_of((rounds / 20).max(1)) {
                self.tell();
            }
        }
        self.drain().await
    }

    /// The first start makes the identities.
    fn hire(&mut self) -> Result<(), String> {
        let hub = self.start()?;
        let outputs = self.plan.outputs.len();
        for index in 0..self.plan.publishers {
            let key = hub.key(&format!("edge-1/p{index}"));
            let rng = self.rng.split();
            let publisher = Publisher::new(index, key, outputs, rng);
            self.publishers.push(publisher);
        }
        for index in 0..self.plan.consumers {
            let key = hub.key(&format!("edge-1/c{index}"));
            self.consumers.push(Consumer::new(index, key));
        }
        hub.kill();
        Ok(())
    }

    fn start(&mut self) -> Result<Hub, String> {
        if let Some(hub) = self.spared.take() {
            return Ok(hub);
        }
        self.starts.next(self.setup.dir.path(), &mut self.rng)
    }

    async fn round(&mut self) -> Result<(), String> {
        let mut hub = self.start()?;
        let scene = Scene::new(hub.tcp(), &self.ledger);
        scene.ledger().begin_round();
        scene.ledger().clock.start();
        let publishing = self.publish(&scene);
        let consuming = self.consume(&scene);
        let traffic = tokio::time::timeout(TRAFFIC_LIMIT, scene.acknowledged.notified()).await;
        if traffic.is_err() {
            let what = format!("round {}: no PUBACK", self.rounds);
            scene.ledger().faults.other(what);
        }
        tokio::time::sleep(Duration::from_millis(self.rng.between(5, 300))).await;
        if let Ok(Some(status)) = hub.child.try_wait() {
            let what = format!("round {}: the hub ended by itself: {status}", self.rounds);
            scene.ledger().faults.other(what);
        }
        if self.spare {
            scene.phase.send_replace(Phase::Cut);
            self.spared = Some(hub);
        } else {
            scene.down();
            hub.kill();
        }
        self.publishers = all(publishing).await?;
        let back: Vec<Consumer> = all(consuming).await?;
        self.consumers.extend(back);
        self.consumers.sort_by_key(Consumer::index);
        self.ledger().hub_broke();
        Ok(())
    }

    fn publish(&mut self, scene: &Arc<Scene>) -> Vec<JoinHandle<Publisher>> {
        let hold_back = self.ledger().backlog() > BACKLOG_MAX;
        let mut publishers = Vec::new();
        for publisher in self.publishers.drain(..) {
            let rng = &mut self.rng;
            let most = if hold_back {
                MESSAGES_MIN
            } else {
                MESSAGES_MAX
            };
            let pace = Pace {
                window: [1, 4, 16, 16][rng.between(0, 3) as usize],
                gap: Duration::from_micros([0, 0, 200, 2_000][rng.between(0, 3) as usize]),
                messages: rng.between(MESSAGES_MIN, most),
                bytes: None,
            };
            publishers.push(tokio::spawn(publisher.run(Arc::clone(scene), pace)));
        }
        publishers
    }

    /// Consumers that are away stay in `consumers`.
    fn consume(&mut self, scene: &Arc<Scene>) -> Vec<JoinHandle<Consumer>> {
        let mut consumers = Vec::new();
        for consumer in std::mem::take(&mut self.consumers) {
            let rng = &mut self.rng;
            let away = &mut self.away[consumer.index()];
            // All are there in the first round, so that each has a session, and soon one is not.
            let turn = self.rounds == 1 + consumer.index() as u64;
            if *away == 0 && self.rounds > 0 && (turn || rng.one_in(10)) {
                *away = rng.between(1, 12);
            }
            if *away > 0 {
                *away -= 1;
                self.consumers.push(consumer);
                continue;
            }
            let after = Duration::from_millis(rng.between(1, 100));
            let habit = Habit {
                pause: rng
                    .one_in(4)
                    .then(|| Duration::from_millis(rng.between(1, 5))),
                break_off: rng.one_in(6).then(|| (after, rng.between(1, 3) as u32)),
            };
            consumers.push(tokio::spawn(consumer.run(Arc::clone(scene), habit)));
        }
        consumers
    }

    /// Publishers get their last acknowledgements, consumers everything.
    async fn drain(&mut self) -> Result<(), String> {
        self.tell();
        let hub = self.start()?;
        let scene = Scene::new(hub.tcp(), &self.ledger);
        scene.ledger().clock.start();
        scene.phase.send_replace(Phase::Finish);
        let nothing = Pace {
            window: 1,
            gap: Duration::ZERO,
            messages: 0,
            bytes: None,
        };
        let publishers = self.publishers.drain(..);
        let publishing = publishers
            .map(|publisher| tokio::spawn(publisher.run(Arc::clone(&scene), nothing)))
            .collect();
        let consumers = self.consumers.drain(..);
        let consuming: Vec<_> = consumers
            .map(|consumer| tokio::spawn(consumer.run(Arc::clone(&scene), CALM)))
            .collect();
        self.publishers = all(publishing).await?;
        let open: usize = self.publishers.iter().map(Publisher::open).sum();
        if open > 0 {
            let what = format!("{open} messages were never acknowledged");
            scene.ledger().faults.other(what);
        }
        if !drained(&hub, &scene, DRAIN_LIMIT).await {
            println!("the queues did not drain: {} wait", support::queued(&hub));
            scene.ledger().faults.other("the queues did not drain");
        }
        scene.phase.send_replace(Phase::Over);
        self.consumers = all(consuming).await?;
        scene.down();
        let code = hub.terminate();
        if code != Some(0) {
            let what = format!("SIGTERM: exit code {code:?}");
            scene.ledger().faults.other(what);
        }
        self.ledger().settle();
        self.ledger().check_breaks();
        Ok(())
    }

    fn tell(&self) {
        let ledger = self.ledger();
        println!(
            "round {:>5}: published {}, acknowledged {}, received {}, backlog {}, again {}",
            self.rounds,
            ledger.published,
            ledger.acknowledged,
            ledger.received,
            ledger.backlog(),
            ledger.came_again() + ledger.copies_received,
        );
    }

    fn report(&self, took: Duration) {
        let ledger = self.ledger();
        let (seconds, starts) = (took.as_secs_f64(), &self.starts);
        println!("rounds {} in {seconds:.0} s, {starts}", self.rounds);
        ledger.print();
        // Came again and may come again, by round.
        let mut rounds: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
        let breaks = || ledger.accounts.iter().flat_map(|account| &account.breaks);
        for broken in breaks() {
            let sums = rounds.entry(broken.round).or_default();
            *sums = (sums.0 + broken.again, sums.1 + broken.again_max);
        }
        let worst = rounds.iter().max_by_key(|(_, (again, _))| *again);
        if let Some((round, (again, bound))) = worst {
            let oldest = breaks().map(|broken| broken.oldest_ms).max();
            println!(
                "most that came again after one round: {again} (round {round}, at most {bound}); \
                 the oldest had been received {} ms before the break",
                oldest.unwrap_or_default(),
            );
        }
    }
}
