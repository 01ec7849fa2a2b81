//! edgehub: an on-device MQTT message hub with module identities, routes, and queues for receivers
//! that are away.
//!
//! The rooms, each using only what stands above it:
//!
//! - words: [`limits`], [`topic`], [`identity`], [`message`], [`mailbox`], [`diagnostic`]
//! - cores, without async, sockets, files or clock: [`mqtt`], [`session`], [`iothub`], [`routes`],
//!   [`manifest`], [`subscriptions`]
//! - durable: [`store`]
//! - meeting place: [`hub`]
//! - shells: [`server`], [`upstream`], [`http`], [`client`]
//! - around them: [`observe`], [`config`], [`files`], [`certs`], [`run`], [`quickstart`], [`cli`]
//!
//! A PUBLISH flows socket → session → identity → route → store → ack → deliver;
//! `ARCHITECTURE.md` walks that way.

pub mod certs;
pub mod cli;
pub mod client;
pub mod config;
pub mod diagnostic;
pub mod files;
pub mod http;
pub mod hub;
pub mod identity;
pub mod iothub;
pub mod limits;
pub mod mailbox;
pub mod manifest;
pub mod message;
pub mod mqtt;
pub mod observe;
pub mod quickstart;
pub mod routes;
pub mod run;
pub mod server;
pub mod session;
pub mod store;
pub mod subscriptions;
pub mod topic;
pub mod upstream;
