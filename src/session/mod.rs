//! One client's conversation in MQTT 3.1.1 or 5, without sockets and clocks.
//!
//! Four kinds of method, by name: `handle_*` takes what came from outside (a packet, a timeout),
//! `accept`, `refuse`, `acknowledge`, `subscribed`, `deliver` carry out what the hub decided,
//! `next_timeout` says when to call [`Session::handle_timeout`], and [`Session::output`] holds the
//! bytes to write. The order of calls: feed packets until there is none, then deliver, then write.
//!
//! A session goes through the phases AwaitConnect → Authenticating → Active → Closed; an error
//! closes it for good. Times are milliseconds of one monotonic clock that the caller owns.

mod aliases;
mod answers;
mod close;
mod five;
mod output;
mod receiver;
mod sender;
mod upward;

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU32;

pub use close::Close;
pub use output::{Outgoing, Output};
pub use sender::{CHOSEN_ID_MAX, InFlight, Outbound, Sender};
pub use upward::{Above, Lost, Unasked, Upward, UpwardTiming, Why};

use answers::PendingAck;
use five::Five;
use receiver::Receiver;

use crate::mqtt::v5::{Properties, ReasonCode, RetainHandling, SubscriptionOptions};
use crate::mqtt::{
    self, ConnAck, Connect, ConnectReturnCode, FromClient, FromServer, PacketId, Publish, QoS,
    Unsubscribe,
};

/// What an answer counts: PUBACK is the longest of those that come in numbers.
const PUBACK_BYTES: usize = 4;

/// The bounds and deadlines of a session.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the start to the CONNECT packet.
    pub connect_ms: u64,
    /// How long a publish may be held back for lack of space.
    pub publish_stall_ms: u64,
    /// How long a client may leave deliveries unacknowledged; 0: for ever.
    pub ack_stall_ms: u64,
    /// Deliveries in flight.
    pub window: u16,
}

/// What a packet asks of the hub.
#[derive(Debug)]
pub enum Event<'a, T> {
    /// Nothing, the session has dealt with it.
    None,
    /// The client wants in: answer with [`Session::accept`] or [`Session::refuse`]. The properties
    /// are its will's.
    Connect(Connect<'a>, Properties<'a>),
    /// A message: append it, then [`Session::acknowledge`]. 3.1.1 has no properties.
    Publish(Publish<'a>, Properties<'a>),
    /// Answer with [`Session::subscribed`].
    Subscribe {
        /// What the answer carries too.
        packet_id: PacketId,
        /// At least one, each with what is asked for.
        filters: Vec<(&'a str, SubscriptionOptions)>,
        /// What messages are to carry that are sent for them (MQTT 5 §3.8.2.1.2).
        id: Option<NonZeroU32>,
    },
    /// Answer with [`Session::unsubscribed`].
    Unsubscribe(Unsubscribe<'a>),
    /// The client acknowledged a delivery.
    Delivered(T),
    /// The client has a message of QoS 2: answer with [`Session::release`].
    Received(PacketId, T),
    /// The client is done with a message of QoS 2.
    Completed(PacketId),
    /// The client released a message of QoS 2 that it had sent: answer with
    /// [`Session::complete`].
    Released(PacketId),
    /// The client took its leave (§3.14).
    Disconnect {
        /// Its will is not to be published.
        voids_will: bool,
    },
}

/// What a client is let in with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Welcome<'a> {
    /// There was a session of it.
    pub session_present: bool,
    /// The client's wish; 0: never.
    pub keep_alive_seconds: u16,
    /// What it has to keep to instead, if it can be told: in MQTT 5.
    pub server_keep_alive: Option<u16>,
    /// The session is kept after the connection.
    pub is_kept: bool,
    /// The client id that the hub chose for it.
    pub assigned_client_id: Option<&'a str>,
    /// The largest packet that the hub takes.
    pub packet_bytes_max: Option<NonZeroU32>,
}

#[derive(Debug)]
enum Phase {
    AwaitConnect {
        deadline_ms: u64,
    },
    Authenticating,
    Active,
    /// A refusal waits for its time (slowed logins) before CONNACK and close.
    Refusing {
        at_ms: u64,
        answer: Refusal,
        close: Close,
    },
    Closed,
}

/// What CONNACK says to a client that may not in, in both versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Of 3.1.1.
    pub v311: ConnectReturnCode,
    /// Of MQTT 5.
    pub v5: ReasonCode,
}

impl From<ConnectReturnCode> for Refusal {
    fn from(code: ConnectReturnCode) -> Self {
        let v5 = code.into();
        Self { v311: code, v5 }
    }
}

/// What became of one filter of a SUBSCRIBE.
pub type Granted = Result<QoS, Verdict>;

/// What a client of MQTT 5 is told of a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The code.
    pub code: ReasonCode,
    /// Why, in words for people (MQTT 5 §3.4.2.2.2).
    pub why: Option<Box<str>>,
}

impl From<ReasonCode> for Verdict {
    fn from(code: ReasonCode) -> Self {
        Self { code, why: None }
    }
}

impl Verdict {
    /// A refusal and its reason.
    #[must_use]
    pub fn because(code: ReasonCode, why: impl std::fmt::Display) -> Self {
        let why = Some(why.to_string().into_boxed_str());
        Self { code, why }
    }
}

/// What a connection leaves for the next one of its session.
#[derive(Debug)]
pub struct Remains<T> {
    /// Of messages to the client.
    pub outbound: Outbound<T>,
    /// Packet ids of QoS 2 messages of the client that it has not released.
    pub unreleased: BTreeSet<PacketId>,
}

/// One client's conversation. `T` is how the hub knows a delivery again.
#[derive(Debug)]
pub struct Session<T> {
    timing: Timing,
    phase: Phase,
    keep_alive_ms: u64,
    received_ms: u64,
    held_back_ms: Option<u64>,
    /// Because the client publishes more than it may.
    is_slowed: bool,
    sender: Sender<T>,
    pending: VecDeque<PendingAck>,
    receiver: Receiver,
    output: Output,
    /// Bytes of answers written since the output was last empty.
    answer_bytes: usize,
    /// There if the client speaks MQTT 5.
    five: Option<Box<Five>>,
}

impl<T> Session<T> {
    /// A session that waits for CONNECT.
    #[must_use]
    pub fn new(timing: Timing, now_ms: u64) -> Self {
        Self {
            timing,
            phase: Phase::AwaitConnect {
                deadline_ms: now_ms + timing.connect_ms,
            },
            keep_alive_ms: 0,
            received_ms: now_ms,
            held_back_ms: None,
            is_slowed: false,
            sender: Sender::new(timing.window),
            pending: VecDeque::new(),
            receiver: Receiver::default(),
            output: Output::default(),
            answer_bytes: 0,
            five: None,
        }
    }

    /// Whether the client is in.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Whether packets may be fed: not while the hub decides about CONNECT, nor while a publish
    /// is held back.
    #[must_use]
    pub fn wants_packets(&self) -> bool {
        matches!(self.phase, Phase::AwaitConnect { .. } | Phase::Active)
            && self.held_back_ms.is_none()
    }

    /// Bytes of acknowledgements and other answers that the client may not have taken yet. It is
    /// these that a client can make more of by sending; deliveries have their own bound.
    pub fn unread_answer_bytes(&mut self) -> usize {
        if self.output.is_empty() {
            self.answer_bytes = 0;
        }
        self.answer_bytes
    }

    /// The bytes to write.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Takes a packet.
    ///
    /// # Errors
    /// The reason for which the connection must be closed (MQTT 3.1.1 §4.8).
    pub fn handle_packet<'a>(
        &mut self,
        now_ms: u64,
        packet: FromClient<'a>,
    ) -> Result<Event<'a, T>, Close> {
        self.received_ms = now_ms;
        match (&self.phase, packet) {
            (Phase::AwaitConnect { .. }, FromClient::Connect(connect)) => {
                self.phase = Phase::Authenticating;
                Ok(Event::Connect(connect, Properties::EMPTY))
            }
            (Phase::AwaitConnect { .. }, _) => Err(Close::NotConnected),
            (Phase::Active, packet) => self.handle_active(now_ms, packet),
            (Phase::Authenticating | Phase::Refusing { .. } | Phase::Closed, _) => Ok(Event::None),
        }
    }

    fn handle_active<'a>(
        &mut self,
        now_ms: u64,
        packet: FromClient<'a>,
    ) -> Result<Event<'a, T>, Close> {
        match packet {
            FromClient::Publish(publish) => Ok(self.handle_publish(publish, Properties::EMPTY)),
            FromClient::PubAck(packet_id) => self.handle_puback(now_ms, packet_id),
            FromClient::PubRec(packet_id) => self.handle_pubrec(now_ms, packet_id, false),
            FromClient::PubRel(packet_id) => Ok(self.handle_pubrel(packet_id)),
            FromClient::PubComp(packet_id) => self.handle_pubcomp(now_ms, packet_id),
            FromClient::Subscribe(subscribe) => Ok(Event::Subscribe {
                packet_id: subscribe.packet_id,
                filters: subscribe
                    .filters
                    .iter()
                    .map(|(filter, qos)| (filter, options(qos)))
                    .collect(),
                id: None,
            }),
            FromClient::Unsubscribe(unsubscribe) => Ok(Event::Unsubscribe(unsubscribe)),
            FromClient::PingReq => {
                self.handle_ping();
                Ok(Event::None)
            }
            FromClient::Disconnect => {
                self.phase = Phase::Closed;
                Ok(Event::Disconnect { voids_will: true })
            }
            FromClient::Connect(_) => Err(Close::SecondConnect),
        }
    }

    /// Lets the client in (§3.2).
    pub fn accept(&mut self, now_ms: u64, welcome: &Welcome<'_>) {
        self.phase = Phase::Active;
        let told = welcome.server_keep_alive.filter(|_| self.is_v5());
        let keep_alive_seconds = told.unwrap_or(welcome.keep_alive_seconds);
        self.keep_alive_ms = u64::from(keep_alive_seconds) * 1500;
        self.received_ms = now_ms;
        self.sender.hear(now_ms);
        if self.is_v5() {
            self.welcome_v5(welcome);
            return;
        }
        self.encode(&FromServer::ConnAck(ConnAck {
            session_present: welcome.session_present,
            code: ConnectReturnCode::Accepted,
        }));
    }

    /// Keeps the client out with a return code, `delay_ms` from now.
    pub fn refuse(&mut self, now_ms: u64, delay_ms: u64, code: impl Into<Refusal>, close: Close) {
        self.phase = Phase::Refusing {
            at_ms: now_ms + delay_ms,
            answer: code.into(),
            close,
        };
    }

    /// What the client published is on disk up to this version of the small state.
    pub fn handle_state(&mut self, version: u64) {
        self.receiver.durable(version);
        self.answer();
    }

    /// How many more deliveries of QoS 1 and 2 may be in flight.
    #[must_use]
    pub fn room(&self) -> usize {
        self.sender.room()
    }

    /// Sends a message; it is in flight until acknowledged, but with QoS 0 the token comes straight
    /// back.
    pub fn deliver(&mut self, now_ms: u64, qos: QoS, out: &Outgoing<'_>, token: T) -> Option<T> {
        self.deliver_as((now_ms, qos), out, token, None)
    }

    /// The same, under this packet id unless it is in use: a message that comes again after the
    /// hub was killed is known by it (MQTT 5 §4.3.3).
    pub fn deliver_as(
        &mut self,
        at: (u64, QoS),
        out: &Outgoing<'_>,
        token: T,
        wanted: Option<PacketId>,
    ) -> Option<T> {
        self.sender
            .deliver(&mut self.output, at, (out, wanted), token)
    }

    /// Sends a message of the previous connection again, DUP set and under its old packet id
    /// (MQTT 3.1.1 §4.4).
    pub fn redeliver(&mut self, out: &Outgoing<'_>, in_flight: InFlight<T>) {
        self.sender.redeliver(&mut self.output, out, in_flight);
    }

    /// Goes on where the previous connection of the session ended: with its packet ids, and with
    /// the QoS 2 messages of which one side has to hear yet (MQTT 5 §4.4).
    pub fn resume(
        &mut self,
        next_id: u16,
        released: BTreeSet<PacketId>,
        unreleased: BTreeSet<PacketId>,
    ) {
        self.sender.continue_ids(next_id);
        for packet_id in &released {
            self.pubrel(*packet_id, true);
        }
        self.sender.release(released);
        self.receiver.resume(unreleased);
    }

    /// A publish found no room: no packets and no keep-alive until [`Session::go_on`].
    pub fn hold_back(&mut self, now_ms: u64) {
        self.held_back_ms.get_or_insert(now_ms);
    }

    /// The client publishes too much: as [`Session::hold_back`], and it is not its fault that
    /// nothing is taken.
    pub fn slow_down(&mut self, now_ms: u64) {
        self.hold_back(now_ms);
        self.is_slowed = true;
    }

    /// The held-back publish was stored.
    pub fn go_on(&mut self, now_ms: u64) {
        self.is_slowed = false;
        if self.held_back_ms.take().is_some() {
            self.received_ms = now_ms;
            // Acknowledgements may have been waiting all the while; they are read only now.
            self.sender.hear(now_ms);
        }
    }

    /// When [`Session::handle_timeout`] is due; may be early, never late.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        match &self.phase {
            Phase::AwaitConnect { deadline_ms } => Some(*deadline_ms),
            Phase::Refusing { at_ms, .. } => Some(*at_ms),
            Phase::Authenticating | Phase::Closed => None,
            Phase::Active => [self.keep_alive_at(), self.stall_at(), self.ack_stall_at()]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// Checks all deadlines.
    ///
    /// # Errors
    /// The reason for which the connection must be closed.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), Close> {
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now_ms);
        match &self.phase {
            Phase::AwaitConnect { deadline_ms } if *deadline_ms <= now_ms => {
                Err(Close::ConnectTimeout)
            }
            Phase::Refusing {
                at_ms,
                answer,
                close,
            } if *at_ms <= now_ms => {
                let (answer, close) = (*answer, close.clone());
                let why = close.to_string();
                match answer {
                    Refusal { v5, .. } if self.is_v5() => self.refuse_v5(v5, &why),
                    Refusal { v311, .. } => self.encode(&FromServer::ConnAck(ConnAck {
                        session_present: false,
                        code: v311,
                    })),
                }
                Err(close)
            }
            Phase::Active if due(self.stall_at()) => Err(Close::PublishStalled),
            Phase::Active if due(self.keep_alive_at()) => Err(Close::KeepAlive),
            Phase::Active if due(self.ack_stall_at()) => Err(Close::AckStalled),
            _ => Ok(()),
        }
    }

    /// The connection is gone: what is left for the next one.
    #[must_use]
    pub fn park(self) -> Remains<T> {
        Remains {
            outbound: self.sender.park(),
            unreleased: self.receiver.park(),
        }
    }

    fn keep_alive_at(&self) -> Option<u64> {
        (self.keep_alive_ms > 0 && self.held_back_ms.is_none())
            .then(|| self.received_ms + self.keep_alive_ms)
    }

    fn stall_at(&self) -> Option<u64> {
        let since = self.held_back_ms.filter(|_| !self.is_slowed)?;
        Some(since + self.timing.publish_stall_ms)
    }

    /// A held-back client's acknowledgements are not read, so they are not missed either.
    fn ack_stall_at(&self) -> Option<u64> {
        let stalls_at = self.sender.stalls_at(self.timing.ack_stall_ms);
        stalls_at.filter(|_| self.held_back_ms.is_none())
    }

    fn encode(&mut self, packet: &FromServer<'_>) {
        self.answer_bytes += PUBACK_BYTES;
        let written = mqtt::encode_from_server(packet, self.output.tail());
        debug_assert!(written.is_ok(), "{packet:?}: {written:?}");
    }
}

/// What MQTT 3.1.1 has for options.
fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions {
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    }
}

#[cfg(test)]
mod tests;
