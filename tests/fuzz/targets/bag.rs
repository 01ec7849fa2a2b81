//! See `edgehub_fuzz::bag`.
#![no_main]

edgehub_fuzz::target!(bag);
