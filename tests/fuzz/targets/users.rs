//! See `edgehub_fuzz::users`.
#![no_main]

edgehub_fuzz::target!(users);
