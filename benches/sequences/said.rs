//! What a server said, as far as the standard settles it.

use edgehub::mqtt::v5::{self, ReasonCode};
use edgehub::mqtt::{self, ConnectReturnCode, DecodeError, QoS, SubAckCode};

/// Larger than anything that a dialogue has.
const PACKET_MAX: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Welcome {
        session_present: bool,
    },
    /// A refusing CONNACK, or a DISCONNECT.
    Goodbye,
    Publish {
        dup: bool,
        qos: QoS,
        retain: bool,
        topic: String,
        packet_id: Option<u16>,
        properties: Vec<u8>,
        payload: Vec<u8>,
    },
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    Ack {
        kind: &'static str,
        packet_id: u16,
        is_failure: bool,
    },
    /// SUBACK, with the QoS where it was granted; UNSUBACK, without.
    Answers {
        kind: &'static str,
        packet_id: u16,
        granted: Vec<Option<u8>>,
    },
    Pong,
    Auth(ReasonCode),
}

/// The first packet of `bytes` and its length; `None` if bytes are missing.
pub fn read(bytes: &[u8], is_v5: bool) -> Result<Option<(Said, usize)>, DecodeError> {
    if is_v5 {
        let read = v5::decode_from_server(bytes, PACKET_MAX)?;
        return Ok(read.map(|(packet, length)| (of_v5(&packet), length)));
    }
    let read = mqtt::decode_from_server(bytes, PACKET_MAX)?;
    Ok(read.map(|(packet, length)| (of_v311(&packet), length)))
}

/// All packets of `bytes`.
pub fn read_all(mut bytes: &[u8], is_v5: bool) -> Result<Vec<Said>, String> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let read = read(bytes, is_v5).map_err(|error| error.to_string())?;
        let (said, length) = read.ok_or("a packet is not complete")?;
        all.push(said);
        bytes = &bytes[length..];
    }
    Ok(all)
}

fn of_v311(packet: &mqtt::FromServer<'_>) -> Said {
    use mqtt::FromServer as Packet;
    let ack = |kind, packet_id: &mqtt::PacketId| Said::Ack {
        kind,
        packet_id: packet_id.get(),
        is_failure: false,
    };
    match packet {
        Packet::ConnAck(connack) if connack.code == ConnectReturnCode::Accepted => Said::Welcome {
            session_present: connack.session_present,
        },
        Packet::ConnAck(_) => Said::Goodbye,
        Packet::Publish(publish) => Said::Publish {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic.to_owned(),
            packet_id: publish.packet_id.map(mqtt::PacketId::get),
            properties: Vec::new(),
            payload: publish.payload.to_vec(),
        },
        Packet::PubAck(id) => ack("PUBACK", id),
        Packet::PubRec(id) => ack("PUBREC", id),
        Packet::PubRel(id) => ack("PUBREL", id),
        Packet::PubComp(id) => ack("PUBCOMP", id),
        Packet::SubAck(suback) => Said::Answers {
            kind: "SUBACK",
            packet_id: suback.packet_id.get(),
            granted: suback
                .codes
                .iter()
                .map(|code| match code {
                    SubAckCode::Granted(qos) => Some(qos as u8),
                    SubAckCode::Failure => None,
                })
                .collect(),
        },
        Packet::UnsubAck(id) => Said::Answers {
            kind: "UNSUBACK",
            packet_id: id.get(),
            granted: Vec::new(),
        },
        Packet::PingResp => Said::Pong,
    }
}

fn of_v5(packet: &v5::FromServer<'_>) -> Said {
    use v5::FromServer as Packet;
    let ack = |kind, ack: &v5::Ack<'_>| Said::Ack {
        kind,
        packet_id: ack.packet_id.get(),
        is_failure: ack.reason.is_failure(),
    };
    let answers = |kind, answers: &v5::Answers<'_>| Said::Answers {
        kind,
        packet_id: answers.packet_id.get(),
        granted: answers
            .codes
            .iter()
            .map(|code| match code {
                code if code.is_failure() => None,
                // Success, and no such subscription: gone either way.
                _ if kind == "UNSUBACK" => Some(0),
                code => Some(code.to_byte()),
            })
            .collect(),
    };
    match packet {
        Packet::ConnAck(connack) if !connack.reason.is_failure() => Said::Welcome {
            session_present: connack.session_present,
        },
        Packet::ConnAck(_) | Packet::Disconnect(_) => Said::Goodbye,
        Packet::Publish(publish) => Said::Publish {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic.to_owned(),
            packet_id: publish.packet_id.map(mqtt::PacketId::get),
            properties: publish.properties.as_bytes().to_vec(),
            payload: publish.payload.to_vec(),
        },
        Packet::PubAck(one) => ack("PUBACK", one),
        Packet::PubRec(one) => ack("PUBREC", one),
        Packet::PubRel(one) => ack("PUBREL", one),
        Packet::PubComp(one) => ack("PUBCOMP", one),
        Packet::SubAck(one) => answers("SUBACK", one),
        Packet::UnsubAck(one) => answers("UNSUBACK", one),
        Packet::PingResp => Said::Pong,
        Packet::Auth(notice) => Said::Auth(notice.reason),
    }
}
