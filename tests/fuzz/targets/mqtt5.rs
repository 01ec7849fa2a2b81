//! See `edgehub_fuzz::mqtt5`.
#![no_main]

edgehub_fuzz::target!(mqtt5);
