//! What is said differently to a server of MQTT 5, and what it says more.

use std::fmt;

use bytes::BytesMut;

use super::{Above, Lost, Phase, Upward, UpwardTiming};
use crate::mqtt::v5::{
    self, Ack, ConnAck, Connect, FromClient, FromServer, Notice, Place, Properties, Property,
    Publish, ReasonCode, RetainHandling, Subscribe, SubscribeFilters, SubscriptionOptions,
    Unsubscribe,
};
use crate::mqtt::{
    self, ConnectReturnCode, DecodeError, EncodeError, Malformed, PacketId, QoS, UnsubscribeFilters,
};
use crate::session::{Outgoing, Output};

/// A CONNACK of 3.1.1.
const CONNACK_BYTES: usize = 4;
const NONE: Properties<'static> = Properties::EMPTY;
/// What is shown of a server's text, in characters.
const TEXT_CHARS: usize = 200;
/// What subscriptions ask for. A retained message is sent for a new one only, not at every
/// connection again.
const OPTIONS: SubscriptionOptions = SubscriptionOptions {
    qos: QoS::AtLeastOnce,
    no_local: false,
    retain_as_published: false,
    retain_handling: RetainHandling::SendIfNew,
};

/// What the server said in CONNACK, as far as it binds us (MQTT 5 §3.2.2.3). That it keeps no
/// retained messages and takes no topic aliases does not: neither is sent.
#[derive(Debug)]
pub(super) struct Five {
    /// The largest packet it takes, in bytes.
    packet_bytes_max: usize,
    /// It takes no QoS 1.
    is_qos_zero_only: bool,
    /// Filters may have wildcards.
    takes_wildcards: bool,
    /// How long it keeps the session without a connection, in seconds; `u32::MAX`: for ever.
    kept_seconds: u32,
    /// It is being told why the connection ends.
    says_why: bool,
}

/// Why the server is not asked for topics, or to give them up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// The filters cannot be written.
    #[error("{0}")]
    Encode(#[from] EncodeError),
    /// The packet is larger than the server takes (MQTT 5 §3.2.2.3.6).
    #[error("a packet of {bytes} bytes, and the server takes at most {max}")]
    TooLarge {
        /// The packet.
        bytes: usize,
        /// The server's limit.
        max: usize,
    },
}

/// Why a server refuses or leaves, in its own words (MQTT 5 §2.4, §3.2.2.3.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// The reason code.
    pub code: ReasonCode,
    /// What people may read, on one line and cut; with another server's name, if it gave one.
    pub text: Option<String>,
}

impl Why {
    fn read(code: ReasonCode, properties: Properties<'_>) -> Self {
        let (mut reason, mut server) = (None, None);
        for property in properties.iter() {
            match property {
                Property::ReasonString(text) => reason = Some(line(text)),
                Property::ServerReference(name) => server = Some(line(name)),
                _ => {}
            }
        }
        let server = server.map(|name| format!("it names another server: {name}"));
        let parts: Vec<_> = reason.into_iter().chain(server).collect();
        Self {
            code,
            text: (!parts.is_empty()).then(|| parts.join("; ")),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        match &self.text {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}

/// The beginning of a text, with nothing in it that would end a line of the log.
fn line(text: &str) -> String {
    let cut: String = text.chars().take(TEXT_CHARS).collect();
    cut.escape_debug().to_string()
}

impl<T> Upward<T> {
    /// Says CONNECT of MQTT 5.
    ///
    /// # Errors
    /// A CONNECT that cannot be written: a name that is too long.
    pub fn new_v5(
        timing: UpwardTiming,
        connect: &Connect<'_>,
        now_ms: u64,
    ) -> Result<Self, EncodeError> {
        let mut output = Output::default();
        output.speak_v5();
        v5::encode_from_client(&FromClient::Connect(*connect), output.tail())?;
        let mut upward = Self::begin(timing, connect.keep_alive_seconds, output, now_ms);
        let asked = connect.properties.find(|property| match property {
            Property::SessionExpiry(seconds) => Some(seconds),
            _ => None,
        });
        upward.five = Some(Five {
            packet_bytes_max: usize::MAX,
            is_qos_zero_only: false,
            takes_wildcards: true,
            kept_seconds: asked.unwrap_or(0),
            says_why: false,
        });
        Ok(upward)
    }

    /// Whether MQTT 5 is spoken.
    #[must_use]
    pub fn is_v5(&self) -> bool {
        self.five.is_some()
    }

    /// Whether the server takes so large a PUBLISH (MQTT 5 §3.2.2.3.6); 3.1.1 does not say.
    #[must_use]
    pub fn takes(&self, qos: QoS, out: &Outgoing<'_>) -> bool {
        let five = self.five.as_ref();
        five.is_none_or(|five| out.packet_bytes_v5(qos) <= five.packet_bytes_max)
    }

    /// Whether messages may go with QoS 1 (MQTT 5 §3.2.2.3.4).
    #[must_use]
    pub fn takes_qos_1(&self) -> bool {
        let five = self.five.as_ref();
        five.is_none_or(|five| !five.is_qos_zero_only)
    }

    /// Whether such a filter may be asked for (MQTT 5 §3.2.2.3.11).
    #[must_use]
    pub fn takes_filter(&self, filter: &str) -> bool {
        let has_wildcards = filter.contains(['+', '#']);
        let five = self.five.as_ref();
        !has_wildcards || five.is_none_or(|five| five.takes_wildcards)
    }

    /// How long the server keeps the session without a connection, in seconds; `u32::MAX`: for
    /// ever; `None`: 3.1.1 does not say.
    #[must_use]
    pub fn kept_seconds(&self) -> Option<u32> {
        self.five.as_ref().map(|five| five.kept_seconds)
    }

    /// Whether a DISCONNECT with a reason waits to be written.
    #[must_use]
    pub fn says_why(&self) -> bool {
        self.five.as_ref().is_some_and(|five| five.says_why)
    }

    /// Takes a packet of MQTT 5.
    ///
    /// # Errors
    /// Why the connection must be closed; what it was that the server did wrong waits to be
    /// written (MQTT 5 §4.13).
    pub fn handle_packet_v5<'a>(
        &mut self,
        now_ms: u64,
        packet: FromServer<'a>,
    ) -> Result<Above<'a, T>, Lost> {
        self.heard_ms = now_ms;
        self.ping_ms = None;
        match (&self.phase, packet) {
            (Phase::AwaitConnAck { .. }, FromServer::ConnAck(answer)) => {
                self.connack_v5(now_ms, answer)
            }
            (_, FromServer::Disconnect(Notice { reason, properties })) => {
                Err(Lost::SentAway(Why::read(reason, properties)))
            }
            (Phase::AwaitConnAck { .. }, _) => Err(Lost::Unexpected("a packet before CONNACK")),
            (Phase::Active, packet) => {
                let result = self.active_v5(now_ms, packet);
                if let Err(Lost::Unexpected(_)) = result {
                    self.complain(ReasonCode::ProtocolError);
                }
                result
            }
        }
    }

    fn connack_v5<'a>(&mut self, now_ms: u64, answer: ConnAck<'a>) -> Result<Above<'a, T>, Lost> {
        if answer.reason != ReasonCode::Success {
            let why = Why::read(answer.reason, answer.properties);
            return Err(Lost::RefusedWith(why));
        }
        self.phase = Phase::Active;
        self.sender.hear(now_ms);
        if let Some(five) = &mut self.five {
            for property in answer.properties.iter() {
                match property {
                    Property::SessionExpiry(seconds) => five.kept_seconds = seconds,
                    Property::ReceiveMaximum(window) => self.sender.narrow(window.get()),
                    Property::MaximumQos(qos) => five.is_qos_zero_only = qos == QoS::AtMostOnce,
                    Property::MaximumPacketSize(bytes) => {
                        five.packet_bytes_max = bytes.get() as usize;
                    }
                    Property::WildcardSubscriptionAvailable(takes) => five.takes_wildcards = takes,
                    Property::ServerKeepAlive(seconds) => {
                        self.keep_alive_ms = u64::from(seconds) * 1000;
                    }
                    _ => {}
                }
            }
        }
        Ok(Above::Accepted {
            session_present: answer.session_present,
        })
    }

    fn active_v5<'a>(&mut self, now_ms: u64, packet: FromServer<'a>) -> Result<Above<'a, T>, Lost> {
        match packet {
            FromServer::PubAck(ack) => {
                self.sender.hear(now_ms);
                let Some(token) = self.sender.acknowledge(ack.packet_id) else {
                    return Ok(Above::None);
                };
                if ack.reason.is_failure() {
                    let why = Why::read(ack.reason, ack.properties);
                    return Ok(Above::Refused(token, why));
                }
                Ok(Above::Delivered(token))
            }
            FromServer::Publish(publish) => message(publish),
            FromServer::SubAck(answers) => Ok(Above::Subscribed(
                answers.codes.iter().map(granted).collect(),
            )),
            FromServer::UnsubAck(_) => Ok(Above::Unsubscribed),
            FromServer::PingResp => Ok(Above::None),
            FromServer::ConnAck(_) => Err(Lost::Unexpected("a second CONNACK")),
            FromServer::PubRec(_) | FromServer::PubRel(_) | FromServer::PubComp(_) => {
                Err(Lost::Unexpected("an acknowledgement of QoS 2"))
            }
            FromServer::Auth(_) => Err(Lost::Unexpected("AUTH, and no method was agreed on")),
            FromServer::Disconnect(notice) => {
                let why = Why::read(notice.reason, notice.properties);
                Err(Lost::SentAway(why))
            }
        }
    }

    /// Tells a server of MQTT 5 why the connection ends (§4.13).
    pub fn complain(&mut self, reason: ReasonCode) {
        let Some(five) = self.five.as_mut().filter(|five| !five.says_why) else {
            return;
        };
        if !matches!(self.phase, Phase::Active) {
            return;
        }
        five.says_why = true;
        let reason = if reason.may_stand_in(Place::ClientDisconnect) {
            reason
        } else {
            ReasonCode::ProtocolError
        };
        let notice = Notice {
            reason,
            properties: NONE,
        };
        let packet = FromClient::Disconnect(notice);
        let written = v5::encode_from_client(&packet, self.output.tail());
        debug_assert!(written.is_ok(), "{written:?}");
    }

    /// What came is no packet of MQTT 5: perhaps the answer of a server that speaks 3.1.1 only, to
    /// a CONNECT that it could not read.
    #[must_use]
    pub fn undecoded(&mut self, input: &[u8], error: &DecodeError) -> Lost {
        if !self.is_active()
            && let Ok(Some((mqtt::FromServer::ConnAck(answer), _))) =
                mqtt::decode_from_server(input, CONNACK_BYTES)
            && answer.code != ConnectReturnCode::Accepted
        {
            return Lost::Refused(answer.code);
        }
        self.complain(error.reason_code());
        Lost::Decode(error.to_string())
    }

    pub(super) fn refuse_v5(&mut self, packet_id: PacketId, reason: ReasonCode) {
        let packet = FromClient::PubAck(Ack {
            packet_id,
            reason,
            properties: NONE,
        });
        let written = v5::encode_from_client(&packet, self.output.tail());
        debug_assert!(written.is_ok(), "{written:?}");
    }

    pub(super) fn subscribe_v5(
        &mut self,
        packet_id: PacketId,
        filters: &[String],
    ) -> Result<(), Unasked> {
        let list = listed(filters, Some(OPTIONS.to_byte()))?;
        let packet = FromClient::Subscribe(Subscribe {
            packet_id,
            properties: NONE,
            filters: SubscribeFilters::parse(&list).map_err(in_list)?,
        });
        self.encode_v5(&packet)
    }

    pub(super) fn unsubscribe_v5(
        &mut self,
        packet_id: PacketId,
        filters: &[String],
    ) -> Result<(), Unasked> {
        let list = listed(filters, None)?;
        let packet = FromClient::Unsubscribe(Unsubscribe {
            packet_id,
            properties: NONE,
            filters: UnsubscribeFilters::parse(&list).map_err(in_list)?,
        });
        self.encode_v5(&packet)
    }

    /// Writes a packet, unless it is larger than the server takes.
    fn encode_v5(&mut self, packet: &FromClient<'_>) -> Result<(), Unasked> {
        let max = self.five.as_ref().map(|five| five.packet_bytes_max);
        let tail = self.output.tail();
        let before = tail.len();
        v5::encode_from_client(packet, tail)?;
        let bytes = tail.len() - before;
        match max {
            Some(max) if bytes > max => {
                tail.truncate(before);
                Err(Unasked::TooLarge { bytes, max })
            }
            _ => Ok(()),
        }
    }
}

/// A message as 3.1.1 has it, and its properties.
fn message<'a, T>(publish: Publish<'a>) -> Result<Above<'a, T>, Lost> {
    if publish.qos == QoS::ExactlyOnce {
        let what = "a message with QoS 2, which was not asked for";
        return Err(Lost::Unexpected(what));
    }
    if publish.properties.topic_alias().is_some() {
        return Err(Lost::Unexpected("a topic alias, which was not offered"));
    }
    let v311 = mqtt::Publish {
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic: publish.topic,
        packet_id: publish.packet_id,
        payload: publish.payload,
    };
    Ok(Above::Message(v311, publish.properties))
}

/// Filters as they stand on the wire, each with its options where there are any.
fn listed(filters: &[String], options: Option<u8>) -> Result<BytesMut, EncodeError> {
    let mut list = BytesMut::new();
    for filter in filters {
        let bytes = filter.len();
        let length = u16::try_from(bytes).map_err(|_| EncodeError::FieldTooLong { bytes })?;
        list.extend_from_slice(&length.to_be_bytes());
        list.extend_from_slice(filter.as_bytes());
        list.extend(options);
    }
    Ok(list)
}

fn in_list(malformed: Malformed) -> EncodeError {
    match malformed {
        Malformed::TopicFilter(error) => EncodeError::TopicFilter(error),
        _ => EncodeError::EmptyList,
    }
}

fn granted(code: ReasonCode) -> Result<QoS, ReasonCode> {
    match code {
        ReasonCode::Success => Ok(QoS::AtMostOnce),
        ReasonCode::GrantedQos1 => Ok(QoS::AtLeastOnce),
        ReasonCode::GrantedQos2 => Ok(QoS::ExactlyOnce),
        code => Err(code),
    }
}

#[cfg(test)]
mod tests;
