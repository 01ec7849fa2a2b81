//! Tokens to a tree, going on behind an error to find the next one (facts §4.1, §4.4).

use super::EXPRESSION_DEPTH_MAX;
use super::ast::{Kind, Link, Node, Op, Span};
use super::error::{Report, nearest};
use super::lexer::{Lexer, Token};

/// Reads a condition, alone or inside a route.
#[derive(Debug)]
pub(super) struct Parser<'t> {
    pub(super) lexer: Lexer<'t>,
    pub(super) report: Report<'t>,
    ahead: Option<(Token, Span)>,
    depth: usize,
    /// `INTO` ends the condition: there is a route around it.
    into_ends: bool,
    /// The rest of the condition is not looked at any more.
    gave_up: bool,
    /// A misspelt keyword and the one that it stands for.
    misspelt: Span,
    meant: &'static str,
}

/// Words that stand between operands.
const JOINTS: [&str; 3] = ["AND", "OR", "INTO"];

impl<'t> Parser<'t> {
    pub(super) fn new(text: &'t str, into_ends: bool) -> Self {
        Self {
            lexer: Lexer::new(text),
            report: Report::new(text),
            ahead: None,
            depth: 0,
            into_ends,
            gave_up: false,
            misspelt: Span::new(usize::MAX, usize::MAX),
            meant: "",
        }
    }

    pub(super) fn peek(&mut self) -> (&Token, Span) {
        if self.ahead.is_none() {
            self.ahead = Some(self.lexer.next(&mut self.report));
        }
        match &self.ahead {
            Some((token, span)) => (token, *span),
            None => (&Token::End, Span::new(0, 0)),
        }
    }

    pub(super) fn advance(&mut self) -> (Token, Span) {
        self.peek();
        self.ahead
            .take()
            .unwrap_or_else(|| (Token::End, Span::new(0, 0)))
    }

    /// Takes the word ahead for the keyword that it is a misspelling of.
    pub(super) fn take_for(&mut self, keyword: &'static str) {
        self.misspelt = self.peek().1;
        self.meant = keyword;
    }

    /// Whether the next token is this keyword of the route, in any case.
    pub(super) fn at_keyword(&mut self, keyword: &str) -> bool {
        let (token, span) = self.peek();
        let is_word = *token == Token::Word;
        let text = match span == self.misspelt {
            true => self.meant,
            false => self.lexer.slice(span),
        };
        is_word && text.eq_ignore_ascii_case(keyword)
    }

    /// Whether the condition ends here.
    fn at_end(&mut self) -> bool {
        *self.peek().0 == Token::End || (self.into_ends && self.at_keyword("INTO"))
    }

    /// Reports that something else was expected here.
    pub(super) fn unexpected(&mut self, expected: &str, hint: Option<String>) {
        let (token, span) = self.peek();
        let found = match token.clone() {
            Token::Bad => return,
            Token::End if self.lexer.cut_off => return,
            Token::End => "the end of the text".to_owned(),
            _ => format!("`{}`", shorten(self.lexer.slice(span))),
        };
        if !self.gave_up {
            let message = format!("found {found}, expected {expected}");
            self.report.error(span.start, message, hint);
        }
    }

    /// A whole condition; `None` where there is none (facts §4.4: an empty one is legal).
    pub(super) fn condition(&mut self) -> Option<Node> {
        if self.at_end() {
            return None;
        }
        let node = self.expression(1);
        while !self.at_end() {
            self.unexpected_joint();
            self.skip_to_joint();
            if !self.at_end() {
                self.advance();
                if !self.at_end() {
                    self.expression(1);
                }
            }
        }
        Some(node)
    }

    /// Operators that bind at least as tightly as the level, from left to right.
    fn expression(&mut self, level_min: u8) -> Node {
        let mut left = self.operand();
        let mut open = u8::MAX;
        while let (&Token::Op(op), _) = self.peek() {
            let level = op.level();
            if level < level_min {
                break;
            }
            self.advance();
            let right = self.expression(level + 1);
            let span = left.span.to(right.span);
            match &mut left.kind {
                Kind::Chain { rest, .. } if open == level => rest.push(Link { op, right }),
                _ => {
                    let first = Box::new(left);
                    let rest = vec![Link { op, right }];
                    left = Node::new(span, Kind::Chain { first, rest });
                }
            }
            left.span = span;
            open = level;
        }
        left
    }

    fn operand(&mut self) -> Node {
        if self.depth >= EXPRESSION_DEPTH_MAX {
            return self.give_up();
        }
        self.depth += 1;
        let node = self.operand_inside();
        self.depth -= 1;
        node
    }

    fn operand_inside(&mut self) -> Node {
        if self.at_end() {
            self.unexpected(VALUE, None);
            return Node::new(self.peek().1, Kind::Error);
        }
        let (token, span) = self.peek();
        let kind = match token {
            Token::Op(Op::Subtract) => return self.prefix(Kind::Negate),
            Token::Not => return self.prefix(Kind::Not),
            Token::Open => return self.parenthesis(),
            Token::OpenBrace => return self.braces(),
            Token::Word => return self.name(),
            Token::Number(number) => Kind::Number(*number),
            Token::Text(text) => Kind::Text(text.clone()),
            Token::True => Kind::Bool(true),
            Token::False => Kind::Bool(false),
            Token::Null => Kind::Null,
            Token::Undefined => Kind::Undefined,
            Token::System => Kind::System {
                name: self.lexer.slice(span).into(),
                braced: false,
            },
            Token::Bad => Kind::Error,
            Token::Close | Token::Comma | Token::CloseBrace | Token::Op(_) | Token::End => {
                let hint = matches!(token, Token::Op(Op::Equal | Op::Greater | Op::Less))
                    .then(|| "operators are = <> != < <= > >= AND OR NOT ??".to_owned());
                self.unexpected(VALUE, hint);
                return Node::new(span, Kind::Error);
            }
        };
        self.advance();
        Node::new(span, kind)
    }

    /// `-` and NOT bind more tightly than every binary operator.
    fn prefix(&mut self, kind: fn(Box<Node>) -> Kind) -> Node {
        let (_, span) = self.advance();
        let operand = self.operand();
        Node::new(span.to(operand.span), kind(Box::new(operand)))
    }

    fn parenthesis(&mut self) -> Node {
        let (_, open) = self.advance();
        let mut inner = self.expression(1);
        let close = self.close();
        inner.span = Span::new(open.start, close.end);
        inner
    }

    fn braces(&mut self) -> Node {
        let (_, open) = self.advance();
        let (token, span) = self.peek();
        if *token != Token::System {
            let hint = "braces stand around a system property or a body path: `{$messageId}`";
            self.unexpected("a name with `$`", Some(hint.to_owned()));
            if !self.at_end() {
                self.advance();
            }
            if *self.peek().0 == Token::CloseBrace {
                self.advance();
            }
            return Node::new(open, Kind::Error);
        }
        let name = self.lexer.slice(span).into();
        self.advance();
        let mut end = span;
        if *self.peek().0 == Token::CloseBrace {
            end = self.advance().1;
        } else {
            self.unexpected("`}`", None);
        }
        let kind = Kind::System { name, braced: true };
        Node::new(open.to(end), kind)
    }

    /// A property, or a function where a parenthesis follows.
    fn name(&mut self) -> Node {
        let (_, span) = self.advance();
        let name: Box<str> = self.lexer.slice(span).into();
        if *self.peek().0 != Token::Open {
            return Node::new(span, Kind::Property(name));
        }
        self.advance();
        let mut args = Vec::new();
        if *self.peek().0 != Token::Close {
            args.push(self.expression(1));
            while *self.peek().0 == Token::Comma {
                self.advance();
                args.push(self.expression(1));
            }
        }
        let close = self.close();
        Node::new(span.to(close), Kind::Call { name, args })
    }

    /// The closing parenthesis; where something else stands, what is before it is skipped.
    fn close(&mut self) -> Span {
        while *self.peek().0 != Token::Close {
            let (_, span) = self.peek();
            if self.at_end() {
                self.unexpected("`)`", None);
                return span;
            }
            self.unexpected_joint();
            self.skip_to_joint();
            if !self.at_end() && *self.peek().0 != Token::Close {
                self.advance();
                if !self.at_end() {
                    self.expression(1);
                }
            }
        }
        self.advance().1
    }

    /// Reports what stands where only an operator or the end can stand.
    fn unexpected_joint(&mut self) {
        let (token, span) = self.peek();
        let token = token.clone();
        let text = self.lexer.slice(span);
        let hint = match token {
            Token::Number(_) if text.starts_with('-') => {
                Some("to subtract, put blanks on both sides of `-`".to_owned())
            }
            Token::Word if text.starts_with(['-', '+', '*', '%', '|', '&', '!']) => {
                let sign = text.chars().next().unwrap_or('-');
                Some(format!(
                    "`{sign}` belongs to the word `{}`; put blanks on both sides of operators",
                    shorten(text)
                ))
            }
            Token::Word if text.eq_ignore_ascii_case("in") => {
                Some("write a = 'x' OR a = 'y'".to_owned())
            }
            Token::Word if text.eq_ignore_ascii_case("like") => {
                Some("write starts_with(a, 'x'), ends_with or contains".to_owned())
            }
            Token::Word if text.eq_ignore_ascii_case("is") => {
                Some("write is_null(a) or is_defined(a)".to_owned())
            }
            Token::Word => nearest(text, JOINTS).map(|joint| format!("did you mean {joint}?")),
            Token::Close if self.depth == 0 => Some("no parenthesis is open".to_owned()),
            _ => None,
        };
        let expected = match (self.depth, self.into_ends) {
            (0, true) => "an operator, INTO or the end of the condition",
            (0, false) => "an operator or the end of the condition",
            _ => "an operator, `,` or `)`",
        };
        let is_into = token == Token::Word && nearest(text, JOINTS) == Some("INTO");
        self.unexpected(expected, hint);
        if is_into && self.into_ends {
            self.take_for("INTO");
        }
    }

    /// Skips to a place from where an expression can be read again.
    fn skip_to_joint(&mut self) {
        let mut open = 0_usize;
        while !self.at_end() {
            match self.peek().0 {
                Token::Open => open += 1,
                Token::Close if open == 0 => return,
                Token::Close => open -= 1,
                Token::Op(Op::And | Op::Or | Op::Coalesce) | Token::Comma if open == 0 => return,
                _ => {}
            }
            self.advance();
        }
    }

    /// Too deep: one error, and the rest of the condition is skipped without recursion.
    fn give_up(&mut self) -> Node {
        let span = self.peek().1;
        if !self.gave_up {
            self.report.error(
                span.start,
                format!("this expression is nested deeper than {EXPRESSION_DEPTH_MAX} levels"),
                Some("split the route into several routes".to_owned()),
            );
            self.gave_up = true;
        }
        while !self.at_end() {
            self.advance();
        }
        Node::new(span, Kind::Error)
    }
}

const VALUE: &str = "a value, a property or a function";

/// At most 40 characters of a token, for messages.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
