//! See `edgehub_fuzz::subscriptions`.
#![no_main]

edgehub_fuzz::target!(subscriptions);
