//! What travels: a message's properties, where it came from and where it goes.

mod endpoint;
mod plain;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use endpoint::{Endpoint, Priority, Target};
pub use plain::Plain;

use crate::identity::Identity;

/// Result of looking a property up: routes tell "not there" from "there without a value"
/// (facts §4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// The message has no such property.
    Missing,
    /// The property is there and has no value.
    Null,
    /// The property's text.
    Text(&'a str),
}

impl<'a> Value<'a> {
    /// The text, if there is one.
    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Missing | Self::Null => None,
        }
    }
}

/// System properties of a message, by their internal names (facts §1.8, §4.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SystemProperty {
    MessageId,
    CorrelationId,
    UserId,
    To,
    Expiry,
    ContentType,
    ContentEncoding,
    CreationTime,
    MessageSchema,
    Subject,
    OutputName,
    InterfaceId,
    Ack,
    Operation,
    ConnectionDeviceId,
    ConnectionModuleId,
    MessageType,
    EdgeMessageId,
    OriginInterface,
    EnqueuedTime,
    InputName,
    SequenceNumber,
    ModelId,
    DeliveryCount,
    LockToken,
}

const SYSTEM_PROPERTIES: usize = 25;

impl SystemProperty {
    /// Every system property.
    pub const ALL: [Self; SYSTEM_PROPERTIES] = [
        Self::MessageId,
        Self::CorrelationId,
        Self::UserId,
        Self::To,
        Self::Expiry,
        Self::ContentType,
        Self::ContentEncoding,
        Self::CreationTime,
        Self::MessageSchema,
        Self::Subject,
        Self::OutputName,
        Self::InterfaceId,
        Self::Ack,
        Self::Operation,
        Self::ConnectionDeviceId,
        Self::ConnectionModuleId,
        Self::MessageType,
        Self::EdgeMessageId,
        Self::OriginInterface,
        Self::EnqueuedTime,
        Self::InputName,
        Self::SequenceNumber,
        Self::ModelId,
        Self::DeliveryCount,
        Self::LockToken,
    ];

    /// The internal name, which conditions use after `$`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MessageId => "messageId",
            Self::CorrelationId => "cid",
            Self::UserId => "userId",
            Self::To => "to",
            Self::Expiry => "absolute-expiry-time",
            Self::ContentType => "contentType",
            Self::ContentEncoding => "contentEncoding",
            Self::CreationTime => "creationTime",
            Self::MessageSchema => "messageSchema",
            Self::Subject => "dt-subject",
            Self::OutputName => "outputName",
            Self::InterfaceId => "iothub-interface-id",
            Self::Ack => "ack",
            Self::Operation => "operation",
            Self::ConnectionDeviceId => "connectionDeviceId",
            Self::ConnectionModuleId => "connectionModuleId",
            Self::MessageType => "messageType",
            Self::EdgeMessageId => "edgeMessageId",
            Self::OriginInterface => "edgeHubOriginInterface",
            Self::EnqueuedTime => "enqueuedTime",
            Self::InputName => "inputName",
            Self::SequenceNumber => "sequenceNumber",
            Self::ModelId => "modelId",
            Self::DeliveryCount => "deliveryCount",
            Self::LockToken => "lockToken",
        }
    }

    /// Looks an internal name up without regard to case; `correlationId` stands beside `cid`
    /// (`DESIGN` §4).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("correlationId") {
            return Some(Self::CorrelationId);
        }
        Self::ALL
            .into_iter()
            .find(|property| property.name().eq_ignore_ascii_case(name))
    }
}

/// A stretch of [`Properties::text`]; `len == NULL` is a null value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    const NULL: u32 = u32::MAX;
    const MISSING: Self = Self {
        start: u32::MAX,
        len: Self::NULL,
    };

    fn resolve(self, text: &str) -> Value<'_> {
        if self == Self::MISSING {
            return Value::Missing;
        }
        if self.len == Self::NULL {
            return Value::Null;
        }
        let (start, len) = (self.start as usize, self.len as usize);
        Value::Text(text.get(start..start + len).unwrap_or_default())
    }
}

/// The application and system properties of one message, decoded, in one text buffer.
///
/// Application properties keep the order and case in which they were set; names are looked up
/// without regard to case (facts §1.8).
#[derive(Clone)]
pub struct Properties {
    text: String,
    application: Vec<(Span, Span)>,
    system: [Span; SYSTEM_PROPERTIES],
}

impl Default for Properties {
    fn default() -> Self {
        Self {
            text: String::new(),
            application: Vec::new(),
            system: [Span::MISSING; SYSTEM_PROPERTIES],
        }
    }
}

impl Properties {
    /// Sets an application property; a name that is there already, in any case, is replaced.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        let value = self.keep(value);
        let at = self.position(name);
        match at.and_then(|at| self.application.get_mut(at)) {
            Some(entry) => entry.1 = value,
            None => {
                let name = self.keep(Some(name));
                self.application.push((name, value));
            }
        }
    }

    /// Sets a system property.
    pub fn set_system(&mut self, property: SystemProperty, value: Option<&str>) {
        let value = self.keep(value);
        if let Some(slot) = self.system.get_mut(property as usize) {
            *slot = value;
        }
    }

    /// Says who sent the message: the connection's identity, whatever was said before
    /// (`DESIGN` §4).
    pub fn set_sender(&mut self, sender: &Identity) {
        self.set_system(SystemProperty::ConnectionDeviceId, Some(sender.device_id()));
        if let Some(module) = sender.module_id() {
            self.set_system(SystemProperty::ConnectionModuleId, Some(module));
        }
    }

    /// An application property by name, without regard to case.
    #[must_use]
    pub fn get(&self, name: &str) -> Value<'_> {
        self.position(name)
            .and_then(|at| self.application.get(at))
            .map_or(Value::Missing, |(_, value)| value.resolve(&self.text))
    }

    /// A system property.
    #[must_use]
    pub fn system(&self, property: SystemProperty) -> Value<'_> {
        self.system
            .get(property as usize)
            .map_or(Value::Missing, |span| span.resolve(&self.text))
    }

    /// A system property's text; `None` where it is missing or null.
    #[must_use]
    pub fn system_text(&self, property: SystemProperty) -> Option<&str> {
        self.system(property).text()
    }

    /// The application properties in the order in which they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> + Clone {
        self.application.iter().map(|(name, value)| {
            let name = name.resolve(&self.text).text();
            (name.unwrap_or_default(), value.resolve(&self.text).text())
        })
    }

    /// Bytes of all names and values, which count towards the message size (facts §1.2).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.application.iter().position(|(span, _)| {
            span.len as usize == name.len()
                && matches!(span.resolve(&self.text),
                    Value::Text(text) if text.eq_ignore_ascii_case(name))
        })
    }

    fn keep(&mut self, text: Option<&str>) -> Span {
        let start = self.text.len() as u32;
        match text {
            Some(text) => {
                self.text.push_str(text);
                Span {
                    start,
                    len: text.len() as u32,
                }
            }
            None => Span {
                start,
                len: Span::NULL,
            },
        }
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Where a message comes from, as routes see it (facts §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// Telemetry of a device: `/messages/`.
    Device,
    /// A module, with the output it named: `/messages/modules/{m}[/outputs/{o}]/`.
    Module {
        /// The sending module.
        module: &'a str,
        /// The output, if the sender named one.
        output: Option<&'a str>,
    },
    /// A reported-property change: `/twinChangeNotifications/`.
    TwinChange,
    /// A plain topic: `/topics/{name}`, our own.
    Topic(&'a str),
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("/messages/"),
            Self::Module {
                module,
                output: Some(output),
            } => write!(f, "/messages/modules/{module}/outputs/{output}/"),
            Self::Module {
                module,
                output: None,
            } => write!(f, "/messages/modules/{module}/"),
            Self::TwinChange => f.write_str("/twinChangeNotifications/"),
            Self::Topic(name) => write!(f, "/topics/{name}"),
        }
    }
}

/// Who sent a message, and through which output. Shared by all messages of one output.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The identity of the sending connection.
    pub sender: Identity,
    /// The output that the sender named.
    pub output: Option<Arc<str>>,
    text: Box<str>,
}

impl Origin {
    /// Between sender and output in [`Origin::text`]; MQTT texts do not contain it.
    const SEPARATOR: char = '\0';

    /// An origin; at most 65,535 bytes together, as everything in an MQTT topic.
    #[must_use]
    pub fn new(sender: Identity, output: Option<&str>) -> Self {
        let text = match output {
            Some(output) => format!("{sender}{}{output}", Self::SEPARATOR).into(),
            None => sender.as_str().into(),
        };
        Self {
            sender,
            output: output.map(Arc::from),
            text,
        }
    }

    /// As one text, for the disk.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Reads that text; `None` where it names no sender.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (sender, output) = match text.split_once(Self::SEPARATOR) {
            Some((sender, output)) => (sender, Some(output)),
            None => (text, None),
        };
        Some(Self::new(Identity::read(sender)?, output))
    }
}

/// An accepted message as it is stored and delivered.
#[derive(Debug)]
pub struct Message {
    /// Who sent it.
    pub origin: Arc<Origin>,
    /// The property bag as receivers get it, percent-encoded (facts §1.8); one topic level. In the
    /// plain topic space, [`Plain`].
    pub bag: Bytes,
    /// The body.
    pub payload: Bytes,
    /// When the hub took it, in milliseconds of the hub's monotonic clock.
    pub received_ms: u64,
}

impl Message {
    /// Book-keeping per queued message, counted beside bag and payload.
    pub const OVERHEAD_BYTES: u64 = 128;

    /// What the message takes in a queue, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.bag.len() + self.payload.len()) as u64 + Self::OVERHEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_the_last_value_wins() {
        let mut properties = Properties::default();
        properties.set("Temp", Some("30"));
        properties.set("empty", None);
        properties.set("tEMP", Some("31"));
        assert_eq!(properties.get("temp"), Value::Text("31"));
        assert_eq!(properties.get("EMPTY"), Value::Null);
        assert_eq!(properties.get("none"), Value::Missing);
        let all: Vec<_> = properties.iter().collect();
        assert_eq!(all, [("Temp", Some("31")), ("empty", None)]);
    }

    #[test]
    fn system_properties_have_unique_names_and_indexes() {
        for (index, property) in SystemProperty::ALL.into_iter().enumerate() {
            assert_eq!(property as usize, index);
            assert_eq!(SystemProperty::from_name(property.name()), Some(property));
        }
        assert_eq!(
            SystemProperty::from_name("CORRELATIONID"),
            Some(SystemProperty::CorrelationId)
        );
        let mut properties = Properties::default();
        assert_eq!(properties.system(SystemProperty::To), Value::Missing);
        properties.set_system(SystemProperty::To, None);
        assert_eq!(properties.system(SystemProperty::To), Value::Null);
    }
}
