//! Inputs to begin with, written where `EDGEHUB_SEEDS` says before the fuzzer reads that folder.

use std::fs;
use std::path::PathBuf;

/// Writes some inputs.
pub fn write(inputs: impl IntoIterator<Item = Vec<u8>>) {
    let Some(dir) = std::env::var_os("EDGEHUB_SEEDS").map(PathBuf::from) else {
        return;
    };
    fs::create_dir_all(&dir).expect("the folder of the seeds");
    for (at, input) in inputs.into_iter().enumerate() {
        fs::write(dir.join(format!("seed-{at}")), input).expect("a seed");
    }
}
