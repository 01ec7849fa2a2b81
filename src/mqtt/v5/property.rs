//! Properties (MQTT 5 §2.2.2): checked once, read in place, written from an iterator.

use std::fmt;
use std::iter;
use std::num::{NonZeroU16, NonZeroU32};

use bytes::{BufMut, BytesMut};

use super::place::Place::{
    ClientAuth, ClientDisconnect, ClientPublish, ConnAck, Connect, Received, Released, ServerAuth,
    ServerDisconnect, ServerPublish, SubAck, Subscribe, UnsubAck, Unsubscribe, Will,
};
use super::place::{Place, Places};
use crate::mqtt::encode::{binary_bytes, put_binary, string_bytes};
use crate::mqtt::reader::Reader;
use crate::mqtt::{EncodeError, Malformed, QoS};
use crate::topic;

/// The greatest variable byte integer, hence subscription identifier (§1.5.5).
pub const VARIABLE_MAX: u32 = 268_435_455;

/// One property (MQTT 5 §2.2.2.2, table 2-4). Numbers of seconds and bytes as the table has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property<'a> {
    /// 0x01: the payload is text in UTF-8.
    PayloadFormat(bool),
    /// 0x02: how long the message is of use, in seconds.
    MessageExpiry(u32),
    /// 0x03: what the payload is.
    ContentType(&'a str),
    /// 0x08: where an answer goes, a topic name.
    ResponseTopic(&'a str),
    /// 0x09: what the answer carries too.
    CorrelationData(&'a [u8]),
    /// 0x0B: the number of a subscription, 1 to [`VARIABLE_MAX`].
    SubscriptionId(NonZeroU32),
    /// 0x11: how long the session is kept without a connection, in seconds; `u32::MAX`: for ever.
    SessionExpiry(u32),
    /// 0x12: the client id that the server chose.
    AssignedClientId(&'a str),
    /// 0x13: the keep-alive that the client has to use, in seconds.
    ServerKeepAlive(u16),
    /// 0x15: the name of an authentication method.
    AuthenticationMethod(&'a str),
    /// 0x16: the method's data.
    AuthenticationData(&'a [u8]),
    /// 0x17: reason strings and user properties may come with any packet.
    RequestProblemInformation(bool),
    /// 0x18: how long after the connection's end the will is published, in seconds.
    WillDelay(u32),
    /// 0x19: the client would like response information.
    RequestResponseInformation(bool),
    /// 0x1A: what response topics begin with.
    ResponseInformation(&'a str),
    /// 0x1C: another server.
    ServerReference(&'a str),
    /// 0x1F: what happened, for people to read.
    ReasonString(&'a str),
    /// 0x21: how many QoS 1 and 2 messages may be in flight.
    ReceiveMaximum(NonZeroU16),
    /// 0x22: the highest topic alias that is taken.
    TopicAliasMaximum(u16),
    /// 0x23: a number for the topic.
    TopicAlias(NonZeroU16),
    /// 0x24: the highest QoS that the server takes: 0 or 1.
    MaximumQos(QoS),
    /// 0x25: the server keeps retained messages.
    RetainAvailable(bool),
    /// 0x26: a name and a value of the user's; the only one that may be repeated everywhere.
    User(&'a str, &'a str),
    /// 0x27: the largest packet that is taken, in bytes.
    MaximumPacketSize(NonZeroU32),
    /// 0x28: filters may have wildcards.
    WildcardSubscriptionAvailable(bool),
    /// 0x29: subscriptions may have identifiers.
    SubscriptionIdsAvailable(bool),
    /// 0x2A: there are shared subscriptions.
    SharedSubscriptionAvailable(bool),
}

impl<'a> Property<'a> {
    /// The identifier on the wire; all take one byte.
    const fn id(self) -> u8 {
        match self {
            Self::PayloadFormat(_) => 0x01,
            Self::MessageExpiry(_) => 0x02,
            Self::ContentType(_) => 0x03,
            Self::ResponseTopic(_) => 0x08,
            Self::CorrelationData(_) => 0x09,
            Self::SubscriptionId(_) => 0x0B,
            Self::SessionExpiry(_) => 0x11,
            Self::AssignedClientId(_) => 0x12,
            Self::ServerKeepAlive(_) => 0x13,
            Self::AuthenticationMethod(_) => 0x15,
            Self::AuthenticationData(_) => 0x16,
            Self::RequestProblemInformation(_) => 0x17,
            Self::WillDelay(_) => 0x18,
            Self::RequestResponseInformation(_) => 0x19,
            Self::ResponseInformation(_) => 0x1A,
            Self::ServerReference(_) => 0x1C,
            Self::ReasonString(_) => 0x1F,
            Self::ReceiveMaximum(_) => 0x21,
            Self::TopicAliasMaximum(_) => 0x22,
            Self::TopicAlias(_) => 0x23,
            Self::MaximumQos(_) => 0x24,
            Self::RetainAvailable(_) => 0x25,
            Self::User(..) => 0x26,
            Self::MaximumPacketSize(_) => 0x27,
            Self::WildcardSubscriptionAvailable(_) => 0x28,
            Self::SubscriptionIdsAvailable(_) => 0x29,
            Self::SharedSubscriptionAvailable(_) => 0x2A,
        }
    }

    #[inline]
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let id = reader.byte()?;
        let zero = Malformed::PropertyZero(id);
        Ok(match id {
            0x01 => Self::PayloadFormat(flag(reader, id)?),
            0x02 => Self::MessageExpiry(reader.long_number()?),
            0x03 => Self::ContentType(reader.string()?),
            0x08 => Self::ResponseTopic(reader.topic_name()?),
            0x09 => Self::CorrelationData(reader.binary()?),
            0x0B => Self::SubscriptionId(NonZeroU32::new(reader.variable()?).ok_or(zero)?),
            0x11 => Self::SessionExpiry(reader.long_number()?),
            0x12 => Self::AssignedClientId(reader.string()?),
            0x13 => Self::ServerKeepAlive(reader.number()?),
            0x15 => Self::AuthenticationMethod(reader.string()?),
            0x16 => Self::AuthenticationData(reader.binary()?),
            0x17 => Self::RequestProblemInformation(flag(reader, id)?),
            0x18 => Self::WillDelay(reader.long_number()?),
            0x19 => Self::RequestResponseInformation(flag(reader, id)?),
            0x1A => Self::ResponseInformation(reader.string()?),
            0x1C => Self::ServerReference(reader.string()?),
            0x1F => Self::ReasonString(reader.string()?),
            0x21 => Self::ReceiveMaximum(NonZeroU16::new(reader.number()?).ok_or(zero)?),
            0x22 => Self::TopicAliasMaximum(reader.number()?),
            0x23 => {
                let alias = NonZeroU16::new(reader.number()?);
                Self::TopicAlias(alias.ok_or(Malformed::TopicAliasZero)?)
            }
            0x24 if flag(reader, id)? => Self::MaximumQos(QoS::AtLeastOnce),
            0x24 => Self::MaximumQos(QoS::AtMostOnce),
            0x25 => Self::RetainAvailable(flag(reader, id)?),
            0x26 => Self::User(reader.string()?, reader.string()?),
            0x27 => Self::MaximumPacketSize(NonZeroU32::new(reader.long_number()?).ok_or(zero)?),
            0x28 => Self::WildcardSubscriptionAvailable(flag(reader, id)?),
            0x29 => Self::SubscriptionIdsAvailable(flag(reader, id)?),
            0x2A => Self::SharedSubscriptionAvailable(flag(reader, id)?),
            _ => return Err(Malformed::PropertyUnknown(id)),
        })
    }

    /// How many bytes it takes, its identifier included.
    fn wire_bytes(self) -> Result<usize, EncodeError> {
        Ok(1 + match self {
            Self::PayloadFormat(_)
            | Self::RequestProblemInformation(_)
            | Self::RequestResponseInformation(_)
            | Self::MaximumQos(_)
            | Self::RetainAvailable(_)
            | Self::WildcardSubscriptionAvailable(_)
            | Self::SubscriptionIdsAvailable(_)
            | Self::SharedSubscriptionAvailable(_) => 1,
            Self::ServerKeepAlive(_)
            | Self::ReceiveMaximum(_)
            | Self::TopicAliasMaximum(_)
            | Self::TopicAlias(_) => 2,
            Self::MessageExpiry(_)
            | Self::SessionExpiry(_)
            | Self::WillDelay(_)
            | Self::MaximumPacketSize(_) => 4,
            Self::SubscriptionId(id) => {
                variable_bytes(id.get()).ok_or(EncodeError::PropertyRange)?
            }
            Self::ContentType(text)
            | Self::AssignedClientId(text)
            | Self::AuthenticationMethod(text)
            | Self::ResponseInformation(text)
            | Self::ServerReference(text)
            | Self::ReasonString(text) => string_bytes(text)?,
            Self::ResponseTopic(name) => {
                topic::check_name(name).map_err(EncodeError::TopicName)?;
                2 + name.len()
            }
            Self::CorrelationData(bytes) | Self::AuthenticationData(bytes) => binary_bytes(bytes)?,
            Self::User(name, value) => string_bytes(name)? + string_bytes(value)?,
        })
    }

    fn put(self, out: &mut BytesMut) {
        out.put_u8(self.id());
        match self {
            Self::PayloadFormat(flag)
            | Self::RequestProblemInformation(flag)
            | Self::RequestResponseInformation(flag)
            | Self::RetainAvailable(flag)
            | Self::WildcardSubscriptionAvailable(flag)
            | Self::SubscriptionIdsAvailable(flag)
            | Self::SharedSubscriptionAvailable(flag) => out.put_u8(flag.into()),
            Self::MaximumQos(qos) => out.put_u8((qos != QoS::AtMostOnce).into()),
            Self::ServerKeepAlive(number) | Self::TopicAliasMaximum(number) => out.put_u16(number),
            Self::ReceiveMaximum(number) | Self::TopicAlias(number) => out.put_u16(number.get()),
            Self::MessageExpiry(number) | Self::SessionExpiry(number) | Self::WillDelay(number) => {
                out.put_u32(number);
            }
            Self::MaximumPacketSize(number) => out.put_u32(number.get()),
            Self::SubscriptionId(id) => put_variable(out, id.get()),
            Self::ContentType(text)
            | Self::AssignedClientId(text)
            | Self::AuthenticationMethod(text)
            | Self::ResponseInformation(text)
            | Self::ServerReference(text)
            | Self::ReasonString(text)
            | Self::ResponseTopic(text) => put_binary(out, text.as_bytes()),
            Self::CorrelationData(bytes) | Self::AuthenticationData(bytes) => {
                put_binary(out, bytes);
            }
            Self::User(name, value) => {
                put_binary(out, name.as_bytes());
                put_binary(out, value.as_bytes());
            }
        }
    }
}

/// Where a property may stand (table 2-4).
const fn places(id: u8) -> Places {
    Places::of(match id {
        0x01 | 0x02 | 0x03 | 0x08 | 0x09 => &[Will, ClientPublish, ServerPublish],
        // A client that publishes has no subscription to name (§3.3.4).
        0x0B => &[ServerPublish, Subscribe],
        // A server does not change it by DISCONNECT (§3.14.2.2.2).
        0x11 => &[Connect, ConnAck, ClientDisconnect],
        0x12 | 0x13 | 0x1A | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => &[ConnAck],
        0x15 | 0x16 => &[Connect, ConnAck, ClientAuth, ServerAuth],
        0x17 | 0x19 => &[Connect],
        0x18 => &[Will],
        0x1C => &[ConnAck, ServerDisconnect],
        0x1F => &[
            ConnAck,
            Received,
            Released,
            SubAck,
            UnsubAck,
            ClientDisconnect,
            ServerDisconnect,
            ClientAuth,
            ServerAuth,
        ],
        0x21 | 0x22 | 0x27 => &[Connect, ConnAck],
        0x23 => &[ClientPublish, ServerPublish],
        0x26 => &[
            Connect,
            Will,
            ConnAck,
            ClientPublish,
            ServerPublish,
            Received,
            Released,
            Subscribe,
            SubAck,
            Unsubscribe,
            UnsubAck,
            ClientDisconnect,
            ServerDisconnect,
            ClientAuth,
            ServerAuth,
        ],
        _ => &[],
    })
}

/// A byte that is 0 or 1 (§3.1.2.11.6 and others).
fn flag(reader: &mut Reader<'_>, id: u8) -> Result<bool, Malformed> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(Malformed::PropertyFlag { id, value }),
    }
}

/// The properties of one packet, checked and read in place (MQTT 5 §2.2.2).
///
/// Each is one that such a packet may have, with a value that it may have, and all but user
/// properties, and the subscription identifiers of a server's PUBLISH, are there once at most.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// None.
    pub const EMPTY: Self = Self(&[]);

    /// Checks a list as it stands on the wire, without its length.
    ///
    /// # Errors
    /// [`Malformed`] if one may not stand there, stands twice or has a value that it cannot have.
    #[inline]
    pub fn parse(bytes: &'a [u8], place: Place) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut seen = 0_u64;
        while !reader.is_empty() {
            let property = Property::read(&mut reader)?;
            let id = property.id();
            if !places(id).has(place) {
                return Err(match (id, place) {
                    (0x0B, ClientPublish) => Malformed::SubscriptionIdOfClient,
                    _ => Malformed::PropertyMisplaced(id),
                });
            }
            let may_repeat = id == 0x26 || (id == 0x0B && place == ServerPublish);
            if seen & 1 << id != 0 && !may_repeat {
                return Err(Malformed::PropertyTwice(id));
            }
            seen |= 1 << id;
        }
        let method_and_data = seen >> 0x15 & 0b11;
        if method_and_data == 0b10 {
            return Err(Malformed::AuthenticationDataAlone);
        }
        Ok(Self(bytes))
    }

    /// Reads a length and that many bytes of properties.
    #[inline]
    pub(super) fn read(reader: &mut Reader<'a>, place: Place) -> Result<Self, Malformed> {
        let bytes = reader.variable()? as usize;
        Self::parse(reader.take(bytes)?, place)
    }

    /// The properties in the order of the packet.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Property<'a>> + Clone {
        let mut reader = Reader::new(self.0);
        // Checked by `parse`, so the only error is the one that ends the list.
        iter::from_fn(move || Property::read(&mut reader).ok())
    }

    /// The first for which `pick` gives something.
    #[inline]
    pub fn find<T>(self, pick: impl FnMut(Property<'a>) -> Option<T>) -> Option<T> {
        self.iter().find_map(pick)
    }

    /// The number that stands for the topic, or is to stand for it from now on (§3.3.2.3.4).
    #[must_use]
    pub fn topic_alias(self) -> Option<NonZeroU16> {
        self.find(|property| match property {
            Property::TopicAlias(alias) => Some(alias),
            _ => None,
        })
    }

    /// How long the message is of use, in milliseconds; whole seconds (§3.3.2.3.3).
    #[must_use]
    pub fn message_expiry_ms(self) -> Option<u64> {
        self.find(|property| match property {
            Property::MessageExpiry(seconds) => Some(u64::from(seconds) * 1000),
            _ => None,
        })
    }

    /// Appends them, with another expiry if they have one (§3.3.2.3.3), and more of them.
    ///
    /// # Errors
    /// As [`encode_properties`].
    pub fn encode_with_expiry(
        self,
        expiry: impl Fn(u32) -> u32 + Clone,
        more: impl Iterator<Item = Property<'a>> + Clone,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        let left = self.iter().map(|property| match property {
            Property::MessageExpiry(seconds) => Property::MessageExpiry(expiry(seconds)),
            other => other,
        });
        encode_properties(out, ServerPublish, left.chain(more))
    }

    /// Names and values of the user properties, in their order.
    pub fn user(self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone {
        self.iter().filter_map(|property| match property {
            Property::User(name, value) => Some((name, value)),
            _ => None,
        })
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// As they stand on the wire, without their length.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Authentication data is a secret.
        let shown = |property| match property {
            Property::AuthenticationData(_) => Property::AuthenticationData(b"(not shown)"),
            other => other,
        };
        f.debug_list().entries(self.iter().map(shown)).finish()
    }
}

/// Writes properties for a packet, without their length.
///
/// # Errors
/// [`EncodeError`] for what [`Properties::parse`] would refuse; `out` is then unchanged.
pub fn encode_properties<'a>(
    out: &mut BytesMut,
    place: Place,
    properties: impl Iterator<Item = Property<'a>> + Clone,
) -> Result<(), EncodeError> {
    let mut bytes = 0;
    for property in properties.clone() {
        if !places(property.id()).has(place) {
            return Err(EncodeError::PropertyMisplaced(property.id()));
        }
        bytes += property.wire_bytes()?;
    }
    let before = out.len();
    out.reserve(bytes);
    properties.for_each(|property| property.put(out));
    let written = out.get(before..).unwrap_or_default();
    if let Err(error) = Properties::parse(written, place) {
        out.truncate(before);
        return Err(EncodeError::Properties(error));
    }
    Ok(())
}

/// How many bytes a variable byte integer takes; `None` if it has no such form (§1.5.5).
pub(super) const fn variable_bytes(number: u32) -> Option<usize> {
    match number {
        0..0x80 => Some(1),
        0x80..0x4000 => Some(2),
        0x4000..0x20_0000 => Some(3),
        0x20_0000..=VARIABLE_MAX => Some(4),
        _ => None,
    }
}

/// Bytes of a list of properties and the length before it (§2.2.2.1).
#[must_use]
pub fn list_bytes(properties: Properties<'_>) -> usize {
    let bytes = properties.0.len();
    let length = u32::try_from(bytes).ok().and_then(variable_bytes);
    length.unwrap_or(4) + bytes
}

/// Bytes of a whole packet whose fixed header announces so many (§2.1.4).
#[must_use]
pub fn packet_bytes(remaining: usize) -> usize {
    let length = u32::try_from(remaining).ok().and_then(variable_bytes);
    1 + length.unwrap_or(4) + remaining
}

/// Writes a variable byte integer, which is at most [`VARIABLE_MAX`] (§1.5.5).
pub(super) fn put_variable(out: &mut BytesMut, mut number: u32) {
    loop {
        let bits = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            out.put_u8(bits);
            return;
        }
        out.put_u8(bits | 0x80);
    }
}

#[cfg(test)]
mod tests;
