//! Messages for tests, in the shape of `routes eval` lines (`DESIGN` §3.5).

use serde_json::Value;

use crate::message::{Properties, SystemProperty};
use crate::routes::View;

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

    /// A message of a `routes eval` line; the body's text is put into its encoding.
    pub(super) fn from_line(line: &Value) -> Self {
        let message = &line["message"];
        let mut result = Self::with(&[]);
        if let Some(source) = message["source"].as_str() {
            result.source = source.to_owned();
        }
        for (name, value) in message["properties"].as_object().into_iter().flatten() {
            result.properties.set(name, value.as_str());
        }
        for (name, value) in message["systemProperties"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let property = SystemProperty::from_name(name).unwrap();
            result.properties.set_system(property, value.as_str());
        }
        if let Some(value) = message["contentType"].as_str() {
            result.system(SystemProperty::ContentType, value);
        }
        let encoding = message["contentEncoding"].as_str();
        if let Some(value) = encoding {
            result.system(SystemProperty::ContentEncoding, value);
        }
        let body = message["body"].as_str().unwrap_or_default();
        result.body = match encoding.map(str::to_ascii_lowercase).as_deref() {
            Some("utf-16") => body.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            Some("utf-32") => body
                .chars()
                .flat_map(|c| u32::from(c).to_le_bytes())
                .collect(),
            _ => body.as_bytes().to_vec(),
        };
        result
    }
}
