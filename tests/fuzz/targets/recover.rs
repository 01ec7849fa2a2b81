//! See `edgehub_fuzz::recover`.
#![no_main]

edgehub_fuzz::target!(recover);
