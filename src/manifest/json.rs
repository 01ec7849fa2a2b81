//! JSON whose every value knows its place in the file.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::limits::MANIFEST_DEPTH_MAX;

/// A value, and the text it was read from.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// Byte offset of the value in the document.
    pub(super) offset: usize,
    /// The value's text.
    pub(super) raw: &'a str,
    pub(super) kind: Kind<'a>,
}

#[derive(Debug)]
pub(super) enum Kind<'a> {
    Object(Vec<Member<'a>>),
    Array(Vec<Node<'a>>),
    Text(String),
    /// Numbers, booleans and null.
    Other,
}

#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) name: String,
    pub(super) offset: usize,
    pub(super) value: Node<'a>,
}

/// Why a document is not JSON, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) offset: usize,
    pub(super) message: String,
}

impl<'a> Node<'a> {
    /// Reads a whole document.
    pub(super) fn parse(document: &'a str) -> Result<Self, SyntaxError> {
        let raw: &RawValue =
            serde_json::from_str(document).map_err(|error| located(document, 0, &error))?;
        Self::build(document, raw, 0)
    }

    /// The members of an object.
    pub(super) fn members(&self) -> Option<&[Member<'a>]> {
        match &self.kind {
            Kind::Object(members) => Some(members),
            _ => None,
        }
    }

    /// A member of an object; of several with one name the last.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let members = self.members()?;
        let found = members.iter().rfind(|member| member.name == name);
        found.map(|member| &member.value)
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.raw == "null"
    }

    /// The kind of value, with its article.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Object(_) => "an object",
            Kind::Array(_) => "an array",
            Kind::Text(_) => "a string",
            Kind::Other => match self.raw {
                "null" => "null",
                "true" | "false" => "a boolean",
                _ => "a number",
            },
        }
    }

    fn build(document: &'a str, raw: &'a RawValue, depth: usize) -> Result<Self, SyntaxError> {
        let raw = raw.get();
        let offset = offset_in(document, raw);
        if depth > MANIFEST_DEPTH_MAX {
            let message = format!("is nested deeper than {MANIFEST_DEPTH_MAX} levels");
            return Err(SyntaxError { offset, message });
        }
        let fail = |error: serde_json::Error| located(document, offset, &error);
        let kind = match raw.as_bytes().first() {
            Some(b'{') => {
                let members: Members<'a> = serde_json::from_str(raw).map_err(fail)?;
                let members = members.0.into_iter().map(|(name, value)| {
                    let offset = offset_in(document, name.get());
                    let read = serde_json::from_str(name.get());
                    Ok(Member {
                        name: read.map_err(|error| located(document, offset, &error))?,
                        offset,
                        value: Self::build(document, value, depth + 1)?,
                    })
                });
                Kind::Object(members.collect::<Result<_, _>>()?)
            }
            Some(b'[') => {
                let values: Vec<&'a RawValue> = serde_json::from_str(raw).map_err(fail)?;
                let values = values.into_iter();
                let nodes = values.map(|value| Self::build(document, value, depth + 1));
                Kind::Array(nodes.collect::<Result<_, _>>()?)
            }
            Some(b'"') => Kind::Text(serde_json::from_str(raw).map_err(fail)?),
            _ => Kind::Other,
        };
        Ok(Self { offset, raw, kind })
    }
}

/// An object's members in the order of the text, doubles included.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

/// How many characters of a JSON string literal, opening quote included, stand before a byte of
/// the string that it means.
pub(super) fn literal_columns(literal: &str, offset: usize) -> usize {
    let mut chars = literal.chars().skip(1).peekable();
    let (mut columns, mut meant) = (1, 0);
    while let Some(char) = chars.next() {
        if char == '"' {
            break;
        }
        let (width, bytes) = match char {
            '\\' => escape(&mut chars),
            char => (1, char.len_utf8()),
        };
        if offset < meant + bytes {
            break;
        }
        columns += width;
        meant += bytes;
    }
    columns
}

/// Characters of an escape, backslash included, and UTF-8 bytes of what it means.
fn escape(chars: &mut (impl Iterator<Item = char> + Clone)) -> (usize, usize) {
    if chars.next() != Some('u') {
        return (2, 1);
    }
    match hex4(chars) {
        // A sound literal has the other half next: `\uXXXX`.
        0xD800..=0xDBFF => {
            chars.next();
            chars.next();
            hex4(chars);
            (12, 4)
        }
        unit => (6, char::from_u32(unit).map_or(3, char::len_utf8)),
    }
}

fn hex4(chars: &mut impl Iterator<Item = char>) -> u32 {
    let digits = chars.take(4);
    digits.fold(0, |sum, digit| {
        sum * 16 + digit.to_digit(16).unwrap_or_default()
    })
}

/// Where `part` starts in `document`, of which it is a slice.
fn offset_in(document: &str, part: &str) -> usize {
    part.as_ptr()
        .addr()
        .saturating_sub(document.as_ptr().addr())
}

/// A parser's error in `document`, which was handed to the parser from `start` on.
fn located(document: &str, start: usize, error: &serde_json::Error) -> SyntaxError {
    let part = document.get(start..).unwrap_or_default();
    let lines_before = error.line().saturating_sub(1);
    let line_start: usize = part
        .split_inclusive('\n')
        .take(lines_before)
        .map(str::len)
        .sum();
    let offset = start + line_start + error.column().saturating_sub(1);
    let message = error.to_string();
    let message = match message.rfind(" at line ") {
        Some(end) => message.get(..end).unwrap_or(&message).to_owned(),
        None => message,
    };
    SyntaxError { offset, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_place() {
        let document = " {\"a\": [1, {\"é\\u0062\": null}]}\n";
        let root = Node::parse(document).unwrap();
        assert_eq!(root.offset, 1);
        let Kind::Array(values) = &root.get("a").unwrap().kind else {
            panic!("an array");
        };
        assert_eq!((values[0].offset, values[0].raw), (8, "1"));
        let member = &values[1].members().unwrap()[0];
        assert_eq!((member.name.as_str(), member.offset), ("éb", 12));
        assert!(member.value.is_null());
        assert!(document[member.value.offset..].starts_with("null"));
    }

    #[test]
    fn errors_know_their_place() {
        let place = |document: &str| {
            let error = Node::parse(document).unwrap_err();
            (error.offset, error.message)
        };
        let expected_value = "expected value".to_owned();
        assert_eq!(place("{\n  \"a\": ?}"), (9, expected_value.clone()));
        assert_eq!(place("[\"é\", <x>]"), (7, expected_value));
        assert_eq!(place("{} x").0, 3);
        let (offset, message) = place("[1,\n [\"\\ud800\"]]");
        assert!((6..=13).contains(&offset), "{offset} {message}");
        let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
        let (offset, message) = place(&deep);
        assert_eq!((offset, message.contains("deeper")), (65, true));
        let hostile = "[".repeat(200_000);
        assert!(Node::parse(&hostile).is_err());
    }

    #[test]
    fn escapes_are_counted_as_written() {
        let literal = r#""a\"b\u00e9\ud83d\ude00\/é c""#;
        let text: String = serde_json::from_str(literal).unwrap();
        assert_eq!(text, "a\"bé😀/é c");
        let columns = |offset| literal_columns(literal, offset);
        assert_eq!(columns(0), 1);
        assert_eq!(columns(1), 2, "the escaped quote");
        assert_eq!(columns(2), 4);
        assert_eq!(columns(3), 5, "é");
        assert_eq!(columns(4), 5, "inside é");
        assert_eq!(columns(5), 11, "the pair");
        assert_eq!(columns(9), 23, "the slash");
        assert_eq!(columns(10), 25, "a plain é");
        assert_eq!(columns(12), 26);
        assert_eq!(columns(13), 27);
        assert_eq!(columns(14), 28, "the closing quote");
        assert_eq!(columns(99), 28);
    }
}
