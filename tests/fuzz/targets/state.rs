//! See `edgehub_fuzz::state`.
#![no_main]

edgehub_fuzz::target!(state);
