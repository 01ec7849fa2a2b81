//! The rooms of `edgehub` up to the store, as `build.rs` made them.
#![allow(warnings)]

include!(concat!(env!("OUT_DIR"), "/rooms.rs"));
