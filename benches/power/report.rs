//! What a run says: a line for each cut, a summary, and whether a promise was broken.

use std::fmt::Display;
use std::time::Duration;

use crate::disk::{Cut, Restored};
use crate::ledger::Counts;
use crate::stop::Failure;
use crate::{Mode, Options, Sync};

/// What happened around one cut; counts are those of the whole run.
pub struct Round<'a> {
    pub number: u64,
    /// How often the power went again while the hub started.
    pub at_start: u64,
    pub cut: Cut,
    pub restored: Restored,
    pub counts: Counts,
    pub told: &'a [String],
    pub took: Duration,
}

pub struct Report {
    mode: Mode,
    sync: Sync,
    /// The greatest age that a lost message may have.
    bound: Option<Duration>,
    seed: u64,
    cuts: u64,
    repairs: u64,
    at_start: u64,
    unflushed: u64,
    flushes: u64,
    garbage: u64,
    counts: Counts,
    told: usize,
    slowest: Duration,
}

impl Report {
    pub fn new(options: &Options, seed: u64) -> Self {
        println!(
            "power cuts: mode {:?}, sync {:?}, seed {seed}",
            options.mode, options.sync
        );
        Self {
            mode: options.mode,
            sync: options.sync,
            bound: options.bound(),
            seed,
            cuts: 0,
            repairs: 0,
            at_start: 0,
            unflushed: 0,
            flushes: 0,
            garbage: 0,
            counts: Counts::default(),
            told: 0,
            slowest: Duration::ZERO,
        }
    }

    pub fn round(&mut self, round: Round<'_>) {
        let (before, now) = (self.counts, round.counts);
        let fate = round.restored.fate;
        let sectors = match self.mode {
            Mode::Shutdown => String::new(),
            Mode::Cuts | Mode::Garbage => format!(
                "sectors in flight {:>4} kept {:>4} lost {:>4} garbage {:>4} | ",
                round.cut.unflushed, fate.kept, fate.lost, fate.garbage
            ),
        };
        println!(
            "cut {:>4}  {:<20} {sectors}acknowledged {:>5} received {:>6} again {:>5} lost {:>5} \
             wrong {} out of order {} | {:.1} s",
            round.number,
            round.cut.when,
            now.acknowledged - before.acknowledged,
            now.received - before.received,
            now.again - before.again,
            now.lost - before.lost,
            now.wrong - before.wrong,
            disorder(&now) - disorder(&before),
            round.took.as_secs_f64(),
        );
        if let Some(wrong) = &round.restored.repaired {
            self.repairs += 1;
            println!("          the file system itself was damaged and repaired:\n{wrong}");
        }
        self.cuts = round.number;
        self.at_start += round.at_start;
        self.unflushed += round.cut.unflushed;
        self.flushes = round.cut.flushes;
        self.garbage += fate.garbage;
        self.slowest = self.slowest.max(round.took);
        self.progress(now, round.told);
    }

    /// The counts until now, and what went wrong in words.
    pub fn progress(&mut self, counts: Counts, told: &[String]) {
        for line in told.iter().skip(self.told) {
            println!("          {line}");
        }
        self.told = told.len();
        self.counts = counts;
    }

    /// Whether nothing was found out.
    pub fn is_empty(&self) -> bool {
        self.cuts == 0
    }

    /// Whether the hub broke a promise.
    pub fn is_broken(&self) -> bool {
        let counts = &self.counts;
        let lost = match self.sync {
            Sync::Always => counts.lost,
            Sync::Interval | Sync::Os => counts.lost_too_old,
        };
        lost + counts.wrong + disorder(counts) > 0
    }

    /// The end of the hub's log.
    pub fn log(&self, log: &str) {
        if !log.is_empty() {
            println!("--- the end of the hub's log ---\n{log}\n---");
        }
    }

    pub fn summary(&self, ended: &Result<(), Failure>) {
        let counts = &self.counts;
        println!(
            "\nmode {:?}, sync {:?}, seed {}",
            self.mode, self.sync, self.seed
        );
        row("cuts", self.cuts);
        row("  again while the hub started", self.at_start);
        row("published", counts.published);
        row("acknowledged", counts.acknowledged);
        row("received, by two consumers", counts.received);
        row("  of those again", counts.again);
        row("acknowledged and lost", counts.lost);
        if let Some(bound) = self.bound {
            row("  allowed age at the cut, ms", bound.as_millis());
        }
        row("  worst age at the cut, ms", counts.age_max.as_millis());
        row("  of those older than allowed", counts.lost_too_old);
        row("  came after all", counts.late);
        row(
            "not counted: acknowledged after a cut",
            counts.lost_unpowered,
        );
        row("wrong bytes, or never sent", counts.wrong);
        row("out of order, acknowledged", counts.reordered);
        row("out of order, not acknowledged at a cut", counts.overtaken);
        if self.mode != Mode::Shutdown {
            row("sectors in flight at cuts", self.unflushed);
            row("  garbage", self.garbage);
            row("flushes that reached the disk", self.flushes);
        }
        row("file system repairs", self.repairs);
        row(
            "slowest cut, s",
            format!("{:.1}", self.slowest.as_secs_f64()),
        );
        match ended {
            Ok(()) => {}
            Err(Failure::Interrupted) => println!("stopped by a signal"),
            Err(Failure::TimeIsUp) => println!("stopped by the time limit"),
            Err(Failure::System(message)) => println!("this machine: {message}"),
            Err(Failure::Hub(message)) => println!("BROKEN: the hub: {message}"),
        }
        if self.is_broken() {
            println!("BROKEN: see above");
        } else if ended.is_ok() {
            println!("ok");
        }
    }
}

fn row(name: &str, value: impl Display) {
    println!("{name:<44} {value:>12}");
}

/// Messages that came too late for their place.
fn disorder(counts: &Counts) -> u64 {
    counts.reordered + counts.overtaken + counts.late
}
