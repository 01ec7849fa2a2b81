//! Packets to bytes.
//!
//! Everything is appended to the caller's buffer, so that many packets go out with one write. What
//! decoding would refuse is refused here, and then the buffer holds what it held before. The two
//! ways that carry the load, [`encode_publish_head`] and [`encode_puback`], write from the stack.

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use crate::topic::{self, TopicError};

use super::packet::{ConnAck, Connect, ConnectReturnCode, PacketId, Publish, QoS, SubAckCode};
use super::v5::{Place, Properties, checked_list_bytes, put_list};
use super::{FromClient, FromServer, Malformed, REMAINING_LENGTH_MAX};

/// Why a packet cannot be written. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A client id, user name, password or will payload of more than 65535 bytes (§1.5.3).
    #[error("a field has {bytes} bytes, more than 65535")]
    FieldTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The body of the packet is longer than [`REMAINING_LENGTH_MAX`] (§2.2.3).
    #[error("the remaining length is {bytes}, more than 268435455")]
    PacketTooLong {
        /// The remaining length in bytes; `usize::MAX` if it is greater than that.
        bytes: usize,
    },
    /// U+0000 in a client id or user name (§1.5.3).
    #[error("a text contains the character U+0000")]
    Nul,
    /// The topic of a PUBLISH or of a will (§4.7).
    #[error("the topic name is not allowed: {0}")]
    TopicName(TopicError),
    /// A filter of a SUBSCRIBE or UNSUBSCRIBE (§4.7).
    #[error("the topic filter is not allowed: {0}")]
    TopicFilter(TopicError),
    /// A PUBLISH has a packet id exactly if its QoS is 1 or 2 (§2.3.1).
    #[error("the packet id does not go with the QoS of the PUBLISH")]
    PacketIdAgainstQos,
    /// A PUBLISH of QoS 0 is never a repetition (§3.3.1.1).
    #[error("DUP is set on a PUBLISH of QoS 0")]
    DupAtQosZero,
    /// A password needs a user name (§3.1.2.9).
    #[error("there is a password and no user name")]
    PasswordWithoutUsername,
    /// A refusal never comes with a session (§3.2.2.2).
    #[error("a refusing CONNACK says that a session is present")]
    SessionPresentInRefusal,
    /// No filter in a SUBSCRIBE or UNSUBSCRIBE, no code in a SUBACK (§3.8.3, §3.10.3, §3.9.3).
    #[error("the list is empty")]
    EmptyList,
    /// A property that this packet does not have (MQTT 5 §2.2.2.2).
    #[error("the property {0:#04x} does not belong to this packet")]
    PropertyMisplaced(u8),
    /// A subscription identifier over 268,435,455 (MQTT 5 §1.5.5).
    #[error("the value of a property is too great")]
    PropertyRange,
    /// A list of properties that breaks a rule (MQTT 5 §2.2.2.2).
    #[error("the properties are not allowed: {0}")]
    Properties(Malformed),
    /// A reason code that this packet does not have (MQTT 5 §2.4).
    #[error("the reason code does not belong to this packet")]
    ReasonCode,
}

/// A PUBLISH without its payload, for [`encode_publish_head`] (MQTT 3.1.1 §3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishParts<'a> {
    /// This may be a repetition; never with QoS 0 (§3.3.1.1).
    pub dup: bool,
    /// The guarantee that both sides keep (§3.3.1.2).
    pub qos: QoS,
    /// Store it for later subscribers, or: it was stored (§3.3.1.3).
    pub retain: bool,
    /// The beginning of the topic name, in UTF-8; may be empty.
    pub topic_prefix: &'a [u8],
    /// The rest of the topic name, in UTF-8; may be empty.
    pub topic_suffix: &'a [u8],
    /// `Some` exactly if the QoS is 1 or 2 (§3.3.2.2).
    pub packet_id: Option<PacketId>,
    /// `None` for MQTT 3.1.1, which has none; those of MQTT 5 (§3.3.2.3 there).
    pub properties: Option<Properties<'a>>,
    /// How many bytes of payload the caller will send right behind the head.
    pub payload_len: usize,
}

/// Appends a packet of a server to `out`.
///
/// # Errors
///
/// [`EncodeError`] for what [`super::decode_from_server`] would refuse; `out` is then unchanged.
pub fn encode_from_server(packet: &FromServer<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
    match *packet {
        FromServer::ConnAck(connack) => encode_connack(out, connack)?,
        FromServer::Publish(publish) => encode_publish(out, &publish)?,
        FromServer::PubAck(id) => encode_puback(out, id),
        FromServer::PubRec(id) => encode_pubrec(out, id),
        FromServer::PubRel(id) => encode_pubrel(out, id),
        FromServer::PubComp(id) => encode_pubcomp(out, id),
        FromServer::SubAck(suback) => encode_suback(out, suback.packet_id, suback.codes.iter())?,
        FromServer::UnsubAck(id) => encode_id(out, 0xb0, id),
        FromServer::PingResp => out.extend_from_slice(&[0xd0, 0]),
    }
    Ok(())
}

/// Appends a packet of a client to `out`.
///
/// # Errors
///
/// [`EncodeError`] for what [`super::decode_from_client`] would refuse; `out` is then unchanged.
pub fn encode_from_client(packet: &FromClient<'_>, out: &mut BytesMut) -> Result<(), EncodeError> {
    match *packet {
        FromClient::Connect(connect) => encode_connect(out, &connect)?,
        FromClient::Publish(publish) => encode_publish(out, &publish)?,
        FromClient::PubAck(id) => encode_puback(out, id),
        FromClient::PubRec(id) => encode_pubrec(out, id),
        FromClient::PubRel(id) => encode_pubrel(out, id),
        FromClient::PubComp(id) => encode_pubcomp(out, id),
        FromClient::Subscribe(subscribe) => {
            encode_subscribe(out, subscribe.packet_id, subscribe.filters.iter())?;
        }
        FromClient::Unsubscribe(unsubscribe) => {
            encode_unsubscribe(out, unsubscribe.packet_id, unsubscribe.filters.iter())?;
        }
        FromClient::PingReq => out.extend_from_slice(&[0xc0, 0]),
        FromClient::Disconnect => out.extend_from_slice(&[0xe0, 0]),
    }
    Ok(())
}

/// Appends the head of a PUBLISH: fixed header, topic name (the prefix and the suffix as one) and
/// packet id. The caller sends `payload_len` bytes right behind it (§3.3).
///
/// The lengths are checked, the bytes of the topic are not: they must be those of a topic name
/// that was checked before, see [`crate::topic::check_name`].
///
/// # Errors
///
/// [`EncodeError::TopicName`] if the topic is empty or too long,
/// [`EncodeError::PacketIdAgainstQos`], [`EncodeError::DupAtQosZero`] and
/// [`EncodeError::PacketTooLong`]; `out` is then unchanged.
#[inline]
pub fn encode_publish_head(out: &mut BytesMut, head: PublishParts<'_>) -> Result<(), EncodeError> {
    let topic_bytes = head
        .topic_prefix
        .len()
        .saturating_add(head.topic_suffix.len());
    let topic_length = match u16::try_from(topic_bytes) {
        Ok(0) if head.properties.and_then(Properties::topic_alias).is_none() => {
            return Err(EncodeError::TopicName(TopicError::Empty));
        }
        Ok(length) => length.to_be_bytes(),
        Err(_) => {
            return Err(EncodeError::TopicName(TopicError::TooLong {
                bytes: topic_bytes,
            }));
        }
    };
    if head.packet_id.is_some() != (head.qos != QoS::AtMostOnce) {
        return Err(EncodeError::PacketIdAgainstQos);
    }
    if head.dup && head.qos == QoS::AtMostOnce {
        return Err(EncodeError::DupAtQosZero);
    }
    let mut head_bytes = 2 + topic_bytes + if head.packet_id.is_some() { 2 } else { 0 };
    if let Some(properties) = head.properties {
        head_bytes += checked_list_bytes(properties, Place::ServerPublish)?;
    }
    let remaining = Remaining::new(head.payload_len.saturating_add(head_bytes))?;
    let first = 0x30 | u8::from(head.dup) << 3 | (head.qos as u8) << 1 | u8::from(head.retain);
    out.reserve(5 + head_bytes);
    remaining.put(out, first);
    out.extend_from_slice(&topic_length);
    out.extend_from_slice(head.topic_prefix);
    out.extend_from_slice(head.topic_suffix);
    if let Some(id) = head.packet_id {
        out.extend_from_slice(&id.get().to_be_bytes());
    }
    if let Some(properties) = head.properties {
        put_list(out, properties);
    }
    Ok(())
}

/// Appends a PUBACK, 4 bytes (§3.4).
#[inline]
pub fn encode_puback(out: &mut BytesMut, packet_id: PacketId) {
    encode_id(out, 0x40, packet_id);
}

/// Appends a PUBREC, 4 bytes (§3.5).
#[inline]
pub fn encode_pubrec(out: &mut BytesMut, packet_id: PacketId) {
    encode_id(out, 0x50, packet_id);
}

/// Appends a PUBREL, 4 bytes (§3.6).
#[inline]
pub fn encode_pubrel(out: &mut BytesMut, packet_id: PacketId) {
    encode_id(out, 0x62, packet_id);
}

/// Appends a PUBCOMP, 4 bytes (§3.7).
#[inline]
pub fn encode_pubcomp(out: &mut BytesMut, packet_id: PacketId) {
    encode_id(out, 0x70, packet_id);
}

/// Appends a SUBACK with one code per filter of the SUBSCRIBE, in its order (§3.9).
///
/// # Errors
///
/// [`EncodeError::EmptyList`] and [`EncodeError::PacketTooLong`]; `out` is then unchanged.
pub fn encode_suback(
    out: &mut BytesMut,
    packet_id: PacketId,
    codes: impl Iterator<Item = SubAckCode> + Clone,
) -> Result<(), EncodeError> {
    let count = codes.clone().count();
    put_list_head(out, 0x90, packet_id, count)?;
    out.extend(codes.map(SubAckCode::to_byte));
    Ok(())
}

/// Appends a SUBSCRIBE (§3.8). The iterator is run twice and must give the same both times.
///
/// # Errors
///
/// [`EncodeError::TopicFilter`], [`EncodeError::EmptyList`] and [`EncodeError::PacketTooLong`];
/// `out` is then unchanged.
pub fn encode_subscribe<'f>(
    out: &mut BytesMut,
    packet_id: PacketId,
    filters: impl Iterator<Item = (&'f str, QoS)> + Clone,
) -> Result<(), EncodeError> {
    let mut list_bytes = 0_usize;
    for (filter, _) in filters.clone() {
        list_bytes = list_bytes.saturating_add(filter_bytes(filter)? + 1);
    }
    put_list_head(out, 0x82, packet_id, list_bytes)?;
    for (filter, qos) in filters {
        put_binary(out, filter.as_bytes());
        out.put_u8(qos as u8);
    }
    Ok(())
}

/// Appends an UNSUBSCRIBE (§3.10). The iterator is run twice and must give the same both times.
///
/// # Errors
///
/// [`EncodeError::TopicFilter`], [`EncodeError::EmptyList`] and [`EncodeError::PacketTooLong`];
/// `out` is then unchanged.
pub fn encode_unsubscribe<'f>(
    out: &mut BytesMut,
    packet_id: PacketId,
    filters: impl Iterator<Item = &'f str> + Clone,
) -> Result<(), EncodeError> {
    let mut list_bytes = 0_usize;
    for filter in filters.clone() {
        list_bytes = list_bytes.saturating_add(filter_bytes(filter)?);
    }
    put_list_head(out, 0xa2, packet_id, list_bytes)?;
    for filter in filters {
        put_binary(out, filter.as_bytes());
    }
    Ok(())
}

/// CONNACK (§3.2).
fn encode_connack(out: &mut BytesMut, connack: ConnAck) -> Result<(), EncodeError> {
    let ConnAck {
        session_present,
        code,
    } = connack;
    if session_present && code != ConnectReturnCode::Accepted {
        return Err(EncodeError::SessionPresentInRefusal);
    }
    out.extend_from_slice(&[0x20, 2, u8::from(session_present), code as u8]);
    Ok(())
}

/// CONNECT (§3.1).
fn encode_connect(out: &mut BytesMut, connect: &Connect<'_>) -> Result<(), EncodeError> {
    if connect.password.is_some() && connect.username.is_none() {
        return Err(EncodeError::PasswordWithoutUsername);
    }
    let mut flags = u8::from(connect.clean_session) << 1
        | u8::from(connect.password.is_some()) << 6
        | u8::from(connect.username.is_some()) << 7;
    let mut body_bytes = 10 + string_bytes(connect.client_id)?;
    body_bytes += connect.username.map_or(Ok(0), string_bytes)?;
    body_bytes += connect.password.map_or(Ok(0), binary_bytes)?;
    if let Some(will) = connect.will {
        topic::check_name(will.topic).map_err(EncodeError::TopicName)?;
        flags |= 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
        body_bytes += binary_bytes(will.topic.as_bytes())? + binary_bytes(will.payload)?;
    }
    let remaining = Remaining::new(body_bytes)?;
    out.reserve(5 + body_bytes);
    remaining.put(out, 0x10);
    put_binary(out, b"MQTT");
    out.extend_from_slice(&[4, flags]);
    out.put_u16(connect.keep_alive_seconds);
    put_binary(out, connect.client_id.as_bytes());
    if let Some(will) = connect.will {
        put_binary(out, will.topic.as_bytes());
        put_binary(out, will.payload);
    }
    let login = [connect.username.map(str::as_bytes), connect.password];
    for field in login.into_iter().flatten() {
        put_binary(out, field);
    }
    Ok(())
}

/// PUBLISH with its payload (§3.3).
fn encode_publish(out: &mut BytesMut, publish: &Publish<'_>) -> Result<(), EncodeError> {
    topic::check_name(publish.topic).map_err(EncodeError::TopicName)?;
    let head = PublishParts {
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic_prefix: publish.topic.as_bytes(),
        topic_suffix: &[],
        packet_id: publish.packet_id,
        properties: None,
        payload_len: publish.payload.len(),
    };
    encode_publish_head(out, head)?;
    out.extend_from_slice(publish.payload);
    Ok(())
}

/// A packet that has a packet id and nothing else (§3.4.1).
#[inline]
fn encode_id(out: &mut BytesMut, first: u8, packet_id: PacketId) {
    let [high, low] = packet_id.get().to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}

/// What stands before a list: fixed header and packet id; makes room for the list.
fn put_list_head(
    out: &mut BytesMut,
    first: u8,
    packet_id: PacketId,
    list_bytes: usize,
) -> Result<(), EncodeError> {
    if list_bytes == 0 {
        return Err(EncodeError::EmptyList);
    }
    let body_bytes = list_bytes.saturating_add(2);
    let remaining = Remaining::new(body_bytes)?;
    out.reserve(5 + body_bytes);
    remaining.put(out, first);
    out.put_u16(packet_id.get());
    Ok(())
}

/// Writes a length of two bytes and the bytes, whose number was checked before (§1.5.3).
pub(super) fn put_binary(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u16(bytes.len() as u16);
    out.extend_from_slice(bytes);
}

/// How many bytes a filter takes with its length prefix.
fn filter_bytes(filter: &str) -> Result<usize, EncodeError> {
    topic::check_filter(filter).map_err(EncodeError::TopicFilter)?;
    Ok(2 + filter.len())
}

/// How many bytes a text takes with its length prefix.
pub(super) fn string_bytes(text: &str) -> Result<usize, EncodeError> {
    if text.as_bytes().contains(&0) {
        return Err(EncodeError::Nul);
    }
    binary_bytes(text.as_bytes())
}

/// How many bytes a field takes with its length prefix.
pub(super) fn binary_bytes(bytes: &[u8]) -> Result<usize, EncodeError> {
    match bytes.len() {
        bytes @ ..=0xffff => Ok(2 + bytes),
        bytes => Err(EncodeError::FieldTooLong { bytes }),
    }
}

/// A remaining length that fits into its four bytes (§2.2.3).
pub(super) struct Remaining(usize);

impl Remaining {
    #[inline]
    pub(super) fn new(bytes: usize) -> Result<Self, EncodeError> {
        if bytes > REMAINING_LENGTH_MAX {
            return Err(EncodeError::PacketTooLong { bytes });
        }
        Ok(Self(bytes))
    }

    /// Writes the fixed header, with the length in its shortest form.
    #[inline]
    pub(super) fn put(self, out: &mut BytesMut, first: u8) {
        // Seven bits each, the lowest first; `more` says that another byte follows.
        let bits = |shift: u32| (self.0 >> shift) as u8 & 0x7f;
        let more = |shift: u32| bits(shift) | 0x80;
        match self.0 {
            0..0x80 => out.extend_from_slice(&[first, bits(0)]),
            0x80..0x4000 => out.extend_from_slice(&[first, more(0), bits(7)]),
            0x4000..0x20_0000 => out.extend_from_slice(&[first, more(0), more(7), bits(14)]),
            _ => out.extend_from_slice(&[first, more(0), more(7), more(14), bits(21)]),
        }
    }
}

#[cfg(test)]
mod tests;
