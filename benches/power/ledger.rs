//! What was sent, acknowledged and received, and what is wrong with it.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

use edgehub::mqtt::PacketId;

use crate::payload;

/// Messages of a publisher that are not acknowledged at any time.
pub const WINDOW: usize = 16;
/// What is wrong is told in words this often.
const TOLD_MAX: usize = 10;

/// Totals of a run, or of a part of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub published: u64,
    pub acknowledged: u64,
    pub received: u64,
    /// Received more than once: repetitions are allowed.
    pub again: u64,
    /// Acknowledged, and a consumer did not get it.
    pub lost: u64,
    /// Of those: acknowledged too long ago to be lost, or without a power cut since.
    pub lost_too_old: u64,
    /// Not of those: acknowledged between the cut and the end of the hub, which without power is
    /// never told to anybody. ext4 may even report a sync as done while it aborts its journal.
    pub lost_unpowered: u64,
    /// Not what was sent: wrong bytes, wrong input, never sent.
    pub wrong: u64,
    /// Came for the first time after a later one of the same publisher.
    pub reordered: u64,
    /// The same, of messages that were not acknowledged at a cut: a later one survived it, this one
    /// did not and was sent again.
    pub overtaken: u64,
    /// Reported lost and came after all.
    pub late: u64,
    pub age_max: Duration,
}

/// What a publisher knows; survives every cut.
#[derive(Default)]
struct Publisher {
    /// All before this one are settled.
    base: u64,
    /// When each message from `base` on was acknowledged.
    acked_at: VecDeque<Option<Instant>>,
    /// Not acknowledged, in the order in which they were sent.
    open: VecDeque<u64>,
    /// Sent again after a cut.
    resent: BTreeSet<u64>,
}

impl Publisher {
    fn next(&self) -> u64 {
        self.base + self.acked_at.len() as u64
    }
}

/// What a consumer got from one publisher.
#[derive(Default)]
struct Received {
    /// All before this one are settled.
    floor: u64,
    seen: VecDeque<bool>,
    highest: Option<u64>,
}

/// Of the hub: from a start to the first cut after it.
struct Life {
    start: Instant,
    cut: Option<Instant>,
}

pub struct Ledger {
    seed: u64,
    publishers: Vec<Publisher>,
    /// By consumer, then by publisher.
    received: Vec<Vec<Received>>,
    lost: HashSet<(usize, usize, u64)>,
    lives: Vec<Life>,
    pub counts: Counts,
    /// The first things that went wrong, in words.
    pub told: Vec<String>,
}

impl Ledger {
    pub fn new(seed: u64, publishers: usize, consumers: usize) -> Self {
        let received = || (0..publishers).map(|_| Received::default()).collect();
        Self {
            seed,
            publishers: (0..publishers).map(|_| Publisher::default()).collect(),
            received: (0..consumers).map(|_| received()).collect(),
            lost: HashSet::new(),
            lives: Vec::new(),
            counts: Counts::default(),
            told: Vec::new(),
        }
    }

    /// A new message.
    pub fn send(&mut self, publisher: usize) -> (PacketId, Vec<u8>) {
        let state = &mut self.publishers[publisher];
        let counter = state.next();
        state.acked_at.push_back(None);
        state.open.push_back(counter);
        self.counts.published += 1;
        (
            packet_id(counter),
            payload::payload(self.seed, publisher, counter),
        )
    }

    pub fn open(&self, publisher: usize) -> usize {
        self.publishers[publisher].open.len()
    }

    /// What has to be sent again with DUP.
    pub fn send_again(&mut self, publisher: usize) -> Vec<(PacketId, Vec<u8>)> {
        let state = &mut self.publishers[publisher];
        state.resent.extend(&state.open);
        let again = state.open.iter().map(|counter| {
            let payload = payload::payload(self.seed, publisher, *counter);
            (packet_id(*counter), payload)
        });
        again.collect()
    }

    pub fn acknowledged(&mut self, publisher: usize, id: PacketId) {
        let state = &mut self.publishers[publisher];
        let at = state.open.iter().position(|open| packet_id(*open) == id);
        let Some(counter) = at.and_then(|at| state.open.remove(at)) else {
            self.counts.wrong += 1;
            self.tell(format!("p{publisher}: acknowledged {id:?}, not sent"));
            return;
        };
        state.acked_at[(counter - state.base) as usize] = Some(Instant::now());
        self.counts.acknowledged += 1;
    }

    pub fn received(&mut self, consumer: usize, topic: &str, bytes: &[u8]) {
        self.counts.received += 1;
        let message = payload::read(self.seed, bytes);
        let known = message.filter(|(publisher, counter)| {
            let sent = self.publishers.get(*publisher);
            sent.is_some_and(|sent| *counter < sent.next())
        });
        let is_input = topic.split('/').nth(5) == Some("in");
        let Some((publisher, counter)) = known.filter(|_| is_input) else {
            self.counts.wrong += 1;
            let bytes = bytes.len();
            self.tell(format!(
                "c{consumer}: wrong: {message:?}, {bytes} bytes at {topic}"
            ));
            return;
        };
        let state = &mut self.received[consumer][publisher];
        if counter < state.floor {
            self.counts.again += 1;
            if self.lost.remove(&(consumer, publisher, counter)) {
                self.counts.late += 1;
                self.tell(format!("c{consumer}: p{publisher} {counter} after all"));
            }
            return;
        }
        let at = (counter - state.floor) as usize;
        if state.seen.len() <= at {
            state.seen.resize(at + 1, false);
        }
        if std::mem::replace(&mut state.seen[at], true) {
            self.counts.again += 1;
            return;
        }
        match state.highest {
            Some(highest) if counter < highest => {
                self.out_of_order(consumer, publisher, counter, highest);
            }
            _ => state.highest = Some(counter),
        }
    }

    fn out_of_order(&mut self, consumer: usize, publisher: usize, counter: u64, highest: u64) {
        let is_resent = self.publishers[publisher].resent.contains(&counter);
        let what = if is_resent {
            self.counts.overtaken += 1;
            ", not acknowledged at the cut"
        } else {
            self.counts.reordered += 1;
            ""
        };
        self.tell(format!(
            "c{consumer}: p{publisher} {counter} after {highest}{what}"
        ));
    }

    /// Whether a consumer has the last message of everybody. These were acknowledged after the last
    /// cut, and come last.
    pub fn is_drained(&self, consumer: usize) -> bool {
        let mut publishers = self.publishers.iter().zip(&self.received[consumer]);
        publishers.all(|(sent, received)| {
            let last = sent.next().checked_sub(1);
            last <= received.highest
        })
    }

    /// Bytes do not matter here: messages that wait for the consumer that is behind most.
    pub fn backlog(&self) -> u64 {
        let publishers = self.publishers.iter();
        publishers
            .map(|publisher| publisher.acked_at.len() as u64)
            .sum()
    }

    pub fn started(&mut self) {
        self.lives.push(Life {
            start: Instant::now(),
            cut: None,
        });
    }

    pub fn cut(&mut self, at: Instant) {
        if let Some(life) = self.lives.last_mut() {
            life.cut.get_or_insert(at);
        }
    }

    /// Everything is acknowledged and a consumer is drained: what it did not get is lost. `bound`
    /// is the greatest age that a lost message may have.
    pub fn settle(&mut self, consumer: usize, bound: Option<Duration>) {
        for publisher in 0..self.publishers.len() {
            let sent = &self.publishers[publisher];
            let received = &mut self.received[consumer][publisher];
            let (floor, next) = (received.floor, sent.next());
            let seen = std::mem::take(&mut received.seen);
            received.floor = next;
            let is_seen = |counter: u64| seen.get((counter - floor) as usize) == Some(&true);
            let lost: Vec<(u64, Option<Instant>)> = (floor..next)
                .filter(|counter| !is_seen(*counter))
                .map(|counter| (counter, sent.acked_at[(counter - sent.base) as usize]))
                .collect();
            for (counter, acked_at) in lost {
                self.lost.insert((consumer, publisher, counter));
                self.lose(
                    &format!("c{consumer}: p{publisher} {counter}"),
                    acked_at,
                    bound,
                );
            }
        }
        for (publisher, sent) in self.publishers.iter_mut().enumerate() {
            let floors = self
                .received
                .iter()
                .map(|received| received[publisher].floor);
            let base = floors.min().unwrap_or(sent.base);
            sent.acked_at.drain(..(base - sent.base) as usize);
            sent.base = base;
            sent.resent = sent.resent.split_off(&base);
        }
    }

    fn lose(&mut self, which: &str, acked_at: Option<Instant>, bound: Option<Duration>) {
        let Some(acked_at) = acked_at else { return };
        let life = self.lives.partition_point(|life| life.start <= acked_at);
        let life = life.checked_sub(1).and_then(|life| self.lives.get(life));
        let Some(cut) = life.and_then(|life| life.cut) else {
            self.counts.lost += 1;
            self.counts.lost_too_old += 1;
            self.tell(format!(
                "{which} lost, with no cut since it was acknowledged"
            ));
            return;
        };
        if acked_at >= cut {
            self.counts.lost_unpowered += 1;
            return;
        }
        let age = cut.duration_since(acked_at);
        self.counts.lost += 1;
        self.counts.age_max = self.counts.age_max.max(age);
        if bound.is_some_and(|bound| age > bound) {
            self.counts.lost_too_old += 1;
            let ms = age.as_micros() as f64 / 1000.0;
            self.tell(format!(
                "{which} lost, acknowledged {ms:.1} ms before the cut"
            ));
        }
    }

    fn tell(&mut self, what: String) {
        if self.told.len() < TOLD_MAX {
            self.told.push(what);
        }
    }
}

/// Never twice within a window.
fn packet_id(counter: u64) -> PacketId {
    let id = (counter % u64::from(u16::MAX)) as u16 + 1;
    PacketId::new(id).expect("not 0")
}
