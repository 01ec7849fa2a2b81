//! MQTT 5: what it has beyond, and other than, MQTT 3.1.1. Fixed headers, texts, topics, QoS and
//! packet ids are those of [`crate::mqtt`], and so are its promises: decoding borrows, refuses what
//! must be refused and never panics.
//!
//! A driver that gets [`DecodeError::UnsupportedProtocol`] with level 5 from a CONNECT reads that
//! CONNECT, and all that follows, here. What it answers to an error is
//! [`DecodeError::reason_code`].
//!
//! Section numbers in this module are those of MQTT 5.0 (OASIS Standard, 7 March 2019).

mod decode;
mod encode;
mod packet;
mod place;
mod property;
mod reason;

use crate::mqtt::{ConnectReturnCode, DecodeError, Malformed};
use crate::topic::TopicError;

pub use decode::{decode_from_client, decode_from_server};
pub(in crate::mqtt) use encode::{checked_list_bytes, put_list};
pub use encode::{encode_from_client, encode_from_server};
pub use packet::{
    Ack, Answers, ConnAck, Connect, Notice, Publish, ReasonCodes, RetainHandling, Subscribe,
    SubscribeFilters, SubscriptionOptions, Unsubscribe, Will, shared,
};
pub use place::Place;
pub use property::{
    Properties, Property, VARIABLE_MAX, encode_properties, list_bytes, packet_bytes,
};
pub use reason::ReasonCode;

/// A packet that a client sends (§2.1.2, table 2-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromClient<'a> {
    /// Asks for a session (§3.1).
    Connect(Connect<'a>),
    /// Carries a message (§3.3).
    Publish(Publish<'a>),
    /// Acknowledges a message of QoS 1 (§3.4).
    PubAck(Ack<'a>),
    /// QoS 2, received (§3.5).
    PubRec(Ack<'a>),
    /// QoS 2, released (§3.6).
    PubRel(Ack<'a>),
    /// QoS 2, complete (§3.7).
    PubComp(Ack<'a>),
    /// Asks for messages (§3.8).
    Subscribe(Subscribe<'a>),
    /// Gives up subscriptions (§3.10).
    Unsubscribe(Unsubscribe<'a>),
    /// Asks for a sign of life (§3.12).
    PingReq,
    /// Says goodbye (§3.14).
    Disconnect(Notice<'a>),
    /// Goes on with enhanced authentication (§3.15).
    Auth(Notice<'a>),
}

/// A packet that a server sends (§2.1.2, table 2-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromServer<'a> {
    /// Answers a CONNECT (§3.2).
    ConnAck(ConnAck<'a>),
    /// Carries a message (§3.3).
    Publish(Publish<'a>),
    /// Acknowledges a message of QoS 1 (§3.4).
    PubAck(Ack<'a>),
    /// QoS 2, received (§3.5).
    PubRec(Ack<'a>),
    /// QoS 2, released (§3.6).
    PubRel(Ack<'a>),
    /// QoS 2, complete (§3.7).
    PubComp(Ack<'a>),
    /// Answers a SUBSCRIBE (§3.9).
    SubAck(Answers<'a>),
    /// Answers an UNSUBSCRIBE (§3.11).
    UnsubAck(Answers<'a>),
    /// Answers a PINGREQ (§3.13).
    PingResp,
    /// Ends the connection and says why (§3.14).
    Disconnect(Notice<'a>),
    /// Goes on with enhanced authentication (§3.15).
    Auth(Notice<'a>),
}

impl DecodeError {
    /// What a CONNACK or DISCONNECT that answers this says (§4.13).
    #[must_use]
    pub const fn reason_code(&self) -> ReasonCode {
        match self {
            Self::Malformed(rule) => rule.reason_code(),
            Self::TooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::UnsupportedProtocol { .. } => ReasonCode::UnsupportedProtocolVersion,
        }
    }
}

impl From<ConnectReturnCode> for ReasonCode {
    /// What a CONNACK of MQTT 5 says instead (§3.2.2.2).
    fn from(code: ConnectReturnCode) -> Self {
        match code {
            ConnectReturnCode::Accepted => Self::Success,
            ConnectReturnCode::UnacceptableProtocolVersion => Self::UnsupportedProtocolVersion,
            ConnectReturnCode::IdentifierRejected => Self::ClientIdNotValid,
            ConnectReturnCode::ServerUnavailable => Self::ServerUnavailable,
            ConnectReturnCode::BadUserNameOrPassword => Self::BadUserNameOrPassword,
            ConnectReturnCode::NotAuthorized => Self::NotAuthorized,
        }
    }
}

impl Malformed {
    /// What a CONNACK or DISCONNECT that answers this says: a protocol error for what could be
    /// read and makes no sense (§4.13.1). A topic with U+0000 or a misplaced wildcard is malformed
    /// (§1.5.4); "not valid" would say that it is well formed and not accepted (§3.14.2.1).
    #[must_use]
    pub const fn reason_code(&self) -> ReasonCode {
        match self {
            Self::TopicAliasZero => ReasonCode::TopicAliasInvalid,
            Self::TopicName(TopicError::Empty)
            | Self::WrongSender(_)
            | Self::PacketIdZero
            | Self::NoFilters
            | Self::RequestedQosThree
            | Self::SubscriptionIdOfClient
            | Self::PropertyTwice(_)
            | Self::PropertyFlag { .. }
            | Self::PropertyZero(_)
            | Self::AuthenticationDataAlone
            | Self::RetainHandlingThree
            | Self::NoLocalShared => ReasonCode::ProtocolError,
            _ => ReasonCode::MalformedPacket,
        }
    }
}

#[cfg(test)]
mod tests;
