//! What a session does differently for a client of MQTT 5.

use super::{Close, Event, Outgoing, Phase, Refusal, Session, Welcome};
use crate::mqtt::v5::{
    self, Ack, Answers, ConnAck, FromClient, FromServer, Notice, Place, Properties, Property,
    ReasonCode, ReasonCodes, encode_properties,
};
use crate::mqtt::{Connect, PacketId, Publish, QoS, SubAckCode, Unsubscribe, Will};

/// What a client of MQTT 5 said in CONNECT, as far as the session acts on it (§3.1.2.11).
#[derive(Debug)]
pub(super) struct Five {
    /// How long it wants the session kept, in seconds; `u32::MAX`: for ever.
    session_expiry: u32,
    /// The largest packet it takes, in bytes.
    packet_bytes_max: u32,
}

const NONE: Properties<'static> = Properties::EMPTY;

impl<T> Session<T> {
    /// Whether the client speaks MQTT 5.
    #[must_use]
    pub fn is_v5(&self) -> bool {
        self.five.is_some()
    }

    /// Whether the client wants its session kept after the connection (§3.1.2.11.2).
    #[must_use]
    pub fn wants_to_be_kept(&self) -> bool {
        self.five
            .as_ref()
            .is_some_and(|five| five.session_expiry > 0)
    }

    /// Whether the client takes so large a PUBLISH (§3.1.2.11.4).
    #[must_use]
    pub fn takes(&self, qos: QoS, out: &Outgoing<'_>) -> bool {
        let Some(five) = &self.five else {
            return true;
        };
        let topic = 2 + out.topic_prefix.len() + out.topic_suffix.len();
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { 2 };
        // An empty list of properties has its length.
        let remaining = topic + packet_id + 1 + out.payload.len();
        v5::packet_bytes(remaining) <= five.packet_bytes_max as usize
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
        };
        let mut refusal = None;
        for property in connect.properties.iter() {
            match property {
                Property::SessionExpiry(seconds) => five.session_expiry = seconds,
                Property::MaximumPacketSize(bytes) => five.packet_bytes_max = bytes.get(),
                Property::ReceiveMaximum(window) => self.sender.narrow(window.get()),
                Property::AuthenticationMethod(_) => {
                    let text = "enhanced authentication is not available";
                    refusal = Some((ReasonCode::BadAuthenticationMethod, text));
                }
                // Topic aliases, response information and problem information are offers.
                _ => {}
            }
        }
        self.five = Some(Box::new(five));
        let will_properties = connect.will.map_or(NONE, |will| will.properties);
        let will = connect.will.map(|will| Will {
            topic: will.topic,
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
        });
        if will.is_some_and(|will| will.qos == QoS::ExactlyOnce) {
            refusal = Some((ReasonCode::QosNotSupported, "the will has QoS 2"));
        }
        if let Some((reason, text)) = refusal {
            let close = Close::LoginRefused(text.to_owned());
            self.phase = Phase::Refusing {
                at_ms: now_ms,
                answer: Refusal::V5(reason),
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
            FromClient::Publish(publish) => publication(publish),
            FromClient::PubAck(ack) => Ok(self.handle_puback(now_ms, ack.packet_id)),
            FromClient::PubRec(_) | FromClient::PubRel(_) | FromClient::PubComp(_) => {
                Err(Close::UnexpectedAck)
            }
            FromClient::Subscribe(subscribe) => {
                let is_id = |one| matches!(one, Property::SubscriptionId(_)).then_some(());
                if subscribe.properties.find(is_id).is_some() {
                    return Err(not_available(
                        "subscription identifiers",
                        ReasonCode::SubscriptionIdsNotSupported,
                    ));
                }
                let mut filters = Vec::new();
                for (filter, options) in subscribe.filters.iter() {
                    if filter.starts_with("$share/") {
                        return Err(not_available(
                            "shared subscriptions",
                            ReasonCode::SharedSubscriptionsNotSupported,
                        ));
                    }
                    filters.push((filter, options.qos));
                }
                Ok(Event::Subscribe {
                    packet_id: subscribe.packet_id,
                    filters,
                })
            }
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

    /// CONNACK with what the hub has and has not (§3.2.2.3).
    pub(super) fn welcome_v5(&mut self, welcome: &Welcome<'_>) {
        let expiry = self.five.as_ref().map_or(0, |five| five.session_expiry);
        let told = match (welcome.is_kept, expiry) {
            (true, seconds) if seconds < u32::MAX => Some(Property::SessionExpiry(u32::MAX)),
            (false, 1..) => Some(Property::SessionExpiry(0)),
            _ => None,
        };
        let assigned = welcome.assigned_client_id.map(Property::AssignedClientId);
        let limits = [
            Some(Property::MaximumQos(QoS::AtLeastOnce)),
            welcome.packet_bytes_max.map(Property::MaximumPacketSize),
            Some(Property::SubscriptionIdsAvailable(false)),
            Some(Property::SharedSubscriptionAvailable(false)),
        ];
        let properties = [told, assigned].into_iter().chain(limits).flatten();
        let mut bytes = bytes::BytesMut::new();
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

    pub(super) fn refuse_v5(&mut self, reason: ReasonCode) {
        self.encode_v5(&FromServer::ConnAck(ConnAck {
            session_present: false,
            reason,
            properties: NONE,
        }));
    }

    pub(super) fn puback_v5(&mut self, packet_id: PacketId, reason: ReasonCode) {
        self.encode_v5(&FromServer::PubAck(Ack {
            packet_id,
            reason,
            properties: NONE,
        }));
    }

    pub(super) fn suback_v5(&mut self, packet_id: PacketId, codes: &[SubAckCode]) {
        let reason = |code: &SubAckCode| match code {
            SubAckCode::Granted(qos) => *qos as u8,
            SubAckCode::Failure => ReasonCode::NotAuthorized.to_byte(),
        };
        let bytes: Vec<u8> = codes.iter().map(reason).collect();
        if let Some(answers) = answers(packet_id, &bytes, Place::SubAck) {
            self.encode_v5(&FromServer::SubAck(answers));
        }
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
            self.encode_v5(&FromServer::Disconnect(Notice {
                reason,
                properties: NONE,
            }));
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

fn publication<'a, T>(publish: v5::Publish<'a>) -> Result<Event<'a, T>, Close> {
    if publish.properties.topic_alias().is_some() {
        return Err(not_available(
            "topic aliases",
            ReasonCode::TopicAliasInvalid,
        ));
    }
    if publish.qos == QoS::ExactlyOnce {
        return Err(Close::QosNotAvailable);
    }
    let v311 = Publish {
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic: publish.topic,
        packet_id: publish.packet_id,
        payload: publish.payload,
    };
    Ok(Event::Publish(v311, publish.properties))
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

fn not_available(what: &'static str, reason: ReasonCode) -> Close {
    Close::NotAvailable { what, reason }
}

#[cfg(test)]
mod tests;
