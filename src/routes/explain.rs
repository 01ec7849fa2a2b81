//! Why was this message not routed? (issue: the answer in words, per route.)

use std::fmt;
use std::sync::Arc;

use super::ast::{Kind, Node, Op};
use super::body::{Found, Undefined};
use super::check::{Checker, Typed};
use super::condition::{Dynamic, Test, Text};
use super::error::{Report, nearest};
use super::json::Invalid;
use super::parse::shorten;
use super::route::{Condition, Route};
use super::source::{TWIN_CHANGES, mismatch};
use super::table::RouteTable;
use super::values::{Known, Outcome, Seen};
use super::{BODY_BYTES_MAX, BODY_DEPTH_MAX, View};
use crate::message::{Endpoint, Priority, SystemProperty};

/// What one route says about one message, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The route's name.
    pub route: String,
    /// Where it would send the message.
    pub endpoint: Endpoint,
    /// How urgent the message would be.
    pub priority: Priority,
    /// Whether source and condition take the message.
    pub matched: bool,
    /// Whether its endpoint gets the message with this route's priority and time to live:
    /// of several routes to one endpoint, only one does. Known to [`explain_all`] only.
    pub wins: bool,
    /// Whether the source takes it.
    pub source_matched: bool,
    /// Why the source does not take it.
    pub source_reason: Option<String>,
    /// What the condition says, whatever the source; `None`: the route has no condition.
    pub condition: Option<Outcome>,
    /// The parts of the condition because of which it is not true.
    pub reasons: Vec<Reason>,
}

/// One part of a condition that is not what it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The part, as the compiler understood it.
    pub expression: String,
    /// Where it begins in the text, in bytes.
    pub offset: usize,
    /// What it is for this message. `True` where a NOT stands before it.
    pub outcome: Outcome,
    /// Why, in words.
    pub why: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::True => "true",
            Self::False => "false",
            Self::Undefined => "undefined",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}: {}", self.expression, self.outcome, self.why)
    }
}

/// One line, and one more for each reason.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.matched {
            "matches"
        } else {
            "does not match"
        };
        write!(f, "route '{}' {verdict}", self.route)?;
        if self.matched {
            write!(f, ": to {}, priority {}", self.endpoint, self.priority)?;
            f.write_str(if self.wins { ", which wins" } else { "" })?;
        }
        if let Some(reason) = &self.source_reason {
            write!(f, "\n  source: {reason}")?;
        }
        for reason in &self.reasons {
            write!(f, "\n  condition: {reason}")?;
        }
        Ok(())
    }
}

/// Explains what a route says about a message.
#[must_use]
pub fn explain(route: &Route, view: &View<'_>) -> Explanation {
    let source_matched = route.matches_source(view.source);
    let condition = route.condition.as_ref();
    let twin_change = &*route.source.prefix == TWIN_CHANGES;
    Explanation {
        route: route.name().to_owned(),
        endpoint: route.endpoint().clone(),
        priority: route.priority(),
        matched: route.matches(view),
        wins: false,
        source_matched,
        source_reason: (!source_matched).then(|| mismatch(&route.source, view.source)),
        condition: condition.map(|condition| condition.evaluate(view)),
        reasons: condition
            .map(|condition| reasons(condition, view, twin_change))
            .unwrap_or_default(),
    }
}

/// Explains what every route of a table says about a message, and which of them win. Counts
/// nothing.
#[must_use]
pub fn explain_all(table: &RouteTable, view: &View<'_>) -> Vec<Explanation> {
    let explain = |route: &Arc<Route>| explain(route, view);
    let mut explanations: Vec<_> = table.routes().iter().map(explain).collect();
    for endpoint in table.endpoints() {
        let winner = explanations
            .iter_mut()
            .filter(|found| found.matched && found.endpoint == *endpoint)
            .min_by_key(|found| found.priority);
        if let Some(winner) = winner {
            winner.wins = true;
        }
    }
    explanations
}

/// Explains why a condition is not true; nothing where it is.
#[must_use]
pub fn explain_condition(condition: &Condition, view: &View<'_>) -> Vec<Reason> {
    reasons(condition, view, false)
}

fn reasons(condition: &Condition, view: &View<'_>, twin_change: bool) -> Vec<Reason> {
    let mut explainer = Explainer {
        view,
        twin_change,
        reasons: Vec::new(),
    };
    let outcome = condition.evaluate(view);
    match &condition.tree {
        _ if outcome == Outcome::True => {}
        Some(tree) => explainer.descend(tree, Outcome::True),
        None => explainer.reasons.push(Reason {
            expression: String::new(),
            offset: 0,
            outcome,
            why: "the condition is empty".to_owned(),
        }),
    }
    explainer.reasons
}

struct Explainer<'v, 'a> {
    view: &'v View<'a>,
    twin_change: bool,
    reasons: Vec<Reason>,
}

impl Explainer<'_, '_> {
    fn typed(&self, node: &Node) -> Typed {
        let mut report = Report::new("");
        let mut checker = Checker {
            report: &mut report,
            twin_change: self.twin_change,
        };
        checker.node(node)
    }

    fn outcome(&self, node: &Node) -> Outcome {
        match self.typed(node) {
            Typed::Test(test) => test.evaluate(self.view),
            Typed::Dynamic(value) => Test::Body(value).evaluate(self.view),
            Typed::Null => Outcome::False,
            _ => Outcome::Undefined,
        }
    }

    /// Goes down to the parts because of which an expression is not what it has to be.
    fn descend(&mut self, node: &Node, wanted: Outcome) {
        match &node.kind {
            Kind::Chain { first, rest } if is_logic(rest) => {
                let before = self.reasons.len();
                let members = std::iter::once(&**first).chain(rest.iter().map(|link| &link.right));
                for member in members {
                    if self.outcome(member) != wanted {
                        self.descend(member, wanted);
                    }
                }
                if self.reasons.len() == before {
                    self.leaf(node);
                }
            }
            Kind::Not(operand) => {
                let opposite = match wanted {
                    Outcome::True => Outcome::False,
                    _ => Outcome::True,
                };
                self.descend(operand, opposite);
            }
            _ => self.leaf(node),
        }
    }

    fn leaf(&mut self, node: &Node) {
        let outcome = self.outcome(node);
        let mut facts = Vec::new();
        self.facts(node, outcome == Outcome::Undefined, &mut facts);
        if let Some(fact) = self.types_differ(node) {
            facts.push(fact);
        }
        let is_constant = matches!(
            self.typed(node),
            Typed::Text(_) | Typed::Number(_) | Typed::Null | Typed::Undefined
        );
        if is_constant {
            let fact = format!("{} alone is never true", self.typed(node).name());
            facts.push(fact);
        } else if facts.is_empty() {
            facts.push(match outcome {
                Outcome::Undefined => "its value is undefined".to_owned(),
                _ => format!("it is always {outcome}"),
            });
        }
        self.reasons.push(Reason {
            expression: node.to_string(),
            offset: node.span.start,
            outcome,
            why: facts.join("; "),
        });
    }

    /// What the message has for each name in an expression; only what is not known where the
    /// expression is undefined.
    fn facts(&self, node: &Node, unknown_only: bool, facts: &mut Vec<String>) {
        let mut add = |fact: Option<(bool, String)>| {
            if let Some((known, fact)) = fact
                && !(known && unknown_only)
                && !facts.contains(&fact)
            {
                facts.push(fact);
            }
        };
        match &node.kind {
            Kind::Property(name) => add(Some(self.property(name))),
            Kind::System { name, .. } => add(self.system(node, name)),
            Kind::Call { name, args } if name.eq_ignore_ascii_case("twin_change_includes") => {
                let path = args.first().map(ToString::to_string).unwrap_or_default();
                facts.push(match self.outcome(node) {
                    Outcome::True => format!("the reported change has {path}"),
                    _ => format!("the reported change has no {path}"),
                });
            }
            Kind::Call { name, args } => {
                let before = facts.len();
                for arg in args {
                    self.facts(arg, unknown_only, facts);
                }
                if facts.len() == before || !unknown_only {
                    facts.extend(self.call(node, name, args));
                }
            }
            Kind::Negate(operand) | Kind::Not(operand) => {
                self.facts(operand, unknown_only, facts);
            }
            Kind::Chain { first, rest } => {
                self.facts(first, unknown_only, facts);
                for link in rest {
                    self.facts(&link.right, unknown_only, facts);
                }
                let zero = rest.iter().any(|link| link.op == Op::Remainder);
                if zero && facts.is_empty() && unknown_only {
                    facts.push("the remainder of a division by 0 is undefined".to_owned());
                }
            }
            _ => {}
        }
    }

    /// Whether a property is known, and what it is.
    fn property(&self, name: &str) -> (bool, String) {
        match Text::Property(name.into()).evaluate(self.view) {
            Known::Text(text) => (true, format!("property '{name}' is '{}'", shorten(&text))),
            Known::Null => (false, format!("property '{name}' has no value")),
            Known::Missing => {
                let names = self.view.properties.iter().map(|(name, _)| name);
                let near = nearest(name, names)
                    .map(|near| format!(", the message has '{near}'"))
                    .unwrap_or_default();
                (false, format!("property '{name}' is missing{near}"))
            }
        }
    }

    fn system(&self, node: &Node, name: &str) -> Option<(bool, String)> {
        match self.typed(node) {
            Typed::Dynamic(value) => Some(self.body(name, &value)),
            Typed::Text(text) => Some(match text.evaluate(self.view) {
                Known::Text(text) => (true, format!("{name} is '{}'", shorten(&text))),
                Known::Null => (false, format!("{name} has no value")),
                Known::Missing if name.eq_ignore_ascii_case("$body") => {
                    let hint = "name a member of the body, such as $body.temperature";
                    (false, format!("$body alone is nothing; {hint}"))
                }
                Known::Missing => match SystemProperty::from_name(name.get(1..)?) {
                    Some(_) => (false, format!("system property {name} is missing")),
                    None => (false, format!("{name} is not a system property")),
                },
            }),
            _ => None,
        }
    }

    fn body(&self, name: &str, value: &Dynamic) -> (bool, String) {
        let found = match value.evaluate(self.view) {
            Seen::Body(found) => found,
            Seen::NullProperty => return (false, format!("property '{name}' has no value")),
            Seen::Undefined => return (false, self.body_undefined(name, value)),
        };
        let fact = match found {
            Found::Missing => return (true, self.body_missing(name, value)),
            Found::Null => format!("{name} is null"),
            Found::Bool(value) => format!("{name} is {value}"),
            Found::Number(number) => format!("{name} is the number {number}"),
            Found::Text(text) => format!("{name} is the text '{}'", shorten(&text)),
        };
        (true, fact)
    }

    fn body_missing(&self, name: &str, value: &Dynamic) -> String {
        let mut near = String::new();
        if let Dynamic::Body { path, .. } = value
            && let Some((missing, keys)) = path.siblings(self.view)
        {
            let names = keys.iter().map(String::as_str);
            if let Some(found) = nearest(missing, names) {
                near = format!("; the body has '{found}', and case matters");
                if !found.eq_ignore_ascii_case(missing) {
                    near = format!("; the body has '{found}'");
                }
            }
        }
        format!("{name} is not in the body, so it is null{near}")
    }

    fn body_undefined(&self, name: &str, value: &Dynamic) -> String {
        let Dynamic::Body { path, .. } = value else {
            return format!("{name} is undefined");
        };
        let Err(reason) = path.find(self.view) else {
            return format!("{name} is undefined");
        };
        let system = |property| {
            let text = self.view.properties.system_text(property);
            shorten(text.unwrap_or_default())
        };
        let why = match reason {
            Undefined::NoContentType => {
                "content type missing; the sender has to set it to application/json".to_owned()
            }
            Undefined::OtherContentType => format!(
                "content type is '{}', not exactly 'application/json'",
                system(SystemProperty::ContentType)
            ),
            Undefined::NoEncoding => {
                "content encoding missing; the sender has to set it to utf-8".to_owned()
            }
            Undefined::OtherEncoding => format!(
                "content encoding is '{}', not utf-8, utf-16 or utf-32",
                system(SystemProperty::ContentEncoding)
            ),
            Undefined::TooLarge => format!("the body has more than {BODY_BYTES_MAX} bytes"),
            Undefined::Invalid(Invalid::At(at)) => format!("the body is not JSON, at byte {at}"),
            Undefined::Invalid(Invalid::Depth) => {
                format!("the body is nested deeper than {BODY_DEPTH_MAX} levels")
            }
            Undefined::Invalid(Invalid::Root) => "the body is not a JSON object".to_owned(),
            Undefined::NotText => "the body is cut off inside a character".to_owned(),
            Undefined::Object => "it is an object; name one of its members".to_owned(),
            Undefined::Array => "it is an array; name an element, such as [0]".to_owned(),
            Undefined::Date => "it looks like a date, which cannot be compared".to_owned(),
        };
        format!("{why}, so {name} is undefined")
    }

    /// A call whose arguments are known and whose result is not.
    fn call(&self, node: &Node, name: &str, args: &[Node]) -> Option<String> {
        let known = |node: &Node| {
            let value = self.typed(node).dynamic()?;
            (value.evaluate(self.view) != Seen::Undefined).then_some(())
        };
        if known(node).is_some() || args.iter().any(|arg| known(arg).is_none()) {
            return None;
        }
        let arg = args.first().map(ToString::to_string).unwrap_or_default();
        if name.eq_ignore_ascii_case("as_number") {
            let value = args.first().and_then(|arg| self.typed(arg).dynamic())?;
            return match value.evaluate(self.view) {
                Seen::Body(Found::Text(text)) => {
                    Some(format!("'{}' is not a number", shorten(&text)))
                }
                _ => Some(format!("`{arg}` is not a number")),
            };
        }
        match name.eq_ignore_ascii_case("substring") {
            true => Some(format!("`{node}` is out of range")),
            false => Some(format!("`{node}` is undefined")),
        }
    }

    /// A comparison in which a body value has another type than the other side.
    fn types_differ(&self, node: &Node) -> Option<String> {
        let Kind::Chain { first, rest } = &node.kind else {
            return None;
        };
        let [link] = rest.as_slice() else {
            return None;
        };
        if !(4..=5).contains(&link.op.level()) {
            return None;
        }
        let (left, right) = (self.kind(first)?, self.kind(&link.right)?);
        (left != right).then(|| format!("{left} is never equal to {right}"))
    }

    fn kind(&self, node: &Node) -> Option<&'static str> {
        let value = self.typed(node).dynamic()?;
        match value.evaluate(self.view) {
            Seen::Body(Found::Text(_)) => Some("a text"),
            Seen::Body(Found::Number(_)) => Some("a number"),
            Seen::Body(Found::Bool(_)) => Some("true or false"),
            Seen::Body(Found::Null | Found::Missing) => Some("null"),
            Seen::Undefined | Seen::NullProperty => None,
        }
    }
}

fn is_logic(rest: &[super::ast::Link]) -> bool {
    rest.iter().any(|link| matches!(link.op, Op::And | Op::Or))
}
