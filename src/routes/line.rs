//! Lines of `routes eval`: one expression and one message as JSON, one answer (`DESIGN` §3.5).

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::source::topic_of;
use super::{Condition, Outcome, Route, RouteError, View};
use crate::message::{Priority, Properties, SystemProperty};

/// A question: does this condition, or this route, take this message?
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Given back with the answer.
    #[serde(default)]
    pub id: Value,
    /// What the expression is.
    pub kind: LineKind,
    /// The text of a condition, or of a whole route.
    pub expression: String,
    /// The message; without one, a route is only compiled.
    #[serde(default)]
    pub message: Option<MessageLine>,
    /// What a table of tests expects; not for us.
    #[serde(default, rename = "expect")]
    _expect: Option<Value>,
}

/// What an expression is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineKind {
    /// What stands after WHERE.
    Condition,
    /// A whole route.
    Route,
}

/// A message as JSON; every field may be null or missing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MessageLine {
    source: Option<String>,
    body: Option<Value>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    properties: Option<Map<String, Value>>,
    system_properties: Option<Map<String, Value>>,
}

/// A message that a [`View`] can borrow.
#[derive(Debug, Clone)]
pub struct OwnedMessage {
    /// The source path.
    pub source: String,
    /// Application and system properties.
    pub properties: Properties,
    /// The body, in the message's encoding.
    pub body: Vec<u8>,
}

impl OwnedMessage {
    /// What routes may know about it.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            source: &self.source,
            properties: &self.properties,
            body: &self.body,
        }
    }
}

impl MessageLine {
    /// Makes the message: the body's text is put into its encoding, and a message without a
    /// source is device telemetry.
    #[must_use]
    pub fn into_message(self) -> OwnedMessage {
        let mut properties = Properties::default();
        for (name, value) in self.properties.unwrap_or_default() {
            properties.set(&name, text(value).as_deref());
        }
        for (name, value) in self.system_properties.unwrap_or_default() {
            let value = text(value);
            match SystemProperty::from_name(&name) {
                Some(property) => properties.set_system(property, value.as_deref()),
                // `$name` looks there first, so one that has no place of its own is found.
                None => properties.set(&format!("${name}"), value.as_deref()),
            }
        }
        if let Some(value) = &self.content_type {
            properties.set_system(SystemProperty::ContentType, Some(value));
        }
        if let Some(value) = &self.content_encoding {
            properties.set_system(SystemProperty::ContentEncoding, Some(value));
        }
        let body = self.body.and_then(text).unwrap_or_default();
        let encoding = properties.system_text(SystemProperty::ContentEncoding);
        let body = encode(&body, encoding.unwrap_or_default());
        let mut source = self.source.unwrap_or_else(|| "/messages".to_owned());
        if !source.ends_with('/') && topic_of(&source).is_none() {
            source.push('/');
        }
        OwnedMessage {
            source,
            properties,
            body,
        }
    }
}

impl Line {
    /// Answers the question: `result`, or `error` with its place. A route's answer also names its
    /// endpoint and source.
    #[must_use]
    pub fn answer(self) -> Value {
        let message = self.message.map(MessageLine::into_message);
        let answer = match self.kind {
            LineKind::Condition => {
                let message = message.unwrap_or_else(|| MessageLine::default().into_message());
                Condition::compile(&self.expression)
                    .map(|condition| condition.evaluate(&message.view()) == Outcome::True)
                    .map(|result| json!({ "id": self.id, "result": result }))
            }
            LineKind::Route => Route::compile("route", &self.expression, Priority::DEFAULT, None)
                .map(|route| {
                    let result = message.is_none_or(|message| route.matches(&message.view()));
                    json!({
                        "id": self.id,
                        "result": result,
                        "endpoint": route.endpoint().to_string(),
                        "source": route.source(),
                    })
                }),
        };
        answer.unwrap_or_else(|errors| error(&self.id, errors.first()))
    }
}

/// Answers a line of text; one that is no question gets an error as well.
#[must_use]
pub fn answer(line: &str) -> Value {
    match serde_json::from_str::<Line>(line) {
        Ok(line) => line.answer(),
        Err(problem) => {
            let message = format!("the line is no question: {problem}");
            let (line, column) = (problem.line(), problem.column());
            json!({ "id": null, "error": { "message": message, "line": line, "column": column } })
        }
    }
}

fn error(id: &Value, error: Option<&RouteError>) -> Value {
    let Some(error) = error else {
        return json!({ "id": id, "error": { "message": "does not compile" } });
    };
    let message = match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    };
    let (line, column) = (error.line, error.column);
    json!({ "id": id, "error": { "message": message, "line": line, "column": column } })
}

/// A value's text: strings as they are, null as none, anything else as its JSON.
fn text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

fn encode(text: &str, encoding: &str) -> Vec<u8> {
    if encoding.eq_ignore_ascii_case("utf-16") {
        return text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    }
    if encoding.eq_ignore_ascii_case("utf-32") {
        return text
            .chars()
            .flat_map(|c| u32::from(c).to_le_bytes())
            .collect();
    }
    text.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_the_lines_of_the_contract() {
        let condition = r#"{"id":"c1","kind":"condition","expression":"temp > '30'",
            "message":{"source":"/messages/modules/m/outputs/o","body":"{\"a\":1}",
            "contentType":"application/json","contentEncoding":"utf-8",
            "properties":{"temp":"31","none":null},"systemProperties":{"messageId":"7"}}}"#;
        assert_eq!(answer(condition), json!({ "id": "c1", "result": true }));
        let route = r#"{"id":2,"kind":"route","expression":"FROM /messages/* INTO $upstream",
            "message":null}"#;
        assert_eq!(
            answer(route),
            json!({ "id": 2, "result": true, "endpoint": "$upstream", "source": "/messages/*" })
        );
        let wrong = r#"{"id":"e","kind":"condition","expression":"temp > 30"}"#;
        let error = answer(wrong);
        assert_eq!(error["error"]["line"], 1);
        assert!(
            error["error"]["column"]
                .as_u64()
                .is_some_and(|column| column > 0)
        );
        assert_eq!(answer("no JSON")["id"], Value::Null);
    }

    #[test]
    fn system_properties_without_a_place_of_their_own_are_found_too() {
        let line = r#"{"id":1,"kind":"condition","expression":"$custom = 'x'",
            "message":{"systemProperties":{"custom":"x"}}}"#;
        assert_eq!(answer(line)["result"], true);
    }
}
