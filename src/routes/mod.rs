//! Routes: which endpoints a message goes to, compiled from the texts of a manifest.
//!
//! A text passes through five steps, each in its file: tokens (`lexer`), a tree with places
//! (`parse`, `ast`), types (`check`, `functions`), a compiled condition that reads only what it
//! names (`condition`, with `values`, `text`, `body` and `json`), and the table of all routes by
//! source (`table`). [`explain()`] answers why a message was not routed. Nothing here waits,
//! reads files or knows the time.

mod ast;
mod body;
mod check;
mod condition;
mod error;
mod explain;
mod functions;
mod json;
mod lexer;
pub mod line;
mod parse;
mod route;
mod sink;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod values;

pub use error::RouteError;
pub use explain::{Explanation, Reason, explain, explain_all, explain_condition};
pub use route::{Condition, Route};
pub use table::{RouteCounters, RouteDiff, RouteTable};
pub use values::Outcome;

use crate::message::Properties;

/// Longest text of a route; a whole twin has at most 32 KiB (facts §4.8).
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Deepest nesting of an expression. AND, OR and the other operators may be chained freely:
/// a chain is no nesting.
pub const EXPRESSION_DEPTH_MAX: usize = 64;
/// Most steps of a body path.
pub const BODY_STEPS_MAX: usize = 32;
/// Deepest nesting of a body that conditions look into.
pub const BODY_DEPTH_MAX: u32 = 128;
/// Largest body that conditions look into.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most routes of a table.
pub const ROUTES_MAX: usize = u16::MAX as usize;

/// What a route may know about a message.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The source path, as [`crate::message::Source`] prints it (facts §4.3).
    pub source: &'a str,
    /// Application and system properties.
    pub properties: &'a Properties,
    /// The body, whatever it is.
    pub body: &'a [u8],
}

// The scanner keeps one bit per level of nesting.
const _: () = assert!(BODY_DEPTH_MAX <= u128::BITS);
const _: () = assert!(BODY_STEPS_MAX < BODY_DEPTH_MAX as usize);
