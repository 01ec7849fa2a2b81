//! A compiled condition and its evaluation: typed expressions that read only what they name
//! and allocate only where a text is built (facts §4.4).

use std::borrow::Cow;

use super::View;
use super::ast::Op;
use super::body::{Found, Path};
use super::text;
use super::values::Outcome::{self, Undefined};
use super::values::{Known, Seen, calculate, compare, compare_numbers, compare_texts};
use crate::message::{SystemProperty, Value};

/// An expression that is true, false or undefined.
#[derive(Debug)]
pub(super) enum Test {
    Const(Outcome),
    /// A body value by itself: only a JSON boolean is known.
    Body(Dynamic),
    Not(Box<Self>),
    Logic(Box<Logic>),
    CompareText(Op, Text, Text),
    CompareNumber(Op, Number, Number),
    /// From left to right: the result so far is compared with the next value.
    CompareOutcome(Box<Self>, Vec<(Op, Dynamic)>),
    CompareDynamic(Op, Dynamic, Dynamic),
    Is(Is, Dynamic),
    Matches(Matches, Text, Text),
    FirstDefined(Vec<Self>),
    TwinIncludes(Box<[Path]>),
}

/// A chain of AND, or of OR.
#[derive(Debug)]
pub(super) struct Logic {
    pub(super) and: bool,
    pub(super) first: Test,
    /// With each member, whether it is joined without three-valued logic, as bare body values
    /// are (facts §4.5).
    pub(super) rest: Vec<(bool, Test)>,
    /// Whether any member is.
    pub(super) any_strict: bool,
}

/// The functions that ask what a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    Bool,
    Number,
    Text,
    Null,
    /// `is_null` of a body value: anything that is there (facts §4.5).
    NullInBody,
    Defined,
}

/// The functions that look for one text in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matches {
    StartsWith,
    EndsWith,
    Contains,
}

/// An expression that is a number; NaN is undefined.
#[derive(Debug)]
pub(super) enum Number {
    Const(f64),
    Dynamic(Box<Dynamic>),
    Negate(Box<Self>),
    Chain(Box<Self>, Vec<(Op, Self)>),
    Map(Map, Box<Self>),
    Power(Box<Self>, Box<Self>),
    OfText(Text),
    /// `as_number` of a body value: its number, or its text read as one.
    OfDynamic(Box<Dynamic>),
    Length(Text),
    IndexOf(Text, Text),
    FirstDefined(Vec<Self>),
}

/// The functions from one number to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    Abs,
    Exp,
    Square,
    Ceiling,
    Floor,
    Sign,
    Sqrt,
}

/// An expression that is a text.
#[derive(Debug)]
pub(super) enum Text {
    Const(Box<str>),
    Undefined,
    Property(Box<str>),
    /// `$name`: an application property of this name, otherwise the system property.
    System {
        literal: Option<Box<str>>,
        property: Option<SystemProperty>,
    },
    Dynamic(Box<Dynamic>),
    Concat(Vec<Self>),
    Upper(Box<Self>),
    Lower(Box<Self>),
    Substring(Box<Self>, Box<Number>, Option<Box<Number>>),
    FirstDefined(Vec<Self>),
}

/// An expression whose type the message decides.
#[derive(Debug)]
pub(super) enum Dynamic {
    /// `$body.path`: an application property of this name, otherwise the body.
    Body {
        literal: Option<Box<str>>,
        path: Path,
    },
    Null,
    Undefined,
    Test(Box<Test>),
    Number(Number),
    Text(Text),
    FirstDefined(Vec<Self>),
}

impl Test {
    pub(super) fn evaluate(&self, view: &View<'_>) -> Outcome {
        match self {
            Self::Const(outcome) => *outcome,
            Self::Body(value) => match value.evaluate(view) {
                Seen::Body(Found::Bool(value)) => Outcome::of(value),
                _ => Undefined,
            },
            Self::Not(operand) => operand.evaluate(view).not(),
            Self::Logic(logic) => logic.evaluate(view),
            Self::CompareText(op, left, right) => {
                match (left.evaluate(view), right.evaluate(view)) {
                    (Known::Text(left), Known::Text(right)) => compare_texts(*op, &left, &right),
                    _ => Undefined,
                }
            }
            Self::CompareNumber(op, left, right) => {
                compare_numbers(*op, left.evaluate(view), right.evaluate(view))
            }
            Self::CompareOutcome(first, rest) => {
                let mut outcome = first.evaluate(view);
                for (op, right) in rest {
                    outcome = compare(*op, outcome.into(), right.evaluate(view));
                }
                outcome
            }
            Self::CompareDynamic(op, left, right) => {
                compare(*op, left.evaluate(view), right.evaluate(view))
            }
            Self::Is(is, value) => Outcome::of(is.holds(&value.evaluate(view))),
            Self::Matches(matches, text, part) => {
                match (text.evaluate(view), part.evaluate(view)) {
                    (Known::Text(text), Known::Text(part)) => matches.holds(&text, &part),
                    _ => Undefined,
                }
            }
            Self::FirstDefined(tests) => tests
                .iter()
                .map(|test| test.evaluate(view))
                .find(|outcome| *outcome != Undefined)
                .unwrap_or(Undefined),
            Self::TwinIncludes(paths) => Outcome::of(paths.iter().any(|path| path.exists(view))),
        }
    }
}

impl Logic {
    fn evaluate(&self, view: &View<'_>) -> Outcome {
        let decisive = Outcome::of(!self.and);
        let mut outcome = self.first.evaluate(view);
        for (strict, test) in &self.rest {
            if outcome == decisive && !self.any_strict {
                return decisive;
            }
            let next = test.evaluate(view);
            outcome = if *strict && (outcome == Undefined || next == Undefined) {
                Undefined
            } else {
                outcome.join(self.and, next)
            };
        }
        outcome
    }
}

impl Is {
    fn holds(self, value: &Seen<'_>) -> bool {
        match self {
            Self::Bool => matches!(value, Seen::Body(Found::Bool(_))),
            Self::Number => {
                matches!(value, Seen::Body(Found::Number(number)) if number.is_finite())
            }
            Self::Text => matches!(value, Seen::Body(Found::Text(_))),
            Self::Null => matches!(value, Seen::NullProperty | Seen::Body(Found::Null)),
            Self::NullInBody => !matches!(value, Seen::Undefined | Seen::Body(Found::Missing)),
            Self::Defined => *value != Seen::Undefined,
        }
    }
}

impl Matches {
    fn holds(self, text: &str, part: &str) -> Outcome {
        Outcome::of(match self {
            Self::StartsWith => text.starts_with(part),
            Self::EndsWith => text.ends_with(part),
            Self::Contains => text.contains(part),
        })
    }
}

impl Number {
    pub(super) fn evaluate(&self, view: &View<'_>) -> f64 {
        match self {
            Self::Const(number) => *number,
            Self::Dynamic(value) => match value.evaluate(view) {
                Seen::Body(Found::Number(number)) => number,
                _ => f64::NAN,
            },
            Self::Negate(operand) => -operand.evaluate(view),
            Self::Chain(first, rest) => {
                rest.iter().fold(first.evaluate(view), |left, (op, right)| {
                    calculate(*op, left, right.evaluate(view))
                })
            }
            Self::Map(map, operand) => map.apply(operand.evaluate(view)),
            Self::Power(base, exponent) => match (base.evaluate(view), exponent.evaluate(view)) {
                (base, exponent) if base.is_nan() || exponent.is_nan() => f64::NAN,
                (base, exponent) => base.powf(exponent),
            },
            Self::OfText(operand) => match operand.evaluate(view) {
                Known::Text(operand) => text::as_number(&operand),
                Known::Missing | Known::Null => f64::NAN,
            },
            Self::OfDynamic(operand) => match operand.evaluate(view) {
                Seen::Body(Found::Number(number)) => number,
                Seen::Body(Found::Text(operand)) => text::as_number(&operand),
                _ => f64::NAN,
            },
            Self::Length(operand) => match operand.evaluate(view) {
                Known::Text(operand) => text::utf16_length(&operand) as f64,
                Known::Missing | Known::Null => f64::NAN,
            },
            Self::IndexOf(operand, part) => match (operand.evaluate(view), part.evaluate(view)) {
                (Known::Text(operand), Known::Text(part)) => text::index_of(&operand, &part),
                _ => f64::NAN,
            },
            Self::FirstDefined(numbers) => numbers
                .iter()
                .map(|number| number.evaluate(view))
                .find(|number| !number.is_nan())
                .unwrap_or(f64::NAN),
        }
    }
}

impl Map {
    fn apply(self, number: f64) -> f64 {
        match self {
            Self::Abs => number.abs(),
            Self::Exp => number.exp(),
            Self::Square => number * number,
            Self::Ceiling => number.ceil(),
            Self::Floor => number.floor(),
            Self::Sign if number == 0.0 || number.is_nan() => number,
            Self::Sign => number.signum(),
            Self::Sqrt => number.sqrt(),
        }
    }
}

impl Text {
    pub(super) fn evaluate<'a>(&'a self, view: &View<'a>) -> Known<'a> {
        match self {
            Self::Const(value) => Known::Text(Cow::Borrowed(value)),
            Self::Undefined => Known::Missing,
            Self::Property(name) => view.properties.get(name).into(),
            Self::System { literal, property } => {
                let literal = literal.as_ref().map(|name| view.properties.get(name));
                match (literal, property) {
                    (Some(value @ (Value::Text(_) | Value::Null)), _) => value.into(),
                    (_, Some(property)) => view.properties.system(*property).into(),
                    (_, None) => Known::Missing,
                }
            }
            Self::Dynamic(value) => match value.evaluate(view) {
                Seen::Body(Found::Text(value)) => Known::Text(value),
                Seen::NullProperty => Known::Null,
                _ => Known::Missing,
            },
            Self::Concat(parts) => concat(parts, view),
            Self::Upper(operand) => operand.evaluate(view).map(|text| text::upper(&text).into()),
            Self::Lower(operand) => operand.evaluate(view).map(|text| text::lower(&text).into()),
            Self::Substring(operand, start, length) => {
                let Known::Text(operand) = operand.evaluate(view) else {
                    return Known::Missing;
                };
                let start = start.evaluate(view);
                let length = length.as_ref().map(|length| length.evaluate(view));
                let part = match operand {
                    Cow::Borrowed(operand) => text::substring(operand, start, length),
                    Cow::Owned(operand) => text::substring(&operand, start, length)
                        .map(|part| Cow::Owned(part.into_owned())),
                };
                part.map_or(Known::Missing, Known::Text)
            }
            Self::FirstDefined(texts) => texts
                .iter()
                .map(|text| text.evaluate(view))
                .find(|text| *text != Known::Missing)
                .unwrap_or(Known::Missing),
        }
    }
}

/// One undefined part makes all undefined; null is the empty text (facts §4.4).
fn concat<'a>(parts: &'a [Text], view: &View<'a>) -> Known<'a> {
    let mut joined = String::new();
    for part in parts {
        match part.evaluate(view) {
            Known::Missing => return Known::Missing,
            Known::Null => {}
            Known::Text(part) => joined.push_str(&part),
        }
    }
    Known::Text(joined.into())
}

impl Dynamic {
    pub(super) fn evaluate<'a>(&'a self, view: &View<'a>) -> Seen<'a> {
        match self {
            Self::Body { literal, path } => {
                let literal = literal.as_ref().map(|name| view.properties.get(name));
                match literal.unwrap_or(Value::Missing) {
                    Value::Text(text) => Seen::Body(Found::Text(Cow::Borrowed(text))),
                    Value::Null => Seen::NullProperty,
                    Value::Missing => path.find(view).map_or(Seen::Undefined, Seen::Body),
                }
            }
            Self::Null => Seen::Body(Found::Null),
            Self::Undefined => Seen::Undefined,
            Self::Test(test) => test.evaluate(view).into(),
            Self::Number(number) => match number.evaluate(view) {
                number if number.is_nan() => Seen::Undefined,
                number => Seen::Body(Found::Number(number)),
            },
            Self::Text(text) => match text.evaluate(view) {
                Known::Missing => Seen::Undefined,
                Known::Null => Seen::NullProperty,
                Known::Text(text) => Seen::Body(Found::Text(text)),
            },
            Self::FirstDefined(values) => values
                .iter()
                .map(|value| value.evaluate(view))
                .find(|value| *value != Seen::Undefined)
                .unwrap_or(Seen::Undefined),
        }
    }
}
