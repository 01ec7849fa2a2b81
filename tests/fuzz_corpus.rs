//! What the fuzz targets check, over their corpora and some thousands of seeded changes of them;
//! see `tests/fuzz`. With `EDGEHUB_FUZZ_ROUNDS=20` twenty times as many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "fuzz/src/lib.rs"]
#[allow(dead_code)]
mod fuzz;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use fuzz::sim_disk::Rng;

/// No changed input becomes longer.
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// Changes of one input.
const CHANGES_MAX: u64 = 6;
/// Bytes and texts that often lead somewhere.
const PIECES: [&[u8]; 24] = [
    b"\0",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x80\x80\x80\x80\x01",
    b"\0\0\0\0\0\0\0\x80",
    b"\0\x04MQTT",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"$",
    b"#",
    b"+",
    b"/",
    b"%24.",
    b"\"",
    b"\\u0000",
    b"{",
    b"]",
    b"\n\n",
    b"null",
    b"-1e999",
    b" AND ",
];

/// Runs a target over its corpus, and over so many inputs made from it.
fn run(name: &str, target: fn(&[u8]), rounds: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let files = fs::read_dir(folder.join(name)).expect("every target has a corpus");
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, input) in paths.iter().zip(&corpus) {
        try_one(target, input, &path.display().to_string());
    }
    let more = std::env::var("EDGEHUB_FUZZ_ROUNDS").map_or(1, |more| more.parse().unwrap());
    let mut rng = Rng::new(1);
    for round in 0..rounds * more {
        let mut input = pick(&corpus, &mut rng).to_vec();
        for _ in 0..=rng.below(CHANGES_MAX) {
            change(&mut input, pick(&corpus, &mut rng), &mut rng);
        }
        input.truncate(INPUT_BYTES_MAX);
        try_one(target, &input, &format!("{name}, round {round}"));
    }
}

fn try_one(target: fn(&[u8]), input: &[u8], what: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("{what}: {}", input.escape_ascii());
        resume_unwind(panic);
    }
}

fn pick<'a>(corpus: &'a [Vec<u8>], rng: &mut Rng) -> &'a [u8] {
    &corpus[rng.below(corpus.len() as u64) as usize]
}

fn change(input: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.below(input.len() as u64 + 1) as usize;
    let end = (at + rng.below(16) as usize).min(input.len());
    let piece = PIECES[rng.below(PIECES.len() as u64) as usize];
    match rng.below(8) {
        0 => input.insert(at, rng.below(256) as u8),
        1 => drop(input.drain(at..end)),
        2 => drop(input.splice(at..at, piece.iter().copied())),
        3 => drop(input.splice(at..end, piece.iter().copied())),
        4 => {
            let part = input[at..end].to_vec();
            drop(input.splice(at..at, part));
        }
        5 => {
            let from = rng.below(other.len() as u64 + 1) as usize;
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
    }
}

macro_rules! targets {
    ($($name:ident $rounds:literal)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), fuzz::$name::run, $rounds);
            }
        )*

        /// A target that is in no list is never run.
        #[test]
        fn all_targets_are_listed() {
            let listed = [$(stringify!($name)),*];
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
            let script = fs::read_to_string(folder.join("run")).unwrap();
            let all = script.lines().find_map(|line| line.trim().strip_prefix("all=("));
            let all: Vec<_> = all.unwrap().trim_end_matches(')').split(' ').collect();
            assert_eq!(all, listed, "tests/fuzz/run");
            let mut known: Vec<_> = fs::read_dir(folder.join("targets"))
                .unwrap()
                .map(|file| file.unwrap().path().file_stem().unwrap().to_owned())
                .collect();
            known.sort();
            let mut listed = listed.to_vec();
            listed.sort_unstable();
            assert_eq!(known, listed, "tests/fuzz/targets");
        }
    };
}

targets! {
    mqtt 50000
    mqtt5 50000
    session 10000
    broker 1000
    connection 1000
    bag 10000
    routes 5000
    manifest 1500
    config 1000
    users 5000
    subscriptions 5000
    frame 10000
    control 20
    recover 50
    state 500
    journal 200
}
