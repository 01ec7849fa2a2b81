//! Types of expressions: a tree becomes a compiled condition, or errors (facts §4.4, §4.5).

use super::ast::{Kind, Link, Node, Op};
use super::body::Path;
use super::condition::{Dynamic, Logic, Number, Test, Text};
use super::error::{Report, nearest};
use super::parse::shorten;
use super::values::Outcome;
use crate::message::SystemProperty;

/// A compiled expression by its static type. Nothing is converted from one type to another.
#[derive(Debug)]
pub(super) enum Typed {
    Text(Text),
    Number(Number),
    Test(Test),
    /// A body value: its type is known when there is a message.
    Dynamic(Dynamic),
    Null,
    Undefined,
    /// Reported already.
    Error,
}

/// Checks one condition.
#[derive(Debug)]
pub(super) struct Checker<'r, 't> {
    pub(super) report: &'r mut Report<'t>,
    /// Whether the source is `/twinChangeNotifications`.
    pub(super) twin_change: bool,
}

const BODY: &str = "$body.";

impl Checker<'_, '_> {
    /// The whole condition: a number or a text alone is legal and undefined, null is false.
    pub(super) fn condition(&mut self, node: &Node) -> Test {
        let typed = self.node(node);
        if let Typed::Text(_) | Typed::Number(_) = typed {
            let message = format!(
                "`{}` is {}, so it is never true",
                shorten(&node.to_string()),
                typed.name()
            );
            let hint = "compare it with something";
            self.report
                .warn(node.span.start, message, Some(hint.to_owned()));
        }
        match typed {
            Typed::Test(test) => test,
            Typed::Dynamic(value) => Test::Body(value),
            Typed::Null => Test::Const(Outcome::False),
            Typed::Text(_) | Typed::Number(_) | Typed::Undefined | Typed::Error => {
                Test::Const(Outcome::Undefined)
            }
        }
    }

    pub(super) fn node(&mut self, node: &Node) -> Typed {
        match &node.kind {
            Kind::Number(number) => Typed::Number(Number::Const(*number)),
            Kind::Text(text) => Typed::Text(Text::Const(text.clone())),
            Kind::Bool(true) => Typed::Test(Test::Const(Outcome::True)),
            Kind::Bool(false) => Typed::Test(Test::Const(Outcome::False)),
            Kind::Null => Typed::Null,
            Kind::Undefined => Typed::Undefined,
            Kind::Property(name) => {
                self.warn_name(node, name);
                Typed::Text(Text::Property(name.clone()))
            }
            Kind::System { name, braced } => self.system(node, name, *braced),
            Kind::Call { name, args } => self.call(node, name, args),
            Kind::Negate(operand) => self.negate(operand),
            Kind::Not(operand) => self.not(operand),
            Kind::Chain { first, rest } => self.chain(first, rest),
            Kind::Error => Typed::Error,
        }
    }

    /// A name that looks as if something else was meant.
    fn warn_name(&mut self, node: &Node, name: &str) {
        let hint = if ["true", "false", "null", "undefined"]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(name))
        {
            format!("write `{}` in lower case", name.to_ascii_lowercase())
        } else if name.contains('\'') {
            "put blanks around operators: `'a' || 'b'`".to_owned()
        } else if name.contains(['“', '”', '‘', '’', '\u{a0}']) {
            "replace curly quotes and no-break blanks by plain ones".to_owned()
        } else if name.starts_with('!') {
            "write NOT".to_owned()
        } else {
            return;
        };
        let message = format!("`{}` is read as the name of a property", shorten(name));
        self.report.warn(node.span.start, message, Some(hint));
    }

    /// `$name`: a body path where it begins with `$body.`, otherwise a system property; what
    /// has brackets can only be a body path (facts §4.4).
    fn system(&mut self, node: &Node, name: &str, braced: bool) -> Typed {
        let literal = (!braced).then(|| name.into());
        let prefix = name.get(..BODY.len());
        if prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(BODY)) {
            let path = name.get(BODY.len()..).unwrap_or_default();
            return match Path::parse(path) {
                Ok(path) => {
                    let literal = literal.filter(|_| !name.contains(['[', ']']));
                    Typed::Dynamic(Dynamic::Body { literal, path })
                }
                Err((at, message)) => {
                    let start = node.span.start + usize::from(braced) + BODY.len() + at;
                    let hint = "a body path is `$body.name.name[0]`";
                    self.report
                        .error(start, message.to_owned(), Some(hint.to_owned()));
                    Typed::Error
                }
            };
        }
        let found = shorten(name);
        if name.contains(['[', ']']) {
            let message = format!("found `{found}`, but only a body path has brackets");
            let hint = "a body path is `$body.name[0]`; the root is an object";
            self.report
                .error(node.span.start, message, Some(hint.to_owned()));
            return Typed::Error;
        }
        let property = SystemProperty::from_name(name.get(1..).unwrap_or_default());
        if property.is_none() {
            let hint = if name.eq_ignore_ascii_case("$body") {
                Some("name a member of the body: `$body.temperature`".to_owned())
            } else {
                let names = SystemProperty::ALL.map(SystemProperty::name);
                nearest(name.get(1..).unwrap_or_default(), names)
                    .map(|near| format!("did you mean ${near}?"))
            };
            let message = format!("`{found}` is not a system property");
            self.report.warn(node.span.start, message, hint);
        }
        Typed::Text(Text::System { literal, property })
    }

    fn negate(&mut self, operand: &Node) -> Typed {
        match self.node(operand) {
            Typed::Number(number) => Typed::Number(Number::Negate(Box::new(number))),
            Typed::Undefined => Typed::Undefined,
            other => self.mismatch(operand, &other, "`-` needs a number"),
        }
    }

    fn not(&mut self, operand: &Node) -> Typed {
        match self.node(operand) {
            Typed::Test(test) => Typed::Test(Test::Not(Box::new(test))),
            Typed::Dynamic(value) => Typed::Test(Test::Not(Box::new(Test::Body(value)))),
            Typed::Null => Typed::Test(Test::Const(Outcome::True)),
            Typed::Undefined => Typed::Undefined,
            other => self.mismatch(operand, &other, "NOT needs a condition"),
        }
    }

    fn chain(&mut self, first: &Node, rest: &[Link]) -> Typed {
        let mut left = self.node(first);
        let mut left_node = first;
        for link in rest {
            let right = self.node(&link.right);
            left = match link.op {
                Op::And | Op::Or => self.logic(link, left_node, left, right),
                Op::Coalesce => self.coalesce(link, left, right),
                Op::Concat => self.concat(link, left_node, left, right),
                Op::Multiply | Op::Divide | Op::Remainder | Op::Add | Op::Subtract => {
                    self.arithmetic(link, left_node, left, right)
                }
                _ => self.comparison(link, left_node, left, right),
            };
            left_node = &link.right;
        }
        left
    }

    /// AND and OR. A null gives way: `null AND x` is null, `null OR x` is x.
    fn logic(&mut self, link: &Link, left_node: &Node, left: Typed, right: Typed) -> Typed {
        let and = link.op == Op::And;
        let name = link.op.symbol();
        let needs = format!("{name} needs conditions on both sides");
        if let Typed::Text(_) | Typed::Number(_) = left {
            return self.mismatch(left_node, &left, &needs);
        }
        if let Typed::Text(_) | Typed::Number(_) = right {
            return self.mismatch(&link.right, &right, &needs);
        }
        if let (Kind::Bool(_), Typed::Dynamic(_)) = (&left_node.kind, &right) {
            let message = format!("a bare body value cannot stand to the right of `{left_node}`");
            let hint = format!("write {} = true", link.right);
            self.report
                .error(link.right.span.start, message, Some(hint));
            return Typed::Error;
        }
        let strict = matches!(left, Typed::Dynamic(_)) || matches!(right, Typed::Dynamic(_));
        let (left, right) = match (left, right) {
            (Typed::Error, _) | (_, Typed::Error) => return Typed::Error,
            (Typed::Null, _) | (_, Typed::Null) if and => return Typed::Null,
            (Typed::Null, other) | (other, Typed::Null) => return other,
            (Typed::Undefined, Typed::Undefined) => return Typed::Undefined,
            (left, right) => (test(left), test(right)),
        };
        let mut logic = match left {
            Test::Logic(logic) if logic.and == and => logic,
            first => Box::new(Logic {
                and,
                first,
                rest: Vec::new(),
                any_strict: false,
            }),
        };
        logic.rest.push((strict, right));
        logic.any_strict |= strict;
        Typed::Test(Test::Logic(logic))
    }

    fn coalesce(&mut self, link: &Link, left: Typed, right: Typed) -> Typed {
        match (left, right) {
            (Typed::Error, _) | (_, Typed::Error) => Typed::Error,
            (Typed::Null, Typed::Null) => Typed::Null,
            (Typed::Undefined, Typed::Undefined) => Typed::Undefined,
            (Typed::Text(left), Typed::Text(right)) => {
                Typed::Text(Text::FirstDefined(match left {
                    Text::FirstDefined(texts) => with(texts, right),
                    left => vec![left, right],
                }))
            }
            (Typed::Number(left), Typed::Number(right)) => {
                Typed::Number(Number::FirstDefined(match left {
                    Number::FirstDefined(numbers) => with(numbers, right),
                    left => vec![left, right],
                }))
            }
            (Typed::Test(left), Typed::Test(right)) => {
                Typed::Test(Test::FirstDefined(match left {
                    Test::FirstDefined(tests) => with(tests, right),
                    left => vec![left, right],
                }))
            }
            (left @ Typed::Dynamic(_), right) | (left, right @ Typed::Dynamic(_)) => {
                match (left.dynamic(), right.dynamic()) {
                    (Some(Dynamic::FirstDefined(values)), Some(right)) => {
                        Typed::Dynamic(Dynamic::FirstDefined(with(values, right)))
                    }
                    (Some(left), Some(right)) => {
                        Typed::Dynamic(Dynamic::FirstDefined(vec![left, right]))
                    }
                    _ => Typed::Error,
                }
            }
            (left, right) => {
                let hint = "`??` binds more loosely than all other operators; use parentheses";
                self.differ(link, &left, &right, Some(hint.to_owned()))
            }
        }
    }

    fn concat(&mut self, link: &Link, left_node: &Node, left: Typed, right: Typed) -> Typed {
        let needs = "`||` joins texts";
        let left = match left {
            Typed::Text(Text::Concat(parts)) => parts,
            other => match self.text(other, left_node, needs) {
                Some(text) => vec![text],
                None => return Typed::Error,
            },
        };
        match self.text(right, &link.right, needs) {
            Some(right) => Typed::Text(Text::Concat(with(left, right))),
            None => Typed::Error,
        }
    }

    fn text(&mut self, typed: Typed, node: &Node, needs: &str) -> Option<Text> {
        match typed {
            Typed::Text(text) => Some(text),
            Typed::Dynamic(value) => Some(Text::Dynamic(Box::new(value))),
            Typed::Undefined => Some(Text::Undefined),
            other => {
                self.mismatch(node, &other, needs);
                None
            }
        }
    }

    fn arithmetic(&mut self, link: &Link, left_node: &Node, left: Typed, right: Typed) -> Typed {
        let needs = format!("`{}` needs numbers", link.op.symbol());
        let body = link.op != Op::Remainder;
        let left = self.number(left, left_node, &needs, body);
        let right = self.number(right, &link.right, &needs, body);
        let (Some(left), Some(right)) = (left, right) else {
            return Typed::Error;
        };
        let (first, rest) = match left {
            Number::Chain(first, rest) => (first, rest),
            first => (Box::new(first), Vec::new()),
        };
        Typed::Number(Number::Chain(first, with(rest, (link.op, right))))
    }

    fn number(&mut self, typed: Typed, node: &Node, needs: &str, body: bool) -> Option<Number> {
        match typed {
            Typed::Number(number) => Some(number),
            Typed::Dynamic(value) if body => Some(Number::Dynamic(Box::new(value))),
            other => {
                self.mismatch(node, &other, needs);
                None
            }
        }
    }

    fn comparison(&mut self, link: &Link, left_node: &Node, left: Typed, right: Typed) -> Typed {
        let op = link.op;
        Typed::Test(match (left, right) {
            (Typed::Error, _) | (_, Typed::Error) => return Typed::Error,
            (Typed::Text(left), Typed::Text(right)) => {
                self.warn_two_properties(left_node, &link.right);
                Test::CompareText(op, left, right)
            }
            (Typed::Number(left), Typed::Number(right)) => Test::CompareNumber(op, left, right),
            (Typed::Null, Typed::Null) => Test::Const(match op {
                Op::Equal | Op::LessEqual | Op::GreaterEqual => Outcome::True,
                _ => Outcome::False,
            }),
            (Typed::Undefined, Typed::Undefined) => Test::Const(Outcome::Undefined),
            (Typed::Test(left), right @ (Typed::Test(_) | Typed::Dynamic(_))) => {
                let Some(right) = right.dynamic() else {
                    return Typed::Error;
                };
                let (first, rest) = match left {
                    Test::CompareOutcome(first, rest) => (first, rest),
                    first => (Box::new(first), Vec::new()),
                };
                Test::CompareOutcome(first, with(rest, (op, right)))
            }
            (left @ Typed::Dynamic(_), right) | (left, right @ Typed::Dynamic(_)) => {
                match (left.dynamic(), right.dynamic()) {
                    (Some(left), Some(right)) => Test::CompareDynamic(op, left, right),
                    _ => return Typed::Error,
                }
            }
            (left, right) => {
                let hint = comparison_hint(left_node, &left, &link.right, &right);
                return self.differ(link, &left, &right, hint);
            }
        })
    }

    /// `status = on` compares two properties; `'on'` may be meant.
    fn warn_two_properties(&mut self, left: &Node, right: &Node) {
        if let (Kind::Property(_), Kind::Property(name)) = (&left.kind, &right.kind) {
            let message = format!("this compares two properties, {left} and {right}");
            let hint = format!("write '{name}' in quotes to mean the text");
            self.report.warn(right.span.start, message, Some(hint));
        }
    }

    /// The two sides of an operator have different types.
    fn differ(&mut self, link: &Link, left: &Typed, right: &Typed, hint: Option<String>) -> Typed {
        let message = format!(
            "found {} to the right of `{}`, but {} to its left: both must have the same type",
            right.name(),
            link.op.symbol(),
            left.name()
        );
        self.report.error(link.right.span.start, message, hint);
        Typed::Error
    }

    fn mismatch(&mut self, node: &Node, found: &Typed, needs: &str) -> Typed {
        if let Typed::Error = found {
            return Typed::Error;
        }
        let printed = shorten(&node.to_string());
        let message = format!("{needs}, but `{printed}` is {}", found.name());
        let hint = match (found, needs.contains("number"), needs.contains("condition")) {
            (Typed::Text(_), true, _) => Some(format!("write as_number({printed})")),
            (Typed::Text(_), ..) if needs.starts_with("NOT") => Some(format!(
                "NOT binds tightly: write `NOT ({printed} = 'value')`"
            )),
            (Typed::Text(_), _, true) => Some(format!("compare it: `{printed} = 'value'`")),
            (Typed::Number(_), _, true) => Some(format!("compare it: `{printed} > 0`")),
            (Typed::Dynamic(_), ..) => Some(format!("write as_number({printed})")),
            _ => None,
        };
        self.report.error(node.span.start, message, hint);
        Typed::Error
    }
}

/// What is probably meant where two types meet that cannot be compared.
fn comparison_hint(
    left_node: &Node,
    left: &Typed,
    right_node: &Node,
    right: &Typed,
) -> Option<String> {
    let (text, other) = match (left, right) {
        (Typed::Text(_), _) => (left_node, right_node),
        (_, Typed::Text(_)) => (right_node, left_node),
        _ => return None,
    };
    let (name, value) = (shorten(&text.to_string()), shorten(&other.to_string()));
    match (left, right) {
        (Typed::Number(_), _) | (_, Typed::Number(_)) if matches!(text.kind, Kind::Text(_)) => {
            Some("write the number without quotes".to_owned())
        }
        (Typed::Number(_), _) | (_, Typed::Number(_)) => Some(format!(
            "properties are texts: write as_number({name}) for a number, '{value}' for a text"
        )),
        (Typed::Null, _) | (_, Typed::Null) => Some(format!("write is_null({name})")),
        (Typed::Undefined, _) | (_, Typed::Undefined) => Some(format!("write is_defined({name})")),
        (Typed::Test(_), _) | (_, Typed::Test(_)) if matches!(other.kind, Kind::Bool(_)) => {
            Some(format!("properties are texts: write '{value}' in quotes"))
        }
        _ => None,
    }
}

fn test(typed: Typed) -> Test {
    match typed {
        Typed::Test(test) => test,
        Typed::Dynamic(value) => Test::Body(value),
        _ => Test::Const(Outcome::Undefined),
    }
}

fn with<T>(mut list: Vec<T>, last: T) -> Vec<T> {
    list.push(last);
    list
}
