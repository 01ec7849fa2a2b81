//! A second evaluator, as plain as can be: it walks a tree, copies every text and builds the
//! body. What the compiled one says must be what this one says.

use std::fmt;

use serde_json::Value as Json;

use super::messages::Message;
use crate::message::{SystemProperty, Value as Property};
use crate::routes::Outcome;

/// An expression; printed with all parentheses.
#[derive(Debug, Clone)]
pub(super) enum E {
    Num(i32),
    Str(&'static str),
    Bool(bool),
    Null,
    Undef,
    Prop(&'static str),
    Sys(SystemProperty),
    /// Keys and indexes.
    Body(&'static [&'static str]),
    Neg(Box<Self>),
    Not(Box<Self>),
    Bin(&'static str, Box<Self>, Box<Self>),
    Call(&'static str, Vec<Self>),
}

impl fmt::Display for E {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Num(number) => write!(f, "{number}"),
            Self::Str(text) => write!(f, "'{text}'"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Null => f.write_str("null"),
            Self::Undef => f.write_str("undefined"),
            Self::Prop(name) => f.write_str(name),
            Self::Sys(property) => write!(f, "${}", property.name()),
            Self::Body(path) => {
                f.write_str("$body")?;
                for step in *path {
                    match step.parse::<usize>() {
                        Ok(index) => write!(f, "[{index}]")?,
                        Err(_) => write!(f, ".{step}")?,
                    }
                }
                Ok(())
            }
            Self::Neg(inner) => write!(f, "- ({inner})"),
            Self::Not(inner) => write!(f, "NOT ({inner})"),
            Self::Bin(op, left, right) => write!(f, "({left}) {op} ({right})"),
            Self::Call(name, args) => {
                let args: Vec<String> = args.iter().map(ToString::to_string).collect();
                write!(f, "{name}({})", args.join(", "))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum T {
    Text,
    Num,
    Bool,
    Null,
    Undef,
    Body,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum V {
    Undef,
    NullProp,
    Missing,
    Null,
    Bool(bool),
    Num(f64),
    Text(String),
}

const NUMBER_FUNCTIONS: [&str; 8] = [
    "abs", "exp", "square", "ceiling", "floor", "sign", "sqrt", "power",
];

impl E {
    /// The static type; `None` where the expression must not compile.
    pub(super) fn type_of(&self) -> Option<T> {
        match self {
            Self::Num(_) => Some(T::Num),
            Self::Str(_) | Self::Prop(_) | Self::Sys(_) => Some(T::Text),
            Self::Bool(_) => Some(T::Bool),
            Self::Null => Some(T::Null),
            Self::Undef => Some(T::Undef),
            Self::Body(_) => Some(T::Body),
            Self::Neg(inner) => inner.type_of().filter(|t| matches!(t, T::Num | T::Undef)),
            Self::Not(inner) => match inner.type_of()? {
                T::Bool | T::Body | T::Null => Some(T::Bool),
                T::Undef => Some(T::Undef),
                T::Text | T::Num => None,
            },
            Self::Bin(op, left, right) => {
                let types = (left.type_of()?, right.type_of()?);
                let literal = matches!(**left, Self::Bool(_));
                binary_type(op, types.0, types.1, literal)
            }
            Self::Call(name, args) => {
                let args: Option<Vec<T>> = args.iter().map(Self::type_of).collect();
                call_type(name, &args?)
            }
        }
    }

    pub(super) fn outcome(&self, message: &Message) -> Outcome {
        match (self.type_of(), self.value(message)) {
            (Some(T::Null), _) => Outcome::False,
            (_, V::Bool(true)) => Outcome::True,
            (_, V::Bool(false)) => Outcome::False,
            _ => Outcome::Undefined,
        }
    }

    fn value(&self, message: &Message) -> V {
        let property = |value: Property<'_>| match value {
            Property::Missing => V::Undef,
            Property::Null => V::NullProp,
            Property::Text(text) => V::Text(text.to_owned()),
        };
        match self {
            Self::Num(number) => V::Num(f64::from(*number)),
            Self::Str(text) => V::Text((*text).to_owned()),
            Self::Bool(value) => V::Bool(*value),
            Self::Null => V::Null,
            Self::Undef => V::Undef,
            Self::Prop(name) => property(message.properties.get(name)),
            Self::Sys(system) => property(message.properties.system(*system)),
            Self::Body(path) => body(message, path),
            Self::Neg(inner) => match inner.value(message) {
                V::Num(number) => V::Num(-number),
                _ => V::Undef,
            },
            Self::Not(inner) => match inner.value(message) {
                V::Bool(value) => V::Bool(!value),
                V::Null if inner.type_of() == Some(T::Null) => V::Bool(true),
                _ => V::Undef,
            },
            Self::Bin(op, left, right) => {
                let types = [left.type_of(), right.type_of()];
                let strict = types.contains(&Some(T::Body));
                let null = [types[0] == Some(T::Null), types[1] == Some(T::Null)];
                let values = (left.value(message), right.value(message));
                binary(op, values.0, values.1, strict, null)
            }
            Self::Call(name, args) => {
                let in_body = args.first().and_then(Self::type_of) == Some(T::Body);
                let args: Vec<V> = args.iter().map(|arg| arg.value(message)).collect();
                call(name, &args, in_body)
            }
        }
    }
}

fn binary_type(op: &str, left: T, right: T, literal: bool) -> Option<T> {
    let is = |allowed: &[T]| allowed.contains(&left) && allowed.contains(&right);
    match op {
        "+" | "-" | "*" | "/" => is(&[T::Num, T::Body]).then_some(T::Num),
        "%" => is(&[T::Num]).then_some(T::Num),
        "||" => is(&[T::Text, T::Body, T::Undef]).then_some(T::Text),
        "AND" | "OR" if !is(&[T::Bool, T::Null, T::Undef, T::Body]) => None,
        "AND" | "OR" if literal && right == T::Body => None,
        "AND" if left == T::Null || right == T::Null => Some(T::Null),
        "OR" if left == T::Null => Some(right),
        "OR" if right == T::Null => Some(left),
        "AND" | "OR" if is(&[T::Undef]) => Some(T::Undef),
        "AND" | "OR" => Some(T::Bool),
        "??" if left == T::Body || right == T::Body => Some(T::Body),
        "??" => (left == right).then_some(left),
        _ => (left == right || left == T::Body || right == T::Body).then_some(T::Bool),
    }
}

fn call_type(name: &str, args: &[T]) -> Option<T> {
    let all = |allowed: &[T]| args.iter().all(|arg| allowed.contains(arg));
    let text = [T::Text, T::Body, T::Undef];
    let number = [T::Num, T::Body, T::Undef];
    match name {
        _ if NUMBER_FUNCTIONS.contains(&name) => all(&number).then_some(T::Num),
        "as_number" => all(&[T::Text, T::Num, T::Body, T::Undef]).then_some(T::Num),
        "concat" => all(&text).then_some(T::Text),
        "length" => all(&[T::Text, T::Body, T::Undef, T::Null]).then_some(T::Num),
        "lower" | "upper" => all(&[T::Text, T::Body, T::Undef, T::Null]).then_some(T::Text),
        "index_of" => all(&text).then_some(T::Num),
        "starts_with" | "ends_with" | "contains" => all(&text).then_some(T::Bool),
        "substring" => {
            let rest = args[1..].iter().all(|arg| number.contains(arg));
            (text.contains(&args[0]) && rest).then_some(T::Text)
        }
        _ => Some(T::Bool),
    }
}

fn body(message: &Message, path: &[&str]) -> V {
    let system = |property| message.properties.system_text(property);
    let encoding = system(SystemProperty::ContentEncoding).map(str::to_lowercase);
    if system(SystemProperty::ContentType) != Some("application/json")
        || encoding.as_deref() != Some("utf-8")
    {
        return V::Undef;
    }
    let Ok(document) = serde_json::from_slice::<Json>(&message.body) else {
        return V::Undef;
    };
    if !document.is_object() {
        return V::Undef;
    }
    let mut at = &document;
    for step in path {
        let next = match step.parse::<usize>() {
            Ok(index) => at.get(index),
            Err(_) => at.get(step),
        };
        match next {
            Some(next) => at = next,
            None => return V::Missing,
        }
    }
    match at {
        Json::Null => V::Null,
        Json::Bool(value) => V::Bool(*value),
        Json::Number(number) => V::Num(number.as_f64().unwrap()),
        Json::String(text) if text.contains("T12:00:00") => V::Undef,
        Json::String(text) => V::Text(text.clone()),
        Json::Array(_) | Json::Object(_) => V::Undef,
    }
}

fn number(value: f64) -> V {
    if value.is_nan() {
        V::Undef
    } else {
        V::Num(value)
    }
}

fn binary(op: &str, left: V, right: V, strict: bool, null: [bool; 2]) -> V {
    match op {
        "AND" if null[0] || null[1] => V::Null,
        "OR" if null[0] => right,
        "OR" if null[1] => left,
        "AND" | "OR" => match (&left, &right) {
            (V::Bool(l), V::Bool(r)) => V::Bool(if op == "AND" { *l && *r } else { *l || *r }),
            _ if strict => V::Undef,
            (V::Bool(known), _) | (_, V::Bool(known)) if *known == (op == "OR") => V::Bool(*known),
            _ => V::Undef,
        },
        "??" if left == V::Undef => right,
        "??" => left,
        "||" => concat(&[left, right]),
        "+" | "-" | "*" | "/" | "%" => match (left, right) {
            (V::Num(l), V::Num(r)) => number(match op {
                "+" => l + r,
                "-" => l - r,
                "*" => l * r,
                "/" => l / r,
                _ => l % r,
            }),
            _ => V::Undef,
        },
        _ => compare(op, &left, &right),
    }
}

fn compare(op: &str, left: &V, right: &V) -> V {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let rank = |value: &V| match value {
        V::Undef | V::NullProp => None,
        V::Bool(_) => Some(1),
        V::Num(_) => Some(2),
        V::Text(_) => Some(3),
        V::Null | V::Missing => Some(4),
    };
    let (Some(left_rank), Some(right_rank)) = (rank(left), rank(right)) else {
        return V::Undef;
    };
    let order = match (left, right) {
        (V::Bool(l), V::Bool(r)) => l.cmp(r),
        (V::Num(l), V::Num(r)) => l.partial_cmp(r).unwrap(),
        (V::Text(l), V::Text(r)) => l.encode_utf16().cmp(r.encode_utf16()),
        _ => left_rank.cmp(&right_rank),
    };
    V::Bool(match op {
        "=" => order == Equal,
        "<>" | "!=" => order != Equal,
        "<" => order == Less,
        "<=" => order != Greater,
        ">" => order == Greater,
        _ => order != Less,
    })
}

fn concat(parts: &[V]) -> V {
    let mut joined = String::new();
    for part in parts {
        match part {
            V::Text(text) => joined.push_str(text),
            V::NullProp => {}
            _ => return V::Undef,
        }
    }
    V::Text(joined)
}

fn call(name: &str, args: &[V], in_body: bool) -> V {
    let text = |index: usize| match args.get(index) {
        Some(V::Text(text)) => Some(text.encode_utf16().collect::<Vec<u16>>()),
        _ => None,
    };
    let num = |index: usize| match args.get(index) {
        Some(V::Num(number)) => Some(*number),
        _ => None,
    };
    let find = || {
        let (whole, part) = (text(0)?, text(1)?);
        let mut starts = 0..=whole.len();
        let at = starts.find(|at| whole[*at..].starts_with(&part));
        Some(V::Num(at.map_or(-1.0, |at| at as f64)))
    };
    let found = match name {
        "is_defined" => Some(V::Bool(args[0] != V::Undef)),
        "is_bool" => Some(V::Bool(matches!(args[0], V::Bool(_)))),
        "is_number" => Some(V::Bool(num(0).is_some_and(f64::is_finite))),
        "is_string" => Some(V::Bool(text(0).is_some())),
        "is_null" if in_body => Some(V::Bool(!matches!(args[0], V::Undef | V::Missing))),
        "is_null" => Some(V::Bool(matches!(args[0], V::Null | V::NullProp))),
        "concat" => Some(concat(args)),
        "length" => text(0).map(|text| V::Num(text.len() as f64)),
        "lower" => text(0).map(|text| V::Text(String::from_utf16_lossy(&text).to_lowercase())),
        "upper" => text(0).map(|text| V::Text(String::from_utf16_lossy(&text).to_uppercase())),
        "index_of" => find(),
        "contains" => find().map(|at| V::Bool(at != V::Num(-1.0))),
        "starts_with" => text(0)
            .zip(text(1))
            .map(|(a, b)| V::Bool(a.starts_with(&b))),
        "ends_with" => text(0).zip(text(1)).map(|(a, b)| V::Bool(a.ends_with(&b))),
        "substring" => Some(substring(text(0), num(1), args.get(2).map(|_| num(2)))),
        "as_number" => num(0).or_else(|| as_number(&text(0)?)).map(V::Num),
        "power" => num(0)
            .zip(num(1))
            .map(|(base, exponent)| number(base.powf(exponent))),
        _ => num(0).map(|n| {
            number(match name {
                "abs" => n.abs(),
                "exp" => n.exp(),
                "square" => n * n,
                "ceiling" => n.ceil(),
                "floor" => n.floor(),
                "sqrt" => n.sqrt(),
                _ if n > 0.0 => 1.0,
                _ if n < 0.0 => -1.0,
                _ => 0.0,
            })
        }),
    };
    found.unwrap_or(V::Undef)
}

fn substring(text: Option<Vec<u16>>, start: Option<f64>, length: Option<Option<f64>>) -> V {
    let (Some(text), Some(start)) = (text, start) else {
        return V::Undef;
    };
    let start = start.trunc();
    let total = text.len() as f64;
    let length = match length {
        None => total - start,
        Some(None) => return V::Undef,
        Some(Some(_)) if start >= total => return V::Undef,
        Some(Some(length)) => length.trunc(),
    };
    if start < 0.0 || length < 0.0 || start + length > total {
        return V::Undef;
    }
    let (start, end) = (start as usize, (start + length) as usize);
    V::Text(String::from_utf16_lossy(&text[start..end]))
}

fn as_number(text: &[u16]) -> Option<f64> {
    let text = String::from_utf16_lossy(text);
    let text = text.trim_matches([' ', '\t']);
    let plain = text.chars().all(|c| "0123456789+-.eE".contains(c));
    text.parse().ok().filter(|_| plain)
}
