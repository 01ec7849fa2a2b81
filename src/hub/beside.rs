//! What MQTT 5 sends beside topic and payload, as properties of a message.

use crate::iothub::bag::{self, BagError, PROPERTIES_MAX};
use crate::message::{Properties, SystemProperty};
use crate::mqtt::v5::{self, Property};

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
    let mut expiry_ms = None;
    for (at, property) in sent.iter().enumerate() {
        if at == PROPERTIES_MAX {
            return Err(BagError::TooMany);
        }
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
            Property::MessageExpiry(seconds) => expiry_ms = Some(u64::from(seconds) * 1000),
            _ => {}
        }
    }
    Ok(expiry_ms)
}
