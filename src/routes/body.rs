//! `$body.path`: what a condition may know about a message's body (facts §4.5).

use std::borrow::Cow;

use super::View;
use super::json::{self, Invalid, Raw, Step};
use super::{BODY_BYTES_MAX, BODY_STEPS_MAX};
use crate::message::SystemProperty;

/// The only content type whose bodies can be asked.
pub(super) const CONTENT_TYPE: &str = "application/json";

/// A body path, split into steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) steps: Box<[Step]>,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found<'a> {
    /// The path leads nowhere: a null (facts §4.5), but one that `is_null` does not know.
    Missing,
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
}

/// Why a body value is undefined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undefined {
    NoContentType,
    OtherContentType,
    NoEncoding,
    OtherEncoding,
    TooLarge,
    Invalid(Invalid),
    NotText,
    Object,
    Array,
    Date,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16,
    Utf32,
}

impl Path {
    /// Reads the path behind `$body.`; the error is an offset into it and what is wrong there.
    pub(super) fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut steps = Vec::new();
        let mut at = 0;
        for part in text.split('.') {
            let (name, index) = match part.find('[') {
                Some(open) => part.split_at(open),
                None => (part, ""),
            };
            if name.is_empty() {
                return Err((at, "a name is missing in the body path"));
            }
            if let Some(close) = name.find(']') {
                return Err((at + close, "found `]` without `[` in the body path"));
            }
            steps.push(Step::Key(name.into()));
            if !index.is_empty() {
                let step = array_index(index).ok_or((at + name.len(), INDEX))?;
                steps.push(Step::Index(step));
            }
            at += part.len() + 1;
        }
        if steps.len() > BODY_STEPS_MAX {
            return Err((0, "the body path has too many steps"));
        }
        Ok(Self {
            steps: steps.into(),
        })
    }

    /// The value at the path, or why there can be none.
    pub(super) fn find<'a>(&self, view: &View<'a>) -> Result<Found<'a>, Undefined> {
        match encoding(view)? {
            Encoding::Utf8 => found(view.body, &self.steps),
            other => {
                let document = transcode(view.body, other)?;
                let found = found(document.as_bytes(), &self.steps)?;
                Ok(found.into_owned())
            }
        }
    }

    /// Whether the body has anything at the path; content type and encoding do not matter.
    pub(super) fn exists(&self, view: &View<'_>) -> bool {
        view.body.len() <= BODY_BYTES_MAX
            && matches!(json::find(view.body, &self.steps), Ok(Some(_)))
    }

    /// The keys that stand where the path ends, and the name that is missing among them.
    pub(super) fn siblings(&self, view: &View<'_>) -> Option<(&str, Vec<String>)> {
        let document = match encoding(view).ok()? {
            Encoding::Utf8 => Cow::Borrowed(view.body),
            other => Cow::Owned(transcode(view.body, other).ok()?.into_bytes()),
        };
        for (index, step) in self.steps.iter().enumerate().rev() {
            let above = self.steps.get(..index)?;
            if let (Step::Key(name), Ok(Some(Raw::Object(object)))) =
                (step, json::find(&document, above))
            {
                return Some((name, json::keys(object)));
            }
        }
        None
    }
}

const INDEX: &str = "an index is one number in brackets, such as `[0]`";

fn array_index(text: &str) -> Option<usize> {
    let digits = text.strip_prefix('[')?.strip_suffix(']')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // More digits than a position can have lead nowhere.
    Some(digits.parse().unwrap_or(usize::MAX))
}

impl Found<'_> {
    fn into_owned<'a>(self) -> Found<'a> {
        match self {
            Self::Missing => Found::Missing,
            Self::Null => Found::Null,
            Self::Bool(value) => Found::Bool(value),
            Self::Number(number) => Found::Number(number),
            Self::Text(text) => Found::Text(Cow::Owned(text.into_owned())),
        }
    }
}

/// The encoding, where content type and encoding allow a body to be asked at all.
fn encoding(view: &View<'_>) -> Result<Encoding, Undefined> {
    match view.properties.system_text(SystemProperty::ContentType) {
        None => return Err(Undefined::NoContentType),
        Some(CONTENT_TYPE) => {}
        Some(_) => return Err(Undefined::OtherContentType),
    }
    if view.body.len() > BODY_BYTES_MAX {
        return Err(Undefined::TooLarge);
    }
    let name = view
        .properties
        .system_text(SystemProperty::ContentEncoding)
        .ok_or(Undefined::NoEncoding)?;
    match name {
        _ if name.eq_ignore_ascii_case("utf-8") => Ok(Encoding::Utf8),
        _ if name.eq_ignore_ascii_case("utf-16") => Ok(Encoding::Utf16),
        _ if name.eq_ignore_ascii_case("utf-32") => Ok(Encoding::Utf32),
        _ => Err(Undefined::OtherEncoding),
    }
}

/// UTF-16 and UTF-32, little-endian unless a byte order mark says otherwise.
fn transcode(body: &[u8], encoding: Encoding) -> Result<String, Undefined> {
    if encoding == Encoding::Utf16 {
        let (units, rest) = body.as_chunks::<2>();
        let big = units.first() == Some(&[0xFE, 0xFF]);
        let units = units.iter().map(|unit| match big {
            true => u16::from_be_bytes(*unit),
            false => u16::from_le_bytes(*unit),
        });
        let text: String = char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        return whole(text, rest);
    }
    let (units, rest) = body.as_chunks::<4>();
    let big = units.first() == Some(&[0, 0, 0xFE, 0xFF]);
    let text: String = units
        .iter()
        .map(|unit| match big {
            true => u32::from_be_bytes(*unit),
            false => u32::from_le_bytes(*unit),
        })
        .map(|unit| char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    whole(text, rest)
}

fn whole(text: String, rest: &[u8]) -> Result<String, Undefined> {
    if rest.is_empty() {
        Ok(text)
    } else {
        Err(Undefined::NotText)
    }
}

fn found<'b>(document: &'b [u8], steps: &[Step]) -> Result<Found<'b>, Undefined> {
    let Some(raw) = json::find(document, steps).map_err(Undefined::Invalid)? else {
        return Ok(Found::Missing);
    };
    let invalid = Undefined::Invalid(Invalid::At(0));
    match raw {
        Raw::Object(_) => Err(Undefined::Object),
        Raw::Array => Err(Undefined::Array),
        Raw::Null => Ok(Found::Null),
        Raw::Bool(value) => Ok(Found::Bool(value)),
        Raw::Number(number) => json::number(number).map(Found::Number).ok_or(invalid),
        Raw::Text { inner, escaped } => {
            let text = json::text(inner, escaped).ok_or(invalid)?;
            if is_date(&text) {
                return Err(Undefined::Date);
            }
            Ok(Found::Text(text))
        }
    }
}

/// Whether the replaced system's JSON reader takes a string for a date: `2024-02-29T12:00:00`
/// with or without fraction and zone. A date alone stays a string.
fn is_date(text: &str) -> bool {
    if !(19..=40).contains(&text.len()) || !text.is_ascii() {
        return false;
    }
    let (Some(date), Some(rest)) = (text.get(..19), text.get(19..)) else {
        return false;
    };
    let shape = "dddd-dd-ddTdd:dd:dd";
    let shaped = date.bytes().zip(shape.bytes()).all(|(byte, expected)| {
        if expected == b'd' {
            byte.is_ascii_digit()
        } else {
            byte == expected
        }
    });
    let field = |start: usize, end: usize| {
        date.get(start..end)
            .and_then(|digits| digits.parse::<u32>().ok())
            .unwrap_or(u32::MAX)
    };
    let (year, month, day) = (field(0, 4), field(5, 7), field(8, 10));
    let (hour, minute, second) = (field(11, 13), field(14, 16), field(17, 19));
    let midnight = hour == 24 && minute == 0 && second == 0;
    shaped
        && year >= 1
        && (1..=days_in(year, month)).contains(&day)
        && (hour < 24 || midnight)
        && minute < 60
        && second < 60
        && is_fraction_and_zone(rest)
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        1..=12 => 31,
        _ => 0,
    }
}

fn is_fraction_and_zone(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let zone = match text.strip_prefix('.') {
        None => text,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return false;
            }
            zone
        }
    };
    match zone.strip_prefix(['+', '-']) {
        None => matches!(zone, "" | "Z" | "z"),
        Some(offset) => match offset.split_once(':') {
            Some((hours, minutes)) => {
                hours.len() == 2 && minutes.len() == 2 && digits(hours) && digits(minutes)
            }
            None => matches!(offset.len(), 2 | 4) && digits(offset),
        },
    }
}
