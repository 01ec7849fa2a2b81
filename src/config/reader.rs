//! What all sections of a configuration share: the text, the environment, the errors with their
//! places, and where each key was written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::VARIABLE_PREFIX;
use super::section::Section;
use super::values::did_you_mean;
use crate::diagnostic::{Diagnostic, Diagnostics, Position, Severity};

/// The tree's values, as the parser hands them out.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// In the file, at a byte offset.
    File(usize),
    /// In an environment variable.
    Variable(String),
    /// Nowhere: the whole file is meant.
    Absent,
}

/// What all sections share.
pub(super) struct Reader<'a> {
    pub(super) file: &'a Path,
    text: &'a str,
    pub(super) environment: &'a BTreeMap<String, String>,
    /// Whether the tree was recovered from a text with syntax errors.
    pub(super) broken_syntax: bool,
    diagnostics: Diagnostics,
    /// Where the errors are.
    errors: Vec<Origin>,
    pub(super) variables: BTreeSet<String>,
    pub(super) origins: BTreeMap<String, Origin>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        file: &'a Path,
        text: &'a str,
        environment: &'a BTreeMap<String, String>,
    ) -> Self {
        Self {
            file,
            text,
            environment,
            broken_syntax: false,
            diagnostics: Diagnostics::default(),
            errors: Vec::new(),
            variables: BTreeSet::new(),
            origins: BTreeMap::new(),
        }
    }

    pub(super) fn into_diagnostics(self) -> Diagnostics {
        self.diagnostics
    }

    /// The keys before the first section.
    pub(super) fn root(&mut self, table: &'a DeTable<'a>) -> Section<'_, 'a> {
        Section::new(self, String::new(), Some(table), Origin::Absent, true)
    }

    /// Whether a key or a section was written, in the file or in the environment.
    pub(super) fn is_written(&self, path: &str) -> bool {
        self.origins.contains_key(path)
    }

    /// The place of the first of these keys that was written.
    pub(super) fn origin(&self, paths: &[&str]) -> Origin {
        paths
            .iter()
            .find_map(|path| self.origins.get(*path).cloned())
            .unwrap_or(Origin::Absent)
    }

    /// Whether none of these keys was called broken, so that their values are the user's.
    pub(super) fn is_sound(&self, paths: &[&str]) -> bool {
        paths
            .iter()
            .filter_map(|path| self.origins.get(*path))
            .all(|origin| !self.errors.contains(origin))
    }

    pub(super) fn error(&mut self, origin: &Origin, message: String, hint: Option<String>) {
        let (file, position, message) = self.locate(origin, message);
        let mut diagnostic = Diagnostic::error(&file, position, message);
        diagnostic.hint = hint;
        self.errors.push(origin.clone());
        self.diagnostics.push(diagnostic);
    }

    pub(super) fn warning(&mut self, origin: &Origin, message: String, hint: Option<String>) {
        let (file, position, message) = self.locate(origin, message);
        let mut diagnostic = Diagnostic::warning(&file, position, message);
        diagnostic.hint = hint;
        self.diagnostics.push(diagnostic);
    }

    /// Warns of variables that look like overrides and are none.
    pub(super) fn check_variables(&mut self) {
        for name in self.environment.keys() {
            if !name.starts_with(VARIABLE_PREFIX) || self.variables.contains(name) {
                continue;
            }
            let mut diagnostic = variable_error(name, "overrides nothing");
            diagnostic.severity = Severity::Warning;
            diagnostic.hint = did_you_mean(name, self.variables.iter().map(String::as_str));
            self.diagnostics.push(diagnostic);
        }
    }

    fn locate(&self, origin: &Origin, message: String) -> (PathBuf, Position, String) {
        match origin {
            Origin::File(at) => {
                let position = Position::of(self.text, *at);
                (self.file.to_path_buf(), position, message)
            }
            Origin::Variable(name) => {
                let one = variable_error(name, &message);
                (one.file, Position::WHOLE_FILE, one.message)
            }
            Origin::Absent => (self.file.to_path_buf(), Position::WHOLE_FILE, message),
        }
    }
}

/// An error about an environment variable.
pub(super) fn variable_error(name: &str, message: &str) -> Diagnostic {
    let message = format!("{name}: {message}");
    Diagnostic::error(Path::new("environment"), Position::WHOLE_FILE, message)
}
