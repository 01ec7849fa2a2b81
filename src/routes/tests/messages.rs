//! Messages for tests, in the shape of `routes eval` lines (`DESIGN` §3.5).

use serde_json::Value;

use crate::message::{Properties, SystemProperty};
use crate::routes::View;
use crate::routes::line::{MessageLine, OwnedMessage};

/// What a [`View`] borrows from.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) source: String,
    pub(super) properties: Properties,
    pub(super) body: Vec<u8>,
}

impl Message {
    pub(super) fn view(&self) -> View<'_> {
        View {
            source: &self.source,
            properties: &self.properties,
            body: &self.body,
        }
    }

    /// A message with application properties and nothing else.
    pub(super) fn with(properties: &[(&str, Option<&str>)]) -> Self {
        let mut message = Self {
            source: "/messages/".to_owned(),
            properties: Properties::default(),
            body: Vec::new(),
        };
        for (name, value) in properties {
            message.properties.set(name, *value);
        }
        message
    }

    /// A message with a UTF-8 JSON body.
    pub(super) fn json(body: &str) -> Self {
        let mut message = Self::with(&[]);
        message.body = body.as_bytes().to_vec();
        message.system(SystemProperty::ContentType, "application/json");
        message.system(SystemProperty::ContentEncoding, "utf-8");
        message
    }

    pub(super) fn from_module(module: &str, output: Option<&str>) -> Self {
        let mut message = Self::with(&[]);
        message.source = crate::message::Source::Module { module, output }.to_string();
        message
    }

    pub(super) fn system(&mut self, property: SystemProperty, value: &str) {
        self.properties.set_system(property, Some(value));
    }

    /// A message of a `routes eval` line.
    pub(super) fn from_line(line: &Value) -> Self {
        let message = line["message"].clone();
        let message: Option<MessageLine> = serde_json::from_value(message).unwrap();
        let OwnedMessage {
            source,
            properties,
            body,
        } = message.unwrap_or_default().into_message();
        Self {
            source,
            properties,
            body,
        }
    }
}
