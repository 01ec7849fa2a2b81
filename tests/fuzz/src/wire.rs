//! Packets of a client as bytes, and those of the server in words that both versions share.

use std::collections::BTreeMap;

use edgehub::mqtt::v5::{self, Property};
use edgehub::mqtt::{self, PacketId, QoS, SubAckCode};

/// Larger than any packet here.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// A packet of the server. What 3.1.1 has no reason for has 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    ConnAck { present: bool, reason: u8 },
    Publish(Delivery),
    PubAck(u16, u8),
    PubRec(u16, u8),
    PubRel(u16, u8),
    PubComp(u16, u8),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    Disconnect(u8),
}

/// A PUBLISH of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub dup: bool,
    pub qos: u8,
    pub retain: bool,
    pub topic: String,
    pub id: u16,
    /// The number that stands for the topic, or will.
    pub alias: Option<u16>,
    /// Subscription identifiers, sorted.
    pub subscriptions: Vec<u32>,
    pub payload: Vec<u8>,
}

/// The topics that a client's aliases stand for (MQTT 5 §3.3.2.3.4).
#[derive(Debug, Default)]
pub struct Aliases {
    topics: BTreeMap<u16, String>,
    /// What the client said in CONNECT.
    pub max: u16,
}

impl Aliases {
    pub fn new(max: u16) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// Puts the topic in its place.
    pub fn resolve(&mut self, delivery: &mut Delivery) {
        let Some(alias) = delivery.alias.take() else {
            assert!(!delivery.topic.is_empty(), "{delivery:?}");
            return;
        };
        assert!((1..=self.max).contains(&alias), "{alias} of {}", self.max);
        if delivery.topic.is_empty() {
            let known = self.topics.get(&alias);
            delivery.topic = known.expect("the client was told").clone();
        } else {
            self.topics.insert(alias, delivery.topic.clone());
        }
    }
}

/// Whether an acknowledgement of MQTT 5 says why in words, or has user properties.
pub fn says_why(bytes: &[u8]) -> bool {
    let decoded = v5::decode_from_server(bytes, PACKET_BYTES_MAX).unwrap();
    let properties = match decoded.unwrap().0 {
        v5::FromServer::PubAck(ack)
        | v5::FromServer::PubRec(ack)
        | v5::FromServer::PubRel(ack)
        | v5::FromServer::PubComp(ack) => ack.properties,
        v5::FromServer::SubAck(answers) | v5::FromServer::UnsubAck(answers) => answers.properties,
        _ => return false,
    };
    !properties.is_empty()
}

/// Takes the first packet off what the server wrote, with its length.
pub fn answer(bytes: &[u8], is_v5: bool) -> Option<(Answer, usize)> {
    if is_v5 {
        let decoded = v5::decode_from_server(bytes, PACKET_BYTES_MAX);
        let (packet, length) = decoded.expect("the hub writes MQTT 5")?;
        return Some((answer_v5(&packet), length));
    }
    let decoded = mqtt::decode_from_server(bytes, PACKET_BYTES_MAX);
    let (packet, length) = decoded.expect("the hub writes MQTT 3.1.1")?;
    Some((answer_v311(&packet), length))
}

fn answer_v311(packet: &mqtt::FromServer<'_>) -> Answer {
    use mqtt::FromServer as Packet;
    match packet {
        Packet::ConnAck(connack) => Answer::ConnAck {
            present: connack.session_present,
            reason: connack.code as u8,
        },
        Packet::Publish(publish) => Answer::Publish(Delivery {
            dup: publish.dup,
            qos: publish.qos as u8,
            retain: publish.retain,
            topic: publish.topic.to_owned(),
            id: publish.packet_id.map_or(0, PacketId::get),
            alias: None,
            subscriptions: Vec::new(),
            payload: publish.payload.to_vec(),
        }),
        Packet::PubAck(id) => Answer::PubAck(id.get(), 0),
        Packet::PubRec(id) => Answer::PubRec(id.get(), 0),
        Packet::PubRel(id) => Answer::PubRel(id.get(), 0),
        Packet::PubComp(id) => Answer::PubComp(id.get(), 0),
        Packet::SubAck(suback) => {
            let codes = suback.codes.iter().map(|code| match code {
                SubAckCode::Granted(qos) => qos as u8,
                SubAckCode::Failure => 0x80,
            });
            Answer::SubAck(suback.packet_id.get(), codes.collect())
        }
        Packet::UnsubAck(id) => Answer::UnsubAck(id.get(), Vec::new()),
        Packet::PingResp => Answer::PingResp,
    }
}

fn answer_v5(packet: &v5::FromServer<'_>) -> Answer {
    use v5::FromServer as Packet;
    let ack = |ack: &v5::Ack<'_>| (ack.packet_id.get(), ack.reason.to_byte());
    let codes = |answers: &v5::Answers<'_>| {
        let codes = answers.codes.iter().map(v5::ReasonCode::to_byte);
        (answers.packet_id.get(), codes.collect())
    };
    match packet {
        Packet::ConnAck(connack) => Answer::ConnAck {
            present: connack.session_present,
            reason: connack.reason.to_byte(),
        },
        Packet::Publish(publish) => {
            let ids = publish
                .properties
                .iter()
                .filter_map(|property| match property {
                    Property::SubscriptionId(id) => Some(id.get()),
                    _ => None,
                });
            let mut subscriptions: Vec<u32> = ids.collect();
            subscriptions.sort_unstable();
            Answer::Publish(Delivery {
                dup: publish.dup,
                qos: publish.qos as u8,
                retain: publish.retain,
                topic: publish.topic.to_owned(),
                id: publish.packet_id.map_or(0, PacketId::get),
                alias: publish.properties.topic_alias().map(Into::into),
                subscriptions,
                payload: publish.payload.to_vec(),
            })
        }
        Packet::PubAck(it) => Answer::PubAck(ack(it).0, ack(it).1),
        Packet::PubRec(it) => Answer::PubRec(ack(it).0, ack(it).1),
        Packet::PubRel(it) => Answer::PubRel(ack(it).0, ack(it).1),
        Packet::PubComp(it) => Answer::PubComp(ack(it).0, ack(it).1),
        Packet::SubAck(it) => {
            let (id, codes) = codes(it);
            Answer::SubAck(id, codes)
        }
        Packet::UnsubAck(it) => {
            let (id, codes) = codes(it);
            Answer::UnsubAck(id, codes)
        }
        Packet::PingResp => Answer::PingResp,
        Packet::Disconnect(notice) => Answer::Disconnect(notice.reason.to_byte()),
        Packet::Auth(_) => panic!("the hub has no enhanced authentication"),
    }
}

/// A packet with this first byte.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    put_length(body.len(), &mut packet);
    packet.extend_from_slice(body);
    packet
}

fn put_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// A list of properties; nothing in 3.1.1.
fn put_properties(properties: Option<&[u8]>, out: &mut Vec<u8>) {
    if let Some(properties) = properties {
        put_length(properties.len(), out);
        out.extend_from_slice(properties);
    }
}

/// What a client says in CONNECT; with `properties` in MQTT 5.
#[derive(Debug, Clone, Default)]
pub struct Connect<'a> {
    pub client_id: &'a str,
    pub is_clean: bool,
    pub keep_alive_seconds: u16,
    pub properties: Option<&'a [u8]>,
    /// Topic, payload, QoS and RETAIN.
    pub will: Option<(&'a str, &'a [u8], u8, bool)>,
}

impl Connect<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let mut flags = u8::from(self.is_clean) << 1;
        if let Some((_, _, qos, retain)) = self.will {
            flags |= 1 << 2 | qos << 3 | u8::from(retain) << 5;
        }
        let mut body = Vec::new();
        put_text(b"MQTT", &mut body);
        body.extend_from_slice(&[if self.properties.is_some() { 5 } else { 4 }, flags]);
        body.extend_from_slice(&self.keep_alive_seconds.to_be_bytes());
        put_properties(self.properties, &mut body);
        put_text(self.client_id.as_bytes(), &mut body);
        if let Some((topic, payload, ..)) = self.will {
            put_properties(self.properties.map(|_| &[][..]), &mut body);
            put_text(topic.as_bytes(), &mut body);
            put_text(payload, &mut body);
        }
        packet(0x10, &body)
    }
}

/// PUBLISH; the id counts from QoS 1 on.
pub fn publish(
    (dup, qos, retain): (bool, u8, bool),
    (topic, id): (&str, u16),
    properties: Option<&[u8]>,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = Vec::new();
    put_text(topic.as_bytes(), &mut body);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    put_properties(properties, &mut body);
    body.extend_from_slice(payload);
    let dup = dup && qos > 0;
    packet(
        0x30 | u8::from(dup) << 3 | qos << 1 | u8::from(retain),
        &body,
    )
}

/// PUBACK (4), PUBREC (5), PUBREL (6) or PUBCOMP (7).
pub fn ack(kind: u8, id: u16, reason: Option<u8>) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(reason);
    packet(kind << 4 | if kind == 6 { 2 } else { 0 }, &body)
}

/// SUBSCRIBE with filters and their options.
pub fn subscribe(id: u16, properties: Option<&[u8]>, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    put_properties(properties, &mut body);
    for (filter, options) in filters {
        put_text(filter.as_bytes(), &mut body);
        body.push(*options);
    }
    packet(0x82, &body)
}

/// UNSUBSCRIBE.
pub fn unsubscribe(id: u16, is_v5: bool, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    put_properties(is_v5.then_some(&[]), &mut body);
    filters
        .iter()
        .for_each(|filter| put_text(filter.as_bytes(), &mut body));
    packet(0xa2, &body)
}

/// PINGREQ.
pub const PING: [u8; 2] = [0xc0, 0];
/// DISCONNECT without a reason.
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// A QoS by its two bits, of any number.
pub fn qos(number: u8) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(number) % 3]
}
