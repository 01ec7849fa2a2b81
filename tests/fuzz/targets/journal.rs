//! See `edgehub_fuzz::journal`.
#![no_main]

edgehub_fuzz::target!(journal);
