//! See `edgehub_fuzz::control`.
#![no_main]

edgehub_fuzz::target!(control);
