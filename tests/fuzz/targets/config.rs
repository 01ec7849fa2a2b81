//! See `edgehub_fuzz::config`.
#![no_main]

edgehub_fuzz::target!(config);
