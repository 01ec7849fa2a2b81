//! Packet dialogues against a hub: `cargo bench --bench sequences -- FOLDER [--all] [--only TEXT]`
//!
//! FOLDER holds files of JSON lines, one dialogue each: `name`, `version`, `steps` in order
//! (`send` and `recv` as hex, `subscribe`, `unsubscribe`, `other_publishes`) and how it has to
//! `end`. Where the standard leaves the answer open, so does this: a successful CONNACK matches any
//! other with the same session-present flag, a refusal or a DISCONNECT any other or a mere close,
//! an acknowledgement one for the same packet id with the same success. `--all` prints every
//! dialogue that failed, `--only` runs those whose names contain the text.
//!
//! Exit code 1 where one failed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod dialogue;
mod said;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use common::Setup;
use dialogue::Dialogue;

/// Failed dialogues that are printed unless all are asked for.
const PRINTED_MAX: usize = 20;

/// Packet dialogues against a hub.
#[derive(Parser, Debug)]
#[command(name = "sequences")]
struct Arguments {
    /// Where the `.jsonl` files are
    folder: PathBuf,
    /// Print every dialogue that failed
    #[arg(long)]
    all: bool,
    /// Only dialogues whose names contain this
    #[arg(long)]
    only: Option<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let setup = Setup::open("{}", &[]);
    let hub = setup.start();
    let mut counts: BTreeMap<(String, String), (usize, usize)> = BTreeMap::new();
    let mut failed = 0;
    for (file, dialogue) in read(&arguments) {
        let ended = dialogue.run(hub.tcp());
        let count = counts.entry((file, dialogue.version.clone())).or_default();
        count.1 += 1;
        match ended {
            Ok(()) => count.0 += 1,
            Err(why) => {
                failed += 1;
                if arguments.all || failed <= PRINTED_MAX {
                    println!("FAILED {}: {why}", dialogue.name);
                }
            }
        }
    }
    let mut all = (0, 0);
    for ((file, version), (right, of)) in counts {
        println!("{file:18} MQTT {version:6} {right:4} of {of}");
        all = (all.0 + right, all.1 + of);
    }
    println!("{} of {} dialogues as the standard has them", all.0, all.1);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The dialogues of all files, by file.
fn read(arguments: &Arguments) -> Vec<(String, Dialogue)> {
    let mut files: Vec<PathBuf> = fs::read_dir(&arguments.folder)
        .expect("the folder cannot be read")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for (index, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let dialogue: Dialogue = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}:{}: {error}", path.display(), index + 1));
            let only = arguments.only.as_deref().unwrap_or_default();
            if dialogue.name.contains(only) {
                all.push((name.clone(), dialogue));
            }
        }
    }
    assert!(
        !all.is_empty(),
        "no dialogue in {}",
        arguments.folder.display()
    );
    all
}
