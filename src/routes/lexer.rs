//! Text to tokens: the longest match wins, and nearly everything is a word (facts §4.2).

use super::ast::{Op, Span};
use super::error::Report;
use super::source::topic_of;

/// A token of the condition language.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// An identifier: a property, a function, or a keyword of the route around the condition.
    Word,
    /// `$name`, where `[` and `]` may stand too.
    System,
    Number(f64),
    Text(Box<str>),
    True,
    False,
    Null,
    Undefined,
    Not,
    Op(Op),
    Open,
    Close,
    Comma,
    OpenBrace,
    CloseBrace,
    /// Text that is no token; it has been reported.
    Bad,
    End,
}

/// Whether a character may stand in an identifier (facts §4.2).
pub(super) fn is_word(c: char) -> bool {
    !matches!(
        c,
        '(' | ')'
            | '<'
            | '>'
            | '@'
            | ','
            | ';'
            | ':'
            | '\\'
            | '"'
            | '/'
            | '['
            | ']'
            | '?'
            | '='
            | '{'
            | '}'
    ) && !is_blank(c)
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// A place in a route text.
#[derive(Debug)]
pub(super) struct Lexer<'t> {
    text: &'t str,
    at: usize,
    /// A string or a comment that is never closed took the rest of the text.
    pub(super) cut_off: bool,
}

impl<'t> Lexer<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            cut_off: false,
        }
    }

    pub(super) fn slice(&self, span: Span) -> &'t str {
        self.text.get(span.start..span.end).unwrap_or_default()
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next token and where it stands.
    pub(super) fn next(&mut self, report: &mut Report<'_>) -> (Token, Span) {
        if let Some(open) = self.skip_blanks_and_comments() {
            report.error(
                open,
                "this comment is never closed".to_owned(),
                Some("a comment ends with `*/`".to_owned()),
            );
            self.at = self.text.len();
            self.cut_off = true;
            return (Token::Bad, Span::new(open, self.at));
        }
        let start = self.at;
        let token = self.token(report);
        (token, Span::new(start, self.at))
    }

    /// The source path at this place: everything up to a blank or a character that cannot stand
    /// in a path. `/*` never begins a comment here (`DESIGN` §4).
    pub(super) fn path(&mut self) -> Span {
        self.at += run(self.rest(), is_blank);
        let start = self.at;
        self.at += run(self.rest(), |c| c == '/' || is_word(c));
        if topic_of(self.slice(Span::new(start, self.at))).is_some() {
            // More may stand in a topic than in a name.
            self.at += run(self.rest(), |c| !is_blank(c));
        }
        Span::new(start, self.at)
    }

    /// Goes back to the beginning of a span.
    pub(super) fn rewind(&mut self, span: Span) {
        self.at = span.start;
    }

    /// Skips blanks and comments; where a comment is never closed, returns its start.
    fn skip_blanks_and_comments(&mut self) -> Option<usize> {
        loop {
            self.at += run(self.rest(), is_blank);
            let comment = self.rest().strip_prefix("/*");
            match comment.map(|inner| inner.find("*/")) {
                None => return None,
                Some(None) => return Some(self.at),
                Some(Some(length)) => self.at += length + "/**/".len(),
            }
        }
    }

    fn token(&mut self, report: &mut Report<'_>) -> Token {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Token::End;
        };
        if let Some((token, length)) = punctuation(rest) {
            self.at += length;
            return token;
        }
        match first {
            '=' => self.double_equal(report),
            '"' | '\'' => self.quoted(first, report),
            '$' => {
                let length = run(rest, |c| is_word(c) || matches!(c, '[' | ']'));
                self.at += length;
                if length > 1 {
                    Token::System
                } else {
                    Token::Word
                }
            }
            c if is_word(c) => self.word(report),
            _ => self.unknown(report),
        }
    }

    fn double_equal(&mut self, report: &mut Report<'_>) -> Token {
        report.error(
            self.at,
            "found `==`, which is not an operator".to_owned(),
            Some("equality is written with one `=`".to_owned()),
        );
        self.at += 2;
        Token::Op(Op::Equal)
    }

    fn unknown(&mut self, report: &mut Report<'_>) -> Token {
        let length = run(self.rest(), |c| {
            matches!(c, '@' | ';' | ':' | '\\' | '[' | ']' | '?')
        });
        let found = self.rest().get(..length).unwrap_or_default();
        let hint = match found.chars().next() {
            Some('[' | ']') => Some("an index is possible in a body path only: `$body.a[0]`"),
            Some('?') => Some("the first defined of two values is written `a ?? b`"),
            Some(';') => Some("a route does not end with `;`"),
            _ => None,
        };
        report.error(
            self.at,
            format!("found `{found}`, which cannot stand here"),
            hint.map(str::to_owned),
        );
        self.at += length.max(1);
        Token::Bad
    }

    fn word(&mut self, report: &mut Report<'_>) -> Token {
        let word = self.rest();
        let length = run(word, is_word);
        let word = word.get(..length).unwrap_or_default();
        let start = self.at;
        self.at += length;
        match word {
            "*" => Token::Op(Op::Multiply),
            "%" => Token::Op(Op::Remainder),
            "+" => Token::Op(Op::Add),
            "-" => Token::Op(Op::Subtract),
            "||" => Token::Op(Op::Concat),
            "true" => Token::True,
            "false" => Token::False,
            "null" => Token::Null,
            "undefined" => Token::Undefined,
            "&&" | "&" => {
                let message = format!("found `{word}`, which is not an operator");
                report.error(start, message, Some("write AND".to_owned()));
                match word {
                    "&&" => Token::Op(Op::And),
                    _ => Token::Bad,
                }
            }
            "|" => {
                let message = "found `|`, which is not an operator".to_owned();
                let hint = "write OR between conditions, `||` between texts to join them";
                report.error(start, message, Some(hint.to_owned()));
                Token::Bad
            }
            _ if word.eq_ignore_ascii_case("and") => Token::Op(Op::And),
            _ if word.eq_ignore_ascii_case("or") => Token::Op(Op::Or),
            _ if word.eq_ignore_ascii_case("not") => Token::Not,
            _ => number(word).map_or(Token::Word, Token::Number),
        }
    }

    /// A string, or a word that begins with an apostrophe and goes on behind the second one:
    /// `'a'||'b'` without blanks is one name (facts §4.2).
    fn quoted(&mut self, quote: char, report: &mut Report<'_>) -> Token {
        let start = self.at;
        let rest = self.rest();
        let Some(length) = quoted_length(rest, quote) else {
            report.error(
                start,
                format!("this text begins with {quote} and is never closed"),
                Some(format!("close it with {quote}")),
            );
            self.at = self.text.len();
            self.cut_off = true;
            return Token::Bad;
        };
        let word = if quote == '\'' { run(rest, is_word) } else { 0 };
        if word > length {
            self.at += word;
            return Token::Word;
        }
        self.at += length;
        let inner = rest.get(1..length - 1).unwrap_or_default();
        Token::Text(unescape(inner, start + 1, report))
    }
}

/// Bytes at the start of the text that satisfy the test.
fn run(text: &str, test: impl Fn(char) -> bool) -> usize {
    text.find(|c| !test(c)).unwrap_or(text.len())
}

fn punctuation(rest: &str) -> Option<(Token, usize)> {
    let mut bytes = rest.bytes();
    let first = bytes.next()?;
    let second = bytes.next();
    let one = |token| Some((token, 1));
    let two = |op| Some((Token::Op(op), 2));
    match (first, second) {
        (b'<', Some(b'>')) | (b'!', Some(b'=')) => two(Op::NotEqual),
        (b'<', Some(b'=')) => two(Op::LessEqual),
        (b'>', Some(b'=')) => two(Op::GreaterEqual),
        (b'?', Some(b'?')) => two(Op::Coalesce),
        (b'=', Some(b'=')) => None,
        (b'<', _) => one(Token::Op(Op::Less)),
        (b'>', _) => one(Token::Op(Op::Greater)),
        (b'=', _) => one(Token::Op(Op::Equal)),
        (b'/', _) => one(Token::Op(Op::Divide)),
        (b'(', _) => one(Token::Open),
        (b')', _) => one(Token::Close),
        (b',', _) => one(Token::Comma),
        (b'{', _) => one(Token::OpenBrace),
        (b'}', _) => one(Token::CloseBrace),
        _ => None,
    }
}

/// Bytes of the string at the start of the text, with both quotes; `None` where it is not closed.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some(at + 1);
        }
        if c == '\\' {
            chars.next();
        }
    }
    None
}

/// Resolves `\'`, `\"`, `\\` and `\uXXXX`, which are all the escapes there are.
fn unescape(inner: &str, offset: usize, report: &mut Report<'_>) -> Box<str> {
    if !inner.contains('\\') {
        return inner.into();
    }
    let mut units: Vec<u16> = Vec::with_capacity(inner.len());
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != '\\' {
            units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
            continue;
        }
        let escaped = chars.next().map_or(' ', |(_, escaped)| escaped);
        let hex = inner.get(at + 2..at + 6);
        let code = hex
            .filter(|hex| escaped == 'u' && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|hex| u16::from_str_radix(hex, 16).ok());
        match (escaped, code) {
            ('\'' | '"' | '\\', _) => units.extend_from_slice(escaped.encode_utf16(&mut [0; 2])),
            (_, Some(code)) => {
                units.push(code);
                chars.nth(3);
            }
            _ => report.error(
                offset + at,
                format!("found `\\{escaped}`, which is not an escape"),
                Some(r#"the escapes are \' \" \\ and \uXXXX with four hex digits"#.to_owned()),
            ),
        }
    }
    String::from_utf16_lossy(&units).into()
}

/// A number, where the whole word is one: `12`, `-12`, `0x1F`, `1.5`, `.5`, `1e5` (facts §4.2).
fn number(word: &str) -> Option<f64> {
    if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        let digits = hex.chars().map(|c| c.to_digit(16));
        let valid = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        return valid.then(|| {
            digits.flatten().fold(0.0, |value: f64, digit| {
                value.mul_add(16.0, f64::from(digit))
            })
        });
    }
    let digits = |text: &str| run(text, |c| c.is_ascii_digit());
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let whole = digits(unsigned);
    let mut rest = unsigned.get(whole..)?;
    let mut fraction = 0;
    if let Some(after) = rest.strip_prefix('.') {
        fraction = digits(after);
        if fraction == 0 {
            return None;
        }
        rest = after.get(fraction..)?;
    }
    if whole + fraction == 0 {
        return None;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if exponent.is_empty() || digits(exponent) != exponent.len() {
            return None;
        }
    } else if !rest.is_empty() {
        return None;
    }
    word.parse().ok()
}
