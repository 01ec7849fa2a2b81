//! Topics with places to fill in: `factory/{device}/{output}/{property:line}`.
//!
//! A place takes one topic level: what is filled in has `/`, `+`, `#`, `%`, control characters and
//! all that is not ASCII percent-encoded, so that nobody who chooses a value chooses levels.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use thiserror::Error;

use super::{TOPIC_BYTES_MAX, check_name};

/// What is escaped beside the rest; `%` is, so that no two values look alike.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'/').add(b'+').add(b'#').add(b'%');
/// What stands where the message has no such value: a level cannot be left out.
const NO_VALUE: &str = "_";

/// What a place takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `{device}`: the sender's device.
    Device,
    /// `{module}`: the sending module.
    Module,
    /// `{output}`: the output it named.
    Output,
    /// `{property:NAME}`: an application property.
    Property(Box<str>),
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{problem}, at byte {offset}")]
pub struct TemplateError {
    /// Where, in bytes from its beginning.
    pub offset: usize,
    /// What.
    pub problem: String,
}

/// Why a message has no topic by this template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unfit {
    /// What was filled in would make a topic that is not the sender's to choose (`DESIGN` §5).
    #[error("the topic would begin with $ or devices/")]
    Reserved,
    /// Longer than MQTT allows.
    #[error("the topic has {0} bytes, more than 65535")]
    TooLong(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Place(Variable),
}

/// A topic with places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A place that is not known or not closed, wildcards, an empty text.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        let offset = |rest: &str| text.len() - rest.len();
        while let Some(at) = rest.find(['{', '}']) {
            let (before, place) = rest.split_at_checked(at).unwrap_or_default();
            let error = |problem: String| TemplateError {
                offset: offset(place),
                problem,
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            let Some((name, after)) = place
                .strip_prefix('{')
                .and_then(|place| place.split_once('}'))
            else {
                return Err(error("{ and } belong together".to_owned()));
            };
            parts.push(Part::Place(variable(name).ok_or_else(|| {
                error(format!(
                    "{{{name}}} is unknown: there are {{device}}, {{module}}, {{output}} and \
                     {{property:NAME}}"
                ))
            })?));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        let as_name: String = parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text,
                Part::Place(_) => NO_VALUE,
            })
            .collect();
        check_name(&as_name).map_err(|error| TemplateError {
            offset: 0,
            problem: error.to_string(),
        })?;
        Ok(Self { parts })
    }

    /// Whether a message's property bag follows, as it does behind a `/` at the end.
    #[must_use]
    pub fn takes_bag(&self) -> bool {
        matches!(self.parts.last(), Some(Part::Text(text)) if text.ends_with('/'))
    }

    /// Whether messages of one output may have different topics.
    #[must_use]
    pub fn reads_properties(&self) -> bool {
        let reads = |part: &Part| matches!(part, Part::Place(Variable::Property(_)));
        self.parts.iter().any(reads)
    }

    /// Appends the topic, with what `value` says in the places.
    ///
    /// # Errors
    /// [`Unfit`]; `out` then holds a part of it.
    pub fn write<'a>(
        &self,
        value: impl Fn(&Variable) -> Option<Cow<'a, str>>,
        out: &mut Vec<u8>,
    ) -> Result<(), Unfit> {
        let begin = out.len();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Place(variable) => {
                    let value = value(variable).filter(|value| !value.is_empty());
                    let value = value.unwrap_or(Cow::Borrowed(NO_VALUE));
                    for text in utf8_percent_encode(&value, ESCAPED) {
                        out.extend_from_slice(text.as_bytes());
                    }
                }
            }
        }
        let topic = out.get(begin..).unwrap_or_default();
        if topic.len() > TOPIC_BYTES_MAX {
            return Err(Unfit::TooLong(topic.len()));
        }
        let is_chosen = matches!(self.parts.first(), Some(Part::Place(_)));
        let first = topic.split(|byte| *byte == b'/').next().unwrap_or_default();
        if is_chosen && (first.starts_with(b"$") || first == b"devices") {
            return Err(Unfit::Reserved);
        }
        Ok(())
    }
}

fn variable(name: &str) -> Option<Variable> {
    match name {
        "device" => Some(Variable::Device),
        "module" => Some(Variable::Module),
        "output" => Some(Variable::Output),
        _ => {
            let property = name.strip_prefix("property:")?;
            (!property.is_empty()).then(|| Variable::Property(property.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(template: &str, property: &'static str) -> Result<String, Unfit> {
        let value = |variable: &Variable| match variable {
            Variable::Device => Some(Cow::Borrowed("edge-1")),
            Variable::Module => Some(Cow::Borrowed("sensor")),
            Variable::Output => None,
            Variable::Property(name) => (&**name == "line").then_some(Cow::Borrowed(property)),
        };
        let mut out = b"before".to_vec();
        Template::parse(template).unwrap().write(value, &mut out)?;
        Ok(String::from_utf8(out.split_off(6)).unwrap())
    }

    #[test]
    fn places_take_one_level_each() {
        for (template, property, topic) in [
            ("a/b", "", "a/b"),
            ("{device}/{module}/{output}", "", "edge-1/sensor/_"),
            ("f/{property:line}/x", "7", "f/7/x"),
            ("f/{property:Line}/x", "7", "f/_/x"),
            ("f/{property:line}", "", "f/_"),
            (
                "f/{property:line}",
                "a/b+#%\u{0}ä",
                "f/a%2Fb%2B%23%25%00%C3%A4",
            ),
            ("{property:line}/f", "$share", "$"),
            ("{property:line}/f", "devices", "$"),
            ("{property:line}ices/f", "dev", "$"),
            ("{property:line}/f", "device", "device/f"),
            ("devices/{device}/", "", "devices/edge-1/"),
        ] {
            let expected = match topic {
                "$" => Err(Unfit::Reserved),
                topic => Ok(topic.to_owned()),
            };
            assert_eq!(written(template, property), expected, "{template}");
        }
        let long: &'static str = Box::leak("x".repeat(70_000).into_boxed_str());
        assert_eq!(
            written("f/{property:line}", long),
            Err(Unfit::TooLong(70_002))
        );
    }

    #[test]
    fn templates_are_checked_and_say_what_they_need() {
        for (bad, offset) in [
            ("a/{", 2),
            ("a/}", 2),
            ("a/{x}", 2),
            ("{device}/{property:}", 9),
            ("", 0),
            ("a/#", 0),
            ("{device}/+", 0),
        ] {
            let error = Template::parse(bad).unwrap_err();
            assert_eq!(error.offset, offset, "{bad}: {error}");
        }
        let template = Template::parse("a/{device}/").unwrap();
        assert!(template.takes_bag() && !template.reads_properties());
        let template = Template::parse("a/{property:x}").unwrap();
        assert!(!template.takes_bag() && template.reads_properties());
    }
}
