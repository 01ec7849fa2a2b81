//! A route: its text, compiled (facts §4.1).

use std::fmt;
use std::sync::Arc;

use super::ast::{Node, print_text};
use super::check::Checker;
use super::condition::Test;
use super::error::{Report, RouteError, nearest};
use super::lexer::Token;
use super::parse::{Parser, shorten};
use super::source::{SourcePath, TWIN_CHANGES, topic_of};
use super::table::RouteCounters;
use super::values::Outcome;
use super::{TEXT_BYTES_MAX, View};
use crate::message::{Endpoint, Priority};

/// A condition by itself, without a route around it (`DESIGN` §3.5).
#[derive(Debug)]
pub struct Condition {
    pub(super) tree: Option<Node>,
    pub(super) test: Test,
    warnings: Vec<RouteError>,
}

/// One route of a manifest, compiled (facts §4.1, §4.8).
#[derive(Debug)]
pub struct Route {
    name: Box<str>,
    text: Box<str>,
    priority: Priority,
    ttl_seconds: Option<u32>,
    pub(super) source: SourcePath,
    /// `None`: no WHERE, so every message of the source is taken.
    pub(super) condition: Option<Condition>,
    sink: Box<str>,
    endpoint: Endpoint,
    warnings: Vec<RouteError>,
    counters: Arc<RouteCounters>,
}

impl Condition {
    /// Compiles a condition that no route stands around.
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn compile(text: &str) -> Result<Self, Vec<RouteError>> {
        let mut parser = Parser::new(text, false);
        if too_long(text, &mut parser.report) {
            return Err(parser.report.errors);
        }
        let tree = parser.condition();
        let test = check(tree.as_ref(), &mut parser.report, false);
        let warnings = parser.report.finish()?;
        Ok(Self {
            tree,
            test,
            warnings,
        })
    }

    /// What the condition says about a message (facts §4.4).
    #[must_use]
    pub fn evaluate(&self, view: &View<'_>) -> Outcome {
        self.test.evaluate(view)
    }

    /// What is legal in the text, but probably not meant.
    #[must_use]
    pub fn warnings(&self) -> &[RouteError] {
        &self.warnings
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tree {
            Some(tree) => write!(f, "{tree}"),
            None => Ok(()),
        }
    }
}

impl Route {
    /// Compiles a route. A TTL of 0 is none (facts §4.8).
    ///
    /// # Errors
    /// Everything that is wrong with the text.
    pub fn compile(
        name: &str,
        text: &str,
        priority: Priority,
        ttl_seconds: Option<u32>,
    ) -> Result<Self, Vec<RouteError>> {
        let mut parser = Parser::new(text, true);
        if too_long(text, &mut parser.report) {
            return Err(parser.report.errors);
        }
        let parts = parser.route();
        let source = parts.source.unwrap_or_else(|| SourcePath::new("/*"));
        let condition = parts.condition.map(|tree| {
            let twin_change = &*source.prefix == TWIN_CHANGES;
            let test = check(tree.as_ref(), &mut parser.report, twin_change);
            Condition {
                tree,
                test,
                warnings: Vec::new(),
            }
        });
        let warnings = parser.report.finish()?;
        let Some((sink, endpoint)) = parts.sink else {
            return Err(Vec::new());
        };
        Ok(Self {
            name: name.into(),
            text: text.into(),
            priority,
            ttl_seconds: ttl_seconds.filter(|ttl| *ttl > 0),
            source,
            condition,
            sink,
            endpoint,
            warnings,
            counters: Arc::default(),
        })
    }

    /// The name in the manifest.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text as written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The source path as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source.text
    }

    /// Where matching messages go.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How urgent its messages are.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// How long its messages are kept, in seconds; `None`: as long as the manifest says.
    #[must_use]
    pub fn ttl_seconds(&self) -> Option<u32> {
        self.ttl_seconds
    }

    /// What is legal in the text, but probably not meant.
    #[must_use]
    pub fn warnings(&self) -> &[RouteError] {
        &self.warnings
    }

    /// How often it matched; shared with the routes that take over from this one.
    #[must_use]
    pub fn counters(&self) -> &Arc<RouteCounters> {
        &self.counters
    }

    /// Whether the message's source is one of this route's (facts §4.3).
    #[must_use]
    pub fn matches_source(&self, source: &str) -> bool {
        self.source.matches(source)
    }

    /// What the condition says, whatever the source: true where there is none.
    #[must_use]
    pub fn condition_outcome(&self, view: &View<'_>) -> Outcome {
        self.condition
            .as_ref()
            .map_or(Outcome::True, |condition| condition.evaluate(view))
    }

    /// Whether source and condition take the message.
    #[must_use]
    pub fn matches(&self, view: &View<'_>) -> bool {
        self.matches_source(view.source) && self.condition_outcome(view) == Outcome::True
    }

    /// Whether this is the same route as the other one, so that its counters go on.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.text == other.text
            && self.priority == other.priority
            && self.ttl_seconds == other.ttl_seconds
    }
}

/// The canonical text of the route.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SELECT * FROM {}", self.source.text)?;
        if let Some(condition) = &self.condition {
            write!(f, " WHERE {condition}")?;
        }
        f.write_str(" INTO ")?;
        match self.endpoint {
            Endpoint::Upstream | Endpoint::Cloud { .. } => f.write_str("$upstream"),
            Endpoint::Topic { .. } => print_sink(f, "Topic", &self.sink),
            Endpoint::Input { .. } | Endpoint::Session { .. } => {
                print_sink(f, "BrokeredEndpoint", &self.sink)
            }
        }
    }
}

fn print_sink(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    write!(f, "{name}(")?;
    print_text(f, text)?;
    f.write_str(")")
}

fn check(tree: Option<&Node>, report: &mut Report<'_>, twin_change: bool) -> Test {
    let mut checker = Checker {
        report,
        twin_change,
    };
    tree.map_or(Test::Const(Outcome::Undefined), |tree| {
        checker.condition(tree)
    })
}

fn too_long(text: &str, report: &mut Report<'_>) -> bool {
    let too_long = text.len() > TEXT_BYTES_MAX;
    if too_long {
        let message = format!(
            "the text has {} bytes, at most {TEXT_BYTES_MAX} are allowed",
            text.len()
        );
        report.error(0, message, Some("split the route".to_owned()));
    }
    too_long
}

/// What the parser found; what is missing has been reported.
#[derive(Default)]
struct RouteParts {
    source: Option<SourcePath>,
    /// Outer: there is a WHERE; inner: there is something behind it.
    condition: Option<Option<Node>>,
    sink: Option<(Box<str>, Endpoint)>,
}

const KEYWORDS: [&str; 4] = ["SELECT", "FROM", "WHERE", "INTO"];

impl Parser<'_> {
    fn route(&mut self) -> RouteParts {
        let mut parts = RouteParts::default();
        if self.at_keyword("SELECT") {
            self.advance();
            if matches!(self.peek().0, Token::Op(super::ast::Op::Multiply)) {
                self.advance();
            } else {
                self.unexpected("`*` after SELECT", None);
            }
        }
        if !self.seek(&["FROM"], "FROM") {
            return parts;
        }
        self.advance();
        parts.source = self.source();
        if self.seek(&["WHERE", "INTO"], "WHERE or INTO") && self.at_keyword("WHERE") {
            let start = self.advance().1;
            let condition = self.condition();
            if condition.is_none() && self.at_keyword("INTO") {
                self.report.warn(
                    start.start,
                    "this condition is empty, so the route takes nothing".to_owned(),
                    Some("leave WHERE out to take every message".to_owned()),
                );
            }
            parts.condition = Some(condition);
            self.seek(&["INTO"], "INTO");
        }
        if self.at_keyword("INTO") {
            self.advance();
            parts.sink = self.sink();
        }
        parts
    }

    /// Goes to the next of these keywords, reporting what stands before it.
    fn seek(&mut self, keywords: &[&str], expected: &str) -> bool {
        let here = |parser: &mut Self| keywords.iter().any(|word| parser.at_keyword(word));
        if here(self) {
            return true;
        }
        let (token, span) = self.peek();
        let word = (*token == Token::Word).then_some(span);
        let word = word.map(|span| self.lexer.slice(span)).unwrap_or_default();
        let near = nearest(word, KEYWORDS);
        let hint = match near {
            Some(near) if !near.eq_ignore_ascii_case(word) => Some(format!("did you mean {near}?")),
            _ if keywords.contains(&"FROM") => {
                Some("a route is FROM source WHERE condition INTO sink".to_owned())
            }
            _ => None,
        };
        self.unexpected(expected, hint);
        // A misspelt keyword stands for it; anything else is skipped.
        if let Some(near) = near.filter(|near| keywords.contains(near)) {
            self.take_for(near);
            return true;
        }
        while *self.peek().0 != Token::End {
            if here(self) {
                return true;
            }
            self.advance();
        }
        false
    }

    fn source(&mut self) -> Option<SourcePath> {
        let span = self.lexer.path();
        let text = self.lexer.slice(span);
        if !text.starts_with('/') {
            if text.is_empty() || KEYWORDS.iter().any(|word| word.eq_ignore_ascii_case(text)) {
                let message = "a source path is missing after FROM".to_owned();
                let hint = Some("write FROM /messages/*".to_owned());
                self.report.error(span.start, message, hint);
                self.lexer.rewind(span);
                return None;
            }
            let message = format!("found `{}`, expected a path with `/`", shorten(text));
            let hint = Some(format!("write /{}", shorten(text)));
            self.report.error(span.start, message, hint);
            return None;
        }
        let takes_topics = topic_of(text).is_some();
        if let Some(at) = text.find("//").filter(|_| !takes_topics) {
            let message = "found `//`, expected a name between the two".to_owned();
            self.report.error(span.start + at + 1, message, None);
            return None;
        }
        let source = SourcePath::new(text);
        if let Some((message, hint)) = source.filter_error() {
            self.report.error(span.start, message, Some(hint));
            return None;
        }
        if let Some((message, hint)) = source.suspicion() {
            self.report.warn(span.start, message, hint);
        }
        Some(source)
    }
}
