//! The whole language, by its words.

mod explained;
mod generated;
mod messages;
mod reference;
mod tables;
mod topics;
mod written;
