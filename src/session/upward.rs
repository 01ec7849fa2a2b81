//! The client's half of a conversation, with the server above (MQTT 3.1.1), without sockets and
//! clocks: what [`Session`](super::Session) is downwards, this is upwards.
//!
//! The order of calls: [`Upward::new`] has written CONNECT; feed packets until there is none,
//! deliver, then write [`Upward::output`]. Times are milliseconds of one monotonic clock.

use std::collections::VecDeque;

use super::{InFlight, Outgoing, Output, Sender};
use crate::mqtt::{
    self, Connect, ConnectReturnCode, FromClient, FromServer, PacketId, Publish, QoS, SubAckCode,
};

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
    /// A message; with QoS 1 [`Upward::acknowledge`] it.
    Message(Publish<'a>),
    /// What it says to our filters, in their order.
    Subscribed(Vec<SubAckCode>),
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
        Ok(Self {
            timing,
            phase: Phase::AwaitConnAck {
                deadline_ms: now_ms + timing.accept_ms,
            },
            keep_alive_ms: u64::from(connect.keep_alive_seconds) * 1000,
            sender: Sender::new(timing.window),
            output,
            heard_ms: now_ms,
            sent_ms: now_ms,
            ping_ms: None,
        })
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
                Ok(Above::Message(publish))
            }
            (Phase::Active, FromServer::SubAck(answer)) => {
                Ok(Above::Subscribed(answer.codes.iter().collect()))
            }
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

    /// Acknowledges a message.
    pub fn acknowledge(&mut self, packet_id: PacketId) {
        mqtt::encode_puback(self.output.tail(), packet_id);
    }

    /// Asks for topics with QoS 1; the packet id is one that no publication has.
    ///
    /// # Errors
    /// Filters that cannot be written.
    pub fn subscribe(&mut self, filters: &[String]) -> Result<(), mqtt::EncodeError> {
        let packet_id = self.sender.lend_id();
        let all = filters.iter().map(|filter| (&**filter, QoS::AtLeastOnce));
        mqtt::encode_subscribe(self.output.tail(), packet_id, all)
    }

    /// Gives topics up; the packet id is one that no publication has.
    ///
    /// # Errors
    /// Filters that cannot be written.
    pub fn unsubscribe(&mut self, filters: &[String]) -> Result<(), mqtt::EncodeError> {
        let packet_id = self.sender.lend_id();
        let all = filters.iter().map(String::as_str);
        mqtt::encode_unsubscribe(self.output.tail(), packet_id, all)
    }

    /// Takes leave.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mqtt::ConnAck;

    const TIMING: UpwardTiming = UpwardTiming {
        accept_ms: 5000,
        dead_peer_ms: 10_000,
        ack_stall_ms: 60_000,
        window: 2,
    };

    fn upward() -> Upward<u32> {
        let connect = Connect {
            clean_session: true,
            keep_alive_seconds: 60,
            client_id: "edge-1",
            will: None,
            username: None,
            password: None,
        };
        Upward::new(TIMING, &connect, 0).unwrap()
    }

    fn accepted() -> Upward<u32> {
        let mut upward = upward();
        let answer = FromServer::ConnAck(ConnAck {
            session_present: false,
            code: ConnectReturnCode::Accepted,
        });
        let above = upward.handle_packet(100, answer);
        assert!(matches!(above, Ok(Above::Accepted { .. })), "{above:?}");
        upward
    }

    fn send(upward: &mut Upward<u32>, now_ms: u64, token: u32) {
        let body = Bytes::from_static(b"body");
        let out = Outgoing::new(b"a/", b"b", &body);
        let done = upward.deliver(now_ms, QoS::AtLeastOnce, &out, token);
        assert_eq!(done, None);
    }

    fn written(upward: &mut Upward<u32>) -> Vec<u8> {
        let bytes = upward.output().tail().to_vec();
        upward.output().advance(bytes.len());
        bytes
    }

    #[test]
    fn nothing_is_sent_before_connack_and_its_absence_ends_it() {
        let mut upward = upward();
        assert_eq!(upward.room(), 0);
        assert_eq!(upward.next_timeout(), 5000);
        assert_eq!(upward.handle_timeout(4999), Ok(()));
        assert_eq!(upward.handle_timeout(5000), Err(Lost::NotAccepted));
        assert!(upward.handle_packet(10, FromServer::PingResp).is_err());
    }

    #[test]
    fn acknowledgements_free_the_window_in_any_order() {
        let mut upward = accepted();
        send(&mut upward, 200, 7);
        send(&mut upward, 200, 8);
        assert_eq!(upward.room(), 0);
        let second = FromServer::PubAck(PacketId::new(2).unwrap());
        let above = upward.handle_packet(300, second);
        assert!(matches!(above, Ok(Above::Delivered(8))), "{above:?}");
        assert_eq!(upward.room(), 1);
        let (in_flight, next_id) = upward.park();
        let left: Vec<_> = in_flight.iter().map(|flight| flight.token).collect();
        assert_eq!((left, next_id), (vec![7], 3));
    }

    #[test]
    fn a_silent_server_is_asked_and_then_gone() {
        let mut upward = accepted();
        written(&mut upward);
        assert_eq!(upward.next_timeout(), 5100);
        assert_eq!(upward.handle_timeout(5100), Ok(()));
        assert_eq!(written(&mut upward), [0xC0, 0]);
        assert!(upward.is_degraded(7600) && !upward.is_degraded(7599));
        assert_eq!(upward.handle_timeout(10_099), Ok(()));
        assert_eq!(upward.handle_timeout(10_100), Err(Lost::Silent(10_000)));
        // After a sleep of the device it is asked first, too.
        let mut upward = accepted();
        assert_eq!(upward.handle_timeout(3_600_000), Ok(()));
        assert_eq!(upward.handle_timeout(3_604_999), Ok(()));
        let answered = upward.handle_packet(3_605_000, FromServer::PingResp);
        assert!(matches!(answered, Ok(Above::None)), "{answered:?}");
        assert_eq!(upward.handle_timeout(3_605_001), Ok(()));
    }

    #[test]
    fn messages_that_go_to_a_server_that_hangs_do_not_hide_it() {
        let mut upward = accepted();
        for now_ms in (200..10_000).step_by(200) {
            upward.wrote(now_ms, false);
            assert_eq!(upward.handle_timeout(now_ms), Ok(()));
        }
        assert!(upward.is_degraded(9800));
        let silent = Err(Lost::Silent(10_100));
        assert_eq!(upward.handle_timeout(10_200), silent);
        // A large message on a slow link: the server is there as long as it moves.
        let mut upward = accepted();
        for now_ms in (200..30_000).step_by(200) {
            upward.wrote(now_ms, true);
            assert_eq!(upward.handle_timeout(now_ms), Ok(()));
        }
        assert_eq!(upward.handle_timeout(34_800), Ok(()));
        assert_eq!(upward.handle_timeout(39_800), Err(Lost::Silent(10_000)));
    }

    #[test]
    fn a_server_that_acknowledges_nothing_is_left() {
        let mut upward = accepted();
        send(&mut upward, 1000, 1);
        for now_ms in (2000..61_000).step_by(1000) {
            assert!(upward.handle_packet(now_ms, FromServer::PingResp).is_ok());
            assert_eq!(upward.handle_timeout(now_ms), Ok(()));
        }
        assert_eq!(upward.handle_timeout(61_000), Err(Lost::AckStalled(60_000)));
    }
}
