//! One client's conversation, packet by packet, beside a model of what MQTT asks of a server: what
//! is let through to the hub, what is answered and when, which packet ids are in use.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use edgehub::mqtt::v5::{self, ReasonCode};
use edgehub::mqtt::{self, DecodeError, PacketId, QoS};
use edgehub::session::{Close, Event, InFlight, Outgoing, Session, Timing, Verdict, Welcome};

use super::said::{Asked, Said, Start, Step, asked, drain, feed, said, small, topic_of};
use super::wire::{self, Answer, Delivery};

const STEPS_MAX: usize = 200;
const TIMING: Timing = Timing {
    connect_ms: 10_000,
    publish_stall_ms: 60_000,
    ack_stall_ms: 300_000,
    window: 4,
};
/// What CONNACK says (MQTT 5 §3.2.2.3.8).
const ALIASES_MAX: u16 = 10;
const TOPICS: [&str; 4] = ["a", "a/b", "", "long/topic/of/some/levels"];

struct Model {
    session: Session<u32>,
    now_ms: u64,
    is_v5: bool,
    packet_max: usize,
    window: usize,
    keep_alive_ms: u64,
    expiry: u32,
    received_ms: u64,
    /// When an acknowledgement came last, or could not.
    heard_ms: u64,
    held: Option<(u64, Vec<u8>)>,
    kept: u64,
    durable: u64,
    /// What seq and version the next message has.
    next: u64,
    next_token: u32,
    /// Answers in the order of what they answer, with what has to be kept before.
    waiting: VecDeque<(u64, u64, Answer)>,
    pending: VecDeque<(u64, Answer)>,
    /// Answers that go at once.
    now: Vec<Answer>,
    in_flight: Vec<(u16, u8, u32)>,
    resumed: VecDeque<InFlight<u32>>,
    released: BTreeSet<u16>,
    unreleased: BTreeSet<u16>,
    aliases: BTreeMap<u16, String>,
    /// What the hub's aliases stand for.
    outgoing: wire::Aliases,
    wants_reasons: bool,
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(start) = Start::arbitrary(&mut input) else {
        return;
    };
    let steps: Vec<Step> = super::steps(&mut input, STEPS_MAX);
    let mut model = Model::new();
    let mut is_in = model.connect(&start, None);
    for step in &steps {
        is_in = match step {
            Step::Lose(start) => {
                let left = model.park();
                model.connect(start, Some(left))
            }
            step if is_in => model.step(step),
            _ => false,
        };
    }
    if is_in {
        model.park();
    }
}

type Left = (
    VecDeque<InFlight<u32>>,
    BTreeSet<PacketId>,
    u16,
    BTreeSet<PacketId>,
);

impl Model {
    fn new() -> Self {
        Self {
            session: Session::new(TIMING, 0),
            now_ms: 0,
            is_v5: false,
            packet_max: usize::MAX,
            window: 0,
            keep_alive_ms: 0,
            expiry: 0,
            received_ms: 0,
            heard_ms: 0,
            held: None,
            kept: 0,
            durable: 0,
            next: 1,
            next_token: 0,
            waiting: VecDeque::new(),
            pending: VecDeque::new(),
            now: Vec::new(),
            in_flight: Vec::new(),
            resumed: VecDeque::new(),
            released: BTreeSet::new(),
            unreleased: BTreeSet::new(),
            aliases: BTreeMap::new(),
            outgoing: wire::Aliases::default(),
            wants_reasons: true,
        }
    }

    /// A new connection; false if the client is not let in.
    fn connect(&mut self, start: &Start, left: Option<Left>) -> bool {
        let goes_on = left.is_some() && !start.is_clean;
        let fresh = Self::new();
        let before = std::mem::replace(self, fresh);
        (self.now_ms, self.kept, self.durable) = (before.now_ms, before.kept, before.durable);
        (self.next, self.next_token) = (before.next, before.next_token);
        self.session = Session::new(TIMING, self.now_ms);
        self.is_v5 = start.is_v5;
        let packet_max = start.packet_max.filter(|max| start.is_v5 && *max > 0);
        self.packet_max = packet_max.map_or(usize::MAX, usize::from);
        let receive_max = start.receive_max.filter(|max| start.is_v5 && *max > 0);
        let wanted = receive_max.map_or(u16::MAX, u16::from);
        self.window = usize::from(TIMING.window.min(wanted));
        self.keep_alive_ms = u64::from(start.keep_alive) * 1500;
        self.outgoing.max = start.aliases_max.map_or(0, u16::from);
        self.wants_reasons = !start.wants_no_reasons;
        self.expiry = start.expiry.filter(|_| start.is_v5).unwrap_or(0);
        let properties = start.properties();
        let connect = wire::Connect {
            client_id: "c",
            is_clean: start.is_clean,
            keep_alive_seconds: u16::from(start.keep_alive),
            properties: start.is_v5.then_some(&properties),
            will: None,
        };
        self.refuse_before_connect();
        let bytes = connect.bytes();
        let event = feed(&mut self.session, &bytes, self.is_v5, self.now_ms);
        let is_small = self.packet_max < 5;
        if is_small || (start.is_v5 && start.method) {
            assert!(event.is_err(), "refused");
            if !is_small {
                let reason = ReasonCode::BadAuthenticationMethod.to_byte();
                let connack = Answer::ConnAck {
                    present: false,
                    reason,
                };
                assert_eq!(self.written(), [connack]);
            }
            assert_eq!(self.written(), []);
            return false;
        }
        assert!(matches!(event, Ok(Event::Connect(..))));
        drop(event);
        assert!(
            !self.session.wants_packets(),
            "not before the hub has decided"
        );
        if let Some(delay) = start.refused {
            return self.refuse(u64::from(delay));
        }
        self.accept(start, left.filter(|_| goes_on));
        true
    }

    /// Anything but CONNECT is no beginning, and takes nothing from the hub.
    fn refuse_before_connect(&mut self) {
        let mut other = Session::<u32>::new(TIMING, self.now_ms);
        let event = feed(&mut other, &wire::PING, false, self.now_ms);
        assert!(matches!(event, Err(Close::NotConnected)));
        assert_eq!(drain(&mut other), [0; 0]);
        let due = other.next_timeout().unwrap();
        assert!(other.handle_timeout(due - 1).is_ok());
        assert_eq!(other.handle_timeout(due), Err(Close::ConnectTimeout));
    }

    fn refuse(&mut self, delay_ms: u64) -> bool {
        let code = mqtt::ConnectReturnCode::NotAuthorized;
        let close = Close::LoginRefused("no".to_owned());
        self.session
            .refuse(self.now_ms, delay_ms, code, close.clone());
        if delay_ms > 0 {
            assert_eq!(self.session.handle_timeout(self.now_ms), Ok(()));
            assert_eq!(self.written(), []);
        }
        self.now_ms += delay_ms;
        assert_eq!(self.session.handle_timeout(self.now_ms), Err(close));
        let reason = if self.is_v5 { 0x87 } else { 5 };
        let connack = Answer::ConnAck {
            present: false,
            reason,
        };
        assert_eq!(self.written(), [connack]);
        false
    }

    fn accept(&mut self, start: &Start, left: Option<Left>) {
        let present = left.is_some();
        let welcome = Welcome {
            session_present: present,
            keep_alive_seconds: u16::from(start.keep_alive),
            ..Welcome::default()
        };
        self.session.accept(self.now_ms, &welcome);
        (self.received_ms, self.heard_ms) = (self.now_ms, self.now_ms);
        self.session.handle_kept(self.kept);
        self.now.push(Answer::ConnAck { present, reason: 0 });
        if let Some((in_flight, released, next_id, unreleased)) = left {
            self.released = released.iter().map(|id| id.get()).collect();
            self.unreleased = unreleased.iter().map(|id| id.get()).collect();
            let again = self.released.iter().map(|id| Answer::PubRel(*id, 0));
            self.now.extend(again);
            self.session.resume(next_id, released, unreleased);
            self.resumed = in_flight;
        }
        self.check();
    }

    /// The connection is gone; what is left is what the model has.
    fn park(&mut self) -> Left {
        let session = std::mem::replace(&mut self.session, Session::new(TIMING, self.now_ms));
        let left = session.park();
        let mut in_flight = left.outbound.in_flight;
        let own: Vec<_> = in_flight
            .iter()
            .map(|one| (one.packet_id.get(), one.qos as u8, one.token))
            .collect();
        assert_eq!(own, self.in_flight);
        let ids = |ids: &BTreeSet<PacketId>| ids.iter().map(|id| id.get()).collect();
        let released: BTreeSet<u16> = ids(&left.outbound.released);
        assert_eq!(released, self.released);
        let unreleased: BTreeSet<u16> = ids(&left.unreleased);
        assert_eq!(unreleased, self.unreleased);
        in_flight.extend(self.resumed.drain(..));
        (
            in_flight,
            left.outbound.released,
            left.outbound.next_id,
            left.unreleased,
        )
    }

    /// False once the connection is over.
    fn step(&mut self, step: &Step) -> bool {
        let properties = |bytes: &[u8]| self.is_v5.then(|| bytes.to_vec());
        let bytes = match step {
            Step::Publish {
                flags: (dup, qos, retain),
                id,
                topic,
                alias,
                ..
            } => {
                let topic = TOPICS[usize::from(*topic) % TOPICS.len()];
                let alias = alias.map(|alias| [0x23, 0, alias]);
                let list = properties(alias.as_ref().map_or(&[], |alias| &alias[..]));
                let flags = (*dup, qos % 3, *retain);
                wire::publish(flags, (topic, small(*id)), list.as_deref(), b"body")
            }
            Step::Ack { kind, id, reason } => {
                let failed = |failed| if failed { 0x80 } else { 0 };
                let reason = reason.map(failed).filter(|_| self.is_v5 && kind % 2 == 1);
                wire::ack(4 + kind % 4, small(*id), reason)
            }
            Step::Subscribe {
                id,
                filters,
                identifier,
            } => {
                let list = properties(&[0x0b, identifier & 0x7f | 1]);
                let filters = vec![("a/#", filters % 3); 1 + usize::from(filters % 8)];
                wire::subscribe(small(*id), list.as_deref(), &filters)
            }
            Step::Unsubscribe { id, filters } => {
                let filters = vec!["a/#"; 1 + usize::from(filters % 8)];
                wire::unsubscribe(small(*id), self.is_v5, &filters)
            }
            Step::Ping => wire::PING.to_vec(),
            Step::Connect => wire::Connect::default().bytes(),
            Step::Disconnect { reason, expiry } if self.is_v5 => {
                let mut body = vec![[0, 4, 0x80, 0x9d][usize::from(*reason) % 4]];
                if let Some(seconds) = expiry {
                    body.extend_from_slice(&[5, 0x11]);
                    body.extend_from_slice(&seconds.to_be_bytes());
                }
                wire::packet(0xe0, &body)
            }
            Step::Disconnect { .. } => wire::DISCONNECT.to_vec(),
            Step::Raw(bytes) => bytes.clone(),
            Step::Lose(_) => return true,
            other => return self.hub_step(other),
        };
        let answer = match step {
            Step::Publish { answer, .. } => *answer,
            _ => 0,
        };
        self.packets(&bytes, answer)
    }

    /// What happens without the client.
    fn hub_step(&mut self, step: &Step) -> bool {
        match *step {
            Step::Deliver { qos, bytes, wanted } => self.deliver(qos % 3, bytes, wanted),
            Step::GoOn => {
                self.session.go_on(self.now_ms);
                if let Some((_, bytes)) = self.held.take() {
                    (self.received_ms, self.heard_ms) = (self.now_ms, self.now_ms);
                    return self.packets(&bytes, 0);
                }
            }
            Step::Kept(more) => {
                self.kept = (self.kept + u64::from(more)).min(self.next - 1);
                self.session.handle_kept(self.kept);
            }
            Step::Durable(more) => {
                self.durable = (self.durable + u64::from(more)).min(self.next - 1);
                self.session.handle_durable(self.durable);
                self.session.handle_state(self.durable);
            }
            Step::Wait(ms) => return self.wait(u64::from(ms) * 10),
            _ => {}
        }
        self.check();
        true
    }

    fn wait(&mut self, ms: u64) -> bool {
        self.now_ms += ms;
        let due = |since: u64, after: u64| after > 0 && self.now_ms >= since + after;
        let in_flight = !self.in_flight.is_empty() || !self.released.is_empty();
        let expected = match &self.held {
            Some((since, _)) => due(*since, TIMING.publish_stall_ms),
            None => {
                due(self.received_ms, self.keep_alive_ms)
                    || (in_flight && due(self.heard_ms, TIMING.ack_stall_ms))
            }
        };
        let woken = self
            .session
            .next_timeout()
            .is_some_and(|at| at <= self.now_ms);
        assert!(woken || !expected, "it would never be called");
        match self.session.handle_timeout(self.now_ms) {
            Ok(()) => assert!(!expected, "a deadline has passed"),
            Err(close) => {
                assert!(expected, "{close}");
                self.close(&close);
                return false;
            }
        }
        self.check();
        true
    }

    /// The client sends bytes; `answer` is what the hub does with a message.
    fn packets(&mut self, bytes: &[u8], answer: u8) -> bool {
        let mut rest = bytes;
        while self.session.wants_packets() {
            assert!(self.held.is_none());
            let decoded = said(rest, self.is_v5);
            let (said, length) = match decoded {
                Ok(Some(decoded)) => decoded,
                Ok(None) => break,
                // As the connection has it: whatever comes with it, it is a CONNECT.
                Err(DecodeError::UnsupportedProtocol { .. }) => {
                    self.close(&Close::SecondConnect);
                    return false;
                }
                Err(error) => {
                    self.close(&Close::Decode(error));
                    return false;
                }
            };
            let expected = self.expect(&said);
            self.received_ms = self.now_ms;
            let event = feed(&mut self.session, &rest[..length], self.is_v5, self.now_ms);
            let (asked, close) = asked(event, &said);
            if let Asked::Publish { topic } = &asked
                && topic.is_empty()
            {
                assert!(matches!(&said, Said::Publish { alias: Some(_), .. }));
            }
            let asked = self.with_alias(asked, &said);
            assert_eq!(asked, expected, "{said:?}");
            if let Some(close) = close {
                self.close(&close);
                return false;
            }
            if let Asked::Disconnect { .. } = asked {
                assert_eq!(self.written(), []);
                assert!(!self.session.wants_packets() && !self.session.is_active());
                return false;
            }
            if !self.answer(&said, asked, answer) {
                self.held = Some((self.now_ms, rest.to_vec()));
                self.session.hold_back(self.now_ms);
                break;
            }
            self.check();
            rest = &rest[length..];
        }
        self.check();
        true
    }

    fn with_alias(&self, asked: Asked, said: &Said) -> Asked {
        match (&asked, said) {
            (
                Asked::Publish { topic },
                Said::Publish {
                    alias: Some(alias), ..
                },
            ) if topic.is_empty() => {
                let list = [0x23, 0, *alias as u8];
                let list = v5::Properties::parse(&list, v5::Place::ClientPublish).unwrap();
                let topic = self.session.aliased_topic(list).to_owned();
                Asked::Publish { topic }
            }
            _ => asked,
        }
    }

    /// What a packet has to ask of the hub, and what is answered without it.
    fn expect(&mut self, said: &Said) -> Asked {
        match said {
            Said::Connect | Said::Auth => Asked::Refused,
            Said::Publish {
                qos,
                id,
                topic,
                alias,
            } => self.expect_publish((*qos, *id), topic, *alias),
            Said::Ack { kind: 6, id, .. } => {
                self.unreleased.remove(id);
                Asked::Released(*id)
            }
            Said::Ack { kind, id, failed } => self.expect_ack(*kind, *id, *failed),
            Said::Subscribe(id, filters) => Asked::Subscribe(*id, *filters),
            Said::Unsubscribe(id, filters) => Asked::Unsubscribe(*id, *filters),
            Said::Ping => {
                self.behind(Answer::PingResp);
                Asked::Nothing
            }
            Said::Disconnect { reason, expiry } => match expiry {
                Some(seconds) if self.expiry == 0 && *seconds > 0 => Asked::Refused,
                _ => Asked::Disconnect {
                    voids_will: *reason == 0,
                },
            },
        }
    }

    fn expect_publish(&mut self, (qos, id): (u8, u16), topic: &str, alias: Option<u16>) -> Asked {
        let mut topic = topic.to_owned();
        if let Some(alias) = alias {
            if alias > ALIASES_MAX {
                return Asked::Refused;
            }
            if !topic.is_empty() {
                self.aliases.insert(alias, topic.clone());
            }
            match self.aliases.get(&alias) {
                Some(known) => topic = known.clone(),
                None => return Asked::Refused,
            }
        }
        match qos {
            2 if self.unreleased.contains(&id) => {
                self.behind(Answer::PubRec(id, 0));
                Asked::Nothing
            }
            1 if self.is_v5 && self.unreleased.contains(&id) => {
                let reason = ReasonCode::PacketIdInUse.to_byte();
                self.behind(Answer::PubAck(id, reason));
                Asked::Nothing
            }
            _ => Asked::Publish { topic },
        }
    }

    /// PUBACK, PUBREC or PUBCOMP.
    fn expect_ack(&mut self, kind: u8, id: u16, failed: bool) -> Asked {
        let at = self.in_flight.iter().position(|flight| flight.0 == id);
        if let Some(at) = at {
            let (_, qos, token) = self.in_flight[at];
            if (qos, kind) != (1, 4) && (qos, kind) != (2, 5) {
                return Asked::Refused;
            }
            self.heard_ms = self.now_ms;
            self.in_flight.remove(at);
            if kind == 4 || failed {
                return Asked::Delivered(token);
            }
            self.released.insert(id);
            return Asked::Received(id, token);
        }
        if self.released.contains(&id) && kind == 4 {
            return Asked::Refused;
        }
        self.heard_ms = self.now_ms;
        match kind {
            5 if self.released.contains(&id) => self.behind(Answer::PubRel(id, 0)),
            5 if !failed => {
                let reason = ReasonCode::PacketIdNotFound.to_byte();
                let reason = if self.is_v5 { reason } else { 0 };
                self.now.push(Answer::PubRel(id, reason));
            }
            7 if self.released.remove(&id) => return Asked::Completed(id),
            _ => {}
        }
        Asked::Nothing
    }

    /// An answer behind all that wait.
    fn behind(&mut self, answer: Answer) {
        let (seq, version) = self.waiting.back().map_or((0, 0), |last| (last.0, last.1));
        self.waiting.push_back((seq, version, answer));
    }

    /// The hub does what it is asked; false if it holds the message back.
    fn answer(&mut self, said: &Said, asked: Asked, how: u8) -> bool {
        match asked {
            Asked::Publish { .. } => return self.take(said, how % 8),
            Asked::Subscribe(id, filters) => {
                let version = self.take_next();
                let codes = (0..filters).map(|at| match at % 3 {
                    0 => Ok(QoS::AtLeastOnce),
                    1 => Err(Verdict::because(ReasonCode::NotAuthorized, "no rule")),
                    _ => Ok(QoS::ExactlyOnce),
                });
                let codes: Vec<_> = codes.collect();
                let refused = if self.is_v5 { 0x87 } else { 0x80 };
                let bytes = codes.iter().map(|code| match code {
                    Ok(qos) => *qos as u8,
                    Err(_) => refused,
                });
                let suback = Answer::SubAck(id, bytes.collect());
                self.pending.push_back((version, suback));
                let packet_id = PacketId::new(id).unwrap();
                self.session.subscribed(packet_id, codes, version);
                self.session.handle_durable(self.durable);
            }
            Asked::Unsubscribe(id, filters) => {
                let version = self.take_next();
                let existed: Vec<bool> = (0..filters).map(|at| at % 2 == 0).collect();
                let codes = existed
                    .iter()
                    .map(|existed| if *existed { 0 } else { 0x11 });
                let codes = codes.filter(|_| self.is_v5).collect();
                self.pending
                    .push_back((version, Answer::UnsubAck(id, codes)));
                let packet_id = PacketId::new(id).unwrap();
                self.session.unsubscribed(packet_id, existed, version);
                self.session.handle_durable(self.durable);
            }
            Asked::Received(id, _) => {
                let version = self.take_next();
                self.waiting.push_back((0, version, Answer::PubRel(id, 0)));
                self.session.handle_state(self.durable);
                self.session.release(PacketId::new(id).unwrap(), version);
            }
            Asked::Released(id) => {
                let version = self.take_next();
                self.waiting.push_back((0, version, Answer::PubComp(id, 0)));
                self.session.handle_state(self.durable);
                self.session.complete(PacketId::new(id).unwrap(), version);
            }
            _ => {}
        }
        true
    }

    /// A message is taken, now or once it is kept, or refused; false if it is held back.
    fn take(&mut self, said: &Said, how: u8) -> bool {
        let Said::Publish { qos, id, .. } = *said else {
            panic!("{said:?}");
        };
        if how == 7 {
            return false;
        }
        let Some(packet_id) = PacketId::new(id).filter(|_| qos > 0) else {
            return true;
        };
        let (mut kept, mut reason) = ((0, 0), ReasonCode::Success);
        match how {
            1 => kept = (self.take_next(), 0),
            2 => kept = (0, self.take_next()),
            3 => kept = (self.take_next(), self.next - 1),
            4 => reason = ReasonCode::QuotaExceeded,
            5 => reason = ReasonCode::NoMatchingSubscribers,
            _ => {}
        }
        let verdict = match how {
            4 => Verdict::because(reason, "full"),
            _ => reason.into(),
        };
        self.session.handle_state(self.durable);
        self.session
            .acknowledge((wire::qos(qos), packet_id), kept, verdict);
        let byte = if self.is_v5 { reason.to_byte() } else { 0 };
        let answer = match qos {
            1 => Answer::PubAck(id, byte),
            _ => Answer::PubRec(id, byte),
        };
        if qos == 2 && !reason.is_failure() {
            self.unreleased.insert(id);
        }
        self.waiting.push_back((kept.0, kept.1, answer));
        true
    }

    fn take_next(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn deliver(&mut self, qos: u8, bytes: u16, wanted: Option<u8>) {
        if !self.resumed.is_empty() || self.session.room() == 0 {
            return;
        }
        self.next_token += 1;
        let token = self.next_token;
        let payload = Bytes::from(vec![b'x'; usize::from(bytes) % 8192]);
        let (prefix, suffix) = topic_of(token);
        let out = Outgoing::new(prefix.as_bytes(), suffix.as_bytes(), &payload);
        let packet_id = if qos == 0 { 0 } else { 2 };
        let properties = usize::from(self.is_v5);
        let topic = 2 + prefix.len() + suffix.len();
        let length = topic + packet_id + properties + payload.len();
        let header = if length < 128 { 2 } else { 3 };
        let takes = self.session.takes(wire::qos(qos), &out);
        assert_eq!(takes, header + length <= self.packet_max);
        if !takes {
            return;
        }
        if self.in_flight.is_empty() && self.released.is_empty() && qos > 0 {
            self.heard_ms = self.now_ms;
        }
        let wanted = wanted.and_then(|wanted| PacketId::new(small(wanted)));
        let at = (self.now_ms, wire::qos(qos));
        let back = self.session.deliver_as(at, &out, token, wanted);
        assert_eq!(back, (qos == 0).then_some(token));
        let written = self.written();
        let [Answer::Publish(delivery)] = &written[..] else {
            panic!("{written:?}");
        };
        let id = delivery.id;
        if qos > 0 {
            let in_use = self.in_flight.iter().any(|flight| flight.0 == id);
            assert!(!in_use && !self.released.contains(&id), "{id} is in use");
            if let Some(wanted) = wanted.map(PacketId::get) {
                let is_used = |id| self.in_flight.iter().any(|flight| flight.0 == id);
                let was_free = !is_used(wanted) && !self.released.contains(&wanted);
                assert!(!was_free || id == wanted);
            }
            self.in_flight.push((id, qos, token));
        }
        let expected = Delivery {
            dup: false,
            qos,
            retain: false,
            topic: format!("{prefix}{suffix}"),
            id,
            alias: None,
            subscriptions: Vec::new(),
            payload: payload.to_vec(),
        };
        assert_eq!(*delivery, expected);
    }

    /// Sends again what the previous connection had in flight, as far as there is room.
    fn redeliver(&mut self) {
        while self.session.room() > 0 {
            let Some(flight) = self.resumed.pop_front() else {
                return;
            };
            let (id, qos, token) = (flight.packet_id.get(), flight.qos as u8, flight.token);
            let payload = Bytes::from_static(b"again");
            let (prefix, suffix) = topic_of(token);
            let out = Outgoing::new(prefix.as_bytes(), suffix.as_bytes(), &payload);
            if !self.session.takes(flight.qos, &out) {
                continue;
            }
            self.session.redeliver(&out, flight);
            self.in_flight.push((id, qos, token));
            self.now.push(Answer::Publish(Delivery {
                dup: true,
                qos,
                retain: false,
                topic: format!("{prefix}{suffix}"),
                id,
                alias: None,
                subscriptions: Vec::new(),
                payload: payload.to_vec(),
            }));
        }
    }

    /// What was written is what had to be, in its order, and nothing that had to be is missing.
    fn check(&mut self) {
        self.redeliver();
        let used = self.in_flight.len() + self.released.len();
        assert_eq!(self.session.room(), self.window.saturating_sub(used));
        for answer in self.written() {
            let ready = self
                .waiting
                .front()
                .is_some_and(|(seq, version, _)| *seq <= self.kept && *version <= self.durable);
            if ready && self.waiting[0].2 == answer {
                self.waiting.pop_front();
                continue;
            }
            self.skip_too_large();
            let is_durable = |(version, _): &(u64, Answer)| *version <= self.durable;
            if self.pending.front().is_some_and(is_durable) && self.pending[0].1 == answer {
                self.pending.pop_front();
                continue;
            }
            let at = self.now.iter().position(|expected| *expected == answer);
            let at = at.unwrap_or_else(|| {
                let (waiting, pending) = (&self.waiting, &self.pending);
                panic!("{answer:?}, but {:?}, {waiting:?}, {pending:?}", self.now)
            });
            self.now.remove(at);
        }
        self.skip_too_large();
        assert_eq!(self.now, []);
        if let Some((seq, version, answer)) = self.waiting.front() {
            assert!(
                *seq > self.kept || *version > self.durable,
                "{answer:?} is due"
            );
        }
        if let Some((version, answer)) = self.pending.front() {
            assert!(*version > self.durable, "{answer:?} is due");
        }
    }

    /// SUBACKs that are larger than the client takes are not sent (MQTT 5 §3.1.2.11.4).
    fn skip_too_large(&mut self) {
        while let Some((version, Answer::SubAck(_, codes) | Answer::UnsubAck(_, codes))) =
            self.pending.front()
        {
            if *version > self.durable || 5 + codes.len() <= self.packet_max {
                return;
            }
            self.pending.pop_front();
        }
    }

    /// The last word of MQTT 5 is the reason; 3.1.1 has none.
    fn close(&mut self, close: &Close) {
        self.now.clear();
        let _ = self.written();
        self.session.say_goodbye(close);
        let reason = close.reason_code().map(ReasonCode::to_byte);
        let expected = reason.filter(|_| self.is_v5).map(Answer::Disconnect);
        assert_eq!(self.written(), Vec::from_iter(expected));
    }

    /// The packets that were written, none larger than the client takes.
    fn written(&mut self) -> Vec<Answer> {
        let bytes = drain(&mut self.session);
        let mut rest = &bytes[..];
        let mut answers = Vec::new();
        while !rest.is_empty() {
            let (mut answer, length) = wire::answer(rest, self.is_v5).expect("whole packets");
            assert!(length <= self.packet_max, "{answer:?}");
            if let Answer::Publish(delivery) = &mut answer {
                self.outgoing.resolve(delivery);
            } else if self.is_v5 && !self.wants_reasons {
                assert!(!wire::says_why(&rest[..length]), "{answer:?}");
            }
            answers.push(answer);
            rest = &rest[length..];
        }
        answers
    }
}
