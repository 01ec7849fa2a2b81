//! How a message is addressed up there.

use std::borrow::Cow;

use super::ways::Dialect;
use crate::iothub::{bag, topics};
use crate::limits::TOPIC_BYTES_MAX;
use crate::message::{Message, Origin};
use crate::topic::template::{Unfit, Variable};

/// The topic of a message up there, in two parts; with a template the bag is no part of it where it
/// goes `beside` (MQTT 5).
pub(super) fn address(
    dialect: &Dialect,
    message: &Message,
    beside: bool,
    topic: &mut Vec<u8>,
    suffix: &mut Vec<u8>,
) -> Result<(), Unfit> {
    let origin = &message.origin;
    match dialect {
        Dialect::IotHub => {
            topic.extend_from_slice(topics::events_prefix(&origin.sender).as_bytes());
            bag::forward(&message.bag, suffix);
        }
        Dialect::Topic(template) => {
            let property = |name: &str| bag::property(&message.bag, name);
            template.write(|variable| fill_in(origin, variable, property), topic)?;
            if template.takes_bag() && !beside {
                suffix.extend_from_slice(&message.bag);
            }
        }
    }
    let bytes = topic.len() + suffix.len();
    if bytes > TOPIC_BYTES_MAX {
        return Err(Unfit::TooLong(bytes));
    }
    Ok(())
}

/// What stands in a place of a template, for a message with such properties.
pub(super) fn fill_in<'a>(
    origin: &'a Origin,
    variable: &Variable,
    property: impl Fn(&str) -> Option<Cow<'a, str>>,
) -> Option<Cow<'a, str>> {
    match variable {
        Variable::Device => Some(Cow::Borrowed(origin.sender.device_id())),
        Variable::Module => origin.sender.module_id().map(Cow::Borrowed),
        Variable::Output => origin.output.as_deref().map(Cow::Borrowed),
        Variable::Property(name) => property(name),
    }
}
