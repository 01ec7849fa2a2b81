//! Makes the stores of `tests/fixtures` anew: `cargo bench --bench store_fixtures -- [FOLDER]`,
//! which is `tests/fixtures/store-v1` by default. To be run once for each format, by the version
//! that introduces it; the files then stay as they are for ever.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/store/fixture.rs"]
mod fixture;
#[path = "../../tests/store/rig.rs"]
mod rig;

use std::fs;
use std::path::PathBuf;

fn main() {
    let folder = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let folder = folder.map_or_else(|| PathBuf::from("tests/fixtures/store-v1"), PathBuf::from);
    for ended in fixture::ENDS {
        let root = tempfile::tempdir().expect("a folder for the store");
        let rows = fixture::make(root.path(), ended);
        let packed = folder.join(ended);
        if packed.exists() {
            fs::remove_dir_all(&packed).expect("the old files");
        }
        fixture::pack(root.path(), &packed);
        fs::write(folder.join(format!("{ended}.txt")), fixture::to_text(&rows)).expect("the list");
        println!("{}: {} copies wait", packed.display(), rows.len());
    }
}
