//! What a session does differently for a client of MQTT 5.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use bytes::BytesMut;

use super::{Close, Event, Granted, Outgoing, Phase, Refusal, Session, Verdict, Welcome};
use crate::mqtt::v5::{
    self, Ack, Answers, ConnAck, FromClient, FromServer, Notice, Place, Properties, Property,
    ReasonCode, ReasonCodes, encode_properties,
};
use crate::mqtt::{Connect, ConnectReturnCode, PacketId, Publish, QoS, Unsubscribe, Will};

/// What a client of MQTT 5 said in CONNECT, as far as the session acts on it (§3.1.2.11).
#[derive(Debug)]
pub(super) struct Five {
    /// How long it wants the session kept, in seconds; `u32::MAX`: for ever.
    session_expiry: u32,
    /// The largest packet it takes, in bytes.
    packet_bytes_max: u32,
    /// Whether it wants reasons in words (§3.1.2.11.7).
    wants_reasons: bool,
    /// The topics that its aliases stand for (§3.3.2.3.4).
    topics: BTreeMap<NonZeroU16, String>,
}

/// The shortest CONNACK.
const CONNACK_BYTES_MIN: u32 = 5;
/// Topic aliases of one client.
const ALIASES_MAX: u16 = 10;
/// Longest topic with an alias, in bytes: what aliases cost is this times [`ALIASES_MAX`].
const ALIASED_BYTES_MAX: usize = 8 * 1024;

/// Longest reason in words, in bytes.
const REASON_BYTES_MAX: usize = 512;

const NONE: Properties<'static> = Properties::EMPTY;

impl<T> Session<T> {
    /// Whether the client speaks MQTT 5.
    #[must_use]
    pub fn is_v5(&self) -> bool {
        self.five.is_some()
    }

    /// How long the client wants its session kept after the connection, in seconds; `u32::MAX`: for
    /// ever (§3.1.2.11.2). 3.1.1 has no such wish.
    #[must_use]
    pub fn expiry_seconds(&self) -> Option<u32> {
        self.five.as_ref().map(|five| five.session_expiry)
    }

    /// Whether the client takes so large a PUBLISH (§3.1.2.11.4).
    #[must_use]
    pub fn takes(&self, qos: QoS, out: &Outgoing<'_>) -> bool {
        let Some(five) = &self.five else {
            return true;
        };
        out.packet_bytes_v5(qos) <= five.packet_bytes_max as usize
    }

    /// Takes a packet of MQTT 5.
    ///
    /// # Errors
    /// The reason for which the connection must be closed (MQTT 5 §4.13).
    pub fn handle_packet_v5<'a>(
        &mut self,
        now_ms: u64,
        packet: FromClient<'a>,
    ) -> Result<Event<'a, T>, Close> {
        self.received_ms = now_ms;
        match (&self.phase, packet) {
            (Phase::AwaitConnect { .. }, FromClient::Connect(connect)) => {
                self.phase = Phase::Authenticating;
                self.connect_v5(now_ms, connect)
            }
            (Phase::AwaitConnect { .. }, _) => Err(Close::NotConnected),
            (Phase::Active, packet) => self.active_v5(now_ms, packet),
            (Phase::Authenticating | Phase::Refusing { .. } | Phase::Closed, _) => Ok(Event::None),
        }
    }

    fn connect_v5<'a>(
        &mut self,
        now_ms: u64,
        connect: v5::Connect<'a>,
    ) -> Result<Event<'a, T>, Close> {
        self.output.speak_v5();
        let mut five = Five {
            session_expiry: 0,
            packet_bytes_max: u32::MAX,
            wants_reasons: true,
            topics: BTreeMap::new(),
        };
        let (mut refusal, mut aliases_max) = (None, 0);
        for property in connect.properties.iter() {
            match property {
                Property::SessionExpiry(seconds) => five.session_expiry = seconds,
                Property::MaximumPacketSize(bytes) => five.packet_bytes_max = bytes.get(),
                Property::ReceiveMaximum(window) => self.sender.narrow(window.get()),
                Property::AuthenticationMethod(_) => {
                    let text = "enhanced authentication is not available";
                    refusal = Some((ReasonCode::BadAuthenticationMethod, text));
                }
                Property::TopicAliasMaximum(aliases) => aliases_max = aliases,
                Property::RequestProblemInformation(wanted) => five.wants_reasons = wanted,
                // Response information is an offer.
                _ => {}
            }
        }
        if five.packet_bytes_max < CONNACK_BYTES_MIN {
            let text = "no CONNACK fits into the maximum packet size";
            return Err(Close::ProtocolError(text));
        }
        if aliases_max > 0 {
            self.output.use_aliases(aliases_max, five.packet_bytes_max);
        }
        self.five = Some(Box::new(five));
        let will_properties = connect.will.map_or(NONE, |will| will.properties);
        let will = connect.will.map(|will| Will {
            topic: will.topic,
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
        });
        if let Some((reason, text)) = refusal {
            let close = Close::LoginRefused(text.to_owned());
            self.phase = Phase::Refusing {
                at_ms: now_ms,
                answer: Refusal {
                    v311: ConnectReturnCode::NotAuthorized,
                    v5: reason,
                },
                close,
            };
            return self.handle_timeout(now_ms).map(|()| Event::None);
        }
        let v311 = Connect {
            clean_session: connect.clean_start,
            keep_alive_seconds: connect.keep_alive_seconds,
            client_id: connect.client_id,
            will,
            username: connect.username,
            password: connect.password,
        };
        Ok(Event::Connect(v311, will_properties))
    }

    fn active_v5<'a>(
        &mut self,
        now_ms: u64,
        packet: FromClient<'a>,
    ) -> Result<Event<'a, T>, Close> {
        match packet {
            FromClient::Publish(publish) => self.publish_v5(publish),
            FromClient::PubAck(ack) => self.handle_puback(now_ms, ack.packet_id),
            FromClient::PubRec(ack) => {
                self.handle_pubrec(now_ms, ack.packet_id, ack.reason.is_failure())
            }
            FromClient::PubRel(ack) => Ok(self.handle_pubrel(ack.packet_id)),
            FromClient::PubComp(ack) => self.handle_pubcomp(now_ms, ack.packet_id),
            FromClient::Subscribe(subscribe) => Ok(Event::Subscribe {
                packet_id: subscribe.packet_id,
                filters: subscribe.filters.iter().collect(),
                id: subscribe.properties.find(|property| match property {
                    Property::SubscriptionId(id) => Some(id),
                    _ => None,
                }),
            }),
            FromClient::Unsubscribe(unsubscribe) => Ok(Event::Unsubscribe(Unsubscribe {
                packet_id: unsubscribe.packet_id,
                filters: unsubscribe.filters,
            })),
            FromClient::PingReq => {
                self.handle_ping();
                Ok(Event::None)
            }
            FromClient::Disconnect(notice) => self.disconnect_v5(notice),
            FromClient::Connect(_) => Err(Close::SecondConnect),
            FromClient::Auth(_) => Err(Close::ProtocolError("AUTH, and no method was agreed on")),
        }
    }

    /// Learns or looks up the topic that an alias stands for.
    fn publish_v5<'a>(&mut self, publish: v5::Publish<'a>) -> Result<Event<'a, T>, Close> {
        if let (Some(alias), Some(five)) = (publish.properties.topic_alias(), &mut self.five) {
            let invalid = |what| Close::NotAvailable {
                what,
                reason: ReasonCode::TopicAliasInvalid,
            };
            if alias.get() > ALIASES_MAX {
                return Err(invalid("a topic alias over the maximum"));
            }
            if publish.topic.is_empty() {
                if !five.topics.contains_key(&alias) {
                    return Err(Close::ProtocolError("a topic alias without a topic"));
                }
            } else if publish.topic.len() > ALIASED_BYTES_MAX {
                return Err(invalid("an alias for a topic of so many bytes"));
            } else {
                five.topics.insert(alias, publish.topic.to_owned());
            }
        }
        let v311 = Publish {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic,
            packet_id: publish.packet_id,
            payload: publish.payload,
        };
        Ok(self.handle_publish(v311, publish.properties))
    }

    /// The topic of a publish that names it by its alias; empty where none is known.
    #[must_use]
    pub fn aliased_topic(&self, properties: Properties<'_>) -> &str {
        let alias = properties.topic_alias();
        let topics = self.five.as_ref().map(|five| &five.topics);
        let topic = topics
            .zip(alias)
            .and_then(|(topics, alias)| topics.get(&alias));
        topic.map_or("", String::as_str)
    }

    fn disconnect_v5<'a>(&mut self, notice: Notice<'_>) -> Result<Event<'a, T>, Close> {
        let expiry = notice.properties.find(|property| match property {
            Property::SessionExpiry(seconds) => Some(seconds),
            _ => None,
        });
        if let (Some(seconds), Some(five)) = (expiry, &mut self.five) {
            if five.session_expiry == 0 && seconds > 0 {
                let text = "a session that CONNECT let expire is to be kept";
                return Err(Close::ProtocolError(text));
            }
            five.session_expiry = seconds;
        }
        self.phase = Phase::Closed;
        Ok(Event::Disconnect {
            // Anything but a normal disconnection publishes the will (§3.14.4).
            voids_will: notice.reason == ReasonCode::Success,
        })
    }

    /// CONNACK with the hub's bounds (§3.2.2.3).
    pub(super) fn welcome_v5(&mut self, welcome: &Welcome<'_>) {
        let expiry = self.five.as_ref().map_or(0, |five| five.session_expiry);
        let told = (!welcome.is_kept && expiry > 0).then_some(Property::SessionExpiry(0));
        let assigned = welcome.assigned_client_id.map(Property::AssignedClientId);
        let limits = [
            welcome.server_keep_alive.map(Property::ServerKeepAlive),
            welcome.packet_bytes_max.map(Property::MaximumPacketSize),
            Some(Property::TopicAliasMaximum(ALIASES_MAX)),
        ];
        let properties = [told, assigned].into_iter().chain(limits).flatten();
        let mut bytes = BytesMut::new();
        let written = encode_properties(&mut bytes, Place::ConnAck, properties);
        debug_assert!(written.is_ok(), "{written:?}");
        let properties = Properties::parse(&bytes, Place::ConnAck).unwrap_or_default();
        let connack = |properties| {
            FromServer::ConnAck(ConnAck {
                session_present: welcome.session_present,
                reason: ReasonCode::Success,
                properties,
            })
        };
        if !self.encode_v5(&connack(properties)) {
            self.encode_v5(&connack(NONE));
        }
    }

    pub(super) fn refuse_v5(&mut self, reason: ReasonCode, why: &str) {
        // Strangers are not told what is wrong with their credentials.
        let is_secret = matches!(
            reason,
            ReasonCode::NotAuthorized | ReasonCode::BadUserNameOrPassword
        );
        let why = self.reason(Some(why).filter(|_| !is_secret), Place::ConnAck);
        self.explain((&why, Place::ConnAck), |properties| {
            FromServer::ConnAck(ConnAck {
                session_present: false,
                reason,
                properties,
            })
        });
    }

    pub(super) fn puback_v5(&mut self, packet_id: PacketId, verdict: &Verdict) {
        let why = self.reason(verdict.why.as_deref(), Place::Received);
        self.explain((&why, Place::Received), |properties| {
            FromServer::PubAck(Ack {
                packet_id,
                reason: verdict.code,
                properties,
            })
        });
    }

    pub(super) fn pubrec_v5(&mut self, packet_id: PacketId, verdict: &Verdict) {
        let why = self.reason(verdict.why.as_deref(), Place::Received);
        self.explain((&why, Place::Received), |properties| {
            FromServer::PubRec(Ack {
                packet_id,
                reason: verdict.code,
                properties,
            })
        });
    }

    /// The reason in words as properties, if there is one and the client wants it (§3.1.2.11.7).
    fn reason(&self, why: Option<&str>, place: Place) -> BytesMut {
        let is_wanted = self.five.as_ref().is_none_or(|five| five.wants_reasons)
            || matches!(place, Place::ConnAck | Place::ServerDisconnect);
        let mut bytes = BytesMut::new();
        if let Some(why) = why.filter(|_| is_wanted) {
            let mut ends = (0..=REASON_BYTES_MAX.min(why.len())).rev();
            let why = ends.find_map(|end| why.get(..end)).unwrap_or_default();
            let why = why.replace(char::is_control, " ");
            let all = std::iter::once(Property::ReasonString(&why));
            let written = encode_properties(&mut bytes, place, all);
            debug_assert!(written.is_ok(), "{written:?}");
        }
        bytes
    }

    /// Writes a packet with such a reason, or without it where it would be too large.
    fn explain<'p>(
        &mut self,
        (reason, place): (&'p [u8], Place),
        packet: impl Fn(Properties<'p>) -> FromServer<'p>,
    ) {
        let properties = Properties::parse(reason, place).unwrap_or_default();
        if !self.encode_v5(&packet(properties)) && !properties.is_empty() {
            self.encode_v5(&packet(NONE));
        }
    }

    pub(super) fn pubrel_v5(&mut self, packet_id: PacketId, known: bool) {
        self.encode_v5(&FromServer::PubRel(released(packet_id, known)));
    }

    pub(super) fn pubcomp_v5(&mut self, packet_id: PacketId) {
        self.encode_v5(&FromServer::PubComp(Ack::success(packet_id)));
    }

    pub(super) fn suback_v5(&mut self, packet_id: PacketId, codes: &[Granted]) {
        let reason = |granted: &Granted| match granted {
            Ok(qos) => *qos as u8,
            Err(verdict) => verdict.code.to_byte(),
        };
        let bytes: Vec<u8> = codes.iter().map(reason).collect();
        // There is one place for reasons, and the first one has it.
        let mut refused = codes.iter().filter_map(|granted| granted.as_ref().err());
        let why = refused.find_map(|verdict| verdict.why.as_deref());
        let why = self.reason(why, Place::SubAck);
        let Some(answers) = answers(packet_id, &bytes, Place::SubAck) else {
            return;
        };
        self.explain((&why, Place::SubAck), |properties| {
            FromServer::SubAck(Answers {
                properties,
                ..answers
            })
        });
    }

    pub(super) fn unsuback_v5(&mut self, packet_id: PacketId, existed: &[bool]) {
        let reason = |existed: &bool| match existed {
            true => ReasonCode::Success.to_byte(),
            false => ReasonCode::NoSubscriptionExisted.to_byte(),
        };
        let bytes: Vec<u8> = existed.iter().map(reason).collect();
        if let Some(answers) = answers(packet_id, &bytes, Place::UnsubAck) {
            self.encode_v5(&FromServer::UnsubAck(answers));
        }
    }

    /// Says DISCONNECT with the reason for which the connection is about to be closed; in 3.1.1
    /// there is no such packet.
    pub fn say_goodbye(&mut self, close: &Close) {
        if !self.is_active() || !self.is_v5() {
            return;
        }
        if let Some(reason) = close.reason_code() {
            let why = self.reason(Some(&close.to_string()), Place::ServerDisconnect);
            self.explain((&why, Place::ServerDisconnect), |properties| {
                FromServer::Disconnect(Notice { reason, properties })
            });
        }
    }

    /// Writes a packet; false if it is larger than the client takes, in which case it is not sent
    /// (§3.1.2.11.4).
    fn encode_v5(&mut self, packet: &FromServer<'_>) -> bool {
        let most = self
            .five
            .as_ref()
            .map(|five| five.packet_bytes_max as usize);
        let tail = self.output.tail();
        let before = tail.len();
        let written = v5::encode_from_server(packet, tail);
        debug_assert!(written.is_ok(), "{packet:?}: {written:?}");
        let bytes = tail.len() - before;
        if most.is_some_and(|most| bytes > most) {
            tail.truncate(before);
            return false;
        }
        self.answer_bytes += bytes;
        true
    }
}

fn released(packet_id: PacketId, known: bool) -> Ack<'static> {
    let reason = match known {
        true => ReasonCode::Success,
        false => ReasonCode::PacketIdNotFound,
    };
    Ack {
        packet_id,
        reason,
        properties: NONE,
    }
}

fn answers(packet_id: PacketId, codes: &[u8], place: Place) -> Option<Answers<'_>> {
    let codes = ReasonCodes::parse(codes, place);
    debug_assert!(codes.is_ok(), "as many codes as filters, never none");
    Some(Answers {
        packet_id,
        properties: NONE,
        codes: codes.ok()?,
    })
}

#[cfg(test)]
mod tests;
