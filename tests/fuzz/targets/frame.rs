//! See `edgehub_fuzz::frame`.
#![no_main]

edgehub_fuzz::target!(frame);
