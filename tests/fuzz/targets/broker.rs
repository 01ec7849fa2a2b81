//! See `edgehub_fuzz::broker`.
#![no_main]

edgehub_fuzz::target!(broker);
