//! A note of any content with the right checksums is the last thing in a store.
#![no_main]

use std::sync::LazyLock;

use edgehub_fuzz::edits::{Base, Files, bases};
use edgehub_fuzz::holds;
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(bases);

const NOTE_BYTES_MAX: usize = 16 * 1024;

fuzz_target!(
    init: {
        LazyLock::force(&BASES);
        let notes: [&[u8]; 6] = [
            br#"{"k":true,"e":[[5,"m0/in"]],"c":[{"l":90,"f":77,"a":[79,80]}],"s":[1,2,3]}"#,
            br#"{"z":true,"t":{"trusted_ms":1795305600000,"unsure_seq":3,"shifts":[]}}"#,
            br#"{"f":[1,2],"t":{"trusted_ms":1,"unsure_seq":null,
                "shifts":[{"from":1,"to":9,"ms":5}]}}"#,
            br#"{"c":[{"l":4294967295,"f":18446744073709551615}],"other":{}}"#,
            br#"{"k":true,"z":true,"s":[18446744073709551615,0]}"#,
            b"{}",
        ];
        edgehub_fuzz::seeds::write(notes.map(<[u8]>::to_vec));
    },
    |payload: &[u8]| {
        if payload.len() > NOTE_BYTES_MAX {
            return;
        }
        for base in BASES.iter().take(2) {
            let mut files = Files::new(base);
            files.add_note(payload).expect("there is a newest frame");
            holds::check(&files, true);
        }
    }
);
