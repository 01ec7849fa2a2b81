//! A store that is complete on the simulated disk, what may be done to its files, and what has to
//! be left of it then.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use edgehub::store::frame::{HEADER_BYTES, LANE_BYTES, SYNC_WORD, read_u16, read_u32, read_u64};
use edgehub::store::{Delivery, Loss, LossReason, Opened, Options, Step};

use super::rig::{ENDPOINTS, LANES, LaneKey, Rig, Target, WALL_MS, endpoint, lane_of, options};
use super::sim_disk::{CrashMode, Faults, Rng, SimDisk, SimState};

const PAGE: u64 = 4096;
const DATA: u8 = 1;
const FRESH: &[u8] = b"after the damage";

/// How a built store came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// In good order.
    Closed,
    /// The process died.
    Killed,
    /// In good order, and its oldest segment is one that was repacked.
    Repacked,
}

impl Ended {
    /// Small segments, so that every bit of many can be tried; those that are repacked need room.
    pub fn segment_bytes(self) -> u64 {
        match self {
            Self::Closed | Self::Killed => 64 * 1024,
            Self::Repacked => 128 * 1024,
        }
    }
}

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    None,
    Flip { file: usize, bit: u64 },
    Zero { file: usize, at: u64, len: u64 },
    Delete { file: usize },
    Cut { file: usize, len: u64 },
}

/// A frame in a file.
#[derive(Debug, Clone)]
pub struct Frame {
    pub file: usize,
    pub bytes: Range<u64>,
    pub seq: u64,
    pub is_data: bool,
}

#[derive(Debug, Clone)]
struct Known {
    payload: Bytes,
    acknowledged: bool,
}

/// What a damaged store still gave.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Messages, each counted once, that were missing in some lane.
    pub missing: usize,
    /// Copies that were acknowledged before and came again.
    pub again: usize,
    /// Missing messages that nothing told of, where that is allowed.
    pub untold: usize,
    /// Something was reported though nothing was missing.
    pub false_alarm: bool,
}

/// Outcomes added up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Total {
    pub cases: u64,
    pub with_loss: u64,
    pub missing: u64,
    pub again: u64,
    pub untold: u64,
    pub false_alarms: u64,
}

impl Total {
    pub fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        self.with_loss += u64::from(outcome.missing > 0);
        self.missing += outcome.missing as u64;
        self.again += outcome.again as u64;
        self.untold += outcome.untold as u64;
        self.false_alarms += u64::from(outcome.false_alarm);
    }

    pub fn join(&mut self, other: Self) {
        self.cases += other.cases;
        self.with_loss += other.with_loss;
        self.missing += other.missing;
        self.again += other.again;
        self.untold += other.untold;
        self.false_alarms += other.false_alarms;
    }
}

type Model = BTreeMap<LaneKey, BTreeMap<u64, Known>>;

/// A complete store.
#[derive(Debug, Clone)]
pub struct Built {
    pub state: SimState,
    /// Names and sizes.
    pub files: Vec<(String, u64)>,
    pub frames: Vec<Frame>,
    ended: Ended,
    model: Model,
    now_ms: u64,
    /// The last batch: nothing behind it proves that it was kept.
    unproven: BTreeSet<u64>,
    /// Acknowledged copies that come again without any damage.
    again: BTreeSet<(LaneKey, u64)>,
}

/// Makes stores; see [`build`].
struct Builder {
    rng: Rng,
    rig: Rig,
    model: Model,
    /// Bytes of a segment.
    segment: u64,
}

impl Builder {
    fn append(&mut self) {
        for _ in 0..1 + self.rng.below(12) {
            let large = self.rng.below(60) == 0;
            let size = if large { 20_000 } else { self.rng.below(1200) };
            let mut payload = vec![0; size as usize];
            self.rng.fill(&mut payload);
            let payload = Bytes::from(payload);
            let first = self.rng.below(ENDPOINTS as u64) as usize;
            let fan_out = if self.rng.below(4) == 0 { 3 } else { 1 };
            let endpoints: Vec<_> = (0..fan_out).map(|n| (first + n) % ENDPOINTS).collect();
            let lane = self.rng.below(LANES.len() as u64) as usize;
            let target = Target {
                endpoints: &endpoints,
                lane,
                ttl_ms: None,
            };
            let Some(seq) = self.rig.append(target, &payload) else {
                break;
            };
            for at in endpoints {
                let known = Known {
                    payload: payload.clone(),
                    acknowledged: false,
                };
                self.model.entry((at, lane)).or_default().insert(seq, known);
            }
        }
        self.rig.now_ms += 60;
        self.write();
        self.rig.rest();
    }

    fn write(&mut self) {
        for _ in 0..4 {
            if matches!(self.rig.write(), Step::Idle) {
                break;
            }
        }
    }

    /// Fetches some of one endpoint's messages, and acknowledges about every second.
    fn receive(&mut self) {
        let at = self.rng.below(ENDPOINTS as u64) as usize;
        self.rig.rest();
        let mut losses = Vec::new();
        let fetched = self.rig.fetch(at, 6, &mut losses);
        assert!(losses.is_empty(), "{losses:?}");
        for delivery in fetched {
            if self.rng.coin() {
                self.acknowledge(at, &delivery);
            }
        }
    }

    /// Receives everything, and acknowledges it but for these.
    fn receive_all(&mut self, leaves: Range<u64>) {
        for at in 0..ENDPOINTS {
            let mut idle = 0;
            while idle < 3 {
                self.rig.rest();
                let fetched = self.rig.fetch(at, 1000, &mut Vec::new());
                idle = if fetched.is_empty() { idle + 1 } else { 0 };
                for delivery in fetched {
                    if !leaves.contains(&delivery.seq) {
                        self.acknowledge(at, &delivery);
                    }
                }
            }
        }
    }

    fn acknowledge(&mut self, at: usize, delivery: &Delivery) {
        self.rig.acknowledge(at, delivery);
        let lane = self.model.get_mut(&key(at, delivery)).unwrap();
        lane.get_mut(&delivery.seq).unwrap().acknowledged = true;
    }

    fn give_back(&mut self) {
        for _ in 0..3 {
            self.rig.now_ms += 1000;
            self.rig.tick(&mut Vec::new());
        }
    }

    fn segment_bytes(&self) -> u64 {
        self.rig.store.disk_usage().1 as u64 * self.segment
    }

    fn written_bytes(&self) -> u64 {
        let counters = self.rig.store.counters().unwrap();
        counters.written_bytes.load(Ordering::Relaxed)
    }
}

/// Builds a store of at least so many bytes of messages: a segment that was given up before, some
/// that are sealed, the one that is written, and spares.
pub fn build(seed: u64, bytes: u64, ended: Ended) -> Built {
    let segment = ended.segment_bytes();
    let disk = SimDisk::new(seed, Faults::default());
    let time = (1000, WALL_MS + 1000);
    let (rig, _) = Rig::open(disk.mount(), options(segment), time).unwrap();
    let mut builder = Builder {
        rng: Rng::new(seed),
        rig,
        model: Model::new(),
        segment,
    };
    let mut sealed_seq = 0;
    while builder.segment_bytes() < 3 * segment {
        sealed_seq = builder.rig.store.kept();
        builder.append();
    }
    if ended == Ended::Repacked {
        // The end of the last sealed one.
        builder.receive_all(sealed_seq - 12..sealed_seq + 1);
        let small = Options {
            max_bytes: 2 * segment,
            ..options(segment)
        };
        builder.rig.store.set_options(small);
        builder.give_back();
        builder.rig.store.set_options(options(segment));
        let counters = builder.rig.store.counters().unwrap();
        assert!(counters.repacked.load(Ordering::Relaxed) > 0);
    } else {
        builder.receive_all(0..0);
    }
    builder.give_back();
    while builder.segment_bytes() < bytes + segment {
        builder.append();
        if builder.rng.below(3) == 0 {
            builder.receive();
        }
    }
    // The newest one is full by half.
    let begun = builder.written_bytes();
    while builder.written_bytes() < begun + segment / 2 {
        builder.append();
        if builder.rng.coin() {
            builder.receive();
        }
    }
    finish(builder, &disk, ended)
}

fn finish(mut builder: Builder, disk: &SimDisk, ended: Ended) -> Built {
    let mut unproven = BTreeSet::new();
    if ended != Ended::Killed {
        builder.rig.store.end(builder.rig.now_ms);
    } else {
        let kept = builder.rig.store.kept();
        builder.append();
        unproven = (kept + 1..=builder.rig.store.kept()).collect();
        assert!(!unproven.is_empty());
    }
    let now_ms = builder.rig.now_ms + 1000;
    drop(builder.rig);
    disk.crash(CrashMode::Kill);
    let files = disk.files();
    let files: Vec<_> = files
        .into_iter()
        .map(|path| (path.clone(), disk.file_len(&path)))
        .collect();
    let frames = frames(disk, &files);
    let mut built = Built {
        state: disk.snapshot(),
        files,
        frames,
        ended,
        model: builder.model,
        now_ms,
        unproven,
        again: BTreeSet::new(),
    };
    built.again = built.undamaged();
    built
}

/// All frames in the files, as they should be.
fn frames(disk: &SimDisk, files: &[(String, u64)]) -> Vec<Frame> {
    let mut frames = Vec::new();
    for (file, (path, _)) in files.iter().enumerate() {
        let bytes = disk.read_file(path);
        if !path.starts_with("seg/") || !bytes.starts_with(b"EHUBSEG") {
            continue;
        }
        let (mut at, mut last) = (PAGE as usize, 0);
        while let Some((seq, length)) = frame_at(&bytes, at).or_else(|| {
            at = at.next_multiple_of(PAGE as usize);
            frame_at(&bytes, at)
        }) {
            // What an earlier use of the file left is older.
            if seq <= last {
                break;
            }
            frames.push(Frame {
                file,
                bytes: at as u64..(at + length) as u64,
                seq,
                is_data: bytes[at + 36] == DATA,
            });
            last = seq;
            at += length;
        }
    }
    frames
}

fn frame_at(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    if read_u32(bytes, at)? != SYNC_WORD {
        return None;
    }
    let lanes = usize::from(read_u16(bytes, at + 34)?);
    let body = read_u32(bytes, at + 16)? as usize;
    let length = HEADER_BYTES + lanes * LANE_BYTES + body;
    Some((read_u64(bytes, at + 8)?, length.next_multiple_of(8)))
}

/// What came out of a store.
struct Found {
    opened: Opened,
    delivered: Vec<(usize, Delivery)>,
    losses: Vec<Loss>,
}

impl Found {
    /// The seqs that were reported when the store was opened.
    fn lost(&self) -> Vec<(u64, u64)> {
        let number = |text: Option<&str>| text.unwrap().parse().unwrap();
        let range = |sentence: &String| {
            let mut words = sentence.split(' ');
            (number(words.nth(1)), number(words.nth(1)))
        };
        self.opened.lost.iter().map(range).collect()
    }

    /// Whether it was reported that this copy is lost.
    fn tells_of(&self, lane: LaneKey, seq: u64) -> bool {
        let of = |range: &(u64, u64)| (range.0..=range.1).contains(&seq);
        let endpoint = Some(endpoint(lane.0));
        let told = |loss: &Loss| {
            let known = loss.reason == LossReason::Damaged && loss.endpoint == endpoint;
            known && of(&loss.seqs)
        };
        self.lost().iter().any(of) || self.losses.iter().any(told)
    }
}

impl Built {
    /// The file with the newest frames.
    pub fn newest(&self) -> usize {
        let newest = self.frames.iter().max_by_key(|frame| frame.seq);
        newest.map_or(0, |frame| frame.file)
    }

    /// Files with frames, oldest first.
    pub fn segments(&self) -> BTreeSet<usize> {
        self.frames.iter().map(|frame| frame.file).collect()
    }

    pub fn messages(&self) -> usize {
        self.model.values().map(BTreeMap::len).sum()
    }

    fn touched(&self, damage: Damage) -> impl Iterator<Item = &Frame> {
        let (file, bytes) = match damage {
            Damage::None => (usize::MAX, 0..0),
            Damage::Flip { file, bit } => (file, bit / 8..bit / 8 + 1),
            Damage::Zero { file, at, len } => (file, at..at + len),
            Damage::Delete { file } => (file, 0..u64::MAX),
            Damage::Cut { file, len } => (file, len..u64::MAX),
        };
        let touches = move |frame: &&Frame| {
            let own = &frame.bytes;
            frame.file == file && own.start < bytes.end && bytes.start < own.end
        };
        self.frames.iter().filter(touches)
    }

    fn apply(&self, disk: &SimDisk, damage: Damage) {
        disk.restore(&self.state);
        let path = |file: usize| self.files[file].0.as_str();
        match damage {
            Damage::None => {}
            Damage::Flip { file, bit } => disk.flip_bit(path(file), bit),
            Damage::Zero { file, at, len } => disk.zero(path(file), at, len),
            Damage::Delete { file } => disk.delete(path(file)),
            Damage::Cut { file, len } => disk.truncate(path(file), len),
        }
    }

    /// What came again, of what was acknowledged, without damage.
    fn undamaged(&self) -> BTreeSet<(LaneKey, u64)> {
        let disk = SimDisk::new(1, Faults::default());
        self.apply(&disk, Damage::None);
        let found = self.take(&disk).unwrap();
        assert_eq!(found.opened.was_closed, self.ended != Ended::Killed);
        assert!(found.opened.lost.is_empty(), "{:?}", found.opened);
        let came = self.came(&found).unwrap();
        assert!(self.missing(&came).is_empty());
        came.into_iter()
            .filter(|(lane, seq)| self.model[lane][seq].acknowledged)
            .collect()
    }

    /// Opens, takes everything, and sees that it goes on.
    fn take(&self, disk: &SimDisk) -> Result<Found, String> {
        let time = (self.now_ms, WALL_MS + self.now_ms);
        let rig = Rig::open(disk.mount(), options(self.ended.segment_bytes()), time);
        let (rig, opened) = rig.map_err(|error| format!("open: {error}"))?;
        let mut losses = Vec::new();
        let delivered = rig.drain(&mut losses)?;
        if rig.waiting() > 0 {
            return Err(format!("still waiting: {:?}", rig.store.status()));
        }
        let target = Target {
            endpoints: &[0, 1, 2, 3],
            lane: 1,
            ttl_ms: None,
        };
        let fresh = rig.append(target, &Bytes::from_static(FRESH));
        let fresh = fresh.ok_or("no room for a new message")?;
        while rig.store.kept() < fresh && rig.write() == Step::Done {}
        if rig.store.kept() < fresh {
            return Err("a new message is not kept".to_owned());
        }
        let again = rig.drain(&mut losses)?;
        let is_fresh = |(_, delivery): &(usize, Delivery)| delivery.message.payload == FRESH;
        if again.len() != ENDPOINTS || !again.iter().all(is_fresh) {
            return Err(format!("{} instead of the new message", again.len()));
        }
        if fresh.is_multiple_of(8) {
            rig.store.end(self.now_ms + 1000);
            drop(rig);
            self.take_again(disk)?;
        }
        Ok(Found {
            opened,
            delivered,
            losses,
        })
    }

    /// Everything was taken and the store closed: nothing comes again.
    fn take_again(&self, disk: &SimDisk) -> Result<(), String> {
        let now_ms = self.now_ms + 2000;
        let time = (now_ms, WALL_MS + now_ms);
        let rig = Rig::open(disk.mount(), options(self.ended.segment_bytes()), time);
        let (rig, opened) = rig.map_err(|error| format!("open again: {error}"))?;
        if !opened.was_closed {
            return Err(format!("not closed again: {opened:?}"));
        }
        match rig.drain(&mut Vec::new())?.len() {
            0 => Ok(()),
            count => Err(format!("{count} messages came after the end")),
        }
    }

    /// The copies that were delivered, each of them right and in order.
    fn came(&self, found: &Found) -> Result<BTreeSet<(LaneKey, u64)>, String> {
        let mut came = BTreeSet::new();
        let mut last: BTreeMap<LaneKey, u64> = BTreeMap::new();
        for (at, delivery) in &found.delivered {
            let (lane, seq) = (key(*at, delivery), delivery.seq);
            let before = last.insert(lane, seq).unwrap_or(0);
            if seq <= before {
                return Err(format!("{lane:?} seq {seq} after {before}"));
            }
            let known = self.model.get(&lane).and_then(|lane| lane.get(&seq));
            let known = known.ok_or_else(|| format!("{lane:?} seq {seq} was never sent"))?;
            if known.payload != delivery.message.payload {
                return Err(format!("{lane:?} seq {seq}: wrong bytes"));
            }
            came.insert((lane, seq));
        }
        Ok(came)
    }

    fn missing(&self, came: &BTreeSet<(LaneKey, u64)>) -> Vec<(LaneKey, u64)> {
        let lanes = self.model.iter();
        let all = lanes.flat_map(|(lane, messages)| {
            let waiting = messages.iter().filter(|(_, known)| !known.acknowledged);
            waiting.map(move |(seq, _)| (*lane, *seq))
        });
        all.filter(|copy| !came.contains(copy)).collect()
    }

    /// Damages the store, opens it and compares.
    pub fn check(&self, disk: &SimDisk, damage: Damage) -> Result<Outcome, String> {
        self.apply(disk, damage);
        let found = self.take(disk)?;
        let came = self.came(&found)?;
        let touched: Vec<_> = self.touched(damage).collect();
        let touches = |seq: u64| {
            let mut data = touched.iter().filter(|frame| frame.is_data);
            data.any(|frame| frame.seq == seq)
        };
        let mut outcome = Outcome::default();
        let mut missing = BTreeSet::new();
        // Of a batch that nothing proves, what follows the damage goes with it.
        let tears = touched
            .iter()
            .filter(|frame| self.unproven.contains(&frame.seq));
        let torn_from = tears.map(|frame| frame.seq).min();
        for (lane, seq) in self.missing(&came) {
            let torn = torn_from.is_some_and(|from| from <= seq);
            if !torn && !touches(seq) {
                return Err(format!("{lane:?} seq {seq} is lost, though it is intact"));
            }
            missing.insert(seq);
            if found.tells_of(lane, seq) {
                continue;
            }
            if !torn && (found.opened.was_closed || !self.may_be_untold(damage)) {
                return Err(format!(
                    "nothing tells that {lane:?} seq {seq} is lost: {:?} {:?}",
                    found.opened, found.losses
                ));
            }
            outcome.untold += 1;
        }
        let hits_note = touched.iter().any(|frame| !frame.is_data) || torn_from.is_some();
        for (lane, seq) in &came {
            let own = (*lane, *seq);
            if self.model[lane][seq].acknowledged && !self.again.contains(&own) {
                if !hits_note {
                    return Err(format!("{lane:?} seq {seq} came again"));
                }
                outcome.again += 1;
            }
        }
        outcome.missing = missing.len();
        self.check_report(damage, &found, &touched)?;
        let waits = |(lane, seq): &&(LaneKey, u64)| !self.model[lane][seq].acknowledged;
        for (lane, seq) in came.iter().filter(waits) {
            if found.tells_of(*lane, *seq) {
                return Err(format!("{lane:?} seq {seq} came, and counts as lost"));
            }
        }
        let told = !found.opened.lost.is_empty() || !found.losses.is_empty();
        outcome.false_alarm = told && outcome.missing == 0;
        Ok(outcome)
    }

    /// Nothing follows the newest segment that could say how far it went: it is only seen that
    /// the store does not end in good order.
    fn may_be_untold(&self, damage: Damage) -> bool {
        match damage {
            Damage::Delete { file } | Damage::Cut { file, .. } => file == self.newest(),
            _ => false,
        }
    }

    /// What is reported as lost belongs to the damage.
    fn check_report(
        &self,
        damage: Damage,
        found: &Found,
        touched: &[&Frame],
    ) -> Result<(), String> {
        let seqs = touched.iter().map(|frame| frame.seq);
        let (first, last) = (seqs.clone().min(), seqs.max());
        let is_oldest = touched
            .iter()
            .any(|frame| self.segments().first() == Some(&frame.file));
        for (from, to) in found.lost() {
            // Where the oldest segment began is not known without it.
            // Where one was repacked, what was acknowledged around it has no frames any more.
            if self.ended == Ended::Repacked {
                continue;
            }
            let begins = first.is_some_and(|first| first <= from)
                || (is_oldest && matches!(damage, Damage::Delete { .. } | Damage::Cut { .. }));
            if !begins || last.is_none_or(|last| last < to) {
                let own = (first, last);
                return Err(format!("{from} to {to} is reported, {own:?} was touched"));
            }
        }
        Ok(())
    }
}

fn key(at: usize, delivery: &Delivery) -> LaneKey {
    (at, lane_of(delivery.priority))
}
