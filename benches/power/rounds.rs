//! The rounds of a run: traffic, a cut, the way back, and what was found then.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use edgehub::client::{Client, ClientError};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::disk::{Cut, Disk, Restored};
use crate::hub::{Home, Process};
use crate::ledger::Ledger;
use crate::load::{Consumer, Pace, Publisher, Shared};
use crate::report::{Report, Round};
use crate::rng::Rng;
use crate::stop::{self, Failure};
use crate::{Options, Sync, common, mount};

/// Cuts in a row while the hub starts.
const AT_START_MAX: u64 = 2;
const PUBLISHERS: usize = 4;
const CONSUMERS: usize = 2;
/// The consumer that is there now and then; the other one comes to drain only.
const VISITOR: usize = 1;
/// How long publishers may take to get everything acknowledged, and consumers to take it.
const LIMIT: Duration = Duration::from_secs(15);
/// So many messages are drained after a cut in any case.
const BACKLOG_MAX: u64 = 15_000;

pub struct Run<'a> {
    runtime: &'a Runtime,
    disk: &'a mut dyn Disk,
    home: Home,
    rng: Rng,
    ledger: Shared,
    sync: Sync,
    /// The greatest age that a lost message may have; `None`: any.
    bound: Option<Duration>,
    keep: Option<PathBuf>,
}

/// A hub that serves, and its publishers, with everything acknowledged.
struct Serving {
    process: Process,
    address: SocketAddr,
    publishers: Vec<(Publisher, Client)>,
}

impl<'a> Run<'a> {
    pub fn new(options: &Options, seed: u64, runtime: &'a Runtime, disk: &'a mut dyn Disk) -> Self {
        let data = data(disk.folder());
        let names = |letter: char, count: usize| -> Vec<String> {
            (0..count)
                .map(|number| format!("{letter}{number}"))
                .collect()
        };
        let (publishers, consumers) = (names('p', PUBLISHERS), names('c', CONSUMERS));
        Self {
            runtime,
            home: Home::new(&data, &store(options), &publishers, &consumers),
            disk,
            rng: Rng::new(seed),
            ledger: Shared::new(Ledger::new(seed, PUBLISHERS, CONSUMERS)),
            sync: options.sync,
            bound: options.bound(),
            keep: options.keep.clone(),
        }
    }

    pub fn log(&self) -> String {
        self.home.log()
    }

    /// Makes so many cuts, unless something ends the run before.
    pub fn cuts(&mut self, count: u64, report: &mut Report) -> Result<(), Failure> {
        let mut ended = self.try_cuts(count, report);
        if let Err(Failure::Hub(message)) = &ended
            && let Err(error) = self.disk.check()
        {
            // No hub can do without a disk.
            ended = Err(Failure::System(format!("{error} ({message})")));
        }
        let ledger = self.ledger.lock();
        report.progress(ledger.counts, &ledger.told);
        ended
    }

    fn try_cuts(&mut self, count: u64, report: &mut Report) -> Result<(), Failure> {
        let mut serving = self.serve()?;
        for number in 1..=count {
            let started = Instant::now();
            let (mut cut, mut restored) = self.traffic_until_cut(serving)?;
            let mut at_start = 0;
            // Now and then the power goes again while the hub recovers.
            while at_start < AT_START_MAX && self.rng.percent(15) {
                let (again, back) = self.cut_at_start()?;
                at_start += 1;
                cut.when.push_str(", at start");
                cut.unflushed += again.unflushed;
                cut.flushes = again.flushes;
                restored.fate.kept += back.fate.kept;
                restored.fate.lost += back.fate.lost;
                restored.fate.garbage += back.fate.garbage;
                restored.repaired = restored.repaired.or(back.repaired);
            }
            if let Some(folder) = &self.keep {
                keep(&data(self.disk.folder()), folder)?;
            }
            serving = self.serve()?;
            self.drain_maybe(serving.address, number == count)?;
            let ledger = self.ledger.lock();
            report.round(Round {
                number,
                at_start,
                cut,
                restored,
                counts: ledger.counts,
                told: &ledger.told,
                took: started.elapsed(),
            });
            if self.keep.is_some() && report.is_broken() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Starts the hub; everything that publishers have sent is acknowledged then.
    fn serve(&mut self) -> Result<Serving, Failure> {
        let (process, address) = self.home.start()?;
        self.ledger.lock().started();
        let mut tasks = Vec::new();
        for number in 0..PUBLISHERS {
            let name = format!("p{number}");
            let publisher = Publisher {
                number,
                topic: common::output(&name, "out", ""),
                hello: self.home.hello(&name)?,
                ledger: self.ledger.clone(),
            };
            tasks.push(self.runtime.spawn(async move {
                let client = publisher.settle(address).await?;
                Ok::<_, ClientError>((publisher, client))
            }));
        }
        let mut publishers = Vec::new();
        for task in tasks {
            publishers.push(self.wait("publisher", task)?);
        }
        Ok(Serving {
            process,
            address,
            publishers,
        })
    }

    /// Waits for a task within the limit, and as long as nothing stops the run.
    fn wait<T>(&self, who: &str, task: JoinHandle<Result<T, ClientError>>) -> Result<T, Failure> {
        let abort = task.abort_handle();
        let ended = self.runtime.block_on(async {
            tokio::select! {
                ended = tokio::time::timeout(LIMIT, task) => Ok(ended),
                failure = stop::stopped() => Err(failure),
            }
        });
        abort.abort();
        match ended? {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(error))) => Err(Failure::Hub(format!("{who}: {error}"))),
            Ok(Err(error)) => Err(Failure::System(format!("{who}: {error}"))),
            Err(_) => Err(Failure::Hub(format!("{who} has to wait too long"))),
        }
    }

    /// Traffic for a random time, then no power.
    fn traffic_until_cut(&mut self, serving: Serving) -> Result<(Cut, Restored), Failure> {
        let Serving {
            mut process,
            address,
            publishers,
        } = serving;
        let pace = Pace::any(&mut self.rng);
        let mut tasks: Vec<JoinHandle<ClientError>> = Vec::new();
        for (publisher, client) in publishers {
            let task = async move { publisher.run(client, pace).await };
            tasks.push(self.runtime.spawn(task));
        }
        if self.rng.percent(50) {
            let consumer = self.consumer(VISITOR)?;
            let task = async move { consumer.run(address).await };
            tasks.push(self.runtime.spawn(task));
        }
        stop::sleep(Duration::from_millis(20 + self.rng.below(1_200)))?;
        let is_alive = process.is_running() && !tasks.iter().any(JoinHandle::is_finished);
        if !is_alive {
            let ended = tasks.into_iter().find(JoinHandle::is_finished);
            let why = ended.and_then(|task| self.runtime.block_on(task).ok());
            let why = why.map_or_else(String::new, |error| error.to_string());
            return Err(Failure::Hub(format!("gave up before the cut: {why}")));
        }
        let cut = self.disk.cut(&mut self.rng)?;
        self.ledger.lock().cut(cut.at);
        // What the hub still acknowledges counts.
        stop::sleep(Duration::from_millis(self.rng.below(20)))?;
        process.kill();
        for task in tasks {
            let abort = task.abort_handle();
            let ended = async { tokio::time::timeout(LIMIT, task).await };
            let ended = self.runtime.block_on(ended);
            abort.abort();
            ended
                .map_err(|_| "a client does not end with the hub".to_owned())?
                .map_err(|error| error.to_string())?;
        }
        stop::check()?;
        Ok((cut, self.disk.restore()?))
    }

    fn cut_at_start(&mut self) -> Result<(Cut, Restored), Failure> {
        let process = self.home.spawn()?;
        stop::sleep(Duration::from_millis(self.rng.below(30)))?;
        let cut = self.disk.cut(&mut self.rng)?;
        self.ledger.lock().cut(cut.at);
        process.kill();
        Ok((cut, self.disk.restore()?))
    }

    /// Two times out of three, and whenever it matters, each consumer takes everything.
    fn drain_maybe(&mut self, address: SocketAddr, is_last: bool) -> Result<(), Failure> {
        let backlog = self.ledger.lock().backlog();
        let must = is_last || self.sync != Sync::Always || backlog > BACKLOG_MAX;
        if !must && self.rng.percent(33) {
            return Ok(());
        }
        for number in 0..CONSUMERS {
            let consumer = self.consumer(number)?;
            let task = self
                .runtime
                .spawn(async move { consumer.drain(address).await });
            self.wait("consumer", task)?;
            self.ledger.lock().settle(number, self.bound);
        }
        Ok(())
    }

    fn consumer(&self, number: usize) -> Result<Consumer, Failure> {
        let module = format!("c{number}");
        Ok(Consumer {
            number,
            hello: self.home.hello(&module)?,
            module,
            ledger: self.ledger.clone(),
        })
    }
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// Many small segments: their ends are where it gets difficult.
fn store(options: &Options) -> String {
    let sync = match options.sync {
        Sync::Always => "sync = \"always\"".to_owned(),
        Sync::Interval => format!("sync = \"interval\"\ninterval_ms = {}", options.interval_ms),
        Sync::Os => "sync = \"os\"".to_owned(),
    };
    format!("{sync}\nsegment_bytes = \"4MiB\"\nmin_free_bytes = \"16MiB\"\n")
}

/// Replaces what is in `to` by a copy of the hub's data.
fn keep(data: &Path, to: &Path) -> Result<(), String> {
    let _ = fs::remove_dir_all(to);
    mount::must("cp", &["-a", mount::text(data), mount::text(to)]).map(drop)
}
