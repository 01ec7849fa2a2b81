//! The packets of MQTT 5, borrowed from the bytes they were read from. Names and rules that are
//! those of MQTT 3.1.1 are said there, in [`crate::mqtt`].

use std::fmt;
use std::iter;

use super::place::Place;
use super::property::Properties;
use super::reason::ReasonCode;
use crate::mqtt::reader::Reader;
use crate::mqtt::{Malformed, PacketId, QoS, UnsubscribeFilters};

/// CONNECT: a client asks for a session (MQTT 5 §3.1). `Debug` does not show the password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Forget the session that there was (§3.1.2.4).
    pub clean_start: bool,
    /// The client sends something at least this often, in seconds; 0 is never (§3.1.2.10).
    pub keep_alive_seconds: u16,
    /// What else it asks for (§3.1.2.11).
    pub properties: Properties<'a>,
    /// May be empty: the server chooses one (§3.1.3.1).
    pub client_id: &'a str,
    /// What the server publishes when the client goes without goodbye (§3.1.2.5).
    pub will: Option<Will<'a>>,
    /// A text without U+0000 (§3.1.3.5).
    pub username: Option<&'a str>,
    /// Bytes; unlike in 3.1.1 it may come without a user name (§3.1.2.9, §3.1.3.6).
    pub password: Option<&'a [u8]>,
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("clean_start", &self.clean_start)
            .field("keep_alive_seconds", &self.keep_alive_seconds)
            .field("properties", &self.properties)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("username", &self.username)
            .field("password", &self.password.map(|_| "(not shown)"))
            .finish()
    }
}

/// The message that a CONNECT leaves with the server (MQTT 5 §3.1.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Its delay, and what the message carries (§3.1.3.2).
    pub properties: Properties<'a>,
    /// A topic name.
    pub topic: &'a str,
    /// At most 65535 bytes; may be empty.
    pub payload: &'a [u8],
    /// The QoS it is published with.
    pub qos: QoS,
    /// Whether it is published as a retained message.
    pub retain: bool,
}

/// CONNACK: the server's answer to CONNECT (MQTT 5 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnAck<'a> {
    /// The server kept a session of this client; never together with a failure (§3.2.2.1.1).
    pub session_present: bool,
    /// Success, or why not (§3.2.2.2).
    pub reason: ReasonCode,
    /// What the server can and wants (§3.2.2.3).
    pub properties: Properties<'a>,
}

/// PUBLISH: one message, in either direction (MQTT 5 §3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// This may be a repetition; never with QoS 0 (§3.3.1.1).
    pub dup: bool,
    /// The guarantee that both sides keep (§3.3.1.2).
    pub qos: QoS,
    /// Store it for later subscribers, or: it was stored (§3.3.1.3).
    pub retain: bool,
    /// A topic name; empty exactly if a topic alias stands for it (§3.3.2.1).
    pub topic: &'a str,
    /// `Some` exactly if the QoS is 1 or 2 (§3.3.2.2).
    pub packet_id: Option<PacketId>,
    /// What it carries beside the payload (§3.3.2.3).
    pub properties: Properties<'a>,
    /// The message itself; may be empty (§3.3.3).
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (MQTT 5 §3.4 to §3.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// That of the PUBLISH.
    pub packet_id: PacketId,
    /// What became of it.
    pub reason: ReasonCode,
    /// A text, and what the sender adds.
    pub properties: Properties<'a>,
}

impl Ack<'_> {
    /// It went well.
    #[must_use]
    pub const fn success(packet_id: PacketId) -> Self {
        Self {
            packet_id,
            reason: ReasonCode::Success,
            properties: Properties::EMPTY,
        }
    }
}

/// SUBSCRIBE: filters, each with its options (MQTT 5 §3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The SUBACK carries the same.
    pub packet_id: PacketId,
    /// An identifier for all of the filters (§3.8.2.1.2).
    pub properties: Properties<'a>,
    /// At least one (§3.8.3).
    pub filters: SubscribeFilters<'a>,
}

/// UNSUBSCRIBE: filters to give up (MQTT 5 §3.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// The UNSUBACK carries the same.
    pub packet_id: PacketId,
    /// User properties (§3.10.2.1).
    pub properties: Properties<'a>,
    /// At least one (§3.10.3).
    pub filters: UnsubscribeFilters<'a>,
}

/// SUBACK or UNSUBACK: one answer per filter, in their order (MQTT 5 §3.9, §3.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answers<'a> {
    /// That of the request.
    pub packet_id: PacketId,
    /// A text, and what the server adds.
    pub properties: Properties<'a>,
    /// At least one.
    pub codes: ReasonCodes<'a>,
}

/// DISCONNECT or AUTH (MQTT 5 §3.14, §3.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice<'a> {
    /// Why, or how it goes on.
    pub reason: ReasonCode,
    /// What belongs to it.
    pub properties: Properties<'a>,
}

/// Which retained messages a new subscription gets (MQTT 5 §3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// 0: all that match.
    Send = 0,
    /// 1: all that match, unless there was such a subscription.
    SendIfNew = 1,
    /// 2: none.
    DoNotSend = 2,
}

/// How a subscription is to be served (MQTT 5 §3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SubscriptionOptions {
    /// The highest QoS of what is sent.
    pub qos: QoS,
    /// Nothing that this client published itself; never for a shared subscription.
    pub no_local: bool,
    /// RETAIN stays as it was published.
    pub retain_as_published: bool,
    /// Which retained messages come at once.
    pub retain_handling: RetainHandling,
}

impl SubscriptionOptions {
    fn from_byte(byte: u8) -> Result<Self, Malformed> {
        if byte & 0xc0 != 0 {
            return Err(Malformed::SubscriptionOptionsReserved(byte));
        }
        Ok(Self {
            qos: QoS::from_bits(byte & 0b11).ok_or(Malformed::RequestedQosThree)?,
            no_local: byte & 0b100 != 0,
            retain_as_published: byte & 0b1000 != 0,
            retain_handling: match byte >> 4 {
                0 => RetainHandling::Send,
                1 => RetainHandling::SendIfNew,
                2 => RetainHandling::DoNotSend,
                _ => return Err(Malformed::RetainHandlingThree),
            },
        })
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        self.qos as u8
            | (self.no_local as u8) << 2
            | (self.retain_as_published as u8) << 3
            | (self.retain_handling as u8) << 4
    }
}

/// The filters of a SUBSCRIBE with their options, checked and read in place (MQTT 5 §3.8.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SubscribeFilters<'a>(&'a [u8]);

impl<'a> SubscribeFilters<'a> {
    /// Checks a list as it stands on the wire: what follows the properties, up to the end.
    ///
    /// # Errors
    /// [`Malformed`] if it is empty, or a filter or its options are not well formed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.is_empty() {
            return Err(Malformed::NoFilters);
        }
        while !reader.is_empty() {
            let filter = reader.topic_filter()?;
            let options = SubscriptionOptions::from_byte(reader.byte()?)?;
            if shared(filter)?.is_some() && options.no_local {
                return Err(Malformed::NoLocalShared);
            }
        }
        Ok(Self(bytes))
    }

    /// The filters in the order of the packet; at least one.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, SubscriptionOptions)> + Clone {
        let mut reader = Reader::new(self.0);
        // Checked by `parse`, so the only error is the one that ends the list.
        let mut next = move || {
            let filter = reader.text()?;
            Ok::<_, Malformed>((filter, SubscriptionOptions::from_byte(reader.byte()?)?))
        };
        iter::from_fn(move || next().ok())
    }

    /// As they stand on the wire.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for SubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Name and filter of a shared subscription, `$share/NAME/FILTER`; `None` for any other
/// (MQTT 5 §4.8.2).
///
/// # Errors
/// [`Malformed::ShareName`] if there is no name, one with a wildcard, or no filter.
pub fn shared(filter: &str) -> Result<Option<(&str, &str)>, Malformed> {
    let Some(rest) = filter.strip_prefix("$share/") else {
        return Ok(None);
    };
    match rest.split_once('/') {
        Some((name, filter))
            if !name.is_empty() && !name.contains(['+', '#']) && !filter.is_empty() =>
        {
            Ok(Some((name, filter)))
        }
        _ => Err(Malformed::ShareName),
    }
}

/// The reason codes of a SUBACK or UNSUBACK, checked and read in place (MQTT 5 §3.9.3, §3.11.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReasonCodes<'a> {
    bytes: &'a [u8],
    place: Place,
}

impl<'a> ReasonCodes<'a> {
    /// Checks a list as it stands on the wire: what follows the properties, up to the end.
    ///
    /// # Errors
    /// [`Malformed`] if it is empty or a code cannot stand there.
    pub fn parse(bytes: &'a [u8], place: Place) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Err(Malformed::NoReturnCodes);
        }
        let unknown = |byte: &&u8| ReasonCode::from_byte(**byte, place).is_none();
        match bytes.iter().find(unknown) {
            Some(&byte) => Err(Malformed::ReasonCode(byte)),
            None => Ok(Self { bytes, place }),
        }
    }

    /// The codes in the order of the request's filters; at least one.
    pub fn iter(self) -> impl Iterator<Item = ReasonCode> + Clone {
        let bytes = self.bytes.iter();
        bytes.filter_map(move |byte| ReasonCode::from_byte(*byte, self.place))
    }

    /// As they stand on the wire.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Of which packet they are.
    pub(super) const fn place(self) -> Place {
        self.place
    }
}

impl fmt::Debug for ReasonCodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
