//! A store whose files were edited is opened: see `holds::check`.
#![no_main]

use std::sync::LazyLock;

use edgehub_fuzz::edits::{Base, Edit, Files, bases};
use edgehub_fuzz::holds;
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(bases);

/// Edits of one input.
const EDITS_MAX: usize = 8;

fuzz_target!(
    init: {
        LazyLock::force(&BASES);
        let numbers = (0..64_u8).map(|n| n.wrapping_mul(37));
        edgehub_fuzz::seeds::write((0..48_u8).map(|n| {
            numbers.clone().map(|number| number.wrapping_add(n)).collect()
        }));
    },
    |input: (u8, Vec<Edit>)| {
        let (base, edits) = input;
        let mut files = Files::new(&BASES[usize::from(base) % BASES.len()]);
        for edit in edits.iter().take(EDITS_MAX) {
            let _ = files.apply(edit);
        }
        let forged = edits.iter().take(EDITS_MAX).any(Edit::forges);
        holds::check(&files, forged);
    }
);
