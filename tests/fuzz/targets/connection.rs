//! See `edgehub_fuzz::connection`.
#![no_main]

edgehub_fuzz::target!(connection);
