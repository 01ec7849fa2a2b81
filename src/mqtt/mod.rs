//! The MQTT 3.1.1 codec: bytes to packets and back, without I/O, clock or allocation of its own.
//!
//! Packets are named by who sends them: a server reads [`FromClient`] and writes [`FromServer`],
//! an upstream link or a scripted client does the reverse, both on the same code. Decoding borrows
//! everything from the caller's buffer and refuses whatever the standard says must be refused;
//! what comes out of it needs no further checking of form. No input makes it panic.
//!
//! A driver appends what it reads to a buffer and calls [`decode_from_client`] until that says
//! that bytes are missing; [`packet_length`] tells how many. After an error nothing that follows in
//! the buffer can be trusted, so the connection has to be closed (MQTT 3.1.1 §4.8). Two errors
//! allow a last word: [`DecodeError::UnsupportedProtocol`] is answered with a CONNACK, and a
//! PUBLISH that is [`DecodeError::TooLarge`] can be named in the log by [`peek_publish`].
//!
//! Section numbers in this module are those of MQTT 3.1.1 (OASIS Standard, 29 October 2014).

mod decode;
mod encode;
mod packet;
mod reader;
pub mod v5;

use thiserror::Error;

use crate::topic::TopicError;

pub use decode::{decode_from_client, decode_from_server, packet_length, peek_publish};
pub use encode::{
    EncodeError, PublishParts, encode_from_client, encode_from_server, encode_puback,
    encode_pubcomp, encode_publish_head, encode_pubrec, encode_pubrel, encode_suback,
    encode_subscribe, encode_unsubscribe,
};
pub use packet::{
    ConnAck, Connect, ConnectReturnCode, PacketId, Publish, PublishHead, QoS, SubAck, SubAckCode,
    SubAckCodes, Subscribe, SubscribeFilters, Unsubscribe, UnsubscribeFilters, Will,
};

/// The longest body of a packet in bytes, that is, without the fixed header (§2.2.3).
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// A packet that a client sends (§2.2.1, table 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromClient<'a> {
    /// Asks for a session (§3.1).
    Connect(Connect<'a>),
    /// Carries a message (§3.3).
    Publish(Publish<'a>),
    /// Acknowledges a message of QoS 1 (§3.4).
    PubAck(PacketId),
    /// QoS 2, received (§3.5).
    PubRec(PacketId),
    /// QoS 2, released (§3.6).
    PubRel(PacketId),
    /// QoS 2, complete (§3.7).
    PubComp(PacketId),
    /// Asks for messages (§3.8).
    Subscribe(Subscribe<'a>),
    /// Gives up subscriptions (§3.10).
    Unsubscribe(Unsubscribe<'a>),
    /// Asks for a sign of life (§3.12).
    PingReq,
    /// Says goodbye; the will is dropped (§3.14).
    Disconnect,
}

/// A packet that a server sends (§2.2.1, table 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromServer<'a> {
    /// Answers a CONNECT (§3.2).
    ConnAck(ConnAck),
    /// Carries a message (§3.3).
    Publish(Publish<'a>),
    /// Acknowledges a message of QoS 1 (§3.4).
    PubAck(PacketId),
    /// QoS 2, received (§3.5).
    PubRec(PacketId),
    /// QoS 2, released (§3.6).
    PubRel(PacketId),
    /// QoS 2, complete (§3.7).
    PubComp(PacketId),
    /// Answers a SUBSCRIBE (§3.9).
    SubAck(SubAck<'a>),
    /// Answers an UNSUBSCRIBE (§3.11).
    UnsubAck(PacketId),
    /// Answers a PINGREQ (§3.13).
    PingResp,
}

/// Why bytes are not a packet to work with. The connection has to be closed (§4.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes break a rule of the standard.
    #[error("malformed packet: {0}")]
    Malformed(#[from] Malformed),
    /// The packet is longer than the caller allows. Known from the fixed header alone.
    #[error("a packet of {packet_bytes} bytes; at most {max} are allowed")]
    TooLarge {
        /// Length of the entire packet in bytes, fixed header included.
        packet_bytes: usize,
        /// The caller's limit, counted the same way.
        max: usize,
    },
    /// A CONNECT for another version of MQTT, to be answered with
    /// [`ConnectReturnCode::UnacceptableProtocolVersion`] (§3.1.2.2). The rest of it is not read.
    #[error("protocol level {level} is not supported")]
    UnsupportedProtocol {
        /// The level asked for: 3 for MQTT 3.1, 5 for MQTT 5; not 4, save under an old name.
        level: u8,
    },
}

/// The rule of the standard that a packet breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Types 0 and 15 are reserved (§2.2.1).
    #[error("packet type {0} is reserved")]
    ReservedType(u8),
    /// A client sends no CONNACK, a server no CONNECT, and so on (§2.2.1, table 2.1).
    #[error("packet type {0} is never sent by this side")]
    WrongSender(u8),
    /// The four low bits of the first byte are fixed for every type but PUBLISH (§2.2.2).
    #[error("the fixed header has the flags {flags:#06b} where {expected:#06b} is required")]
    HeaderFlags {
        /// The flags found.
        flags: u8,
        /// The flags that this type must have.
        expected: u8,
    },
    /// QoS 3 in a PUBLISH or a will (§3.3.1.2, §3.1.2.6).
    #[error("QoS 3 does not exist")]
    QosThree,
    /// QoS 3 in a SUBSCRIBE (§3.8.3).
    #[error("QoS 3 is asked for, which does not exist")]
    RequestedQosThree,
    /// A PUBLISH of QoS 0 is never a repetition (§3.3.1.1).
    #[error("DUP is set on a PUBLISH of QoS 0")]
    DupAtQosZero,
    /// The remaining length has at most four bytes (§2.2.3).
    #[error("the remaining length does not end within four bytes")]
    RemainingLength,
    /// Acknowledgements, CONNACK, pings and DISCONNECT have one length only (§3.2, §3.4 and on).
    #[error("the remaining length is {found} where {expected} is required")]
    BodyLength {
        /// The length that this type must have, in bytes.
        expected: usize,
        /// The remaining length found, in bytes.
        found: usize,
    },
    /// The remaining length is too small for what the packet must hold (§2.2.3).
    #[error("a field runs past the end of the packet")]
    Truncated,
    /// The remaining length is greater than what the packet holds (§3.1.3).
    #[error("{0} bytes follow the last field")]
    TrailingBytes(usize),
    /// Text is well-formed UTF-8 without surrogates (§1.5.3).
    #[error("a text is not UTF-8")]
    Utf8,
    /// Text never contains U+0000 (§1.5.3).
    #[error("a text contains the character U+0000")]
    Nul,
    /// The topic of a PUBLISH or of a will (§3.3.2.1, §4.7).
    #[error("the topic name is not allowed: {0}")]
    TopicName(TopicError),
    /// A filter of a SUBSCRIBE or UNSUBSCRIBE (§4.7.1, §4.7.3).
    #[error("the topic filter is not allowed: {0}")]
    TopicFilter(TopicError),
    /// 0 is no packet id (§2.3.1).
    #[error("the packet id is 0")]
    PacketIdZero,
    /// The first field of a CONNECT is neither `MQTT` nor `MQIsdp` (§3.1.2.1).
    #[error("the protocol name is not MQTT")]
    ProtocolName,
    /// Bit 0 of the connect flags (§3.1.2.3).
    #[error("the reserved connect flag is set")]
    ConnectFlagReserved,
    /// Will QoS and will retain are 0 without a will (§3.1.2.6, §3.1.2.7).
    #[error("will QoS or will retain is set without a will")]
    WillFlagsWithoutWill,
    /// A password needs a user name (§3.1.2.9).
    #[error("there is a password and no user name")]
    PasswordWithoutUsername,
    /// A SUBSCRIBE or UNSUBSCRIBE has at least one filter (§3.8.3, §3.10.3).
    #[error("there is no topic filter")]
    NoFilters,
    /// The six high bits beside a requested QoS (§3.8.3).
    #[error("reserved bits are set in the requested QoS {0:#04x}")]
    RequestedQosReserved(u8),
    /// The seven high bits of the CONNACK flags (§3.2.2.1).
    #[error("reserved bits are set in the CONNACK flags {0:#04x}")]
    ConnAckFlagsReserved(u8),
    /// CONNACK codes above 5 are reserved (§3.2.2.3).
    #[error("the CONNACK return code {0} is reserved")]
    ConnAckReturnCode(u8),
    /// A refusal never comes with a session (§3.2.2.2).
    #[error("a refusing CONNACK says that a session is present")]
    SessionPresentInRefusal,
    /// A SUBACK answers at least one filter (§3.9.3).
    #[error("there is no return code")]
    NoReturnCodes,
    /// SUBACK codes other than 0x00, 0x01, 0x02 and 0x80 are reserved (§3.9.3).
    #[error("the SUBACK return code {0:#04x} is reserved")]
    SubAckReturnCode(u8),
    /// A variable byte integer has its shortest form (MQTT 5 §1.5.5).
    #[error("a variable byte integer is longer than needed, or than four bytes")]
    VariableInteger,
    /// Not in table 2-4 (MQTT 5 §2.2.2.2).
    #[error("there is no property {0:#04x}")]
    PropertyUnknown(u8),
    /// Not for this packet (MQTT 5 §2.2.2.2).
    #[error("the property {0:#04x} does not belong to this packet")]
    PropertyMisplaced(u8),
    /// A client's PUBLISH names no subscription (MQTT 5 §3.3.4).
    #[error("there is a subscription identifier in a client's PUBLISH")]
    SubscriptionIdOfClient,
    /// Only user properties may be repeated (MQTT 5 §2.2.2.2).
    #[error("the property {0:#04x} is there twice")]
    PropertyTwice(u8),
    /// A property that is 0 or 1 (MQTT 5 §3.1.2.11.6 and others).
    #[error("the property {id:#04x} is {value}, neither 0 nor 1")]
    PropertyFlag {
        /// The property.
        id: u8,
        /// Its value.
        value: u8,
    },
    /// A property that is never 0 (MQTT 5 §3.1.2.11.3, §3.1.2.11.4, §3.8.2.1.2).
    #[error("the property {0:#04x} is 0")]
    PropertyZero(u8),
    /// A topic alias is never 0 (MQTT 5 §3.3.2.3.4).
    #[error("the topic alias is 0")]
    TopicAliasZero,
    /// Authentication data without a method (MQTT 5 §3.1.2.11.10).
    #[error("there is authentication data and no authentication method")]
    AuthenticationDataAlone,
    /// A reason code that this packet does not have (MQTT 5 §2.4).
    #[error("the reason code {0:#04x} does not belong to this packet")]
    ReasonCode(u8),
    /// The two high bits of subscription options (MQTT 5 §3.8.3.1).
    #[error("reserved bits are set in the subscription options {0:#04x}")]
    SubscriptionOptionsReserved(u8),
    /// There is no such retain handling (MQTT 5 §3.8.3.1).
    #[error("the retain handling is 3")]
    RetainHandlingThree,
    /// No-local has no meaning where the receiver is anybody (MQTT 5 §3.8.3.1).
    #[error("no-local is set on a shared subscription")]
    NoLocalShared,
    /// `$share/NAME/FILTER`, all of it (MQTT 5 §4.8.2).
    #[error("the shared subscription has no name, a wildcard in it, or no filter")]
    ShareName,
}

#[cfg(test)]
mod tests;
