//! What MQTT 5 sends beside topic and payload, as properties of a message, and the other way.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use crate::iothub::bag::{self, BagError, PROPERTIES_MAX};
use crate::message::{Message, Properties, SystemProperty};
use crate::mqtt::v5::{self, Place, Property, encode_properties};

/// Adds what came with a PUBLISH of MQTT 5 to what its topic says (MQTT 5 §3.3.2.3): user
/// properties count like those of the topic's bag, `$.on` and its like included, and go before
/// them. Returns how long the message is of use, in milliseconds.
///
/// # Errors
/// [`BagError`] for a property without a name, too many of them, or correlation data that is not
/// text: what receivers get is.
pub(super) fn add(
    sent: v5::Properties<'_>,
    properties: &mut Properties,
) -> Result<Option<u64>, BagError> {
    for (at, property) in sent.iter().enumerate() {
        if at == PROPERTIES_MAX {
            return Err(BagError::TooMany);
        }
        add_one(property, properties)?;
    }
    Ok(sent.message_expiry_ms())
}

/// The same for a message that is taken whatever it says: what cannot be a property is left out,
/// and then it is false.
pub(super) fn add_what_fits(sent: v5::Properties<'_>, properties: &mut Properties) -> bool {
    let mut is_whole = sent.iter().nth(PROPERTIES_MAX).is_none();
    for property in sent.iter().take(PROPERTIES_MAX) {
        is_whole &= add_one(property, properties).is_ok();
    }
    is_whole
}

fn add_one(property: Property<'_>, properties: &mut Properties) -> Result<(), BagError> {
    match property {
        Property::User("", _) => return Err(BagError::EmptyKey),
        Property::User(name, value) => {
            bag::set(properties, name, (!value.is_empty()).then_some(value));
        }
        Property::ContentType(text) => {
            properties.set_system(SystemProperty::ContentType, Some(text));
        }
        Property::CorrelationData(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|_| BagError::NotUtf8)?;
            properties.set_system(SystemProperty::CorrelationId, Some(text));
        }
        _ => {}
    }
    Ok(())
}

/// Says that a body is JSON where its publisher has no way to say so: MQTT has no content
/// encoding, and 3.1.1 no content type.
pub(super) fn guess_json(body: &[u8], properties: &mut Properties) {
    let is_object = || body.trim_ascii_start().starts_with(b"{");
    let content_type = properties.system_text(SystemProperty::ContentType);
    if content_type.map_or_else(is_object, |known| known == JSON) {
        properties.set_system(SystemProperty::ContentType, Some(JSON));
        if properties
            .system_text(SystemProperty::ContentEncoding)
            .is_none()
        {
            properties.set_system(SystemProperty::ContentEncoding, Some("utf-8"));
        }
    }
}

/// A module's properties as those of a message of the plain topic space: system properties without
/// a place in MQTT 5 under their names in the bag, such as `$.mid`.
pub(super) fn of(properties: &Properties, expiry_ms: Option<u64>) -> Bytes {
    let mut out = BytesMut::new();
    let text = |property| {
        properties
            .system_text(property)
            .filter(|text| is_text(text))
    };
    let content_type = text(SystemProperty::ContentType).map(Property::ContentType);
    let correlation = text(SystemProperty::CorrelationId);
    let correlation = correlation.map(|text| Property::CorrelationData(text.as_bytes()));
    let expiry = expiry_ms.map(whole_seconds);
    let own = properties
        .iter()
        .map(|(name, value)| (name, value.unwrap_or_default()));
    let users = own.chain(bag::system(properties));
    let users = users.filter(|(name, value)| is_text(name) && is_text(value));
    let all = content_type
        .into_iter()
        .chain(correlation)
        .chain(expiry.map(Property::MessageExpiry))
        .chain(users.map(|(name, value)| Property::User(name, value)));
    let written = encode_properties(&mut out, Place::ServerPublish, all);
    debug_assert!(written.is_ok(), "{written:?}");
    out.freeze()
}

/// A time as a message expiry has it: in seconds, no less than it is.
pub(super) fn whole_seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX)
}

/// Whether MQTT can carry a text.
fn is_text(text: &str) -> bool {
    text.len() <= usize::from(u16::MAX) && !text.contains('\0')
}

const JSON: &str = "application/json";

/// The properties of a PUBLISH that carries a message upwards: what its bag says, unless the topic
/// says it, and what is left of its time. `$.ct` and `$.cid` have properties of their own.
pub(super) fn upwards<'a>(
    message: &Message,
    is_in_topic: bool,
    left_ms: Option<u64>,
    out: &'a mut BytesMut,
) -> v5::Properties<'a> {
    let (mut content_type, mut correlation) = (None, None);
    let mut users: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
    let mut is_text = false;
    let bag: &[u8] = if is_in_topic { b"" } else { &message.bag };
    for (name, value) in bag::pairs(bag) {
        match &*name {
            "$.ct" if !value.is_empty() => content_type = Some(bag::text(value)),
            "$.cid" if !value.is_empty() => {
                correlation = Some(bag::bytes(value));
            }
            _ => {
                is_text |= name == "$.ce" && value.eq_ignore_ascii_case(b"utf-8");
                users.push((name, bag::text(value)));
            }
        }
    }
    // Servers may look, and refuse what is none (MQTT-3.3.2-4).
    let is_text = is_text && std::str::from_utf8(&message.payload).is_ok();
    let expiry = left_ms.map(|ms| whole_seconds(ms).max(1));
    let own = [
        is_text.then_some(Property::PayloadFormat(true)),
        expiry.map(Property::MessageExpiry),
        content_type.as_deref().map(Property::ContentType),
        correlation.as_deref().map(Property::CorrelationData),
    ];
    let users = users
        .iter()
        .map(|(name, value)| Property::User(name, value));
    out.clear();
    let all = own.into_iter().flatten().chain(users);
    let written = encode_properties(out, Place::ClientPublish, all);
    debug_assert!(written.is_ok(), "{written:?}");
    v5::Properties::parse(out, Place::ClientPublish).unwrap_or_default()
}
