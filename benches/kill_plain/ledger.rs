//! What was published to plain topics, acknowledged and received, and what the promises say of it.
//!
//! - **Lost**: acknowledged (PUBACK, PUBREC), and never received by a kept session whose SUBACK had
//!   come before the message was sent; of a shared subscription by no member.
//! - **Out of order**: received for the first time after a later message of the same publisher and
//!   topic. Not of shared subscriptions, where one member may be slower than another.
//! - **Duplicate**: a message that an application gets once more.
//!   - With QoS 2 it gets one for each run of the hub in which the message was sent: what was not
//!     answered when the hub was killed may come twice, and nothing else may.
//!   - With QoS 1 it is explained as in `support/ledger.rs`: it was received within a second before
//!     the connection broke, or its publisher sent it again.
//! - **Retained**: after a crash a topic has the last value that was acknowledged, or one that was
//!   sent after that.
//!
//! Time is the hub's: it stands still while no hub runs.

use edgehub::mqtt::QoS;

use crate::support::ledger::{AGAIN_MS, Clock, Faults};
use crate::support::link::Body;

/// Retained topics of each publisher, half of them with QoS 1.
pub const RETAINED: usize = 4;
/// The streams of a publisher: QoS 1, QoS 2, for the shared subscription, and retained ones.
pub const STREAMS: usize = 3 + RETAINED;
pub const ONCE_AT_LEAST: usize = 0;
pub const ONCE_EXACTLY: usize = 1;
pub const SHARED: usize = 2;

pub fn topic(publisher: usize, stream: usize) -> String {
    match stream {
        ONCE_AT_LEAST => format!("q/1/p{publisher}"),
        ONCE_EXACTLY => format!("q/2/p{publisher}"),
        SHARED => format!("s/p{publisher}"),
        _ => format!("r/p{publisher}/{}", stream - SHARED - 1),
    }
}

pub const fn qos(stream: usize) -> QoS {
    match stream {
        ONCE_AT_LEAST | SHARED => QoS::AtLeastOnce,
        ONCE_EXACTLY => QoS::ExactlyOnce,
        _ if stream.is_multiple_of(2) => QoS::ExactlyOnce,
        _ => QoS::AtLeastOnce,
    }
}

pub const fn is_retained(stream: usize) -> bool {
    stream > SHARED
}

/// One of those who receive: a session, or all members of the shared subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Session(usize),
    Group,
}

pub struct Ledger {
    pub clock: Clock,
    pub faults: Faults,
    pub round: u32,
    pub published: u64,
    pub acknowledged: u64,
    pub sent_again: u64,
    /// First receipts of what was due, and how many of them are.
    pub received: u64,
    due: u64,
    /// Duplicates with QoS 1 that were received shortly before a break.
    pub came_again: u64,
    /// Duplicates of what publishers sent again, with QoS 1 and 2.
    pub copies: [u64; 2],
    /// Messages of QoS 2 without an answer when the hub was killed.
    pub unanswered: u64,
    pub retained_seen: u64,
    tracks: Vec<Vec<Track>>,
    /// The sessions, and the group at the end.
    receivers: Vec<Receiver>,
    counters: Vec<u32>,
}

/// One stream of one publisher.
#[derive(Default)]
struct Track {
    messages: Vec<Sent>,
    /// How many are acknowledged without a later one that is: one more than the last.
    acknowledged: u32,
}

struct Sent {
    counter: u32,
    round: u32,
    acknowledged: Option<u32>,
    /// It removes what is retained.
    removes: bool,
    /// How often it was sent, in how many runs of the hub, and in which one last.
    times: u8,
    runs: u8,
    last_run: u32,
}

#[derive(Default)]
struct Receiver {
    /// By publisher and stream.
    lanes: Vec<Vec<Lane>>,
    /// Times at which its connections broke.
    breaks: Vec<u32>,
}

#[derive(Default)]
struct Lane {
    /// Messages from this one on are due.
    from: Option<u32>,
    /// One more than the latest message that was received.
    first: u32,
    seen: Vec<Seen>,
}

/// What a receiver has seen of a message; times are 0 for never.
#[derive(Default, Clone, Copy)]
struct Seen {
    /// Last receipt before the connection broke last.
    before: u32,
    now: u32,
    /// Receipts since then.
    count: u8,
    /// Receipts that were not for want of an acknowledgement.
    fresh: u8,
}

impl Ledger {
    pub fn new(publishers: usize, sessions: usize) -> Self {
        let lanes = || (0..STREAMS).map(|_| Lane::default()).collect();
        let receiver = || Receiver {
            lanes: (0..publishers).map(|_| lanes()).collect(),
            breaks: Vec::new(),
        };
        let tracks = || (0..STREAMS).map(|_| Track::default()).collect();
        Self {
            clock: Clock::new(),
            faults: Faults::default(),
            round: 0,
            published: 0,
            acknowledged: 0,
            sent_again: 0,
            received: 0,
            due: 0,
            came_again: 0,
            copies: [0; 2],
            unanswered: 0,
            retained_seen: 0,
            tracks: (0..publishers).map(|_| tracks()).collect(),
            receivers: (0..=sessions).map(|_| receiver()).collect(),
            counters: vec![0; publishers],
        }
    }

    fn at(&self, to: To) -> usize {
        match to {
            To::Session(index) => index,
            To::Group => self.receivers.len() - 1,
        }
    }

    /// A new message; `removes` if it goes out without a payload.
    pub fn publish(
        &mut self,
        publisher: usize,
        stream: usize,
        bytes: usize,
        removes: bool,
    ) -> Body {
        let counter = self.counters[publisher];
        self.counters[publisher] += 1;
        let messages = &mut self.tracks[publisher][stream].messages;
        let ordinal = messages.len() as u32;
        messages.push(Sent {
            counter,
            round: self.round,
            acknowledged: None,
            removes,
            times: 1,
            runs: 1,
            last_run: self.round,
        });
        self.published += 1;
        Body {
            publisher,
            output: stream,
            ordinal,
            counter,
            bytes,
        }
    }

    /// The same packet once more.
    pub fn send_again(&mut self, body: &Body) {
        let round = self.round;
        let sent = self.sent(body);
        sent.times = sent.times.saturating_add(1);
        if sent.last_run != round {
            sent.last_run = round;
            sent.runs = sent.runs.saturating_add(1);
        }
        self.sent_again += 1;
    }

    pub fn removes(&mut self, body: &Body) -> bool {
        self.sent(body).removes
    }

    fn sent(&mut self, body: &Body) -> &mut Sent {
        let track = &mut self.tracks[body.publisher][body.output];
        &mut track.messages[body.ordinal as usize]
    }

    /// PUBACK or PUBREC has come.
    pub fn acknowledge(&mut self, body: &Body) {
        let round = self.round;
        self.sent(body).acknowledged = Some(round);
        let track = &mut self.tracks[body.publisher][body.output];
        track.acknowledged = track.acknowledged.max(body.ordinal + 1);
        self.acknowledged += 1;
        for receiver in &self.receivers {
            let lane = &receiver.lanes[body.publisher][body.output];
            self.due += u64::from(lane.is_due(body.ordinal));
        }
    }

    /// SUBACK has come: what is sent from now on is due.
    pub fn subscribed(&mut self, to: To, wants: impl Fn(usize) -> bool) {
        let at = self.at(to);
        for (publisher, tracks) in self.tracks.iter().enumerate() {
            for (stream, track) in tracks
                .iter()
                .enumerate()
                .filter(|(stream, _)| wants(*stream))
            {
                let lane = &mut self.receivers[at].lanes[publisher][stream];
                lane.from.get_or_insert(track.messages.len() as u32);
            }
        }
    }

    /// An application gets a message.
    pub fn receive(&mut self, to: To, (topic_name, granted): (&str, QoS), payload: &[u8]) {
        let Some(body) = self.known(topic_name, payload) else {
            self.faults.damaged += 1;
            let bytes = payload.len();
            let what = format!("{to:?}: {topic_name}: {bytes} bytes that nobody sent there");
            self.faults.tell(what);
            return;
        };
        let (at, now) = (self.at(to), self.clock.now());
        let sent = self.sent(&body);
        let allowed = match qos(body.output) {
            QoS::ExactlyOnce => sent.runs,
            _ => sent.times,
        };
        let Receiver { lanes, breaks } = &mut self.receivers[at];
        let lane = &mut lanes[body.publisher][body.output];
        let is_due = lane.is_due(body.ordinal);
        let index = body.ordinal as usize;
        if lane.seen.len() <= index {
            lane.seen.resize(index + 1, Seen::default());
        }
        let seen = &mut lane.seen[index];
        if seen.now == 0 {
            (seen.now, seen.count, seen.fresh) = (now, 1, 1);
            self.received += u64::from(is_due);
            if body.ordinal < lane.first && to != To::Group {
                self.faults.out_of_order += 1;
                let what = format!("{to:?}: {} came after {}", named(&body), lane.first - 1);
                self.faults.tell(format!("order: {what}"));
            }
            lane.first = lane.first.max(body.ordinal + 1);
            return;
        }
        let broke = breaks.last().copied().unwrap_or(0);
        if seen.now <= broke {
            (seen.before, seen.count) = (seen.now, 0);
        }
        seen.now = now;
        seen.count = seen.count.saturating_add(1);
        let ago = ago(breaks, seen.before);
        let is_again = granted != QoS::ExactlyOnce
            && (to == To::Group
                || (seen.count <= allowed && ago.is_some_and(|ago| ago <= AGAIN_MS)));
        if is_again {
            self.came_again += 1;
        } else if seen.fresh < allowed {
            seen.fresh += 1;
            self.copies[usize::from(granted == QoS::ExactlyOnce)] += 1;
        } else {
            self.faults.unexplained += 1;
            let what = format!("{to:?}: {} with {granted:?}", named(&body));
            let why =
                format!("it was sent {allowed} times, last received {ago:?} ms before a break");
            self.faults.tell(format!("duplicate: {what}: {why}"));
        }
    }

    fn known(&self, topic_name: &str, payload: &[u8]) -> Option<Body> {
        let body = Body::read(payload)?;
        let track = self.tracks.get(body.publisher)?.get(body.output)?;
        let sent = track.messages.get(body.ordinal as usize)?;
        let is_it = sent.counter == body.counter && !sent.removes;
        (is_it && topic(body.publisher, body.output) == topic_name).then_some(body)
    }

    /// What a fresh subscriber found: for each retained topic a payload, or none.
    pub fn retained(&mut self, found: &std::collections::BTreeMap<String, Vec<u8>>) {
        for publisher in 0..self.tracks.len() {
            for stream in (0..STREAMS).filter(|stream| is_retained(*stream)) {
                let name = topic(publisher, stream);
                self.judge_retained(&name, (publisher, stream), found.get(&name));
            }
        }
        for (name, payload) in found {
            if self.known(name, payload).is_none() {
                self.faults.damaged += 1;
                let what = format!("retained: {name}: {} bytes", payload.len());
                self.faults.tell(format!("{what} that nobody sent there"));
            }
        }
    }

    fn judge_retained(
        &mut self,
        name: &str,
        (publisher, stream): (usize, usize),
        found: Option<&Vec<u8>>,
    ) {
        let track = &self.tracks[publisher][stream];
        let last = track.acknowledged.checked_sub(1);
        let newest = &track.messages[last.unwrap_or(0) as usize..];
        let (is_right, what) = match found {
            None => {
                let may_be_gone = last.is_none() || newest.iter().any(|sent| sent.removes);
                (may_be_gone, "nothing".to_owned())
            }
            Some(payload) => match Body::read(payload) {
                Some(body) => {
                    self.retained_seen += 1;
                    let is_new = last.is_none_or(|last| body.ordinal >= last);
                    (is_new, format!("number {}", body.ordinal))
                }
                None => (false, "something else".to_owned()),
            },
        };
        if !is_right {
            let last = last.unwrap_or(0);
            let sent = &self.tracks[publisher][stream].messages[last as usize];
            let how = if sent.removes { " (a removal)" } else { "" };
            let round = sent.acknowledged.unwrap_or(0);
            self.faults.lost += 1;
            self.faults.tell(format!(
                "retained: {name}: {what}, though number {last}{how} was acknowledged in round \
                 {round}"
            ));
        }
    }

    /// The hub was killed, and all connections broke.
    pub fn hub_broke(&mut self) {
        let at = self.clock.now();
        for receiver in &mut self.receivers {
            receiver.breaks.push(at);
        }
        self.clock.step();
        let round = self.round;
        let tracks = self
            .tracks
            .iter()
            .flat_map(|tracks| tracks.iter().enumerate());
        let exact = tracks.filter(|(stream, _)| qos(*stream) == QoS::ExactlyOnce);
        for (_, track) in exact {
            // What was not answered is behind what was.
            let open = track.messages.iter().rev().take(100);
            let open = open.filter(|sent| sent.acknowledged.is_none() && sent.last_run == round);
            self.unanswered += open.count() as u64;
        }
    }

    /// One session's connection broke.
    pub fn session_broke(&mut self, session: usize) {
        let at = self.clock.now();
        self.receivers[session].breaks.push(at);
        self.clock.step();
    }

    /// What is due and was not received; may be below zero, as messages arrive before their
    /// acknowledgements.
    pub fn backlog(&self) -> i64 {
        self.due as i64 - self.received as i64
    }

    /// Messages that came, as often as they came.
    pub fn receipts(&self) -> u64 {
        self.received + self.came_again + self.copies[0] + self.copies[1] + self.faults.unexplained
    }

    /// Counts what is lost.
    pub fn settle(&mut self) {
        let group = self.receivers.len() - 1;
        for (at, receiver) in self.receivers.iter().enumerate() {
            for (publisher, lanes) in receiver.lanes.iter().enumerate() {
                for (stream, lane) in lanes.iter().enumerate() {
                    let messages = &self.tracks[publisher][stream].messages;
                    for (ordinal, sent) in messages.iter().enumerate() {
                        let Some(acknowledged) = sent.acknowledged else {
                            continue;
                        };
                        let seen = lane.seen.get(ordinal).is_some_and(|seen| seen.now > 0);
                        if seen || !lane.is_due(ordinal as u32) {
                            continue;
                        }
                        let who = if at == group {
                            "any member".to_owned()
                        } else {
                            format!("session c{at}")
                        };
                        self.faults.lost += 1;
                        self.faults.tell(format!(
                            "lost: {} number {ordinal} (message {} of p{publisher}), sent in \
                             round {}, {} times, acknowledged in round {acknowledged}: never \
                             reached {who}",
                            topic(publisher, stream),
                            sent.counter,
                            sent.round,
                            sent.times,
                        ));
                    }
                }
            }
        }
    }

    /// Every count.
    pub fn print(&self) {
        let Faults {
            lost,
            out_of_order,
            unexplained,
            damaged,
            other,
            ..
        } = self.faults;
        let [copies, copies_exact] = self.copies;
        println!(
            "published {}, acknowledged {}, sent again {}, due {}, received {}, retained values \
             found {}\n\
             duplicates: QoS 1 {} not acknowledged for good before a break, {copies} sent again by \
             publishers; QoS 2 {copies_exact} of {} messages that were not answered when the hub \
             was killed\n\
             lost {lost}, order violations {out_of_order}, unexplained duplicates {unexplained}, \
             damaged {damaged}, other faults {other}",
            self.published,
            self.acknowledged,
            self.sent_again,
            self.due,
            self.received,
            self.retained_seen,
            self.came_again,
            self.unanswered,
        );
    }
}

impl Lane {
    fn is_due(&self, ordinal: u32) -> bool {
        self.from.is_some_and(|from| from <= ordinal)
    }
}

/// How long before the next break that was, in milliseconds.
fn ago(breaks: &[u32], received: u32) -> Option<u32> {
    let after = breaks.partition_point(|broke| *broke < received);
    let broke = breaks.get(after).filter(|_| received > 0)?;
    Some(broke - received)
}

fn named(body: &Body) -> String {
    let topic = topic(body.publisher, body.output);
    format!("{topic} number {}", body.ordinal)
}
