//! Generated texts, expressions, messages and bodies.

use proptest::prelude::*;
use serde_json::Value as Json;

use super::messages::Message;
use super::reference::E;
use crate::message::{Priority, SystemProperty};
use crate::routes::body::{Found, Path};
use crate::routes::{Condition, Route};

const PIECES: [&str; 66] = [
    "SELECT",
    "*",
    "FROM",
    "WHERE",
    "INTO",
    "AND",
    "OR",
    "NOT",
    "true",
    "false",
    "null",
    "/*",
    "undefined",
    "temp",
    "$messageId",
    "$body.a",
    "$body.a[0].b",
    "$body.",
    "$body[",
    "{",
    "}",
    "(",
    ")",
    ",",
    "=",
    "==",
    "<>",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "??",
    "||",
    "&&",
    "|",
    "+",
    "-",
    "/",
    "%",
    "5",
    "-5",
    "0x1F",
    "1.5e3",
    "'x'",
    "\"y\"",
    "'",
    "\"",
    "\\",
    "'\\u0041'",
    "abs",
    "as_number(",
    "concat(",
    "is_defined(",
    "/messages/*",
    "/messages/modules/m",
    "*/",
    "\n",
    "BrokeredEndpoint",
    "(\"/modules/m/inputs/i\")",
    "$upstream",
    ";",
    "[",
    "]",
    "é𝄞",
    "@",
];

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(&PIECES[..]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let blank = prop::sample::select(&["", " ", " ", " ", "\n"][..]);
    prop::collection::vec((piece, blank), 0..24).prop_map(|pieces| {
        pieces
            .into_iter()
            .map(|(piece, blank)| piece + blank)
            .collect()
    })
}

fn message() -> impl Strategy<Value = Message> {
    let values = [
        "31", "abc", "", " 5 ", "1e2", "AbC", "𝄞x", "\u{ff00}", "true",
    ];
    let value = prop::option::weighted(0.9, prop::sample::select(values.to_vec()));
    let properties =
        prop::collection::vec((prop::sample::select(&["a", "b", "c"][..]), value), 0..4);
    let bodies = [
        r#"{"n":5,"s":"AbC","t":true,"f":false,"z":null,"o":{"x":-2.5},"l":["q",[1]],
            "d":"2024-02-29T12:00:00Z","num":"31"}"#,
        r#"{"n":"5","s":7,"t":null,"f":"false","o":[],"l":{}}"#,
        "[1]",
        "{",
    ];
    let body = prop::sample::select(bodies.to_vec());
    let kind = prop::option::weighted(0.8, Just("application/json"));
    (properties, body, kind).prop_map(|(properties, body, kind)| {
        let mut message = Message::with(&properties);
        message.body = body.into();
        message.system(SystemProperty::ContentEncoding, "UTF-8");
        if let Some(kind) = kind {
            message.system(SystemProperty::ContentType, kind);
        }
        message
    })
}

const BINARY: [&str; 16] = [
    "+", "-", "*", "/", "%", "||", "AND", "OR", "AND", "OR", "??", "=", "<>", "<", ">=", "!=",
];
const PATHS: [&[&str]; 11] = [
    &["n"],
    &["s"],
    &["t"],
    &["f"],
    &["z"],
    &["o"],
    &["o", "x"],
    &["l", "0"],
    &["d"],
    &["missing"],
    &["num"],
];
const UNARY_CALLS: [&str; 16] = [
    "abs",
    "exp",
    "square",
    "ceiling",
    "floor",
    "sign",
    "sqrt",
    "as_number",
    "is_bool",
    "is_number",
    "is_string",
    "is_null",
    "is_defined",
    "length",
    "lower",
    "upper",
];
const BINARY_CALLS: [&str; 7] = [
    "power",
    "concat",
    "substring",
    "index_of",
    "starts_with",
    "ends_with",
    "contains",
];

const NAMES: [&str; 4] = ["a", "b", "c", "nowhere"];
const TEXTS: [&str; 6] = ["x", "AbC", "", "31", "b", "𝄞"];

/// Expressions without regard to types; most of them must not compile.
fn untyped() -> impl Strategy<Value = E> {
    let leaf = prop_oneof![
        2 => (-3..100_i32).prop_map(E::Num),
        2 => prop::sample::select(&TEXTS[..]).prop_map(E::Str),
        1 => any::<bool>().prop_map(E::Bool),
        1 => prop_oneof![Just(E::Null), Just(E::Undef)],
        3 => prop::sample::select(&NAMES[..]).prop_map(E::Prop),
        4 => prop::sample::select(&PATHS[..]).prop_map(E::Body),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let boxed = || inner.clone().prop_map(Box::new);
        prop_oneof![
            1 => boxed().prop_map(E::Neg),
            2 => boxed().prop_map(E::Not),
            6 => (prop::sample::select(&BINARY[..]), boxed(), boxed())
                .prop_map(|(op, left, right)| E::Bin(op, left, right)),
            4 => (prop::sample::select(&UNARY_CALLS[..]), inner.clone())
                .prop_map(|(name, arg)| E::Call(name, vec![arg])),
            3 => (prop::sample::select(&BINARY_CALLS[..]), inner.clone(), inner.clone())
                .prop_map(|(name, first, second)| E::Call(name, vec![first, second])),
        ]
    })
}

/// Texts, numbers and conditions that may stand where their type is asked for.
struct Typed {
    text: BoxedStrategy<E>,
    number: BoxedStrategy<E>,
    test: BoxedStrategy<E>,
}

impl Typed {
    fn leaves() -> Self {
        let body = || prop::sample::select(&PATHS[..]).prop_map(E::Body);
        let system = &[SystemProperty::ContentType, SystemProperty::To][..];
        let text = prop_oneof![
            4 => prop::sample::select(&NAMES[..]).prop_map(E::Prop),
            2 => prop::sample::select(&TEXTS[..]).prop_map(E::Str),
            1 => prop::sample::select(system).prop_map(E::Sys),
            2 => body(),
        ];
        let number = prop_oneof![3 => (-3..9_i32).prop_map(E::Num), 2 => body()];
        let test = prop_oneof![
            2 => any::<bool>().prop_map(E::Bool),
            1 => Just(E::Undef),
            1 => Just(E::Null),
            2 => body(),
        ];
        Self {
            text: text.boxed(),
            number: number.boxed(),
            test: test.boxed(),
        }
    }

    /// One level more around these.
    fn wrap(&self) -> Self {
        let (text, number, test) = (&self.text, &self.number, &self.test);
        let op = |ops: &'static [&'static str], side: &BoxedStrategy<E>| {
            (prop::sample::select(ops), side.clone(), side.clone())
                .prop_map(|(op, left, right)| E::Bin(op, Box::new(left), Box::new(right)))
        };
        let call = |names: &'static [&'static str], args: [&BoxedStrategy<E>; 2]| {
            (
                prop::sample::select(names),
                args[0].clone(),
                args[1].clone(),
            )
                .prop_map(|(name, first, second)| E::Call(name, vec![first, second]))
        };
        let one = |names: &'static [&'static str], arg: &BoxedStrategy<E>| {
            (prop::sample::select(names), arg.clone())
                .prop_map(|(name, arg)| E::Call(name, vec![arg]))
        };
        let part = (text.clone(), number.clone(), number.clone())
            .prop_map(|(text, start, length)| E::Call("substring", vec![text, start, length]));
        let negated = number.clone().prop_map(|inner| E::Neg(Box::new(inner)));
        let compare = &["=", "<>", "<", "<=", ">", ">=", "!="][..];
        let asks = &["is_bool", "is_number", "is_string", "is_null", "is_defined"][..];
        Self {
            text: prop_oneof![
                2 => text.clone(),
                2 => op(&["||", "??"], text),
                1 => call(&["concat"], [text, text]),
                1 => call(&["substring"], [text, number]),
                1 => part,
                2 => one(&["lower", "upper"], text),
            ]
            .boxed(),
            number: prop_oneof![
                2 => number.clone(),
                4 => op(&["+", "-", "*", "/", "%", "??"], number),
                1 => negated,
                2 => one(&UNARY_CALLS[..8], number),
                3 => one(&["as_number", "length"], text),
                1 => call(&["power"], [number, number]),
                1 => call(&["index_of"], [text, text]),
            ]
            .boxed(),
            test: prop_oneof![
                1 => test.clone(),
                4 => op(&["AND", "OR", "AND", "OR", "??", "="], test),
                3 => op(compare, text),
                3 => op(compare, number),
                2 => test.clone().prop_map(|inner| E::Not(Box::new(inner))),
                1 => call(&["starts_with", "ends_with", "contains"], [text, text]),
                1 => one(asks, text),
                1 => one(asks, number),
                1 => one(asks, test),
            ]
            .boxed(),
        }
    }
}

fn expressions() -> impl Strategy<Value = E> {
    let typed = Typed::leaves().wrap().wrap().wrap().wrap();
    prop_oneof![3 => typed.test, 1 => untyped()]
}

fn documents() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        (-1e9..1e9_f64).prop_map(Json::from),
        any::<String>().prop_map(Json::from),
    ];
    let value = leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop::sample::select(&["a", "b", "c", "d\"\\", "é"][..]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::hash_map(key, inner, 0..4)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::hash_map(prop::sample::select(&["a", "b"][..]), value, 0..3).prop_map(|map| {
        let map = map.into_iter().map(|(key, value)| (key.to_owned(), value));
        Json::Object(map.collect())
    })
}

fn paths() -> impl Strategy<Value = String> {
    let step = (
        prop::sample::select(&["a", "b", "c", "é"][..]),
        prop::option::of(0..3_u8),
    );
    prop::collection::vec(step, 1..4).prop_map(|steps| {
        let steps: Vec<String> = steps
            .into_iter()
            .map(|(key, index)| match index {
                Some(index) => format!("{key}[{index}]"),
                None => key.to_owned(),
            })
            .collect();
        steps.join(".")
    })
}

fn walk(document: &Json, path: &str) -> Option<Json> {
    let mut at = document;
    for step in path.split('.') {
        let (key, index) = step.split_once('[').unwrap_or((step, ""));
        at = at.as_object()?.get(key)?;
        if let Some(index) = index.strip_suffix(']') {
            at = at.as_array()?.get(index.parse::<usize>().unwrap())?;
        }
    }
    Some(at.clone())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_text_compiles_or_says_where_it_is_wrong(text in texts(), message in message()) {
        let view = message.view();
        match Route::compile("r", &text, Priority::DEFAULT, None) {
            Ok(route) => {
                let printed = route.to_string();
                let again = Route::compile("r", &printed, Priority::DEFAULT, None);
                prop_assert_eq!(again.unwrap().to_string(), printed);
                crate::routes::explain(&route, &view).to_string();
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    prop_assert!(text.is_char_boundary(error.offset), "{error}");
                }
            }
        }
        if let Ok(condition) = Condition::compile(&text) {
            let again = Condition::compile(&condition.to_string()).unwrap();
            prop_assert_eq!(again.evaluate(&view), condition.evaluate(&view));
        }
    }

    #[test]
    fn expressions_agree_with_the_reference(expression in expressions(), message in message()) {
        let text = expression.to_string();
        let compiled = Condition::compile(&text);
        prop_assert_eq!(compiled.is_ok(), expression.type_of().is_some(), "{}", text);
        if let Ok(compiled) = compiled {
            let view = message.view();
            let found = compiled.evaluate(&view);
            prop_assert_eq!(found, expression.outcome(&message), "{}", text);
            let again = Condition::compile(&compiled.to_string()).unwrap();
            prop_assert_eq!(again.to_string(), compiled.to_string());
            prop_assert_eq!(again.evaluate(&view), found);
            let reasons = crate::routes::explain_condition(&compiled, &view);
            prop_assert_eq!(reasons.is_empty(), found == crate::routes::Outcome::True);
        }
    }

    #[test]
    fn bodies_are_walked_as_a_json_library_does(document in documents(), path in paths()) {
        let mut message = Message::json(&document.to_string());
        let parsed = Path::parse(&path).unwrap();
        let found = parsed.find(&message.view());
        match (walk(&document, &path), found) {
            (None, found) => prop_assert_eq!(found, Ok(Found::Missing)),
            (Some(Json::Object(_) | Json::Array(_)), found) => prop_assert!(found.is_err()),
            (Some(Json::Null), found) => prop_assert_eq!(found, Ok(Found::Null)),
            (Some(Json::Bool(value)), found) => prop_assert_eq!(found, Ok(Found::Bool(value))),
            (Some(Json::Number(number)), found) => {
                prop_assert_eq!(found, Ok(Found::Number(number.as_f64().unwrap())));
            }
            (Some(Json::String(text)), found) => {
                prop_assert_eq!(found, Ok(Found::Text(text.into())));
            }
        }
        // Cut off anywhere, nothing is known and nothing breaks.
        while message.body.pop().is_some() {
            prop_assert!(parsed.find(&message.view()).is_err());
        }
    }

    #[test]
    fn any_bytes_may_be_a_body(body in prop::collection::vec(any::<u8>(), 0..64), path in paths()) {
        for encoding in ["utf-8", "utf-16", "utf-32"] {
            let mut message = Message::json("");
            message.body = body.clone();
            message.system(SystemProperty::ContentEncoding, encoding);
            let parsed = Path::parse(&path).unwrap();
            let _ = parsed.find(&message.view());
            let _ = parsed.siblings(&message.view());
        }
    }
}
