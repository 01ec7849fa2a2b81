//! Random operations on a store, in memory or on the simulated disk, compared with one simple
//! model after each: what is delivered, in which order, what is refused, what is given up, who is
//! woken, and what the store says of itself.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "model/ops.rs"]
mod ops;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use edgehub::identity::Identity;
use edgehub::mailbox::{DELIVERY, Mailbox, SPACE};
use edgehub::message::{Message, Origin};
use edgehub::store::{
    Append, Bounds, Copy, Delivery, Full, Loss, LossReason, Place, Queue, QueueStatus, Step, Store,
    wake,
};
use ops::Known;
#[allow(unused_imports)]
pub use ops::{Done, Op, ops};

use super::rig::{ENDPOINTS, LANES, LaneKey, WALL_MS, endpoint, lane_of, options, priority};
use super::sim_disk::{Faults, SimDisk};

const SEGMENT_BYTES: u64 = 128 * 1024;
const BAG: &[u8] = b"%24.cdid=d";

/// Where the store keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Memory { drop_oldest: bool },
    Disk,
}

impl Known {
    fn bytes(&self) -> u64 {
        (self.payload.len() + BAG.len()) as u64 + Message::OVERHEAD_BYTES
    }
}

type Lane = BTreeMap<u64, Known>;

/// A store and the model of it.
pub struct Pair {
    kind: Kind,
    disk: Arc<SimDisk>,
    store: Option<Store>,
    bounds: Bounds,
    queues: Vec<Option<Arc<Queue>>>,
    readers: Vec<Arc<Mailbox>>,
    waiters: Vec<Arc<Mailbox>>,
    origin: Arc<Origin>,
    now_ms: u64,
    number: u64,
    waiting: BTreeMap<LaneKey, Lane>,
    in_flight: BTreeMap<LaneKey, Lane>,
    /// Readers that found nothing and were not called since.
    asleep: [bool; ENDPOINTS],
    /// Senders that wait for room in a queue, and were not called since.
    held: [bool; ENDPOINTS],
    /// Senders that found no room in a queue, or at the end in the store, and whether they were
    /// called since.
    lines: [BTreeMap<usize, bool>; ENDPOINTS + 1],
    purged: u64,
    /// Lanes of which something was given up in a way that no cursor says.
    ghosts: BTreeSet<LaneKey>,
    pub done: Done,
}

impl Pair {
    pub fn new(kind: Kind) -> Self {
        let bounds = Bounds {
            max_bytes: 25_000,
            endpoint_max_bytes: 12_000,
            endpoint_max_messages: 40,
            drop_oldest: kind == Kind::Memory { drop_oldest: true },
        };
        let mut pair = Self {
            kind,
            disk: SimDisk::new(1, Faults::default()),
            store: None,
            bounds,
            queues: vec![None; ENDPOINTS],
            readers: (0..ENDPOINTS).map(|_| Arc::default()).collect(),
            waiters: (0..ENDPOINTS).map(|_| Arc::default()).collect(),
            origin: Arc::new(Origin::new(Identity::module("d", "m"), Some("out"))),
            now_ms: 1000,
            number: 0,
            waiting: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            asleep: [false; ENDPOINTS],
            held: [false; ENDPOINTS],
            lines: Default::default(),
            purged: 0,
            ghosts: BTreeSet::new(),
            done: Done::default(),
        };
        pair.open();
        pair
    }

    fn wall_ms(&self) -> u64 {
        WALL_MS + self.now_ms
    }

    fn time(&self) -> (u64, u64) {
        (self.now_ms, self.wall_ms())
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn is_on_disk(&self) -> bool {
        self.kind == Kind::Disk
    }

    fn open(&mut self) {
        if !self.is_on_disk() {
            self.store = Some(Store::memory(self.bounds, self.time()));
            return;
        }
        let options = options(SEGMENT_BYTES);
        let opened = Store::open(self.disk.mount(), options, self.bounds, 7, self.time());
        let (store, opened) = opened.unwrap();
        let known: usize = self.waiting.values().map(BTreeMap::len).sum();
        assert_eq!(
            (opened.messages, opened.lost.len()),
            (known, 0),
            "{opened:?}"
        );
        self.store = Some(store);
        self.write_all();
    }

    fn queue(&mut self, at: usize) -> Arc<Queue> {
        if self.queues[at].is_none() {
            self.queues[at] = Some(self.store().queue(&endpoint(at)));
        }
        Arc::clone(self.queues[at].as_ref().unwrap())
    }

    /// Messages and bytes of a queue.
    fn load(&self, at: usize) -> (usize, u64) {
        let lanes = self.waiting.iter().chain(&self.in_flight);
        let own = lanes.filter(|((of, _), _)| *of == at);
        let own: Vec<_> = own.flat_map(|(_, lane)| lane.values()).collect();
        (own.len(), own.iter().map(|known| known.bytes()).sum())
    }

    fn used_bytes(&self) -> u64 {
        (0..ENDPOINTS).map(|at| self.load(at).1).sum()
    }

    fn is_expired(&self, known: &Known) -> bool {
        !known.is_sent && known.expires_ms.is_some_and(|at| at <= self.wall_ms())
    }

    /// Does one operation on both, and compares.
    pub fn step(&mut self, op: &Op) {
        self.done.ops += 1;
        let before = self.loads();
        match *op {
            Op::Append {
                first,
                fan_out,
                lane,
                size,
                ttl_ms,
                is_patient,
            } => {
                let mut targets: Vec<_> = (0..fan_out).map(|n| (first + n) % ENDPOINTS).collect();
                targets.sort_unstable();
                self.append(&targets, lane, size, ttl_ms, is_patient);
            }
            Op::Fetch { at, room, bytes } => self.fetch(at, room, bytes),
            Op::FetchOne { at, nth } => self.fetch_one(at, nth),
            Op::Acknowledge { nth, count } => (0..count).for_each(|n| self.acknowledge(nth + n)),
            Op::Release { nth } => self.release(nth),
            Op::Reconnect { at } => self.reconnect(at),
            Op::Pass { ms } => {
                self.now_ms += ms;
                self.tick();
            }
            Op::Purge { at } => self.purge(at),
            Op::Forget { at } => {
                self.reconnect(at);
                self.queues[at] = None;
                // An empty one that nobody holds is gone, and who waited there with it.
                self.lines[at]
                    .values_mut()
                    .for_each(|called| *called = true);
            }
            Op::Limit { messages, bytes } => {
                self.bounds.endpoint_max_messages = messages;
                self.bounds.endpoint_max_bytes = bytes;
                self.store().set_bounds(self.bounds);
            }
            Op::Write => {
                self.store().write_step(self.now_ms);
            }
            Op::Keep => {
                self.store().keep_step(self.now_ms, false);
            }
            Op::Restart if self.is_on_disk() => self.restart(),
            Op::Restart => {}
        }
        if self.is_on_disk() {
            self.sweep();
        }
        self.compare(&before);
    }

    fn loads(&self) -> [(usize, u64); ENDPOINTS] {
        std::array::from_fn(|at| self.load(at))
    }

    fn append(
        &mut self,
        targets: &[usize],
        lane: usize,
        size: usize,
        ttl_ms: Option<u64>,
        is_patient: bool,
    ) {
        self.number += 1;
        let text = format!("{} ", self.number).into_bytes();
        let payload: Vec<u8> = text.into_iter().cycle().take(8 + size).collect();
        let expires_ms = ttl_ms.map(|ttl| (self.wall_ms() + ttl).div_ceil(1000) * 1000);
        let known = Known {
            payload: Bytes::from(payload),
            expires_ms,
            is_sent: false,
        };
        let expected = self.expected_refusal(targets, known.bytes());
        let (may_wait, must_wait) = match is_patient {
            true => (Vec::new(), false),
            false => self.lines_before(targets),
        };
        let result = self.try_append(targets, lane, &known, ttl_ms, is_patient);
        if let Err(full) = &result
            && may_wait.contains(&full.place)
        {
            self.done.refused += 1;
            return;
        }
        assert!(result.is_err() || !must_wait, "it went before others");
        if let Err(full) = result {
            // Where the oldest are dropped, there has to be nothing more to drop.
            let expected =
                expected.or_else(|| self.has_nothing_to_drop(&full.place, targets, &known));
            assert_eq!(Some(&full.place), expected.as_ref());
            if is_patient {
                let is_it = |at: &&usize| full.place == Place::Queue(endpoint(**at));
                let at = targets.iter().find(is_it).copied().unwrap_or(ENDPOINTS);
                if at < ENDPOINTS {
                    self.held[targets[0]] = at == targets[0];
                }
                self.lines[at].insert(targets[0], false);
            }
            self.done.refused += 1;
            return;
        }
        assert_eq!(expected, None);
        let seq = result.unwrap();
        if !is_patient {
            // It was let in, so nobody waits.
            targets.iter().for_each(|at| self.lines[*at].clear());
        }
        self.done.appended += 1;
        for at in targets {
            let own = self.waiting.entry((*at, lane)).or_default();
            let before = own.insert(seq, known.clone());
            let newest = own.last_key_value().map(|(seq, _)| *seq);
            assert!(before.is_none() && newest == Some(seq), "seq {seq}");
        }
    }

    /// Where somebody may wait for room, so that one who does not wait is refused; whether somebody
    /// certainly does, in the first place that could refuse.
    fn lines_before(&self, targets: &[usize]) -> (Vec<Place>, bool) {
        let queues = targets.iter().map(|at| (*at, Place::Queue(endpoint(*at))));
        let store = (!self.is_on_disk()).then_some((ENDPOINTS, Place::Store));
        let lines = queues
            .chain(store)
            .map(|(at, place)| (&self.lines[at], place));
        let lines: Vec<_> = lines.filter(|(line, _)| !line.is_empty()).collect();
        let is_sure = |line: &BTreeMap<usize, bool>| line.values().any(|called| !called);
        let must = lines.iter().any(|(line, _)| is_sure(line));
        (lines.into_iter().map(|(_, place)| place).collect(), must)
    }

    fn has_room(&self, at: usize, bytes: u64) -> bool {
        let (messages, used) = self.load(at);
        messages < self.bounds.endpoint_max_messages
            && used + bytes <= self.bounds.endpoint_max_bytes
    }

    /// What refuses a message, unless the oldest are dropped for it.
    fn expected_refusal(&self, targets: &[usize], bytes: u64) -> Option<Place> {
        if self.bounds.drop_oldest {
            return None;
        }
        if let Some(at) = targets.iter().find(|at| !self.has_room(**at, bytes)) {
            return Some(Place::Queue(endpoint(*at)));
        }
        self.is_over(bytes * targets.len() as u64)
    }

    fn is_over(&self, bytes: u64) -> Option<Place> {
        let is_over = self.used_bytes() + bytes > self.bounds.max_bytes;
        (!self.is_on_disk() && is_over).then_some(Place::Store)
    }

    fn has_nothing_to_drop(
        &self,
        place: &Place,
        targets: &[usize],
        known: &Known,
    ) -> Option<Place> {
        assert!(self.bounds.drop_oldest);
        let bytes = known.bytes();
        if *place == Place::Store {
            return self.is_over(bytes * targets.len() as u64);
        }
        let at = targets
            .iter()
            .find(|at| *place == Place::Queue(endpoint(**at)))?;
        let mut own = self.waiting.iter().filter(|((of, _), _)| of == at);
        let is_empty = own.all(|(_, lane)| lane.is_empty());
        (is_empty && !self.has_room(*at, bytes)).then(|| place.clone())
    }

    fn try_append(
        &mut self,
        targets: &[usize],
        lane: usize,
        known: &Known,
        ttl_ms: Option<u64>,
        is_patient: bool,
    ) -> Result<u64, Full> {
        let copies: Vec<_> = targets
            .iter()
            .map(|at| Copy {
                queue: self.queue(*at),
                priority: priority(lane),
                ttl_ms,
            })
            .collect();
        let message = Arc::new(Message {
            origin: Arc::clone(&self.origin),
            bag: Bytes::from_static(BAG),
            payload: known.payload.clone(),
            received_ms: self.now_ms,
        });
        let append = Append {
            message: &message,
            copies: &copies,
            waiter: &Arc::clone(&self.waiters[targets[0]]),
            is_patient,
            is_last: false,
            now_ms: self.now_ms,
        };
        loop {
            let (mut idle, mut losses) = (Vec::new(), Vec::new());
            let result = self.store().append(&append, &mut idle, &mut losses);
            wake(&mut idle);
            for loss in losses {
                assert_eq!(loss.reason, LossReason::DroppedOldest);
                self.dropped(&loss, known.bytes());
            }
            match &result {
                Err(full) if self.is_on_disk() && !matches!(full.place, Place::Queue(_)) => {
                    self.write_all();
                }
                _ => return result,
            }
        }
    }

    /// The oldest went, of the least urgent lane, since there was no room.
    fn dropped(&mut self, loss: &Loss, bytes: u64) {
        let at = (0..ENDPOINTS)
            .find(|at| Some(endpoint(*at)) == loss.endpoint)
            .unwrap();
        assert!(
            !self.has_room(at, bytes) || self.is_over(bytes).is_some(),
            "{loss:?}"
        );
        let lanes = self.waiting.iter_mut().rev();
        let mut own = lanes.filter(|((of, _), lane)| *of == at && !lane.is_empty());
        let (_, lane) = own.next().unwrap();
        let (oldest, _) = lane.pop_first().unwrap();
        assert_eq!(loss.seqs, (oldest, oldest));
        self.done.dropped += 1;
    }

    fn fetch(&mut self, at: usize, room: usize, bytes: u64) {
        let mut expected = Vec::new();
        let mut left = bytes;
        let lanes = self.waiting.iter().filter(|((of, _), _)| *of == at);
        for (lane, messages) in lanes {
            for (seq, known) in messages.iter().filter(|(_, known)| !self.is_expired(known)) {
                if expected.len() < room && left > 0 {
                    left = left.saturating_sub(known.bytes());
                    expected.push((*lane, *seq));
                }
            }
        }
        let found = self.take(at, room, bytes);
        let got: Vec<_> = found
            .iter()
            .map(|one| ((at, lane_of(one.priority)), one.seq))
            .collect();
        assert_eq!(got, expected);
        for delivery in found {
            self.delivered(at, &delivery);
        }
        self.asleep[at] = expected.is_empty() && room > 0 && bytes > 0;
    }

    /// Fetches; on the disk, until what was asked for has been read.
    fn take(&mut self, at: usize, room: usize, bytes: u64) -> Vec<Delivery> {
        let queue = self.queue(at);
        let reader = Arc::clone(&self.readers[at]);
        if self.is_on_disk() {
            self.write_all();
        }
        let mut found: Vec<Delivery> = Vec::new();
        let mut idle = 0;
        while idle < 3 {
            let used: u64 = found.iter().map(|one| one.message.bytes()).sum();
            let room = (room - found.len(), bytes.saturating_sub(used));
            let (mut some, mut losses) = (Vec::new(), Vec::new());
            let into = (&mut some, &mut losses);
            self.store().fetch(&queue, &reader, room, self.now_ms, into);
            idle = if some.is_empty() { idle + 1 } else { 0 };
            found.append(&mut some);
            self.lost(&losses);
            if !self.is_on_disk() {
                break;
            }
            self.rest();
            self.sweep();
        }
        reader.take(Waker::noop());
        found
    }

    fn delivered(&mut self, at: usize, delivery: &Delivery) {
        let lane = (at, lane_of(delivery.priority));
        let known = self
            .waiting
            .get_mut(&lane)
            .and_then(|own| own.remove(&delivery.seq));
        let known = known.unwrap_or_else(|| panic!("{lane:?} seq {} does not wait", delivery.seq));
        assert_eq!(known.payload, delivery.message.payload);
        assert_eq!(
            (&delivery.message.bag[..], &delivery.message.origin),
            (BAG, &self.origin)
        );
        self.in_flight
            .entry(lane)
            .or_default()
            .insert(delivery.seq, known);
        self.done.delivered += 1;
    }

    fn fetch_one(&mut self, at: usize, nth: usize) {
        let lanes = self.waiting.iter().filter(|((of, _), _)| *of == at);
        let all: Vec<_> = lanes
            .flat_map(|(lane, own)| own.iter().map(|(seq, known)| (*lane, *seq, known.clone())))
            .collect();
        let Some((lane, seq, known)) = all.get(nth % all.len().max(1)).cloned() else {
            return;
        };
        let queue = self.queue(at);
        let reader = Arc::clone(&self.readers[at]);
        let place = (priority(lane.1), seq);
        if self.is_on_disk() {
            self.write_all();
        }
        for _ in 0..4 {
            match self.store().fetch_one(&queue, &reader, place, self.now_ms) {
                Ok(delivery) => {
                    assert!(!self.is_expired(&known), "seq {seq} has expired");
                    return self.delivered(at, &delivery);
                }
                Err(true) => {
                    assert!(self.is_on_disk());
                    self.rest();
                    self.sweep();
                }
                Err(false) => {
                    assert!(self.is_expired(&known), "seq {seq} at {at} is gone");
                    return;
                }
            }
        }
        panic!("seq {seq} at {at} is never read");
    }

    /// The nth of everything in flight.
    fn nth_in_flight(&self, nth: usize) -> Option<(LaneKey, u64)> {
        let lanes = self.in_flight.iter();
        let all: Vec<_> = lanes
            .flat_map(|(lane, own)| own.keys().map(|seq| (*lane, *seq)))
            .collect();
        all.get(nth % all.len().max(1)).copied()
    }

    fn acknowledge(&mut self, nth: usize) {
        let Some((lane, seq)) = self.nth_in_flight(nth) else {
            return;
        };
        let queue = self.queue(lane.0);
        for _ in 0..2 {
            // The second time it is unknown.
            self.store().acknowledge(&queue, priority(lane.1), seq);
        }
        self.in_flight.get_mut(&lane).unwrap().remove(&seq);
        self.done.acknowledged += 1;
    }

    fn release(&mut self, nth: usize) {
        let Some((lane, seq)) = self.nth_in_flight(nth) else {
            return;
        };
        let queue = self.queue(lane.0);
        let (lane_of, seqs) = (priority(lane.1), [seq, seq]);
        match nth % 2 {
            0 => self.store().release(&queue, lane_of, &seqs),
            _ => self.store().release_sent(&queue, lane_of, &seqs),
        }
        let in_flight = self.in_flight.get_mut(&lane).unwrap();
        in_flight.get_mut(&seq).unwrap().is_sent |= nth % 2 == 1;
        self.put_back(lane, seq);
    }

    fn put_back(&mut self, lane: LaneKey, seq: u64) {
        let known = self.in_flight.get_mut(&lane).unwrap().remove(&seq).unwrap();
        self.waiting.entry(lane).or_default().insert(seq, known);
        // Whoever gives something back looks again.
        self.asleep[lane.0] = false;
    }

    fn reconnect(&mut self, at: usize) {
        let queue = self.queue(at);
        let lanes: Vec<_> = self
            .in_flight
            .keys()
            .filter(|(of, _)| *of == at)
            .copied()
            .collect();
        for lane in lanes {
            let seqs: Vec<u64> = self.in_flight[&lane].keys().copied().collect();
            self.store().release(&queue, priority(lane.1), &seqs);
            seqs.into_iter().for_each(|seq| self.put_back(lane, seq));
        }
        self.store().detach(&queue, &self.readers[at]);
        self.readers[at] = Arc::default();
        self.asleep[at] = false;
    }

    fn purge(&mut self, at: usize) {
        let mut waited = 0;
        for (lane, own) in self.waiting.iter_mut().filter(|((of, _), _)| *of == at) {
            waited += own.len();
            if !std::mem::take(own).is_empty() {
                self.ghosts.insert(*lane);
            }
        }
        assert_eq!(self.store().purge(&endpoint(at)), waited);
        self.purged += waited as u64;
        self.sweep();
    }

    /// What was given up in a stretch, while something else waits in its lane: the cursor has no
    /// place for that, so it may count, and be given up, once more after a restart.
    fn would_count_again(&self) -> bool {
        let has = |lanes: &BTreeMap<LaneKey, Lane>, lane| {
            let own: Option<&Lane> = lanes.get(lane);
            own.is_some_and(|own| !own.is_empty())
        };
        let mut ghosts = self.ghosts.iter();
        ghosts.any(|lane| has(&self.waiting, lane) || has(&self.in_flight, lane))
    }

    fn restart(&mut self) {
        if self.would_count_again() {
            return;
        }
        self.store().end(self.now_ms);
        let all = self.waiting.values_mut().chain(self.in_flight.values_mut());
        let all = all.flat_map(|lane| lane.values_mut());
        all.for_each(|known| known.is_sent = false);
        self.queues = vec![None; ENDPOINTS];
        self.store = None;
        for (lane, messages) in std::mem::take(&mut self.in_flight) {
            self.waiting.entry(lane).or_default().extend(messages);
        }
        self.readers = (0..ENDPOINTS).map(|_| Arc::default()).collect();
        self.waiters = (0..ENDPOINTS).map(|_| Arc::default()).collect();
        self.asleep = [false; ENDPOINTS];
        self.held = [false; ENDPOINTS];
        self.lines = Default::default();
        self.ghosts.clear();
        self.open();
        self.done.restarts += 1;
    }

    fn write_all(&self) {
        for _ in 0..4 {
            self.store().keep_step(self.now_ms, false);
            if self.store().write_step(self.now_ms) == Step::Idle {
                break;
            }
        }
    }

    fn rest(&self) {
        let mut steps = 0;
        while self.store().keep_step(self.now_ms, false) {
            steps += 1;
            assert!(steps < 1000, "the keeper does not come to rest");
        }
    }

    /// What is due once a second. In memory, nothing that has expired is left then.
    fn tick(&mut self) {
        self.sweep();
        if self.is_on_disk() {
            self.write_all();
            self.store().keep_step(self.now_ms, true);
            self.sweep();
            return;
        }
        let mut all = self.waiting.values().flat_map(BTreeMap::values);
        assert!(!all.any(|known| self.is_expired(known)));
    }

    fn sweep(&mut self) {
        let mut losses = Vec::new();
        self.store().sweep(self.time(), &mut losses);
        self.lost(&losses);
    }

    /// What the store says that it gave up has expired, or was purged.
    fn lost(&mut self, losses: &[Loss]) {
        let mut stretches = Vec::new();
        for loss in losses {
            if loss.reason == LossReason::Purged {
                self.done.purged += loss.messages as u64;
                continue;
            }
            assert_eq!(loss.reason, LossReason::Expired, "{loss:?}");
            if loss.seqs.0 < loss.seqs.1 {
                stretches.push(loss);
                continue;
            }
            let of = |at: usize| loss.endpoint.is_none() || loss.endpoint == Some(endpoint(at));
            let lanes = self.waiting.iter();
            let own = lanes.filter(|((at, _), own)| of(*at) && own.contains_key(&loss.seqs.0));
            let lane = own.map(|(lane, _)| *lane).next();
            self.expired(
                lane.unwrap_or_else(|| panic!("{loss:?}")),
                loss.seqs.0,
                loss,
            );
        }
        for loss in stretches {
            let of = |at: usize| loss.endpoint == Some(endpoint(at));
            let keys = self.waiting.keys().copied();
            let lanes: Vec<LaneKey> = keys.filter(|(at, _)| of(*at)).collect();
            let missing = |lane: &LaneKey| self.waiting[lane].len() - self.shown_waiting(*lane);
            let lane = lanes
                .into_iter()
                .find(|lane| missing(lane) >= loss.messages);
            let lane = lane.unwrap_or_else(|| panic!("nothing of that waited: {loss:?}"));
            let inside = self.waiting[&lane].range(loss.seqs.0..=loss.seqs.1);
            // What is in memory is older, and given up where it is met.
            let seqs: Vec<u64> = inside
                .map(|(seq, _)| *seq)
                .rev()
                .take(loss.messages)
                .collect();
            assert_eq!(seqs.len(), loss.messages, "{loss:?}");
            seqs.into_iter()
                .for_each(|seq| self.expired(lane, seq, loss));
        }
    }

    fn expired(&mut self, lane: LaneKey, seq: u64, loss: &Loss) {
        let known = self.waiting.get_mut(&lane).unwrap().remove(&seq).unwrap();
        assert!(self.is_expired(&known), "{loss:?}");
        self.done.expired += 1;
        if loss.endpoint.is_some() {
            // Perhaps a whole stretch of the log, which no cursor says.
            self.ghosts.insert(lane);
        }
    }

    /// How many messages wait in a lane, as the store has it.
    fn shown_waiting(&self, (at, lane): LaneKey) -> usize {
        let own = endpoint(at);
        let index = LANES[lane];
        let is_own =
            |row: &&QueueStatus| row.endpoint == own && row.priority.index() as u64 == index;
        let rows = self.store().status();
        rows.iter()
            .find(is_own)
            .map_or(0, |row| row.messages - row.in_flight)
    }

    /// What the store says of itself, and who was woken.
    fn compare(&mut self, before: &[(usize, u64); ENDPOINTS]) {
        for row in self.store().status() {
            let at = (0..ENDPOINTS)
                .find(|at| endpoint(*at) == row.endpoint)
                .unwrap();
            let Some(lane) = LANES
                .iter()
                .position(|own| *own == row.priority.index() as u64)
            else {
                assert_eq!((row.messages, row.bytes), (0, 0));
                continue;
            };
            let waiting = self.waiting.get(&(at, lane));
            let bytes: u64 = waiting
                .into_iter()
                .flat_map(|own| own.values())
                .map(Known::bytes)
                .sum();
            let waiting = waiting.map_or(0, BTreeMap::len);
            let in_flight = self.in_flight.get(&(at, lane)).map_or(0, BTreeMap::len);
            let shown = (row.messages, row.in_flight, row.bytes);
            assert_eq!(
                shown,
                (waiting + in_flight, in_flight, bytes),
                "{at} {lane}"
            );
        }
        let shown: usize = self.store().status().iter().map(|row| row.messages).sum();
        let lanes = self.waiting.values().chain(self.in_flight.values());
        assert_eq!(shown, lanes.map(BTreeMap::len).sum::<usize>());
        assert_eq!(self.store().used_bytes(), self.used_bytes());
        assert_eq!(self.done.purged, self.purged);
        for (at, (_, bytes_before)) in before.iter().enumerate() {
            let mut own = self.waiting.iter().filter(|((of, _), _)| *of == at);
            let waits = own.any(|(_, own)| own.values().any(|known| !self.is_expired(known)));
            let called = self.readers[at].take(Waker::noop()) & DELIVERY != 0;
            self.asleep[at] &= !called;
            assert!(
                !self.asleep[at] || !waits,
                "the reader of {at} was not called"
            );
            let called = self.waiters[at].take(Waker::noop()) & SPACE != 0;
            self.held[at] &= !called;
            for line in self.lines.iter_mut().filter(|_| called) {
                line.entry(at).and_modify(|known| *known = true);
            }
            let (messages, bytes) = self.load(at);
            let most = self.bounds.endpoint_max_messages;
            let (most, most_bytes) = (most - most / 8, self.bounds.endpoint_max_bytes);
            let has_room = messages <= most && bytes <= most_bytes - most_bytes / 8;
            // Where the oldest are dropped, only what is in flight holds anybody back.
            let was_freed = bytes < *bytes_before && !self.bounds.drop_oldest;
            let waits = self.held[at] && was_freed && has_room;
            assert!(!waits, "the sender to {at} was not called");
        }
    }

    /// Everything that waits is delivered, once.
    pub fn drain(&mut self) {
        for at in 0..ENDPOINTS {
            self.fetch(at, 10_000, 1 << 30);
        }
        let before = self.loads();
        while self.nth_in_flight(0).is_some() {
            self.acknowledge(0);
        }
        self.tick();
        self.compare(&before);
        let left: usize = self.waiting.values().map(BTreeMap::len).sum();
        assert_eq!(left, 0);
    }
}

/// One life of a store.
pub fn run(kind: Kind, ops: &[Op]) -> Done {
    let mut pair = Pair::new(kind);
    ops.iter().for_each(|op| pair.step(op));
    pair.drain();
    pair.done
}
