//! See `edgehub_fuzz::session`.
#![no_main]

edgehub_fuzz::target!(session);
