//! What a client says and what a session asks of the hub for it, in words that both versions share.

use std::io::IoSlice;

use arbitrary::Arbitrary;
use edgehub::mqtt::v5::{self, Property};
use edgehub::mqtt::{self, PacketId};
use edgehub::session::{Close, Event, Session};

/// Packets of clients are no larger.
const PACKET_BYTES_MAX: usize = 4096;

/// How a connection begins.
#[derive(Debug, Arbitrary)]
pub struct Start {
    pub is_v5: bool,
    pub is_clean: bool,
    pub keep_alive: u8,
    pub receive_max: Option<u8>,
    pub packet_max: Option<u16>,
    pub expiry: Option<u32>,
    /// How many topic aliases the client takes.
    pub aliases_max: Option<u8>,
    /// Whether it wants no reasons in words.
    pub wants_no_reasons: bool,
    pub method: bool,
    /// The hub refuses, after so long.
    pub refused: Option<u8>,
}

impl Start {
    /// The properties of CONNECT.
    pub fn properties(&self) -> Vec<u8> {
        let mut properties = Vec::new();
        if let Some(max) = self.packet_max.filter(|max| *max > 0) {
            properties.push(0x27);
            properties.extend_from_slice(&u32::from(max).to_be_bytes());
        }
        if let Some(max) = self.receive_max.filter(|max| *max > 0) {
            properties.extend_from_slice(&[0x21, 0, max]);
        }
        if let Some(seconds) = self.expiry {
            properties.push(0x11);
            properties.extend_from_slice(&seconds.to_be_bytes());
        }
        if let Some(max) = self.aliases_max {
            properties.extend_from_slice(&[0x22, 0, max]);
        }
        if self.wants_no_reasons {
            properties.extend_from_slice(&[0x17, 0]);
        }
        if self.method {
            properties.extend_from_slice(&[0x15, 0, 1, b'm']);
        }
        properties
    }
}

/// What happens to it, one after the other.
#[derive(Debug, Arbitrary)]
pub enum Step {
    Publish {
        flags: (bool, u8, bool),
        id: u8,
        topic: u8,
        alias: Option<u8>,
        answer: u8,
    },
    Ack {
        kind: u8,
        id: u8,
        reason: Option<bool>,
    },
    Subscribe {
        id: u8,
        filters: u8,
        identifier: u8,
    },
    Unsubscribe {
        id: u8,
        filters: u8,
    },
    Ping,
    Connect,
    Disconnect {
        reason: u8,
        expiry: Option<u32>,
    },
    Raw(Vec<u8>),
    Deliver {
        qos: u8,
        bytes: u16,
        wanted: Option<u8>,
    },
    GoOn,
    Kept(u8),
    Durable(u8),
    Wait(u16),
    Lose(Start),
}

/// A packet of the client, as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Connect,
    Publish {
        qos: u8,
        id: u16,
        topic: String,
        alias: Option<u16>,
    },
    Ack {
        kind: u8,
        id: u16,
        failed: bool,
    },
    Subscribe(u16, usize),
    Unsubscribe(u16, usize),
    Ping,
    Disconnect {
        reason: u8,
        expiry: Option<u32>,
    },
    Auth,
}

/// What the hub is asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    Publish { topic: String },
    Subscribe(u16, usize),
    Unsubscribe(u16, usize),
    Delivered(u32),
    Received(u16, u32),
    Completed(u16),
    Released(u16),
    Disconnect { voids_will: bool },
    Refused,
}

/// Hands a packet that decodes to the session.
pub fn feed<'a>(
    session: &mut Session<u32>,
    bytes: &'a [u8],
    is_v5: bool,
    now_ms: u64,
) -> Result<Event<'a, u32>, Close> {
    if is_v5 {
        let decoded = v5::decode_from_client(bytes, PACKET_BYTES_MAX).unwrap();
        return session.handle_packet_v5(now_ms, decoded.unwrap().0);
    }
    let decoded = mqtt::decode_from_client(bytes, PACKET_BYTES_MAX).unwrap();
    session.handle_packet(now_ms, decoded.unwrap().0)
}

/// What bytes say, and how many they are.
pub fn said(bytes: &[u8], is_v5: bool) -> Result<Option<(Said, usize)>, mqtt::DecodeError> {
    if is_v5 {
        let decoded = v5::decode_from_client(bytes, PACKET_BYTES_MAX)?;
        return Ok(decoded.map(|(packet, length)| (said_v5(packet), length)));
    }
    let decoded = mqtt::decode_from_client(bytes, PACKET_BYTES_MAX)?;
    Ok(decoded.map(|(packet, length)| (said_v311(packet), length)))
}

fn said_v311(packet: mqtt::FromClient<'_>) -> Said {
    use mqtt::FromClient as Packet;
    let ack = |kind, id: PacketId| Said::Ack {
        kind,
        id: id.get(),
        failed: false,
    };
    match packet {
        Packet::Connect(_) => Said::Connect,
        Packet::Publish(publish) => Said::Publish {
            qos: publish.qos as u8,
            id: publish.packet_id.map_or(0, PacketId::get),
            topic: publish.topic.to_owned(),
            alias: None,
        },
        Packet::PubAck(id) => ack(4, id),
        Packet::PubRec(id) => ack(5, id),
        Packet::PubRel(id) => ack(6, id),
        Packet::PubComp(id) => ack(7, id),
        Packet::Subscribe(it) => Said::Subscribe(it.packet_id.get(), it.filters.iter().count()),
        Packet::Unsubscribe(it) => Said::Unsubscribe(it.packet_id.get(), it.filters.iter().count()),
        Packet::PingReq => Said::Ping,
        Packet::Disconnect => Said::Disconnect {
            reason: 0,
            expiry: None,
        },
    }
}

fn said_v5(packet: v5::FromClient<'_>) -> Said {
    use v5::FromClient as Packet;
    let ack = |kind, ack: v5::Ack<'_>| Said::Ack {
        kind,
        id: ack.packet_id.get(),
        failed: ack.reason.is_failure(),
    };
    match packet {
        Packet::Connect(_) => Said::Connect,
        Packet::Publish(publish) => Said::Publish {
            qos: publish.qos as u8,
            id: publish.packet_id.map_or(0, PacketId::get),
            topic: publish.topic.to_owned(),
            alias: publish.properties.topic_alias().map(Into::into),
        },
        Packet::PubAck(it) => ack(4, it),
        Packet::PubRec(it) => ack(5, it),
        Packet::PubRel(it) => ack(6, it),
        Packet::PubComp(it) => ack(7, it),
        Packet::Subscribe(it) => Said::Subscribe(it.packet_id.get(), it.filters.iter().count()),
        Packet::Unsubscribe(it) => Said::Unsubscribe(it.packet_id.get(), it.filters.iter().count()),
        Packet::PingReq => Said::Ping,
        Packet::Disconnect(notice) => Said::Disconnect {
            reason: notice.reason.to_byte(),
            expiry: notice.properties.find(|property| match property {
                Property::SessionExpiry(seconds) => Some(seconds),
                _ => None,
            }),
        },
        Packet::Auth(_) => Said::Auth,
    }
}

/// An event in the model's words.
pub fn asked(event: Result<Event<'_, u32>, Close>, said: &Said) -> (Asked, Option<Close>) {
    let asked = match event {
        Err(close) => return (Asked::Refused, Some(close)),
        Ok(Event::None) => Asked::Nothing,
        Ok(Event::Connect(..)) => panic!("{said:?} lets in"),
        Ok(Event::Publish(publish, _)) => Asked::Publish {
            topic: publish.topic.to_owned(),
        },
        Ok(Event::Subscribe {
            packet_id, filters, ..
        }) => Asked::Subscribe(packet_id.get(), filters.len()),
        Ok(Event::Unsubscribe(it)) => {
            Asked::Unsubscribe(it.packet_id.get(), it.filters.iter().count())
        }
        Ok(Event::Delivered(token)) => Asked::Delivered(token),
        Ok(Event::Received(id, token)) => Asked::Received(id.get(), token),
        Ok(Event::Completed(id)) => Asked::Completed(id.get()),
        Ok(Event::Released(id)) => Asked::Released(id.get()),
        Ok(Event::Disconnect { voids_will }) => Asked::Disconnect { voids_will },
    };
    (asked, None)
}

/// The topic of a message: with a property bag, or one that may get an alias.
pub fn topic_of(token: u32) -> (String, &'static str) {
    match token % 4 {
        0 => ("t/".to_owned(), "suffix"),
        1 => ("short".to_owned(), ""),
        _ => (format!("plant/line/{}", token % 40), ""),
    }
}

/// Few packet ids, so that they meet.
pub fn small(id: u8) -> u16 {
    1 + u16::from(id % 6)
}

/// Takes what a session has written.
pub fn drain(session: &mut Session<u32>) -> Vec<u8> {
    let mut all = Vec::new();
    while !session.output().is_empty() {
        let mut slices = [IoSlice::new(&[]); 3];
        let filled = session.output().slices(&mut slices);
        let before = all.len();
        slices[..filled]
            .iter()
            .for_each(|slice| all.extend_from_slice(slice));
        session.output().advance(all.len() - before);
    }
    all
}
