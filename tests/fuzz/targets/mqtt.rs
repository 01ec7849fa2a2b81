//! See `edgehub_fuzz::mqtt`.
#![no_main]

edgehub_fuzz::target!(mqtt);
