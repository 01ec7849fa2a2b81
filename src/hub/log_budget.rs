//! How much strangers may write into the log.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Lines a second about what clients were refused; more are counted and left out.
const LINES_PER_SECOND: u32 = 100;
/// What is shown of a text that a client chose, in bytes.
const TEXT_BYTES: usize = 200;

/// A budget of lines, filled once a second.
#[derive(Debug, Default)]
pub(super) struct LogBudget {
    lines: AtomicU32,
    suppressed: AtomicU64,
}

impl LogBudget {
    /// Whether another line may be written.
    pub(super) fn take(&self) -> bool {
        let within = self.lines.fetch_add(1, Ordering::Relaxed) < LINES_PER_SECOND;
        if !within {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        within
    }

    /// A second has passed; returns how many lines were left out.
    pub(super) fn refill(&self) -> u64 {
        self.lines.store(0, Ordering::Relaxed);
        self.suppressed.swap(0, Ordering::Relaxed)
    }
}

/// The beginning of a text that a client chose, with its length where it is cut.
#[must_use]
pub fn brief(text: &str) -> String {
    if text.len() <= TEXT_BYTES {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES)
        .rev()
        .find(|end| text.is_char_boundary(*end));
    let start = text.get(..end.unwrap_or(0)).unwrap_or_default();
    format!("{start}… ({} bytes)", text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(brief("short"), "short");
        let long = brief(&"ü".repeat(150));
        assert_eq!(long, format!("{}… (300 bytes)", "ü".repeat(100)));
    }

    #[test]
    fn lines_beyond_the_budget_are_counted() {
        let budget = LogBudget::default();
        let written = (0..LINES_PER_SECOND + 5).filter(|_| budget.take()).count();
        assert_eq!(written, LINES_PER_SECOND as usize);
        assert_eq!(budget.refill(), 5);
        assert!(budget.take());
    }
}
