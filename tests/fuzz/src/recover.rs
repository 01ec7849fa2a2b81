//! A store whose files were edited is opened: see `holds::check`.

use super::edits::{BASES, Edit, Files};
use super::holds;

/// Edits of one input.
const EDITS_MAX: usize = 8;

/// Runs one input.
pub fn run(input: &[u8]) {
    let Some((base, edits)) = super::given::<(u8, Vec<Edit>)>(input) else {
        return;
    };
    let mut files = Files::new(&BASES[usize::from(base) % BASES.len()]);
    for edit in edits.iter().take(EDITS_MAX) {
        let _ = files.apply(edit);
    }
    let forged = edits.iter().take(EDITS_MAX).any(Edit::forges);
    holds::check(&files, forged);
}
