//! See `edgehub_fuzz::routes`.
#![no_main]

edgehub_fuzz::target!(routes);
