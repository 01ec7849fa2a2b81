//! The functions of the condition language (facts §4.4).

use super::ast::{Kind, Node};
use super::body::Path;
use super::check::{Checker, Typed};
use super::condition::{Dynamic, Is, Map, Matches, Number, Test, Text};
use super::error::nearest;
use super::parse::shorten;

/// A function: its name and how many arguments it takes.
struct Signature {
    name: &'static str,
    function: Function,
    args_min: usize,
    args_max: usize,
}

#[derive(Clone, Copy)]
enum Function {
    Map(Map),
    Power,
    AsNumber,
    Is(Is),
    Concat,
    Length,
    Lower,
    Upper,
    Substring,
    IndexOf,
    Matches(Matches),
    TwinIncludes,
}

const fn signature(
    name: &'static str,
    function: Function,
    args_min: usize,
    args_max: usize,
) -> Signature {
    Signature {
        name,
        function,
        args_min,
        args_max,
    }
}

static FUNCTIONS: [Signature; 24] = [
    signature("abs", Function::Map(Map::Abs), 1, 1),
    signature("exp", Function::Map(Map::Exp), 1, 1),
    signature("power", Function::Power, 2, 2),
    signature("square", Function::Map(Map::Square), 1, 1),
    signature("ceiling", Function::Map(Map::Ceiling), 1, 1),
    signature("floor", Function::Map(Map::Floor), 1, 1),
    signature("sign", Function::Map(Map::Sign), 1, 1),
    signature("sqrt", Function::Map(Map::Sqrt), 1, 1),
    signature("as_number", Function::AsNumber, 1, 1),
    signature("is_bool", Function::Is(Is::Bool), 1, 1),
    signature("is_number", Function::Is(Is::Number), 1, 1),
    signature("is_string", Function::Is(Is::Text), 1, 1),
    signature("is_null", Function::Is(Is::Null), 1, 1),
    signature("is_defined", Function::Is(Is::Defined), 1, 1),
    signature("concat", Function::Concat, 2, usize::MAX),
    signature("length", Function::Length, 1, 1),
    signature("lower", Function::Lower, 1, 1),
    signature("upper", Function::Upper, 1, 1),
    signature("substring", Function::Substring, 2, 3),
    signature("index_of", Function::IndexOf, 2, 2),
    signature("starts_with", Function::Matches(Matches::StartsWith), 2, 2),
    signature("ends_with", Function::Matches(Matches::EndsWith), 2, 2),
    signature("contains", Function::Matches(Matches::Contains), 2, 2),
    signature("twin_change_includes", Function::TwinIncludes, 1, 1),
];

/// Names of all functions.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|signature| signature.name)
}

/// Arguments with their places, in order.
struct Args<'n> {
    nodes: std::slice::Iter<'n, Node>,
    name: &'static str,
}

impl Checker<'_, '_> {
    /// Types a call and its arguments.
    pub(super) fn call(&mut self, node: &Node, name: &str, args: &[Node]) -> Typed {
        let known = FUNCTIONS
            .iter()
            .find(|signature| signature.name.eq_ignore_ascii_case(name));
        let Some(signature) = known else {
            for arg in args {
                self.node(arg);
            }
            let hint = nearest(name, names())
                .map(|near| format!("did you mean {near}?"))
                .or_else(|| Some(format!("functions are {}", list())));
            let message = format!("found `{}`, which is not a function", shorten(name));
            self.report.error(node.span.start, message, hint);
            return Typed::Error;
        };
        if args.len() < signature.args_min || args.len() > signature.args_max {
            let message = format!(
                "{} takes {}, but has {}",
                signature.name,
                count(signature),
                args.len()
            );
            if !args.iter().any(|arg| matches!(arg.kind, Kind::Error)) {
                self.report.error(node.span.start, message, None);
            }
            for arg in args {
                self.node(arg);
            }
            return Typed::Error;
        }
        let mut args = Args {
            nodes: args.iter(),
            name: signature.name,
        };
        self.build(signature.function, node, &mut args)
            .unwrap_or(Typed::Error)
    }

    /// `None` where an argument is wrong, which is reported.
    fn build(&mut self, function: Function, node: &Node, args: &mut Args<'_>) -> Option<Typed> {
        Some(match function {
            Function::Map(map) => Typed::Number(Number::Map(map, Box::new(self.number_arg(args)?))),
            Function::Power => {
                let (base, exponent) = (self.number_arg(args), self.number_arg(args));
                Typed::Number(Number::Power(Box::new(base?), Box::new(exponent?)))
            }
            Function::AsNumber => Typed::Number(self.as_number(args)?),
            Function::Is(is) => Typed::Test(self.is(is, args)?),
            Function::Concat => {
                let mut parts = Vec::new();
                while args.nodes.len() > 0 {
                    parts.push(self.text_arg(args, false));
                }
                Typed::Text(Text::Concat(parts.into_iter().collect::<Option<_>>()?))
            }
            Function::Length => Typed::Number(Number::Length(self.text_arg(args, true)?)),
            Function::Lower => Typed::Text(Text::Lower(Box::new(self.text_arg(args, true)?))),
            Function::Upper => Typed::Text(Text::Upper(Box::new(self.text_arg(args, true)?))),
            Function::Substring => {
                let (text, start) = (self.text_arg(args, false), self.number_arg(args));
                let length = match args.nodes.len() {
                    0 => None,
                    _ => Some(Box::new(self.number_arg(args)?)),
                };
                Typed::Text(Text::Substring(Box::new(text?), Box::new(start?), length))
            }
            Function::IndexOf => {
                let (text, part) = (self.text_arg(args, false), self.text_arg(args, false));
                Typed::Number(Number::IndexOf(text?, part?))
            }
            Function::Matches(matches) => {
                let (text, part) = (self.text_arg(args, false), self.text_arg(args, false));
                Typed::Test(Test::Matches(matches, text?, part?))
            }
            Function::TwinIncludes => Typed::Test(self.twin_includes(node, args)?),
        })
    }

    fn number_arg(&mut self, args: &mut Args<'_>) -> Option<Number> {
        let node = args.nodes.next()?;
        match self.node(node) {
            Typed::Number(number) => Some(number),
            Typed::Dynamic(value) => Some(Number::Dynamic(Box::new(value))),
            Typed::Undefined => Some(Number::Const(f64::NAN)),
            Typed::Error => None,
            other => self.wrong(node, args.name, "a number", &other),
        }
    }

    /// A text argument; `length`, `lower` and `upper` take a null as well.
    fn text_arg(&mut self, args: &mut Args<'_>, null: bool) -> Option<Text> {
        let node = args.nodes.next()?;
        match self.node(node) {
            Typed::Text(text) => Some(text),
            Typed::Dynamic(value) => Some(Text::Dynamic(Box::new(value))),
            Typed::Undefined => Some(Text::Undefined),
            Typed::Null if null => Some(Text::Undefined),
            Typed::Error => None,
            other => self.wrong(node, args.name, "a text", &other),
        }
    }

    fn as_number(&mut self, args: &mut Args<'_>) -> Option<Number> {
        let node = args.nodes.next()?;
        match self.node(node) {
            Typed::Text(text) => Some(Number::OfText(text)),
            Typed::Number(number) => Some(number),
            Typed::Dynamic(value) => Some(Number::OfDynamic(Box::new(value))),
            Typed::Undefined => Some(Number::Const(f64::NAN)),
            Typed::Error => None,
            other => self.wrong(node, args.name, "a text or a number", &other),
        }
    }

    fn is(&mut self, is: Is, args: &mut Args<'_>) -> Option<Test> {
        let node = args.nodes.next()?;
        let typed = self.node(node);
        let is = match (&typed, is) {
            (Typed::Dynamic(_), Is::Null) => Is::NullInBody,
            _ => is,
        };
        typed.dynamic().map(|value| Test::Is(is, value))
    }

    /// `twin_change_includes('a.b')`: whether the reported change has this path, in a plain
    /// patch or under `properties.reported` (`DESIGN` §4).
    fn twin_includes(&mut self, node: &Node, args: &mut Args<'_>) -> Option<Test> {
        if !self.twin_change {
            self.report.error(
                node.span.start,
                "twin_change_includes stands in a route FROM /twinChangeNotifications only"
                    .to_owned(),
                Some("other messages change no twin; leave the function out".to_owned()),
            );
            return None;
        }
        let arg = args.nodes.next()?;
        let Kind::Text(text) = &arg.kind else {
            self.report.error(
                arg.span.start,
                format!("found `{arg}`, expected a path in quotes"),
                Some("write twin_change_includes('settings.interval')".to_owned()),
            );
            return None;
        };
        let prefixes = ["", "properties.reported."];
        let paths = prefixes.map(|prefix| Path::parse(&format!("{prefix}{text}")));
        match paths.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(paths) => Some(Test::TwinIncludes(paths.into())),
            Err((_, message)) => {
                let offset = arg.span.start;
                self.report.error(offset, message.to_owned(), None);
                None
            }
        }
    }

    fn wrong<T>(&mut self, node: &Node, name: &str, wanted: &str, found: &Typed) -> Option<T> {
        let message = format!(
            "{name} takes {wanted} here, but `{}` is {}",
            shorten(&node.to_string()),
            found.name()
        );
        let hint = match found {
            Typed::Text(_) if !matches!(node.kind, Kind::Text(_)) => {
                Some(format!("write as_number({node})"))
            }
            Typed::Text(_) => Some("write the number without quotes".to_owned()),
            Typed::Number(_) => Some("write it in quotes to mean a text".to_owned()),
            _ => None,
        };
        self.report.error(node.span.start, message, hint);
        None
    }
}

fn count(signature: &Signature) -> String {
    match (signature.args_min, signature.args_max) {
        (1, 1) => "one argument".to_owned(),
        (min, max) if min == max => format!("{min} arguments"),
        (min, usize::MAX) => format!("at least {min} arguments"),
        (min, max) => format!("{min} or {max} arguments"),
    }
}

fn list() -> String {
    names().collect::<Vec<_>>().join(", ")
}

impl Typed {
    /// The value, whatever its type; `None` where it is wrong.
    pub(super) fn dynamic(self) -> Option<Dynamic> {
        Some(match self {
            Self::Text(text) => Dynamic::Text(text),
            Self::Number(number) => Dynamic::Number(number),
            Self::Test(test) => Dynamic::Test(Box::new(test)),
            Self::Dynamic(value) => value,
            Self::Null => Dynamic::Null,
            Self::Undefined => Dynamic::Undefined,
            Self::Error => return None,
        })
    }

    /// What it is, in words.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Test(_) => "true or false",
            Self::Dynamic(_) => "a body value",
            Self::Null => "null",
            Self::Undefined => "undefined",
            Self::Error => "wrong",
        }
    }
}
