//! A random life of a store on the simulated disk, compared with a model: what was kept and not
//! acknowledged is delivered, in order, byte for byte, whatever happened in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use edgehub::mailbox::Mailbox;
use edgehub::store::{Bounds, Delivery, LossReason, Options, Queue, Step, Store, SyncPolicy};

use super::rig::{
    ENDPOINTS, LANES, LaneKey, Sender, Target, WALL_MS, endpoint, lane_of, options, priority,
};
use super::sim_disk::{Calls, CrashMode, FaultKind, Faults, Rng, SimDisk};

const SEGMENT_BYTES: u64 = 128 * 1024;

/// What a schedule may do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub sync: SyncPolicy,
    pub steps: u64,
    pub power: bool,
    pub garbage: bool,
    pub faults: bool,
    pub ttl: bool,
    pub drop_oldest: bool,
    pub crash_every: u64,
}

impl Plan {
    /// The plan that belongs to a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5EED);
        let sync = match rng.below(6) {
            0 => SyncPolicy::Os,
            1 => SyncPolicy::Interval { ms: 200 },
            _ => SyncPolicy::Always,
        };
        let always = sync == SyncPolicy::Always;
        Self {
            sync,
            steps: 60 + rng.below(240),
            power: always && rng.below(4) > 0,
            garbage: rng.coin(),
            faults: always && rng.below(3) == 0,
            ttl: rng.below(4) == 0,
            drop_oldest: rng.below(8) == 0,
            crash_every: 20 + rng.below(100),
        }
    }
}

#[derive(Debug, Default, Clone)]
struct Known {
    payload: Bytes,
    expires_ms: Option<u64>,
    kept: bool,
    /// It may have gone: given up on purpose, and said so.
    excused: bool,
    acknowledged: bool,
    received: bool,
}

/// What a schedule saw.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub appended: u64,
    pub refused: u64,
    pub delivered: u64,
    pub again: u64,
    pub crashes: u64,
    pub faults: u64,
    pub losses: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.appended += other.appended;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.again += other.again;
        self.crashes += other.crashes;
        self.faults += other.faults;
        self.losses += other.losses;
    }
}

/// A store, its disk, and what should be in it.
pub struct Life {
    seed: u64,
    plan: Plan,
    rng: Rng,
    pub disk: Arc<SimDisk>,
    store: Option<Store>,
    queues: Vec<Arc<Queue>>,
    reader: Arc<Mailbox>,
    sender: Sender,
    now_ms: u64,
    model: BTreeMap<LaneKey, BTreeMap<u64, Known>>,
    /// Seqs of this opening that are not known to be kept, with their lanes.
    unkept: BTreeMap<u64, Vec<LaneKey>>,
    in_flight: Vec<(LaneKey, u64)>,
    last: BTreeMap<LaneKey, u64>,
    next_id: u64,
    pub seen: Seen,
}

impl Life {
    pub fn new(seed: u64, plan: Plan) -> Self {
        let disk = SimDisk::new(seed, Faults::default());
        let mut life = Self {
            seed,
            plan,
            rng: Rng::new(seed),
            disk,
            store: None,
            queues: Vec::new(),
            reader: Arc::default(),
            sender: Sender::new(),
            now_ms: 1000,
            model: BTreeMap::new(),
            unkept: BTreeMap::new(),
            in_flight: Vec::new(),
            last: BTreeMap::new(),
            next_id: 1,
            seen: Seen::default(),
        };
        life.open();
        life
    }

    fn options(&self) -> Options {
        Options {
            sync: self.plan.sync,
            max_bytes: 12 * SEGMENT_BYTES,
            message_bytes_max: 40 * 1024,
            drop_oldest: self.plan.drop_oldest,
            ..options(SEGMENT_BYTES)
        }
    }

    fn open(&mut self) {
        let bounds = Bounds {
            max_bytes: 1 << 30,
            endpoint_max_bytes: 1 << 30,
            endpoint_max_messages: 1 << 30,
            drop_oldest: false,
        };
        let time = (self.now_ms, WALL_MS + self.now_ms);
        let opened = Store::open(self.disk.mount(), self.options(), bounds, self.seed, time);
        let (store, opened) = opened.unwrap_or_else(|e| panic!("seed {}: open: {e}", self.seed));
        assert!(
            opened.lost.is_empty(),
            "seed {}: {:?}",
            self.seed,
            opened.lost
        );
        self.queues = (0..ENDPOINTS).map(|n| store.queue(&endpoint(n))).collect();
        self.store = Some(store);
        self.in_flight.clear();
        self.last.clear();
        while self.store().keep_step(self.now_ms, false) {}
        self.store().write_step(self.now_ms);
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Runs the whole schedule, and drains at the end.
    pub fn run(&mut self) {
        for _ in 0..self.plan.steps {
            self.step();
        }
        self.disk.set_faults(Faults::default());
        self.drain();
    }

    fn trace(&self, what: &str) {
        if std::env::var("TRACE").is_ok() {
            let rows: Vec<_> = self.store().status();
            let rows: Vec<_> = rows
                .iter()
                .filter(|r| r.messages > 0)
                .map(|r| {
                    format!(
                        "{}/{}: {} ({})",
                        r.endpoint, r.priority, r.messages, r.in_flight
                    )
                })
                .collect();
            eprintln!(
                "{what}: kept {} {:?} usage {:?} troubles {:?} {rows:?}",
                self.store().kept(),
                self.seen,
                self.store().disk_usage(),
                self.store().troubles()
            );
        }
    }

    pub fn step(&mut self) {
        match self.rng.below(100) {
            0..35 => self.append(),
            35..55 => self.write(),
            55..62 => {
                let tick = self.rng.below(3) == 0;
                self.store().keep_step(self.now_ms, tick);
            }
            62..77 => self.fetch(),
            77..90 => self.acknowledge(),
            90..92 => self.release(),
            92..95 => self.pass_time(),
            95 if self.plan.faults => self.fault(),
            _ => {
                if self.rng.below(self.plan.crash_every) < 5 {
                    self.crash();
                }
            }
        }
    }

    fn append(&mut self) {
        let burst = 1 + self.rng.below(30);
        for _ in 0..burst {
            let large = self.rng.below(60) == 0;
            let size = if large { 20_000 } else { self.rng.below(1500) };
            let id = self.next_id;
            self.next_id += 1;
            let mut payload = vec![0; 8 + size as usize];
            self.rng.fill(&mut payload[8..]);
            payload[..8].copy_from_slice(&id.to_le_bytes());
            let payload = Bytes::from(payload);
            let first = self.rng.below(ENDPOINTS as u64) as usize;
            let fan_out = if self.rng.below(4) == 0 { 3 } else { 1 };
            let mut targets: Vec<_> = (0..fan_out).map(|n| (first + n) % ENDPOINTS).collect();
            targets.sort_by_key(|at| Arc::as_ptr(&self.queues[*at]));
            let lane = self.rng.below(LANES.len() as u64) as usize;
            let ttl = self.plan.ttl && self.rng.coin();
            let ttl_ms = ttl.then(|| 1000 * (1 + self.rng.below(5)));
            let target = Target {
                endpoints: &targets,
                lane,
                ttl_ms,
            };
            let at = (self.store(), &*self.queues);
            let Some(seq) = self.sender.append(at, target, &payload, self.now_ms) else {
                self.seen.refused += 1;
                return;
            };
            self.seen.appended += 1;
            let known = Known {
                payload,
                expires_ms: ttl_ms.map(|ttl| self.now_ms + ttl),
                ..Known::default()
            };
            for at in &targets {
                let lane = self.model.entry((*at, lane)).or_default();
                assert!(
                    !lane.contains_key(&seq),
                    "seed {}: seq {seq} twice",
                    self.seed
                );
                lane.insert(seq, known.clone());
            }
            let lanes = targets.iter().map(|at| (*at, lane)).collect();
            self.unkept.insert(seq, lanes);
        }
    }

    fn write(&mut self) {
        let step = self.store().write_step(self.now_ms);
        if matches!(step, Step::Blocked { .. }) {
            self.store().keep_step(self.now_ms, true);
        }
        self.note_kept();
    }

    fn note_kept(&mut self) {
        let kept = self.store().kept();
        let rest = self.unkept.split_off(&(kept + 1));
        for (seq, lanes) in std::mem::replace(&mut self.unkept, rest) {
            for lane in lanes {
                self.known(lane, seq).kept = true;
            }
        }
    }

    fn known(&mut self, lane: LaneKey, seq: u64) -> &mut Known {
        let seed = self.seed;
        let lane = self.model.entry(lane).or_default();
        lane.get_mut(&seq)
            .unwrap_or_else(|| panic!("seed {seed}: seq {seq} was never appended"))
    }

    fn fetch(&mut self) {
        let at = self.rng.below(ENDPOINTS as u64) as usize;
        let room = 1 + self.rng.below(40) as usize;
        self.fetch_from(at, room);
        if self.rng.coin() {
            self.store().keep_step(self.now_ms, false);
        }
    }

    fn fetch_from(&mut self, at: usize, room: usize) -> usize {
        let (mut out, mut losses) = (Vec::new(), Vec::new());
        let queue = Arc::clone(&self.queues[at]);
        let into = (&mut out, &mut losses);
        let room = (room, 1 << 20);
        self.store()
            .fetch(&queue, &self.reader, room, self.now_ms, into);
        self.seen.losses += losses.len() as u64;
        let count = out.len();
        for delivery in out {
            self.received(at, &delivery);
        }
        count
    }

    fn received(&mut self, at: usize, delivery: &Delivery) {
        let seed = self.seed;
        let lane = (at, lane_of(delivery.priority));
        let seq = delivery.seq;
        let last = self.last.insert(lane, seq).unwrap_or(0);
        assert!(last < seq, "seed {seed}: {lane:?} seq {seq} after {last}");
        let known = self.known(lane, seq);
        assert!(
            known.payload == delivery.message.payload,
            "seed {seed}: {lane:?} seq {seq}: wrong bytes"
        );
        let again = std::mem::replace(&mut known.received, true);
        self.seen.delivered += 1;
        self.seen.again += u64::from(again);
        self.in_flight.push((lane, seq));
    }

    fn acknowledge(&mut self) {
        for _ in 0..1 + self.rng.below(40) {
            if self.in_flight.is_empty() {
                return;
            }
            let in_order = self.rng.below(4) > 0;
            let at = if in_order {
                0
            } else {
                self.rng.below(self.in_flight.len() as u64) as usize
            };
            self.acknowledge_at(at);
        }
    }

    fn acknowledge_at(&mut self, at: usize) {
        let (lane, seq) = self.in_flight.remove(at);
        let queue = Arc::clone(&self.queues[lane.0]);
        self.store().acknowledge(&queue, priority(lane.1), seq);
        self.known(lane, seq).acknowledged = true;
    }

    /// The reader goes away: all of its messages come again.
    fn release(&mut self) {
        let at = self.rng.below(ENDPOINTS as u64) as usize;
        let queue = Arc::clone(&self.queues[at]);
        for lane in 0..LANES.len() {
            let own: Vec<u64> = self
                .in_flight
                .extract_if(.., |(key, _)| *key == (at, lane))
                .map(|(_, seq)| seq)
                .collect();
            self.store().release(&queue, priority(lane), &own);
            self.last.remove(&(at, lane));
        }
        self.store().detach(&queue, &self.reader);
    }

    fn pass_time(&mut self) {
        self.now_ms += self.rng.below(3000);
        let mut losses = Vec::new();
        let time = (self.now_ms, WALL_MS + self.now_ms);
        self.store().sweep(time, &mut losses);
        self.write();
        self.store().keep_step(self.now_ms, true);
        self.store().sweep(time, &mut losses);
        self.count(&losses);
    }

    fn count(&mut self, losses: &[edgehub::store::Loss]) {
        for loss in losses {
            self.seen.losses += loss.messages as u64;
            assert!(
                loss.reason != LossReason::Damaged,
                "seed {}: {loss:?}",
                self.seed
            );
            if loss.reason == LossReason::DroppedOldest {
                for lane in self.model.values_mut() {
                    let range = loss.seqs.0..=loss.seqs.1;
                    lane.range_mut(range)
                        .for_each(|(_, known)| known.excused = true);
                }
            }
        }
    }

    fn fault(&mut self) {
        self.seen.faults += 1;
        let kind = if self.rng.coin() {
            FaultKind::Io
        } else {
            FaultKind::NoSpace
        };
        let faults = Faults {
            fail_call: Some((self.rng.below(12), kind)),
            fail_count: 1 + self.rng.below(4),
            fail_calls: Calls::ALL,
            ..Faults::default()
        };
        self.disk.set_faults(faults);
    }

    fn crash(&mut self) {
        self.seen.crashes += 1;
        if self.rng.coin() {
            // In the middle of what the next steps do.
            let faults = Faults {
                crash_at: Some(self.rng.below(6)),
                ..Faults::default()
            };
            self.disk.set_faults(faults);
            self.append();
            for _ in 0..3 {
                self.store().write_step(self.now_ms);
                self.note_kept();
                self.store().keep_step(self.now_ms, true);
            }
        }
        let clean = self.rng.below(4) == 0 && !self.disk.power_is_off();
        if clean {
            self.disk.set_faults(Faults::default());
            self.now_ms += 20_000;
            self.store().end(self.now_ms);
            self.note_kept();
        }
        // What was given up is known to those who look, though nobody got to tell them.
        let mut losses = Vec::new();
        let time = (self.now_ms, WALL_MS + self.now_ms);
        self.store().sweep(time, &mut losses);
        // With the power off nothing can be read; that is no damage.
        losses.retain(|loss| loss.reason != LossReason::Damaged || !self.disk.power_is_off());
        self.count(&losses);
        self.store = None;
        self.disk.set_faults(Faults::default());
        self.disk.crash(if self.plan.power {
            CrashMode::Power {
                garbage: self.plan.garbage,
            }
        } else {
            CrashMode::Kill
        });
        self.now_ms += self.rng.below(2000);
        let unkept = std::mem::take(&mut self.unkept);
        self.open();
        self.trace(&format!("opened, clean {clean}"));
        self.check_prefix(unkept);
        self.trace("checked");
    }

    /// Of what was not kept, a beginning survives and nothing behind it: whoever sends the rest
    /// again keeps the order. It is found by draining a copy of the store.
    fn check_prefix(&mut self, unkept: BTreeMap<u64, Vec<LaneKey>>) {
        let found = self.look();
        let mut gone = None;
        for (seq, lanes) in unkept {
            for lane in lanes {
                let is_there = found.contains(&(lane, seq));
                let known = self.known(lane, seq).clone();
                if is_there {
                    self.known(lane, seq).kept = true;
                    assert!(
                        gone.is_none(),
                        "seed {}: seq {seq} survived though {gone:?} did not",
                        self.seed
                    );
                    continue;
                }
                // Its seq may be given again.
                self.model.entry(lane).or_default().remove(&seq);
                if !known.acknowledged && known.expires_ms.is_none() && !known.excused {
                    gone = Some(seq);
                }
            }
        }
    }

    /// Everything that waits, without taking it: fetched and released.
    fn look(&mut self) -> BTreeSet<(LaneKey, u64)> {
        let mut found = BTreeSet::new();
        for at in 0..ENDPOINTS {
            self.fetch_all(at);
            found.extend(
                self.in_flight
                    .iter()
                    .filter(|((of, _), _)| *of == at)
                    .copied(),
            );
            let queue = Arc::clone(&self.queues[at]);
            for lane in 0..LANES.len() {
                let own = |(key, _): &mut (LaneKey, u64)| *key == (at, lane);
                let seqs: Vec<u64> = self.in_flight.extract_if(.., own).map(|f| f.1).collect();
                self.store().release(&queue, priority(lane), &seqs);
                self.last.remove(&(at, lane));
            }
            self.store().detach(&queue, &self.reader);
        }
        let mut losses = Vec::new();
        let time = (self.now_ms, WALL_MS + self.now_ms);
        self.store().sweep(time, &mut losses);
        self.count(&losses);
        found
    }

    fn fetch_all(&mut self, at: usize) {
        let mut idle = 0;
        while idle < 4 {
            let fetched = self.fetch_from(at, 1000);
            self.store().write_step(self.now_ms);
            self.note_kept();
            while self.store().keep_step(self.now_ms, false) {}
            idle = if fetched == 0 { idle + 1 } else { 0 };
        }
    }

    /// Receives and acknowledges everything; whatever was kept has to come.
    pub fn drain(&mut self) {
        self.now_ms += 20_000;
        let seed = self.seed;
        self.settle();
        self.trace("drain");
        // What waits for room comes when there is some.
        for _ in 0..4 {
            for at in 0..ENDPOINTS {
                self.fetch_all(at);
                while let Some(own) = self.in_flight.iter().position(|((of, _), _)| *of == at) {
                    self.acknowledge_at(own);
                }
            }
            self.settle();
        }
        self.trace("drained");
        for (lane, messages) in &self.model {
            for (seq, known) in messages {
                let expired = known.expires_ms.is_some_and(|at| at <= self.now_ms + 2000);
                let excused = known.excused || expired || known.acknowledged || !known.kept;
                assert!(
                    excused,
                    "seed {seed}: {lane:?} seq {seq} was kept and is lost"
                );
            }
        }
        let waiting: usize = self.store().status().iter().map(|row| row.messages).sum();
        assert_eq!(waiting, 0, "seed {seed}: {:?}", self.store().status());
        self.space_comes_back();
    }

    fn settle(&mut self) {
        let mut losses = Vec::new();
        for _ in 0..4 {
            let time = (self.now_ms, WALL_MS + self.now_ms);
            self.store().sweep(time, &mut losses);
            self.store().write_step(self.now_ms);
            self.store().keep_step(self.now_ms, true);
        }
        self.note_kept();
        self.count(&losses);
    }

    /// Without messages, only the segment that is written and the spare ones are left.
    fn space_comes_back(&mut self) {
        for _ in 0..8 {
            self.now_ms += 1000;
            let time = (self.now_ms, WALL_MS + self.now_ms);
            self.store().sweep(time, &mut Vec::new());
            self.store().write_step(self.now_ms);
            self.store().keep_step(self.now_ms, true);
        }
        let (_, segments) = self.store().disk_usage();
        assert!(
            segments <= 1,
            "seed {}: {segments} segments left",
            self.seed
        );
    }
}
