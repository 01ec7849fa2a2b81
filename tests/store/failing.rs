//! A run of operations in which one call of the disk fails, or some in a row, and then the power.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use bytes::Bytes;
use edgehub::store::{Delivery, Loss, LossReason, Step};

use super::rig::{ENDPOINTS, LANES, LaneKey, Rig, Target, WALL_MS, lane_of, options};
use super::sim_disk::{CrashMode, FaultKind, Faults, Rng, SimDisk};

const SEGMENT_BYTES: u64 = 128 * 1024;
/// Beyond the time after which a store that failed tries again.
const RETRY_MS: u64 = 11_000;
/// Writes that are refused in a row before time is let pass.
const BLOCKED_MAX: u32 = 6;

/// What fails.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The mutating call, counted from the opening of the store.
    pub at: u64,
    pub kind: FaultKind,
    pub count: u64,
}

/// What a run saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub runs: u64,
    pub calls: u64,
    pub appended: u64,
    pub refused: u64,
    pub delivered: u64,
    pub blocked: u64,
    pub errors: u64,
}

impl Seen {
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.calls += other.calls;
        self.appended += other.appended;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.blocked += other.blocked;
        self.errors += other.errors;
    }
}

#[derive(Debug, Clone)]
struct Known {
    payload: Bytes,
    kept: bool,
    acknowledged: bool,
}

struct Run {
    rng: Rng,
    rig: Rig,
    model: BTreeMap<LaneKey, BTreeMap<u64, Known>>,
    /// Everything up to here was looked at.
    noted: u64,
    blocked: u32,
    seen: Seen,
}

/// Runs so many operations with a fault in them, cuts the power and opens the store again.
pub fn run(seed: u64, operations: u64, fault: Option<Fault>) -> Result<Seen, String> {
    let disk = SimDisk::new(seed, Faults::default());
    let time = (1000, WALL_MS + 1000);
    let opened = Rig::open(disk.mount(), options(SEGMENT_BYTES), time);
    let (rig, _) = opened.map_err(|error| error.to_string())?;
    let mut run = Run {
        rng: Rng::new(seed),
        rig,
        model: BTreeMap::new(),
        noted: 0,
        blocked: 0,
        seen: Seen::default(),
    };
    let calls = disk.calls();
    if let Some(fault) = fault {
        disk.set_faults(Faults {
            fail_call: Some((fault.at, fault.kind)),
            fail_count: fault.count,
            ..Faults::default()
        });
    }
    for operation in 0..operations {
        run.step(operation)?;
    }
    run.seen.calls = disk.calls() - calls;
    run.goes_on()?;
    let counters = run.rig.store.counters().unwrap();
    run.seen.errors = counters.errors.load(std::sync::atomic::Ordering::Relaxed);
    disk.set_faults(Faults::default());
    run.reopen(&disk)?;
    run.seen.runs = 1;
    Ok(run.seen)
}

impl Run {
    fn step(&mut self, operation: u64) -> Result<(), String> {
        self.rig.now_ms += 20;
        if operation % 50 == 49 {
            let mut losses = Vec::new();
            self.rig.tick(&mut losses);
            self.check(&losses)?;
        }
        match self.rng.below(20) {
            0..9 => {
                self.append();
            }
            9..16 => self.write(),
            16..19 => return self.receive(),
            _ => {
                self.rig.store.keep_step(self.rig.now_ms, true);
            }
        }
        Ok(())
    }

    fn append(&mut self) -> Option<u64> {
        let mut last = None;
        for _ in 0..1 + self.rng.below(8) {
            let large = self.rng.below(40) == 0;
            let size = if large { 20_000 } else { self.rng.below(800) };
            let mut payload = vec![0; size as usize];
            self.rng.fill(&mut payload);
            let payload = Bytes::from(payload);
            let first = self.rng.below(ENDPOINTS as u64) as usize;
            let both = [first, (first + 1) % ENDPOINTS];
            let copies = 1 + usize::from(self.rng.below(4) == 0);
            let lane = self.rng.below(LANES.len() as u64) as usize;
            let target = Target {
                endpoints: &both[..copies],
                lane,
                ttl_ms: None,
            };
            last = self.rig.append(target, &payload);
            let Some(seq) = last else {
                self.seen.refused += 1;
                break;
            };
            self.seen.appended += 1;
            for at in &both[..copies] {
                let known = Known {
                    payload: payload.clone(),
                    kept: false,
                    acknowledged: false,
                };
                let lane = self.model.entry((*at, lane)).or_default();
                lane.insert(seq, known);
            }
        }
        last
    }

    fn write(&mut self) {
        if let Step::Blocked { until_ms } = self.rig.write() {
            self.seen.blocked += 1;
            self.blocked += 1;
            if self.blocked > BLOCKED_MAX {
                self.rig.now_ms = self.rig.now_ms.max(until_ms + 1);
                self.blocked = 0;
            }
        }
        self.note_kept();
    }

    fn note_kept(&mut self) {
        let kept = self.rig.store.kept();
        for lane in self.model.values_mut() {
            let new = lane.range_mut(self.noted..=kept);
            new.for_each(|(_, known)| known.kept = true);
        }
        self.noted = kept;
    }

    fn receive(&mut self) -> Result<(), String> {
        let at = self.rng.below(ENDPOINTS as u64) as usize;
        let mut losses = Vec::new();
        let fetched = self.rig.fetch(at, 12, &mut losses);
        for delivery in fetched {
            self.received(at, &delivery)?;
            if self.rng.below(4) > 0 {
                self.rig.acknowledge(at, &delivery);
                let lane = self.model.get_mut(&(at, lane_of(delivery.priority)));
                lane.unwrap().get_mut(&delivery.seq).unwrap().acknowledged = true;
            }
        }
        self.rig.store.keep_step(self.rig.now_ms, false);
        self.check(&losses)
    }

    fn received(&mut self, at: usize, delivery: &Delivery) -> Result<(), String> {
        let lane = (at, lane_of(delivery.priority));
        let known = self.model.get(&lane).and_then(|m| m.get(&delivery.seq));
        let known = known.ok_or_else(|| format!("{lane:?} seq {} is unknown", delivery.seq))?;
        if known.payload != delivery.message.payload {
            return Err(format!("{lane:?} seq {}: wrong bytes", delivery.seq));
        }
        self.seen.delivered += 1;
        Ok(())
    }

    fn check(&self, losses: &[Loss]) -> Result<(), String> {
        let damaged = losses.iter().find(|l| l.reason == LossReason::Damaged);
        damaged.map_or(Ok(()), |loss| Err(format!("{loss:?}")))
    }

    /// Once the disk works again, messages are taken and kept.
    fn goes_on(&mut self) -> Result<(), String> {
        let mut losses = Vec::new();
        for _ in 0..4 {
            self.rig.now_ms += RETRY_MS;
            self.rig.tick(&mut losses);
            self.write();
        }
        let seq = self.append().ok_or("no room though the disk works")?;
        for _ in 0..4 {
            self.write();
        }
        if self.rig.store.kept() < seq {
            return Err(format!("seq {seq} is not kept though the disk works"));
        }
        if self.rig.store.troubles().0 {
            return Err("counts as failed though the disk works".to_owned());
        }
        for at in 0..ENDPOINTS {
            for delivery in self.rig.fetch(at, 20, &mut losses) {
                self.received(at, &delivery)?;
            }
            self.rig.store.keep_step(self.rig.now_ms, false);
        }
        self.check(&losses)
    }

    /// After a power cut, everything that was kept and not acknowledged comes, in order.
    fn reopen(&mut self, disk: &SimDisk) -> Result<(), String> {
        disk.crash(CrashMode::Power { garbage: true });
        let now_ms = self.rig.now_ms + 1000;
        let time = (now_ms, WALL_MS + now_ms);
        let opened = Rig::open(disk.mount(), options(SEGMENT_BYTES), time);
        let (rig, opened) = opened.map_err(|error| format!("open: {error}"))?;
        self.rig = rig;
        if !opened.lost.is_empty() {
            return Err(format!("{opened:?}"));
        }
        let mut losses = Vec::new();
        let mut last: BTreeMap<LaneKey, u64> = BTreeMap::new();
        for (at, delivery) in self.rig.drain(&mut losses)? {
            self.received(at, &delivery)?;
            let lane = (at, lane_of(delivery.priority));
            let before = last.insert(lane, delivery.seq).unwrap_or(0);
            if before >= delivery.seq {
                return Err(format!("{lane:?} seq {} after {before}", delivery.seq));
            }
            let known = self.model.get_mut(&lane).unwrap();
            known.get_mut(&delivery.seq).unwrap().acknowledged = true;
        }
        self.check(&losses)?;
        for (lane, messages) in &self.model {
            let lost = |known: &Known| known.kept && !known.acknowledged;
            if let Some((seq, _)) = messages.iter().find(|(_, known)| lost(known)) {
                return Err(format!("{lane:?} seq {seq} was kept and is lost"));
            }
        }
        Ok(())
    }
}
