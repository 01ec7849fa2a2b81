//! What was published, acknowledged and received, and what the promises say about it.
//!
//! - **Lost**: acknowledged to its publisher, and never received by an endpoint of its route.
//! - **Out of order**: received for the first time after a later message of the same publisher,
//!   endpoint and priority had been received for the first time.
//! - **Duplicate**: received once more. It is explained if
//!   - it comes again: its last receipt before the connection broke was not longer than a second
//!     before that (the hub writes acknowledgements down once a second; what was in flight is
//!     younger), or
//!   - its publisher sent it again: such a message has as many copies more.
//!
//!   Any other duplicate is a fault, and so is a broken connection after which more messages come
//!   again than were received in that second or were in flight.
//!
//! Time is the hub's: it stands still while no hub runs.

use std::collections::VecDeque;
use std::fmt::Display;
use std::time::{Duration, Instant};

use edgehub::limits::Limits;

use super::link::Body;
use super::plan::{Plan, Target};

/// Receipts this long before a break may come again: the second that is promised, and what timers
/// and a slow disk may add.
pub const AGAIN_MS: u32 = 1_000 + 500;
/// Faults that are told in full; the others are counted.
const TOLD_MAX: usize = 20;

pub struct Ledger {
    pub clock: Clock,
    pub faults: Faults,
    pub published: u64,
    pub acknowledged: u64,
    pub acknowledged_bytes: u64,
    pub sent_again: u64,
    /// First receipts, and those that were still due when [`Ledger::settle`] gave up.
    pub received: u64,
    due: u64,
    pub last_ack: Instant,
    /// Duplicates that publishers made, and the extra copies that they made.
    pub copies_received: u64,
    copies_made: u64,
    pub accounts: Vec<Account>,
    tracks: Vec<Vec<Track>>,
    lanes: Vec<Target>,
    /// Per publisher and lane: one more than the latest message that was received.
    firsts: Vec<Vec<u32>>,
    counters: Vec<u32>,
    /// Per round: how many messages each publisher had sent when it began.
    rounds: Vec<Vec<u32>>,
}

/// One output of one publisher.
struct Track {
    targets: Vec<(Target, usize)>,
    /// Ordinal of the first message in `messages`.
    base: u32,
    messages: Vec<Sent>,
    /// Per target, beside `messages`.
    copies: Vec<Vec<Copy>>,
}

struct Sent {
    counter: u32,
    acknowledged: bool,
    again: u8,
}

/// What an endpoint has seen of a message; times are 0 for never.
#[derive(Default, Clone)]
struct Copy {
    /// Last receipt before the connection broke last.
    before: u32,
    now: u32,
    /// Receipts since then.
    count: u8,
    /// Receipts that were not for want of an acknowledgement.
    fresh: u8,
}

/// One consumer.
#[derive(Default)]
pub struct Account {
    /// Times of the latest receipts.
    latest: VecDeque<u32>,
    pub breaks: Vec<Break>,
}

/// The hub was killed, or a consumer broke off.
#[derive(Clone, Copy, Default)]
pub struct Break {
    at: u32,
    pub round: usize,
    /// Messages that came again because of it, and how many may.
    pub again: u32,
    pub again_max: u32,
    /// The longest time that a message which came again had been received before.
    pub oldest_ms: u32,
}

#[derive(Default)]
pub struct Faults {
    pub lost: u64,
    pub out_of_order: u64,
    pub unexplained: u64,
    /// Bodies that are not what was sent, endpoints that no route names.
    pub damaged: u64,
    /// Everything else: sessions, connections, acknowledgements, starts.
    pub other: u64,
    /// Only counts.
    pub silent: bool,
    told: usize,
}

impl Faults {
    pub fn other(&mut self, what: impl Display) {
        self.other += 1;
        self.tell(what);
    }

    /// One that is counted already.
    pub fn tell(&mut self, what: impl Display) {
        if self.told < TOLD_MAX && !self.silent {
            println!("FAULT {what}");
            self.told += 1;
        }
    }

    pub fn any(&self) -> bool {
        self.lost + self.out_of_order + self.unexplained + self.damaged + self.other > 0
    }
}

/// The hub's time in milliseconds, from 1 on.
pub struct Clock {
    before: u32,
    since: Option<Instant>,
}

impl Clock {
    pub fn new() -> Self {
        Self {
            before: 1,
            since: None,
        }
    }

    pub fn start(&mut self) {
        self.since = Some(Instant::now());
    }

    pub fn stop(&mut self) {
        self.before = self.now();
        self.since = None;
    }

    pub fn now(&self) -> u32 {
        let running = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        self.before + running.as_millis() as u32
    }

    /// As if so much time had passed.
    pub fn pass(&mut self, time: Duration) {
        self.before += time.as_millis() as u32;
    }

    /// Everything from now on is later than everything so far.
    pub fn step(&mut self) {
        self.before += 1;
    }
}

impl Ledger {
    pub fn new(plan: &Plan) -> Self {
        let lanes = plan.lanes();
        let track = |targets: &Vec<Target>| {
            let with_lane = |target: &Target| {
                let lane = lanes.iter().position(|lane| lane == target).unwrap();
                (*target, lane)
            };
            Track {
                targets: targets.iter().map(with_lane).collect(),
                base: 0,
                messages: Vec::new(),
                copies: vec![Vec::new(); targets.len()],
            }
        };
        let tracks = || plan.outputs.iter().map(track).collect();
        Self {
            clock: Clock::new(),
            faults: Faults::default(),
            published: 0,
            acknowledged: 0,
            acknowledged_bytes: 0,
            sent_again: 0,
            received: 0,
            due: 0,
            last_ack: Instant::now(),
            copies_received: 0,
            copies_made: 0,
            accounts: (0..plan.consumers).map(|_| Account::default()).collect(),
            tracks: (0..plan.publishers).map(|_| tracks()).collect(),
            firsts: vec![vec![0; lanes.len()]; plan.publishers],
            counters: vec![0; plan.publishers],
            rounds: Vec::new(),
            lanes,
        }
    }

    pub fn begin_round(&mut self) {
        self.rounds.push(self.counters.clone());
    }

    /// A new message.
    pub fn publish(&mut self, publisher: usize, output: usize, bytes: usize) -> Body {
        let counter = self.counters[publisher];
        self.counters[publisher] += 1;
        let track = &mut self.tracks[publisher][output];
        let ordinal = track.base + track.messages.len() as u32;
        track.messages.push(Sent {
            counter,
            acknowledged: false,
            again: 0,
        });
        for copies in &mut track.copies {
            copies.push(Copy::default());
        }
        self.published += 1;
        Body {
            publisher,
            output,
            ordinal,
            counter,
            bytes,
        }
    }

    pub fn send_again(&mut self, body: &Body) {
        let track = &mut self.tracks[body.publisher][body.output];
        let sent = &mut track.messages[(body.ordinal - track.base) as usize];
        sent.again = sent.again.saturating_add(1);
        self.sent_again += 1;
        self.copies_made += track.targets.len() as u64;
    }

    pub fn acknowledge(&mut self, body: &Body) {
        let track = &mut self.tracks[body.publisher][body.output];
        track.messages[(body.ordinal - track.base) as usize].acknowledged = true;
        self.acknowledged += 1;
        self.acknowledged_bytes += body.bytes as u64;
        self.due += track.targets.len() as u64;
        self.last_ack = Instant::now();
    }

    /// A consumer received something on one of its inputs.
    pub fn receive(&mut self, consumer: usize, topic: &str, payload: &[u8]) {
        let input = topic.split('/').nth(5).unwrap_or_default();
        let Some((body, target, lane)) = self.find(consumer, input, payload) else {
            self.faults.damaged += 1;
            let (len, at) = (payload.len(), format!("c{consumer}/{input}"));
            self.faults
                .tell(format!("{at}: {len} bytes that nobody sent there"));
            return;
        };
        let now = self.clock.now();
        let account = &mut self.accounts[consumer];
        account.receive(now);
        let track = &mut self.tracks[body.publisher][body.output];
        let Some(index) = body.ordinal.checked_sub(track.base) else {
            self.faults.unexplained += 1;
            self.faults
                .tell(format!("again, long settled: {}", named(&body)));
            return;
        };
        let copy = &mut track.copies[target][index as usize];
        if copy.now == 0 {
            (copy.now, copy.count, copy.fresh) = (now, 1, 1);
            self.received += 1;
            let first = &mut self.firsts[body.publisher][lane];
            if body.counter < *first {
                self.faults.out_of_order += 1;
                let what = format!("{} came after {}", named(&body), *first - 1);
                self.faults.tell(format!("order: {what}"));
            }
            *first = (*first).max(body.counter + 1);
            return;
        }
        let sent = track.messages[index as usize].again.saturating_add(1);
        let broke = account.breaks.last().map_or(0, |last| last.at);
        if copy.now <= broke {
            (copy.before, copy.count) = (copy.now, 0);
        }
        copy.now = now;
        copy.count = copy.count.saturating_add(1);
        let again = copy.count <= sent && account.comes_again(copy.before);
        if !again && copy.fresh < sent {
            copy.fresh += 1;
            self.copies_received += 1;
        } else if !again {
            self.faults.unexplained += 1;
            let ago = broke.saturating_sub(copy.before);
            let why = format!("received {ago} ms before the last break, sent {sent} times");
            self.faults
                .tell(format!("duplicate: {}: {why}", named(&body)));
        }
    }

    /// The message, which of its targets this is, and the lane.
    fn find(&self, consumer: usize, input: &str, payload: &[u8]) -> Option<(Body, usize, usize)> {
        let input: usize = input.strip_prefix('i')?.parse().ok()?;
        let body = Body::read(payload)?;
        let track = self.tracks.get(body.publisher)?.get(body.output)?;
        let at = track
            .targets
            .iter()
            .position(|(target, _)| (target.consumer, target.input) == (consumer, input))?;
        if let Some(index) = body.ordinal.checked_sub(track.base) {
            let sent = track.messages.get(index as usize)?;
            (sent.counter == body.counter).then_some(())?;
        }
        Some((body, at, track.targets[at].1))
    }

    /// The connections of all consumers broke with the hub.
    pub fn hub_broke(&mut self) {
        for consumer in 0..self.accounts.len() {
            self.consumer_broke(consumer);
        }
    }

    pub fn consumer_broke(&mut self, consumer: usize) {
        let at = self.clock.now();
        let round = self.rounds.len().saturating_sub(1);
        self.accounts[consumer].broke(at, round);
        self.clock.step();
    }

    /// Copies that have been acknowledged to publishers and not been received; may be below zero,
    /// as messages arrive before their acknowledgements.
    pub fn backlog(&self) -> i64 {
        self.due as i64 - self.received as i64
    }

    /// Counts what is lost, and forgets all messages.
    pub fn settle(&mut self) {
        for publisher in 0..self.tracks.len() {
            for output in 0..self.tracks[publisher].len() {
                self.settle_track(publisher, output);
            }
        }
    }

    /// Finds breaks after which too much came again.
    pub fn check_breaks(&mut self) {
        let broken = self.accounts.iter().flat_map(|account| &account.breaks);
        for broken in broken.filter(|broken| broken.again > broken.again_max) {
            let Break {
                again, again_max, ..
            } = broken;
            let round = broken.round;
            self.faults.other(format!(
                "round {round}: {again} came again, at most {again_max}"
            ));
        }
    }

    fn settle_track(&mut self, publisher: usize, output: usize) {
        let track = &mut self.tracks[publisher][output];
        for (target, copies) in track.targets.iter().zip(&track.copies) {
            for (sent, copy) in track.messages.iter().zip(copies) {
                if copy.now > 0 || !sent.acknowledged {
                    continue;
                }
                self.faults.lost += 1;
                let counter = sent.counter;
                let begun = |starts: &Vec<u32>| starts[publisher] <= counter;
                let round = self.rounds.partition_point(begun).saturating_sub(1);
                let Target {
                    consumer, input, ..
                } = target.0;
                let from = format!("p{publisher}/o{output} {counter}");
                self.faults
                    .tell(format!("lost: {from}, round {round}, c{consumer}/i{input}"));
            }
        }
        track.base += track.messages.len() as u32;
        track.messages.clear();
        track.copies.iter_mut().for_each(Vec::clear);
    }

    /// Messages that came, as often as they came.
    pub fn receipts(&self) -> u64 {
        self.received + self.copies_received + self.came_again() + self.faults.unexplained
    }

    /// Messages that came once more, because acknowledgements or what was in flight got lost.
    pub fn came_again(&self) -> u64 {
        let breaks = self.accounts.iter().flat_map(|account| &account.breaks);
        breaks.map(|broken| u64::from(broken.again)).sum()
    }

    /// One line with every count.
    pub fn print(&self) {
        let Faults {
            lost,
            out_of_order,
            unexplained,
            damaged,
            other,
            ..
        } = self.faults;
        let copies = (self.copies_received, self.copies_made);
        println!(
            "published {}, acknowledged {}, copies due {}, received {} in {} lanes\n\
             duplicates: {} not acknowledged for good before a break, {} of {} copies that \
             publishers sent again\n\
             lost {lost}, order violations {out_of_order}, unexplained duplicates {unexplained}, \
             damaged {damaged}, other faults {other}",
            self.published,
            self.acknowledged,
            self.due,
            self.received,
            self.lanes.len(),
            self.came_again(),
            copies.0,
            copies.1,
        );
    }
}

impl Account {
    /// Whether a message received then may come again; counts it if so.
    fn comes_again(&mut self, received: u32) -> bool {
        let after = self.breaks.partition_point(|broken| broken.at < received);
        let Some(broken) = self.breaks.get_mut(after) else {
            return false;
        };
        let ago = broken.at - received;
        if received == 0 || ago > AGAIN_MS {
            return false;
        }
        broken.again += 1;
        broken.oldest_ms = broken.oldest_ms.max(ago);
        true
    }

    fn receive(&mut self, now: u32) {
        self.latest.push_back(now);
        self.forget(now);
    }

    fn forget(&mut self, now: u32) {
        let old = |time: &u32| now - time > AGAIN_MS;
        while self.latest.front().is_some_and(old) {
            self.latest.pop_front();
        }
    }

    fn broke(&mut self, at: u32, round: usize) {
        self.forget(at);
        let in_flight = u32::from(Limits::DEFAULT.max_inflight);
        self.breaks.push(Break {
            at,
            round,
            again: 0,
            again_max: self.latest.len() as u32 + in_flight,
            oldest_ms: 0,
        });
    }
}

fn named(body: &Body) -> String {
    let Body {
        publisher,
        output,
        counter,
        ..
    } = body;
    format!("p{publisher}/o{output} {counter}")
}
