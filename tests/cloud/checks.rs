//! What was sent, and what the promises say about what a record shows of it.
//!
//! - **Lost**: acknowledged to its sender, and not in the record.
//! - **Out of order**: of one sender and lane, recorded for the first time after a later message;
//!   or recorded on a connection after a later one, even if both had come before.
//! - **Duplicate**: recorded once more. It is explained if an earlier connection of the same client
//!   brought it already, or if its sender sent it more than once. Twice on one connection is not.
//! - **Against the session**: comes again on a connection that the sink said it has a session for,
//!   and without DUP or with another packet id than before, although the hub was not restarted.
//! - **Too many again**: more of them on one connection than can have been in flight, although the
//!   hub was not restarted.
//! - **Damaged**: nobody sent such a message there, or with other properties.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Write as _};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::record::{Connected, Entry, Message, Why};

/// Faults that are told in full; the others are counted.
const TOLD_MAX: usize = 20;

/// What a hub sent before it was killed, its CONNECT too, may have been on its way for so long.
const LATE_US: u64 = 20_000_000;
/// What a hub adds to what its sender marked as a repetition.
const DUP_PROPERTY: &str = "mqtt-dup";

/// What is in a message: whose it is, in which lane, and which one. The rest follows from that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Numbered {
    pub sender: String,
    pub lane: u8,
    /// From 0 on, per sender and lane.
    pub number: u32,
}

impl Numbered {
    pub fn new(sender: &str, lane: u8, number: u32) -> Self {
        Self {
            sender: sender.to_owned(),
            lane,
            number,
        }
    }

    /// A payload of about so many bytes.
    pub fn payload(&self, bytes: usize) -> Vec<u8> {
        let mut text = format!("{} {} {} ", self.sender, self.lane, self.number);
        for at in text.len()..bytes {
            text.push(self.filler(at));
        }
        text.into_bytes()
    }

    /// `None`: not a payload of ours, in any byte.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let mut words = text.splitn(4, ' ');
        let read = Self {
            sender: words.next()?.to_owned(),
            lane: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
        };
        (read.payload(text.len()) == payload).then_some(read)
    }

    fn filler(&self, at: usize) -> char {
        char::from(b'a' + ((self.number as usize + at) % 26) as u8)
    }

    /// The properties that it is sent with: system properties by their wire names, one of the
    /// sender's own, and one with everything that needs escaping.
    pub fn properties(&self) -> Vec<(String, String)> {
        [
            ("number", self.number.to_string()),
            ("place", "Halle 4/b & c=d+e% é#".to_owned()),
            (
                "$.mid",
                format!("{}-{}-{}", self.sender, self.lane, self.number),
            ),
            ("$.ct", "text/plain".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// The properties as a module sends them.
    pub fn bag(&self) -> String {
        let mut bag = String::new();
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        for (name, value) in &self.properties() {
            let separator = if bag.is_empty() { "" } else { "&" };
            write!(bag, "{separator}{}={}", encoded(name), encoded(value)).unwrap();
        }
        bag
    }
}

impl Display for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.sender, self.lane, self.number)
    }
}

/// What is in a bag.
pub fn properties(bag: &str) -> HashMap<String, String> {
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = bag.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    times: u8,
    acknowledged: bool,
}

/// What senders sent, and what was acknowledged to them.
#[derive(Default)]
pub struct Sent {
    lanes: BTreeMap<(String, u8), Vec<State>>,
    pub published: u64,
    pub sent_again: u64,
    pub acknowledged: u64,
    /// When the hub was killed, in microseconds since 1970.
    pub hub_kills: Vec<u64>,
}

impl Sent {
    /// The next message of a sender in a lane.
    pub fn publish(&mut self, sender: &str, lane: u8) -> Numbered {
        let states = self.lanes.entry((sender.to_owned(), lane)).or_default();
        states.push(State {
            times: 1,
            acknowledged: false,
        });
        self.published += 1;
        Numbered::new(sender, lane, states.len() as u32 - 1)
    }

    /// The number that the next message will have.
    pub fn next(&self, sender: &str, lane: u8) -> u32 {
        let lane = self.lanes.get(&(sender.to_owned(), lane));
        lane.map_or(0, |states| states.len() as u32)
    }

    pub fn send_again(&mut self, message: &Numbered) {
        let state = self.state(message);
        state.times = state.times.saturating_add(1);
        self.sent_again += 1;
    }

    pub fn acknowledge(&mut self, message: &Numbered) {
        self.state(message).acknowledged = true;
        self.acknowledged += 1;
    }

    fn state(&mut self, message: &Numbered) -> &mut State {
        let lane = self.lanes.get_mut(&(message.sender.clone(), message.lane));
        &mut lane.unwrap()[message.number as usize]
    }

    fn times(&self, message: &Numbered) -> Option<u8> {
        let lane = self.lanes.get(&(message.sender.clone(), message.lane))?;
        Some(lane.get(message.number as usize)?.times)
    }

    /// Whether the hub was killed between two times.
    fn was_killed(&self, from_us: u64, to_us: u64) -> bool {
        let within = |kill: &u64| (from_us..=to_us).contains(kill);
        self.hub_kills.iter().any(within)
    }
}

/// What a record shows.
#[derive(Debug, Default)]
pub struct Findings {
    /// Different messages, and all of them.
    pub different: u64,
    pub recorded: u64,
    pub connections: u64,
    /// Duplicates that earlier connections explain, and those that senders made.
    pub again: u64,
    pub copies: u64,
    /// The most that came again on one connection without a restart of the hub.
    pub again_max: u64,
    pub lost: u64,
    pub out_of_order: u64,
    pub unexplained: u64,
    pub against_session: u64,
    pub too_many_again: u64,
    pub damaged: u64,
    /// Connections on which no MQTT came.
    pub protocol: u64,
    /// The first faults in words.
    pub told: Vec<String>,
}

impl Findings {
    pub fn faults(&self) -> u64 {
        self.lost
            + self.out_of_order
            + self.unexplained
            + self.against_session
            + self.too_many_again
            + self.damaged
            + self.protocol
    }

    fn tell(&mut self, what: impl Display) {
        if self.told.len() < TOLD_MAX {
            self.told.push(what.to_string());
        }
    }
}

impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in &self.told {
            writeln!(f, "FAULT {what}")?;
        }
        writeln!(
            f,
            "recorded {}, different {}, on {} connections",
            self.recorded, self.different, self.connections
        )?;
        writeln!(
            f,
            "duplicates: {} of earlier connections (at most {} on one), {} that senders sent again",
            self.again, self.again_max, self.copies
        )?;
        write!(
            f,
            "lost {}, out of order {}, unexplained duplicates {}, against the session {}, \
             too many again {}, damaged {}, connections without MQTT {}",
            self.lost,
            self.out_of_order,
            self.unexplained,
            self.against_session,
            self.too_many_again,
            self.damaged,
            self.protocol
        )
    }
}

/// When a message was recorded last.
struct Receipt {
    connection: u64,
    /// When that connection began.
    connected_us: u64,
    packet_id: u16,
    /// On that connection.
    times: u8,
}

/// One connection of the record.
struct Connection {
    connected: Connected,
    again: u64,
    /// Of each lane the latest message that was sent once.
    latest: HashMap<(String, u8), u32>,
}

/// Reads a record as the promises want it.
struct Check<'a> {
    sent: &'a Sent,
    /// What one client may have in flight.
    window: u64,
    findings: Findings,
    connections: HashMap<u64, Connection>,
    /// Of each message the latest.
    receipts: HashMap<Numbered, Receipt>,
    /// Of each lane one more than the latest message.
    firsts: HashMap<(String, u8), u32>,
}

/// Compares a record with what was sent by hubs with so many messages in flight.
pub fn check(entries: &[Entry], sent: &Sent, window: u64) -> Findings {
    let mut check = Check {
        sent,
        window,
        findings: Findings::default(),
        connections: HashMap::new(),
        receipts: HashMap::new(),
        firsts: HashMap::new(),
    };
    for entry in entries {
        match entry {
            Entry::Started { .. } => {}
            Entry::Connected(connected) => check.connected(connected),
            Entry::Message(message) => check.message(message),
            Entry::Ended(ended) if ended.why == Why::Protocol => {
                check.findings.protocol += 1;
                let what = format!("connection {}: no MQTT", ended.connection);
                check.findings.tell(what);
            }
            Entry::Ended(_) => {}
        }
    }
    check.lost();
    check.findings
}

impl Check<'_> {
    fn connected(&mut self, connected: &Connected) {
        self.findings.connections += 1;
        let connection = Connection {
            connected: connected.clone(),
            again: 0,
            latest: HashMap::new(),
        };
        self.connections.insert(connected.connection, connection);
    }

    fn message(&mut self, message: &Message) {
        self.findings.recorded += 1;
        let Some((body, times)) = self.known(message) else {
            self.findings.damaged += 1;
            let (topic, bytes) = (&message.topic, message.payload.len());
            let what = format!("{topic}: {bytes} bytes that nobody sent there");
            return self.findings.tell(what);
        };
        let lane = (body.sender.clone(), body.lane);
        let connection = self.connections.get(&message.connection);
        let connected_us = connection.map_or(0, |found| found.connected.time_us);
        self.within_connection(message, &body, times, &lane);
        if let Some(receipt) = self.receipts.get_mut(&body) {
            let before = Receipt { ..*receipt };
            receipt.times = if before.connection == message.connection {
                before.times.saturating_add(1)
            } else {
                1
            };
            receipt.connection = message.connection;
            receipt.connected_us = connected_us;
            receipt.packet_id = message.packet_id;
            let on_this = receipt.times;
            return self.duplicate(message, &body, times, &before, on_this);
        }
        self.findings.different += 1;
        let first = self.firsts.entry(lane).or_default();
        let is_late = body.number < *first;
        let after = first.saturating_sub(1);
        *first = (*first).max(body.number + 1);
        if is_late {
            self.findings.out_of_order += 1;
            self.findings
                .tell(format!("order: {body} came after {after}"));
        }
        let receipt = Receipt {
            connection: message.connection,
            connected_us,
            packet_id: message.packet_id,
            times: 1,
        };
        self.receipts.insert(body, receipt);
    }

    /// The message, and how often it was sent; `None` where nobody sent it so. The device may send
    /// for all modules, a module for itself.
    fn known(&self, message: &Message) -> Option<(Numbered, u8)> {
        let body = Numbered::read(&message.payload)?;
        let times = self.sent.times(&body)?;
        let client = message.client_id.split_once('/');
        let (device, module) = client.unwrap_or((&message.client_id, &body.sender));
        let from = format!("devices/{device}/modules/{module}/messages/events/");
        let found = properties(message.topic.strip_prefix(&from)?);
        let as_sent = |(name, value): &(String, String)| found.get(name) == Some(value);
        // The hub tells of a DUP that it got.
        let again = found.get(DUP_PROPERTY);
        let is_told = again.is_none_or(|told| told == "true" && times > 1);
        let own = found.keys().filter(|name| !name.starts_with("$."));
        let own = own.count() - usize::from(again.is_some());
        let same = body.properties().iter().all(as_sent) && own == 2 && is_told;
        (same && module == body.sender).then_some((body, times))
    }

    /// What was sent once comes in order on each connection, be it again or not.
    fn within_connection(
        &mut self,
        message: &Message,
        body: &Numbered,
        times: u8,
        lane: &(String, u8),
    ) {
        let Some(connection) = self.connections.get_mut(&message.connection) else {
            self.findings.damaged += 1;
            let what = format!("{body}: no CONNECT of connection {}", message.connection);
            return self.findings.tell(what);
        };
        if times > 1 {
            return;
        }
        let latest = connection.latest.entry(lane.clone()).or_default();
        let after = *latest;
        *latest = after.max(body.number);
        if body.number < after {
            self.findings.out_of_order += 1;
            let number = message.connection;
            let what = format!("order: {body} came after {after} on connection {number}");
            self.findings.tell(what);
        }
    }

    fn duplicate(
        &mut self,
        message: &Message,
        body: &Numbered,
        times: u8,
        before: &Receipt,
        on_this: u8,
    ) {
        let number = message.connection;
        if before.connection == number {
            if on_this <= times {
                self.findings.copies += 1;
            } else {
                self.findings.unexplained += 1;
                let what = format!("duplicate: {body}, {on_this} times on connection {number}");
                self.findings.tell(what);
            }
            return;
        }
        self.findings.again += 1;
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let since_us = before.connected_us.saturating_sub(LATE_US);
        let killed = self.sent.was_killed(since_us, message.time_us);
        if killed || times > 1 {
            return;
        }
        connection.again += 1;
        let again = connection.again;
        self.findings.again_max = self.findings.again_max.max(again);
        let same = message.dup && message.packet_id == before.packet_id;
        let against = connection.connected.session_present && !same;
        if again == self.window + 1 {
            self.findings.too_many_again += 1;
            let what = format!("connection {number}: more again than were in flight");
            self.findings.tell(what);
        }
        if against {
            self.findings.against_session += 1;
            let (dup, id, old) = (message.dup, message.packet_id, before.packet_id);
            let what = format!("session: {body} again, DUP {dup}, packet id {id} after {old}");
            self.findings.tell(what);
        }
    }

    fn lost(&mut self) {
        for ((sender, lane), states) in &self.sent.lanes {
            for (number, state) in (0..).zip(states) {
                let body = Numbered::new(sender, *lane, number);
                if state.acknowledged && !self.receipts.contains_key(&body) {
                    self.findings.lost += 1;
                    self.findings.tell(format!("lost: {body}"));
                }
            }
        }
    }
}
