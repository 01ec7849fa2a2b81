//! Bytes to packets, with the reader and the order of checks of MQTT 3.1.1.

use super::packet::{
    Ack, Answers, ConnAck, Connect, Notice, Publish, ReasonCodes, Subscribe, SubscribeFilters,
    Unsubscribe, Will, shared,
};
use super::place::Place;
use super::property::Properties;
use super::reason::ReasonCode;
use super::{FromClient, FromServer};
use crate::mqtt::decode::{ConnectFlags, Frame, Kind, Sender, publish_flags};
use crate::mqtt::reader::Reader;
use crate::mqtt::{DecodeError, Malformed, QoS, UnsubscribeFilters};
use crate::topic::TopicError;

/// Reads one packet of a client from the beginning of `buf` (MQTT 5 §2, §3).
///
/// Gives the packet and its length in bytes; `None` if more bytes are needed. `packet_bytes_max`
/// limits the entire packet and applies as soon as the fixed header is there.
///
/// # Errors
/// [`DecodeError`], whose reason code is [`DecodeError::reason_code`]. A CONNECT of another version
/// is [`DecodeError::UnsupportedProtocol`].
#[inline]
pub fn decode_from_client(
    buf: &[u8],
    packet_bytes_max: usize,
) -> Result<Option<(FromClient<'_>, usize)>, DecodeError> {
    let Some(frame) = Frame::read::<true>(buf, packet_bytes_max, Sender::Client)? else {
        return Ok(None);
    };
    let mut body = Reader::new(frame.body);
    let packet = match frame.kind {
        Kind::Publish => {
            FromClient::Publish(publish(&mut body, frame.first, Place::ClientPublish)?)
        }
        Kind::PubAck => FromClient::PubAck(ack(body, Place::Received)?),
        Kind::PubRec => FromClient::PubRec(ack(body, Place::Received)?),
        Kind::PubRel => FromClient::PubRel(ack(body, Place::Released)?),
        Kind::PubComp => FromClient::PubComp(ack(body, Place::Released)?),
        Kind::Connect => FromClient::Connect(connect(body)?),
        Kind::Subscribe => FromClient::Subscribe(Subscribe {
            packet_id: body.packet_id()?,
            properties: Properties::read(&mut body, Place::Subscribe)?,
            filters: SubscribeFilters::parse(body.rest())?,
        }),
        Kind::Unsubscribe => FromClient::Unsubscribe(unsubscribe(body)?),
        Kind::PingReq => FromClient::PingReq,
        Kind::Disconnect => FromClient::Disconnect(notice(body, Place::ClientDisconnect)?),
        Kind::Auth => FromClient::Auth(notice(body, Place::ClientAuth)?),
        Kind::ConnAck | Kind::SubAck | Kind::UnsubAck | Kind::PingResp => {
            return Err(frame.kind.wrong_sender().into());
        }
    };
    Ok(Some((packet, frame.packet_bytes)))
}

/// Reads one packet of a server from the beginning of `buf` (MQTT 5 §2, §3): the mirror of
/// [`decode_from_client`].
///
/// # Errors
/// [`DecodeError`], but never [`DecodeError::UnsupportedProtocol`].
#[inline]
pub fn decode_from_server(
    buf: &[u8],
    packet_bytes_max: usize,
) -> Result<Option<(FromServer<'_>, usize)>, DecodeError> {
    let Some(frame) = Frame::read::<true>(buf, packet_bytes_max, Sender::Server)? else {
        return Ok(None);
    };
    let mut body = Reader::new(frame.body);
    let packet = match frame.kind {
        Kind::Publish => {
            FromServer::Publish(publish(&mut body, frame.first, Place::ServerPublish)?)
        }
        Kind::PubAck => FromServer::PubAck(ack(body, Place::Received)?),
        Kind::PubRec => FromServer::PubRec(ack(body, Place::Received)?),
        Kind::PubRel => FromServer::PubRel(ack(body, Place::Released)?),
        Kind::PubComp => FromServer::PubComp(ack(body, Place::Released)?),
        Kind::ConnAck => FromServer::ConnAck(connack(body)?),
        Kind::SubAck => FromServer::SubAck(answers(body, Place::SubAck)?),
        Kind::UnsubAck => FromServer::UnsubAck(answers(body, Place::UnsubAck)?),
        Kind::PingResp => FromServer::PingResp,
        Kind::Disconnect => FromServer::Disconnect(notice(body, Place::ServerDisconnect)?),
        Kind::Auth => FromServer::Auth(notice(body, Place::ServerAuth)?),
        Kind::Connect | Kind::Subscribe | Kind::Unsubscribe | Kind::PingReq => {
            return Err(frame.kind.wrong_sender().into());
        }
    };
    Ok(Some((packet, frame.packet_bytes)))
}

/// CONNECT after the fixed header (§3.1.2, §3.1.3).
fn connect(mut body: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    let name = body.binary()?;
    let level = body.byte()?;
    match (name, level) {
        (b"MQTT", 5) => {}
        (b"MQTT" | b"MQIsdp", _) => return Err(DecodeError::UnsupportedProtocol { level }),
        _ => return Err(Malformed::ProtocolName.into()),
    }
    let flags = ConnectFlags::read(&mut body)?;
    let connect = Connect {
        clean_start: flags.clean,
        keep_alive_seconds: body.number()?,
        properties: Properties::read(&mut body, Place::Connect)?,
        client_id: body.string()?,
        will: match flags.will {
            None => None,
            Some((qos, retain)) => Some(Will {
                properties: Properties::read(&mut body, Place::Will)?,
                topic: body.topic_name()?,
                payload: body.binary()?,
                qos,
                retain,
            }),
        },
        username: flags.username.then(|| body.string()).transpose()?,
        password: flags.password.then(|| body.binary()).transpose()?,
    };
    body.finish()?;
    Ok(connect)
}

/// CONNACK after the fixed header (§3.2.2).
fn connack(mut body: Reader<'_>) -> Result<ConnAck<'_>, Malformed> {
    let flags = body.byte()?;
    let reason = reason(&mut body, Place::ConnAck)?;
    if flags > 1 {
        return Err(Malformed::ConnAckFlagsReserved(flags));
    }
    let session_present = flags == 1;
    if session_present && reason != ReasonCode::Success {
        return Err(Malformed::SessionPresentInRefusal);
    }
    let properties = Properties::read(&mut body, Place::ConnAck)?;
    body.finish()?;
    Ok(ConnAck {
        session_present,
        reason,
        properties,
    })
}

/// PUBLISH after the fixed header (§3.3.2, §3.3.3).
#[inline]
fn publish<'a>(body: &mut Reader<'a>, first: u8, place: Place) -> Result<Publish<'a>, Malformed> {
    let (dup, qos, retain) = publish_flags(first)?;
    let topic = body.topic_name();
    let topic = match topic {
        Err(Malformed::TopicName(TopicError::Empty)) => "",
        topic => topic?,
    };
    let packet_id = match qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce | QoS::ExactlyOnce => Some(body.packet_id()?),
    };
    let properties = Properties::read(body, place)?;
    if topic.is_empty() && properties.topic_alias().is_none() {
        return Err(Malformed::TopicName(TopicError::Empty));
    }
    Ok(Publish {
        dup,
        qos,
        retain,
        topic,
        packet_id,
        properties,
        payload: body.rest(),
    })
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP after the fixed header: without a reason code they say
/// success, and without a length of properties there are none (§3.4.2).
#[inline]
fn ack(mut body: Reader<'_>, place: Place) -> Result<Ack<'_>, Malformed> {
    let packet_id = body.packet_id()?;
    let Notice { reason, properties } = notice(body, place)?;
    Ok(Ack {
        packet_id,
        reason,
        properties,
    })
}

/// A reason code and properties, which may be missing from the end (§3.4.2, §3.14.2, §3.15.2).
#[inline]
fn notice(mut body: Reader<'_>, place: Place) -> Result<Notice<'_>, Malformed> {
    let reason = if body.is_empty() {
        let success = ReasonCode::Success;
        let allowed = success.may_stand_in(place).then_some(success);
        allowed.ok_or(Malformed::ReasonCode(0))?
    } else {
        reason(&mut body, place)?
    };
    let properties = if body.is_empty() {
        Properties::EMPTY
    } else {
        Properties::read(&mut body, place)?
    };
    body.finish()?;
    Ok(Notice { reason, properties })
}

/// SUBACK and UNSUBACK after the fixed header (§3.9, §3.11).
fn answers(mut body: Reader<'_>, place: Place) -> Result<Answers<'_>, Malformed> {
    Ok(Answers {
        packet_id: body.packet_id()?,
        properties: Properties::read(&mut body, place)?,
        codes: ReasonCodes::parse(body.rest(), place)?,
    })
}

/// UNSUBSCRIBE after the fixed header (§3.10).
fn unsubscribe(mut body: Reader<'_>) -> Result<Unsubscribe<'_>, Malformed> {
    let unsubscribe = Unsubscribe {
        packet_id: body.packet_id()?,
        properties: Properties::read(&mut body, Place::Unsubscribe)?,
        filters: UnsubscribeFilters::parse(body.rest())?,
    };
    for filter in unsubscribe.filters.iter() {
        shared(filter)?;
    }
    Ok(unsubscribe)
}

fn reason(body: &mut Reader<'_>, place: Place) -> Result<ReasonCode, Malformed> {
    let byte = body.byte()?;
    ReasonCode::from_byte(byte, place).ok_or(Malformed::ReasonCode(byte))
}
