//! What is wrong with a file, and where: one shape for the configuration, the manifest and the
//! identities.

use std::fmt;
use std::path::{Path, PathBuf};

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file, or the part of it that the message names, is not used.
    Error,
    /// The file is used; its author probably meant something else.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A place in a text: line and column, both from 1, columns in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, from 1; 0 stands for the whole file.
    pub line: u32,
    /// Column in characters, from 1; 0 stands for the whole file.
    pub column: u32,
}

impl Position {
    /// The whole file rather than a place in it.
    pub const WHOLE_FILE: Self = Self { line: 0, column: 0 };

    /// The place of a byte offset; an offset beyond the end gives the place after the last
    /// character, one inside a character gives that character.
    #[must_use]
    pub fn of(text: &str, offset: usize) -> Self {
        let before = (0..=offset.min(text.len()))
            .rev()
            .find_map(|end| text.get(..end))
            .unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let lines = before.bytes().filter(|&byte| byte == b'\n').count();
        let columns = before.get(line_start..).unwrap_or_default().chars().count();
        Self {
            line: clamp(lines + 1),
            column: clamp(columns + 1),
        }
    }
}

/// One thing to say about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as the user named it, or `environment` for a variable.
    pub file: PathBuf,
    /// Line from 1; 0: the whole file.
    pub line: u32,
    /// Column in characters from 1; 0: the whole file.
    pub column: u32,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in words, without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error at a place in a file.
    #[must_use]
    pub fn error(file: &Path, position: Position, message: impl Into<String>) -> Self {
        Self::new(file, position, Severity::Error, message.into())
    }

    /// A warning at a place in a file.
    #[must_use]
    pub fn warning(file: &Path, position: Position, message: impl Into<String>) -> Self {
        Self::new(file, position, Severity::Warning, message.into())
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Line and column.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            line: self.line,
            column: self.column,
        }
    }

    fn new(file: &Path, position: Position, severity: Severity, message: String) -> Self {
        Self {
            file: file.to_path_buf(),
            line: position.line,
            column: position.column,
            severity,
            message,
            hint: None,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        write!(f, " {}: {}", self.severity, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Diagnostics in the order in which they were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Whether at least one is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|one| one.severity == Severity::Error)
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, one by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// All of them by place; those found first come first where the place is the same.
    #[must_use]
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.0.sort_by_key(Diagnostic::position);
        self.0
    }
}

impl Extend<Diagnostic> for Diagnostics {
    fn extend<T: IntoIterator<Item = Diagnostic>>(&mut self, diagnostics: T) {
        self.0.extend(diagnostics);
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|one| writeln!(f, "{one}"))
    }
}

/// The lines that people read.
#[must_use]
pub fn texts(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}

/// The candidate that a misspelt name most probably stands for: the nearest one, if at most a
/// third of its characters differ.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= candidate.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str, offset: usize) -> (u32, u32) {
        let position = Position::of(text, offset);
        (position.line, position.column)
    }

    #[test]
    fn columns_count_characters_and_lines_end_at_line_feeds() {
        let text = "aé\r\nöx\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 1), (1, 2));
        assert_eq!(position(text, 2), (1, 2), "inside a character");
        assert_eq!(position(text, 3), (1, 3));
        assert_eq!(position(text, 5), (2, 1));
        assert_eq!(position(text, 7), (2, 2));
        assert_eq!(position(text, 9), (3, 1));
        assert_eq!(position(text, 99), (3, 1), "beyond the end");
        assert_eq!(position("", 0), (1, 1));
    }

    #[test]
    fn a_diagnostic_prints_as_compilers_print_theirs() {
        let file = Path::new("hub.toml");
        let at = Position { line: 3, column: 7 };
        let one =
            Diagnostic::error(file, at, "unknown key `sink`").with_hint("did you mean `sync`?");
        assert_eq!(
            one.to_string(),
            "hub.toml:3:7: error: unknown key `sink` (hint: did you mean `sync`?)"
        );
        let other = Diagnostic::warning(file, Position::WHOLE_FILE, "no listener");
        assert_eq!(other.to_string(), "hub.toml: warning: no listener");
    }

    #[test]
    fn a_list_knows_errors_and_sorts_by_place() {
        let file = Path::new("f");
        let at = |line| Position { line, column: 1 };
        let mut list = Diagnostics::default();
        assert!(list.is_empty());
        list.push(Diagnostic::warning(file, at(2), "second"));
        assert!(!list.has_errors());
        list.extend([Diagnostic::error(file, at(1), "first")]);
        assert!(list.has_errors());
        assert_eq!(
            list.to_string(),
            "f:2:1: warning: second\nf:1:1: error: first\n"
        );
        assert_eq!(list.iter().count(), 2);
        let sorted = list.into_sorted();
        assert_eq!(sorted[0].message, "first");
    }

    #[test]
    fn near_misses_are_found_and_far_ones_are_not() {
        let keys = ["sync", "max_bytes", "when_full"];
        assert_eq!(nearest("snyc", keys), Some("sync"));
        assert_eq!(nearest("maxbytes", keys), Some("max_bytes"));
        assert_eq!(nearest("When_Full", keys), Some("when_full"));
        assert_eq!(nearest("colour", keys), None);
    }
}
