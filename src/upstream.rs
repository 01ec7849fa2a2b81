//! The way up: what is routed to `$upstream` leaves for the cloud.

pub mod dial;
pub mod link;
pub mod network;
mod proxy;
