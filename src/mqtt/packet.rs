//! The packets of MQTT 3.1.1, borrowed from the bytes they were read from.
//!
//! Text and payloads are slices of the caller's buffer; lists are [`Copy`] views that walk bytes
//! which were checked once. What a field may hold beyond its type is said at the field: decoding
//! hands out nothing else, and encoding refuses anything else.

use std::fmt;
use std::iter;
use std::num::NonZeroU16;

use super::Malformed;
use super::reader::Reader;

/// CONNECT: a client asks for a session (MQTT 3.1.1 §3.1).
///
/// An empty client id without a clean session is well formed; the server answers it with
/// [`ConnectReturnCode::IdentifierRejected`] (§3.1.3.1). `Debug` does not show the password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Forget the session before and after this connection (§3.1.2.4).
    pub clean_session: bool,
    /// The client sends something at least this often, in seconds; 0 is never (§3.1.2.10).
    pub keep_alive_seconds: u16,
    /// At most 65535 bytes without U+0000; may be empty (§3.1.3.1).
    pub client_id: &'a str,
    /// What the server publishes when the client goes without a DISCONNECT (§3.1.2.5).
    pub will: Option<Will<'a>>,
    /// At most 65535 bytes without U+0000 (§3.1.3.4).
    pub username: Option<&'a str>,
    /// At most 65535 bytes, and only beside a user name (§3.1.2.9, §3.1.3.5).
    pub password: Option<&'a [u8]>,
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("clean_session", &self.clean_session)
            .field("keep_alive_seconds", &self.keep_alive_seconds)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("username", &self.username)
            .field("password", &self.password.map(|_| "(not shown)"))
            .finish()
    }
}

/// The message that a CONNECT leaves with the server (MQTT 3.1.1 §3.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// A topic name, see [`crate::topic::check_name`] (§3.1.3.2).
    pub topic: &'a str,
    /// At most 65535 bytes; may be empty (§3.1.3.3).
    pub payload: &'a [u8],
    /// The QoS it is published with (§3.1.2.6).
    pub qos: QoS,
    /// Whether it is published as a retained message (§3.1.2.7).
    pub retain: bool,
}

/// CONNACK: the server's answer to CONNECT (MQTT 3.1.1 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnAck {
    /// The server kept a session of this client; never together with a refusal (§3.2.2.2).
    pub session_present: bool,
    /// Accepted, or why not (§3.2.2.3).
    pub code: ConnectReturnCode,
}

/// The server's verdict on a CONNECT (MQTT 3.1.1 §3.2.2.3, table 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectReturnCode {
    /// 0: the connection is accepted.
    Accepted = 0,
    /// 1: the server does not speak the requested protocol level.
    UnacceptableProtocolVersion = 1,
    /// 2: the client id is not allowed here.
    IdentifierRejected = 2,
    /// 3: the service is not available.
    ServerUnavailable = 3,
    /// 4: the user name or password is malformed.
    BadUserNameOrPassword = 4,
    /// 5: the client is not authorized to connect.
    NotAuthorized = 5,
}

impl ConnectReturnCode {
    /// The code for a byte; `None` for the reserved values 6 to 255 (§3.2.2.3).
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Accepted),
            1 => Some(Self::UnacceptableProtocolVersion),
            2 => Some(Self::IdentifierRejected),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }
}

/// PUBLISH: one message, in either direction (MQTT 3.1.1 §3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// This may be a repetition; never with QoS 0 (§3.3.1.1).
    pub dup: bool,
    /// The guarantee that both sides keep (§3.3.1.2).
    pub qos: QoS,
    /// Store it for later subscribers, or: it was stored (§3.3.1.3).
    pub retain: bool,
    /// A topic name, see [`crate::topic::check_name`] (§3.3.2.1).
    pub topic: &'a str,
    /// `Some` exactly if the QoS is 1 or 2 (§3.3.2.2).
    pub packet_id: Option<PacketId>,
    /// The message itself; may be empty (§3.3.3).
    pub payload: &'a [u8],
}

/// What is known of a PUBLISH before its payload has arrived (MQTT 3.1.1 §3.3.1, §3.3.2).
///
/// The fields mean what they mean in [`Publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishHead<'a> {
    /// This may be a repetition.
    pub dup: bool,
    /// The guarantee that both sides keep.
    pub qos: QoS,
    /// Store it for later subscribers, or: it was stored.
    pub retain: bool,
    /// A topic name.
    pub topic: &'a str,
    /// `Some` exactly if the QoS is 1 or 2.
    pub packet_id: Option<PacketId>,
    /// The length of the entire packet in bytes, fixed header and payload included.
    pub total_len: usize,
}

/// SUBSCRIBE: filters, each with the QoS asked for (MQTT 3.1.1 §3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The SUBACK carries the same (§3.8.2).
    pub packet_id: PacketId,
    /// At least one (§3.8.3).
    pub filters: SubscribeFilters<'a>,
}

/// UNSUBSCRIBE: filters to give up (MQTT 3.1.1 §3.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// The UNSUBACK carries the same (§3.10.2).
    pub packet_id: PacketId,
    /// At least one (§3.10.3).
    pub filters: UnsubscribeFilters<'a>,
}

/// SUBACK: one answer per filter of a SUBSCRIBE, in its order (MQTT 3.1.1 §3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubAck<'a> {
    /// That of the SUBSCRIBE (§3.9.2).
    pub packet_id: PacketId,
    /// At least one (§3.9.3).
    pub codes: SubAckCodes<'a>,
}

/// The answer to one filter of a SUBSCRIBE (MQTT 3.1.1 §3.9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubAckCode {
    /// 0x00, 0x01, 0x02: subscribed, with at most this QoS.
    Granted(QoS),
    /// 0x80: not subscribed.
    Failure,
}

impl SubAckCode {
    /// The code for a byte; `None` for the reserved values (§3.9.3).
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match (byte, QoS::from_bits(byte)) {
            (0x80, _) => Some(Self::Failure),
            (_, Some(qos)) => Some(Self::Granted(qos)),
            (_, None) => None,
        }
    }

    /// The byte on the wire (§3.9.3).
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Granted(qos) => qos as u8,
            Self::Failure => 0x80,
        }
    }
}

/// The guarantee that goes with a message or a subscription (MQTT 3.1.1 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// 0: sent once, not acknowledged (§4.3.1).
    AtMostOnce = 0,
    /// 1: sent until acknowledged, may arrive more than once (§4.3.2).
    AtLeastOnce = 1,
    /// 2: arrives once, by a handshake of four packets (§4.3.3).
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS for a number; `None` for 3, which is reserved (§3.3.1.2), and anything above.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Names a packet until it is acknowledged; never 0 (MQTT 3.1.1 §2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// A packet id; `None` for 0 (§2.3.1).
    #[inline]
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number, 1 to 65535.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The filters of a SUBSCRIBE and the QoS asked for each, checked and read in place
/// (MQTT 3.1.1 §3.8.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SubscribeFilters<'a>(&'a [u8]);

impl<'a> SubscribeFilters<'a> {
    /// Checks a list as it stands on the wire: what follows the packet id, up to the end.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is empty, or a filter or a requested QoS is not well formed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.is_empty() {
            return Err(Malformed::NoFilters);
        }
        while !reader.is_empty() {
            reader.topic_filter()?;
            reader.requested_qos()?;
        }
        Ok(Self(bytes))
    }

    /// The filters in the order of the packet; at least one.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, QoS)> + Clone {
        // Checked by `parse`, so the only error is the one that ends the list.
        let mut reader = Reader::new(self.0);
        iter::from_fn(move || Some((reader.text().ok()?, reader.requested_qos().ok()?)))
    }
}

impl fmt::Debug for SubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The filters of an UNSUBSCRIBE, checked and read in place (MQTT 3.1.1 §3.10.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UnsubscribeFilters<'a>(&'a [u8]);

impl<'a> UnsubscribeFilters<'a> {
    /// Checks a list as it stands on the wire: what follows the packet id, up to the end.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is empty or a filter is not well formed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.is_empty() {
            return Err(Malformed::NoFilters);
        }
        while !reader.is_empty() {
            reader.topic_filter()?;
        }
        Ok(Self(bytes))
    }

    /// The filters in the order of the packet; at least one.
    pub fn iter(self) -> impl Iterator<Item = &'a str> + Clone {
        // Checked by `parse`, so the only error is the one that ends the list.
        let mut reader = Reader::new(self.0);
        iter::from_fn(move || reader.text().ok())
    }

    /// As they stand on the wire.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for UnsubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The return codes of a SUBACK, checked and read in place (MQTT 3.1.1 §3.9.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SubAckCodes<'a>(&'a [u8]);

impl<'a> SubAckCodes<'a> {
    /// Checks a list as it stands on the wire: what follows the packet id, up to the end.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if it is empty or a code is reserved.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Err(Malformed::NoReturnCodes);
        }
        match bytes
            .iter()
            .find(|byte| SubAckCode::from_byte(**byte).is_none())
        {
            Some(&byte) => Err(Malformed::SubAckReturnCode(byte)),
            None => Ok(Self(bytes)),
        }
    }

    /// The codes in the order of the SUBSCRIBE's filters; at least one.
    pub fn iter(self) -> impl Iterator<Item = SubAckCode> + Clone {
        self.0
            .iter()
            .filter_map(|byte| SubAckCode::from_byte(*byte))
    }
}

impl fmt::Debug for SubAckCodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hex, table};
    use super::super::{DecodeError, decode_from_client, decode_from_server};
    use super::*;
    use crate::topic::TopicError as Topic;
    use Malformed::*;

    /// What a server must refuse: a reason, and packets that give it, divided by commas.
    const REFUSED_FROM_CLIENT: &[(Malformed, &str)] = &table! {
        ReservedType(0) => "00, 00 00, 0f 00";
        ReservedType(15) => "f0, f0 00, ff ff";
        WrongSender(2) => "20, 20 02 00 00";
        WrongSender(9) => "90, 90 03 0001 00";
        WrongSender(11) => "b0, b0 02 0001";
        WrongSender(13) => "d0, d0 00";
        header_flags(1, 0) => "11, c1 00, e1 00, 41 02 0001, 51 02 0001, 71 02 0001";
        header_flags(2, 0) => "12, c2 00, e2 00, 42 02 0001, 52 02 0001, 72 02 0001";
        header_flags(6, 0) => "16 03 01 02 00";
        header_flags(7, 0) => "47 45 54 20 2f";
        header_flags(0, 2) => "60 02 0001, a0 05 0001 0001 61, 80 06 0001 0001 61 00";
        header_flags(3, 2) => "63 02 0001, a3 05 0001 0001 61, 83 06 0001 0001 61 00";
        QosThree => "36, 37 05 0001 61 0001, 3e 05 0001 61 0001";
        RequestedQosThree => "82 06 0001 0001 61 03";
        QosThree => "10 0c 0004 4d515454 04 1a 003c 0000, 10 0c 0004 4d515454 04 1e 003c 0000";
        DupAtQosZero => "38, 38 03 0001 61, 39 03 0001 61";
        RemainingLength => "30 ff ff ff ff, c0 80 80 80 80, 30 80 80 80 80 00, 10 ff ff ff 80 01";
        body_length(2, 0) => "40 00, 50 00, 62 00, 70 00";
        body_length(2, 1) => "40 01 00, 50 01 00, 62 01 00, 70 01 00";
        body_length(2, 3) => "62 03, 70 03, 40 03 0001 00, 50 03 0001 00";
        body_length(0, 1) => "c0 01 00, e0 01 00, c0 81 00";
        PacketIdZero => "40 02 0000, 50 02 0000, 62 02 0000, 70 02 0000, 32 05 0001 61 0000";
        PacketIdZero => "34 05 0001 61 0000, a2 05 0000 0001 61, 82 06 0000 0001 61 00";
        Truncated => "30 00, 82 00, a2 00, 10 00, 30 01 00, 82 01 00, a2 01 00, 30 02 0001";
        Truncated => "32 03 0001 61, 82 03 0001 00, a2 03 0001 00, 30 04 0003 6162";
        Truncated => "10 04 0004 4d51, 32 04 0001 61 00, 82 05 0001 0001 61, a2 05 0001 0002 61";
        Truncated => "10 06 0004 4d515454, a2 06 0001 0001 61 00, 10 07 0004 4d515454 04";
        Truncated => "82 07 0001 0001 61 00 00, 10 08 0004 4d515454 04 02";
        Truncated => "10 0a 0004 4d515454 04 02 003c, 10 0c 0004 4d515454 04 02 003c 0001";
        Truncated => "10 0c 0004 4d515454 04 06 003c 0000, 10 0c 0004 4d515454 04 82 003c 0000";
        Truncated => "10 0e 0004 4d515454 04 c2 003c 0000 0000";
        Truncated => "10 0f 0004 4d515454 04 06 003c 0000 0001 61";
        Truncated => "10 10 0004 4d515454 04 c2 003c 0000 0000 0001";
        Truncated => "10 11 0004 4d515454 04 06 003c 0000 0001 61 0001";
        TrailingBytes(1) => "10 0d 0004 4d515454 04 02 003c 0000 00";
        TrailingBytes(2) => "10 10 0004 4d515454 04 82 003c 0000 0000 0000";
        Utf8 => "30 03 0001 ff, 30 04 0002 c080, 30 05 0003 eda080, a2 05 0001 0001 80";
        Utf8 => "30 06 0004 f4908080, 82 06 0001 0001 ff 00";
        Utf8 => "10 0d 0004 4d515454 04 02 003c 0001 c3";
        Utf8 => "10 0f 0004 4d515454 04 82 003c 0000 0001 ff";
        Utf8 => "10 11 0004 4d515454 04 06 003c 0000 0001 ff 0000";
        Nul => "10 0d 0004 4d515454 04 02 003c 0001 00";
        Nul => "10 0f 0004 4d515454 04 82 003c 0000 0001 00";
        TopicName(Topic::Empty) => "30 02 0000, 10 10 0004 4d515454 04 06 003c 0000 0000 0000";
        TopicName(Topic::Nul) => "30 03 0001 00, 32 06 0002 6100 0001";
        TopicName(Topic::Nul) => "10 11 0004 4d515454 04 06 003c 0000 0001 00 0000";
        TopicName(Topic::WildcardInName) => "30 03 0001 2b, 30 03 0001 23, 32 07 0003 612f2b 0001";
        TopicName(Topic::WildcardInName) => "10 11 0004 4d515454 04 06 003c 0000 0001 23 0000";
        TopicFilter(Topic::Empty) => "a2 04 0001 0000, 82 05 0001 0000 00";
        TopicFilter(Topic::Nul) => "a2 05 0001 0001 00, 82 06 0001 0001 00 00";
        TopicFilter(Topic::MultiLevelNotAlone) => "a2 06 0001 0002 2361, 82 07 0001 0002 6123 00";
        TopicFilter(Topic::MultiLevelNotLast) => "a2 06 0001 0002 232f, 82 08 0001 0003 232f61 00";
        TopicFilter(Topic::SingleLevelNotAlone) => "a2 06 0001 0002 2b2b, 82 07 0001 0002 612b 00";
        NoFilters => "82 02 0001, a2 02 0001";
        RequestedQosReserved(0x04) => "82 06 0001 0001 61 04";
        RequestedQosReserved(0x81) => "82 0a 0001 0001 61 01 0001 62 81";
        ProtocolName => "10 08 0000 04 02 003c 0000, 10 0a 0002 4d51 04 02 003c 0000";
        ProtocolName => "10 0c 0004 6d717474 04 02 003c 0000";
        ProtocolName => "10 0d 0005 4d51545400 04 02 003c 0000";
        ConnectFlagReserved => "10 0c 0004 4d515454 04 03 003c 0000";
        WillFlagsWithoutWill => "10 08 0004 4d515454 04 12, 10 0c 0004 4d515454 04 0a 003c 0000";
        WillFlagsWithoutWill => "10 0c 0004 4d515454 04 22 003c 0000";
        PasswordWithoutUsername => "10 0e 0004 4d515454 04 42 003c 0000 0000";
    };

    /// What a client must refuse.
    const REFUSED_FROM_SERVER: &[(Malformed, &str)] = &table! {
        ReservedType(0) => "00 00";
        ReservedType(15) => "f0 00";
        WrongSender(1) => "10 0c 0004 4d515454 04 02 003c 0000";
        WrongSender(8) => "82 06 0001 0001 61 00";
        WrongSender(10) => "a2 05 0001 0001 61";
        WrongSender(12) => "c0 00";
        WrongSender(14) => "e0 00";
        header_flags(1, 0) => "d1 00, b1 02 0001, 21 02 00 00, 91 03 0001 00";
        header_flags(0, 2) => "60 02 0001";
        QosThree => "36 05 0001 61 0001";
        DupAtQosZero => "38 03 0001 61";
        body_length(2, 0) => "20 00, b0 00";
        body_length(2, 3) => "b0 03 0001 00, 20 03 00 00 00";
        body_length(0, 1) => "d0 01 00";
        ConnAckFlagsReserved(0x02) => "20 02 02 00";
        ConnAckFlagsReserved(0x81) => "20 02 81 00";
        ConnAckReturnCode(6) => "20 02 00 06";
        ConnAckReturnCode(0x86) => "20 02 01 86";
        SessionPresentInRefusal => "20 02 01 01, 20 02 01 05";
        Truncated => "90 00, 90 01 00";
        PacketIdZero => "b0 02 0000, 40 02 0000, 90 03 0000 00";
        NoReturnCodes => "90 02 0001";
        SubAckReturnCode(3) => "90 03 0001 03";
        SubAckReturnCode(0x81) => "90 05 0001 00 81 80";
        TopicName(Topic::WildcardInName) => "30 03 0001 23";
    };

    const fn header_flags(flags: u8, expected: u8) -> Malformed {
        HeaderFlags { flags, expected }
    }

    const fn body_length(expected: usize, found: usize) -> Malformed {
        BodyLength { expected, found }
    }

    /// Runs a table, each packet alone and with another one behind it.
    fn refuse_all(table: &[(Malformed, &str)], decode: impl Fn(&[u8]) -> Option<DecodeError>) {
        for (reason, packets) in table {
            for packet in packets.split(',') {
                let mut bytes = hex(packet);
                assert_eq!(decode(&bytes), Some((*reason).into()), "{packet}");
                bytes.extend([0xc0, 0x00]);
                assert_eq!(decode(&bytes), Some((*reason).into()), "{packet} and more");
            }
        }
    }

    #[test]
    fn a_server_refuses_what_must_be_refused() {
        refuse_all(REFUSED_FROM_CLIENT, |buf| decode_from_client(buf, 99).err());
    }

    #[test]
    fn a_client_refuses_what_must_be_refused() {
        refuse_all(REFUSED_FROM_SERVER, |buf| decode_from_server(buf, 99).err());
    }
}
