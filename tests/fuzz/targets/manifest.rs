//! See `edgehub_fuzz::manifest`.
#![no_main]

edgehub_fuzz::target!(manifest);
