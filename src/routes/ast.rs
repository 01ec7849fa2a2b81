//! The tree of a condition as it was written, with places, and how it is printed.

use std::fmt;

/// A stretch of the route text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    pub(super) fn to(self, other: Self) -> Self {
        Self::new(self.start, other.end)
    }
}

/// A binary operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Multiply,
    Divide,
    Remainder,
    Add,
    Subtract,
    Concat,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Equal,
    NotEqual,
    And,
    Or,
    Coalesce,
}

impl Op {
    /// How tightly it binds; the highest first (facts §4.4).
    pub(super) fn level(self) -> u8 {
        match self {
            Self::Multiply | Self::Divide | Self::Remainder => 7,
            Self::Add | Self::Subtract | Self::Concat => 6,
            Self::Less | Self::LessEqual | Self::Greater | Self::GreaterEqual => 5,
            Self::Equal | Self::NotEqual => 4,
            Self::And => 3,
            Self::Or => 2,
            Self::Coalesce => 1,
        }
    }

    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Concat => "||",
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Equal => "=",
            Self::NotEqual => "<>",
            Self::And => "AND",
            Self::Or => "OR",
            Self::Coalesce => "??",
        }
    }
}

/// An expression and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// A further member of a chain: the operator before it, the operator's place, the operand.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) op: Op,
    pub(super) right: Node,
}

/// What an expression is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Number(f64),
    Text(Box<str>),
    Bool(bool),
    Null,
    Undefined,
    /// A bare name.
    Property(Box<str>),
    /// `$name`, with the `$`; in braces it is never an application property.
    System {
        name: Box<str>,
        braced: bool,
    },
    Call {
        name: Box<str>,
        args: Vec<Node>,
    },
    Negate(Box<Node>),
    Not(Box<Node>),
    /// Operators of one level, from left to right. A chain rather than nested pairs, so that a
    /// long list of conditions is no deep tree.
    Chain {
        first: Box<Node>,
        rest: Vec<Link>,
    },
    /// Reported already.
    Error,
}

/// Level of a prefix operator and its operand.
const PREFIX: u8 = 8;

impl Node {
    pub(super) fn new(span: Span, kind: Kind) -> Self {
        Self { span, kind }
    }

    fn level(&self) -> u8 {
        match &self.kind {
            Kind::Chain { rest, .. } => rest.first().map_or(PREFIX, |link| link.op.level()),
            _ => PREFIX,
        }
    }

    /// Prints with parentheses where the level asks for them.
    fn print(&self, f: &mut fmt::Formatter<'_>, level: u8) -> fmt::Result {
        if self.level() < level {
            write!(f, "({self})")
        } else {
            write!(f, "{self}")
        }
    }
}

/// The canonical text: it compiles to the same tree again.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Number(number) => print_number(f, *number),
            Kind::Text(text) => print_text(f, text),
            Kind::Bool(value) => write!(f, "{value}"),
            Kind::Null => f.write_str("null"),
            Kind::Undefined => f.write_str("undefined"),
            Kind::Property(name) => f.write_str(name),
            Kind::System { name, braced: true } => write!(f, "{{{name}}}"),
            Kind::System { name, .. } => f.write_str(name),
            Kind::Call { name, args } => {
                write!(f, "{name}(")?;
                for (index, arg) in args.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write!(f, "{arg}")?;
                }
                f.write_str(")")
            }
            Kind::Negate(operand) => {
                f.write_str("- ")?;
                operand.print(f, PREFIX)
            }
            Kind::Not(operand) => {
                f.write_str("NOT ")?;
                operand.print(f, PREFIX)
            }
            Kind::Chain { first, rest } => {
                first.print(f, self.level() + 1)?;
                for link in rest {
                    write!(f, " {} ", link.op.symbol())?;
                    link.right.print(f, self.level() + 1)?;
                }
                Ok(())
            }
            Kind::Error => f.write_str("<error>"),
        }
    }
}

/// A number as the lexer reads it back; Rust alone would print 1e300 with 300 digits.
fn print_number(f: &mut fmt::Formatter<'_>, number: f64) -> fmt::Result {
    if number.is_infinite() {
        return f.write_str(if number > 0.0 { "1e999" } else { "-1e999" });
    }
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e17).contains(&size) {
        write!(f, "{number:e}")
    } else {
        write!(f, "{number}")
    }
}

/// A text in double quotes, which no word can run into.
pub(super) fn print_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}
