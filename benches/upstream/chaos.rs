//! Everything goes wrong on the way up, at random, while modules send.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::bridge::Bridge;
use super::memory::Memory;
use super::scene::{Kind, MODULES, Module, Scene, WINDOW, setup};
use super::sink::{Process, Word};
use crate::cloud::checks::check;
use crate::cloud::faults::{Mode, Proxy};
use crate::cloud::record;
use crate::common::{Hub, Setup};
use crate::support::rng::Rng;
use crate::support::{self, queued, start};

const STORE: &str = "sync = \"always\"\nsegment_bytes = \"1MiB\"";
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// For modules to get their last PUBACKs.
const FINISH_LIMIT: Duration = Duration::from_secs(60);
/// For the queues to run empty, once everything is healed.
const DRAIN_LIMIT: Duration = Duration::from_secs(180);
/// Of so many faults one has a kill in it, and as many more are a kill alone.
const KILL_ONE_IN: u64 = 6;

/// What goes wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Way(Mode),
    Sink(Word),
    Nothing,
}

impl Fault {
    fn any(rng: &mut Rng) -> Self {
        let latency = Duration::from_millis(rng.between(1, 800));
        let bytes = rng.between(1, 400) as usize;
        let every = Duration::from_millis(rng.between(1, 10));
        match rng.below(12) {
            0 | 1 => Self::Way(Mode::Refuse),
            2 | 3 => Self::Way(Mode::Reset),
            4 | 5 => Self::Way(Mode::BlackHole),
            6 => Self::Way(Mode::Latency(latency)),
            7 => Self::Way(Mode::Trickle { bytes, every }),
            8 | 9 => Self::Way(Mode::HalfOpen),
            10 => Self::Sink(Word::Hold),
            _ => Self::Sink(Word::Refuse),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Way(Mode::Refuse) => "refuse",
            Self::Way(Mode::Reset) => "reset",
            Self::Way(Mode::BlackHole) => "black hole",
            Self::Way(Mode::Latency(_)) => "latency",
            Self::Way(Mode::Trickle { .. }) => "trickle",
            Self::Way(Mode::HalfOpen) => "half open",
            Self::Way(Mode::Pass) | Self::Nothing => "nothing",
            Self::Sink(Word::Hold | Word::Release) => "PUBACKs held",
            Self::Sink(Word::Refuse | Word::Accept) => "logins refused",
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kill {
    Hub,
    Sink,
}

pub struct Chaos {
    setup: Setup,
    scene: Arc<Scene>,
    proxy: Proxy,
    sink: Process,
    rng: Rng,
    hub: Option<(Hub, Instant)>,
    memory: Memory,
    faults: BTreeMap<&'static str, u64>,
    hub_kills: u64,
    sink_kills: u64,
    modules: Vec<JoinHandle<()>>,
    drained: Option<Duration>,
}

impl Chaos {
    pub fn new(kind: Kind, dir: &Path, seed: u64, per_second: u64) -> Result<Self, String> {
        let sink = Process::start(dir);
        let proxy = Proxy::start(sink.address()).map_err(|error| error.to_string())?;
        let data = dir.join("data");
        let setup = setup(kind, proxy.address(), &data, STORE, &MODULES);
        let mut chaos = Self {
            setup,
            scene: Scene::new(),
            proxy,
            sink,
            rng: Rng::new(seed),
            hub: None,
            memory: Memory::default(),
            faults: BTreeMap::new(),
            hub_kills: 0,
            sink_kills: 0,
            modules: Vec::new(),
            drained: None,
        };
        chaos.start_hub()?;
        let (hub, _) = chaos.hub.as_ref().unwrap();
        for name in MODULES {
            let key = hub.key(&format!("edge-1/{name}"));
            let module = Module::new(name, &key, chaos.rng.split(), per_second);
            let scene = Arc::clone(&chaos.scene);
            chaos.modules.push(tokio::spawn(module.run(scene)));
        }
        Bridge::hire(kind, hub, chaos.proxy.address(), &chaos.scene);
        Ok(chaos)
    }

    pub fn log_end(&self) -> String {
        support::log_end(self.setup.dir.path())
    }

    /// Faults until the time is up, then everything is healed.
    pub async fn run(&mut self, seconds: u64) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let calm = Duration::from_millis(self.rng.between(200, 4_000));
            self.pass_time(calm, end).await?;
            let (fault, kill) = self.draw();
            let lasts = self.draw_time();
            *self.faults.entry(fault.name()).or_default() += 1;
            self.begin(fault);
            match kill {
                Some(kill) => {
                    let before = lasts.mul_f64(self.rng.below(100) as f64 / 100.0);
                    self.pass_time(before, end).await?;
                    self.kill(kill).await?;
                    self.pass_time(lasts - before, end).await?;
                }
                None => self.pass_time(lasts, end).await?,
            }
            self.heal(fault);
        }
        self.finish().await
    }

    fn draw(&mut self) -> (Fault, Option<Kill>) {
        let kill = [Kill::Hub, Kill::Sink][self.rng.below(2) as usize];
        let fault = Fault::any(&mut self.rng);
        match self.rng.below(KILL_ONE_IN) {
            0 => (Fault::Nothing, Some(kill)),
            1 => (fault, Some(kill)),
            _ => (fault, None),
        }
    }

    /// As often short as long.
    fn draw_time(&mut self) -> Duration {
        let (least, most) = [(100, 1_500), (1_500, 15_000)][self.rng.below(2) as usize];
        Duration::from_millis(self.rng.between(least, most))
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Way(mode) => self.proxy.set(mode),
            Fault::Sink(word) => self.sink.tell(word),
            Fault::Nothing => {}
        }
    }

    fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Way(_) => self.proxy.set(Mode::Pass),
            Fault::Sink(Word::Hold | Word::Release) => self.sink.tell(Word::Release),
            Fault::Sink(Word::Refuse | Word::Accept) => self.sink.tell(Word::Accept),
            Fault::Nothing => {}
        }
    }

    async fn kill(&mut self, kill: Kill) -> Result<(), String> {
        // Now and then it stays away for a while.
        let away =
            Duration::from_millis([0, self.rng.between(1, 3_000)][self.rng.below(2) as usize]);
        match kill {
            Kill::Hub => {
                self.scene.hub.send_replace(None);
                let (mut hub, _) = self.hub.take().unwrap();
                if let Ok(Some(status)) = hub.child.try_wait() {
                    return Err(format!("the hub ended by itself: {status}"));
                }
                hub.kill();
                self.scene.sent().hub_kills.push(record::now_us());
                self.hub_kills += 1;
                sleep(away).await;
                self.start_hub()
            }
            Kill::Sink => {
                self.sink.kill();
                self.sink_kills += 1;
                sleep(away).await;
                self.sink.restart();
                Ok(())
            }
        }
    }

    fn start_hub(&mut self) -> Result<(), String> {
        let hub = start(self.setup.dir.path())?;
        self.scene.hub.send_replace(Some(hub.tcp()));
        self.hub = Some((hub, Instant::now()));
        Ok(())
    }

    /// Looks at the hub's memory meanwhile; an error where the hub has ended.
    async fn pass_time(&mut self, time: Duration, end: Instant) -> Result<(), String> {
        let until = (Instant::now() + time).min(end);
        loop {
            if let Some((hub, started)) = &mut self.hub {
                if let Ok(Some(status)) = hub.child.try_wait() {
                    return Err(format!("the hub ended by itself: {status}"));
                }
                self.memory.sample(hub.child.id(), *started);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(SAMPLE_EVERY)).await;
        }
    }

    /// Modules get their last acknowledgements, the cloud everything.
    async fn finish(&mut self) -> Result<(), String> {
        let healed = Instant::now();
        self.scene.finish.send_replace(true);
        for module in self.modules.drain(..) {
            if timeout(FINISH_LIMIT, module).await.is_err() {
                self.scene.fault("a module gets no last PUBACK");
            }
        }
        let (hub, _) = self.hub.as_ref().unwrap();
        while queued(hub) > 0 {
            if healed.elapsed() > DRAIN_LIMIT {
                let left = queued(hub);
                self.scene
                    .fault(format!("the queues did not drain: {left} wait"));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.drained = Some(healed.elapsed());
        self.scene.hub.send_replace(None);
        let (hub, _) = self.hub.take().unwrap();
        let code = hub.terminate();
        if code != Some(0) {
            self.scene.fault(format!("SIGTERM: exit code {code:?}"));
        }
        self.sink.kill();
        Ok(())
    }

    /// All counts; whether there is no fault.
    pub fn report(&self) -> Result<bool, String> {
        let sent = self.scene.sent();
        let entries = record::read(&self.sink.record).map_err(|error| error.to_string())?;
        let findings = check(&entries, &sent, WINDOW);
        let (memory, flat) = self.memory.judge();
        println!(
            "published {}, acknowledged {}, sent again by modules {}",
            sent.published, sent.acknowledged, sent.sent_again
        );
        println!("{findings}");
        let faults: Vec<_> = self.faults.iter().collect();
        let faults: Vec<_> = faults
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        println!(
            "faults: {}; hub killed {} times, sink {} times; connections of the way up {}",
            faults.join(", "),
            self.hub_kills,
            self.sink_kills,
            self.proxy.counts().connections()
        );
        if let Some(drained) = self.drained {
            println!(
                "drained {:.1} s after the last fault",
                drained.as_secs_f64()
            );
        }
        println!("{memory}{}", if flat { "" } else { ": NOT FLAT" });
        let all = sent.published == sent.acknowledged && findings.different == sent.published;
        if !all && self.drained.is_some() {
            println!("FAULT published, acknowledged and recorded differ");
        }
        Ok(all && flat && findings.faults() == 0 && self.scene.faults() == 0)
    }
}
