//! What the forwarder needs beside the hub.

use std::sync::Arc;

use super::dial::Reach;
use super::filters::Filters;
use crate::hub::Forwarding;
use crate::identity::Secret;
use crate::limits::pace::Pace;
use crate::session::UpwardTiming;

/// Everything that the forwarder needs beside the hub.
#[derive(Debug)]
pub struct Settings {
    /// How the cloud is reached.
    pub reach: Reach,
    /// How the hub logs in.
    pub account: Account,
    /// In MQTT 5, not 3.1.1.
    pub is_v5: bool,
    /// What the hub has to know of messages.
    pub forwarding: Arc<Forwarding>,
    /// Window and deadlines of a conversation.
    pub timing: UpwardTiming,
    /// A connection that sends nothing for so long is closed; `None`: never.
    pub idle_ms: Option<u64>,
    /// The bound of messages in a second, for all connections together.
    pub pace: Pace,
    /// Whether the hub shows a certificate.
    pub has_certificate: bool,
    /// What to subscribe to.
    pub filters: Filters,
    /// Any number, for the jitter of waits.
    pub random: fn() -> u64,
}

/// How the hub logs in.
#[derive(Debug)]
pub enum Account {
    /// Once, for everybody.
    Mqtt {
        /// Client id.
        client_id: String,
        /// User name.
        username: Option<String>,
        /// Password.
        password: Option<Secret>,
    },
    /// As each module, with its own key.
    IotHub {
        /// What tokens are for.
        hostname: String,
        /// For how long they are made.
        ttl_seconds: u64,
    },
}
