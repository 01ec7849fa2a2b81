//! The deployment manifest: which modules there are, their desired properties, the routes and
//! the time that messages are kept (facts §4.8, §5.1, §10.1).
//!
//! A manifest whose frame is broken is refused as a whole; a broken route or authorization costs
//! only itself.
//! Keys that the hub does not use are passed over, since real documents have many.

mod authorizations;
mod desired;
mod json;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Position};
use crate::identity::rules::Statement;
use crate::message::Priority;

/// What the hub takes from a deployment manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Major and minor version of the `$edgeHub` section, 1.0 to 1.3.
    pub schema_version: (u32, u32),
    /// The routes whose frame is sound, in the order of the file; their texts are not compiled.
    pub routes: Vec<RouteText>,
    /// How long messages are kept where their route says nothing.
    pub ttl: Ttl,
    /// Every module that the manifest names, sorted, each once: the keys of `modulesContent` and
    /// of `$edgeAgent`'s `modules`.
    pub modules: Vec<String>,
    /// Desired properties of the modules that the manifest sets any for.
    pub desired: BTreeMap<String, Map<String, Value>>,
    /// `mqttBroker.authorizations`: the statements that are sound, in the order of the file.
    pub authorizations: Vec<Statement>,
}

/// How long messages are kept for a receiver that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Until they are delivered.
    Forever,
    /// Seconds; 0: expired at once.
    Seconds(u32),
}

impl Ttl {
    /// Two hours: what the documentation of manifests shows.
    pub const DEFAULT: Self = Self::Seconds(7_200);
}

/// A route as the manifest has it.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteText {
    /// The route's name.
    pub name: String,
    /// The route's text, JSON escapes resolved.
    pub text: String,
    /// Its priority; [`Priority::DEFAULT`] where it names none.
    pub priority: Priority,
    /// How long its messages are kept, in seconds; `None`: the manifest's [`Manifest::ttl`].
    pub ttl_seconds: Option<u32>,
    /// The text's JSON literal with its quotes, and where that starts.
    literal: String,
    start: Position,
}

impl RouteText {
    /// The place in the file of a byte of [`RouteText::text`]. An offset beyond the end gives the
    /// closing quote; one inside a character gives that character.
    #[must_use]
    pub fn locate(&self, offset: usize) -> Position {
        let columns = json::literal_columns(&self.literal, offset);
        let columns = u32::try_from(columns).unwrap_or(u32::MAX);
        Position {
            line: self.start.line,
            column: self.start.column.saturating_add(columns),
        }
    }

    /// Where the text starts, quote included.
    #[must_use]
    pub fn position(&self) -> Position {
        self.start
    }
}

impl Manifest {
    /// Reads a manifest. `file` is used for messages only.
    ///
    /// Without a manifest at least one diagnostic is an error; with one, each error stands for a
    /// route, an authorization or a module that was left out.
    #[must_use]
    pub fn parse(text: &str, file: &Path) -> (Option<Self>, Vec<Diagnostic>) {
        read::manifest(text, file)
    }

    /// Whether the manifest names a module.
    #[must_use]
    pub fn has_module(&self, module: &str) -> bool {
        self.modules
            .binary_search_by(|own| own.as_str().cmp(module))
            .is_ok()
    }
}
