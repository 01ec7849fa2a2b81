//! Packets to bytes. What decoding would refuse is refused here, and then the buffer holds what it
//! held before.

use bytes::{BufMut, BytesMut};

use super::packet::{Ack, Answers, ConnAck, Connect, Notice, Publish, Subscribe, Unsubscribe};
use super::place::Place;
use super::property::{Properties, put_variable, variable_bytes};
use super::reason::ReasonCode;
use super::{FromClient, FromServer};
use crate::mqtt::encode::{Remaining, binary_bytes, put_binary, string_bytes};
use crate::mqtt::{EncodeError, QoS};
use crate::topic::{self, TopicError};

/// Appends a packet of a server to `out`.
///
/// # Errors
/// [`EncodeError`] for what [`super::decode_from_server`] would refuse; `out` is then unchanged.
pub fn encode_from_server(packet: &FromServer<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
    match packet {
        FromServer::ConnAck(connack) => encode_connack(out, connack),
        FromServer::Publish(publish) => encode_publish(out, publish, Place::ServerPublish),
        FromServer::PubAck(ack) => encode_ack(out, 0x40, ack, Place::Received),
        FromServer::PubRec(ack) => encode_ack(out, 0x50, ack, Place::Received),
        FromServer::PubRel(ack) => encode_ack(out, 0x62, ack, Place::Released),
        FromServer::PubComp(ack) => encode_ack(out, 0x70, ack, Place::Released),
        FromServer::SubAck(answers) => encode_answers(out, 0x90, answers, Place::SubAck),
        FromServer::UnsubAck(answers) => encode_answers(out, 0xb0, answers, Place::UnsubAck),
        FromServer::PingResp => {
            out.extend_from_slice(&[0xd0, 0]);
            Ok(())
        }
        FromServer::Disconnect(notice) => encode_notice(out, 0xe0, notice, Place::ServerDisconnect),
        FromServer::Auth(notice) => encode_notice(out, 0xf0, notice, Place::ServerAuth),
    }
}

/// Appends a packet of a client to `out`.
///
/// # Errors
/// [`EncodeError`] for what [`super::decode_from_client`] would refuse; `out` is then unchanged.
pub fn encode_from_client(packet: &FromClient<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
    match packet {
        FromClient::Connect(connect) => encode_connect(out, connect),
        FromClient::Publish(publish) => encode_publish(out, publish, Place::ClientPublish),
        FromClient::PubAck(ack) => encode_ack(out, 0x40, ack, Place::Received),
        FromClient::PubRec(ack) => encode_ack(out, 0x50, ack, Place::Received),
        FromClient::PubRel(ack) => encode_ack(out, 0x62, ack, Place::Released),
        FromClient::PubComp(ack) => encode_ack(out, 0x70, ack, Place::Released),
        FromClient::Subscribe(subscribe) => encode_subscribe(out, subscribe),
        FromClient::Unsubscribe(unsubscribe) => encode_unsubscribe(out, unsubscribe),
        FromClient::PingReq => {
            out.extend_from_slice(&[0xc0, 0]);
            Ok(())
        }
        FromClient::Disconnect(notice) => encode_notice(out, 0xe0, notice, Place::ClientDisconnect),
        FromClient::Auth(notice) => encode_notice(out, 0xf0, notice, Place::ClientAuth),
    }
}

/// CONNECT (§3.1).
fn encode_connect(out: &mut BytesMut, connect: &Connect<'_>) -> Result<(), EncodeError> {
    let mut flags = u8::from(connect.clean_start) << 1
        | u8::from(connect.password.is_some()) << 6
        | u8::from(connect.username.is_some()) << 7;
    let mut body_bytes = 10 + string_bytes(connect.client_id)?;
    body_bytes += checked_list_bytes(connect.properties, Place::Connect)?;
    body_bytes += connect.username.map_or(Ok(0), string_bytes)?;
    body_bytes += connect.password.map_or(Ok(0), binary_bytes)?;
    if let Some(will) = connect.will {
        topic::check_name(will.topic).map_err(EncodeError::TopicName)?;
        flags |= 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
        body_bytes += checked_list_bytes(will.properties, Place::Will)?;
        body_bytes += binary_bytes(will.topic.as_bytes())? + binary_bytes(will.payload)?;
    }
    let remaining = Remaining::new(body_bytes)?;
    out.reserve(5 + body_bytes);
    remaining.put(out, 0x10);
    put_binary(out, b"MQTT");
    out.extend_from_slice(&[5, flags]);
    out.put_u16(connect.keep_alive_seconds);
    put_list(out, connect.properties);
    put_binary(out, connect.client_id.as_bytes());
    if let Some(will) = connect.will {
        put_list(out, will.properties);
        put_binary(out, will.topic.as_bytes());
        put_binary(out, will.payload);
    }
    let login = [connect.username.map(str::as_bytes), connect.password];
    for field in login.into_iter().flatten() {
        put_binary(out, field);
    }
    Ok(())
}

/// CONNACK (§3.2).
fn encode_connack(out: &mut BytesMut, connack: &ConnAck<'_>) -> Result<(), EncodeError> {
    check(connack.reason, Place::ConnAck)?;
    if connack.session_present && connack.reason != ReasonCode::Success {
        return Err(EncodeError::SessionPresentInRefusal);
    }
    let body_bytes = 2 + checked_list_bytes(connack.properties, Place::ConnAck)?;
    Remaining::new(body_bytes)?.put(out, 0x20);
    let reason = connack.reason.to_byte();
    out.extend_from_slice(&[u8::from(connack.session_present), reason]);
    put_list(out, connack.properties);
    Ok(())
}

/// PUBLISH with its payload (§3.3).
fn encode_publish(
    out: &mut BytesMut,
    publish: &Publish<'_>,
    place: Place,
) -> Result<(), EncodeError> {
    match topic::check_name(publish.topic) {
        Err(TopicError::Empty) if publish.properties.topic_alias().is_some() => {}
        checked => checked.map_err(EncodeError::TopicName)?,
    }
    if publish.packet_id.is_some() != (publish.qos != QoS::AtMostOnce) {
        return Err(EncodeError::PacketIdAgainstQos);
    }
    if publish.dup && publish.qos == QoS::AtMostOnce {
        return Err(EncodeError::DupAtQosZero);
    }
    let id_bytes = if publish.packet_id.is_some() { 2 } else { 0 };
    let head_bytes =
        2 + publish.topic.len() + id_bytes + checked_list_bytes(publish.properties, place)?;
    let remaining = Remaining::new(publish.payload.len().saturating_add(head_bytes))?;
    let flags = u8::from(publish.dup) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain);
    out.reserve(5 + head_bytes + publish.payload.len());
    remaining.put(out, 0x30 | flags);
    put_binary(out, publish.topic.as_bytes());
    if let Some(id) = publish.packet_id {
        out.put_u16(id.get());
    }
    put_list(out, publish.properties);
    out.extend_from_slice(publish.payload);
    Ok(())
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP, in their shortest form (§3.4.2).
fn encode_ack(
    out: &mut BytesMut,
    first: u8,
    ack: &Ack<'_>,
    place: Place,
) -> Result<(), EncodeError> {
    let id = ack.packet_id.get().to_be_bytes();
    put_short(out, first, &id, (ack.reason, ack.properties), place)
}

/// DISCONNECT and AUTH, in their shortest form (§3.14.2, §3.15.2).
fn encode_notice(
    out: &mut BytesMut,
    first: u8,
    notice: &Notice<'_>,
    place: Place,
) -> Result<(), EncodeError> {
    put_short(out, first, &[], (notice.reason, notice.properties), place)
}

/// Success without properties is left out, and so is the length of no properties.
fn put_short(
    out: &mut BytesMut,
    first: u8,
    id: &[u8],
    (reason, properties): (ReasonCode, Properties<'_>),
    place: Place,
) -> Result<(), EncodeError> {
    check(reason, place)?;
    let has_properties = !properties.is_empty();
    let has_reason = has_properties || reason != ReasonCode::Success;
    let mut body_bytes = id.len() + usize::from(has_reason);
    if has_properties {
        body_bytes += checked_list_bytes(properties, place)?;
    }
    Remaining::new(body_bytes)?.put(out, first);
    out.extend_from_slice(id);
    if has_reason {
        out.put_u8(reason.to_byte());
    }
    if has_properties {
        put_list(out, properties);
    }
    Ok(())
}

/// SUBACK and UNSUBACK (§3.9, §3.11).
fn encode_answers(
    out: &mut BytesMut,
    first: u8,
    answers: &Answers<'_>,
    place: Place,
) -> Result<(), EncodeError> {
    if answers.codes.place() != place {
        return Err(EncodeError::ReasonCode);
    }
    let codes = answers.codes.as_bytes();
    let body_bytes = 2 + checked_list_bytes(answers.properties, place)? + codes.len();
    Remaining::new(body_bytes)?.put(out, first);
    out.put_u16(answers.packet_id.get());
    put_list(out, answers.properties);
    out.extend_from_slice(codes);
    Ok(())
}

/// SUBSCRIBE (§3.8).
fn encode_subscribe(out: &mut BytesMut, subscribe: &Subscribe<'_>) -> Result<(), EncodeError> {
    let filters = subscribe.filters.as_bytes();
    let body_bytes =
        2 + checked_list_bytes(subscribe.properties, Place::Subscribe)? + filters.len();
    Remaining::new(body_bytes)?.put(out, 0x82);
    out.put_u16(subscribe.packet_id.get());
    put_list(out, subscribe.properties);
    out.extend_from_slice(filters);
    Ok(())
}

/// UNSUBSCRIBE (§3.10).
fn encode_unsubscribe(
    out: &mut BytesMut,
    unsubscribe: &Unsubscribe<'_>,
) -> Result<(), EncodeError> {
    let filters = unsubscribe.filters.as_bytes();
    let body_bytes =
        2 + checked_list_bytes(unsubscribe.properties, Place::Unsubscribe)? + filters.len();
    Remaining::new(body_bytes)?.put(out, 0xa2);
    out.put_u16(unsubscribe.packet_id.get());
    put_list(out, unsubscribe.properties);
    out.extend_from_slice(filters);
    Ok(())
}

fn check(reason: ReasonCode, place: Place) -> Result<(), EncodeError> {
    let may = reason.may_stand_in(place).then_some(());
    may.ok_or(EncodeError::ReasonCode)
}

/// How many bytes properties take with their length; they must be those of such a packet.
pub(in crate::mqtt) fn checked_list_bytes(
    properties: Properties<'_>,
    place: Place,
) -> Result<usize, EncodeError> {
    let bytes = properties.as_bytes();
    Properties::parse(bytes, place).map_err(EncodeError::Properties)?;
    let length = u32::try_from(bytes.len()).ok().and_then(variable_bytes);
    let length = length.ok_or(EncodeError::PacketTooLong { bytes: bytes.len() })?;
    Ok(length + bytes.len())
}

/// Writes properties with their length, which was checked before.
pub(in crate::mqtt) fn put_list(out: &mut BytesMut, properties: Properties<'_>) {
    let bytes = properties.as_bytes();
    put_variable(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}
