//! What is wrong with a route text, where, and what to write instead.

/// A finding in a route text: an error, or something legal that is probably not meant
/// (issue: errors with line, column, what was found, what was expected, and a hint).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}{}", in_parentheses(.hint))]
pub struct RouteError {
    /// What was found and what was expected.
    pub message: String,
    /// What to write instead, where that can be guessed.
    pub hint: Option<String>,
    /// Byte offset into the text.
    pub offset: usize,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

fn in_parentheses(hint: &Option<String>) -> String {
    match hint {
        Some(hint) => format!(" ({hint})"),
        None => String::new(),
    }
}

/// Most findings that one text reports; a text worse than that is not a route.
const FINDINGS_MAX: usize = 64;

/// Collects the findings of one text.
#[derive(Debug)]
pub(super) struct Report<'t> {
    text: &'t str,
    pub(super) errors: Vec<RouteError>,
    pub(super) warnings: Vec<RouteError>,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds an error; a second one at the same place is a consequence of the first.
    pub(super) fn error(&mut self, offset: usize, message: String, hint: Option<String>) {
        let known = self.errors.iter().any(|error| error.offset == offset);
        if !known && self.errors.len() < FINDINGS_MAX {
            self.errors.push(locate(self.text, offset, message, hint));
        }
    }

    pub(super) fn warn(&mut self, offset: usize, message: String, hint: Option<String>) {
        let known = self.warnings.iter().any(|known| known.offset == offset);
        if !known && self.warnings.len() < FINDINGS_MAX {
            self.warnings.push(locate(self.text, offset, message, hint));
        }
    }

    /// The warnings where there is no error, otherwise the errors in the order of the text.
    pub(super) fn finish(mut self) -> Result<Vec<RouteError>, Vec<RouteError>> {
        if self.errors.is_empty() {
            return Ok(self.warnings);
        }
        self.errors.sort_by_key(|error| error.offset);
        Err(self.errors)
    }
}

fn locate(text: &str, offset: usize, message: String, hint: Option<String>) -> RouteError {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
    RouteError {
        message,
        hint,
        offset,
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column).unwrap_or(u32::MAX),
    }
}

/// The candidate nearest to a misspelt word, if one is near enough to be meant.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let word_lower = word.to_ascii_lowercase();
    let length = word_lower.chars().count();
    if length > 40 {
        return None;
    }
    let allowed = match length {
        0..=2 => 0,
        3..=5 => 1,
        6..=8 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_ascii_lowercase();
            (distance(&word_lower, &lower), candidate)
        })
        .filter(|(far, _)| *far <= allowed)
        .min_by_key(|(far, _)| *far)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words; neighbours swapped count as one.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut older: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    let mut left_before = None;
    for (row, l) in left.chars().enumerate() {
        let mut current = vec![row + 1];
        let mut right_before = None;
        for (column, r) in right.iter().copied().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let changed = at(&above, column).saturating_add(usize::from(l != r));
            let added = at(&current, column).saturating_add(1);
            let removed = at(&above, column + 1).saturating_add(1);
            let mut best = changed.min(added).min(removed);
            if column > 0 && left_before == Some(r) && right_before == Some(l) {
                best = best.min(at(&older, column - 1).saturating_add(1));
            }
            current.push(best);
            right_before = Some(r);
        }
        left_before = Some(l);
        older = std::mem::replace(&mut above, current);
    }
    above.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_of_the_line() {
        let mut report = Report::new("a\nåb c");
        report.error("a\nåb ".len(), "x".to_owned(), Some("y".to_owned()));
        let errors = report.finish().unwrap_err();
        assert_eq!((errors[0].line, errors[0].column), (2, 4));
        assert_eq!(errors[0].to_string(), "2:4: x (y)");
    }

    #[test]
    fn near_words_are_found() {
        let words = ["starts_with", "WHERE", "abs"];
        assert_eq!(nearest("startswith", words), Some("starts_with"));
        assert_eq!(nearest("WEHRE", words), Some("WHERE"));
        assert_eq!(nearest("sba", words), None);
        assert_eq!(nearest("unrelated", words), None);
    }
}
