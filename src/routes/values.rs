//! What expressions are for one message, and how values are calculated and compared
//! (facts §4.4, §4.5).

use std::borrow::Cow;
use std::cmp::Ordering;

use super::ast::Op;
use super::body::Found;
use super::text;
use crate::message::Value;

/// What a condition says about a message (facts §4.4): only `True` routes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The message is routed.
    True,
    /// The message is not routed; null counts as false.
    False,
    /// The message is not routed, because something that was asked for is not known.
    Undefined,
}

use Outcome::{False, True, Undefined};

impl Outcome {
    pub(super) fn of(value: bool) -> Self {
        if value { True } else { False }
    }

    pub(super) fn not(self) -> Self {
        match self {
            True => False,
            False => True,
            Undefined => Undefined,
        }
    }

    /// `AND` and `OR` with three values.
    pub(super) fn join(self, and: bool, other: Self) -> Self {
        let decisive = Self::of(!and);
        if self == decisive || other == decisive {
            decisive
        } else if self == Undefined || other == Undefined {
            Undefined
        } else {
            Self::of(and)
        }
    }
}

/// What a text expression is for one message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Known<'a> {
    Missing,
    /// A property without a value.
    Null,
    Text(Cow<'a, str>),
}

/// What a dynamic expression is for one message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen<'a> {
    Undefined,
    /// A property without a value: it is defined, but compares with nothing.
    NullProperty,
    Body(Found<'a>),
}

impl<'a> From<Value<'a>> for Known<'a> {
    fn from(value: Value<'a>) -> Self {
        match value {
            Value::Missing => Self::Missing,
            Value::Null => Self::Null,
            Value::Text(text) => Self::Text(Cow::Borrowed(text)),
        }
    }
}

impl<'a> Known<'a> {
    /// A text from a text; null gives undefined.
    pub(super) fn map(self, change: impl FnOnce(Cow<'a, str>) -> Cow<'a, str>) -> Self {
        match self {
            Self::Text(text) => Self::Text(change(text)),
            Self::Missing | Self::Null => Self::Missing,
        }
    }
}

impl From<Outcome> for Seen<'_> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            True => Self::Body(Found::Bool(true)),
            False => Self::Body(Found::Bool(false)),
            Undefined => Self::Undefined,
        }
    }
}

pub(super) fn calculate(op: Op, left: f64, right: f64) -> f64 {
    match op {
        Op::Add => left + right,
        Op::Subtract => left - right,
        Op::Multiply => left * right,
        Op::Divide => left / right,
        Op::Remainder => left % right,
        _ => f64::NAN,
    }
}

fn ordered(op: Op, ordering: Ordering) -> Outcome {
    Outcome::of(match op {
        Op::Less => ordering.is_lt(),
        Op::LessEqual => ordering.is_le(),
        Op::Greater => ordering.is_gt(),
        Op::GreaterEqual => ordering.is_ge(),
        Op::NotEqual => ordering.is_ne(),
        _ => ordering.is_eq(),
    })
}

pub(super) fn compare_texts(op: Op, left: &str, right: &str) -> Outcome {
    match op {
        Op::Equal => Outcome::of(left == right),
        Op::NotEqual => Outcome::of(left != right),
        _ => ordered(op, text::compare_utf16(left, right)),
    }
}

pub(super) fn compare_numbers(op: Op, left: f64, right: f64) -> Outcome {
    left.partial_cmp(&right)
        .map_or(Undefined, |ordering| ordered(op, ordering))
}

/// Compares values of any type; different types have an order (facts §4.5).
pub(super) fn compare(op: Op, left: Seen<'_>, right: Seen<'_>) -> Outcome {
    let (Seen::Body(left), Seen::Body(right)) = (left, right) else {
        return Undefined;
    };
    match (&left, &right) {
        (Found::Bool(left), Found::Bool(right)) => ordered(op, left.cmp(right)),
        (Found::Number(left), Found::Number(right)) => compare_numbers(op, *left, *right),
        (Found::Text(left), Found::Text(right)) => compare_texts(op, left, right),
        _ => ordered(op, type_order(&left).cmp(&type_order(&right))),
    }
}

/// Bool < Number < Text < Null.
fn type_order(value: &Found<'_>) -> u8 {
    match value {
        Found::Bool(_) => 1,
        Found::Number(_) => 2,
        Found::Text(_) => 3,
        Found::Null | Found::Missing => 4,
    }
}
