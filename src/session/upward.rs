//! The client's half of a conversation, with the server above, without sockets and clocks: what
//! [`Session`](super::Session) is downwards, this is upwards. What MQTT 5 adds is in `five`.
//!
//! The order of calls: [`Upward::new`] has written CONNECT; feed packets until there is none,
//! deliver, then write [`Upward::output`]. Times are milliseconds of one monotonic clock.

mod five;

use std::collections::VecDeque;

pub use five::{Unasked, Why};

use super::{InFlight, Outgoing, Output, Sender};
use crate::mqtt::v5::{Properties, ReasonCode};
use crate::mqtt::{
    self, Connect, ConnectReturnCode, FromClient, FromServer, PacketId, Publish, QoS, SubAckCode,
};
use five::Five;

/// The bounds and deadlines of a conversation with a server.
#[derive(Debug, Clone, Copy)]
pub struct UpwardTiming {
    /// From CONNECT to CONNACK.
    pub accept_ms: u64,
    /// A server from which nothing comes for so long is gone, unless the link still takes what
    /// waits for it. It is asked with PINGREQ after half of it in silence.
    pub dead_peer_ms: u64,
    /// How long the server may leave publications unacknowledged though it answers otherwise.
    pub ack_stall_ms: u64,
    /// Publications in flight.
    pub window: u16,
}

/// What came from the server.
#[derive(Debug)]
pub enum Above<'a, T> {
    /// Nothing that concerns the hub.
    None,
    /// It let us in.
    Accepted {
        /// It knew our session.
        session_present: bool,
    },
    /// It acknowledged a publication.
    Delivered(T),
    /// It will not have a publication, and says why (MQTT 5 §3.4.2.1).
    Refused(T, Why),
    /// A message; with QoS 1 [`Upward::acknowledge`] it. 3.1.1 has no properties.
    Message(Publish<'a>, Properties<'a>),
    /// What it says to our filters, in their order.
    Subscribed(Vec<Result<QoS, ReasonCode>>),
    /// It has given up what we asked it to.
    Unsubscribed,
}

/// Why the conversation is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// No CONNACK in time.
    #[error("no CONNACK in time")]
    NotAccepted,
    /// CONNACK with another code than 0.
    #[error("the server refused the login: {0:?}")]
    Refused(ConnectReturnCode),
    /// The same in MQTT 5.
    #[error("the server refused the login: {0}")]
    RefusedWith(Why),
    /// DISCONNECT of MQTT 5, after CONNACK or instead of it.
    #[error("the server ended the connection: {0}")]
    SentAway(Why),
    /// It takes nothing that has to be acknowledged, and that is wanted (MQTT 5 §3.2.2.3.4).
    #[error("the server takes no QoS 1, with which messages are to be sent")]
    QosZeroOnly,
    /// It does not answer any more.
    #[error("the server was asked {0} ms ago and has not answered")]
    Silent(u64),
    /// It answers, and acknowledges nothing.
    #[error("the server has acknowledged nothing for {0} ms")]
    AckStalled(u64),
    /// It sent what a server must not.
    #[error("the server sent {0}")]
    Unexpected(&'static str),
    /// What came is no MQTT.
    #[error("the server sent no MQTT: {0}")]
    Decode(String),
    /// The socket.
    #[error("connection lost: {0}")]
    Io(String),
}

#[derive(Debug)]
enum Phase {
    AwaitConnAck { deadline_ms: u64 },
    Active,
}

/// One conversation. `T` is how the hub knows a publication again.
#[derive(Debug)]
pub struct Upward<T> {
    timing: UpwardTiming,
    phase: Phase,
    keep_alive_ms: u64,
    sender: Sender<T>,
    output: Output,
    /// When something last came, or a full socket took something.
    heard_ms: u64,
    sent_ms: u64,
    /// PINGREQ is on its way since then.
    ping_ms: Option<u64>,
    /// With a server of MQTT 5.
    five: Option<Five>,
}

impl<T> Upward<T> {
    /// Says CONNECT.
    ///
    /// # Errors
    /// A CONNECT that cannot be written: a name that is too long.
    pub fn new(
        timing: UpwardTiming,
        connect: &Connect<'_>,
        now_ms: u64,
    ) -> Result<Self, mqtt::EncodeError> {
        let mut output = Output::default();
        mqtt::encode_from_client(&FromClient::Connect(*connect), output.tail())?;
        Ok(Self::begin(
            timing,
            connect.keep_alive_seconds,
            output,
            now_ms,
        ))
    }

    fn begin(timing: UpwardTiming, keep_alive_seconds: u16, output: Output, now_ms: u64) -> Self {
        Self {
            timing,
            phase: Phase::AwaitConnAck {
                deadline_ms: now_ms + timing.accept_ms,
            },
            keep_alive_ms: u64::from(keep_alive_seconds) * 1000,
            sender: Sender::new(timing.window),
            output,
            heard_ms: now_ms,
            sent_ms: now_ms,
            ping_ms: None,
            five: None,
        }
    }

    /// Whether the server let us in.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// How many more publications may be in flight.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.is_active() {
            self.sender.room()
        } else {
            0
        }
    }

    /// Whether nothing waits for its acknowledgement.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.sender.is_empty()
    }

    /// The bytes to write.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// The socket took bytes. Only when it `was_full` does this say that the link moves: a large
    /// message on a slow link is on its way, and an answer to PINGREQ is behind it. What an empty
    /// socket takes, it takes of a server too that hangs.
    pub fn wrote(&mut self, now_ms: u64, was_full: bool) {
        self.sent_ms = now_ms;
        if was_full {
            self.heard_ms = now_ms;
        }
    }

    /// Takes a packet.
    ///
    /// # Errors
    /// Why the connection must be closed.
    pub fn handle_packet<'a>(
        &mut self,
        now_ms: u64,
        packet: FromServer<'a>,
    ) -> Result<Above<'a, T>, Lost> {
        self.heard_ms = now_ms;
        self.ping_ms = None;
        match (&self.phase, packet) {
            (Phase::AwaitConnAck { .. }, FromServer::ConnAck(answer)) => {
                if answer.code != ConnectReturnCode::Accepted {
                    return Err(Lost::Refused(answer.code));
                }
                self.phase = Phase::Active;
                self.sender.hear(now_ms);
                Ok(Above::Accepted {
                    session_present: answer.session_present,
                })
            }
            (Phase::AwaitConnAck { .. }, _) => Err(Lost::Unexpected("a packet before CONNACK")),
            (Phase::Active, FromServer::ConnAck(_)) => Err(Lost::Unexpected("a second CONNACK")),
            (Phase::Active, FromServer::PubAck(id)) => {
                self.sender.hear(now_ms);
                // An id of a publication that was forgotten with the session before is no harm.
                let token = self.sender.acknowledge(id);
                Ok(token.map_or(Above::None, Above::Delivered))
            }
            (Phase::Active, FromServer::Publish(publish)) => {
                if publish.qos == QoS::ExactlyOnce {
                    return Err(Lost::Unexpected(
                        "a message with QoS 2, which was not asked for",
                    ));
                }
                Ok(Above::Message(publish, Properties::EMPTY))
            }
            (Phase::Active, FromServer::SubAck(answer)) => Ok(Above::Subscribed(
                answer.codes.iter().map(granted).collect(),
            )),
            (Phase::Active, FromServer::PingResp) => Ok(Above::None),
            (Phase::Active, FromServer::UnsubAck(_)) => Ok(Above::Unsubscribed),
            (
                Phase::Active,
                FromServer::PubRec(_) | FromServer::PubRel(_) | FromServer::PubComp(_),
            ) => Err(Lost::Unexpected("an acknowledgement of QoS 2")),
        }
    }

    /// Publishes; with QoS 1 it is in flight until acknowledged, with QoS 0 the token comes
    /// straight back.
    pub fn deliver(&mut self, now_ms: u64, qos: QoS, out: &Outgoing<'_>, token: T) -> Option<T> {
        let at = (now_ms, qos);
        self.sender
            .deliver(&mut self.output, at, (out, None), token)
    }

    /// Publishes again what was in flight on the connection before, under its id
    /// (MQTT 3.1.1 §4.4).
    pub fn redeliver(&mut self, out: &Outgoing<'_>, in_flight: InFlight<T>) {
        self.sender.redeliver(&mut self.output, out, in_flight);
    }

    /// Goes on with the packet ids of the connection before.
    pub fn continue_ids(&mut self, next_id: u16) {
        self.sender.continue_ids(next_id);
    }

    /// Acknowledges a message; with a reason that is a failure a server of MQTT 5 is told that it
    /// was not taken, which 3.1.1 has no word for.
    pub fn acknowledge(&mut self, packet_id: PacketId, reason: ReasonCode) {
        if self.is_v5() && reason.is_failure() {
            self.refuse_v5(packet_id, reason);
        } else {
            mqtt::encode_puback(self.output.tail(), packet_id);
        }
    }

    /// Asks for topics with QoS 1; the packet id is one that no publication has.
    ///
    /// # Errors
    /// Filters that cannot be written, or make a packet that is larger than the server takes.
    pub fn subscribe(&mut self, filters: &[String]) -> Result<(), Unasked> {
        let packet_id = self.sender.lend_id();
        if self.is_v5() {
            return self.subscribe_v5(packet_id, filters);
        }
        let all = filters.iter().map(|filter| (&**filter, QoS::AtLeastOnce));
        Ok(mqtt::encode_subscribe(self.output.tail(), packet_id, all)?)
    }

    /// Gives topics up; the packet id is one that no publication has.
    ///
    /// # Errors
    /// Filters that cannot be written, or make a packet that is larger than the server takes.
    pub fn unsubscribe(&mut self, filters: &[String]) -> Result<(), Unasked> {
        let packet_id = self.sender.lend_id();
        if self.is_v5() {
            return self.unsubscribe_v5(packet_id, filters);
        }
        let all = filters.iter().map(String::as_str);
        Ok(mqtt::encode_unsubscribe(
            self.output.tail(),
            packet_id,
            all,
        )?)
    }

    /// Takes leave; the bytes are the same in both versions.
    pub fn disconnect(&mut self) {
        let written = mqtt::encode_from_client(&FromClient::Disconnect, self.output.tail());
        debug_assert!(written.is_ok(), "{written:?}");
    }

    /// Whether the link is worth a warning: asked, or messages in flight, and no answer to that for
    /// a quarter of the time.
    #[must_use]
    pub fn is_degraded(&self, now_ms: u64) -> bool {
        let waits = |since: u64| now_ms.saturating_sub(since) >= self.timing.dead_peer_ms / 4;
        self.ping_ms.is_some_and(waits)
            || (!self.sender.is_empty() && waits(self.sender.heard_ms()))
    }

    /// When [`Upward::handle_timeout`] is due; may be early, never late.
    #[must_use]
    pub fn next_timeout(&self) -> u64 {
        match self.phase {
            Phase::AwaitConnAck { deadline_ms } => deadline_ms,
            Phase::Active => self
                .ping_at()
                .min(self.lost_at().unwrap_or(u64::MAX))
                .min(self.ack_stall_at().unwrap_or(u64::MAX)),
        }
    }

    /// Checks all deadlines, and asks a silent server whether it is there.
    ///
    /// # Errors
    /// Why the connection must be closed.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), Lost> {
        if let Phase::AwaitConnAck { deadline_ms } = self.phase {
            return if deadline_ms <= now_ms {
                Err(Lost::NotAccepted)
            } else {
                Ok(())
            };
        }
        if self.lost_at().is_some_and(|at| at <= now_ms) {
            return Err(Lost::Silent(now_ms.saturating_sub(self.heard_ms)));
        }
        if self.ack_stall_at().is_some_and(|at| at <= now_ms) {
            let waited = now_ms.saturating_sub(self.sender.heard_ms());
            return Err(Lost::AckStalled(waited));
        }
        if self.ping_at() <= now_ms {
            self.ping_ms = Some(now_ms);
            self.sent_ms = now_ms;
            let written = mqtt::encode_from_client(&FromClient::PingReq, self.output.tail());
            debug_assert!(written.is_ok(), "{written:?}");
        }
        Ok(())
    }

    /// The connection is gone: what was in flight, and the packet id to go on with.
    #[must_use]
    pub fn park(self) -> (VecDeque<InFlight<T>>, u16) {
        let left = self.sender.park();
        (left.in_flight, left.next_id)
    }

    fn ping_at(&self) -> u64 {
        if self.ping_ms.is_some() {
            return u64::MAX;
        }
        let silence = self.heard_ms + self.timing.dead_peer_ms / 2;
        if self.keep_alive_ms == 0 {
            return silence;
        }
        // Half of it, so that the packet may take its time (MQTT 3.1.1 §3.1.2.10).
        silence.min(self.sent_ms + self.keep_alive_ms / 2)
    }

    fn lost_at(&self) -> Option<u64> {
        let half = self.timing.dead_peer_ms / 2;
        self.ping_ms.map(|since| since.max(self.heard_ms) + half)
    }

    fn ack_stall_at(&self) -> Option<u64> {
        self.sender.stalls_at(self.timing.ack_stall_ms)
    }
}

fn granted(code: SubAckCode) -> Result<QoS, ReasonCode> {
    match code {
        SubAckCode::Granted(qos) => Ok(qos),
        SubAckCode::Failure => Err(ReasonCode::UnspecifiedError),
    }
}

#[cfg(test)]
mod tests;
