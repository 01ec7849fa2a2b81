//! Where a route sends messages: the last part of its text (facts §4.1).

use std::sync::Arc;

use super::ast::Span;
use super::error::nearest;
use super::lexer::Token;
use super::parse::{Parser, shorten};
use crate::message::Endpoint;
use crate::topic;
use crate::topic::template::Template;

const BROKERED: &str = "BrokeredEndpoint";
/// Our own: a plain topic.
const TOPIC: &str = "Topic";

impl Parser<'_> {
    /// The sink, and that nothing stands behind it (`DESIGN` §4).
    pub(super) fn sink(&mut self) -> Option<(Box<str>, Endpoint)> {
        let (token, span) = self.peek();
        let token = token.clone();
        let text = self.lexer.slice(span);
        let name = nearest(text, [BROKERED, TOPIC]).filter(|_| token == Token::Word);
        let sink = match (token, name) {
            (Token::System, _) => {
                self.advance();
                if !text.eq_ignore_ascii_case("$upstream") {
                    let message = format!("found `{}`, expected `$upstream`", shorten(text));
                    let hint = nearest(text, ["$upstream"]);
                    let hint = hint.map(|_| "did you mean $upstream?".to_owned());
                    self.report.error(span.start, message, hint);
                    return None;
                }
                ("$upstream".into(), Endpoint::Upstream)
            }
            (_, Some(name)) => {
                self.advance();
                if !text.eq_ignore_ascii_case(name) {
                    let message = format!("found `{}`, expected a sink", shorten(text));
                    let hint = format!("did you mean {name}?");
                    self.report.error(span.start, message, Some(hint));
                }
                match name {
                    TOPIC => self.topic()?,
                    _ => self.brokered()?,
                }
            }
            _ => {
                let hint = if nearest(text, ["upstream"]).is_some() {
                    "write $upstream"
                } else {
                    "a sink is $upstream, BrokeredEndpoint(\"/modules/{module}/inputs/{input}\") \
                     or Topic(\"{topic}\")"
                };
                self.unexpected("`$upstream` or BrokeredEndpoint", Some(hint.to_owned()));
                return None;
            }
        };
        self.nothing_behind();
        Some(sink)
    }

    fn brokered(&mut self) -> Option<(Box<str>, Endpoint)> {
        let hint = "write BrokeredEndpoint(\"/modules/{module}/inputs/{input}\")";
        let (path, span) = self.quoted("the path of an input in quotes", hint)?;
        let endpoint = input(&path);
        match &endpoint {
            None => self.report.error(
                span.start,
                format!("found `{}`, expected the path of an input", shorten(&path)),
                Some("write \"/modules/{module}/inputs/{input}\"".to_owned()),
            ),
            Some((_, usual)) if !usual => self.report.warn(
                span.start,
                format!("`{}` is not /modules/…/inputs/…", shorten(&path)),
                Some("its second part is taken as module, its fourth as input".to_owned()),
            ),
            Some(_) => {}
        }
        endpoint.map(|(endpoint, _)| (path, endpoint))
    }

    /// A plain topic, with places to fill in.
    fn topic(&mut self) -> Option<(Box<str>, Endpoint)> {
        let hint = "write Topic(\"factory/{module}/{output}\")";
        let (text, span) = self.quoted("a topic in quotes", hint)?;
        let wrong = match Template::parse(&text) {
            Err(error) => Some(format!("`{}` is no topic: {error}", shorten(&text))),
            Ok(_) if !topic::is_publishable(&text) => Some(format!(
                "`{}` is not for routes: topics under $ and devices/ belong to the hub",
                shorten(&text)
            )),
            Ok(_) => None,
        };
        if let Some(message) = wrong {
            self.report
                .error(span.start, message, Some(hint.to_owned()));
            return None;
        }
        let template = Arc::from(&*text);
        Some((text, Endpoint::Topic { template }))
    }

    /// What stands in quotes between parentheses.
    fn quoted(&mut self, expected: &str, hint: &str) -> Option<(Box<str>, Span)> {
        if *self.peek().0 != Token::Open {
            self.unexpected("`(`", Some(hint.to_owned()));
            return None;
        }
        self.advance();
        let (token, span) = self.peek();
        let Token::Text(text) = token.clone() else {
            self.unexpected(expected, Some(hint.to_owned()));
            return None;
        };
        self.advance();
        if *self.peek().0 == Token::Close {
            self.advance();
        } else {
            self.unexpected("`)`", None);
        }
        Some((text, span))
    }

    fn nothing_behind(&mut self) {
        let hint = if self.at_keyword("WHERE") {
            "WHERE must stand before INTO"
        } else if self.at_keyword("INTO") || matches!(self.peek().0, Token::Comma) {
            "a route has one sink; write one route per sink"
        } else {
            "nothing can stand behind the sink"
        };
        if *self.peek().0 != Token::End {
            self.unexpected("the end of the route", Some(hint.to_owned()));
        }
    }
}

/// Module and input of a path with four parts, of which the first and the third are not looked
/// at (facts §4.1), and whether those are the usual ones.
fn input(path: &str) -> Option<(Endpoint, bool)> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut parts = path.split('/');
    let (modules, module) = (parts.next()?, parts.next()?);
    let (inputs, input) = (parts.next()?, parts.next()?);
    if parts.next().is_some() || module.trim().is_empty() || input.trim().is_empty() {
        return None;
    }
    let usual = modules.eq_ignore_ascii_case("modules") && inputs.eq_ignore_ascii_case("inputs");
    let endpoint = Endpoint::Input {
        module: module.into(),
        input: input.into(),
    };
    Some((endpoint, usual))
}
