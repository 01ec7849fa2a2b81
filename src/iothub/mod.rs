//! The IoT Hub dialect of MQTT, as the device SDKs speak it (facts §1, §2.1).
//!
//! [`username`] reads who connects, [`topics`] what a topic or a filter means, [`bag`] the
//! properties that a topic carries, and [`sas`] makes the tokens that clients log in with.
//! Everything is text in, meaning out: nothing here decides, stores or sends.

pub mod bag;
pub mod sas;
pub mod topics;
pub mod username;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// What is percent-encoded: everything but the unreserved characters of RFC 3986 (facts §1.8).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
