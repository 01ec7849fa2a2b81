//! What the fuzz targets do with an input, each in a module of its name; and what they share. The
//! tests of the hub run the same over the corpus: `tests/fuzz_corpus.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod bag;
pub mod broker;
pub mod config;
pub mod connection;
pub mod control;
pub mod frame;
pub mod journal;
pub mod manifest;
pub mod mqtt;
pub mod mqtt5;
pub mod recover;
pub mod routes;
pub mod session;
pub mod state;
pub mod subscriptions;
pub mod users;

pub mod edits;
pub mod holds;
pub mod memory_disk;
pub mod pipe;
pub mod receiver;
pub mod said;
pub mod state_files;
pub mod wire;

#[path = "../../store/damage.rs"]
pub mod damage;
#[path = "../../store/rig.rs"]
pub mod rig;
#[path = "../../store/sim_disk.rs"]
pub mod sim_disk;

use arbitrary::{Arbitrary, Unstructured};

/// An input made of parts; `None` where there is too little of it.
pub fn given<'a, T: Arbitrary<'a>>(input: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(input)).ok()
}

/// All the rest of an input as steps, as far as it goes.
pub fn steps<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>, max: usize) -> Vec<T> {
    let mut steps = Vec::new();
    while steps.len() < max && !input.is_empty() {
        match T::arbitrary(input) {
            Ok(step) => steps.push(step),
            Err(_) => break,
        }
    }
    steps
}

/// The fuzz target of this name.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::$name::run(input));
    };
}
